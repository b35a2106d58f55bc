"""What all attacks have in common: their contract, and how they look at a network.

The contract: images are floats in [0, 1] of shape (N, ...), labels are int64 of shape (N,), and
both are on the network's device. The network returns logits (N, n) with n >= 2, so normalisation is
part of it. Data without pixels, such as the features of a table, may have any finite values: a
``unit`` is given with them, such as the standard deviation of each feature, and perturbations are
measured in it. Nothing is cut to [0, 1] then.

Gradients are taken with respect to the images alone: when a function returns, the parameters of the
network, their ``.grad`` and the training flags are as they were before.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from numbers import Integral

import torch
from torch import Tensor, nn

from taylorglo.attacks.ball import NORMS
from taylorglo.errors import InputError, meant

Network = Callable[[Tensor], Tensor]


def check(
    images: Tensor, labels: Tensor, epsilons: Sequence[float], *, norm: str, unit: Tensor | None
) -> None:
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
    check_choice("norm", norm, NORMS)
    for epsilon in epsilons:
        _check_epsilon(epsilon, norm)


def _check_epsilon(epsilon: float, norm: str) -> None:
    if norm == "linf" and not 0 <= epsilon <= 1:
        raise InputError(f"epsilon: should be in [0, 1], the units of the images, got {epsilon}")
    if not 0 <= epsilon < float("inf"):
        raise InputError(f"epsilon: should be a finite number from 0 on, got {epsilon}")


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


def check_counts(**counts: int) -> None:
    """Raise InputError if a number of things is no whole number, or below 1."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool):
            raise InputError(f"{name}: should be a whole number, got {count!r}")
        if count < 1:
            raise InputError(f"{name}: should be at least 1, got {count}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise InputError if a text is not among its choices."""
    if value not in choices:
        raise InputError(
            f"{name}: should be one of {', '.join(choices)}, got {value!r}{meant(value, choices)}"
        )


@contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """Put a network into evaluation mode, without gradients of its parameters, within a block."""
    with ExitStack() as stack:
        if isinstance(network, nn.Module):
            stack.enter_context(_frozen(network))
        yield


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    # Flag by flag: a model in training mode may hold frozen parts that are not.
    flags = [(module, module.training) for module in network.modules()]
    # A gradient of the weights would cost half as much again as that of the images alone.
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        _evaluate(network)
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for parameter in trained:
            parameter.requires_grad_(True)


def _evaluate(network: nn.Module) -> None:
    # An exported program has one mode, and refuses to change it.
    with suppress(NotImplementedError):
        network.eval()


def logits_of(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of a batch; raise InputError if they do not fit the labels."""
    logits = network(images)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"model: should return a tensor of logits (N, n), got a {type(logits).__name__}"
        )
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


@torch.no_grad()
def looked_at(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of a batch, without a graph for gradients, after a check."""
    return logits_of(network, images, labels)


def fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each sample is misclassified, (N,)."""
    # A NaN is no classification. But argmax picks it, so that a diverged network would score on the
    # class of its NaN.
    return (logits.argmax(dim=1) != labels) | logits.isnan().any(dim=1)


def named(logits: Tensor) -> Tensor:
    """Return the class that a network names for each sample, (N,); -1 if a logit is NaN."""
    return logits.argmax(dim=1).masked_fill(logits.isnan().any(dim=1), -1)
