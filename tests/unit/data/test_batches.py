"""The batches of a training: their order from a seed, and the batches of several trainings."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from trainings import sweep, synthetic

from taylorglo.data.batches import Batches, scaled, stacked
from taylorglo.settings import SweepSettings

DATASET = synthetic((1, 8, 8), train=50)
Batch = tuple[torch.Tensor, torch.Tensor]


def settings_of(batch_size: int = 16, **augmentation: Any) -> SweepSettings:
    values = sweep(training={"batch_size": batch_size}).model_dump()
    return SweepSettings.model_validate({**values, "augmentation": augmentation})


def first_batches(number: int, seed: int, settings: SweepSettings | None = None) -> list[Batch]:
    batches = Batches(DATASET, settings or settings_of(), seed)
    assert iter(batches) is batches
    return [next(batches) for _ in range(number)]


def same(one: list[Batch], two: list[Batch]) -> bool:
    return all(
        torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(one, two, strict=True)
    )


def distinct(images: torch.Tensor) -> int:
    return len(images.flatten(1).unique(dim=0))


def test_a_seed_gives_the_same_batches() -> None:
    torch.manual_seed(1)
    batches = first_batches(10, seed=4)
    torch.manual_seed(2)
    assert same(first_batches(10, seed=4), batches)
    assert not same(first_batches(10, seed=5), batches)


def test_images_come_with_their_labels_and_the_rest_of_an_epoch_is_left_out() -> None:
    split = scaled(DATASET.train.images)
    for images, labels in first_batches(9, seed=4):
        assert images.dtype == torch.float32
        assert images.shape == (16, 1, 8, 8)
        numbers = [int((split == image).flatten(1).all(dim=1).nonzero()) for image in images]
        assert torch.equal(DATASET.train.labels[numbers], labels)
    # An epoch of 50 images has three batches of 16.
    epoch = torch.cat([images for images, _ in first_batches(3, seed=4)])
    assert distinct(epoch) == 48


@pytest.mark.parametrize("size", [1, 25, 50])
def test_batches_that_fill_an_epoch(size: int) -> None:
    batches = first_batches(50 // size, seed=4, settings=settings_of(size))
    assert distinct(torch.cat([images for images, _ in batches])) == 50


def test_augmentation_does_not_change_the_order() -> None:
    batches = first_batches(7, seed=4)
    cut = first_batches(7, seed=4, settings=settings_of(cutout=3))
    for (images, labels), (cut_images, cut_labels) in zip(batches, cut, strict=True):
        assert torch.equal(labels, cut_labels)
        assert not torch.equal(images, cut_images)
        assert (images == cut_images).float().mean() > 0.5
    assert not same(first_batches(7, seed=4, settings=settings_of(flip=True)), batches)


def test_trainings_at_once_get_the_batches_that_each_gets_alone() -> None:
    settings = settings_of(cutmix=0.5)
    separate = [first_batches(12, seed, settings) for seed in (1, 2, 3)]
    together = [Batches(DATASET, settings, seed) for seed in (1, 2, 3)]
    kinds = set()
    for step in range(12):
        images, targets = stacked(together, DATASET.num_classes)
        assert images.shape == (3, 16, 1, 8, 8)
        assert targets.shape == (3, 16, 4)
        for row in range(3):
            alone, labels = separate[row][step]
            assert torch.equal(images[row], alone)
            soft = labels if labels.is_floating_point() else functional.one_hot(labels, 4).float()
            assert torch.equal(targets[row], soft)
        kinds.add(frozenset(batches[step][1].is_floating_point() for batches in separate))
    # In one of the steps, some batches are mixed and others are not.
    assert frozenset({True, False}) in kinds
