"""Data sets: read from a source, checked and split, and kept in one file.

A source is read into tensors, its checksum is compared, and its splits are drawn by class from a
seed. Samples are images, or features of a table or a tensor. Images of 8 bits, and images of floats
within [0, 1], have pixels; other data have none, and attacks on them are measured in standard
deviations. The test split is held out first, and the search gets a data set that does not contain
it (:func:`without_test`). Flaws on purpose (:mod:`taylorglo.data.corruption`) never touch it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save as to_safetensors
from torch import Tensor

from taylorglo.data.checks import check_source
from taylorglo.data.corruption import check_noise, with_noise
from taylorglo.data.division import divided
from taylorglo.data.encoding import encoded, encoding_of
from taylorglo.data.named_tensors import open_safetensors
from taylorglo.data.remarks import remark_on_reading, remarks_on, remarks_on_flaws
from taylorglo.data.seeds import NOISE, derived_seed
from taylorglo.data.sources import read_source
from taylorglo.data.splits import Source, Split, digest_of, tensors_of
from taylorglo.errors import InputError, quoted
from taylorglo.files import replacing
from taylorglo.reading import parse_json
from taylorglo.results import EPSILON_UNIT, Guessing
from taylorglo.settings import DataSettings

__all__ = ["Dataset", "Split", "load", "read", "save", "without_test"]

# Of images of 8 bits, as every version wrote and reads it, and of floats.
_FORMAT = "taylorglo data set 1"
_FORMAT_OF_FLOATS = "taylorglo data set 2"
_LEAST_DEVIATION = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in its splits.

    Attributes:
        name: of the data set.
        num_classes: number of classes.
        train: the training split.
        validation: the validation split.
        test: the test split, or None if it was taken out.
        mean: of the training split by channel or feature, of images of 8 bits in [0, 1]; empty if
            there is no training split.
        std: their standard deviation by channel or feature, above 0: at least one gray level
            (1/255) for pixels, and 1 for what is constant in other data. The features of a table
            are standardised or one-hot already, and have mean 0 and deviation 1 here.
        provenance: where the samples come from.
        pixels: whether the values are pixels, with a full range from 0 to 1.
        classes: the names of the classes in the order of the labels; empty if they have none.
        encoding: of a table, what makes features of its columns, in their order; else empty.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: dict[str, str]
    pixels: bool = True
    classes: tuple[str, ...] = ()
    encoding: tuple[dict[str, Any], ...] = ()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of an image, or (F,) of a sample of F features."""
        return tuple(self.train.images.shape[1:])

    @property
    def features(self) -> int:
        """The number of features of a sample; 0 for images."""
        return len(self.std) if self.train.images.ndim == 2 else 0

    @property
    def unit(self) -> Tensor | None:
        """What an attack's epsilon is a multiple of, if the data have no pixels.

        It is the standard deviation by feature (F,) or channel (C, 1, 1), on the device of the
        data; 1 for a feature that is standardised or one-hot.
        """
        if self.pixels:
            return None
        images = self.train.images
        return torch.tensor(self.std, device=images.device).view(-1, *[1] * (images.ndim - 2))

    @property
    def guessing(self) -> Guessing:
        """What a network reaches on the test split that always names the most frequent class.

        Raises:
            ValueError: the test split was taken out.
        """
        if self.test is None:
            raise ValueError("the test split was taken out")
        sizes = torch.bincount(self.test.labels)
        images = len(self.test)
        return Guessing(
            accuracy=int(sizes.max()) / images, images=images, classes=int((sizes > 0).sum())
        )

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
            or the flaws are too many for it; or its test split is of other numbers than the rest.
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
    uint8 = dataset.train.images.dtype == torch.uint8
    description = {
        "format": _FORMAT if uint8 else _FORMAT_OF_FLOATS,
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "mean": dataset.mean,
        "std": dataset.std,
        "provenance": dataset.provenance,
        "pixels": dataset.pixels,
        "classes": dataset.classes,
        "encoding": dataset.encoding,
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
        if content["format"] not in (_FORMAT, _FORMAT_OF_FLOATS):
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
            pixels=description.pixels,
            classes=description.classes,
            encoding=description.encoding,
        )
        fingerprint = dataset.fingerprint
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{expected}; it has the tensors {', '.join(sorted(tensors))}") from error
    of_floats = content["format"] == _FORMAT_OF_FLOATS
    if not _is_consistent(dataset, torch.float32 if of_floats else torch.uint8):
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
    pixels: bool = True
    classes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    encoding: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()


def _is_consistent(dataset: Dataset, dtype: torch.dtype) -> bool:
    """Return whether the tensors of a file are samples of one shape with labels of its classes.

    Args:
        dataset: as it was read.
        dtype: that its samples should have.
    """
    parts = (dataset.train, dataset.validation, dataset.test)
    shape = dataset.train.images.shape[1:]
    return (
        (len(shape) == 3 or (len(shape) == 1 and dtype == torch.float32))
        and 0 not in shape
        and len(dataset.mean) == len(dataset.std) == shape[0]
        and min(dataset.std) > 0
        # A file of a few images must not make a network of many outputs.
        and 2 <= dataset.num_classes <= len(dataset.train)
        and len(dataset.classes) in (0, dataset.num_classes)
        and all(
            part.images.dtype == dtype and _fits(part, shape, dataset.num_classes)
            for part in parts
            if part is not None
        )
    )


