"""The terms of the champion's polynomial."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import MNIST_THETA

from taylorglo.report.formula import Term, centred, expanded

ORDERS = {5: 2, 8: 3, 12: 4}


def value(terms: list[Term], t: float, h: float, centres: tuple[float, float] = (0, 0)) -> float:
    return sum(c * (t - centres[0]) ** a * (h - centres[1]) ** b for c, a, b, *_ in terms)


@settings(deadline=None, derandomize=True)
@given(
    st.sampled_from(list(ORDERS)).flatmap(
        lambda length: st.lists(st.floats(-2, 2), min_size=length, max_size=length)
    )
)
def test_the_expanded_polynomial_is_the_same_up_to_terms_without_h(theta: list[float]) -> None:
    order = ORDERS[len(theta)]
    for t in (0.0, 1.0, 0.3):
        predictions = (0.0, 0.2, 1.0)
        around = [value(centred(theta, order), t, h, (theta[0], theta[1])) for h in predictions]
        multiplied = [value(expanded(theta, order), t, h) for h in predictions]
        assert np.diff(around) == pytest.approx(np.diff(multiplied), rel=1e-9, abs=1e-9)


def test_the_term_in_h_alone_is_idle() -> None:
    idle = [(term.a, term.b) for term in expanded(MNIST_THETA, 3) if term.idle]
    assert idle == [(0, 1)]
    assert not any(term.idle for term in centred(MNIST_THETA, 3))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_logarithm_is_the_last_term(order: int) -> None:
    theta = [float(index) for index in range(2 + order * (order + 1) // 2)]
    for form in (centred, expanded):
        assert form([*theta, 0.25], order) == [
            *form(theta, order),
            Term(0.25, 1, 0, logarithm=True),
        ]
        # A logarithm of weight 0 is not shown.
        assert form([*theta, 0.0], order) == form(theta, order)
