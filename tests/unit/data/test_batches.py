"""The batches of a training: their order from a seed, and what several trainings are shown at
once."""

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


def shown(number: int, seed: int, settings: SweepSettings | None = None) -> list[Batch]:
    batches = Batches(DATASET, settings or settings_of(), seed)
    assert iter(batches) is batches
    return [next(batches) for _ in range(number)]


def same(one: list[Batch], two: list[Batch]) -> bool:
    return all(
        torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(one, two, strict=True)
    )


def test_a_seed_gives_the_same_batches():
    torch.manual_seed(1)
    first = shown(10, 4)
    torch.manual_seed(2)
    assert same(shown(10, 4), first)
    assert not same(shown(10, 5), first)


def test_images_come_with_their_labels_and_the_rest_of_an_epoch_is_left_out():
    whole = scaled(DATASET.train.images)
    for images, labels in shown(9, 4):
        assert images.dtype == torch.float32
        assert images.shape == (16, 1, 8, 8)
        numbers = [int((whole == image).flatten(1).all(dim=1).nonzero()) for image in images]
        assert torch.equal(DATASET.train.labels[numbers], labels)
    epoch = torch.cat([images for images, _ in shown(3, 4)])
    assert len(epoch.flatten(1).unique(dim=0)) == 48  # of 50


@pytest.mark.parametrize("size", [1, 25, 50])
def test_batches_that_fill_an_epoch(size):
    number = 50 // size
    images = torch.cat([images for images, _ in shown(number, 4, settings_of(size))])
    assert len(images.flatten(1).unique(dim=0)) == 50


def test_augmentation_does_not_change_the_order():
    for plain, changed in zip(shown(7, 4), shown(7, 4, settings_of(cutout=3)), strict=True):
        assert torch.equal(plain[1], changed[1])
        assert not torch.equal(plain[0], changed[0])
        assert (plain[0] == changed[0]).float().mean() > 0.5
    assert not same(shown(7, 4, settings_of(flip=True)), shown(7, 4))


def test_several_at_once_are_shown_what_each_is_shown_alone():
    settings = settings_of(cutmix=0.5)
    own = [shown(12, seed, settings) for seed in (1, 2, 3)]
    together = [Batches(DATASET, settings, seed) for seed in (1, 2, 3)]
    kinds = set()
    for step in range(12):
        images, targets = stacked(together, DATASET.num_classes)
        assert images.shape == (3, 16, 1, 8, 8)
        assert targets.shape == (3, 16, 4)
        for row in range(3):
            alone, labels = own[row][step]
            assert torch.equal(images[row], alone)
            soft = labels if labels.is_floating_point() else functional.one_hot(labels, 4).float()
            assert torch.equal(targets[row], soft)
        kinds.add(frozenset(each[step][1].is_floating_point() for each in own))
    assert frozenset({True, False}) in kinds  # some of them mixed, and others not, in one step
