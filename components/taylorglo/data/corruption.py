"""Flawed training data on purpose: wrong labels, and classes of very different sizes.

All functions are pure: they return new splits, and the same seed gives the same tensors. Images are
drawn in an order that depends on the seed and on the number of images alone. So the labels that a
low rate replaces are replaced by a higher rate, too (by the same other labels), and a larger
imbalance keeps a part of the images that a smaller one keeps. Studies over several rates are
therefore comparable.
"""

import torch
from torch import Tensor

from taylorglo.data.splits import Split
from taylorglo.errors import InputError


def check_noise(rate: float, kind: str, num_classes: int) -> None:
    """Refuse noise that a number of classes rules out.

    At the rate (n-1)/n, symmetric noise makes a right label as rare as each wrong one. (For
    pair-flip noise this rate is 1/2 whatever the data, so that the settings have this limit.)

    Args:
        rate: part of the labels that is replaced, in [0, 1).
        kind: ``symmetric`` or ``pair-flip``.
        num_classes: n, at least 2.

    Raises:
        InputError: symmetric noise leaves no majority of right labels, or pair-flip noise is asked
            for with 2 classes, for which it is symmetric noise.
    """
    if kind == "pair-flip" and rate > 0 and num_classes == 2:
        raise InputError(
            "data.label_noise_kind: pair-flip noise needs at least 3 classes; with 2 it would be "
            "symmetric noise: set symmetric"
        )
    if kind == "symmetric" and rate >= (num_classes - 1) / num_classes:
        raise InputError(
            f"data.label_noise: symmetric noise for {num_classes} classes should be below "
            f"{num_classes - 1}/{num_classes}, because right labels would be no majority "
            f"(got {rate:g})"
        )


def with_noise(split: Split, rate: float, kind: str, num_classes: int, seed: int) -> Split:
    """Replace a part of the labels of a split.

    ``symmetric``: of N images, exactly round(rate N), drawn without replacement, get another class,
    which is drawn uniformly among the other n-1 (van Rooyen et al., arXiv 1505.07634).
    ``pair-flip``: of the n_c images of each class c, exactly round(rate n_c) get the class
    c+1 mod n (Han et al., arXiv 1804.06872).

    Args:
        split: N images with their labels.
        rate: part of the labels that is replaced, in [0, 1).
        kind: ``symmetric`` or ``pair-flip``.
        num_classes: n, at least 2.
        seed: decides which labels are replaced, and by which.

    Returns:
        A split with the same images, in the same order, and new labels.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split), generator=generator)
    if kind == "pair-flip":
        sizes = torch.bincount(split.labels, minlength=num_classes).tolist()
        chosen = _first_of_classes(order, split.labels, [round(rate * size) for size in sizes])
        steps = torch.ones_like(chosen)
    else:
        chosen = order[: round(rate * len(split))]
        # One number is drawn for each image, so that the rate does not decide what an image gets.
        steps = torch.randint(1, num_classes, (len(split),), generator=generator)[chosen]
    labels = split.labels.clone()
    labels[chosen] = (labels[chosen] + steps) % num_classes
    return Split(split.images, labels)


def long_tail(size: int, imbalance: float, num_classes: int) -> list[int]:
    """Return the numbers of images of long-tailed classes.

    Class c of n has round(size imbalance^(-c/(n-1))) images (Cui et al. 2019, arXiv 1901.05555,
    with the imbalance as the size of the largest class divided by that of the smallest).

    Args:
        size: number of images of class 0, the largest one.
        imbalance: at least 1.
        num_classes: n, at least 2.
    """
    last = num_classes - 1
    return [round(size * imbalance ** (-index / last)) for index in range(num_classes)]


def long_tailed(split: Split, imbalance: float, num_classes: int, seed: int) -> Split:
    """Leave out images, so that the sizes of the classes are those of :func:`long_tail`.

    Class 0 gets the largest size that all classes could have: that of the smallest class of the
    split. The ratio of the largest class to the smallest is then the imbalance, up to rounding,
    whatever the sizes were before; of balanced classes, class 0 keeps all its images.

    Args:
        split: images with their labels.
        imbalance: at least 1.
        num_classes: n, at least 2.
        seed: decides which images of a class are kept.

    Returns:
        A split with the kept images in their order; classes of it may be empty.
    """
    smallest = int(torch.bincount(split.labels, minlength=num_classes).min())
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    sizes = long_tail(smallest, imbalance, num_classes)
    kept = _first_of_classes(order, split.labels, sizes).sort().values
    return Split(split.images[kept], split.labels[kept])


def _first_of_classes(order: Tensor, labels: Tensor, sizes: list[int]) -> Tensor:
    """Return the indices of the first images of each class, in a given order of all images."""
    ordered = labels[order]
    return torch.cat([order[ordered == index][:size] for index, size in enumerate(sizes)])
