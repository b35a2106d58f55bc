"""The batches that a training is shown: their order, and what augmentation does to them, from a seed."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from taylorglo.data.augmentation import Augmentation
from taylorglo.data.dataset import Dataset
from taylorglo.settings import SweepSettings

_AUGMENTATION = 1  # a path below the seed of a training


def derived_seed(seed: int, *path: int) -> int:
    """A seed of its own for each path of whole numbers below a seed, in [0, 2^31)."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0]) >> 1


class Batches:
    """An endless iterator over batches of training images and targets, shuffled anew in every epoch.

    Images are float32 in [0, 1], shape (B, C, H, W); targets are class indices (B,), or distributions (B, n) where
    CutMix made them. Everything random comes from generators of its own on the CPU, so that it is the same on every
    device.

    Args:
        dataset: resident on the device to train on.
        settings: batch size, at most the number of training images, and augmentation.
        seed: of the order of the samples and of their augmentation.
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
        """Itself."""
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """The next batch; where an epoch ends, what is too few for one is left out."""
        batch = next(self._epoch, None)
        if batch is None:
            total = len(self._split) - len(self._split) % self._size
            shuffled = torch.randperm(len(self._split), generator=self._order).to(
                self._split.images.device
            )
            self._epoch = iter(torch.split(shuffled[:total], self._size))
            batch = next(self._epoch)
        return self._augment(scaled(self._split.images[batch]), self._split.labels[batch])


def scaled(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float().div_(255)


def stacked(batches: Sequence[Batches], num_classes: int) -> tuple[Tensor, Tensor]:
    """The next batch of each, on a new first axis: images (S, B, C, H, W) and distributions (S, B, n)."""
    images, targets = zip(*(next(each) for each in batches), strict=True)
    soft = [
        t if t.is_floating_point() else functional.one_hot(t, num_classes).float() for t in targets
    ]
    return torch.stack(images), torch.stack(soft)
