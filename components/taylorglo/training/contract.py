"""What a training of a user is given, and what it may return. Nothing is imported for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Split:
    """What a training has to be measured on. A function may look at ``name`` alone.

    Attributes:
        name: ``validation`` in the search and while the baselines are tuned; ``test`` in the final
            comparison, and nowhere else.
        fold: number of the fold of the training data to validate on, from 0 to ``folds - 1``. All
            losses that are compared have the same one.
        folds: number of folds (``evaluation.folds``); 0 if there is one validation split.
        seed: of the random order that the data are divided in. Each generation has one of its own.
    """

    name: Literal["validation", "test"]
    fold: int = 0
    folds: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What a training may return if it has more than its score.

    Attributes:
        score: the score on the split; higher is better.
        model: the trained network, which is kept if it was tested.
        curve: scores on the validation data during the training, as (step, score).
    """

    score: float
    model: nn.Module | None = None
    curve: Sequence[tuple[int, float]] | None = None
