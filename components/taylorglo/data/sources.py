"""Where images come from: each source is read into uint8 tensors by the library that knows its format."""

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
from torch import Tensor

from taylorglo.errors import InputError, ServiceError, described
from taylorglo.retries import retry
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
# What torchvision and the libraries under it raise for files that are damaged or not what they are
# named.
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
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


class Source(NamedTuple):
    """What was read: training images, test images if the source has some, and the checksum of it."""

    train: Split
    test: Split | None
    sha256: str
    checksum_of: str


def tensors_of(**splits: Split | None) -> dict[str, Tensor]:
    """The tensors of splits as they are named in a file."""
    tensors: dict[str, Tensor] = {}
    for name, split in splits.items():
        if split is not None:
            tensors |= {
                f"{name}_images": split.images.contiguous(),
                f"{name}_labels": split.labels.contiguous(),
            }
    return tensors


def digest_of(**splits: Split | None) -> str:
    """The sha256 over the tensors of splits, with their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_of(**splits).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().numpy().data)
    return digest.hexdigest()


def read_source(settings: DataSettings, root: Path) -> Source:
    """Read the images that ``settings.name`` stands for from ``root``.

    Raises:
        InputError: when they are missing, damaged or not what was expected.
        ServiceError: when a download still fails after a few tries.
    """
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
    return Source(train, test, digest_of(train=train, test=test), "tensors")


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
    parts = [
        {"split": part} if name == "svhn" else {"train": part == "train"}
        for part in ("train", "test")
    ]
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = root
        if issubclass(dataset, datasets.MNIST) and any(
            _idx_file(root, file) for file in _IDX_FILES
        ):
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
            raise InputError(
                f"data.root: {name} in {root} is damaged: {described(error)}"
            ) from error
    return train, test


def _missing(dataset: Any, root: Path) -> list[Path]:
    """The files that torchvision will look for under ``root`` and that are not there."""
    if hasattr(dataset, "base_folder"):
        names = [
            dataset.base_folder + "/" + name for name, _ in dataset.train_list + dataset.test_list
        ]
        names.append(f"{dataset.base_folder}/{dataset.meta['filename']}")
    elif hasattr(dataset, "split_list"):
        names = [dataset.split_list[part][1] for part in ("train", "test")]
    else:
        names = [f"{dataset.__name__}/raw/{name}" for name in _IDX_FILES]
    return [Path(name) for name in names if not (root / name).is_file()]


def _download(dataset: Any, name: str, root: Path, parts: list[dict[str, Any]]) -> None:
    """Let torchvision download what is missing, a few times if the download fails."""

    def download() -> None:
        for part in parts:
            dataset(root, download=True, **part)

    def may_succeed_later(error: Exception) -> bool:
        return isinstance(error, _UNREADABLE) and bool(_missing(dataset, root))

    try:
        retry(download, range(1, DOWNLOAD_ATTEMPTS), retryable=may_succeed_later)
    except _UNREADABLE as error:
        # If every file is there, whoever reads them says what is wrong with them.
        if _missing(dataset, root):
            raise ServiceError(
                f"{name}: download to {root} failed {DOWNLOAD_ATTEMPTS} times: {described(error)}"
            ) from error


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
            f"{root}: train and test should have the same class folders; only one of them has {different}"
        )
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
            f"{path}: should have the tensors images and labels, and test_images and test_labels or neither; "
            f"it has {', '.join(sorted(names)) or 'none'}"
        )
    splits = []
    for prefix in ("", "test_")[: len(names) // 2]:
        images, labels = tensors[f"{prefix}images"], tensors[f"{prefix}labels"]
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(f"{path}: {prefix}labels should be integers, and are {labels.dtype}")
        splits.append(Split(images.unsqueeze(1) if images.ndim == 3 else images, labels.long()))
    return Source(splits[0], splits[1] if len(splits) > 1 else None, sha256, "file")


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and the metadata of its header.

    Raises:
        InputError: when it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: should be a whole .safetensors file: {error}") from error
