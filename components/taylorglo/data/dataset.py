"""Data sets: read from a source, checked and split, and kept in one file.

A source is read into uint8 tensors, its checksum is compared, and its splits are drawn by class
from a seed. The test split is held out first, and the search gets a data set that does not contain
it (:func:`without_test`).
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from taylorglo.data.sources import (
    Source,
    Split,
    digest_of,
    open_safetensors,
    read_source,
    tensors_of,
)
from taylorglo.errors import InputError
from taylorglo.files import replacing
from taylorglo.results import Guessing
from taylorglo.settings import DataSettings

__all__ = ["Dataset", "Split", "load", "read", "save", "without_test"]

_FORMAT = "taylorglo data set 1"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in its splits.

    Attributes:
        name: of the data set.
        num_classes: number of classes.
        train: the training split.
        validation: the validation split.
        test: the test split, or None if it was taken out.
        mean: of the training images scaled to [0, 1], by channel.
        std: their standard deviation by channel, at least one gray level (1/255), so that a
            constant channel can be divided by it.
        provenance: where the images come from.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: dict[str, str]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def guessing(self) -> Guessing:
        """What a network reaches on the test split that always names the most frequent class.

        Raises:
            ValueError: the test split was taken out.
        """
        if self.test is None:
            raise ValueError("the test split was taken out")
        most = int(torch.bincount(self.test.labels).max())
        return Guessing(accuracy=most / len(self.test), images=len(self.test))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training and validation tensors; the test split has no part in it."""
        return self.provenance["fingerprint"]


def load(settings: DataSettings, seed: int, root: Path | None = None) -> Dataset:
    """Read the source, compare its checksum, and split it.

    The splits are stratified by class and shuffled by ``seed``: first the test split, unless the
    source has one, which is kept whole and in its order; then the validation split; then the part
    of the rest that is used for training. The same settings and seed give the same tensors.

    The checksum is that of the file for ``safetensors``. For every other source it is computed over
    the tensors, and so does not depend on compression or folders.

    Args:
        settings: the source and the fractions.
        seed: decides the splits.
        root: the local copy of ``settings.root``, if that is an s3:// URI.

    Raises:
        InputError: the source is missing, damaged, not the expected one, or too small to be split.
        ServiceError: a download still fails after a few tries.
    """
    if root is None:
        if "://" in settings.root:
            raise InputError(
                f"data.root: {settings.root} should have been fetched to a local path first"
            )
        root = Path(settings.root)
    source = read_source(settings, root)
    place = "digits" if settings.name == "digits" else str(root)
    if settings.sha256 and settings.sha256 != source.sha256:
        raise InputError(
            f"data.sha256: expected {settings.sha256}, "
            f"but {place} has {source.sha256} (of its {source.checksum_of})"
        )
    return _split(source, settings, _check(source, place), seed)


def without_test(dataset: Dataset) -> Dataset:
    """Return the same data set without its test split."""
    return replace(dataset, test=None)


