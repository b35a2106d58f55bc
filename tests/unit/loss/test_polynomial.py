"""The flat vector theta: its terms, their order, and invalid thetas."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorglo.errors import InputError
from taylorglo.loss.polynomial import (
    LARGEST,
    check_classes,
    checked_theta,
    coefficient_table,
    from_coefficients,
    has_log,
    length,
    log_weight,
    terms,
)

ORDERS = range(2, 9)
NUMBERS = st.floats(-100, 100)


def test_order_3_has_the_terms_of_the_paper_in_its_order() -> None:
    # With v = t - theta_0 and u = h - theta_1 they are theta_2 u, theta_3 u^2, theta_4 u^3,
    # theta_5 v u, theta_6 v u^2 and theta_7 v^2 u.
    assert terms(3) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)]


@pytest.mark.parametrize("order", ORDERS)
def test_terms_are_every_monomial_with_h_up_to_the_order(order: int) -> None:
    every = {
        (a, b) for a in range(order + 1) for b in range(order + 1) if b >= 1 and a + b <= order
    }
    assert set(terms(order)) == every
    assert len(terms(order)) == len(every) == order * (order + 1) // 2
    assert length(order) == len(every) + 2


def test_the_lengths_of_both_families() -> None:
    assert [length(order) for order in ORDERS] == [5, 8, 12, 17, 23, 30, 38]
    assert [length(order, log=True) for order in ORDERS] == [6, 9, 13, 18, 24, 31, 39]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_order_and_family_follow_from_the_length(order: int, log: bool) -> None:
    theta = [float(value) for value in range(length(order, log=log))]
    assert checked_theta(theta) == (theta, order)
    assert checked_theta(theta, order) == (theta, order)
    assert checked_theta(theta, order, log=log) == (theta, order)
    assert has_log(theta) == log
    assert log_weight(theta) == (theta[-1] if log else 0.0)


@pytest.mark.parametrize("count", [0, 1, 4, 7, 10, 11, 14, 37, 40])
def test_a_length_of_no_order_is_refused(count: int) -> None:
    problem = (
        f"theta has {count} numbers; there should be 5, 8, 12, 17, ... for order 2, 3, 4, 5, ..., "
        "and one more with the logarithm"
    )
    for call in (checked_theta, has_log, log_weight, coefficient_table):
        with pytest.raises(InputError, match=problem):
            call([0.0] * count)


@pytest.mark.parametrize(
    ("count", "order", "log", "expected"),
    [
        (8, 4, None, "12 for order 4, or 13 with the logarithm"),
        (8, 4, False, "12 for order 4"),
        (8, 4, True, "13 for order 4 with the logarithm"),
        (9, 3, False, "8 for order 3"),
        (8, 3, True, "9 for order 3 with the logarithm"),
    ],
)
def test_a_length_of_another_order_or_family_is_refused(
    count: int, order: int, log: bool | None, expected: str
) -> None:
    problem = f"theta has {count} numbers; there should be {expected}$"
    with pytest.raises(InputError, match=problem):
        checked_theta([0.0] * count, order, log=log)


@pytest.mark.parametrize("weight", [-1e-300, -1, -LARGEST])
def test_a_weight_below_0_is_refused(weight: float) -> None:
    calls = (
        lambda: checked_theta([0.5] * 8 + [weight]),
        lambda: from_coefficients(1.0, 0.0, 0.0, 0.0, log_weight=weight),
    )
    for call in calls:
        with pytest.raises(InputError) as caught:
            call()
        assert "theta[8] is " in str(caught.value)
        assert "the weight of the logarithm should be at least 0" in str(caught.value)
        assert str(weight) in str(caught.value)
    # The last number of the other family is no weight.
    checked_theta([0.5] * 7 + [weight])


@pytest.mark.parametrize("order", [1, 0, -3])
def test_an_order_below_2_is_refused(order: int) -> None:
    problem = f"order of a Taylor loss should be at least 2, is {order}"
    for call in (terms, length, lambda order: checked_theta([0.0] * 8, order)):
        with pytest.raises(InputError, match=problem):
            call(order)


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, 2 * LARGEST, -2 * LARGEST, 10**400, None, "x", 1j]
)
@pytest.mark.parametrize("index", [0, 7])
def test_an_entry_that_is_no_finite_number_is_refused_with_its_place(
    bad: object, index: int
) -> None:
    theta: list[object] = [0.5] * 8
    theta[index] = bad
    with pytest.raises(InputError, match=rf"theta\[{index}\] is ") as caught:
        checked_theta(theta)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def thetas_of(order: int) -> st.SearchStrategy[list[float]]:
    numbers = st.lists(NUMBERS, min_size=length(order), max_size=length(order))
    weights = st.just([]) | st.floats(0, 100).map(lambda weight: [weight])
    return st.builds(list.__add__, numbers, weights)


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(ORDERS).flatmap(thetas_of))
def test_the_table_holds_every_coefficient_once(theta: list[float]) -> None:
    centre_t, centre_h, table = coefficient_table(theta)
    order = checked_theta(theta)[1]
    assert centre_t == theta[0]
    assert centre_h == theta[1]
    assert [table[b][a] for a, b in terms(order)] == theta[2 : length(order)]
    assert sum(map(len, table)) == length(order) - 2


@settings(deadline=None, derandomize=True)
@given(st.tuples(*[NUMBERS] * 6))
def test_from_coefficients_is_a_valid_theta_of_order_3(numbers: tuple[float, ...]) -> None:
    cy, chy, ch, chh, cyy, c1 = numbers
    theta = from_coefficients(cy, chy, ch, chh, cyy=cyy, c1=c1)
    # df/dh at centre (0, 0) is c1 + 2 (ch/2) h + 3 (chh/3) h^2 + cy t + 2 (chy/2) t h + cyy t^2.
    assert theta[:2] == [0.0, 0.0]
    multiples = [b * value for (_, b), value in zip(terms(3), theta[2:], strict=True)]
    assert multiples == pytest.approx([c1, ch, chh, cy, chy, cyy], rel=1e-14, abs=1e-300)
    assert from_coefficients(cy, chy, ch, chh, cyy=cyy, c1=c1, log_weight=2.5) == [*theta, 2.5]
    assert from_coefficients(cy, chy, ch, chh, cyy=cyy, c1=c1, log_weight=0) == [*theta, 0.0]


def test_from_coefficients_refuses_numbers_that_are_not_finite() -> None:
    with pytest.raises(InputError, match="theta"):
        from_coefficients(math.nan, 0, 0, 0)


def test_filtering_needs_no_torch() -> None:
    modules = "taylorglo.loss.filters, taylorglo.settings, taylorglo.stats"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"


@pytest.mark.parametrize("theta", [None, 3, 0.5, torch.tensor(1.0)])
def test_what_is_no_list_of_numbers_is_refused(theta: Any) -> None:
    with pytest.raises(InputError, match="theta should be a list of numbers, is "):
        checked_theta(theta)


@pytest.mark.parametrize("classes", ["ten", 10.0, None])
def test_a_number_of_classes_is_a_whole_one(classes: Any) -> None:
    with pytest.raises(InputError, match="classes should be a whole number, is "):
        check_classes(classes)
