"""The sentences of ``taylorglo inspect``, and its numbers for losses with a logarithm."""

from pathlib import Path

import pytest

from taylorglo.loss.functions import TaylorLoss
from taylorglo.loss.polynomial import from_coefficients
from taylorglo_pipelines.commands.inspect import inspect


def sentences(*words: str, classes: int | None = None) -> list[str]:
    """Return the last paragraph that inspect prints, a sentence a line."""
    return inspect(words, classes, None).rpartition("\n\n")[2].splitlines()


def words_of(theta: list[float]) -> list[str]:
    return [repr(number) for number in theta]


def test_cross_entropy() -> None:
    expected = [
        "Family taylor-log: 1 times cross-entropy, which gives 100% of the pull at chance, and a "
        "polynomial.",
        "At chance it pulls 1 times as hard as cross-entropy (A/n).",
        "A drift to one class is damped: B/A is -1 (cross-entropy: -1).",
        "It pulls all the way to a confidence of 1, as cross-entropy does.",
        "On a nearly lost sample (p near 0) its pull grows as 1/p: it keeps every class alive.",
    ]
    assert sentences("cross-entropy") == expected
    assert sentences("cross-entropy", classes=3) == expected


def test_squared_error() -> None:
    # g(0+) = 2 + 2/9, and A = 2.
    expected = [
        "Family taylor: a polynomial, without a logarithm.",
        "At chance it pulls 0.2 times as hard as cross-entropy (A/n).",
        "A drift to one class is damped: B/A is -1 (cross-entropy: -1).",
        "It pulls all the way to a confidence of 1, and its pull ends there.",
        "On a nearly lost sample (p near 0) its pull stays finite: 1.11 times that at chance.",
    ]
    assert sentences("squared-error") == expected
    assert sentences("0", "0", "0", "-1", "0", "2", "0", "0") == expected


def test_an_equilibrium_is_compared_with_label_smoothing() -> None:
    # g = 0.41/p - 0.5 is 0 at p = 0.82 = 1 - 0.2 * 9/10. At chance it is 3.6, of which 4.1 come
    # from the logarithm.
    theta = from_coefficients(-0.5, 0.0, 0.0, 0.0, log_weight=0.41)
    assert sentences(*words_of(theta)) == [
        "Family taylor-log: 0.41 times cross-entropy, which gives 114% of the pull at chance, and "
        "a polynomial.",
        "At chance it pulls 0.36 times as hard as cross-entropy (A/n).",
        "A drift to one class is damped: B/A is -1.14 (cross-entropy: -1).",
        "It pulls up to a confidence of 0.82 and pushes back above it, as label smoothing with "
        "alpha = 0.2 does.",
        "On a nearly lost sample (p near 0) its pull grows as 0.41/p: it keeps every class alive.",
    ]


def test_a_lost_sample_without_any_pull_stays_lost() -> None:
    # g = p - 0.05 at two classes.
    theta = from_coefficients(-0.05, 1.0, 0.0, 0.0)
    assert sentences(*words_of(theta), classes=2)[2:] == [
        "A drift to one class grows: B/A is 1.11 (cross-entropy: -1).",
        "It pulls all the way to a confidence of 1, as cross-entropy does.",
        "On a nearly lost sample (p near 0) it does not pull, so that a lost sample stays lost.",
    ]


@pytest.mark.parametrize(
    ("weight", "family"),
    [
        ([], "Family taylor: a polynomial, without a logarithm."),
        ([0.1], "Family taylor-log: 0.1 times cross-entropy, and a polynomial."),
    ],
)
def test_a_loss_that_cannot_learn_is_not_described_further(
    weight: list[float], family: str
) -> None:
    theta = [*from_coefficients(-1.0, 0.0, 0.0, 0.0), *weight]
    assert sentences(*words_of(theta), classes=5) == [
        family,
        "At chance it does not pull towards the target: training does not set out.",
    ]


def test_classic_losses_outside_the_families() -> None:
    assert sentences("baikal") == [
        "At chance it pulls 10 times as hard as cross-entropy (A/n).",
        "A drift to one class is damped: B/A is -3 (cross-entropy: -1).",
        "It pulls up to a confidence of 0.3162 and pushes back above it, as label smoothing with "
        "alpha = 0.76 does.",
    ]
    assert sentences("mean-absolute-error")[2] == (
        "A drift to one class neither grows nor is damped: B/A is 0 (cross-entropy: -1)."
    )


@pytest.mark.parametrize("order", [3, 4])
def test_the_weight_of_the_logarithm_is_among_the_numbers(order: int, tmp_path: Path) -> None:
    theta = [0.0] * (2 + order * (order + 1) // 2)
    path = tmp_path / "loss.json"
    TaylorLoss([*theta, 0.25], order, classes=4).save(path)
    text = inspect([str(path)], None, None)
    assert text.startswith(f"Taylor loss of order {order} with a logarithm, 4 classes\n")
    assert "  w             0.25   weight of the logarithm\n" in text
    assert "  A             1   learning drive" in text
    assert "  B            -1   collapse rate" in text
    assert text == inspect(words_of([*theta, 0.25]), 4, None)
    # A loss without it is described as before.
    without = inspect(words_of(theta), 4, None)
    assert without.startswith(f"Taylor loss of order {order}, 4 classes\n")
    assert "weight of the logarithm" not in without
