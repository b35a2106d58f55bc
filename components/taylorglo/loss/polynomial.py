"""The terms of the Taylor loss: the monomials, their order, and the checks of a theta.

Per class and sample, the loss of order k is -f with

    f(t, h) = sum over a >= 0, b >= 1, a + b <= k of  theta_ab (t - theta_0)^a (h - theta_1)^b

for target t and prediction h (regularization paper, section 2; TaylorGLO paper, section III). Terms
without h have no gradient and are left out; factorials are part of theta_ab. A theta is the flat
vector (theta_0, theta_1, theta_01, theta_02, ..., theta_0k, theta_11, ...).

That is the family ``taylor``. A loss of the family ``taylor-log`` also has the logarithm
w t log h, which is w times cross-entropy, with a weight w >= 0. Its theta has w as one more number,
the last one. All lengths differ, so the length of a theta tells both its order and its family.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real

from taylorglo.errors import InputError, quoted

HIGHEST_ORDER = 8  # the highest order of a search, too
# The largest number that a theta may have. Its powers up to this order are finite in float64.
LARGEST = 1e30
MOST_CLASSES = 1_000_000
# The largest file of a saved loss. It has about one kilobyte; its provenance may have more.
MOST_BYTES = 1_000_000


def terms(order: int) -> list[tuple[int, int]]:
    """Return the exponents (a, b) of the monomials of a loss, in the order of theta.

    Raises:
        InputError: the order is below 2 or above 8.
    """
    if order < 2:
        raise InputError(f"order of a Taylor loss should be at least 2, is {quoted(order)}")
    if order > HIGHEST_ORDER:
        raise InputError(
            f"order of a Taylor loss should be at most {HIGHEST_ORDER}, is {quoted(order)}"
        )
    return [(a, b) for a in range(order) for b in range(1, order - a + 1)]


def length(order: int, *, log: bool = False) -> int:
    """Return the number of entries of a theta of order k.

    They are two centres and k(k+1)/2 coefficients, and one weight if there is the logarithm.
    """
    return 2 + len(terms(order)) + log


def checked_theta(
    theta: Sequence[float], order: int | None = None, *, log: bool | None = None
) -> tuple[list[float], int]:
    """Return a theta as plain floats, and its order.

    Args:
        theta: the numbers, of either family.
        order: the order that theta should have; None if any order will do. The length of theta
            decides its order.
        log: whether theta should have the weight of the logarithm; None if either will do. The
            length of theta decides that, too.

    Raises:
        InputError: it is no sequence, its length fits no order and family or not the given ones, an
            entry is not a number of at most 1e30 in size, or the logarithm's weight is below 0.
    """
    if order is not None and not isinstance(order, Integral):
        raise InputError(f"order should be a whole number, is {quoted(order)}")
    orders = range(2, HIGHEST_ORDER + 1) if order is None else (order,)
    logs = (False, True) if log is None else (log,)
    kinds = {length(k, log=with_log): (k, with_log) for k in orders for with_log in logs}
    if not hasattr(theta, "__len__") or getattr(theta, "ndim", 1) == 0:
        raise InputError(f"theta should be a list of numbers, is {quoted(theta)}")
    if len(theta) not in kinds:
        expected = _expected_length(order, log)
        raise InputError(f"theta has {len(theta)} numbers; there should be {expected}")
    found_order, has_weight = kinds[len(theta)]
    numbers = [_number(value) for value in theta]
    for index, value in enumerate(numbers):
        if not abs(value) <= LARGEST:
            raise InputError(
                f"theta[{index}] is {quoted(theta[index])}; "
                f"it should be a number between +-{LARGEST:g}"
            )
    if has_weight and numbers[-1] < 0:
        raise InputError(
            f"theta[{len(numbers) - 1}] is {quoted(theta[-1])}; "
            "the weight of the logarithm should be at least 0"
        )
    return numbers, found_order


def _expected_length(order: int | None, log: bool | None) -> str:
    """Return in words how many numbers a theta should have."""
    if order is None:
        return "5, 8, 12, 17, ... for order 2, 3, 4, 5, ..., and one more with the logarithm"
    if log is None:
        return f"{length(order)} for order {order}, or {length(order, log=True)} with the logarithm"
    return f"{length(order, log=log)} for order {order}" + (" with the logarithm" if log else "")


def has_log(theta: Sequence[float]) -> bool:
    """Return whether a theta is of the family with the logarithm, whatever its weight is.

    Raises:
        InputError: theta is not valid.
    """
    numbers, order = checked_theta(theta)
    return len(numbers) == length(order, log=True)


def log_weight(theta: Sequence[float]) -> float:
    """Return the weight w >= 0 of t log h in a loss: 0 if its theta has none.

    Raises:
        InputError: theta is not valid.
    """
    numbers, order = checked_theta(theta)
    return numbers[-1] if len(numbers) > length(order) else 0.0


def _number(value: object) -> float:
    """Return a number as a float; NaN if it is no number, so that one check refuses both."""
    # To Python, a truth value is a number.
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def is_number(value: object) -> bool:
    """Return whether a value is a real number, which a text is not."""
    return isinstance(value, Real)


def check_classes(classes: int, name: str = "classes") -> None:
    """Refuse a number of classes that no data set has.

    Args:
        classes: the number.
        name: what it is called in an error.

    Raises:
        InputError: it is no whole number, below 2, or above a million.
    """
    if not isinstance(classes, Integral):
        raise InputError(f"{name} should be a whole number, is {quoted(classes)}")
    if classes < 2:
        raise InputError(f"{name} should be at least 2, is {quoted(classes)}")
    if classes > MOST_CLASSES:
        raise InputError(f"{name} should be at most {MOST_CLASSES}, is {quoted(classes)}")


def coefficient_table(theta: Sequence[float]) -> tuple[float, float, list[list[float]]]:
    """Return the polynomial of a theta as a table of its coefficients.

    The weight of the logarithm is not part of it: see :func:`log_weight`.

    Returns:
        theta_0, theta_1 and a table with the coefficient of (t - theta_0)^a (h - theta_1)^b at
        ``table[b][a]``.
    """
    numbers, order = checked_theta(theta)
    # There are no terms without h, so that the row of b = 0 is empty.
    table = [[], *([0.0] * (order - b + 1) for b in range(1, order + 1))]
    for (a, b), value in zip(terms(order), numbers[2 : length(order)], strict=True):
        table[b][a] = value
    return numbers[0], numbers[1], table


def from_coefficients(
    cy: float,
    chy: float,
    ch: float,
    chh: float,
    *,
    cyy: float = 0.0,
    c1: float = 0.0,
    log_weight: float | None = None,
) -> list[float]:
    """Return the theta of order 3, centred at (0, 0), whose learning rule has these coefficients.

    Its derivative is df/dh = c1 + ch h + chh h^2 + chy h t + cy t + cyy t^2 (regularization paper,
    section 3), and w t/h besides if the weight w of the logarithm is given. With one-hot targets a
    training depends on cy + cyy, chy, ch, chh and w alone. No training depends on c1.

    Returns:
        8 numbers; 9 if ``log_weight`` is given.

    Raises:
        InputError: a number is not finite or above 1e30 in size, or ``log_weight`` is below 0.
    """
    theta = [0.0, 0.0, c1, ch / 2, chh / 3, cy, chy / 2, cyy]
    return checked_theta(theta if log_weight is None else [*theta, log_weight], 3)[0]
