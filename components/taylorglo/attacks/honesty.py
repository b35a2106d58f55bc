"""Checks of an evaluation itself: signs that a network withstood only because attacks went astray.

They are those of Athalye et al. 2018 (arXiv 1802.00420) and of Carlini et al. 2019 (arXiv
1902.06705, section 4): a network that hides its gradients looks robust until somebody attacks it
otherwise. Each check is on a few images, and a sign is a sentence for a reader.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from taylorglo.attacks.ball import Ball, over_samples
from taylorglo.attacks.contract import Network, evaluating, fooled, looked_at
from taylorglo.attacks.draws import Draws
from taylorglo.attacks.gradient import fgsm_found, pgd_found, start
from taylorglo.attacks.objectives import untargeted
from taylorglo.attacks.problem import Problem, ascent
from taylorglo.attacks.squares import square_found

_IMAGES = 100  # at most, of those that are classified correctly
_STEPS = 20
_QUERIES = 200
_TOLERATED = 0.05  # the part of the images in which a check may go wrong by chance
_ZERO = 0.1  # the part of the images that may have no gradient
_COOLER = 100.0  # what logits are divided by


@dataclass
class _Case:
    """What the checks look at.

    Attributes:
        at: returns the problem at a radius.
        epsilon: the radius of the evaluation.
        furthest: a radius within which every network that learned something is fooled.
        twin: another network for the same images, which hides nothing; None: there is none.
    """

    at: Callable[[float], Problem]
    epsilon: float
    furthest: float
    twin: Network | None

    @cached_property
    def by_cross_entropy(self) -> Tensor:
        """What PGD on cross-entropy breaks at the radius of the evaluation, (N,)."""
        return _pgd(self.at(self.epsilon), "ce")

    @cached_property
    def by_gradients(self) -> Tensor:
        """What PGD breaks there on cross-entropy or on DLR, (N,)."""
        return self.by_cross_entropy | _pgd(self.at(self.epsilon), "dlr")


def suspicions(
    network: Network,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    norm: str = "linf",
    seed: int = 0,
    unit: Tensor | None = None,
    twin: Network | None = None,
) -> list[str]:
    """Return the signs that attacks on a network went astray, as sentences; none is a good sign.

    The arguments before ``twin`` are those of :func:`~taylorglo.attacks.pgd`. The first 100 images
    count that are classified correctly.

    Args:
        twin: a network of the same data that was trained on cross-entropy. What fools it should
            fool the network no more often than an attack on the network itself does.
    """
    with evaluating(network):
        some = images[: 4 * _IMAGES], labels[: 4 * _IMAGES]
        right = ~fooled(looked_at(network, *some), some[1])
        index = right.nonzero().squeeze(1)[:_IMAGES]
        if not len(index):
            return []
        own, classes = images[index], labels[index]
        draws = Draws(seed, len(index))

        def at(radius: float) -> Problem:
            return Problem(network, classes, Ball.around(own, radius, norm, unit), draws)

        furthest = 1.0 if unit is None else 100.0
        if norm == "l2":
            furthest *= own[0].numel() ** 0.5
        case = _Case(at, epsilon, furthest, twin)
        return [sign for check in _CHECKS for sign in check(case)]


def _gradients_are_there(case: _Case) -> Iterator[str]:
    own = case.at(case.epsilon)
    gradient = ascent(own, own.images, untargeted("ce")).gradient.flatten(1)
    share = (gradient == 0).all(dim=1).double().mean().item()
    if share > _ZERO:
        yield f"the gradient is exactly 0 for {share:.0%} of the images"


def _steps_help(case: _Case) -> Iterator[str]:
    """Compare many steps with one, on cross-entropy both."""
    own = case.at(case.epsilon)
    one, many = fgsm_found(own).fooled, case.by_cross_entropy
    if _part(one) > _part(many) + _TOLERATED:
        yield (
            f"one step breaks more images than {_STEPS} steps: {_part(one):.0%} and "
            f"{_part(many):.0%}"
        )


def _gradients_lead_further_than_chance(case: _Case) -> Iterator[str]:
    """Compare attacks that follow gradients with those that see none."""
    own = case.at(case.epsilon)
    led = case.by_gradients
    noise = torch.zeros_like(led)
    for number in (1, 2, 3):
        points = start(own, number, "noise")
        noise |= fooled(looked_at(own.network, points, own.labels), own.labels)
    searched = square_found(own, queries=_QUERIES).fooled
    for name, blind in (("random noise", noise), ("Square, without gradients,", searched)):
        missed = _part(blind & ~led)
        if missed > _TOLERATED:
            yield f"{name} breaks {missed:.0%} of the images that PGD does not break"


def _the_largest_ball_breaks_all(case: _Case) -> Iterator[str]:
    own = case.at(case.furthest)
    left = 1 - _part(_pgd(own, "ce") | _pgd(own, "dlr"))
    if left > _TOLERATED:
        yield f"PGD without a bound leaves {left:.0%} of the images"


def _larger_balls_break_more(case: _Case) -> Iterator[str]:
    small, large = _part(_pgd(case.at(case.epsilon / 2), "ce")), _part(case.by_cross_entropy)
    if small > large + _TOLERATED:
        yield f"half of epsilon breaks more images: {small:.0%} and {large:.0%}"


def _scale_changes_nothing(case: _Case) -> Iterator[str]:
    """Compare PGD on cross-entropy with that on cooler logits, which are of the same classes."""
    own = case.at(case.epsilon)
    network = own.network

    def cooler(images: Tensor) -> Tensor:
        # In double precision, because it is the rounding of large logits that hides gradients.
        return network(images).double() / _COOLER

    other = Problem(cooler, own.labels, own.ball, own.draws)
    found = _pgd(other, "ce")
    masked = _part(found & ~case.by_cross_entropy)
    if masked > _TOLERATED:
        hidden = _part(found & ~case.by_gradients)
        yield (
            f"with logits divided by {_COOLER:g}, PGD on cross-entropy breaks {masked:.0%} of the "
            f"images that it does not break else ({hidden:.0%} withstood DLR, too)"
        )


def _transfer_breaks_no_more(case: _Case) -> Iterator[str]:
    """Compare attacks that see the network with one that sees only its twin."""
    if case.twin is None:
        return
    own = case.at(case.epsilon)
    with evaluating(case.twin):
        points = _pushed(replace(own, network=case.twin))
    transferred = fooled(looked_at(own.network, points, own.labels), own.labels)
    missed = _part(transferred & ~case.by_gradients)
    if missed > _TOLERATED:
        yield (
            f"an attack on a twin that cross-entropy trained breaks {missed:.0%} of the images "
            "that PGD does not break"
        )


_CHECKS: tuple[Callable[[_Case], Iterator[str]], ...] = (
    _gradients_are_there,
    _steps_help,
    _larger_balls_break_more,
    _gradients_lead_further_than_chance,
    _the_largest_ball_breaks_all,
    _scale_changes_nothing,
    _transfer_breaks_no_more,
)


def _pgd(own: Problem, objective: str) -> Tensor:
    broken = pgd_found(own, 0, steps=_STEPS, objective=objective).fooled
    left = (~broken).nonzero().squeeze(1)
    if len(left):
        again = pgd_found(own.take(left), 1, steps=_STEPS, objective=objective).fooled
        broken[left[again]] = True
    return broken


def _pushed(own: Problem) -> Tensor:
    """Return where PGD on cross-entropy leads if it does not stop at the boundary.

    Points that are just beyond it fool no other network.
    """
    point, step = own.images, 2.5 / _STEPS * own.ball.epsilon
    for _ in range(_STEPS):
        gradient = ascent(own, point, untargeted("ce")).gradient
        point = own.ball.project(point + over_samples(step, point) * own.ball.steepest(gradient))
    return point


def _part(broken: Tensor) -> float:
    return broken.double().mean().item()
