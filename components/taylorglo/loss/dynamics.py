"""How a loss learns, before any training: its learning rule, null epoch and equilibrium.

Through a softmax, a loss L = -sum_k f(t_k, h_k) has the learning rule

    dL/dz_j = -h_j (gamma_j - sum_k h_k gamma_k)  with  gamma = df/dh

(regularization paper, section 3). Everything here follows from gamma and the number of classes n,
for a Taylor loss of any order, with the logarithm or without: w t log h adds w t/h to gamma. It is
plain numpy, so that the filters need no PyTorch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from taylorglo.errors import InputError, meant, quoted
from taylorglo.loss.polynomial import (
    check_classes,
    checked_theta,
    coefficient_table,
    is_number,
    length,
    log_weight,
    terms,
)

_Values = TypeVar("_Values", float, NDArray[np.float64])


# The classic losses by name. Settings and records know them by these names.
CLASSIC = (
    "cross-entropy",
    "squared-error",
    "baikal",
    "generalised-cross-entropy",
    "symmetric-cross-entropy",
    "mean-absolute-error",
)
# The parameters of the papers: q of the generalised cross-entropy (arXiv 1805.07836), and alpha,
# beta and A = log 0 of the symmetric one, as for CIFAR-10 (arXiv 1908.06112).
GENERALISED_POWER = 0.7
SYMMETRIC_WEIGHTS = (0.1, 1.0)
LOG_OF_ZERO = -4.0


class Coefficients(NamedTuple):
    """The coefficients of gamma(t, h) = c1 + ch h + chh h^2 + chy h t + cy t + cyy t^2 + w t/h.

    The weight w of the logarithm is ``log_weight``. It is 0 for a theta without it.
    """

    c1: float
    ch: float
    chh: float
    chy: float
    cy: float
    cyy: float
    log_weight: float = 0.0


@dataclass(frozen=True)
class WithPole:
    """The function pole/x + polynomial(x) of x > 0: what gamma and the net pull are if w > 0.

    It is called as NumPy's polynomials are, on a number or on an array.
    """

    pole: float
    polynomial: Polynomial

    def __call__(self, x: _Values) -> _Values:
        """Return the values at ``x`` > 0, in the shape of ``x``."""
        values: _Values = self.pole / x + self.polynomial(x)
        return values

    def integ(self, *, lbnd: float) -> Callable[[_Values], _Values]:
        """Return the integral from ``lbnd`` > 0 on, a function of x > 0."""
        integral = self.polynomial.integ(lbnd=lbnd)

        def value(x: _Values) -> _Values:
            values: _Values = self.pole * np.log(x / lbnd) + integral(x)
            return values

        return value


class Dynamics(NamedTuple):
    """Learning drive A, collapse rate B and equilibrium confidence p* of a loss.

    There is no p* if the loss pulls all the way to a confidence of 1.
    """

    learning_drive: float
    collapse_rate: float
    equilibrium_confidence: float | None


def coefficients(theta: Sequence[float]) -> Coefficients:
    """Return the coefficients of gamma for a theta of order 2 or 3.

    The formulas are those of section 3 of the regularization paper.

    Raises:
        InputError: theta is not valid, or has an order whose gamma has more terms.
    """
    numbers, order = checked_theta(theta)
    if order == 2:
        th0, th1, th2, th3, th5 = numbers[:5]
        th4 = th6 = th7 = 0.0
    elif order == 3:
        th0, th1, th2, th3, th4, th5, th6, th7 = numbers[:8]
    else:
        raise InputError(
            f"a loss of order {order} has more coefficients than these six; order 2 or 3 is needed"
        )
    return Coefficients(
        c1=th2 - 2 * th1 * th3 + 3 * th1**2 * th4 - th0 * th5 + 2 * th0 * th1 * th6 + th0**2 * th7,
        ch=2 * th3 - 6 * th1 * th4 - 2 * th0 * th6,
        chh=3 * th4,
        chy=2 * th6,
        cy=th5 - 2 * th1 * th6 - 2 * th0 * th7,
        cyy=th7,
        log_weight=log_weight(numbers),
    )


def gamma(theta: Sequence[float], target: float) -> Polynomial | WithPole:
    """Return gamma(t, h) = df/dh as a function of the prediction h, for one target t.

    It is a polynomial of NumPy, unless the logarithm adds w t/h.
    """
    polynomial = _polynomial_gamma(theta, target)
    pole = log_weight(theta) * target
    return WithPole(pole, polynomial) if pole else polynomial


def _polynomial_gamma(theta: Sequence[float], target: float) -> Polynomial:
    """Return gamma without the logarithm's w t/h."""
    th0, th1, table = coefficient_table(theta)
    in_u = [
        b * sum(value * (target - th0) ** a for a, value in enumerate(row))
        for b, row in enumerate(table)
    ]
    return Polynomial(in_u[1:])(Polynomial([-th1, 1.0]))


