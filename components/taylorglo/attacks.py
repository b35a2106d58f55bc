"""l-infinity attacks on a classifier, and the accuracy that withstands them.

Contract: images are floats in [0, 1] of shape (N, ...), labels int64 (N,), both on the model's device; epsilon is in
the same units (a pixel's full range is 1), so normalisation is part of the model, which returns logits (N, n), n >= 2.
Gradients are taken with respect to the images alone: parameters, their ``.grad`` and the training flags of the model
are as before when a function returns.

A loss that flattens the confidences also flattens the gradients of cross-entropy, and looks robust to an attack that
follows them; so there are two objectives, cross-entropy and the scale-invariant DLR.

FGSM: Goodfellow et al. 2015 (arXiv 1412.6572). PGD: Madry et al. 2018 (arXiv 1706.06083). DLR: Croce & Hein 2020
(arXiv 2003.01690).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from taylorglo.errors import InputError


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, equation 6 of Croce & Hein 2020; above 0 where misclassified. Per sample, (N,)."""
    ordered = logits.topk(min(3, logits.shape[1]), dim=1).values
    target = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    margin = target.squeeze(1) - others.amax(dim=1)
    if logits.shape[1] == 2:
        return -margin
    return -margin / (ordered[:, 0] - ordered[:, 2] + 1e-12)


_OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": _cross_entropy, "dlr": _dlr}


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Fast gradient sign method: one step of size epsilon along the sign of the gradient of cross-entropy.

    Args:
        model: returns logits (N, n); put into evaluation mode for the duration.
        images: (N, ...), floats in [0, 1].
        labels: (N,), int64, the true classes.
        epsilon: radius of the l-infinity ball, in [0, 1].

    Returns:
        Adversarial images, of the shape of ``images``: in [0, 1], and within epsilon of ``images``.

    Raises:
        InputError: where the arguments do not keep to this.
    """
    _check(images, labels, [epsilon])
    with _evaluating(model):
        _, _, gradient = _ascent(model, images, labels, _cross_entropy)
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
) -> Tensor:
    """Projected gradient descent in the l-infinity ball: the worst image of all steps of all restarts, per sample.

    Worst is: misclassified before correctly classified, and among equals the one with the higher objective.

    Args:
        model: returns logits (N, n); put into evaluation mode for the duration.
        images: (N, ...), floats in [0, 1].
        labels: (N,), int64, the true classes.
        epsilon: radius of the ball, in [0, 1].
        steps: gradient steps per restart, at least 1.
        step_size: of one step, above 0; by default 2.5 epsilon / steps, so that every corner is within reach
            (Madry et al. 2018).
        restarts: at least 1. The first starts at the image itself, the others at points drawn uniformly from the ball.
        objective: what is ascended: "ce", cross-entropy; or "dlr", the untargeted difference of logits ratio (Croce &
            Hein 2020). With two classes the ratio has no denominator, and "dlr" is the plain margin of the logits.
        seed: of the starting points, which are drawn on the CPU and so are the same on every device.

    Returns:
        Adversarial images, of the shape of ``images``: in [0, 1], and within epsilon of ``images``.

    Raises:
        InputError: where the arguments do not keep to this.
    """
    _check(images, labels, [epsilon])
    if steps < 1 or restarts < 1:
        raise InputError(f"steps and restarts: should be at least 1, got {steps} and {restarts}")
    if step_size is not None and not 0 < step_size < float("inf"):
        raise InputError(f"step_size: should be a number above 0, got {step_size}")
    if objective not in _OBJECTIVES:
        raise InputError(f"objective: should be one of {', '.join(_OBJECTIVES)}, got {objective!r}")
    if epsilon == 0:
        return images.clone()

    step = 2.5 * epsilon / steps if step_size is None else step_size
    lower, upper = (images - epsilon).clamp(0, 1), (images + epsilon).clamp(0, 1)
    generator = torch.Generator().manual_seed(seed)
    worst = images.clone()
    worst_fooled = torch.zeros_like(labels, dtype=torch.bool)
    worst_value = torch.full(labels.shape, -torch.inf, dtype=images.dtype, device=images.device)
    with _evaluating(model):
        for restart in range(restarts):
            point = images
            if restart > 0:
                noise = torch.rand(images.shape, generator=generator).to(images)
                point = torch.clamp(images + epsilon * (2 * noise - 1), lower, upper)
            for number in range(steps + 1):
                fooled, value, gradient = _ascent(
                    model, point, labels, _OBJECTIVES[objective], differentiate=number < steps
                )
                worse = (fooled & ~worst_fooled) | (
                    (fooled == worst_fooled) & (value > worst_value)
                )
                worst = torch.where(worse.view(-1, *[1] * (images.ndim - 1)), point, worst)
                worst_fooled = worst_fooled | fooled
                worst_value = torch.where(worse, value, worst_value)
                point = torch.clamp(point + step * gradient.sign(), lower, upper)
    return worst


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
) -> dict[str, dict[float, float]]:
    """Accuracy under FGSM, PGD on cross-entropy, PGD on DLR, and the worst of the three, for each epsilon.

    The accuracy is the fraction of all the images that are classified correctly both clean and attacked; only images
    that are correct when clean are attacked. An image that an attack broke at a smaller epsilon counts as broken at
    every larger one, because the larger ball contains the smaller: so no curve rises.

    Args:
        model: returns logits (N, n); put into evaluation mode for the duration.
        images: (N, ...), floats in [0, 1], N >= 1.
        labels: (N,), int64, the true classes.
        epsilons: radii of the balls, in [0, 1]; 0 is added where it is missing.
        pgd_steps: steps of :func:`pgd`.
        pgd_restarts: restarts of :func:`pgd`.
        batch_size: images attacked at once; the random starts of an image depend on it.
        seed: of the random starts.

    Returns:
        ``{attack: {epsilon: accuracy}}`` for the attacks "fgsm", "pgd-ce", "pgd-dlr" and "worst" (an image withstands
        all three), the epsilons in ascending order. At epsilon 0 it is the clean accuracy.

    Raises:
        InputError: where the arguments do not keep to this.
    """
    radii = sorted({0.0, *epsilons})
    _check(images, labels, radii)
    for name, count in (
        ("pgd_steps", pgd_steps),
        ("pgd_restarts", pgd_restarts),
        ("batch_size", batch_size),
    ):
        if count < 1:
            raise InputError(f"{name}: should be at least 1, got {count}")

    def attack_pgd(objective: str) -> Callable[[Tensor, Tensor, float], Tensor]:
        return lambda x, y, epsilon: pgd(
            model,
            x,
            y,
            epsilon,
            steps=pgd_steps,
            restarts=pgd_restarts,
            objective=objective,
            seed=seed,
        )

    attacks: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
        "fgsm": lambda x, y, epsilon: fgsm(model, x, y, epsilon),
        "pgd-ce": attack_pgd("ce"),
        "pgd-dlr": attack_pgd("dlr"),
    }

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


def _check(images: Tensor, labels: Tensor, epsilons: Sequence[float]) -> None:
    if not images.is_floating_point() or images.ndim < 2 or not len(images):
        raise InputError(
            f"images: should be floats of shape (N, ...) with N >= 1, got {images.dtype}, {tuple(images.shape)}"
        )
    # Written so that NaN fails too.
    if not bool((images >= 0).logical_and(images <= 1).all()):
        raise InputError("images: should be in [0, 1]; normalisation belongs into the model")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"labels: should be int64 of shape ({len(images)},), got {labels.dtype}, {tuple(labels.shape)}"
        )
    for epsilon in epsilons:
        if not 0 <= epsilon <= 1:
            raise InputError(
                f"epsilon: should be in [0, 1], the units of the images, got {epsilon}"
            )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # Flag by flag: a model in training mode may hold frozen parts that are not.
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits: Tensor = model(images)
    if logits.ndim != 2 or logits.shape[0] != len(labels) or logits.shape[1] < 2:
        raise InputError(
            f"model: should return logits of shape ({len(labels)}, n) with n >= 2, got {tuple(logits.shape)}"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(
            f"labels: should be from 0 to {logits.shape[1] - 1}, the classes that the model knows"
        )
    return logits


def _fooled(logits: Tensor, labels: Tensor) -> Tensor:
    # argmax picks a NaN, which is no classification: a diverged network would score on the class of
    # its NaN.
    return (logits.argmax(dim=1) != labels) | logits.isnan().any(dim=1)


@torch.no_grad()
def _correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with _evaluating(model):
        return ~_fooled(_logits(model, images, labels), labels)


def _ascent(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    objective: Callable[[Tensor, Tensor], Tensor],
    differentiate: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each image is misclassified (N,), its objective (N,), and the objective's gradient (N, ...)."""
    with torch.set_grad_enabled(differentiate):
        images = images.detach().requires_grad_(differentiate)
        logits = _logits(model, images, labels)
        values = objective(logits, labels)
        gradient = (
            torch.autograd.grad(values.sum(), images)[0]
            if differentiate
            else torch.zeros_like(images)
        )
    return _fooled(logits, labels).detach(), values.detach(), gradient
