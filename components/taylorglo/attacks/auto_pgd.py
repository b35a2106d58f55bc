"""APGD: projected gradient descent that finds the size of its steps itself.

Croce & Hein 2020 (arXiv 2003.01690), algorithm 1, in l-infinity and l2. The random start and the
targets, the classes that are likeliest before the attack, are those of their AutoAttack.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from taylorglo.attacks.ball import over_samples
from taylorglo.attacks.contract import (
    Network,
    check_choice,
    check_counts,
    evaluating,
    fooled,
    looked_at,
)
from taylorglo.attacks.gradient import start
from taylorglo.attacks.objectives import targeted_dlr, targets_of, untargeted
from taylorglo.attacks.problem import Ascent, Finds, Found, Objective, Problem, ascent, problem

OBJECTIVES = ("ce", "dlr", "targeted-dlr")
MOST_TARGETS = 9  # as in AutoAttack

_MOMENTUM = 0.75  # alpha in algorithm 1: the part of the new direction
_ENOUGH = 0.75  # rho in condition 1: the part of the steps that should raise the objective
# The checkpoints of section 3.1, as parts of all steps.
_FIRST_INTERVAL, _SHORTER, _SHORTEST = 0.22, 0.03, 0.06


def apgd(
    model: Network,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = 100,
    restarts: int = 1,
    objective: str = "ce",
    norm: str = "linf",
    seed: int = 0,
    unit: Tensor | None = None,
) -> Tensor:
    """Attack by APGD (Croce & Hein 2020), from random starts.

    The arguments before ``steps`` are those of :func:`~taylorglo.attacks.fgsm`.

    Args:
        steps: number of gradient steps of each restart, at least 1.
        restarts: at least 1, with "targeted-dlr" towards each target.
        objective: "ce", "dlr", or "targeted-dlr": towards each of the 9 likeliest other classes.
        norm: "linf" or "l2".
        seed: decides the random points. They are drawn on the CPU: the same for every device.
        unit: as for :func:`~taylorglo.attacks.fgsm`.

    Returns:
        For each sample the first misclassified image of the path; without one, the image of the
        highest objective of the last restart.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    own = problem(model, images, labels, epsilon, norm=norm, seed=seed, unit=unit)
    check_counts(steps=steps, restarts=restarts)
    check_choice("objective", objective, OBJECTIVES)
    found = Finds(own)
    with evaluating(model):
        logits = looked_at(model, images, labels)
        found.note(images, fooled(logits, labels))
        for rank, restart in rounds(objective, restarts, logits.shape[1]):
            if not len(found.left):
                break
            seen = looked_at(model, found.left.images, found.left.labels)
            ranks = torch.full_like(found.left.labels, rank)
            again = apgd_found(
                found.left, seen, ranks, restart=restart, steps=steps, objective=objective
            )
            found.keep(again.images)
            found.note(again.images, again.fooled)
    return found.all.images


def rounds(objective: str, restarts: int, classes: int) -> list[tuple[int, int]]:
    """Return the parts of an attack: the rank of the target, 0 for the likeliest, and the restart.

    An attack without targets has the rank 0 in all parts.
    """
    targets = min(MOST_TARGETS, classes - 1) if objective == "targeted-dlr" else 1
    return [(rank, restart) for rank in range(targets) for restart in range(restarts)]


def apgd_found(
    own: Problem, clean: Tensor, ranks: Tensor, *, steps: int, objective: str, restart: int = 0
) -> Found:
    """Return what a start finds, and with targets the one towards the target of a rank.

    An image is left alone from the first point on that is misclassified.

    Args:
        own: the images and their balls.
        clean: the logits of the images, (N, n).
        ranks: of the targets, (N,); 0 is the likeliest. Without targets they mean nothing.
        steps: number of gradient steps.
        objective: one of ``OBJECTIVES``.
        restart: number of the start.
    """
    if objective == "targeted-dlr":
        own = own.towards(targets_of(clean, own.labels, ranks))
        return _walk(own, targeted_dlr, steps, _starts(own, ranks, restart))
    return _walk(own, untargeted(objective), steps, start(own, 1 + restart, objective))


