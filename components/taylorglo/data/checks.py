"""Checks of the tensors of a source, before they are split."""

import torch

from taylorglo.data.splits import Source, Split
from taylorglo.errors import InputError

_MOST_CHANNELS_LAST = 4  # a last axis of this size or less is that of the channels


def check_source(source: Source, place: str) -> int:
    """Verify the tensors of a source, and return the number of classes.

    Raises:
        InputError: samples or labels are not of the expected kind, or the samples are all the same.
    """
    classes = len(set(source.train.labels.flatten().tolist()))
    splits = {"": source.train, "validation ": source.validation, "test ": source.test}
    for name, split in splits.items():
        if split is not None:
            _check_samples(split, name, place)
            _check_labels(split, name, classes, place)
    for name, split in splits.items():
        if split is not None:
            _check_alike(source.train, split, name, place)
    for name, split in splits.items():
        if split is not None:
            _check_contrast(split, name, place)
    return classes


def _check_alike(train: Split, split: Split, name: str, place: str) -> None:
    """Refuse a split of another shape or another type of numbers than the training split."""
    shapes = tuple(train.images.shape[1:]), tuple(split.images.shape[1:])
    if shapes[0] != shapes[1]:
        form = "(F)" if train.images.ndim == 2 else "(C, H, W)"
        raise InputError(
            f"{place}: training and {name}{_noun(train)} should be of one shape {form}, and are "
            f"{shapes[0]} and {shapes[1]}"
        )
    types = train.images.dtype, split.images.dtype
    if types[0] != types[1]:
        raise InputError(
            f"{place}: training and {name}{_noun(train)} should be of one type, and are {types[0]} "
            f"and {types[1]}"
        )


def _check_samples(split: Split, name: str, place: str) -> None:
    """Refuse samples that are neither images nor features, or that are no finite numbers."""
    images, noun = split.images, _noun(split)
    is_level = images.dtype == torch.uint8
    if images.ndim == 2:
        fits = images.is_floating_point()
        expected = "floats of shape (N, F)"
    else:
        fits = images.ndim == 4 and (is_level or images.is_floating_point())
        expected = "uint8 or floats of shape (N, C, H, W) or (N, H, W)"
    if not fits or 0 in images.shape:
        advice = "" if is_level else "; scale them to 0..255 and round them"
        raise InputError(
            f"{place}: {name}{noun} should be {expected}, none of them 0, and are {images.dtype} "
            f"{tuple(images.shape)}{advice}"
        )
    if not is_level:
        _check_finite(split, name, place)
    if images.ndim == 2:
        return
    _, *front, last = images.shape
    if last <= _MOST_CHANNELS_LAST < min(front):
        raise InputError(
            f"{place}: {name}images should be of shape (N, C, H, W), and {tuple(images.shape)} "
            "reads like (N, H, W, C); use images.permute(0, 3, 1, 2).contiguous()"
        )


def _noun(split: Split) -> str:
    return "features" if split.images.ndim == 2 else "images"


def _check_finite(split: Split, name: str, place: str) -> None:
    values = split.images
    broken = ~values.isfinite()
    if not broken.any():
        return
    where = broken.nonzero()[0].tolist()
    number = float(values[tuple(where)])
    raise InputError(
        f"{place}: {name}{_noun(split)}{where} is {number}, as {int(broken.sum())} of "
        f"{values.numel()} numbers are not finite in float32: should be filled, or the rows left "
        "out"
    )


def _check_labels(split: Split, name: str, classes: int, place: str) -> None:
    images, labels = split.images, split.labels
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{place}: {len(images)} {name}{split.noun} have {name}labels of shape "
            f"{tuple(labels.shape)}: should be ({len(images)},){_advice_on_shape(split)}"
        )
    # There are as many different labels as classes. If all of them are in 0..n-1, every class has
    # training images.
    least, most = int(labels.min()), int(labels.max())
    if classes < 2 or least < 0 or most >= classes:
        advice = "; subtract 1" if (least, most) == (1, classes) else ""
        raise InputError(
            f"{place}: labels should be 0..n-1, for at least 2 classes, each with training "
            f"{split.noun}; the training labels have {classes} values, the {name}labels are in "
            f"{least}..{most}{advice}"
        )


def _advice_on_shape(split: Split) -> str:
    """Return what makes one label of each image of the labels, if their shape tells."""
    labels = split.labels
    if labels.ndim != 2 or len(labels) != len(split.images):
        return ""
    return "; use labels.flatten()" if labels.shape[1] == 1 else "; use labels.argmax(dim=1)"


def _check_contrast(split: Split, name: str, place: str) -> None:
    """Refuse samples that are all the same, as they are if their levels were lost on the way."""
    first = split.images[0]
    if len(split) > 1 and all(torch.equal(image, first) for image in split.images[1:]):
        kind = "black" if split.noun == "images" and not first.any() else "the same"
        raise InputError(
            f"{place}: all {len(split)} {name}{split.noun} are {kind}: nothing can be learned from "
            "them; were they scaled to 0..1 and cut to whole numbers?"
        )
