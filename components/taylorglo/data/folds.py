"""Folds: other parts of the images for training and validation, for each attempt of a loss.

Training and validation images together are the pool. A fold divides the pool into two parts of the
same sizes as the training and the validation split. The pool is put into a random order in which
the classes are spread evenly; fold i of k is validated on the images that begin i/k of the way
through this order, and trained on the others. If the validation split is a k-th part of the pool,
the folds are those of stratified k-fold cross-validation; if it is larger, they overlap, and every
image is validated on equally often. The mean over several folds depends less on which labels were
drawn for the validation than the result of one split.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.seeds import PARTITIONS, derived_seed
from taylorglo.settings import SweepSettings

# The largest number of folds that one program trains on. Each is a copy of the pool on the device.
MOST_VIEWS = 8


@dataclass(frozen=True)
class Fold:
    """One fold of the pool.

    Attributes:
        seed: of the order, in [0, 2^31).
        count: k, the number of folds in this order, at least 2.
        index: number of the fold to validate on, in [0, k).
    """

    seed: int
    count: int
    index: int


def fold_of_attempt(
    settings: SweepSettings, dataset: Dataset, group: int, attempt: int
) -> Fold | None:
    """Return the fold that an attempt is validated on; None: the validation split of the data set.

    Attempts of a group that have the same number have the same fold. The first k attempts have all
    folds of one partition, the next k those of another one, and so on.

    Args:
        settings: of the sweep.
        dataset: the data.
        group: of trainings that are compared with each other, such as a generation; each group has
            partitions of its own.
        attempt: number of the attempt, from 0.
    """
    count = settings.evaluation.folds_on(dataset.provenance)
    if not count:
        return None
    partition, index = divmod(attempt, count)
    return Fold(derived_seed(settings.seed, PARTITIONS, group, partition), count, index)


def fold_of(dataset: Dataset, fold: Fold | None) -> Dataset:
    """Return the data set with the fold as its validation split, and the rest of the pool to train.

    The splits have as many images as before. Test split, mean and deviation stay those of the data
    set: they have no labels in them, and networks of several folds can share their normalisation.

    Args:
        dataset: on any device; the images of the fold are on the same one.
        fold: which one; None leaves the data set as it is.
    """
    if fold is None:
        return dataset
    labels = torch.cat([dataset.train.labels, dataset.validation.labels])
    trained, held = _divided(labels.cpu(), len(dataset.validation), fold)
    return replace(
        dataset, train=_taken(dataset, trained, labels), validation=_taken(dataset, held, labels)
    )


def _divided(labels: Tensor, size: int, fold: Fold) -> tuple[Tensor, Tensor]:
    """Return the rows to train on, and the ``size`` rows of the fold, both ascending."""
    start = fold.index * len(labels) // fold.count
    order = _evenly(labels, fold.seed).roll(-start)
    return order[size:].sort().values, order[:size].sort().values


def _evenly(labels: Tensor, seed: int) -> Tensor:
    """Return a random order in which every class is spread evenly, from the first to the last row.

    The images of a class of m images stand at the places (0 + u)/m, (1 + u)/m, and so on, of the
    way, with a random u in [0, 1) for each class.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    sizes = torch.bincount(labels)
    offsets = torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    by_class = labels[shuffled].argsort(stable=True)
    ranks = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    places = (ranks + offsets.repeat_interleave(sizes)) / sizes.repeat_interleave(sizes)
    return shuffled[by_class[places.argsort(stable=True)]]


def _taken(dataset: Dataset, rows: Tensor, labels: Tensor) -> Split:
    """Return the images of ascending rows of the pool, whose training images come first."""
    rows = rows.to(labels.device)
    own = rows < len(dataset.train)
    parts = (
        dataset.train.images[rows[own]],
        dataset.validation.images[rows[~own] - len(dataset.train)],
    )
    return Split(torch.cat(parts), labels[rows])


def views_in_memory(settings: SweepSettings, provenance: Mapping[str, str]) -> int:
    """Return how many folds are kept in memory: those that the attempts of one loss are on.

    Each takes the memory of the pool; 0 without folds.
    """
    short = settings.evaluation
    if not short.folds_on(provenance):
        return 0
    most = max(short.attempts, short.max_attempts, settings.baselines.attempts)
    return min(MOST_VIEWS, most)
