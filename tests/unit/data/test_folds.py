"""Folds of the training and validation images: partitions, and the folds of attempts."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from trainings import sweep, synthetic

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.folds import MOST_VIEWS, Fold, fold_of, fold_of_attempt, views_in_memory
from taylorglo.settings import DataSettings

SMALL = synthetic((1, 8, 8), classes=4, train=30, held_out=10)


def numbered(labels: Sequence[int], training: int) -> Dataset:
    """Return a data set of which every image has the number of its row in the pool as its level."""
    pool = Split(
        torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels)
    )
    parts = (slice(0, training), slice(training, None))
    train, validation = (Split(pool.images[part], pool.labels[part]) for part in parts)
    return Dataset("numbered", 5, train, validation, None, (0.5,), (0.1,), {"fingerprint": "x"})


def rows(split: Split) -> list[int]:
    return [int(level) for level in split.images.flatten()]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 4), min_size=4, max_size=120),
    st.integers(2, 9),
    st.integers(0, 2**31 - 1),
    st.data(),
)
def test_a_fold(labels: list[int], count: int, seed: int, data: st.DataObject) -> None:
    """Its two parts are disjoint, cover the pool, have the sizes of the splits, and all classes."""
    training = data.draw(st.integers(1, len(labels) - 1))
    dataset, size = numbered(labels, training), len(labels)
    views = [fold_of(dataset, Fold(seed, count, index)) for index in range(count)]
    held = [rows(view.validation) for view in views]
    for view, fold in zip(views, held, strict=True):
        assert sorted(rows(view.train) + fold) == list(range(size))
        assert len(fold) == size - training
        for split in (view.train, view.validation):
            assert split.labels.tolist() == [labels[row] for row in rows(split)]
        for label in set(labels):
            share = labels.count(label) / size
            members = sum(labels[row] == label for row in fold)
            # Of C classes, a stretch of m images has the share of each but for a few.
            assert abs(members - share * len(fold)) <= 2 + share * len(set(labels))
    again = fold_of(dataset, Fold(seed, count, 1))
    assert (rows(again.train), rows(again.validation)) == (rows(views[1].train), held[1])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.integers(2, 12), st.integers(0, 2**31 - 1))
def test_folds_of_a_kth_part_are_a_partition(count: int, each: int, seed: int) -> None:
    """As in stratified k-fold cross-validation, every image is validated on once."""
    labels = [row % 3 for row in range(count * each)]
    dataset = numbered(labels, (count - 1) * each)
    held = [rows(fold_of(dataset, Fold(seed, count, index)).validation) for index in range(count)]
    assert sorted(row for fold in held for row in fold) == list(range(len(labels)))


def test_larger_folds_validate_on_every_image_equally_often() -> None:
    labels = [row % 5 for row in range(80)]
    dataset = numbered(labels, 20)  # as in a study with little data
    held = [rows(fold_of(dataset, Fold(1, 4, index)).validation) for index in range(4)]
    times = [sum(row in fold for fold in held) for row in range(80)]
    assert times == [3] * 80


def test_classes_of_many_images_are_spread_evenly(digits: Dataset) -> None:
    sizes = torch.bincount(torch.cat([digits.train.labels, digits.validation.labels])).double()
    for index in range(5):
        validation = fold_of(digits, Fold(7, 5, index)).validation
        expected = sizes * len(validation) / sizes.sum()
        assert (torch.bincount(validation.labels) - expected).abs().max() <= 2


def test_seeds_give_other_partitions() -> None:
    labels = [row % 5 for row in range(100)]
    dataset = numbered(labels, 70)
    held = {tuple(rows(fold_of(dataset, Fold(seed, 5, 0)).validation)) for seed in range(20)}
    assert len(held) == 20


def test_nothing_else_changes(digits: Dataset) -> None:
    view = fold_of(digits, Fold(3, 4, 2))
    assert view.test is digits.test
    assert (view.mean, view.std) == (digits.mean, digits.std)
    assert (view.num_classes, view.provenance) == (digits.num_classes, digits.provenance)
    assert view.train.images.dtype == torch.uint8
    assert view.train.images.shape[1:] == digits.train.images.shape[1:]
    assert fold_of(digits, None) is digits


def test_a_class_of_one_image_and_more_folds_than_images() -> None:
    dataset = numbered([0, 0, 0, 1, 2], 4)
    held = [rows(fold_of(dataset, Fold(0, 10, index)).validation) for index in range(10)]
    assert sorted(row for fold in held for row in fold) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_attempts_go_through_the_folds_of_one_partition_and_then_of_another() -> None:
    settings = sweep(folds=3, seed=5)
    folds = [fold_of_attempt(settings, SMALL, 2, attempt) for attempt in range(8)]
    known = [fold for fold in folds if fold is not None]
    assert [fold.index for fold in known] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert {fold.count for fold in known} == {3}
    seeds = [fold.seed for fold in known]
    assert seeds[0:3] == [seeds[0]] * 3
    assert seeds[3:6] == [seeds[3]] * 3
    assert len(set(seeds)) == 3
    assert folds == [fold_of_attempt(settings, SMALL, 2, attempt) for attempt in range(8)]


def test_every_group_and_every_sweep_has_partitions_of_its_own() -> None:
    seeds = [
        fold.seed
        for seed in range(3)
        for group in range(40)
        for attempt in (0, 2, 4)
        if (fold := fold_of_attempt(sweep(folds=2, seed=seed), SMALL, group, attempt))
    ]
    assert len(set(seeds)) == len(seeds) == 3 * 40 * 3


def test_without_folds_every_attempt_has_the_validation_split() -> None:
    assert [fold_of_attempt(sweep(folds=0), SMALL, 1, attempt) for attempt in range(3)] == [
        None
    ] * 3
    assert views_in_memory(sweep(folds=0), SMALL.provenance) == 0


def test_a_validation_split_of_the_source_is_kept(tmp_path: Path, digits: Dataset) -> None:
    path = tmp_path / "own.safetensors"
    tensors = {
        "images": digits.train.images,
        "labels": digits.train.labels,
        "validation_images": digits.validation.images,
        "validation_labels": digits.validation.labels,
    }
    save_file(tensors, path)
    own = datasets.load(DataSettings(name="safetensors", root=str(path)), 0)
    settings = sweep(folds=5)
    assert settings.evaluation.folds_on(own.provenance) == 0
    assert settings.evaluation.folds_on(digits.provenance) == 5
    assert fold_of_attempt(settings, own, 1, 0) is None
    assert views_in_memory(settings, own.provenance) == 0


@pytest.mark.parametrize(
    ("evaluation", "views"),
    [
        ({"attempts": 7}, 7),
        ({"attempts": 1}, 5),  # those of a baseline
        ({"attempts": 2, "max_attempts": 6}, 6),
        ({"attempts": 50}, MOST_VIEWS),
    ],
)
def test_how_many_folds_are_in_memory(evaluation: dict[str, int], views: int) -> None:
    assert views_in_memory(sweep(folds=4, **evaluation), SMALL.provenance) == views
