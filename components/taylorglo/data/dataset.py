"""Data sets: read from a source, checked and split, and kept in one file.

A source is read into uint8 tensors, its checksum is compared, and its splits are drawn by class
from a seed. The test split is held out first, and the search gets a data set that does not contain
it (:func:`without_test`). Flaws on purpose (:mod:`taylorglo.data.corruption`) never touch it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save as to_safetensors
from torch import Tensor

from taylorglo.data.checks import check_source
from taylorglo.data.corruption import check_noise, with_noise
from taylorglo.data.division import divided
from taylorglo.data.remarks import remarks_on, remarks_on_flaws
from taylorglo.data.seeds import NOISE, derived_seed
from taylorglo.data.sources import open_safetensors, read_source
from taylorglo.data.splits import Source, Split, digest_of, tensors_of
from taylorglo.errors import InputError, quoted
from taylorglo.files import replacing
from taylorglo.reading import parse_json
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

    The splits are stratified by class and shuffled by ``seed``: first the test split, then the
    validation split, then the part of the rest that is used for training. A test or validation
    split of the source is kept instead, whole and in its order. The same settings and seed give the
    same tensors.

    ``imbalance`` leaves out images before the validation split is drawn, or in the training and the
    validation split of the source. ``label_noise`` replaces labels of the final training and
    validation splits, the same part of both. The test split is the same with and without the two.

    The checksum is that of the file for ``safetensors``. For every other source it is computed over
    the tensors, and so does not depend on compression or folders.

    Args:
        settings: the source, the fractions and the flaws.
        seed: decides the splits and the flaws.
        root: the local copy of ``settings.root``, if that is an s3:// URI.

    Raises:
        InputError: the source is missing, damaged, not the expected one, or too small to be split;
            or the flaws are too many for it.
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
    return _split(source, settings, check_source(source, place), seed)


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
        content = parse_json(metadata["dataset"])
        if content["format"] != _FORMAT:
            raise InputError(f"{expected}; its format is {quoted(content['format'])}")
        description = _Description.model_validate(content)
        dataset = Dataset(
            name=description.name,
            num_classes=description.num_classes,
            train=split("train"),
            validation=split("validation"),
            test=split("test") if "test_images" in tensors else None,
            mean=description.mean,
            std=description.std,
            provenance=description.provenance,
        )
        fingerprint = dataset.fingerprint
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{expected}; it has the tensors {', '.join(sorted(tensors))}") from error
    if not _is_consistent(dataset):
        raise InputError(f"{expected}; its images, labels and classes do not fit together")
    intact = fingerprint == digest_of(train=dataset.train, validation=dataset.validation)
    if dataset.test is not None:
        intact &= dataset.provenance.get("test_fingerprint") == digest_of(test=dataset.test)
    if not intact:
        raise InputError(f"{expected}; its tensors do not match its fingerprints: it was altered")
    return dataset


class _Description(BaseModel):
    """What the header of a saved data set says of it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    name: str
    num_classes: int
    mean: Annotated[tuple[float, ...], Field(strict=False)]
    std: Annotated[tuple[float, ...], Field(strict=False)]
    provenance: dict[str, str]


def _is_consistent(dataset: Dataset) -> bool:
    """Return whether the tensors of a file are images of one shape with labels of its classes."""
    parts = (dataset.train, dataset.validation, dataset.test)
    shape = dataset.train.images.shape[1:]
    return (
        len(shape) == 3
        and 0 not in shape
        and len(dataset.mean) == len(dataset.std) == shape[0]
        and min(dataset.std) > 0
        # A file of a few images must not make a network of many outputs.
        and 2 <= dataset.num_classes <= len(dataset.train)
        and all(_fits(part, shape, dataset.num_classes) for part in parts if part is not None)
    )


def _fits(split: Split, shape: Sequence[int], num_classes: int) -> bool:
    images, labels = split.images, split.labels
    return (
        images.dtype == torch.uint8
        and labels.dtype == torch.int64
        and labels.ndim == 1
        and tuple(images.shape) == (len(labels), *shape)
        and images.numel() > 0
        and int(labels.min()) >= 0
        and int(labels.max()) < num_classes
    )


def _split(source: Source, settings: DataSettings, num_classes: int, seed: int) -> Dataset:
    """Split a source, which has been checked, into a data set."""
    rate, kind = settings.label_noise, settings.label_noise_kind
    check_noise(rate, kind, num_classes)
    train, validation, test = divided(source, settings, num_classes, seed)
    clean = {"training": train, "validation": validation}
    if rate > 0:
        draws, other_draws = (derived_seed(seed, NOISE, number) for number in (1, 2))
        train = with_noise(train, rate, kind, num_classes, draws)
        validation = with_noise(validation, rate, kind, num_classes, other_draws)
    noisy = {"training": train, "validation": validation}
    mean, std = _statistics(train.images)
    provenance = {
        "source": settings.root or "sklearn.datasets.load_digits",
        "source_sha256": source.sha256,
        "checksum_of": source.checksum_of,
        "test_split": _origin(source.test),
        "validation_split": _origin(source.validation),
        "split_seed": str(seed),
        "test_fraction": str(settings.test_fraction),
        "validation_fraction": str(settings.validation_fraction),
        "train_fraction": str(settings.train_fraction),
        "train_images": str(len(train)),
        "validation_images": str(len(validation)),
        "test_images": str(len(test)),
        "fingerprint": digest_of(train=train, validation=validation),
        "test_fingerprint": digest_of(test=test),
        **source.remarks,
        # Of the labels before the noise, which would make copies of an image contradict each other.
        **remarks_on({**clean, "test": test}),
        **remarks_on_flaws(clean, noisy, settings, num_classes, seed),
    }
    return Dataset(settings.name, num_classes, train, validation, test, mean, std, provenance)


def _origin(split: Split | None) -> str:
    return "held out" if split is None else "of the source"


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
