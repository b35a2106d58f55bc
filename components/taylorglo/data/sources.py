"""Sources of samples: each is read into tensors by the library that knows its format.

scikit-learn, torchvision and pyarrow take long to import, and a task needs one of them at most, so
that each reader imports its library itself.
"""

from pathlib import Path

import torch

from taylorglo.data.folders import read_image_folder
from taylorglo.data.hugging_face import read_hugging_face
from taylorglo.data.named_tensors import read_numpy, read_safetensors
from taylorglo.data.published import read_published
from taylorglo.data.splits import Source, Split
from taylorglo.data.tables import read_table
from taylorglo.errors import InputError, is_disk_full
from taylorglo.settings import DataSettings

_HOLDING = {
    "image-folder": "has a folder of images per class",
    "hugging-face": "save_to_disk of Hugging Face's datasets wrote",
}


def read_source(settings: DataSettings, root: Path) -> Source:
    """Read the data set ``settings.name`` from a file or a folder.

    Raises:
        InputError: the data are missing, damaged, or not of the expected kind.
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
    match settings.name:
        case "safetensors":
            return read_safetensors(root)
        case "numpy":
            return read_numpy(root)
        case "table":
            return read_table(root, settings.label)
    if not root.is_dir() and not settings.download:
        holding = _HOLDING.get(settings.name, f"holds {settings.name}")
        raise InputError(f"data.root: {root} should be a folder that {holding}")
    match settings.name:
        case "image-folder":
            return read_image_folder(root, settings)
        case "hugging-face":
            return read_hugging_face(root, settings)
    return read_published(settings.name, root, settings.download)


def _read_digits() -> Split:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # The gray levels are 0..16. They become 0..255, rounded to the nearest.
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)
    return Split(images.unsqueeze(1), torch.from_numpy(bunch.target).long())
