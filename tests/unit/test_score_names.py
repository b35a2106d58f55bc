"""Scores: which are shares, and what stands for a training without a score."""

from statistics import fmean

import pytest

from taylorglo import scores


@pytest.mark.parametrize(
    ("name", "share"),
    [
        *((name, True) for name in scores.SCORES),
        ("balanced accuracy", True),
        ("top-5 accuracy", True),
        ("F1", True),
        ("macro F1", True),
        ("macro_f1", True),
        ("mean IoU", True),
        ("loss", False),
        ("log likelihood", False),
        ("log-likelihood", False),
        ("accuracy loss", False),
        ("inaccuracy", False),
        ("F10", False),
    ],
)
def test_a_share_is_known_by_the_last_word_of_its_name(name: str, share: bool) -> None:
    assert scores.is_share(name) is share


@pytest.mark.parametrize("attempts", [1, 2, 100])
def test_a_mean_with_one_score_that_is_missing_is_below_every_score(attempts: int) -> None:
    mean = fmean([scores.worst("loss")] + [scores.MOST] * (attempts - 1))
    assert mean < -scores.MOST
    assert not scores.is_known(mean)
    assert scores.is_known(-scores.MOST)


def test_a_missing_share_is_zero() -> None:
    assert scores.worst("macro F1") == 0
    assert scores.is_known(scores.worst("macro F1"))


def test_a_metric_has_the_name_of_its_score() -> None:
    # The first two are those of MLflow's runs before there were others. What is logged of the last
    # two is no logarithm and no error.
    assert {name: scores.metric(name) for name in scores.SCORES} == {
        "accuracy": "accuracy",
        "balanced-accuracy": "accuracy",
        "macro-f1": "macro_f1",
        "negative-log-likelihood": "likelihood",
        "ece": "calibration",
    }
    assert scores.metric("macro F1") == "macro_f1"


def test_a_score_is_named_in_words() -> None:
    assert scores.words("balanced-accuracy") == "balanced accuracy"
    assert scores.words("top-5 accuracy") == "top-5 accuracy"
