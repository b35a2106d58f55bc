"""A suite of attacks, one after another, on the images that are left, and what they leave.

The suite ``standard`` is that of AutoAttack (Croce & Hein 2020, arXiv 2003.01690): APGD on
cross-entropy, APGD on the targeted DLR, targeted FAB and Square, after FGSM and PGD, which break
most images for less. The suite ``apgd``, the default, has all but the last two, which take most of
the time and break few images more.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from taylorglo.attacks import auto_pgd, boundary, gradient, squares
from taylorglo.attacks.auto_pgd import MOST_TARGETS
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
    "apgd": ("fgsm", "pgd-ce", "pgd-dlr", "apgd-ce", "apgd-t"),
    "standard": ("fgsm", "pgd-ce", "pgd-dlr", "apgd-ce", "apgd-t", "fab-t", "square"),
}
WORST = "worst"

_MOST_IMAGES = 256  # of a batch: larger ones are not faster on a CPU, unless images are small
_CACHED = 100_000  # numbers of a batch of small images
_MOST_NUMBERS = 4_000_000  # of a batch of large images

# Cheap attacks, which are made at every radius, and not at the largest one first.
_AT_EVERY_RADIUS = ("fgsm", "pgd-ce", "pgd-dlr")

# From a problem, the logits of its images and the ranks of their targets to what is found.
_Attack = Callable[[Problem, Tensor, Tensor], Found]


@dataclass(frozen=True)
class Strength:
    """How hard a suite attacks.

    Attributes:
        suite: the name of the suite, "quick", "apgd" or "standard".
        norm: "linf" or "l2".
        pgd_steps: ``steps`` of :func:`~taylorglo.attacks.pgd`.
        pgd_restarts: ``restarts`` of :func:`~taylorglo.attacks.pgd`.
        batch_size: number of images attacked at once, where an image counts once for each radius
            and target; None: 256, more if images are small, and fewer if they are large. It is
            halved if a GPU's memory is full.
        seed: decides the random numbers.
        apgd_steps: ``steps`` of :func:`~taylorglo.attacks.apgd`.
        fab_steps: ``steps`` of :func:`~taylorglo.attacks.fab`.
        queries: ``queries`` of :func:`~taylorglo.attacks.square`.
    """

    suite: str = "apgd"
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
    suite: str = "apgd",
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
        suite: "quick" is FGSM, PGD on cross-entropy and PGD on DLR. "apgd" has, after these, APGD
            on cross-entropy and APGD on the targeted DLR. "standard" has, after these, targeted
            FAB and Square, so it has all attacks of AutoAttack.
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
        campaign = _Campaign(model, images, labels, strength=strength, unit=unit, radii=radii[1:])
        # Without a radius above 0 there is nothing to attack.
        for name in names if radii[1:] else ():
            campaign.attack(name)
    accuracies = {name: campaign.accuracies(name, radii) for name in names}
    accuracies[WORST] = dict(accuracies[names[-1]])
    return Withstood(
        accuracies, campaign.distances, campaign.by, campaign.predicted, campaign.nearest
    )


class _Rows(NamedTuple):
    """What is attacked at once: images, each of them once for every epsilon and every target.

    Attributes:
        images: their numbers, (N,).
        epsilons: the radii of the balls, (N,).
        ranks: of the targets, (N,); 0 is the likeliest.
    """

    images: Tensor
    epsilons: Tensor
    ranks: Tensor

    def cut(self, begin: int, end: int) -> "_Rows":
        return _Rows(*(values[begin:end] for values in self))


class _Wave(NamedTuple):
    """A part of an attack, after which the images that it broke are left out.

    Attributes:
        attack: from a problem, the logits of its images and the ranks of their targets to what it
            finds.
        ranks: of the targets that are attacked side by side.
    """

    attack: _Attack
    ranks: Sequence[int] = (0,)


class _Campaign:
    """The attacks on a set of images, and the smallest perturbations that they found so far."""

    def __init__(
        self,
        model: Network,
        images: Tensor,
        labels: Tensor,
        *,
        strength: Strength,
        unit: Tensor | None,
        radii: Sequence[float],
    ) -> None:
        self._model, self._images, self._labels = model, images, labels
        self._strength, self._unit, self._radii = strength, unit, radii
        numbers = images[0].numel()
        fitting = min(max(_MOST_IMAGES, _CACHED // numbers), _MOST_NUMBERS // numbers)
        self._batch_size = strength.batch_size or max(1, fitting)
        every = torch.arange(len(labels), device=labels.device)
        logits: list[Tensor] = []

        def look(rows: _Rows) -> None:
            batch = rows.images
            logits.append(looked_at(model, images[batch], labels[batch]))

        self._in_batches(_Rows(every, every, every), look)
        self._clean = torch.cat(logits)
        self.predicted = named(self._clean)
        right = ~fooled(self._clean, labels)
        clean = torch.where(right, torch.inf, torch.zeros_like(images.flatten(1)[:, 0]))
        # The smallest perturbation that each attack found. Attacks that find small ones answer for
        # larger balls too, which is no merit of the attacks before them.
        self._distances = {name: clean.clone() for name in SUITES[strength.suite]}
        self.by = ["" if standing else "clean" for standing in right.tolist()]
        self.nearest = images.clone()

    @property
    def distances(self) -> Tensor:
        """The smallest perturbation of each image that an attack found, (N,)."""
        return self._until(list(self._distances)[-1])

    def _until(self, name: str) -> Tensor:
        """Return the smallest perturbations of an attack and of those before it, (N,)."""
        names = list(self._distances)
        found = [self._distances[each] for each in names[: names.index(name) + 1]]
        return torch.stack(found).amin(dim=0)

    def accuracies(self, name: str, radii: Sequence[float]) -> dict[float, float]:
        """Return the part of all images that withstood an attack and those before it, by radius."""
        least = self._until(name)
        return {radius: (least > radius).double().mean().item() for radius in radii}

    def attack(self, name: str) -> None:
        """Attack the images that are left, wave by wave."""
        before = self.distances
        for wave in _waves(name, self._strength, self._clean.shape[1]):
            if name in _AT_EVERY_RADIUS:
                self._attack_at(self._radii, name, wave)
            elif name == "fab-t":
                # It looks for the smallest perturbation, so it answers for larger balls at once.
                self._attack_at(self._radii[:1], name, wave)
            else:
                self._descend(name, wave)
        for number in (self.distances < before).nonzero().squeeze(1).tolist():
            self.by[number] = name

    def _attack_at(self, radii: Sequence[float], name: str, wave: _Wave) -> None:
        """Attack the images that are left at each of some radii, side by side."""
        least = self._until(name)
        left = [(least > radius).nonzero().squeeze(1) for radius in radii]
        epsilons = [
            least.new_full(images.shape, radius) for images, radius in zip(left, radii, strict=True)
        ]
        self._run(name, wave, torch.cat(left), torch.cat(epsilons))

    def _descend(self, name: str, wave: _Wave) -> None:
        """Attack each image in the largest ball that it stands in, and if it falls in the next one.

        A ball contains all smaller ones, so what withstands in it is not attacked in those.
        """
        radii = torch.tensor(self._radii).to(self._images)
        withstood = torch.zeros_like(self._labels, dtype=torch.bool)
        for _ in self._radii:
            # The number of balls that an image stands in.
            balls = (self._until(name)[:, None] > radii).sum(dim=1)
            left = ((balls > 0) & ~withstood).nonzero().squeeze(1)
            epsilons = radii[balls[left] - 1]
            self._run(name, wave, left, epsilons)
            withstood[left] = self._until(name)[left] > epsilons

    def _run(self, name: str, wave: _Wave, images: Tensor, epsilons: Tensor) -> None:
        """Attack images within balls, towards all targets of a wave."""
        ranks = torch.tensor(wave.ranks, device=images.device)
        times = len(ranks)
        rows = _Rows(
            images.repeat(times), epsilons.repeat(times), ranks.repeat_interleave(len(images))
        )
        self._in_batches(rows, partial(self._attack_rows, wave.attack, name))

    def _attack_rows(self, attack: _Attack, name: str, rows: _Rows) -> None:
        index = rows.images
        ball = Ball(self._images[index], rows.epsilons, self._strength.norm, self._unit)
        draws = Draws(self._strength.seed, index.cpu())
        own = Problem(self._model, self._labels[index], ball, draws)
        found = attack(own, self._clean[index], rows.ranks)
        sizes = ball.size(found.images)
        if name != "fab-t":
            # Rounding may take a point on the surface out of the ball.
            sizes = sizes.minimum(rows.epsilons)
        sizes = torch.where(found.fooled, sizes, torch.inf)
        before, least = self.distances, self._distances[name]
        least.scatter_reduce_(0, index, sizes, "amin")
        # Several rows may be of one image, and the nearest point of it counts.
        nearest = (sizes < before[index]) & (sizes == least[index])
        self.nearest[index[nearest]] = found.images[nearest]

    def _in_batches(self, rows: _Rows, run: Callable[[_Rows], None]) -> None:
        """Do something with each batch of rows; with smaller batches once memory is full."""
        begin = 0
        while begin < len(rows.images):
            batch = rows.cut(begin, begin + self._batch_size)
            try:
                run(batch)
            except torch.OutOfMemoryError:
                if len(batch.images) == 1:
                    raise
                self._batch_size = len(batch.images) // 2
            else:
                begin += len(batch.images)


def _waves(name: str, strength: Strength, classes: int) -> Iterator[_Wave]:
    """Yield the starts of an attack, or its targets: the likeliest, and then all others at once."""
    attack, _, objective = name.partition("-")
    if attack == "fgsm":
        yield _Wave(lambda own, clean, ranks: gradient.fgsm_found(own))
    elif attack == "pgd":
        for restart in range(strength.pgd_restarts):
            yield _Wave(_pgd(restart, strength.pgd_steps, objective))
    elif attack == "square":
        yield _Wave(lambda own, clean, ranks: squares.square_found(own, queries=strength.queries))
    elif name == "apgd-ce":
        yield _Wave(partial(auto_pgd.apgd_found, steps=strength.apgd_steps, objective="ce"))
    else:
        towards = partial(boundary.fab_found, steps=strength.fab_steps)
        if attack == "apgd":
            towards = partial(
                auto_pgd.apgd_found, steps=strength.apgd_steps, objective="targeted-dlr"
            )
        yield _Wave(towards)
        others = range(1, min(MOST_TARGETS, classes - 1))
        if others:
            yield _Wave(towards, others)


def _pgd(restart: int, steps: int, objective: str) -> _Attack:
    return lambda own, clean, ranks: gradient.pgd_found(
        own, restart, steps=steps, objective=objective
    )
