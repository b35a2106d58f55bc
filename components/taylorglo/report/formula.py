"""A Taylor loss as a list of terms, which the page writes as a formula."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from taylorglo.loss.polynomial import length, log_weight, terms


class Term(NamedTuple):
    """A coefficient times t^a h^b, or times powers of the distances of t and h to their centres.

    ``idle`` is whether the term has no effect on training. The term ``logarithm`` is the
    coefficient times t log h, without centres; its a and b are 1 and 0.
    """

    coefficient: float
    a: int
    b: int
    idle: bool = False
    logarithm: bool = False


def centred(theta: Sequence[float], order: int) -> list[Term]:
    """Return the terms of f(t, h) in powers of t - theta_0 and h - theta_1.

    The logarithm comes last, if theta has it.
    """
    return [*_polynomial(theta, order), *_logarithm(theta)]


def expanded(theta: Sequence[float], order: int) -> list[Term]:
    """Return the terms of f(t, h) multiplied out in powers of t and h.

    Terms that are free of h are left out, because they have no gradient. The term in h alone is
    idle, because the sum of h over the classes is always 1. The logarithm comes last, if theta has
    it.
    """
    coefficients = dict.fromkeys(terms(order), 0.0)
    for value, a, b, *_ in _polynomial(theta, order):
        for i in range(a + 1):
            for j in range(1, b + 1):
                target = math.comb(a, i) * (-theta[0]) ** (a - i)
                prediction = math.comb(b, j) * (-theta[1]) ** (b - j)
                coefficients[i, j] += value * target * prediction
    polynomial = [
        Term(value, i, j, idle=(i, j) == (0, 1)) for (i, j), value in coefficients.items()
    ]
    return [*polynomial, *_logarithm(theta)]


def _polynomial(theta: Sequence[float], order: int) -> list[Term]:
    coefficients = theta[2 : length(order)]
    return [Term(value, a, b) for (a, b), value in zip(terms(order), coefficients, strict=True)]


def _logarithm(theta: Sequence[float]) -> list[Term]:
    weight = log_weight(theta)
    return [Term(weight, 1, 0, logarithm=True)] if weight else []
