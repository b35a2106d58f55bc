"""The published data sets, which torchvision reads from the files that it can download."""

import gzip
import hashlib
import math
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from taylorglo.data.splits import Source, Split, with_channels
from taylorglo.errors import InputError, ServiceError, described
from taylorglo.retries import retry, waiting

DOWNLOAD_ATTEMPTS = 3

_TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
_IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
# The errors that torchvision, and the libraries under it, raise for files that are damaged or of
# another format than their name says.
_UNREADABLE = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AssertionError,
    EOFError,
    OSError,
    zlib.error,
)


class _File(NamedTuple):
    """A file that torchvision reads: its path under the root, and its MD5."""

    path: str
    md5: str


def read_published(name: str, root: Path, download: bool) -> Source:
    """Read both splits with torchvision's class, and the names of the classes.

    CIFAR's files are pickles. The MD5 of each is compared, so that an altered file is refused and
    not unpickled.
    """
    from torchvision import datasets

    dataset = getattr(datasets, _TORCHVISION[name])
    parts = [
        {"split": part} if name == "svhn" else {"train": part == "train"}
        for part in ("train", "test")
    ]
    is_idx = issubclass(dataset, datasets.MNIST)
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = root
        has_idx = is_idx and any(_idx_file(root, file) for file in _IDX_FILES)
        if download and not has_idx:
            waiting(lambda: _download(dataset, name, root, parts))
        if not has_idx and (missing := _missing(dataset, root)):
            raise InputError(
                f"data.root: {root} lacks {missing[0]}, which {name} is read from; put it there, "
                "or set download: true"
            )
        if is_idx:
            folder = Path(temporary)
            raw = Path(dataset.__name__) / "raw"
            _stage_idx(root if has_idx else root / raw, folder / raw)
        else:
            _check_files(dataset, root)
        try:
            read = [dataset(folder, **part) for part in parts]
            train, test = (_to_split(each, name) for each in read)
        except _UNREADABLE as error:
            raise InputError(
                f"data.root: {name} in {root} is damaged: {described(error)}"
            ) from error
    # The classes of MNIST and SVHN are digits, whose names are their labels.
    names = () if name in ("mnist", "svhn") else tuple(read[0].classes)
    fit = len(names) == int(train.labels.max()) + 1
    return Source.of_tensors(train, test=test, classes=names if fit else ())


def _files(dataset: Any) -> Iterator[_File]:
    """Yield the files that torchvision reads CIFAR or SVHN from."""
    if hasattr(dataset, "split_list"):
        for part in ("train", "test"):
            _, name, md5 = dataset.split_list[part]
            yield _File(name, md5)
        return
    for name, md5 in dataset.train_list + dataset.test_list:
        yield _File(f"{dataset.base_folder}/{name}", md5)
    yield _File(f"{dataset.base_folder}/{dataset.meta['filename']}", dataset.meta["md5"])


def _missing(dataset: Any, root: Path) -> list[Path]:
    """Return the files that torchvision needs under ``root`` and that are missing."""
    if hasattr(dataset, "mirrors"):
        names = [f"{dataset.__name__}/raw/{name}" for name in _IDX_FILES]
    else:
        names = [file.path for file in _files(dataset)]
    return [Path(name) for name in names if not (root / name).is_file()]


def _check_files(dataset: Any, root: Path) -> None:
    """Refuse files of CIFAR or SVHN that are not those that were published."""
    for file in _files(dataset):
        with (root / file.path).open("rb") as content:
            md5 = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False))
        if md5.hexdigest() != file.md5:
            raise InputError(
                f"{root / file.path}: damaged or altered: its MD5 should be {file.md5}, and is "
                f"{md5.hexdigest()}; remove it, and get it again or set download: true"
            )


def _download(dataset: Any, name: str, root: Path, parts: list[dict[str, Any]]) -> None:
    """Let torchvision download the missing files, a few times if the download fails."""

    def download() -> None:
        for part in parts:
            dataset(root, download=True, **part)

    def may_succeed_later(error: Exception) -> bool:
        return isinstance(error, _UNREADABLE) and bool(_missing(dataset, root))

    try:
        retry(download, range(1, DOWNLOAD_ATTEMPTS), retryable=may_succeed_later)
    except _UNREADABLE as error:
        # If every file is there, the caller reads the files and reports their damage.
        if _missing(dataset, root):
            raise ServiceError(
                f"{name}: download to {root} failed {DOWNLOAD_ATTEMPTS} times: {described(error)}"
            ) from error


def _to_split(source: Any, name: str) -> Split:
    """Return the images and labels of a data set of torchvision."""
    images = torch.as_tensor(source.data)
    if name.startswith("cifar"):
        # torchvision keeps CIFAR's images as (N, H, W, C).
        images = images.permute(0, 3, 1, 2)
    labels = source.labels if name == "svhn" else source.targets
    return Split(with_channels(images), torch.as_tensor(labels).long())


def _idx_file(root: Path, name: str) -> Path | None:
    """Return the idx file of a name in ``root``, or None if there is none.

    It may be compressed by gzip, as the files of Debian's dataset-fashion-mnist are.
    """
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def _stage_idx(root: Path, raw: Path) -> None:
    """Lay out the idx files of ``root`` in a folder as torchvision expects them."""
    raw.mkdir(parents=True)
    for name in _IDX_FILES:
        path = _idx_file(root, name)
        if path is None:
            raise InputError(
                f"data.root: {root} lacks {name} or {name}.gz; put it there beside the others"
            )
        if path.suffix != ".gz":
            (raw / name).symlink_to(path.resolve())
        else:
            _unpack(path, raw / name)
        _check_idx(raw / name, path)


def _unpack(path: Path, target: Path) -> None:
    try:
        with gzip.open(path) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path}: damaged: should be a whole, readable gzip file: {error}"
        ) from error


def _check_idx(path: Path, original: Path) -> None:
    """Refuse an idx file whose first bytes or whose size are not those of its kind.

    Args:
        path: the file, unpacked.
        original: the file as the user has it.
    """
    axes = 3 if "images" in path.name else 1
    kind = "images" if axes == 3 else "labels"
    magic = bytes((0, 0, 8, axes))
    size = path.stat().st_size
    with path.open("rb") as file:
        found, lengths = file.read(4), file.read(4 * axes)
    if found != magic:
        raise InputError(
            f"{original}: damaged, or no idx file of {kind}: should begin with the bytes "
            f"{magic.hex(' ')}, and begins with {found.hex(' ') or 'none'}"
        )
    if len(lengths) < 4 * axes:
        raise InputError(f"{original}: damaged: ends after {size} bytes, within its header")
    shape = struct.unpack(f">{axes}I", lengths)
    expected = 4 + 4 * axes + math.prod(shape)
    if size != expected:
        raise InputError(
            f"{original}: damaged: {kind} of shape {shape} should take {expected} bytes, and "
            f"there are {size}"
        )
