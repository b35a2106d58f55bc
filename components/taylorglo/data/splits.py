"""Splits of samples, and the samples of a source before they are split further."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their labels.

    Attributes:
        images: images (N, C, H, W), uint8 or float32; or features (N, F), float32.
        labels: int64 of shape (N,) in 0..n-1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.labels)

    @property
    def noun(self) -> str:
        """What the samples are, for a person: ``images`` or ``samples``."""
        return "samples" if self.images.ndim == 2 else "images"

    def to(self, device: torch.device | str) -> "Split":
        """Return the same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: of the column.
        categories: the texts that its numbers stand for, 0 the first; None for a column of numbers.
    """

    name: str
    categories: tuple[str, ...] | None


class Source(NamedTuple):
    """The samples of a source.

    Attributes:
        train: training samples.
        validation: validation samples, or None if the source has no validation split.
        test: test samples, or None if the source has no test split.
        sha256: checksum of the source.
        checksum_of: ``file`` or ``tensors``.
        remarks: what a person should know of the reading, such as conversions, by a short name.
        classes: the names of the classes, in the order of the labels; empty if they have none.
        columns: of a table, whose samples are float64 (N, number of columns); empty for images and
            for features.
    """

    train: Split
    validation: Split | None
    test: Split | None
    sha256: str
    checksum_of: str
    remarks: Mapping[str, str]
    classes: Sequence[str] = ()
    columns: Sequence[Column] = ()

    @classmethod
    def of_tensors(
        cls,
        train: Split,
        validation: Split | None = None,
        test: Split | None = None,
        *,
        remarks: Mapping[str, str] | None = None,
        classes: Sequence[str] = (),
        columns: Sequence[Column] = (),
    ) -> "Source":
        """Return a source whose checksum is that of its tensors."""
        sha256 = digest_of(train=train, validation=validation, test=test)
        return cls(train, validation, test, sha256, "tensors", remarks or {}, classes, columns)


def with_channels(images: Tensor) -> Tensor:
    """Return gray images of shape (N, H, W) as (N, 1, H, W), and others as they are."""
    return images.unsqueeze(1) if images.ndim == 3 else images


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
