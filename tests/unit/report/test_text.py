"""Numbers as text."""

import math

import pytest

from taylorglo.report import text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (125.4, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7325, "2 h 02 min"),
        (math.nan, "–"),
    ],
)
def test_a_duration_is_shown_in_units_of_its_size(seconds: float, expected: str) -> None:
    assert text.duration(seconds) == expected


def test_what_is_not_finite_is_a_dash_or_left_out() -> None:
    assert text.number(None) == text.number(math.inf) == text.score(None) == "–"
    assert text.share(math.nan) == text.seconds(math.nan) == text.mean_and_deviation([]) == "–"
    assert text.mean_and_deviation([0.5, math.nan]) == "50.00"
    assert text.sample_size([0.5, math.nan]) == "1 of 2"


def test_numbers_have_true_minus_signs_and_thin_spaces() -> None:
    assert text.number(-0.000123456) == "−0.0001235"
    assert text.seconds(1234567.89) == "1\u202f234\u202f567.9"
    assert text.mean_and_deviation([0.8, 0.9]) == "85.00 ± 7.07"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([-0.25], "−0.25000"),
        ([-1.0, -3.0], "−2.0000 ± 1.4142"),
        ([0.9963], "0.99630"),
        ([123456.0], "123456"),
        ([0.000012345], "0.000012345"),
        ([0.0], "0.0000"),
    ],
)
def test_a_score_that_is_no_share_is_a_plain_number_of_five_digits(
    scores: list[float], expected: str
) -> None:
    assert text.mean_and_deviation(scores, share=False) == expected


def test_a_difference_is_in_points_if_the_scores_are_shares() -> None:
    assert text.difference(-1.234, share=True) == "−1.23"
    assert text.difference(0.012345, share=False, sign=True) == "+0.0123"
    assert text.amount(0.5) == "50.00 %"
    assert text.amount(0.5, share=False) == "0.50000"