def _starts(own: Problem, ranks: Tensor, restart: int) -> Tensor:
    """Return where the images begin: for other targets at other points."""
    points = torch.empty_like(own.images)
    for rank in sorted(set(ranks.tolist())):
        mine = ranks == rank
        points[mine] = start(own.take(mine), 1 + restart, f"target {rank}")
    return points


@dataclass
class _Path:
    """Where the images of a batch are on their way.

    Attributes:
        point: x_k, (N, ...).
        before: x_(k-1).
        gradient: of the objective at x_k.
        value: of the objective at x_k, (N,).
        best: x_max, the point of the highest objective so far.
        best_gradient: there.
        best_value: there.
        size: of the next step, eta.
        rises: number of steps since the last checkpoint that raised the objective.
        best_value_before: of the last checkpoint.
        halved: whether the size was halved at the last checkpoint.
    """

    point: Tensor
    before: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    size: Tensor
    rises: Tensor
    best_value_before: Tensor
    halved: Tensor

    @classmethod
    def begin(cls, point: Tensor, here: Ascent, epsilon: Tensor) -> "_Path":
        """Return the path at its beginning, where the steps have the size 2 epsilon."""
        value, gradient = here.value, here.gradient
        return cls(
            point=point,
            before=point,
            gradient=gradient,
            value=value,
            best=point.clone(),
            best_gradient=gradient.clone(),
            best_value=value,
            size=2 * epsilon,
            rises=torch.zeros_like(value),
            best_value_before=value,
            halved=torch.zeros_like(value, dtype=torch.bool),
        )

    def take(self, kept: Tensor) -> "_Path":
        """Return the path of some of the images, by their places."""
        return _Path(*(getattr(self, field.name)[kept] for field in fields(self)))

    def move(self, own: Problem, momentum: float) -> None:
        """Take a step: lines 7 and 8 of algorithm 1."""
        ball, point = own.ball, self.point
        size = over_samples(self.size, point)
        moved = ball.project(point + size * ball.steepest(self.gradient))
        if momentum < 1:
            moved = point + momentum * (moved - point) + (1 - momentum) * (point - self.before)
            moved = ball.project(moved)
        self.before, self.point = point, moved

    def look(self, here: Ascent) -> None:
        """Note the objective at the new point."""
        self.rises = self.rises + (here.value > self.value)
        self.value, self.gradient = here.value, here.gradient
        better = (self.value > self.best_value).nonzero().squeeze(1)
        self.best[better] = self.point[better]
        self.best_gradient[better] = self.gradient[better]
        self.best_value = self.best_value.index_copy(0, better, self.value[better])

    def check(self, interval: int) -> None:
        """Halve the steps of images that make no progress, and go back to their best points."""
        rare = self.rises < _ENOUGH * interval
        stuck = ~self.halved & (self.best_value_before >= self.best_value)
        self.halved = rare | stuck
        self.size = torch.where(self.halved, self.size / 2, self.size)
        back = over_samples(self.halved, self.point)
        self.point = torch.where(back, self.best, self.point)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.value = torch.where(self.halved, self.best_value, self.value)
        self.best_value_before = self.best_value
        self.rises = torch.zeros_like(self.rises)


def _walk(own: Problem, objective: Objective, steps: int, point: Tensor) -> Found:
    """Follow the objective from a starting point."""
    found = Finds(own)
    here = ascent(own, point, objective)
    path = _Path.begin(point, here, own.ball.epsilon)
    kept = found.note(point, fooled(here.logits, own.labels))
    path = path if kept is None else path.take(kept)
    checkpoints, last = _checkpoints(steps), 0
    for number in range(1, steps + 1):
        if not len(found.left):
            return found.all
        path.move(found.left, 1.0 if number == 1 else _MOMENTUM)
        here = ascent(found.left, path.point, objective)
        path.look(here)
        kept = found.note(path.point, fooled(here.logits, found.left.labels))
        path = path if kept is None else path.take(kept)
        if number in checkpoints:
            path.check(number - last)
            last = number
    if len(found.left):
        found.keep(path.best)
    return found.all


def _checkpoints(steps: int) -> set[int]:
    """Return the numbers of the steps after which the progress is checked (section 3.1)."""
    before, part = 0.0, _FIRST_INTERVAL
    checkpoints = set()
    while part <= 1:
        checkpoints.add(math.ceil(part * steps))
        before, part = part, part + max(part - before - _SHORTER, _SHORTEST)
    return checkpoints