def learning_drive(theta: Sequence[float], num_classes: int) -> float:
    """Return A = gamma_T - gamma_N at the null epoch (h = 1/n everywhere).

    A > 0 is exactly the condition that the first gradient step raises the target's logit over the
    other logits. The logarithm adds w n.
    """
    n = _checked_classes(num_classes)
    target, other = (_polynomial_gamma(theta, t)(1 / n) for t in (1.0, 0.0))
    return float(target - other) + log_weight(theta) * n


def collapse_rate(theta: Sequence[float], num_classes: int) -> float:
    """Return B, the growth rate of the mode in which all samples drift to one class.

    It is the mean over the classes of d gamma / dh at the null epoch: ch + 2 chh/n + chy/n at order
    3. B <= 0 damps the mode; B > 0 competes with the learning drive A. The logarithm subtracts w n.
    """
    n = _checked_classes(num_classes)
    slope_target, slope_other = (_polynomial_gamma(theta, t).deriv()(1 / n) for t in (1.0, 0.0))
    return float((slope_target + (n - 1) * slope_other) / n) - log_weight(theta) * n


def net_pull(theta: Sequence[float], num_classes: int) -> Polynomial | WithPole:
    """Return g(p) = gamma_T(p) - gamma_N((1-p)/(n-1)), the pull on a sample of confidence p.

    The confidence is the probability of the target; the other classes share the rest equally. The
    pull is a polynomial of NumPy, unless the logarithm adds w/p. Either is called on a number or on
    an array of confidences.
    """
    polynomial = _polynomial_pull(theta, _checked_classes(num_classes))
    pole = log_weight(theta)
    return WithPole(pole, polynomial) if pole else polynomial


def _polynomial_pull(theta: Sequence[float], n: int) -> Polynomial:
    """Return the net pull without the logarithm's w/p."""
    others_share = Polynomial([1.0, -1.0]) / (n - 1)
    pull: Polynomial = _polynomial_gamma(theta, 1.0) - _polynomial_gamma(theta, 0.0)(others_share)
    return pull


def equilibrium_confidence(theta: Sequence[float], num_classes: int) -> float | None:
    """Return p*, the first root of the net pull g in (1/n, 1], or None if there is none.

    With A > 0, the loss pulls towards zero error below p* and pushes back above it (the balance
    between fitting and regularizing of the regularization paper, section 4). With A <= 0 training
    never sets out for p*. Without a root the loss pulls all the way to a confidence of 1.
    """
    n = _checked_classes(num_classes)
    pull = _polynomial_pull(theta, n)
    pole = log_weight(theta)
    if pole:
        # p g(p) = w + p times the polynomial has the roots of g: it is w at p = 0.
        pull = pole + Polynomial([0.0, 1.0]) * pull
    scale = float(np.max(np.abs(pull.coef)))
    if scale == 0.0:
        return None
    pull /= scale
    # A small leading coefficient costs numpy's roots their digits, and a tiny one costs them all
    # digits. So coefficients that are zero but for rounding are left out, and Newton's method gives
    # the digits back. A step of Newton's method that is longer than 1e-3 would lead to another
    # root.
    roots = pull.trim(1e-12).roots()
    real = roots.real[np.abs(roots.imag) <= 1e-7]
    slope = pull.deriv()
    for _ in range(3):
        with np.errstate(divide="ignore", invalid="ignore"):
            step = pull(real) / slope(real)
        real = np.where(np.abs(step) < 1e-3, real - step, real)
    inside = real[(real > 1 / n + 1e-12) & (real <= 1 + 1e-12)]
    return min(float(inside.min()), 1.0) if inside.size else None


