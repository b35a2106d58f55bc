"""Scores: how one is named, which are shares that are shown in percent, and what one may be.

A built-in training measures accuracy or balanced accuracy. A function of a user names its own.
"""

import re

BUILT_IN = ("accuracy", "balanced-accuracy")

# The last words of names of scores in [0, 1], which are shown in percent.
_SHARES = ("accuracy", "f1", "iou", "dice", "precision", "recall")

MOST = 1e12  # the largest score, and the smallest with a minus sign
# The score of a training that has none, if scores may be negative. It is a finite number, because
# JSON has no others, and the mean of 100 attempts with one such score is still below every score.
_NONE = -1e15


def words(score: str) -> str:
    """Return the name of a score as a person reads it."""
    return "balanced accuracy" if score == "balanced-accuracy" else score


def is_share(score: str) -> bool:
    """Return whether a score is in [0, 1], and is shown in percent, by the last word of its name.

    That is so for ``accuracy``, ``F1``, ``IoU``, ``Dice``, ``precision`` and ``recall``, such as in
    ``macro F1``.
    """
    return re.split(r"[\s_-]", score.lower())[-1] in _SHARES


def worst(score: str) -> float:
    """Return what counts as the score of a training that failed or diverged."""
    return 0.0 if is_share(score) else _NONE


def is_known(value: float) -> bool:
    """Return whether a value was measured, and does not stand for a training without a score."""
    return value >= -MOST


def metric(score: str) -> str:
    """Return the name of a score among metrics: letters, digits and underlines."""
    if score in BUILT_IN:
        return "accuracy"
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in score.lower())
