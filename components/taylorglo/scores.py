"""Scores: how one is named, which are shares that are shown in percent, and what one may be.

The built-in training measures those of ``SCORES``. A function of a user names its own, and one of
these names means the same score there.
"""

import re
from collections.abc import Collection, Iterable, Mapping

# The built-in scores in words: the higher the better, and always a part of 1.
SCORES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "balanced-accuracy": "balanced accuracy",
    "macro-f1": "macro F1",
    "negative-log-likelihood": "likelihood exp(−NLL)",
    "ece": "calibration 1 − ECE",
}
# Scores that a network may have which has learned nothing, so that its accuracy has to tell.
BESIDE_ACCURACY: Collection[str] = ("negative-log-likelihood", "ece")

# Built-in scores whose metric has another name: MLflow's runs of older versions have an accuracy,
# and a likelihood is no negative logarithm of one.
_METRICS = {
    "balanced-accuracy": "accuracy",
    "negative-log-likelihood": "likelihood",
    "ece": "calibration",
}
# The last words of names of scores in [0, 1], which are shown in percent.
_SHARES = ("accuracy", "f1", "iou", "dice", "precision", "recall")

MOST = 1e12  # the largest score, and the smallest with a minus sign
# The score of a training that has none, if scores may be negative. It is a finite number, because
# JSON has no others, and the mean of 100 attempts with one such score is still below every score.
_NONE = -1e15


def words(score: str) -> str:
    """Return the name of a score as a person reads it."""
    return SCORES.get(score, score)


def is_share(score: str) -> bool:
    """Return whether a score is in [0, 1], and is shown in percent.

    The built-in scores are, and those whose name ends with ``accuracy``, ``F1``, ``IoU``, ``Dice``,
    ``precision`` or ``recall``, such as ``mean IoU``.
    """
    return score in SCORES or re.split(r"[\s_-]", score.lower())[-1] in _SHARES


def worst(score: str) -> float:
    """Return what counts as the score of a training that failed or diverged."""
    return 0.0 if is_share(score) else _NONE


def is_known(value: float) -> bool:
    """Return whether a value was measured, and does not stand for a training without a score."""
    return value >= -MOST


def known(values: Iterable[float]) -> list[float]:
    """Return the scores that were measured, without those of trainings without a score."""
    return [value for value in values if is_known(value)]


def metric(score: str) -> str:
    """Return the name of a score among metrics: letters, digits and underlines."""
    name = _METRICS.get(score, score)
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name.lower())
