"""Labelled images: where they come from, how they are split, and the one file in which they travel.

A source is read into uint8 tensors, its checksum compared, its splits drawn by class from a seed. The test split is
held out first; the search is given a data set that does not contain it (:func:`without_test`).
"""

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taylorglo.errors import InputError, ServiceError
from taylorglo.settings import DataSettings

FORMAT = "taylorglo data set 1"
DOWNLOAD_ATTEMPTS = 3

_TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
_IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
# What torchvision and the libraries under it raise for files that are damaged or not what they are named.
_UNREADABLE = (RuntimeError, ValueError, TypeError, KeyError, AssertionError, EOFError, OSError, zlib.error)


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 of shape (N, C, H, W), and their labels, int64 of shape (N,) in 0..n-1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split.

    ``mean`` and ``std`` are per channel, of the training images scaled to [0, 1]; a deviation is at least one gray
    level (1/255), so that a constant channel can be divided by it. ``provenance`` says where the images come from.
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
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training and validation tensors; the test split has no part in it."""
        return self.provenance["fingerprint"]


class _Source(NamedTuple):
    train: Split
    test: Split | None
    sha256: str
    checksum_of: str


def load(settings: DataSettings, seed: int, root: Path | None = None) -> Dataset:
    """Read the source, compare its checksum, and split it.

    The splits are stratified by class and shuffled by ``seed``: the test split first, unless the source has one (kept
    whole and in its order), then the validation split, then the part of the rest that is used for training. The same
    settings and seed give the same tensors. The checksum is the file's for ``safetensors``; for every other source it
    is over the tensors that were read, and so does not depend on compression or folders.

    Args:
        settings: which source, and the fractions.
        seed: of the splits.
        root: the local copy of ``settings.root``, where that is an s3:// URI.

    Raises:
        InputError: when the source is missing, damaged, not what was expected, or too small to be split.
        ServiceError: when a download still fails after a few tries.
    """
    if root is None:
        if "://" in settings.root:
            raise InputError(f"data.root: {settings.root} should have been fetched to a local path first")
        root = Path(settings.root)
    source = _read_source(settings, root)
    where = "data" if settings.name == "digits" else str(root)
    if settings.sha256 and settings.sha256 != source.sha256:
        raise InputError(
            f"data.sha256: expected {settings.sha256}, but the {source.checksum_of} of {where} has {source.sha256}"
        )
    num_classes = _check(source, where)

    rest, test = source.train, source.test
    if test is None:
        rest, test = _hold_out(rest, settings.test_fraction, num_classes, seed, "test_fraction")
    train, validation = _hold_out(rest, settings.validation_fraction, num_classes, seed, "validation_fraction")
    if settings.train_fraction < 1:
        _, train = _hold_out(train, settings.train_fraction, num_classes, seed, "train_fraction")

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
        "fingerprint": _digest(train=train, validation=validation),
    }
    return Dataset(settings.name, num_classes, train, validation, test, mean, std, provenance)


def without_test(dataset: Dataset) -> Dataset:
    """The same data set, without its test split."""
    return replace(dataset, test=None)


def save(dataset: Dataset, path: Path) -> None:
    """Write a data set as one .safetensors file; the same data set gives the same bytes."""
    from safetensors.torch import save as to_bytes

    described = {
        "format": FORMAT,
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "mean": dataset.mean,
        "std": dataset.std,
        "provenance": dataset.provenance,
    }
    # One key of metadata only: safetensors writes several in an arbitrary order.
    metadata = {"dataset": json.dumps(described, sort_keys=True)}
    tensors = _tensors(train=dataset.train, validation=dataset.validation, test=dataset.test)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # Not save_file: it makes files that only their owner can read, and the next step may run as someone else.
        part.write_bytes(to_bytes(tensors, metadata))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> Dataset:
    """Read what :func:`save` wrote, and verify it against its fingerprint.

    Raises:
        InputError: when the file is missing, truncated, altered, or something else.
    """
    tensors, metadata = _open_safetensors(path)
    expected = f"{path}: should be a data set as prepared for a sweep ({FORMAT})"

    def split(name: str) -> Split:
        return Split(tensors[f"{name}_images"], tensors[f"{name}_labels"])

    try:
        described = json.loads(metadata["dataset"])
        if described["format"] != FORMAT:
            raise InputError(f"{expected}; its format is {described['format']!r}")
        dataset = Dataset(
            name=described["name"],
            num_classes=described["num_classes"],
            train=split("train"),
            validation=split("validation"),
            test=split("test") if "test_images" in tensors else None,
            mean=tuple(described["mean"]),
            std=tuple(described["std"]),
            provenance=described["provenance"],
        )
        fingerprint = dataset.fingerprint
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{expected}; it has the tensors {', '.join(sorted(tensors))}") from error
    if fingerprint != _digest(train=dataset.train, validation=dataset.validation):
        raise InputError(f"{expected}; its tensors do not match its fingerprint {fingerprint}: it was altered")
    return dataset


def _tensors(**splits: Split | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, split in splits.items():
        if split is not None:
            tensors |= {f"{name}_images": split.images.contiguous(), f"{name}_labels": split.labels.contiguous()}
    return tensors


def _digest(**splits: Split | None) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(**splits).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().numpy().data)
    return digest.hexdigest()


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        # From counts of gray levels: exact, whatever the number of threads, and without a copy in floating point.
        weights = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        weights /= weights.sum()
        mean = float(weights @ levels)
        means.append(mean)
        deviations.append(max(float(weights @ (levels - mean) ** 2) ** 0.5, 1 / 255))
    return tuple(means), tuple(deviations)


def _hold_out(split: Split, fraction: float, num_classes: int, seed: int, setting: str) -> tuple[Split, Split]:
    """Split off ``fraction`` of the images, by class: what remains, and what was split off."""
    from sklearn.model_selection import train_test_split

    smallest = torch.bincount(split.labels).min()
    problem = (
        f"data.{setting}: {fraction} of {len(split)} images of {num_classes} classes, the smallest of {smallest}, "
        "cannot be split off by class with every class on both sides"
    )
    try:
        kept, held = train_test_split(
            range(len(split)), test_size=fraction, stratify=split.labels.numpy(), random_state=seed, shuffle=True
        )
    except ValueError as error:
        raise InputError(problem) from error
    parts = Split(split.images[kept], split.labels[kept]), Split(split.images[held], split.labels[held])
    if any(torch.bincount(part.labels, minlength=num_classes).min() == 0 for part in parts):
        raise InputError(problem)
    return parts


def _check(source: _Source, where: str) -> int:
    """Verify what was read, and count the classes."""
    classes = len(set(source.train.labels.flatten().tolist()))
    for name, split in (("", source.train), ("test ", source.test)):
        if split is None:
            continue
        images, labels = split.images, split.labels
        if images.ndim != 4 or images.dtype != torch.uint8 or 0 in images.shape:
            raise InputError(
                f"{where}: {name}images should be uint8 of shape (N, C, H, W) or (N, H, W), none of them 0, "
                f"and are {images.dtype} {tuple(images.shape)}"
            )
        if labels.shape != images.shape[:1]:
            raise InputError(f"{where}: {len(images)} {name}images have {name}labels of shape {tuple(labels.shape)}")
        # As many different labels as there are classes, all of them in 0..n-1: so every class has training images.
        if classes < 2 or labels.min() < 0 or labels.max() >= classes:
            raise InputError(
                f"{where}: labels should be 0..n-1, for at least 2 classes, each with training images; "
                f"the training labels have {classes} values, the {name}labels are in {labels.min()}..{labels.max()}"
            )
    if source.test is not None and source.test.images.shape[1:] != source.train.images.shape[1:]:
        shapes = " and ".join(str(tuple(split.images.shape[1:])) for split in (source.train, source.test))
        raise InputError(f"{where}: training and test images should be of one shape (C, H, W), and are {shapes}")
    return classes


def _read_source(settings: DataSettings, root: Path) -> _Source:
    if settings.name == "safetensors":
        return _read_safetensors(root)
    if settings.name == "digits":
        train, test = _read_digits(), None
    elif not root.is_dir() and not settings.download:
        raise InputError(f"data.root: {root} should be a folder that holds {settings.name}")
    elif settings.name == "image-folder":
        train, test = _read_image_folder(root)
    else:
        train, test = _read_torchvision(settings.name, root, settings.download)
    return _Source(train, test, _digest(train=train, test=test), "tensors")


def _read_digits() -> Split:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 0..16 to 0..255, rounded to nearest
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)
    return Split(images.unsqueeze(1), torch.from_numpy(bunch.target).long())


def _read_torchvision(name: str, root: Path, download: bool) -> tuple[Split, Split]:
    """Read both splits with torchvision's class.

    CIFAR's files are pickles: torchvision compares the MD5 of each, so that an altered one is refused, not unpickled.
    """
    from torchvision import datasets

    dataset = getattr(datasets, _TORCHVISION[name])
    parts = [{"split": part} if name == "svhn" else {"train": part == "train"} for part in ("train", "test")]
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = root
        if issubclass(dataset, datasets.MNIST) and any(_idx_file(root, file) for file in _IDX_FILES):
            folder = Path(temporary)
            _stage_idx(root, folder / dataset.__name__ / "raw")
        elif download:
            _download(dataset, name, root, parts)
        if missing := _missing(dataset, folder):
            raise InputError(
                f"data.root: {root} lacks {missing[0]}, which {name} is read from; put it there, or set download: true"
            )
        try:
            train, test = [_to_split(dataset(folder, **part), name) for part in parts]
        except _UNREADABLE as error:
            raise InputError(f"data.root: {name} in {root} is damaged: {_line(error)}") from error
    return train, test


def _missing(dataset: Any, root: Path) -> list[Path]:
    """The files that torchvision will look for under ``root`` and that are not there."""
    if hasattr(dataset, "base_folder"):
        names = [dataset.base_folder + "/" + name for name, _ in dataset.train_list + dataset.test_list]
        names.append(f"{dataset.base_folder}/{dataset.meta['filename']}")
    elif hasattr(dataset, "split_list"):
        names = [dataset.split_list[part][1] for part in ("train", "test")]
    else:
        names = [f"{dataset.__name__}/raw/{name}" for name in _IDX_FILES]
    return [Path(name) for name in names if not (root / name).is_file()]


def _download(dataset: Any, name: str, root: Path, parts: list[dict[str, Any]]) -> None:
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        try:
            for part in parts:
                dataset(root, download=True, **part)
            return
        except _UNREADABLE as error:
            if not _missing(dataset, root):
                return  # everything is there: what is wrong with it is said by the one who reads it
            if attempt == DOWNLOAD_ATTEMPTS:
                raise ServiceError(f"{name}: download to {root} failed {attempt} times: {_line(error)}") from error
            time.sleep(attempt)


def _to_split(source: Any, name: str) -> Split:
    images = torch.as_tensor(source.data)
    if name.startswith("cifar"):
        images = images.permute(0, 3, 1, 2)  # torchvision keeps them as (N, H, W, C)
    labels = torch.as_tensor(source.labels if name == "svhn" else source.targets).long()
    return Split(images.unsqueeze(1) if images.ndim == 3 else images, labels)


def _idx_file(root: Path, name: str) -> Path | None:
    """The idx file of that name directly in ``root``, plain or gzip'd, as Debian's dataset-fashion-mnist has them."""
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def _stage_idx(root: Path, raw: Path) -> None:
    """Lay the idx files of ``root`` out as torchvision expects them."""
    raw.mkdir(parents=True)
    for name in _IDX_FILES:
        path = _idx_file(root, name)
        if path is None:
            raise InputError(f"data.root: {root} lacks {name} or {name}.gz; put it there beside the others")
        if path.suffix != ".gz":
            (raw / name).symlink_to(path.resolve())
            continue
        try:
            with gzip.open(path) as packed, open(raw / name, "wb") as plain:
                shutil.copyfileobj(packed, plain)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: damaged: should be a whole gzip file: {error}") from error


def _read_image_folder(root: Path) -> tuple[Split, Split | None]:
    if not (root / "train").is_dir():
        return _read_folder(root)[0], None
    train, classes = _read_folder(root / "train")
    if not (root / "test").is_dir():
        return train, None
    test, test_classes = _read_folder(root / "test")
    if test_classes != classes:
        different = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise InputError(f"{root}: train and test should have the same class folders; only one of them has {different}")
    return train, test


def _read_folder(root: Path) -> tuple[Split, list[str]]:
    """Every image of the class folders of ``root``, as RGB, and the names of the classes."""
    from PIL import Image
    from torchvision import datasets
    from torchvision.transforms.functional import pil_to_tensor

    try:
        folder = datasets.ImageFolder(root)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{root}: should have a folder of images per class: {error}") from error
    images: list[Tensor] = []
    for path, _ in folder.samples:
        try:
            image = pil_to_tensor(folder.loader(path))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: damaged or not an image: {error}") from error
        if images and image.shape != images[0].shape:
            (_, height, width), (_, first_height, first_width) = image.shape, images[0].shape
            raise InputError(
                f"{path}: is {width}x{height}, but {folder.samples[0][0]} is {first_width}x{first_height}: "
                "all images should be of one size"
            )
        images.append(image)
    return Split(torch.stack(images), torch.tensor(folder.targets)), folder.classes


def _read_safetensors(path: Path) -> _Source:
    if not path.is_file():
        raise InputError(f"data.root: {path} should be a .safetensors file")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tensors, _ = _open_safetensors(path)
    names = set(tensors)
    if names not in ({"images", "labels"}, {"images", "labels", "test_images", "test_labels"}):
        raise InputError(
            f"{path}: should have the tensors images and labels, and test_images and test_labels or neither; "
            f"it has {', '.join(sorted(names)) or 'none'}"
        )
    splits = []
    for prefix in ("", "test_")[: len(names) // 2]:
        images, labels = tensors[f"{prefix}images"], tensors[f"{prefix}labels"]
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(f"{path}: {prefix}labels should be integers, and are {labels.dtype}")
        splits.append(Split(images.unsqueeze(1) if images.ndim == 3 else images, labels.long()))
    return _Source(splits[0], splits[1] if len(splits) > 1 else None, sha256, "file")


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: should be a whole .safetensors file: {error}") from error


def _line(error: Exception) -> str:
    """The type and the message of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
