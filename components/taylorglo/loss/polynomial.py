"""The terms of the Taylor loss: which monomials there are, in which order, and what a valid theta is.

Per class and sample, the order-k loss is -f with (regularization paper, section 2; TaylorGLO paper, section III)

    f(t, h) = sum over a >= 0, b >= 1, a + b <= k of  theta_ab (t - theta_0)^a (h - theta_1)^b

for target t and prediction h; terms without h have no gradient and are left out, factorials are part of theta_ab.
A theta is the flat vector (theta_0, theta_1, theta_01, theta_02, ..., theta_0k, theta_11, ...).
"""

import math
from collections.abc import Sequence

from taylorglo.errors import InputError

# of a number of theta: its powers up to order 8, the highest of a search, are finite in float64
LARGEST = 1e30


def terms(order: int) -> list[tuple[int, int]]:
    """The exponents (a, b) of the monomials of an order-k loss, in the order of their coefficients in theta."""
    if order < 2:
        raise InputError(f"order of a Taylor loss should be at least 2, is {order}")
    return [(a, b) for a in range(order) for b in range(1, order - a + 1)]


def length(order: int) -> int:
    """How many numbers a theta of this order has: two centres and k(k+1)/2 coefficients."""
    return 2 + len(terms(order))


def checked_theta(theta: Sequence[float], order: int | None = None) -> tuple[list[float], int]:
    """A theta as plain floats, and its order, which follows from its length.

    Raises:
        InputError: the length fits no order (or not the given one), or an entry is not a number of at most 1e30.
    """
    numbers = [_number(value) for value in theta]
    wanted = order
    if order is None:
        order = 2
        while length(order) < len(numbers):
            order += 1
    if length(order) != len(numbers):
        expected = (
            f"{length(order)} for order {order}"
            if wanted
            else "5, 8, 12, 17, ... for order 2, 3, 4, 5, ..."
        )
        raise InputError(f"theta has {len(numbers)} numbers; there should be {expected}")
    for index, value in enumerate(numbers):
        if not abs(value) <= LARGEST:
            raise InputError(
                f"theta[{index}] is {theta[index]!r}; it should be a number between +-{LARGEST:g}"
            )
    return numbers, order


def _number(value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def coefficient_table(theta: Sequence[float]) -> tuple[float, float, list[list[float]]]:
    """theta as (theta_0, theta_1, table) with table[b][a] the coefficient of (t - theta_0)^a (h - theta_1)^b."""
    numbers, order = checked_theta(theta)
    table = [[0.0] * (order - b + 1 if b else 0) for b in range(order + 1)]
    for (a, b), value in zip(terms(order), numbers[2:], strict=True):
        table[b][a] = value
    return numbers[0], numbers[1], table


def from_coefficients(
    cy: float, chy: float, ch: float, chh: float, *, cyy: float = 0.0, c1: float = 0.0
) -> list[float]:
    """The order-3 theta, centred at (0, 0), whose learning rule has these coefficients.

    Its derivative is df/dh = c1 + ch h + chh h^2 + chy h t + cy t + cyy t^2 (regularization paper, section 3). With
    one-hot targets the first four numbers, cy standing for cy + cyy, decide all of a training; c1 never matters.
    """
    return checked_theta([0.0, 0.0, c1, ch / 2, chh / 3, cy, chy / 2, cyy], 3)[0]
