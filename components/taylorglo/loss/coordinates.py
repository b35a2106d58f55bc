"""Coordinates of a loss in which each axis has a meaning in training, and one step one size.

The pull of a loss on a sample whose target has the probability p is g(p) (``net_pull``). It begins
at g(1/n) = A at the null epoch. The coordinates describe it there, half way, and at the end:

    scale      log(A / n): the pull at the null epoch beside cross-entropy's, which is n
    end        g(1) / A: the pull that is left at p = 1. Above 0 the loss pulls to the end, at 0 the
               pull ends there, and below 0 the loss pushes back before
    bend       how far g, half way between 1/n and 1, lies below the straight line from g(1/n) to
               g(1), in units of A
    collapse   B / A: the collapse rate, in units of the learning drive
    log_share  w n / A: the part of the pull at the null epoch that comes from the logarithm

For a pull that falls in a straight line, the equilibrium confidence is
p* = 1/n + (1 - 1/n) / (1 - end); in general it is the first root of g, which
:func:`taylorglo.loss.dynamics.equilibrium_confidence` finds. Cross-entropy is at
(0, 1/n, 1/2 + 1/(2n) - 2/(n+1), -1, 1), squared error at (log(2/n), 0, 0, -1, 0), and mean absolute
error at (log(2/n), 1, 0, 0, 0).

For one-hot targets and three classes or more, these five numbers and (cy', chy, ch, chh, w), which
decide a training (regularization paper, section 3), determine each other for every A > 0: given the
scale, four linear equations. Two classes have only (scale, end) and the log_share: the polynomial
part of the pull is a straight line there, and B is half its slope.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from taylorglo.errors import InputError
from taylorglo.loss.dynamics import collapse_rate, learning_drive, net_pull
from taylorglo.loss.polynomial import check_classes, from_coefficients, has_log, log_weight

LOG_SHARE = "log_share"


def axes(num_classes: int, *, log: bool) -> tuple[str, ...]:
    """Return the names of the axes.

    Args:
        num_classes: n.
        log: whether the loss has a logarithm (the family ``taylor-log``).
    """
    check_classes(num_classes, "number of classes")
    polynomial = ("scale", "end") if num_classes == 2 else ("scale", "end", "bend", "collapse")
    return (*polynomial, LOG_SHARE) if log else polynomial


def theta_at(point: Mapping[str, float], num_classes: int) -> list[float]:
    """Return the theta of order 3 at a point.

    Args:
        point: a number for each of :func:`axes`. Without a ``log_share``, the theta is one of the
            family ``taylor``. A ``log_share`` below 0 counts as 0.
        num_classes: n.
    """
    n = num_classes
    log = LOG_SHARE in point
    names = axes(n, log=log)
    drive = n * np.exp(point["scale"])
    share = max(0.0, point[LOG_SHARE]) if log else 0.0
    # The numbers that the polynomial part has to have, in units of A: those of the whole loss
    # without those of w/p. The equations of two classes are the first two.
    wanted = {
        "scale": 1 - share,
        "end": point["end"] - share / n,
    }
    if n > 2:
        middle = (1 + 1 / n) / 2
        wanted["bend"] = (1 + point["end"]) / 2 - point["bend"] - share / (n * middle)
        wanted["collapse"] = point["collapse"] + share
    right = np.array([wanted[name] for name in names if name != LOG_SHARE])
    cy, chy, *others = drive * np.linalg.solve(_equations(n), right)
    ch, chh = others or (0.0, 0.0)
    weight = float(share * drive / n) if log else None
    return from_coefficients(float(cy), float(chy), float(ch), float(chh), log_weight=weight)


def point_of(theta: Sequence[float], num_classes: int) -> dict[str, float]:
    """Return the point of a loss of any order; :func:`theta_at` inverts it for order 3 and less.

    Raises:
        InputError: A is not positive, so that the loss has no scale.
    """
    n = num_classes
    drive = learning_drive(theta, n)
    if not drive > 0:
        raise InputError(f"a loss with A = {drive:.4g} has no scale; A should be above 0")
    pull = net_pull(theta, n)
    end, middle = float(pull(1.0)) / drive, float(pull((1 + 1 / n) / 2)) / drive
    point = {"scale": float(np.log(drive / n)), "end": end}
    if n > 2:
        point |= {"bend": (1 + end) / 2 - middle, "collapse": collapse_rate(theta, n) / drive}
    return point | {LOG_SHARE: log_weight(theta) * n / drive} if has_log(theta) else point


def _equations(num_classes: int) -> np.ndarray:
    """Return the matrix from (cy', chy, ch, chh) to the pulls of the polynomial part, and to B.

    The pulls are those at 1/n, at 1 and half way. For two classes it is the matrix from (cy', chy)
    to the first two.
    """
    n = num_classes

    def pull(p: float) -> list[float]:
        other = (1 - p) / (n - 1)
        return [1.0, p, p - other, p**2 - other**2]

    rows = [pull(1 / n), pull(1.0)]
    if n == 2:
        return np.array(rows)[:, :2]
    return np.array([*rows, pull((1 + 1 / n) / 2), [0.0, 1 / n, 1.0, 2 / n]])
