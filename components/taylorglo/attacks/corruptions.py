"""Corruptions that nobody aims at a network: noise, blur and low contrast, at five strengths.

They are Gaussian noise, Gaussian blur and contrast of Hendrycks & Dietterich 2019 (arXiv
1903.12261), with the strengths of the authors' program. It has weaker ones for small images: those
of CIFAR-10-C, which are taken here for images of up to 64 pixels a side, and those of ImageNet-C
for larger ones. Data without pixels get noise alone, because blur and contrast mean nothing there;
its strengths, in the unit of the data, are a choice of our own.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from taylorglo.attacks.contract import Network, check, evaluating, fooled, looked_at
from taylorglo.attacks.draws import Draws

_Amounts = Mapping[str, Sequence[float]]

_SMALL = 64  # pixels of the longer side
_OF_SMALL: _Amounts = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}
_OF_LARGE: _Amounts = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1.0, 2.0, 3.0, 4.0, 6.0),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
}
_OF_OTHERS: _Amounts = {"noise": (0.1, 0.2, 0.3, 0.4, 0.5)}
_KERNEL_ENDS = 4.0  # deviations from its middle
_MOST_IMAGES = 256  # of a batch
_MOST_NUMBERS = 4_000_000  # of a batch of large images


def corrupted_accuracy(
    model: Network,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    unit: Tensor | None = None,
) -> dict[str, list[float]]:
    """Measure the accuracy on corrupted images, by corruption and strength.

    Args:
        model: returns logits (N, n). It is in evaluation mode meanwhile.
        images: (N, ...), floats in [0, 1], N >= 1; or any floats, with a unit.
        labels: (N,), int64, the true classes.
        seed: decides the noise, which belongs to an image in whatever batch it is.
        unit: as for :func:`~taylorglo.attacks.fgsm`.

    Returns:
        ``{corruption: accuracies}``, by strength from 1 to 5.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    check(images, labels, [], norm="linf", unit=unit)
    size = max(1, min(_MOST_IMAGES, _MOST_NUMBERS // images[0].numel()))
    places = torch.arange(len(labels), device=labels.device)

    def accuracy(name: str, amount: float) -> float:
        wrong = 0
        for batch in torch.split(places, size):
            draws = Draws(seed, batch.cpu())
            changed = corrupted(images[batch], name, amount, draws=draws, unit=unit)
            logits = looked_at(model, changed, labels[batch])
            wrong += int(fooled(logits, labels[batch]).sum())
        return (len(labels) - wrong) / len(labels)

    with evaluating(model):
        return {
            name: [accuracy(name, amount) for amount in amounts]
            for name, amounts in strengths(images, unit).items()
        }


def strengths(images: Tensor, unit: Tensor | None = None) -> Mapping[str, Sequence[float]]:
    """Return the corruptions of such images, each with its five amounts.

    An amount is the deviation of noise, in pixels' range or in the unit; the deviation of a blur,
    in pixels; or the part of the contrast that is left.
    """
    if unit is not None or images.ndim != 4:
        return _OF_OTHERS
    return _OF_SMALL if max(images.shape[2:]) <= _SMALL else _OF_LARGE


def corrupted(
    images: Tensor, name: str, amount: float, *, draws: Draws, unit: Tensor | None = None
) -> Tensor:
    """Return corrupted images (N, ...).

    Args:
        images: (N, ...), as of :func:`corrupted_accuracy`; (N, C, H, W) for blur and contrast.
        name: "noise", "blur" or "contrast".
        amount: as of :func:`strengths`.
        draws: the random numbers of the images.
        unit: of the noise, for data without pixels.
    """
    if name == "blur":
        return _blurred(images, amount)
    if name == "contrast":
        means = images.mean(dim=(2, 3), keepdim=True)
        return means + amount * (images - means)
    noise = amount * draws.normal("noise", tuple(images.shape[1:])).to(images)
    return (images + noise).clamp(0, 1) if unit is None else images + noise * unit


def _blurred(images: Tensor, deviation: float) -> Tensor:
    """Return images after a Gaussian blur, with the pixels at the edges repeated beyond them."""
    reach = int(_KERNEL_ENDS * deviation + 0.5)
    distances = torch.arange(-reach, reach + 1).to(images)
    kernel = torch.exp(-0.5 * (distances / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    channels = images.shape[1]
    rows = functional.conv2d(padded, kernel, groups=channels)
    return functional.conv2d(rows, kernel.transpose(2, 3), groups=channels)
