"""l-infinity attacks on a classifier, and the accuracy that withstands them.

Contract: images are floats in [0, 1] of shape (N, ...), labels are int64 of shape (N,), and both
are on the model's device. Epsilon is in the same units (a pixel's full range is 1), so
normalisation is part of the model, which returns logits (N, n) with n >= 2. Data without pixels,
such as the features of a table, may have any finite values: a ``unit`` is given with them, such as
the standard deviation of each feature, of which epsilon is a multiple. Nothing is cut to [0, 1]
then. Gradients are taken
with respect to the images alone: when a function returns, the parameters of the model, their
``.grad`` and the training flags are as they were before.

A loss that flattens the confidences also flattens the gradients of cross-entropy, and looks robust
to an attack that follows them. So there are two objectives: cross-entropy, and the scale-invariant
difference of logits ratio (DLR).

FGSM: Goodfellow et al. 2015 (arXiv 1412.6572). PGD: Madry et al. 2018 (arXiv 1706.06083). DLR:
Croce & Hein 2020 (arXiv 2003.01690).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from taylorglo.errors import InputError

_Attack = Callable[[Tensor, Tensor, float], Tensor]
_Objective = Callable[[Tensor, Tensor], Tensor]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio of each sample (Croce & Hein 2020, equation 6).

    With two classes the ratio has no denominator, and the plain margin of the logits is returned.

    Args:
        logits: (N, n), n >= 2.
        labels: (N,), int64, the true classes.

    Returns:
        (N,), above 0 if the sample is misclassified.
    """
    ordered = logits.topk(min(3, logits.shape[1]), dim=1).values
    target = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    margin = target.squeeze(1) - others.amax(dim=1)
    if logits.shape[1] == 2:
        return -margin
    return -margin / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    unit: Tensor | None = None,
) -> Tensor:
    """Attack by the fast gradient sign method: one step along the sign of the gradient.

    The gradient is that of cross-entropy, and the step has the size epsilon.

    Args:
        model: returns logits (N, n). It is in evaluation mode during the attack.
        images: (N, ...), floats in [0, 1]; or any floats, with a unit.
        labels: (N,), int64, the true classes.
        epsilon: radius of the l-infinity ball, in [0, 1].
        unit: of epsilon for data without pixels, above 0; its shape broadcasts to that of an image.

    Returns:
        Adversarial images, of the shape of ``images``: within epsilon (times ``unit``) of
        ``images``, and in [0, 1] without a unit.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    _check(images, labels, [epsilon], unit)
    with _evaluating(model):
        gradient = _ascent(model, images, labels, _cross_entropy).gradient
        if unit is not None:
            return images + epsilon * unit * gradient.sign()
        return (images + epsilon * gradient.sign()).clamp(0, 1)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    objective: str = "ce",
    seed: int = 0,
    unit: Tensor | None = None,
) -> Tensor:
    """Attack by projected gradient descent in the l-infinity ball.

    The arguments before ``steps`` are those of :func:`fgsm`.

    Args:
        steps: number of gradient steps of each restart, at least 1.
        step_size: size of one step, above 0, in the unit of epsilon; by default 2.5 epsilon /
            steps, so that every corner is within reach (Madry et al. 2018).
        restarts: at least 1. The first one starts at the image, the others at random points.
        objective: the ascended function: "ce" is cross-entropy, "dlr" the untargeted :func:`dlr`.
        seed: decides the random points. They are drawn on the CPU: the same for every device.
        unit: as for :func:`fgsm`.

    Returns:
        The worst image of all steps of all restarts, for each sample. A misclassified image is
        worse than another one; among equals, the one with the higher objective is worse.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    _check(images, labels, [epsilon], unit)
    _check_counts(steps=steps, restarts=restarts)
    size = _step_size(step_size, epsilon, steps)
    ascended = _objective(objective)
    if epsilon == 0:
        return images.clone()
    ball = _Ball(images, epsilon, unit)
    step = size if unit is None else size * unit
    worst = _Worst(images)
    with _evaluating(model):
        for point in ball.starts(restarts, seed):
            for number in range(steps + 1):
                ascent = _ascent(model, point, labels, ascended, differentiate=number < steps)
                worst.update(point, ascent)
                point = ball.project(point + step * ascent.gradient.sign())
    return worst.images


