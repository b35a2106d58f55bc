"""Fashion-MNIST for the benchmarks (Debian's package dataset-fashion-mnist)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.splits import digest_of
from taylorglo.settings import DataSettings

ROOT = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(
    train: int | None = None,
    validation: int | None = None,
    change: Callable[[Tensor], Tensor] = lambda images: images,
) -> Dataset:
    """Return a part of Fashion-MNIST, without its test split.

    Args:
        train: number of training images; all if it is not given.
        validation: number of validation images; all if it is not given.
        change: of images (N, 1, 28, 28), uint8, to images (N, C, H, W), uint8.
    """
    settings = DataSettings(name="fashion-mnist", root=str(ROOT))
    whole = datasets.without_test(datasets.load(settings, 0))

    def part(split: Split, number: int | None) -> Split:
        return Split(change(split.images[:number]), split.labels[:number])

    shown, held_out = part(whole.train, train), part(whole.validation, validation)
    fingerprint = digest_of(train=shown, validation=held_out)
    channels = shown.images.shape[1]
    return replace(
        whole,
        train=shown,
        validation=held_out,
        mean=whole.mean * channels,
        std=whole.std * channels,
        provenance={**whole.provenance, "fingerprint": fingerprint},
    )
