"""What a person should know of a data set: duplicates, odd levels, and flaws made on purpose."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from taylorglo.data.splits import Source, Split
from taylorglo.errors import quoted
from taylorglo.settings import DataSettings

# The names of remarks in the provenance of a data set, in the order of printing.
_NONE = "none"
_MOST_CLASSES = 12  # that are named with their sizes, each
NAMES = (
    "read",
    "conversions",
    "spellings",
    "unknown_categories",
    "constant",
    "levels",
    "duplicates",
    "imbalance",
    "label_noise",
)


def remarks_on(splits: Mapping[str, Split]) -> dict[str, str]:
    """Return remarks on the samples of splits, in the order of training, validation, test."""
    remarks = {
        "constant": _constant(splits["training"]),
        "levels": _levels(splits),
        "duplicates": _duplicates(splits),
    }
    return {name: text for name, text in remarks.items() if text}


def remarks_on_flaws(
    clean: Mapping[str, Split],
    noisy: Mapping[str, Split],
    settings: DataSettings,
    num_classes: int,
    seed: int,
) -> dict[str, str]:
    """Return remarks on the imbalance and the label noise, as far as the settings ask for them.

    Args:
        clean: the splits ``training`` and ``validation`` before the noise.
        noisy: the same two with it.
        settings: they have the imbalance and the noise.
        num_classes: number of classes.
        seed: what the flaws are drawn with.
    """
    remarks = {}
    noun = clean["training"].noun
    if settings.imbalance > 1:
        largest, smallest = (_sizes(clean, index) for index in (0, num_classes - 1))
        remarks["imbalance"] = (
            f"imbalance {settings.imbalance:g}: {largest} {noun} of class 0, falling to "
            f"{smallest} of class {num_classes - 1}, drawn with seed {seed}"
        )
    if settings.label_noise > 0:
        replaced = " and ".join(
            f"{int((noisy[name].labels != split.labels).sum())} of {len(split)} {name}"
            for name, split in clean.items()
        )
        remarks["label_noise"] = (
            f"{100 * settings.label_noise:g}% {settings.label_noise_kind}: {replaced} labels were "
            f"replaced, drawn with seed {seed}"
        )
    return remarks


def _sizes(splits: Mapping[str, Split], index: int) -> str:
    """Return the number of images of a class in each split."""
    return " and ".join(
        f"{int((split.labels == index).sum())} {name}" for name, split in splits.items()
    )


def lines(provenance: Mapping[str, str], *, known: bool = False) -> list[str]:
    """Return the remarks in a provenance, each as a line for a person.

    What was read, and what was left out, is one line.

    Args:
        provenance: of a data set.
        known: whether it is a published one, of which nobody has to be told what was read.
    """
    said = {name: provenance[name] for name in NAMES if provenance.get(name, _NONE) != _NONE}
    if known:
        said.pop("read", None)
    if left_out := provenance.get("left_out"):
        read = "; ".join(filter(None, (said.pop("read", ""), f"left out: {left_out}")))
        said = {"read": read, **said}
    return list(said.values())


def remark_on_reading(
    source: Source, train: Split, *, pixels: bool, encoding: Sequence[Mapping[str, Any]]
) -> str:
    """Return in one line what was read: the kind and the size of the samples, and the classes.

    Args:
        source: what was read.
        train: the training split that was made of it.
        pixels: whether its values are pixels.
        encoding: of the columns of a table.
    """
    parts = [part for part in (source.train, source.validation, source.test) if part is not None]
    number = sum(map(len, parts))
    sizes = torch.stack([_class_sizes(part, source) for part in parts]).sum(dim=0).tolist()
    return f"{number} {_kind(train, pixels, encoding)}; {_classes(source.classes, sizes)}"


def _class_sizes(split: Split, source: Source) -> Tensor:
    classes = int(source.train.labels.max()) + 1
    return torch.bincount(split.labels, minlength=classes)


def _kind(train: Split, pixels: bool, encoding: Sequence[Mapping[str, Any]]) -> str:
    """Return what the samples are, in words."""
    images = train.images
    if images.ndim == 2:
        if not encoding:
            return f"samples of {images.shape[1]} features"
        texts = sum("categories" in column for column in encoding)
        return (
            f"rows of {len(encoding)} columns ({len(encoding) - texts} of numbers, {texts} of "
            f"texts), which are {images.shape[1]} features"
        )
    channels, height, width = images.shape[1:]
    mode = {1: "gray images", 3: "RGB images"}.get(channels, f"images of {channels} channels")
    values = "8 bits" if images.dtype == torch.uint8 else "floats in [0, 1]"
    if not pixels:
        values = f"floats from {float(images.min()):g} to {float(images.max()):g}, no pixels"
    return f"{mode} of {width}x{height}, {values}"


def _classes(names: Sequence[str], sizes: Sequence[int]) -> str:
    """Return the classes with their sizes, or the range of the sizes of many classes."""
    total = f"{len(sizes)} classes"
    if len(sizes) > _MOST_CLASSES:
        return f"{total} of {min(sizes)} to {max(sizes)}"
    shown = [quoted(name).strip("'") for name in names] or [str(n) for n in range(len(sizes))]
    counts = ", ".join(f"{name} {size}" for name, size in zip(shown, sizes, strict=True))
    return f"{total}: {counts}"


def _constant(train: Split) -> str:
    """Count the features that are constant in the training split."""
    features = train.images
    if features.ndim != 2:
        return ""
    constant = int((features == features[0]).all(dim=0).sum())
    return f"features that are constant in the training split: {constant}" if constant else ""


def _levels(splits: Mapping[str, Split]) -> str:
    """Say of which splits the levels end at 1, which is right for images of two levels only."""
    dark = [
        name
        for name, split in splits.items()
        if split.images.dtype == torch.uint8 and int(split.images.max()) == 1
    ]
    if not dark:
        return ""
    return (
        f"warning: no level of the {' and '.join(dark)} images is above 1 of 255, which is right "
        "for images of two levels only; others should be scaled to 0..255"
    )


def _duplicates(splits: Mapping[str, Split]) -> str:
    """Count the images that are in an earlier split too, and those with several labels."""
    earlier: set[bytes] = set()
    labels: dict[bytes, set[int]] = {}
    parts = []
    for number, (name, split) in enumerate(splits.items()):
        digests = _digests(split)
        if shared := sum(digest in earlier for digest in digests):
            others = " or ".join(list(splits)[:number])
            warning = "warning: " if 2 * shared > len(split) else ""
            parts.append(
                f"{warning}{shared} of {len(split)} {name} {split.noun} are duplicates of {others} "
                f"{split.noun}"
            )
        earlier.update(digests)
        for digest, label in zip(digests, split.labels.tolist(), strict=True):
            labels.setdefault(digest, set()).add(label)
    if contradictory := sum(len(different) > 1 for different in labels.values()):
        parts.append(f"{splits['training'].noun} with several labels: {contradictory}")
    return "; ".join(parts) or _NONE


def _digests(split: Split) -> list[bytes]:
    rows = split.images.contiguous().view(len(split), -1).numpy()
    return [blake2b(row, digest_size=16).digest() for row in rows]
