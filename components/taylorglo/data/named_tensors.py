"""Sources of named tensors: .safetensors files, and NumPy's .npz files and folders of .npy files.

The name of a tensor has a word for what it is, and may have one for its split: ``images``,
``test_labels``, ``x_train``.
"""

import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taylorglo.data.split_names import EITHER, TEST, TRAIN, VALIDATION, split_named
from taylorglo.data.splits import Source, Split, with_channels
from taylorglo.errors import InputError, described, one_line
from taylorglo.reading import check_regular

_SAMPLES, _LABELS = "samples", "labels"
_KINDS = {
    **dict.fromkeys(("images", "features", "data", "inputs", "x"), _SAMPLES),
    **dict.fromkeys(("labels", "targets", "y"), _LABELS),
}
_EXPECTED = (
    "should have the tensors images and labels (or features and labels), and if there are such "
    "splits validation_images and validation_labels, test_images and test_labels"
)
# The most bytes that a byte of an archive becomes. NumPy knows no other ways of packing.
_MOST_UNPACKED = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}


def read_safetensors(path: Path) -> Source:
    """Read the splits of a .safetensors file.

    Raises:
        InputError: it is missing or damaged, or has other tensors.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"data.root: {path} should be a .safetensors file")
    sha256 = _sha256(path)
    return _source(path, open_safetensors(path)[0], sha256)


def read_numpy(path: Path) -> Source:
    """Read the splits of an .npz file, or of a folder with an .npy file for each array.

    Arrays of Python objects are refused, because reading them would run code of the file.

    Raises:
        InputError: it is missing or damaged, or has other arrays.
        OSError: it cannot be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.glob("*.npy") if not file.name.startswith("."))
        return _source(path, {file.stem: _of_file(file) for file in files}, None)
    if path.suffix != ".npz" or not path.is_file():
        missing = "" if path.exists() else "does not exist; it "
        raise InputError(
            f"data.root: {path} {missing}should be an .npz file, or a folder with images.npy (or "
            "features.npy) and labels.npy"
        )
    check_regular(path)
    sha256 = _sha256(path)
    return _source(path, _of_archive(path), sha256)


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a file, and the metadata of its header.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        # PyTorch refuses shapes and types that the header of a damaged file may name.
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{path}: should be a whole .safetensors file: {reason}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_file(path: Path) -> Tensor:
    """Return the array of an .npy file."""
    check_regular(path)
    with _whole(path), path.open("rb") as file:
        return _tensor(file, path.stat().st_size, f"{path}: ")


def _of_archive(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an .npz file by their names."""
    tensors = {}
    with _whole(path), zipfile.ZipFile(path) as archive:
        for packed in archive.infolist():
            name = packed.filename.removesuffix(".npy")
            # The size of an unpacked file is a claim of the archive, too.
            most = packed.compress_size * _MOST_UNPACKED.get(packed.compress_type, math.inf)
            with archive.open(packed) as file:
                size = int(min(packed.file_size, most))
                tensors[name] = _tensor(file, size, f"{path}: {name}: ")
    return tensors


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what the readers raise for a damaged file into an error for a user.

    Raises:
        InputError: the block raised an error that is about the content of the file.
        OSError: the file cannot be read.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    # The readers of zip files and of headers raise errors of many kinds if a file is damaged.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: should be a whole {path.suffix} file of numbers: {_reason(error)}")


def _reason(error: Exception) -> str:
    # NumPy advises to trust a file of objects, and with it the code that is in the file.
    return "it has Python objects" if "pickle" in str(error) else described(error)


def _tensor(file: IO[bytes], size: int, place: str) -> Tensor:
    """Read an array as a tensor, whatever its byte order.

    Args:
        file: of the format .npy.
        size: the largest number of bytes that can be in it.
        place: of the array, for an error.

    Raises:
        InputError: the array is not of numbers, or is larger than the file.
        ValueError: the file is damaged.
    """
    shape, dtype = _header(file)
    if dtype.hasobject:
        raise ValueError("no pickle is read")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputError(f"{place}should be an array of numbers, and is of {dtype}")
    # Memory is taken for all of the array before any of it is read.
    claimed, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or claimed > there:
        raise InputError(
            f"{place}should be a whole array: {shape} of {dtype} are {claimed} bytes, and the file "
            f"has {there} at most"
        )
    file.seek(0)
    array = npy.read_array(file)
    return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], "np.dtype[np.generic]"]:
    """Return the shape and the type that an .npy file has by its header.

    Raises:
        ValueError: there is no such header.
    """
    # Later versions differ from the second in the names of fields, which numbers do not have.
    first = npy.read_magic(file) == (1, 0)
    read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    # NumPy parses the header as Python, and Python's parser has no memory for a deep nesting.
    except MemoryError:
        raise ValueError("the header is nested too deeply") from None
    return shape, dtype


def _source(path: Path, tensors: Mapping[str, Tensor], sha256: str | None) -> Source:
    """Return the splits that named tensors are; without a checksum it is that of the tensors."""
    splits: dict[str, dict[str, str]] = {}
    for name in sorted(tensors):
        meant = _meaning(name)
        if meant is None or meant[1] in splits.setdefault(meant[0], {}):
            raise _unexpected(path, tensors)
        splits[meant[0]][meant[1]] = name
    if TRAIN not in splits or any(len(names) != 2 for names in splits.values()):
        raise _unexpected(path, tensors)
    parts = {split: _split(path, tensors, names) for split, names in splits.items()}
    train, validation, test = parts[TRAIN], parts.get(VALIDATION), parts.get(TEST)
    if sha256 is None:
        return Source.of_tensors(train, validation, test)
    return Source(train, validation, test, sha256, "file", remarks={})


def _unexpected(path: Path, tensors: Mapping[str, Tensor]) -> InputError:
    return InputError(f"{path}: {_EXPECTED}; it has {', '.join(sorted(tensors)) or 'none'}")


def _meaning(name: str) -> tuple[str, str] | None:
    """Return the split and the kind that the name of a tensor stands for, or None."""
    words = name.lower().split("_")
    kinds = [word for word in words if word in _KINDS]
    others = [word for word in words if word not in _KINDS]
    split = split_named("_".join(others)) if others else TRAIN
    if len(kinds) != 1 or split in (None, EITHER):
        return None
    return str(split), _KINDS[kinds[0]]


def _split(path: Path, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Split:
    images, labels = tensors[names[_SAMPLES]], tensors[names[_LABELS]]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        one_hot = "; use labels.argmax(dim=1)" if labels.ndim == 2 else ""
        raise InputError(
            f"{path}: {names[_LABELS]} should be integers, and are {labels.dtype}{one_hot}"
        )
    words = names[_SAMPLES].lower().split("_")
    shape = tuple(images.shape)
    if "features" in words and images.ndim != 2:
        raise InputError(
            f"{path}: {names[_SAMPLES]} should be of shape (N, F), and are {images.dtype} {shape}; "
            "if they are images, name them so"
        )
    if "images" in words and images.ndim == 2:
        raise InputError(
            f"{path}: {names[_SAMPLES]} should be of shape (N, C, H, W) or (N, H, W), and are "
            f"{images.dtype} {shape}; if they are features, name them so"
        )
    return Split(_samples(with_channels(images)), labels.long())


def _samples(values: Tensor) -> Tensor:
    """Return features of any numbers, and images of floating-point ones, as float32."""
    if values.is_floating_point() or (values.ndim == 2 and not values.is_complex()):
        return values.float()
    return values