def label_smoothed(theta: Sequence[float], alpha: float, num_classes: int) -> list[float]:
    """Return the theta that has label smoothing built in.

    With one-hot targets it has the same learning rule as ``theta`` with smoothed targets. Smoothing
    replaces t by (1 - alpha) t + alpha/n, which moves the centre theta_0 and scales the powers of
    t.

    Args:
        theta: the loss.
        alpha: strength of the smoothing, in [0, 1).
        num_classes: n.

    Raises:
        InputError: theta, alpha or the number of classes is not valid, or the weight of the
            logarithm is above 0. With smoothed targets such a loss has a logarithm of every class,
            and is not in the family.
    """
    n = _checked_classes(num_classes)
    _check_smoothing(alpha)
    numbers, order = checked_theta(theta)
    if log_weight(numbers) and alpha:
        raise InputError(
            f"theta has the weight {log_weight(numbers):g} of the logarithm, and a smoothed "
            "logarithm is no Taylor loss; the weight should be 0, or use smoothed targets"
        )
    size = length(order)
    scaled = [
        value * (1 - alpha) ** a
        for (a, _), value in zip(terms(order), numbers[2:size], strict=True)
    ]
    return [(numbers[0] - alpha / n) / (1 - alpha), numbers[1], *scaled, *numbers[size:]]


def dynamics(theta: Sequence[float], num_classes: int) -> Dynamics:
    """Return A, B and p* of a Taylor loss."""
    return Dynamics(
        learning_drive(theta, num_classes),
        collapse_rate(theta, num_classes),
        equilibrium_confidence(theta, num_classes),
    )


def classic(name: str, num_classes: int, label_smoothing: float = 0.0) -> Dynamics:
    """Return A, B and p* of a classic loss in closed form, for hard targets.

    Args:
        name: one of :data:`CLASSIC`, with the parameters of its paper: ``cross-entropy``
            (gamma = t/h), ``squared-error`` (2 (t - h)), ``baikal`` (1/h + t/h^2),
            ``generalised-cross-entropy`` (t h^(q-1)), ``symmetric-cross-entropy``
            (alpha t/h + beta log t) or ``mean-absolute-error`` (1 for the target, else -1).
        num_classes: n.
        label_smoothing: alpha in [0, 1), for cross-entropy only.

    Raises:
        InputError: the name is unknown, or the label smoothing is impossible.
    """
    n = _checked_classes(num_classes)
    check_classic(name, label_smoothing)
    if name == "cross-entropy":
        rest = 1 - label_smoothing * (n - 1) / n if label_smoothing else None
        return Dynamics(n * (1 - label_smoothing), -float(n), rest)
    if name == "squared-error":
        return Dynamics(2.0, -2.0, 1.0)
    if name == "baikal":
        return Dynamics(float(n**2), -3.0 * n**2, 1 / math.sqrt(n))
    if name == "generalised-cross-entropy":
        drive = float(n ** (1 - GENERALISED_POWER))
        return Dynamics(drive, (GENERALISED_POWER - 1) * drive, None)
    if name == "symmetric-cross-entropy":
        alpha, beta = SYMMETRIC_WEIGHTS
        return Dynamics(alpha * n - beta * LOG_OF_ZERO, -alpha * n, None)
    return Dynamics(2.0, 0.0, None)


def check_classic(name: str, label_smoothing: float = 0.0) -> None:
    """Check the name of a classic loss and its label smoothing.

    Raises:
        InputError: the name is unknown, or the label smoothing is impossible.
    """
    _check_smoothing(label_smoothing)
    if name not in CLASSIC:
        raise InputError(
            f"unknown loss {name!r}; there are {', '.join(CLASSIC)}{meant(name, CLASSIC)}"
        )
    if label_smoothing and name != "cross-entropy":
        raise InputError(f"label smoothing is for cross-entropy only, not for {name!r}")


def _checked_classes(num_classes: int) -> int:
    check_classes(num_classes, "number of classes")
    return num_classes


def _check_smoothing(alpha: float) -> None:
    if not (is_number(alpha) and 0 <= alpha < 1):
        raise InputError(f"label smoothing should be at least 0 and below 1, is {quoted(alpha)}")
