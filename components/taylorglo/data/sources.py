"""Sources of images: each is read into uint8 tensors by the library that knows its format.

scikit-learn and torchvision take seconds to import, and a task needs one of them at most, so that
each reader imports its library itself.
"""

import gzip
import hashlib
import shutil
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taylorglo.errors import InputError, ServiceError, described
from taylorglo.retries import retry, waiting
from taylorglo.settings import DataSettings

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


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 of shape (N, C, H, W), and their labels, int64 of shape (N,) in 0..n-1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """Return the same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


class Source(NamedTuple):
    """The images of a source.

    Attributes:
        train: training images.
        test: test images, or None if the source has no test split.
        sha256: checksum of the source.
        checksum_of: ``file`` or ``tensors``.
    """

    train: Split
    test: Split | None
    sha256: str
    checksum_of: str


def tensors_of(**splits: Split | None) -> dict[str, Tensor]:
    """Return the tensors of splits by their names in a file."""
    tensors: dict[str, Tensor] = {}
    for name, split in splits.items():
        if split is not None:
            tensors |= {
                f"{name}_images": split.images.contiguous(),
                f"{name}_labels": split.labels.contiguous(),
            }
    return tensors


def digest_of(**splits: Split | None) -> str:
    """Return the SHA-256 of the tensors of splits, with their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_of(**splits).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().numpy().data)
    return digest.hexdigest()


def read_source(settings: DataSettings, root: Path) -> Source:
    """Read the data set ``settings.name`` from a file or a folder.

    Raises:
        InputError: the images are missing, damaged, or not of the expected kind.
        ServiceError: a download still fails after a few tries.
    """
    if settings.name == "safetensors":
        return _read_safetensors(root)
    train, test = _read_splits(settings, root)
    return Source(train, test, digest_of(train=train, test=test), "tensors")


def _read_splits(settings: DataSettings, root: Path) -> tuple[Split, Split | None]:
    if settings.name == "digits":
        return _read_digits(), None
    if not root.is_dir() and not settings.download:
        raise InputError(f"data.root: {root} should be a folder that holds {settings.name}")
    if settings.name == "image-folder":
        return _read_image_folder(root)
    return _read_torchvision(settings.name, root, settings.download)


def _read_digits() -> Split:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # The gray levels are 0..16. They become 0..255, rounded to the nearest.
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)
    return Split(images.unsqueeze(1), torch.from_numpy(bunch.target).long())


def _read_torchvision(name: str, root: Path, download: bool) -> tuple[Split, Split]:
    """Read both splits with torchvision's class.

    CIFAR's files are pickles. torchvision compares the MD5 of each, so that an altered file is
    refused and not unpickled.
    """
    from torchvision import datasets

    dataset = getattr(datasets, _TORCHVISION[name])
    parts = [
        {"split": part} if name == "svhn" else {"train": part == "train"}
        for part in ("train", "test")
    ]
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = root
        is_idx = issubclass(dataset, datasets.MNIST)
        if is_idx and any(_idx_file(root, file) for file in _IDX_FILES):
            folder = Path(temporary)
            _stage_idx(root, folder / dataset.__name__ / "raw")
        elif download:
            waiting(lambda: _download(dataset, name, root, parts))
        if missing := _missing(dataset, folder):
            raise InputError(
                f"data.root: {root} lacks {missing[0]}, which {name} is read from; put it there, "
                "or set download: true"
            )
        try:
            train, test = [_to_split(dataset(folder, **part), name) for part in parts]
        except _UNREADABLE as error:
            raise InputError(
                f"data.root: {name} in {root} is damaged: {described(error)}"
            ) from error
    return train, test


def _missing(dataset: Any, root: Path) -> list[Path]:
    """Return the files that torchvision needs under ``root`` and that are missing."""
    if hasattr(dataset, "base_folder"):
        files = [name for name, _ in dataset.train_list + dataset.test_list]
        names = [f"{dataset.base_folder}/{name}" for name in files]
        names.append(f"{dataset.base_folder}/{dataset.meta['filename']}")
    elif hasattr(dataset, "split_list"):
        names = [dataset.split_list[part][1] for part in ("train", "test")]
    else:
        names = [f"{dataset.__name__}/raw/{name}" for name in _IDX_FILES]
    return [Path(name) for name in names if not (root / name).is_file()]


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
    return Split(_with_channels(images), torch.as_tensor(labels).long())


def _with_channels(images: Tensor) -> Tensor:
    """Return gray images of shape (N, H, W) as (N, 1, H, W), and others as they are."""
    return images.unsqueeze(1) if images.ndim == 3 else images


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
            continue
        try:
            with gzip.open(path) as packed, open(raw / name, "wb") as plain:
                shutil.copyfileobj(packed, plain)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(
                f"{path}: damaged: should be a whole, readable gzip file: {error}"
            ) from error


def _read_image_folder(root: Path) -> tuple[Split, Split | None]:
    if not (root / "train").is_dir():
        return _read_folder(root)[0], None
    train, classes = _read_folder(root / "train")
    if not (root / "test").is_dir():
        return train, None
    test, test_classes = _read_folder(root / "test")
    if test_classes != classes:
        different = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise InputError(
            f"{root}: train and test should have the same class folders; only one of them has "
            f"{different}"
        )
    return train, test


def _read_folder(root: Path) -> tuple[Split, list[str]]:
    """Read every image of the class folders of ``root`` as RGB, and the names of the classes."""
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
            raise InputError(
                f"{path}: is {_size(image)}, but {folder.samples[0][0]} is {_size(images[0])}: "
                "all images should be of one size"
            )
        images.append(image)
    return Split(torch.stack(images), torch.tensor(folder.targets)), folder.classes


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _read_safetensors(path: Path) -> Source:
    if not path.is_file():
        raise InputError(f"data.root: {path} should be a .safetensors file")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    tensors, _ = open_safetensors(path)
    names = set(tensors)
    if names not in ({"images", "labels"}, {"images", "labels", "test_images", "test_labels"}):
        raise InputError(
            f"{path}: should have the tensors images and labels, and test_images and test_labels "
            f"or neither; it has {', '.join(sorted(names)) or 'none'}"
        )
    splits = []
    for prefix in ("", "test_")[: len(names) // 2]:
        images, labels = tensors[f"{prefix}images"], tensors[f"{prefix}labels"]
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(f"{path}: {prefix}labels should be integers, and are {labels.dtype}")
        splits.append(Split(_with_channels(images), labels.long()))
    test = splits[1] if len(splits) > 1 else None
    return Source(splits[0], test, sha256, "file")


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a file, and the metadata of its header.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: should be a whole .safetensors file: {error}") from error