def robust_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilons: Sequence[float],
    pgd_steps: int,
    pgd_restarts: int,
    batch_size: int = 500,
    seed: int = 0,
    unit: Tensor | None = None,
) -> dict[str, dict[float, float]]:
    """Measure the accuracy under FGSM, PGD on cross-entropy, PGD on DLR, and the worst of them.

    The accuracy is the fraction of all images that are classified correctly both clean and
    attacked; only images that are correct when clean are attacked. An image that an attack broke
    at a smaller epsilon counts as broken at every larger one, because the larger ball contains the
    smaller: so no curve rises.

    Args:
        model: returns logits (N, n). It is in evaluation mode during the attacks.
        images: (N, ...), floats in [0, 1], N >= 1; or any floats, with a unit.
        labels: (N,), int64, the true classes.
        epsilons: radii of the balls, in [0, 1]; 0 is added if it is missing.
        pgd_steps: ``steps`` of :func:`pgd`.
        pgd_restarts: ``restarts`` of :func:`pgd`.
        batch_size: number of images attacked at once; their random starts depend on it.
        seed: decides the random starts.
        unit: as for :func:`fgsm`.

    Returns:
        ``{attack: {epsilon: accuracy}}`` for the attacks "fgsm", "pgd-ce", "pgd-dlr" and "worst"
        (an image withstands all three), by ascending epsilon. At 0 it is the clean accuracy.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    radii = sorted({0.0, *epsilons})
    _check(images, labels, radii, unit)
    _check_counts(pgd_steps=pgd_steps, pgd_restarts=pgd_restarts, batch_size=batch_size)
    attacks = _attacks(model, pgd_steps, pgd_restarts, seed, unit)
    return _accuracies(model, images, labels, attacks=attacks, radii=radii, batch_size=batch_size)


def _accuracies(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attacks: Mapping[str, _Attack],
    radii: Sequence[float],
    batch_size: int,
) -> dict[str, dict[float, float]]:
    """Return the accuracy under each attack and under all of them, by ascending radius."""

    def batches(index: Tensor) -> Iterator[Tensor]:
        return (index[start : start + batch_size] for start in range(0, len(index), batch_size))

    everyone = torch.arange(len(labels), device=labels.device)
    clean = torch.cat([_correct(model, images[part], labels[part]) for part in batches(everyone)])
    standing = {name: clean.clone() for name in attacks}
    accuracy: dict[str, dict[float, float]] = {name: {} for name in [*attacks, "worst"]}
    for epsilon in radii:
        for name, attack in attacks.items():
            for part in batches(everyone[standing[name]]) if epsilon > 0 else ():
                adversarial = attack(images[part], labels[part], epsilon)
                standing[name][part] = _correct(model, adversarial, labels[part])
            accuracy[name][epsilon] = standing[name].double().mean().item()
        withstood = torch.stack(list(standing.values())).all(dim=0)
        accuracy["worst"][epsilon] = withstood.double().mean().item()
    return accuracy


def _attacks(
    model: nn.Module, steps: int, restarts: int, seed: int, unit: Tensor | None
) -> dict[str, _Attack]:
    """Return the attacks of :func:`robust_accuracy` by name, as functions of a batch."""

    def attack_fgsm(images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        return fgsm(model, images, labels, epsilon, unit=unit)

    def attack_pgd(objective: str) -> _Attack:
        return lambda images, labels, epsilon: pgd(
            model,
            images,
            labels,
            epsilon,
            steps=steps,
            restarts=restarts,
            objective=objective,
            seed=seed,
            unit=unit,
        )

    return {"fgsm": attack_fgsm, "pgd-ce": attack_pgd("ce"), "pgd-dlr": attack_pgd("dlr")}


class _Ball:
    """The l-infinity ball of radius epsilon around each image; within [0, 1] without a unit."""

    def __init__(self, images: Tensor, epsilon: float, unit: Tensor | None) -> None:
        self._images = images
        self._radius = epsilon if unit is None else epsilon * unit
        self._lower, self._upper = images - self._radius, images + self._radius
        if unit is None:
            self._lower, self._upper = self._lower.clamp(0, 1), self._upper.clamp(0, 1)

    def project(self, points: Tensor) -> Tensor:
        """Return the nearest points of the ball."""
        return torch.clamp(points, self._lower, self._upper)

    def starts(self, restarts: int, seed: int) -> Iterator[Tensor]:
        """Yield the images themselves, then points that are uniform in the ball."""
        generator = torch.Generator().manual_seed(seed)
        yield self._images
        for _ in range(restarts - 1):
            noise = torch.rand(self._images.shape, generator=generator).to(self._images)
            yield self.project(self._images + self._radius * (2 * noise - 1))


class _Ascent(NamedTuple):
    """An evaluation of the objective: misclassified (N,), value (N,) and gradient (N, ...)."""

    fooled: Tensor
    value: Tensor
    gradient: Tensor


class _Worst:
    """The worst image of each sample so far."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        shape = images.shape[:1]
        self._fooled = torch.zeros(shape, dtype=torch.bool, device=images.device)
        self._value = torch.full(shape, -torch.inf, dtype=images.dtype, device=images.device)

    def update(self, points: Tensor, ascent: _Ascent) -> None:
        """Replace the images of samples for which a point is worse."""
        fooled = ascent.fooled
        higher = (fooled == self._fooled) & (ascent.value > self._value)
        worse = (fooled & ~self._fooled) | higher
        self.images = torch.where(worse.view(-1, *[1] * (points.ndim - 1)), points, self.images)
        self._fooled = self._fooled | fooled
        self._value = torch.where(worse, ascent.value, self._value)


