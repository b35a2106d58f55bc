"""Sources of images: each is read into uint8 tensors by the library that knows its format.

scikit-learn and torchvision take seconds to import, and a task needs one of them at most, so that
each reader imports its library itself.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taylorglo.data.folders import read_image_folder
from taylorglo.data.published import read_published
from taylorglo.data.splits import Source, Split, with_channels
from taylorglo.errors import InputError, is_disk_full, one_line
from taylorglo.reading import check_regular
from taylorglo.settings import DataSettings


def read_source(settings: DataSettings, root: Path) -> Source:
    """Read the data set ``settings.name`` from a file or a folder.

    Raises:
        InputError: the images are missing, damaged, or not of the expected kind.
        ServiceError: a download still fails after a few tries.
    """
    if settings.name == "digits":
        return Source.of_tensors(_read_digits())
    try:
        return _read_root(settings, root)
    except OSError as error:
        if is_disk_full(str(error)):  # of the temporary files, for which the data are not to blame
            raise
        raise InputError(
            f"data.root: {error.filename or root} cannot be read: {error.strerror or error}"
        ) from error


def _read_root(settings: DataSettings, root: Path) -> Source:
    if settings.name == "safetensors":
        return _read_safetensors(root)
    if not root.is_dir() and not settings.download:
        holding = "has a folder of images per class"
        raise InputError(
            f"data.root: {root} should be a folder that "
            f"{holding if settings.name == 'image-folder' else f'holds {settings.name}'}"
        )
    if settings.name == "image-folder":
        return read_image_folder(root)
    train, test = read_published(settings.name, root, settings.download)
    return Source.of_tensors(train, test=test)


def _read_digits() -> Split:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # The gray levels are 0..16. They become 0..255, rounded to the nearest.
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)
    return Split(images.unsqueeze(1), torch.from_numpy(bunch.target).long())


def _read_safetensors(path: Path) -> Source:
    if not path.is_file():
        raise InputError(f"data.root: {path} should be a .safetensors file")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tensors, _ = open_safetensors(path)
    prefixes = [""] + [
        p for p in ("validation_", "test_") if not tensors.keys().isdisjoint(_pair(p))
    ]
    if tensors.keys() != {name for prefix in prefixes for name in _pair(prefix)}:
        raise InputError(
            f"{path}: should have the tensors images and labels, and if there are such splits "
            "validation_images and validation_labels, test_images and test_labels; "
            f"it has {', '.join(sorted(tensors)) or 'none'}"
        )
    splits = {}
    for prefix in prefixes:
        images, labels = (tensors[name] for name in _pair(prefix))
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            one_hot = "; use labels.argmax(dim=1)" if labels.ndim == 2 else ""
            raise InputError(
                f"{path}: {prefix}labels should be integers, and are {labels.dtype}{one_hot}"
            )
        splits[prefix] = Split(with_channels(images), labels.long())
    return Source(
        splits[""], splits.get("validation_"), splits.get("test_"), sha256, "file", remarks={}
    )


def _pair(prefix: str) -> tuple[str, str]:
    return f"{prefix}images", f"{prefix}labels"


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
