"""FGSM and PGD: steps along the gradient of an objective.

FGSM: Goodfellow et al. 2015 (arXiv 1412.6572). PGD: Madry et al. 2018 (arXiv 1706.06083).
"""

import torch
from torch import Tensor

from taylorglo.attacks.ball import euclidean, over_samples
from taylorglo.attacks.contract import (
    Network,
    check_choice,
    check_counts,
    evaluating,
    fooled,
    looked_at,
)
from taylorglo.attacks.objectives import UNTARGETED, untargeted
from taylorglo.attacks.problem import Finds, Found, Problem, ascent, problem
from taylorglo.errors import InputError


def fgsm(
    model: Network,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    norm: str = "linf",
    unit: Tensor | None = None,
) -> Tensor:
    """Attack by the fast gradient sign method: one step of size epsilon.

    The step goes along the sign of the gradient of cross-entropy, in l2 along the gradient.

    Args:
        model: returns logits (N, n). It is in evaluation mode during the attack.
        images: (N, ...), floats in [0, 1]; or any floats, with a unit.
        labels: (N,), int64, the true classes.
        epsilon: radius of the ball; in l-infinity in [0, 1].
        norm: "linf" or "l2".
        unit: of epsilon for data without pixels, above 0; its shape broadcasts to that of an image.

    Returns:
        Adversarial images, of the shape of ``images``: within epsilon (times ``unit``) of
        ``images``, and in [0, 1] without a unit.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    own = problem(model, images, labels, epsilon, norm=norm, seed=0, unit=unit)
    with evaluating(model):
        return _one_step(own)


def pgd(
    model: Network,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    objective: str = "ce",
    norm: str = "linf",
    seed: int = 0,
    unit: Tensor | None = None,
) -> Tensor:
    """Attack by projected gradient descent in the ball.

    The arguments before ``steps`` are those of :func:`fgsm`.

    Args:
        steps: number of gradient steps of each restart, at least 1.
        step_size: size of one step, above 0, in the unit of epsilon; by default 2.5 epsilon /
            steps, so that every corner is within reach (Madry et al. 2018).
        restarts: at least 1. The first one starts at the image, the others at random points.
        objective: the ascended function: "ce" is cross-entropy, "dlr" the untargeted
            :func:`~taylorglo.attacks.dlr`.
        norm: as for :func:`fgsm`.
        seed: decides the random points. They are drawn on the CPU: the same for every device.
        unit: as for :func:`fgsm`.

    Returns:
        For each sample the first misclassified image, after which it is left alone; without one,
        the last image of the last restart.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    own = problem(model, images, labels, epsilon, norm=norm, seed=seed, unit=unit)
    check_counts(steps=steps, restarts=restarts)
    check_choice("objective", objective, UNTARGETED)
    if step_size is not None and not 0 < step_size < float("inf"):
        raise InputError(f"step_size: should be a number above 0, got {step_size}")
    found = Finds(own)
    with evaluating(model):
        for restart in range(restarts):
            if not len(found.left):
                break
            again = pgd_found(found.left, restart, steps=steps, objective=objective, size=step_size)
            found.keep(again.images)
            found.note(again.images, again.fooled)
    return found.all.images


def fgsm_found(own: Problem) -> Found:
    """Return what FGSM finds."""
    points = _one_step(own)
    return Found(fooled(looked_at(own.network, points, own.labels), own.labels), points)


def pgd_found(
    own: Problem, restart: int, *, steps: int, objective: str, size: float | None = None
) -> Found:
    """Return what a start of PGD finds, with steps of a size or of the default size.

    An image is left alone from the first point on that is misclassified.
    """
    ascended = untargeted(objective)
    found = Finds(own)
    point = start(own, restart)
    for _ in range(steps):
        here = ascent(found.left, point, ascended)
        kept = found.note(point, fooled(here.logits, found.left.labels))
        if not len(found.left):
            return found.all
        ball = found.left.ball
        # Nothing is copied if no image was broken, as in most steps.
        gradient = here.gradient if kept is None else here.gradient[kept]
        point = point if kept is None else point[kept]
        # So that every corner is within reach (Madry et al. 2018).
        length = 2.5 / steps * ball.epsilon if size is None else torch.full_like(ball.epsilon, size)
        point = ball.project(point + over_samples(length, point) * ball.steepest(gradient))
    found.keep(point)
    found.note(point, fooled(looked_at(own.network, point, found.left.labels), found.left.labels))
    return found.all


def start(own: Problem, restart: int, purpose: str = "") -> Tensor:
    """Return where a restart begins: 0 at the images, others at points uniform in the balls.

    For l2 with pixels the points are uniform before they are cut to [0, 1]. Attacks of different
    purposes begin at different points.
    """
    if restart == 0:
        return own.images
    ball, shape = own.ball, tuple(own.images.shape[1:])
    name = f"{purpose} start {restart}"
    if ball.norm == "linf":
        change = 2 * own.draws.uniform(name, shape).to(own.images) - 1
    else:
        # In d dimensions, the part r^d of a ball's volume is within r of its centre.
        dimensions = own.images[0].numel()
        length = own.draws.uniform(f"{name}, length", ()).to(own.images) ** (1 / dimensions)
        change = own.draws.normal(name, shape).to(own.images)
        change = over_samples(length / euclidean(change), change) * change
    return ball.project(own.images + ball.scaled(over_samples(ball.epsilon, change) * change))


def _one_step(own: Problem) -> Tensor:
    gradient = ascent(own, own.images, untargeted("ce")).gradient
    ball = own.ball
    step = over_samples(ball.epsilon, gradient) * ball.steepest(gradient)
    return ball.within_range(own.images + step)
