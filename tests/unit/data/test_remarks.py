"""Remarks on a data set: images in two splits, contradictory labels, and levels that are odd."""

import numpy as np
import pytest
import torch
from torch import Tensor

from taylorglo.data import dataset, remarks
from taylorglo.data.splits import Split
from taylorglo.settings import DataSettings


def split(images: Tensor, labels: list[int] | None = None) -> Split:
    return Split(images, torch.tensor(labels or [0] * len(images)))


def different(number: int, seed: int) -> Tensor:
    """Return random images of 4x4, of which no two are the same."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (number, 1, 4, 4), "u1"))


def duplicates(train: Split, validation: Split, test: Split) -> str:
    splits = {"training": train, "validation": validation, "test": test}
    return remarks.remarks_on(splits)["duplicates"]


TRAIN, VALIDATION, TEST = (different(number, seed) for seed, number in enumerate((9, 5, 6)))


def test_images_that_are_in_one_split_only_are_no_duplicates() -> None:
    twice = torch.cat([TEST, TEST])
    assert duplicates(split(TRAIN), split(VALIDATION), split(twice)) == "none"


def test_images_in_two_splits_are_counted() -> None:
    validation = split(torch.cat([VALIDATION, TRAIN[:2]]))
    test = split(torch.cat([TEST, TRAIN[:1], VALIDATION[:1], TRAIN[:1]]))
    assert duplicates(split(TRAIN), validation, test) == (
        "2 of 7 validation images are duplicates of training images; "
        "3 of 9 test images are duplicates of training or validation images"
    )


def test_more_than_half_of_a_split_is_a_warning() -> None:
    test = split(torch.cat([TRAIN[:7], TEST]))
    assert duplicates(split(TRAIN), split(VALIDATION), test) == (
        "warning: 7 of 13 test images are duplicates of training or validation images"
    )


def test_images_with_several_labels_are_counted() -> None:
    train = split(torch.cat([TRAIN, TRAIN[:2]]), [0] * 9 + [1, 0])
    test = split(torch.cat([TEST, TRAIN[3:4]]), [0] * 6 + [1])
    assert duplicates(train, split(VALIDATION), test) == (
        "1 of 7 test images are duplicates of training or validation images; "
        "images with several labels: 2"
    )


def test_images_on_another_layout_of_memory_are_the_same() -> None:
    turned = TRAIN.permute(0, 1, 3, 2)
    same = turned.contiguous()
    assert duplicates(split(turned), split(VALIDATION), split(same)).startswith("warning: 9 of 9")


@pytest.mark.parametrize("name", ["training", "test"])
def test_levels_that_end_at_1_are_told_by_split(name: str) -> None:
    splits = {"training": split(TRAIN), "validation": split(VALIDATION), "test": split(TEST)}
    assert "levels" not in remarks.remarks_on(splits)
    splits[name] = split((splits[name].images > 127).to(torch.uint8))
    said = remarks.remarks_on(splits)["levels"]
    assert said.startswith(f"warning: no level of the {name} images is above 1 of 255")


def test_of_published_data_nothing_is_said_but_what_was_read() -> None:
    provenance = dataset.load(DataSettings(), seed=0).provenance
    assert provenance["duplicates"] == "none"
    assert remarks.lines(provenance) == [
        "1797 gray images of 8x8, 8 bits; 10 classes: 0 178, 1 182, 2 177, 3 183, 4 181, 5 182, "
        "6 181, 7 179, 8 174, 9 180"
    ]
    assert remarks.lines(provenance, known=True) == []


def test_what_was_left_out_is_in_the_line_of_what_was_read() -> None:
    provenance = {"left_out": "hidden files: 1", "read": "2 images", "levels": "odd"}
    assert remarks.lines(provenance) == ["2 images; left out: hidden files: 1", "odd"]
