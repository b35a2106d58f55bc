"""A suite of attacks, one after another, on the images that are left, and what they leave.

The suite ``standard`` is that of AutoAttack (Croce & Hein 2020, arXiv 2003.01690): APGD on
cross-entropy, APGD on the targeted DLR, targeted FAB and Square, after FGSM and PGD, which break
most images for less.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from taylorglo.attacks import auto_pgd, boundary, gradient, squares
from taylorglo.attacks.ball import Ball
from taylorglo.attacks.contract import (
    Network,
    check,
    check_choice,
    check_counts,
    evaluating,
    fooled,
    looked_at,
    named,
)
from taylorglo.attacks.draws import Draws
from taylorglo.attacks.problem import Found, Problem

SUITES = {
    "quick": ("fgsm", "pgd-ce", "pgd-dlr"),
    "standard": ("fgsm", "pgd-ce", "pgd-dlr", "apgd-ce", "apgd-t", "fab-t", "square"),
}
WORST = "worst"

_MOST_IMAGES = 256  # of a batch: larger ones are not faster on a CPU
_MOST_NUMBERS = 4_000_000  # of a batch of large images

# A start or a target of an attack: from a problem and the logits of its images to what it finds.
_Part = Callable[[Problem, Tensor], Found]


@dataclass(frozen=True)
class Strength:
    """How hard a suite attacks.

    Attributes:
        suite: the name of the suite, "quick" or "standard".
        norm: "linf" or "l2".
        pgd_steps: ``steps`` of :func:`~taylorglo.attacks.pgd`.
        pgd_restarts: ``restarts`` of :func:`~taylorglo.attacks.pgd`.
        batch_size: number of images attacked at once; None: 256, and fewer if they are large. It
            is halved if a GPU's memory is full.
        seed: decides the random numbers.
        apgd_steps: ``steps`` of :func:`~taylorglo.attacks.apgd`.
        fab_steps: ``steps`` of :func:`~taylorglo.attacks.fab`.
        queries: ``queries`` of :func:`~taylorglo.attacks.square`.
    """

    suite: str = "quick"
    norm: str = "linf"
    pgd_steps: int = 20
    pgd_restarts: int = 2
    batch_size: int | None = None
    seed: int = 0
    apgd_steps: int = 100
    fab_steps: int = 100
    queries: int = squares.QUERIES


@dataclass(frozen=True)
class Withstood:
    """What a suite of attacks left.

    Attributes:
        accuracies: ``{attack: {epsilon: accuracy}}``, as of :func:`robust_accuracy`.
        distances: by image, the norm of the smallest perturbation that was found to break it, (N,):
            0 if it is misclassified without an attack, infinite if none was found.
        by: by image, the attack that found it; empty if there is none.
        predicted: the class that the network names without an attack, (N,); -1 if a logit is NaN.
        nearest: by image, the point with that perturbation, (N, ...); the image itself if it is
            misclassified without an attack or no perturbation was found.
    """

    accuracies: dict[str, dict[float, float]]
    distances: Tensor
    by: list[str]
    predicted: Tensor
    nearest: Tensor


def robust_accuracy(
    model: Network,
    images: Tensor,
    labels: Tensor,
    *,
    epsilons: Sequence[float],
    suite: str = "quick",
    norm: str = "linf",
    pgd_steps: int = 20,
    pgd_restarts: int = 2,
    batch_size: int | None = None,
    seed: int = 0,
    unit: Tensor | None = None,
) -> dict[str, dict[float, float]]:
    """Measure the accuracy that withstands a suite of attacks.

    The accuracy is the fraction of all images that are classified correctly both clean and
    attacked. The attacks take turns, and each gets the images that are left: those that are correct
    when clean, and that none before it broke, at this epsilon or at a smaller one. The larger ball
    contains the smaller, so no curve rises.

    Args:
        model: returns logits (N, n). It is in evaluation mode during the attacks.
        images: (N, ...), floats in [0, 1], N >= 1; or any floats, with a unit.
        labels: (N,), int64, the true classes.
        epsilons: radii of the balls, in l-infinity in [0, 1]; 0 is added if it is missing.
        suite: "quick" is FGSM, PGD on cross-entropy and PGD on DLR. "standard" has, after these,
            the attacks of AutoAttack: APGD on cross-entropy, APGD on the targeted DLR, targeted FAB
            and Square.
        norm: "linf" or "l2".
        pgd_steps: ``steps`` of :func:`~taylorglo.attacks.pgd`.
        pgd_restarts: ``restarts`` of :func:`~taylorglo.attacks.pgd`.
        batch_size: number of images attacked at once; None: what suits their size.
        seed: decides the random numbers, which belong to an image in whatever batch it is.
        unit: as for :func:`~taylorglo.attacks.fgsm`.

    Returns:
        ``{attack: {epsilon: accuracy}}``, by ascending epsilon: what is left after the attack and
        those before it in the suite. "worst" is what is left after all. At 0 it is the clean
        accuracy.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    strength = Strength(suite, norm, pgd_steps, pgd_restarts, batch_size, seed)
    return withstood(model, images, labels, epsilons, strength=strength, unit=unit).accuracies


