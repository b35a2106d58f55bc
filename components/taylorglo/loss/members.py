"""The classic losses that are Taylor losses, and the Taylor losses nearest to the others.

A classic loss is a member of the family ``taylor`` or ``taylor-log`` if some theta has its learning
rule for hard targets. So a search in that family can find it, and may begin at it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taylorglo.errors import InputError, quoted
from taylorglo.loss.dynamics import LOG_OF_ZERO, SYMMETRIC_WEIGHTS, collapse_rate, net_pull
from taylorglo.loss.polynomial import check_classes, from_coefficients

# The classic losses that are members, in the order of the comparison.
MEMBERS = (
    "cross-entropy",
    "squared-error",
    "symmetric-cross-entropy",
    "mean-absolute-error",
)
_CONFIDENCES = 1000  # the confidences at which a pull is fitted


class Nearest(NamedTuple):
    """The Taylor loss nearest to another loss: its theta, and how far it is.

    ``deviation`` is the largest difference of the two steps p (1-p) g(p) on the target's logit,
    over the confidences p from 1/n to 1, relative to the largest step.
    """

    theta: list[float]
    deviation: float


def member(name: str) -> list[float]:
    """Return the theta of order 3 that has the learning rule of a classic loss for hard targets.

    The values of the two losses differ by a constant at most.

    Args:
        name: ``cross-entropy`` (w = 1, and nothing else), ``squared-error`` (gamma = 2 (t - h)),
            ``mean-absolute-error`` (2 (1 - h_y), so that gamma = 2 t), or
            ``symmetric-cross-entropy`` (alpha cross-entropy + 4 beta (1 - h_y), with alpha, beta
            and log 0 = -4 of Wang et al. 2019, arXiv 1908.06112).

    Returns:
        9 numbers if the loss has a logarithm, and 8 otherwise.

    Raises:
        InputError: there is no such member.
    """
    if name == "cross-entropy":
        return from_coefficients(0.0, 0.0, 0.0, 0.0, log_weight=1.0)
    if name == "squared-error":
        return from_coefficients(2.0, 0.0, -2.0, 0.0)
    if name == "mean-absolute-error":
        return from_coefficients(2.0, 0.0, 0.0, 0.0)
    if name == "symmetric-cross-entropy":
        alpha, beta = SYMMETRIC_WEIGHTS
        return from_coefficients(-beta * LOG_OF_ZERO, 0.0, 0.0, 0.0, log_weight=alpha)
    raise InputError(f"{quoted(name)} is no Taylor loss; these are: {', '.join(MEMBERS)}")


def nearest(
    pull: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    rate: float,
    num_classes: int,
    *,
    log: bool,
) -> Nearest:
    """Return the Taylor loss of order 3 that is nearest to another loss for hard targets.

    Its steps on the target's logit, p (1-p) g(p) with the net pull g, fit those of the other loss
    by least squares, at 1000 even confidences p from 1/n to 1. That leaves one number of theta
    open, which gives it the collapse rate of the other loss.

    Args:
        pull: the net pull g(p) of the other loss, for an array of confidences in [1/n, 1).
        rate: its collapse rate B.
        num_classes: n.
        log: whether the Taylor loss may have the logarithm.

    Returns:
        A theta of 9 numbers if ``log``, and of 8 otherwise, with the deviation.

    Raises:
        InputError: the number of classes is not valid.
    """
    check_classes(num_classes, "number of classes")
    n = num_classes
    p = np.linspace(1 / n, 1, _CONFIDENCES, endpoint=False)
    others = (1 - p) / (n - 1)
    weight = p * (1 - p)
    # The net pull of each coefficient: cy, chy, ch and chh, and w.
    parts = [np.ones_like(p), p, p - others, p**2 - others**2, 1 / p]
    steps = weight * pull(p)

    def fitted(count: int) -> NDArray[np.float64]:
        matrix = (weight * np.array(parts[:count])).T
        return np.linalg.lstsq(matrix, steps)[0].astype(np.float64)

    solution = fitted(5) if log else fitted(4)
    if log and solution[4] < 0:
        # The weight of the logarithm may not be negative, and 0 is the best of those allowed.
        solution = np.append(fitted(4), 0.0)
    cy, chy, ch, chh = solution[:4]
    log_weight = float(solution[4]) if log else None
    theta = from_coefficients(cy, chy, ch, chh, log_weight=log_weight)
    if n > 2:
        # This change of (cy, chy, ch) leaves the net pull as it is, because p and the share of the
        # others depend on each other, and changes B by (n-2)/(n-1). With two classes it has no
        # effect at all.
        shift = (rate - collapse_rate(theta, n)) * (n - 1) / (n - 2)
        cy, chy, ch = cy + shift / (n - 1), chy - shift * n / (n - 1), ch + shift
        theta = from_coefficients(cy, chy, ch, chh, log_weight=log_weight)
    difference = weight * net_pull(theta, n)(p) - steps
    return Nearest(theta, float(np.max(np.abs(difference)) / np.max(np.abs(steps))))
