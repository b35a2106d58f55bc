"""What a person should know of a data set: duplicates, odd levels, and flaws made on purpose."""

from collections.abc import Mapping
from hashlib import blake2b

from taylorglo.data.splits import Split
from taylorglo.settings import DataSettings

# The names of remarks in the provenance of a data set, in the order of printing.
_NONE = "none"
NAMES = ("conversions", "left_out", "levels", "duplicates", "imbalance", "label_noise")


def remarks_on(splits: Mapping[str, Split]) -> dict[str, str]:
    """Return remarks on the images of splits, in the order of training, validation, test."""
    remarks = {"levels": _levels(splits), "duplicates": _duplicates(splits)}
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
    if settings.imbalance > 1:
        largest, smallest = (_sizes(clean, index) for index in (0, num_classes - 1))
        remarks["imbalance"] = (
            f"imbalance {settings.imbalance:g}: {largest} images of class 0, falling to "
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


def lines(provenance: Mapping[str, str]) -> list[str]:
    """Return the remarks in a provenance, each as a line for a person."""
    return [provenance[name] for name in NAMES if provenance.get(name, _NONE) != _NONE]


def _levels(splits: Mapping[str, Split]) -> str:
    """Say of which splits the levels end at 1, which is right for images of two levels only."""
    dark = [name for name, split in splits.items() if int(split.images.max()) == 1]
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
                f"{warning}{shared} of {len(split)} {name} images are duplicates of {others} images"
            )
        earlier.update(digests)
        for digest, label in zip(digests, split.labels.tolist(), strict=True):
            labels.setdefault(digest, set()).add(label)
    if contradictory := sum(len(different) > 1 for different in labels.values()):
        parts.append(f"images with several labels: {contradictory}")
    return "; ".join(parts) or _NONE


def _digests(split: Split) -> list[bytes]:
    rows = split.images.contiguous().view(len(split), -1).numpy()
    return [blake2b(row, digest_size=16).digest() for row in rows]