def withstood(
    model: Network,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    *,
    strength: Strength,
    unit: Tensor | None = None,
) -> Withstood:
    """Attack images by a suite; return what is left, by attack and by image.

    The arguments are those of :func:`robust_accuracy`.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    radii = sorted({0.0, *epsilons})
    check(images, labels, radii, norm=strength.norm, unit=unit)
    check_choice("suite", strength.suite, list(SUITES))
    check_counts(pgd_steps=strength.pgd_steps, pgd_restarts=strength.pgd_restarts)
    if strength.batch_size is not None:
        check_counts(batch_size=strength.batch_size)
    names = SUITES[strength.suite]
    with evaluating(model):
        campaign = _Campaign(model, images, labels, strength, unit)
        accuracies: dict[str, dict[float, float]] = {name: {} for name in (*names, WORST)}
        for epsilon in radii:
            for name in names:
                if epsilon > 0:
                    campaign.attack(name, epsilon)
                accuracies[name][epsilon] = campaign.accuracy(name, epsilon)
            accuracies[WORST][epsilon] = accuracies[names[-1]][epsilon]
    return Withstood(
        accuracies, campaign.distances, campaign.by, campaign.predicted, campaign.nearest
    )


class _Campaign:
    """The attacks on a set of images, and the smallest perturbations that they found so far."""

    def __init__(
        self,
        model: Network,
        images: Tensor,
        labels: Tensor,
        strength: Strength,
        unit: Tensor | None,
    ) -> None:
        self._model, self._images, self._labels = model, images, labels
        self._strength, self._unit = strength, unit
        fitting = max(1, min(_MOST_IMAGES, _MOST_NUMBERS // images[0].numel()))
        self._batch_size = strength.batch_size or fitting
        everyone = torch.arange(len(labels), device=labels.device)
        logits: list[Tensor] = []
        self._in_batches(
            everyone, lambda batch: logits.append(looked_at(model, images[batch], labels[batch]))
        )
        self._clean = torch.cat(logits)
        self.predicted = named(self._clean)
        right = ~fooled(self._clean, labels)
        clean = torch.where(right, torch.inf, torch.zeros_like(images.flatten(1)[:, 0]))
        # The smallest perturbation that each attack found. Attacks that find small ones answer for
        # larger balls too, which is no merit of the attacks before them.
        self._distances = {name: clean.clone() for name in SUITES[strength.suite]}
        self.by = ["" if standing else "clean" for standing in right.tolist()]
        self.nearest = images.clone()
        # FAB looks for the smallest perturbation, so it answers for larger balls at once.
        self._followed = torch.zeros_like(right)

    @property
    def distances(self) -> Tensor:
        """The smallest perturbation of each image that an attack found, (N,)."""
        return self._until(list(self._distances)[-1])

    def _until(self, name: str) -> Tensor:
        """Return the smallest perturbations of an attack and of those before it, (N,)."""
        names = list(self._distances)
        found = [self._distances[each] for each in names[: names.index(name) + 1]]
        return torch.stack(found).amin(dim=0)

    def accuracy(self, name: str, epsilon: float) -> float:
        """Return the part of all images that withstood an attack and those before it."""
        return (self._until(name) > epsilon).double().mean().item()

    def attack(self, name: str, epsilon: float) -> None:
        """Attack the images that are left, start by start and target by target."""
        for part in _parts(name, self._strength, self._clean.shape[1]):
            left = self._until(name) > epsilon
            if name == "fab-t":
                left = left & ~self._followed
            self._in_batches(
                left.nonzero().squeeze(1), partial(self._run, part, name=name, epsilon=epsilon)
            )
        if name == "fab-t":
            self._followed = self._followed | (self._distances[name] > 0)

    def _run(self, part: _Part, batch: Tensor, *, name: str, epsilon: float) -> None:
        ball = Ball(self._images[batch], epsilon, self._strength.norm, self._unit)
        draws = Draws(self._strength.seed, batch.cpu())
        found = part(Problem(self._model, self._labels[batch], ball, draws), self._clean[batch])
        sizes = ball.size(found.images)
        if name != "fab-t":
            # Rounding may take a point on the surface out of the ball.
            sizes = sizes.clamp(max=epsilon)
        smallest = found.fooled & (sizes < self.distances[batch])
        for number in batch[smallest].tolist():
            self.by[number] = name
        self.nearest[batch[smallest]] = found.images[smallest]
        own = self._distances[name]
        nearer = found.fooled & (sizes < own[batch])
        own[batch[nearer]] = sizes[nearer].to(own)

    def _in_batches(self, index: Tensor, run: Callable[[Tensor], None]) -> None:
        """Do something with each batch of images; with smaller batches once memory is full."""
        begin = 0
        while begin < len(index):
            batch = index[begin : begin + self._batch_size]
            try:
                run(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self._batch_size = len(batch) // 2
            else:
                begin += len(batch)


def _parts(name: str, strength: Strength, classes: int) -> Iterator[_Part]:
    """Yield the starts and targets of an attack, each of which gets the images that are left."""
    attack, _, objective = name.partition("-")
    if attack == "fgsm":
        yield lambda own, clean: gradient.fgsm_found(own)
    elif attack == "pgd":
        for restart in range(strength.pgd_restarts):
            yield _pgd(restart, strength.pgd_steps, objective)
    elif attack == "apgd":
        objective = "targeted-dlr" if objective == "t" else objective
        for part in auto_pgd.rounds(objective, 1, classes):
            yield partial(_apgd, part, objective, strength.apgd_steps)
    elif attack == "fab":
        for rank in range(min(boundary.MOST_TARGETS, classes - 1)):
            yield partial(boundary.fab_found, rank=rank, steps=strength.fab_steps)
    else:
        yield lambda own, clean: squares.square_found(own, queries=strength.queries)


def _pgd(restart: int, steps: int, objective: str) -> _Part:
    return lambda own, clean: gradient.pgd_found(own, restart, steps=steps, objective=objective)


def _apgd(part: tuple[int, int], objective: str, steps: int, own: Problem, clean: Tensor) -> Found:
    return auto_pgd.apgd_found(own, clean, part, steps=steps, objective=objective)
