"""The problem that an attack works on: images to be misclassified, fewer with each that is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from taylorglo.attacks.ball import Ball
from taylorglo.attacks.contract import Network, check, logits_of
from taylorglo.attacks.draws import Draws


@dataclass(frozen=True)
class Problem:
    """Images to be misclassified within a ball.

    Attributes:
        network: from images to logits; attacks call it in evaluation mode.
        labels: (N,), int64, the true classes.
        ball: what an attack may do to the images, which are in it.
        draws: the random numbers of each image.
        targets: classes to attack towards, (N,), for an attack that has targets.
    """

    network: Network
    labels: Tensor
    ball: Ball
    draws: Draws
    targets: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """The images before the attack, (N, ...)."""
        return self.ball.images

    def take(self, index: Tensor) -> "Problem":
        """Return the problem of some of the images, by their places or by a mask."""
        return replace(
            self,
            labels=self.labels[index],
            ball=self.ball.take(index),
            draws=self.draws.take(index),
            targets=None if self.targets is None else self.targets[index],
        )

    def towards(self, targets: Tensor) -> "Problem":
        """Return the problem with classes to attack towards."""
        return replace(self, targets=targets)


# From logits (N, n) to a value for each image of the problem, (N,).
Objective = Callable[[Tensor, Problem], Tensor]


class Found(NamedTuple):
    """What an attack found for each image: whether it is misclassified (N,), and where (N, ...)."""

    fooled: Tensor
    images: Tensor


class Finds:
    """The images of a problem that an attack has broken so far, and those that are left."""

    def __init__(self, own: Problem) -> None:
        self.left = own
        self._places = torch.arange(len(own), device=own.labels.device)
        self._fooled = torch.zeros(len(own), dtype=torch.bool, device=own.labels.device)
        self._images = own.images.clone()

    @property
    def all(self) -> Found:
        """What was found for all images of the problem."""
        return Found(self._fooled, self._images)

    def note(self, points: Tensor, broken: Tensor) -> Tensor | None:
        """Note the points that are misclassified, and leave their images out from now on.

        Args:
            points: of the images that were left.
            broken: whether each of them is misclassified.

        Returns:
            The places of those images that were left and still are; None if they all are.
        """
        if not bool(broken.any()):
            return None
        self._fooled[self._places[broken]] = True
        self._images[self._places[broken]] = points[broken]
        # By places, which takes a fifth of the time that a mask takes.
        kept = (~broken).nonzero().squeeze(1)
        self._places = self._places[kept]
        self.left = self.left.take(kept)
        return kept

    def keep(self, points: Tensor) -> None:
        """Note points of the images that are left, though they are classified correctly."""
        self._images[self._places] = points


class Ascent(NamedTuple):
    """An evaluation of an objective: logits (N, n), value (N,) and gradient (N, ...)."""

    logits: Tensor
    value: Tensor
    gradient: Tensor


def problem(
    network: Network,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    norm: str,
    seed: int,
    unit: Tensor | None,
) -> Problem:
    """Return the problem of an attack on its own, after a check of all its parts.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    check(images, labels, [epsilon], norm=norm, unit=unit)
    ball = Ball.around(images, epsilon, norm, unit)
    return Problem(network, labels, ball, Draws(seed, len(images)))


def ascent(own: Problem, points: Tensor, objective: Objective) -> Ascent:
    """Evaluate an objective and its gradient at points: one pass forward and one back.

    Logits without a graph, as after a step that has no derivative, have the gradient 0.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = logits_of(own.network, points, own.labels)
        values = objective(logits, own)
        gradient = torch.zeros_like(points)
        if values.requires_grad:
            found = torch.autograd.grad(values.sum(), points, allow_unused=True)[0]
            gradient = gradient if found is None else found
    return Ascent(logits.detach(), values.detach(), gradient)
