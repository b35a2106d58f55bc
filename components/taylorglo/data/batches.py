"""The batches of a training: their order and their augmentation, both from a seed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from taylorglo.data.augmentation import Augmentation
from taylorglo.data.dataset import Dataset
from taylorglo.data.seeds import derived_seed
from taylorglo.settings import SweepSettings

_AUGMENTATION = 1  # a path below the seed of a training


class Batches:
    """An endless iterator over batches of training images and targets.

    The samples are shuffled in every epoch. They are float32, shape (B, C, H, W) or (B, F). Images
    of 8 bits are scaled to [0, 1]. Targets are class indices (B,), or distributions (B, n) if
    CutMix mixed them. Everything random comes from separate generators on the CPU, so that it is
    the same on every device.

    Args:
        dataset: resident on the device to train on.
        settings: they have the batch size, at most the number of training images, and the
            augmentation.
        seed: decides the order of the samples and their augmentation.
    """

    def __init__(self, dataset: Dataset, settings: SweepSettings, seed: int) -> None:
        self._split = dataset.train
        self._size = settings.training.batch_size
        self._order = torch.Generator().manual_seed(seed)
        draws = derived_seed(seed, _AUGMENTATION)
        self._augment = Augmentation(
            settings.augmentation, dataset.mean, dataset.num_classes, draws
        )
        self._epoch: Iterator[Tensor] = iter(())

    def __iter__(self) -> "Batches":
        """Return the iterator itself."""
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next batch; images at the end of an epoch that fill no batch are left out."""
        batch = next(self._epoch, None)
        if batch is None:
            order = torch.randperm(len(self._split), generator=self._order)
            total = len(self._split) - len(self._split) % self._size
            on_device = order.to(self._split.images.device)
            self._epoch = iter(torch.split(on_device[:total], self._size))
            batch = next(self._epoch)
        return self._augment(scaled(self._split.images[batch]), self._split.labels[batch])


def scaled(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1], and other samples as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def laid_out(images: Tensor) -> Tensor:
    """Return a batch in the layout of memory that networks take: images as channels_last."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def stacked(batches: Sequence[Batches], num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the next batch of S trainings at once, on a new first axis.

    Returns:
        Samples (S, B, ...) and distributions (S, B, n).
    """
    images, targets = zip(*map(next, batches), strict=True)
    soft = [
        t if t.is_floating_point() else functional.one_hot(t, num_classes).float() for t in targets
    ]
    return torch.stack(images), torch.stack(soft)
