"""Random changes of training images, in batches on their device: crop, flip, Cutout, CutMix."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from taylorglo.settings import AugmentationSettings


class Augmentation:
    """The changes of each batch of a training, in this order; each has to be configured.

    - crop: ``crop_padding`` black pixels are put around each image, and a window of the image's
      size is cut out at random (He et al. 2015, arXiv 1512.03385, section 4.2).
    - flip: every image is mirrored left to right with probability 1/2.
    - Cutout: a square is blanked. Its centre is uniform over the pixels, so that it may hang over
      the edge (DeVries & Taylor 2017, arXiv 1708.04552, section 3.2).
    - CutMix: a box of each image is replaced by the same box of another image of the batch, and the
      targets are mixed (Yun et al. 2019, arXiv 1905.04899, section 3 and algorithm A1). The batch
      has one box and one permutation. The box's share of an image is drawn from Beta(1, 1), and its
      centre is uniform. The weights of the targets are the shares of the pixels, after the box was
      clipped to the image.

    All draws come from a separate generator on the CPU, so that a seed gives the same batches on
    every device. Nothing is read back from the device.
    """

    def __init__(
        self, settings: AugmentationSettings, fill: Sequence[float], num_classes: int, seed: int
    ) -> None:
        """Prepare the augmentation of one training.

        Args:
            settings: the changes.
            fill: value of each channel in a square that Cutout blanks, in [0, 1]. The mean of the
                training images is 0 after normalisation.
            num_classes: n, for the soft targets of CutMix.
            seed: decides all draws, in [0, 2^63).
        """
        self._settings = settings
        self._fill = torch.tensor(fill, dtype=torch.float32).view(-1, 1, 1)
        self._num_classes = num_classes
        self._draws = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment the next batch.

        Args:
            images: (N, C, H, W), floats in [0, 1], in any memory format. They are not changed.
            labels: class indices, (N,).

        Returns:
            The images, of the same shape and memory format, and the targets: the labels, or soft
            targets in float32, (N, num_classes), if CutMix was applied to this batch.
        """
        if self._settings.crop_padding:
            images = self._crop(images)
        if self._settings.flip:
            images = self._flip(images)
        if self._settings.cutout:
            images = self._cutout(images)
        chance = self._settings.cutmix
        if chance and torch.rand((), generator=self._draws).item() < chance:
            return self._cutmix(images, labels)
        return images, labels

    def _crop(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        padding = self._settings.crop_padding
        corners = _on(images.device, self._integers(2 * padding + 1, (2, count)))
        # A view of all windows, (N, C, 2 padding + 1, 2 padding + 1, H, W). Each image takes one.
        windows = functional.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(count, device=images.device), :, corners[0], corners[1]]

    def _flip(self, images: Tensor) -> Tensor:
        flipped = _on(images.device, self._integers(2, (len(images), 1, 1, 1)).bool())
        return torch.where(flipped, images.flip(3), images)

    def _cutout(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        side = self._settings.cutout
        within = []
        for size in (height, width):
            begin = self._integers(size, (count, 1)) - side // 2
            position = torch.arange(size)
            within.append((position >= begin) & (position < begin + side))
        hole = _on(images.device, within[0][:, None, :, None] & within[1][:, None, None, :])
        # The fill stays on the device, so that it is copied once.
        self._fill = self._fill.to(images)
        return torch.where(hole, self._fill, images)

    def _cutmix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        count, _, height, width = images.shape
        # Beta(1, 1) is uniform.
        share = torch.rand((), generator=self._draws, dtype=torch.float64).item()
        rows, columns = (self._interval(size, share) for size in (height, width))
        partners = _on(images.device, torch.randperm(count, generator=self._draws))
        mixed = images.clone()
        mixed[:, :, rows, columns] = images[partners, :, rows, columns]
        pasted = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        targets = functional.one_hot(labels, self._num_classes).float()
        return mixed, (1 - pasted) * targets + pasted * targets[partners]

    def _interval(self, size: int, share: float) -> slice:
        """Draw one side of a box that has this share of the area, and clip it to the image."""
        half = int(size * share**0.5) // 2
        centre = int(self._integers(size, ()).item())
        return slice(max(centre - half, 0), min(centre + half, size))

    def _integers(self, below: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(below, shape, generator=self._draws)


def _on(device: torch.device, values: Tensor) -> Tensor:
    """Copy values of the CPU to a device."""
    # A copy to a GPU waits for the GPU unless it is from pinned memory.
    source = values.pin_memory() if device.type == "cuda" else values
    return source.to(device, non_blocking=True)
