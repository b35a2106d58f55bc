"""The sizes of perturbations that data sets are attacked with if nobody chooses others.

The largest ones are usual in publications: 0.3 for MNIST (Madry et al. 2018), 8/255 or 0.5 for
CIFAR, and 4/255 or 3 for larger photographs (RobustBench, arXiv 2010.09670); 0.1 for Fashion-MNIST
(Croce et al. 2019, arXiv 1810.07481). Where nothing is usual, they are a first guess.
"""

from collections.abc import Mapping

_Radii = tuple[float, ...]

_EIGHT = (2 / 255, 4 / 255, 8 / 255)

_PUBLISHED: Mapping[str, Mapping[str, _Radii]] = {
    "digits": {"linf": (0.02, 0.05, 0.1), "l2": (0.2, 0.5, 1.0)},
    "mnist": {"linf": (0.1, 0.2, 0.3), "l2": (0.5, 1.0, 2.0)},
    "fashion-mnist": {"linf": (0.02, 0.05, 0.1), "l2": (0.5, 1.0, 1.5)},
    "cifar10": {"linf": _EIGHT, "l2": (0.125, 0.25, 0.5)},
    "cifar100": {"linf": _EIGHT, "l2": (0.125, 0.25, 0.5)},
    "svhn": {"linf": _EIGHT, "l2": (0.125, 0.25, 0.5)},
}
_PIXELS: Mapping[str, _Radii] = {"linf": (1 / 255, 2 / 255, 4 / 255), "l2": (0.5, 1.0, 3.0)}
_NO_PIXELS: Mapping[str, _Radii] = {"linf": (0.02, 0.05, 0.1), "l2": (0.1, 0.25, 0.5)}


def usual_radii(data: str, norm: str, *, pixels: bool) -> list[float]:
    """Return the epsilons to attack a data set with, in ascending order, 0 before them.

    Args:
        data: name of the data set, as in the settings.
        norm: "linf" or "l2".
        pixels: whether its values are pixels; others are measured in a unit.
    """
    others = _PIXELS if pixels else _NO_PIXELS
    return [0.0, *_PUBLISHED.get(data, others)[norm]]
