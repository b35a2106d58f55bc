"""What an attack may do to an image: the ball of radius epsilon around it, in l-infinity or l2.

Without a unit the images have pixels, and the ball ends at black and white, 0 and 1. With a unit
there are no such bounds, and a perturbation is measured after a division by the unit: in l-infinity
the largest change of a feature in its unit, in l2 the root of the sum of squares of these changes.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NORMS = ("linf", "l2")
TINY = 1e-12  # keeps a division by a norm from being one by 0


def over_samples(values: Tensor, like: Tensor) -> Tensor:
    """Return values (N,) in a shape that broadcasts over the samples of another tensor."""
    return values.view(-1, *[1] * (like.ndim - 1))


def euclidean(values: Tensor) -> Tensor:
    """Return the l2 norm of each sample, (N,)."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms


@dataclass(frozen=True)
class Ball:
    """The balls of a batch of images.

    Attributes:
        images: the centres, (N, ...).
        epsilon: the radius of each, (N,).
        norm: "linf" or "l2".
        unit: of epsilon for data without pixels; it broadcasts to an image.
    """

    images: Tensor
    epsilon: Tensor
    norm: str
    unit: Tensor | None

    @classmethod
    def around(cls, images: Tensor, epsilon: float, norm: str, unit: Tensor | None) -> "Ball":
        """Return balls that all have the same radius."""
        return cls(images, images.new_full((len(images),), epsilon), norm, unit)

    def take(self, index: Tensor) -> "Ball":
        """Return the balls of some images, by their places or by a mask."""
        return Ball(self.images[index], self.epsilon[index], self.norm, self.unit)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """The least and the largest values of the balls in l-infinity, each (N, ...)."""
        radius = self.scaled(over_samples(self.epsilon, self.images))
        return self.within_range(self.images - radius), self.within_range(self.images + radius)

    def project(self, points: Tensor) -> Tensor:
        """Return points of the ball near others: the nearest ones, but for l2 with pixels.

        There the length is cut first and the pixels then, as all published attacks do it.
        """
        if self.norm == "linf":
            return torch.clamp(points, *self._ends)
        change = points - self.images
        length = euclidean(self.unscaled(change))
        factor = (self.epsilon / length.clamp(min=TINY)).clamp(max=1)
        return self.within_range(self.images + over_samples(factor, change) * change)

    def within_range(self, points: Tensor) -> Tensor:
        """Return points with pixels cut to [0, 1]."""
        return points if self.unit is not None else points.clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the steps of length 1 that raise a function of this gradient the most."""
        if self.norm == "linf":
            return self.scaled(gradient.sign())
        # A gradient that is not a number leads nowhere, as its sign does.
        scaled = self.scaled(gradient.nan_to_num(0, 0, 0))
        # Divided twice, because the squares of tiny gradients vanish.
        scaled = scaled / over_samples(scaled.flatten(1).abs().amax(dim=1) + 1e-38, scaled)
        return self.scaled(scaled / over_samples(euclidean(scaled) + TINY, scaled))

    def size(self, points: Tensor) -> Tensor:
        """Return the norm of the perturbation of each image, (N,)."""
        change = self.unscaled(points - self.images).flatten(1)
        return change.abs().amax(dim=1) if self.norm == "linf" else euclidean(change)

    def scaled(self, change: Tensor) -> Tensor:
        """Return a change that is given in units in the values of the images."""
        return change if self.unit is None else change * self.unit

    def unscaled(self, change: Tensor) -> Tensor:
        """Return a change of the values of the images in units."""
        return change if self.unit is None else change / self.unit