def save(dataset: Dataset, path: Path) -> None:
    """Write a data set as one .safetensors file. The same data set gives the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    description = {
        "format": _FORMAT,
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "mean": dataset.mean,
        "std": dataset.std,
        "provenance": dataset.provenance,
    }
    # There is one key of metadata only, because safetensors writes several in an arbitrary order.
    metadata = {"dataset": json.dumps(description, sort_keys=True)}
    tensors = tensors_of(train=dataset.train, validation=dataset.validation, test=dataset.test)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(to_safetensors(tensors, metadata))


def read(path: Path) -> Dataset:
    """Read what :func:`save` wrote, and verify it against its fingerprint.

    Raises:
        InputError: the file is missing, truncated or altered, or is no such file.
    """
    tensors, metadata = open_safetensors(path)
    expected = f"{path}: should be a data set as prepared for a sweep ({_FORMAT})"

    def split(name: str) -> Split:
        return Split(tensors[f"{name}_images"], tensors[f"{name}_labels"])

    try:
        description = json.loads(metadata["dataset"])
        if description["format"] != _FORMAT:
            raise InputError(f"{expected}; its format is {description['format']!r}")
        dataset = Dataset(
            name=description["name"],
            num_classes=description["num_classes"],
            train=split("train"),
            validation=split("validation"),
            test=split("test") if "test_images" in tensors else None,
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            provenance=description["provenance"],
        )
        fingerprint = dataset.fingerprint
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{expected}; it has the tensors {', '.join(sorted(tensors))}") from error
    intact = fingerprint == digest_of(train=dataset.train, validation=dataset.validation)
    if dataset.test is not None:
        intact &= dataset.provenance.get("test_fingerprint") == digest_of(test=dataset.test)
    if not intact:
        raise InputError(f"{expected}; its tensors do not match its fingerprints: it was altered")
    return dataset


def _split(source: Source, settings: DataSettings, num_classes: int, seed: int) -> Dataset:
    """Split a source, which has been checked, into a data set."""

    def hold_out(split: Split, setting: str) -> tuple[Split, Split]:
        fraction = getattr(settings, setting)
        return _hold_out(split, setting, fraction=fraction, num_classes=num_classes, seed=seed)

    rest, test = source.train, source.test
    if test is None:
        rest, test = hold_out(rest, "test_fraction")
    train, validation = hold_out(rest, "validation_fraction")
    if settings.train_fraction < 1:
        _, train = hold_out(train, "train_fraction")
    mean, std = _statistics(train.images)
    provenance = {
        "source": settings.root or "sklearn.datasets.load_digits",
        "source_sha256": source.sha256,
        "checksum_of": source.checksum_of,
        "test_split": "held out" if source.test is None else "of the source",
        "split_seed": str(seed),
        "test_fraction": str(settings.test_fraction),
        "validation_fraction": str(settings.validation_fraction),
        "train_fraction": str(settings.train_fraction),
        "train_images": str(len(train)),
        "validation_images": str(len(validation)),
        "test_images": str(len(test)),
        "fingerprint": digest_of(train=train, validation=validation),
        "test_fingerprint": digest_of(test=test),
    }
    return Dataset(settings.name, num_classes, train, validation, test, mean, std, provenance)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of uint8 images by channel, in [0, 1]."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means = []
    deviations = []
    for channel in range(images.shape[1]):
        # Counts of gray levels make the numbers exact for any number of threads, and no copy in
        # floating point is needed.
        weights = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        weights /= weights.sum()
        mean = float(weights @ levels)
        means.append(mean)
        deviations.append(max(float(weights @ (levels - mean) ** 2) ** 0.5, 1 / 255))
    return tuple(means), tuple(deviations)


def _hold_out(
    split: Split, setting: str, *, fraction: float, num_classes: int, seed: int
) -> tuple[Split, Split]:
    """Split off a fraction of the images by class; return the remaining and the held-out images."""
    # scikit-learn takes a second to import, and only the task that prepares the data splits them.
    from sklearn.model_selection import train_test_split

    smallest = torch.bincount(split.labels).min()
    problem = (
        f"data.{setting}: {fraction} of {len(split)} images of {num_classes} classes, the smallest "
        f"of {smallest}, cannot be split off by class with every class on both sides"
    )
    try:
        kept, held = train_test_split(
            range(len(split)),
            test_size=fraction,
            stratify=split.labels.numpy(),
            random_state=seed,
            shuffle=True,
        )
    except ValueError as error:
        raise InputError(problem) from error
    parts = (
        Split(split.images[kept], split.labels[kept]),
        Split(split.images[held], split.labels[held]),
    )
    if any(torch.bincount(part.labels, minlength=num_classes).min() == 0 for part in parts):
        raise InputError(problem)
    return parts


def _check(source: Source, place: str) -> int:
    """Verify the tensors of a source, and count the classes."""
    classes = len(set(source.train.labels.flatten().tolist()))
    _check_split(source.train, "", classes, place)
    if source.test is None:
        return classes
    _check_split(source.test, "test ", classes, place)
    if source.test.images.shape[1:] != source.train.images.shape[1:]:
        shapes = " and ".join(
            str(tuple(split.images.shape[1:])) for split in (source.train, source.test)
        )
        raise InputError(
            f"{place}: training and test images should be of one shape (C, H, W), and are {shapes}"
        )
    return classes


def _check_split(split: Split, name: str, classes: int, place: str) -> None:
    images, labels = split.images, split.labels
    if images.ndim != 4 or images.dtype != torch.uint8 or 0 in images.shape:
        raise InputError(
            f"{place}: {name}images should be uint8 of shape (N, C, H, W) or (N, H, W), none of "
            f"them 0, and are {images.dtype} {tuple(images.shape)}"
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{place}: {len(images)} {name}images have {name}labels of shape {tuple(labels.shape)}"
        )
    # There are as many different labels as classes. If all of them are in 0..n-1, every class has
    # training images.
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{place}: labels should be 0..n-1, for at least 2 classes, each with training images; "
            f"the training labels have {classes} values, the {name}labels are in "
            f"{labels.min()}..{labels.max()}"
        )