def _fits(split: Split, shape: Sequence[int], num_classes: int) -> bool:
    images, labels = split.images, split.labels
    return (
        labels.dtype == torch.int64
        and labels.ndim == 1
        and tuple(images.shape) == (len(labels), *shape)
        and images.numel() > 0
        and int(labels.min()) >= 0
        and int(labels.max()) < num_classes
        and (not images.is_floating_point() or bool(images.isfinite().all()))
    )


def _split(source: Source, settings: DataSettings, num_classes: int, seed: int) -> Dataset:
    """Split a source, which has been checked, into a data set."""
    rate, kind = settings.label_noise, settings.label_noise_kind
    check_noise(rate, kind, num_classes)
    train, validation, test = divided(source, settings, num_classes, seed)
    encoding: tuple[dict[str, Any], ...] = ()
    unknown = ""
    if source.columns:
        (train, validation, test), encoding, unknown = _encoded(source, train, validation, test)
    clean = {"training": train, "validation": validation}
    if rate > 0:
        draws, other_draws = (derived_seed(seed, NOISE, number) for number in (1, 2))
        train = with_noise(train, rate, kind, num_classes, draws)
        validation = with_noise(validation, rate, kind, num_classes, other_draws)
    noisy = {"training": train, "validation": validation}
    # The test split decides nothing of what the search sees.
    pixels = _are_pixels(train.images) and _are_pixels(validation.images)
    if pixels and not _are_pixels(test.images):
        raise InputError(
            f"data.root: {settings.root}: test images are from {float(test.images.min()):g} to "
            f"{float(test.images.max()):g}, but training and validation images within [0, 1], "
            "which are pixels: should be scaled in the same way"
        )
    mean, std = _statistics(train.images, pixels, standardised=bool(encoding))
    every = {**clean, "test": test}
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
        "read": remark_on_reading(source, train, pixels=pixels, encoding=encoding),
        **({} if pixels else {EPSILON_UNIT: "standard deviations"}),
        **source.remarks,
        **({"unknown_categories": unknown} if unknown else {}),
        # Of the labels before the noise, which would make copies of an image contradict each other.
        **remarks_on(every),
        **remarks_on_flaws(clean, noisy, settings, num_classes, seed),
    }
    return Dataset(
        name=settings.name,
        num_classes=num_classes,
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        provenance=provenance,
        pixels=pixels,
        classes=tuple(source.classes),
        encoding=encoding,
    )


def _encoded(source: Source, *splits: Split) -> tuple[list[Split], tuple[dict[str, Any], ...], str]:
    """Return the features of the splits of a table, training first, and how they were made.

    The last value is a remark on texts that the training split does not have.
    """
    encoding = encoding_of(source.columns, splits[0].images)
    parts, unknown = [], 0
    for split in splits:
        features, others = encoded(encoding, source.columns, split.images)
        parts.append(Split(features, split.labels))
        unknown += others
    said = f"texts that are in no training sample, and became zeros: {unknown}" if unknown else ""
    return parts, tuple(encoding), said


def _are_pixels(images: Tensor) -> bool:
    """Return whether the values are pixels: levels of 8 bits, or images of floats in [0, 1]."""
    if images.dtype == torch.uint8:
        return True
    return images.ndim == 4 and bool(images.min() >= 0) and bool(images.max() <= 1)


def _origin(split: Split | None) -> str:
    return "held out" if split is None else "of the source"


def _statistics(
    images: Tensor, pixels: bool, *, standardised: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of a training split by channel or feature.

    Args:
        images: of the training split; levels of 8 bits count as values in [0, 1].
        pixels: whether they are pixels.
        standardised: whether they are the features of a table, which need no normalisation.

    Raises:
        InputError: a deviation is above 0, and too small for float32, in which it is divided by.
    """
    if images.dtype == torch.uint8:
        return _statistics_of_levels(images)
    channels = images.shape[1]
    if standardised:
        return (0.0,) * channels, (1.0,) * channels
    means, deviations = [], []
    for channel in range(channels):
        # NumPy's sums are the same for any number of threads.
        values = images[:, channel].double().numpy()
        deviation = 0.0 if values.min() == values.max() else float(values.std())
        if not pixels and 0 < deviation < _LEAST_DEVIATION:
            noun = "features" if images.ndim == 2 else "images"
            raise InputError(
                f"{noun}[:, {channel}] have the standard deviation {deviation:g} in the training "
                f"split: should be at least {_LEAST_DEVIATION:.2g}, or 0; scale them"
            )
        means.append(float(np.mean(values)))
        deviations.append(max(deviation, 1 / 255) if pixels else deviation or 1.0)
    return tuple(means), tuple(deviations)


def _statistics_of_levels(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
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
