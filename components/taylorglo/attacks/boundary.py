"""FAB: the fast adaptive boundary attack, towards target classes.

Croce & Hein 2020 (arXiv 1907.02044). It looks for the smallest perturbation, so one run answers for
every epsilon. It follows the boundary between the true class and a target class, by projections
onto the plane that the boundary is to first order, within the range of the pixels.
"""

import torch
from torch import Tensor

from taylorglo.attacks.ball import TINY, Ball, over_samples
from taylorglo.attacks.contract import Network, check_counts, evaluating, fooled, looked_at
from taylorglo.attacks.objectives import difference, margin, targets_of
from taylorglo.attacks.problem import Found, Problem, ascent, problem

MOST_TARGETS = 9  # as in AutoAttack

# Section 3.2 and algorithm 1 of the paper.
_MOST_BIASED = 0.1  # alpha_max: the largest part of the projection of the image itself
_OVERSHOOT = 1.05  # eta: a step goes beyond the plane
_BACK = 0.9  # beta: how much is left of a perturbation after a step back to the image
_SEARCHES = 3  # steps of the final search between the image and the adversarial one
_BEYOND = 0.01  # the part of the way from the boundary to the adversarial image
_MOST_CORRECTIONS = 20


def fab(
    model: Network,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = 100,
    targets: int = MOST_TARGETS,
    norm: str = "linf",
    unit: Tensor | None = None,
) -> Tensor:
    """Attack by targeted FAB (Croce & Hein 2020), which is without random numbers.

    The arguments before ``steps`` are those of :func:`~taylorglo.attacks.fgsm`.

    Args:
        steps: number of gradient steps towards each target, at least 1.
        targets: number of target classes, the likeliest others; there are at most n - 1.
        norm: "linf" or "l2".
        unit: as for :func:`~taylorglo.attacks.fgsm`.

    Returns:
        For each sample the misclassified image of the smallest perturbation that was found, if it
        is in the ball; else the image itself.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    own = problem(model, images, labels, epsilon, norm=norm, seed=0, unit=unit)
    check_counts(steps=steps, targets=targets)
    attacked = images.clone()
    least = torch.full_like(images.flatten(1)[:, 0], torch.inf)
    with evaluating(model):
        clean = looked_at(model, images, labels)
        least[fooled(clean, labels)] = 0
        for rank in range(min(targets, clean.shape[1] - 1)):
            found = fab_found(own, clean, torch.full_like(labels, rank), steps=steps)
            size = own.ball.size(found.images)
            closer = found.fooled & (size < least) & (size <= epsilon)
            attacked[closer] = found.images[closer]
            least = torch.where(closer, size, least)
    return attacked


def fab_found(own: Problem, clean: Tensor, ranks: Tensor, *, steps: int) -> Found:
    """Return the nearest misclassified images on the way to a target, at any distance.

    An image is left alone from the first misclassified point within epsilon on.

    Args:
        own: the images and their balls.
        clean: the logits of the images, (N, n).
        ranks: of the targets, (N,); 0 is the likeliest of the other classes.
        steps: number of gradient steps.
    """
    own = own.towards(targets_of(clean, own.labels, ranks))
    every = torch.arange(len(own), device=own.labels.device)
    nearest = _Nearest(own)
    left, places, point = own, every, own.images
    for _ in range(steps):
        new = _step(left, point)
        broken = fooled(looked_at(own.network, new, left.labels), left.labels)
        nearest.update(places, new, broken, left.ball.size(new))
        kept = nearest.size[places] > left.ball.epsilon
        back = left.images + _BACK * (new - left.images)
        point = torch.where(over_samples(broken, new), back, new)
        if not bool(kept.all()):
            kept = kept.nonzero().squeeze(1)
            left, places, point = left.take(kept), places[kept], point[kept]
        if not len(places):
            break
    return nearest.refined(clean)


class _Nearest:
    """The nearest misclassified point of each image so far."""

    def __init__(self, own: Problem) -> None:
        self._own = own
        self._images = own.images.clone()
        self.size = torch.full_like(own.images.flatten(1)[:, 0], torch.inf)

    def update(self, places: Tensor, points: Tensor, broken: Tensor, size: Tensor) -> None:
        """Note points of some images that are misclassified and nearer than those before."""
        nearer = broken & (size < self.size[places])
        self._images[places[nearer]] = points[nearer]
        self.size[places[nearer]] = size[nearer]

    def refined(self, clean: Tensor) -> Found:
        """Return what was found, after a search between each image and its nearest point.

        Each step takes a point just beyond the zero of the line through the margins at both ends.
        """
        found = self.size < torch.inf
        if not bool(found.any()):
            return Found(found, self._images)
        own, far = self._own.take(found), self._images[found]
        near, near_margin = own.images, margin(clean[found], own.labels)
        far_margin = margin(looked_at(own.network, far, own.labels), own.labels)
        for _ in range(_SEARCHES):
            share = near_margin / (near_margin - far_margin + TINY)
            share = share + _BEYOND * (1 - share)
            point = near + over_samples(share.clamp(0, 1), near) * (far - near)
            logits = looked_at(own.network, point, own.labels)
            broken, here = fooled(logits, own.labels), margin(logits, own.labels)
            mask = over_samples(broken, point)
            far, near = torch.where(mask, point, far), torch.where(mask, near, point)
            far_margin = torch.where(broken, here, far_margin)
            near_margin = torch.where(broken, near_margin, here)
        self._images[found] = far
        return Found(found, self._images)


def _step(own: Problem, point: Tensor) -> Tensor:
    """Return the next point: a mean of two projections onto the plane of the boundary."""

    def beyond(logits: Tensor, own: Problem) -> Tensor:
        assert own.targets is not None
        return difference(logits, own.labels, own.targets)

    here, images, ball = ascent(own, point, beyond), own.images, own.ball
    gradient = here.gradient.nan_to_num(0, 0, 0)
    value = here.value
    at_image = value + (gradient * (images - point)).flatten(1).sum(dim=1)
    moved = _OVERSHOOT * _to_plane(ball, point, gradient, -value)
    image_moved = _OVERSHOOT * _to_plane(ball, images, gradient, -at_image)
    length, image_length = ball.size(images + moved), ball.size(images + image_moved)
    bias = (length / (length + image_length).clamp(min=1e-8)).clamp(max=_MOST_BIASED)
    share = over_samples(bias, point)
    return ball.within_range((1 - share) * (point + moved) + share * (images + image_moved))


def _to_plane(ball: Ball, points: Tensor, gradient: Tensor, rise: Tensor) -> Tensor:
    """Return the smallest change of points that raises a linear function by ``rise``.

    Pixels stay in [0, 1]. If they cannot raise it as far, they go to the end of their range.

    The change is min(r s, room) in each pixel, where s is 1 in l-infinity and the slope in l2. What
    it raises is concave and piecewise linear in r, so Newton's method from below finds r exactly.
    """
    slope = ball.scaled(gradient)
    direction = slope.sign() * over_samples(rise.sign(), slope)
    slope, rise = slope.abs(), rise.abs()
    speed = torch.ones_like(slope[:1]) if ball.norm == "linf" else slope
    gain = slope * speed
    radius = rise / (gain.flatten(1).sum(dim=1) + 1e-38)
    if ball.unit is not None:
        return ball.scaled(direction * speed * over_samples(radius, slope))
    # From 1 if the direction is upwards, else from 0.
    room = (direction.clamp(min=0) - points).abs()
    for _ in range(_MOST_CORRECTIONS):
        change = speed * over_samples(radius, slope)
        missing = rise - (slope * change.minimum(room)).flatten(1).sum(dim=1)
        if bool((missing <= 1e-5 * rise).all()):
            break
        # The sign is 1 where there is room. A choice by a mask would take ten times as long.
        steepness = (gain * (room - change).sign().clamp(min=0)).flatten(1).sum(dim=1)
        more = missing.clamp(min=0) / steepness.clamp(min=1e-38)
        # At the end of the range of all pixels, nothing can be raised any more.
        radius = torch.where(steepness > 0, radius + more, radius)
        if not bool((steepness > 0).any()):
            break
    return direction * (speed * over_samples(radius, slope)).minimum(room)