def _check(images: Tensor, labels: Tensor, epsilons: Sequence[float], unit: Tensor | None) -> None:
    """Raise InputError if images, labels, radii or their unit do not keep to the contract."""
    if not images.is_floating_point() or images.ndim < 2 or not len(images):
        raise InputError(
            "images: should be floats of shape (N, ...) with N >= 1, "
            f"got {images.dtype}, {tuple(images.shape)}"
        )
    # Written so that NaN fails too.
    if unit is None and not bool((images >= 0).logical_and(images <= 1).all()):
        raise InputError(
            "images: should be in [0, 1]; normalisation belongs into the model, and data without "
            "pixels need a unit"
        )
    if unit is not None:
        _check_unit(images, unit)
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"labels: should be int64 of shape ({len(images)},), "
            f"got {labels.dtype}, {tuple(labels.shape)}"
        )
    for epsilon in epsilons:
        if not 0 <= epsilon <= 1:
            raise InputError(
                f"epsilon: should be in [0, 1], the units of the images, got {epsilon}"
            )


def _check_unit(images: Tensor, unit: Tensor) -> None:
    if not images.isfinite().all():
        raise InputError("images: should be finite numbers")
    try:
        fits = unit.expand(images.shape[1:]).shape == images.shape[1:]
    except RuntimeError:
        fits = False
    if not fits or not bool((unit > 0).logical_and(unit < torch.inf).all()):
        raise InputError(
            "unit: should be finite numbers above 0 of a shape that broadcasts to "
            f"{tuple(images.shape[1:])}, got {unit.dtype} {tuple(unit.shape)}"
        )


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name}: should be at least 1, got {count}")


def _step_size(step_size: float | None, epsilon: float, steps: int) -> float:
    if step_size is None:
        return 2.5 * epsilon / steps
    if not 0 < step_size < float("inf"):
        raise InputError(f"step_size: should be a number above 0, got {step_size}")
    return step_size


def _objective(name: str) -> _Objective:
    objectives: dict[str, _Objective] = {"ce": _cross_entropy, "dlr": dlr}
    if name not in objectives:
        raise InputError(f"objective: should be one of {', '.join(objectives)}, got {name!r}")
    return objectives[name]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the length of a block."""
    # Flag by flag: a model in training mode may hold frozen parts that are not.
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the model's logits of a batch; raise InputError if they do not fit the labels."""
    logits: Tensor = model(images)
    if logits.ndim != 2 or logits.shape[0] != len(labels) or logits.shape[1] < 2:
        raise InputError(
            f"model: should return logits of shape ({len(labels)}, n) with n >= 2, "
            f"got {tuple(logits.shape)}"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(
            f"labels: should be from 0 to {logits.shape[1] - 1}, the classes that the model knows"
        )
    return logits


def _fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each sample is misclassified, (N,)."""
    # A NaN is no classification. But argmax picks it, so that a diverged network would score on the
    # class of its NaN.
    return (logits.argmax(dim=1) != labels) | logits.isnan().any(dim=1)


@torch.no_grad()
def _correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return whether each image is classified correctly, (N,)."""
    with _evaluating(model):
        return ~_fooled(_logits(model, images, labels), labels)


def _ascent(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    objective: _Objective,
    *,
    differentiate: bool = True,
) -> _Ascent:
    """Evaluate the objective at images; without ``differentiate`` the gradient is 0."""
    with torch.set_grad_enabled(differentiate):
        images = images.detach().requires_grad_(differentiate)
        logits = _logits(model, images, labels)
        values = objective(logits, labels)
        if differentiate:
            gradient = torch.autograd.grad(values.sum(), images)[0]
        else:
            gradient = torch.zeros_like(images)
    return _Ascent(_fooled(logits, labels).detach(), values.detach(), gradient)
