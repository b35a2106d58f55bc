"""Checks of the tensors of a source, before they are split."""

import torch

from taylorglo.data.splits import Source, Split
from taylorglo.errors import InputError

_MOST_CHANNELS_LAST = 4  # a last axis of this size or less is that of the channels


def check_source(source: Source, place: str) -> int:
    """Verify the tensors of a source, and return the number of classes.

    Raises:
        InputError: images or labels are not of the expected kind, or the images are all the same.
    """
    classes = len(set(source.train.labels.flatten().tolist()))
    shapes = []
    splits = {"": source.train, "validation ": source.validation, "test ": source.test}
    for name, split in splits.items():
        if split is None:
            continue
        _check_images(split, name, place)
        _check_labels(split, name, classes, place)
        shapes.append((name, tuple(split.images.shape[1:])))
    for name, shape in shapes[1:]:
        if shape != shapes[0][1]:
            raise InputError(
                f"{place}: training and {name}images should be of one shape (C, H, W), and are "
                f"{shapes[0][1]} and {shape}"
            )
    for name, split in splits.items():
        if split is not None:
            _check_contrast(split, name, place)
    return classes


def _check_images(split: Split, name: str, place: str) -> None:
    images = split.images
    if images.ndim != 4 or images.dtype != torch.uint8 or 0 in images.shape:
        advice = "" if images.dtype == torch.uint8 else "; scale them to 0..255 and round them"
        raise InputError(
            f"{place}: {name}images should be uint8 of shape (N, C, H, W) or (N, H, W), none of "
            f"them 0, and are {images.dtype} {tuple(images.shape)}{advice}"
        )
    _, *front, last = images.shape
    if last <= _MOST_CHANNELS_LAST < min(front):
        raise InputError(
            f"{place}: {name}images should be of shape (N, C, H, W), and {tuple(images.shape)} "
            "reads like (N, H, W, C); use images.permute(0, 3, 1, 2).contiguous()"
        )


def _check_labels(split: Split, name: str, classes: int, place: str) -> None:
    images, labels = split.images, split.labels
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{place}: {len(images)} {name}images have {name}labels of shape {tuple(labels.shape)}"
            f": should be ({len(images)},){_advice_on_shape(split)}"
        )
    # There are as many different labels as classes. If all of them are in 0..n-1, every class has
    # training images.
    least, most = int(labels.min()), int(labels.max())
    if classes < 2 or least < 0 or most >= classes:
        advice = "; subtract 1" if (least, most) == (1, classes) else ""
        raise InputError(
            f"{place}: labels should be 0..n-1, for at least 2 classes, each with training images; "
            f"the training labels have {classes} values, the {name}labels are in "
            f"{least}..{most}{advice}"
        )


def _advice_on_shape(split: Split) -> str:
    """Return what makes one label of each image of the labels, if their shape tells."""
    labels = split.labels
    if labels.ndim != 2 or len(labels) != len(split.images):
        return ""
    return "; use labels.flatten()" if labels.shape[1] == 1 else "; use labels.argmax(dim=1)"


def _check_contrast(split: Split, name: str, place: str) -> None:
    """Refuse images that are all the same, as they are if their levels were lost on the way."""
    first = split.images[0]
    if len(split) > 1 and all(torch.equal(image, first) for image in split.images[1:]):
        kind = "black" if not first.any() else "the same"
        raise InputError(
            f"{place}: all {len(split)} {name}images are {kind}: nothing can be learned from them; "
            "were they scaled to 0..1 and cut to whole numbers?"
        )
