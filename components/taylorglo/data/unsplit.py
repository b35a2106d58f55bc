"""An image folder of which nothing is trained on: all of its images are test images."""

from pathlib import Path

import torch

from taylorglo.data.checks import check_source
from taylorglo.data.dataset import Dataset
from taylorglo.data.sources import read_source
from taylorglo.data.splits import Source, Split, digest_of
from taylorglo.settings import DataSettings


def read_unsplit(root: Path) -> Dataset:
    """Return the images of a folder as test images; if it has a test split, only those of it.

    Nothing is known of what a network was trained on, so there are no means and deviations.

    Args:
        root: a folder of class folders, or of splits with class folders.

    Raises:
        InputError: it is no such folder, or its images are not of one size.
    """
    settings = DataSettings(name="image-folder", root=str(root))
    source = read_source(settings, root)
    classes = check_source(source, str(root))
    test = source.test or _joined(source)
    provenance = {
        "source": str(root),
        "fingerprint": digest_of(train=test, validation=test),
        "test_fingerprint": digest_of(test=test),
    }
    named = tuple(source.classes)
    return Dataset(settings.name, classes, test, test, test, (), (), provenance, classes=named)


def _joined(source: Source) -> Split:
    """Return the training and the validation split of a source as one."""
    if source.validation is None:
        return source.train
    parts = (source.train, source.validation)
    return Split(
        torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    )
