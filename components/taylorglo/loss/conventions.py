"""The conventions of ``nn.CrossEntropyLoss`` for logits and targets, and the errors in one line."""

from collections.abc import Sequence
from numbers import Real
from typing import Literal, NamedTuple, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from taylorglo.errors import InputError, quoted
from taylorglo.loss.formula import widened

IGNORED = -100  # the class index of samples that do not count, as in PyTorch
Reduction = Literal["none", "mean", "sum"]


class Options(TypedDict, total=False):
    """The options that a loss shares with ``nn.CrossEntropyLoss``.

    Attributes:
        weight: of each class, n finite numbers.
        ignore_index: the class index of the samples that do not count.
        reduction: ``none``, ``mean`` or ``sum``.
        label_smoothing: a in [0, 1]; a target t becomes (1 - a) t + a/n.
    """

    weight: Sequence[float] | Tensor | None
    ignore_index: int
    reduction: Reduction
    label_smoothing: float


class Rows(NamedTuple):
    """Logits and targets with one row for each sample.

    Attributes:
        logits: (N, n), in float32 or float64.
        targets: class indices (N,), int64, or distributions (N, n), in the logits' precision.
        shape: the shape of the losses, one for each sample.
    """

    logits: Tensor
    targets: Tensor
    shape: torch.Size


def check_options(
    weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> None:
    """Refuse options that ``nn.CrossEntropyLoss`` refuses, and weights that are no numbers.

    Raises:
        InputError: an option has a wrong type, shape or value.
    """
    if weight is not None and weight.dim() != 1:
        raise InputError(f"weight should have shape (classes,), has {tuple(weight.shape)}")
    if weight is not None and not bool(weight.isfinite().all()):
        raise InputError("weight should be finite numbers, has NaN or infinity")
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
        raise InputError(f"ignore_index should be a whole number, is {quoted(ignore_index)}")
    if reduction not in get_args(Reduction):
        raise InputError(f"reduction should be none, mean or sum, is {quoted(reduction)}")
    if not isinstance(label_smoothing, Real) or not 0 <= label_smoothing <= 1:
        raise InputError(
            f"label_smoothing should be a number from 0 to 1, is {quoted(label_smoothing)}"
        )


def weight_tensor(weight: Sequence[float] | Tensor | None) -> Tensor | None:
    """Return the weights of the classes as a tensor: a tensor as it is, and numbers in float64.

    Raises:
        InputError: they are no numbers.
    """
    if weight is None or isinstance(weight, Tensor):
        return weight
    try:
        return torch.tensor(weight, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"weight should be numbers, is {quoted(weight)}") from None


def rows(logits: Tensor, targets: Tensor) -> Rows:
    """Return a row for each sample.

    Args:
        logits: (n,), (N, n), or (N, n, d1, ...).
        targets: class indices (), (N,), or (N, d1, ...), or distributions of the logits' shape.

    Raises:
        InputError: types or shapes are others, or n < 2.
    """
    if not (isinstance(logits, Tensor) and isinstance(targets, Tensor)):
        kinds = f"{type(logits).__name__} and {type(targets).__name__}"
        raise InputError(f"logits and targets should be tensors, are {kinds}")
    dim = min(logits.dim() - 1, 1)
    if dim < 0 or logits.shape[dim] < 2 or not logits.is_floating_point():
        raise InputError(
            "logits should be floats of shape (classes,), (samples, classes) or (samples, classes, "
            f"...) with 2 classes or more, are {_name(logits.dtype)} of shape {tuple(logits.shape)}"
        )
    shape = logits.shape[:dim] + logits.shape[dim + 1 :]
    soft = targets.is_floating_point()
    if soft and targets.shape != logits.shape:
        raise InputError(
            f"soft targets should have shape {tuple(logits.shape)}, have {tuple(targets.shape)}"
        )
    if not soft and targets.shape != shape:
        raise InputError(
            f"class indices should have shape {tuple(shape)}, have {tuple(targets.shape)}"
        )
    if targets.dtype == torch.bool or targets.is_complex():
        raise InputError(f"targets should be integers or floats, are {_name(targets.dtype)}")
    values = widened(logits)
    targets = targets.to(values.dtype) if soft else targets.long()
    if logits.dim() == 2:
        return Rows(values, targets, shape)
    number = logits.shape[dim]
    return Rows(
        values.movedim(dim, -1).reshape(-1, number),
        targets.movedim(dim, -1).reshape(-1, number) if soft else targets.reshape(-1),
        shape,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def is_plain(logits: Tensor) -> bool:
    """Return whether the logits are an ordinary tensor now: nothing records or transforms it."""
    return (
        type(logits) in (Tensor, nn.Parameter)
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
        # The closed form has no rule for derivatives in forward mode.
        and forward_ad._current_level < 0
    )


def counted(indices: Tensor, num_classes: int, ignore_index: int) -> Tensor | None:
    """Return which samples count, (N,), or None if all of them do.

    Indices on the CPU are checked. Those on another device would have to be waited for: PyTorch
    itself stops the program there, with an assertion.

    Raises:
        InputError: an index is neither that of a class, nor ``ignore_index``.
    """
    known = not torch.compiler.is_compiling() and is_plain(indices)
    if not known or indices.device.type != "cpu":
        return indices != ignore_index
    if not indices.numel():
        return None
    least, most = (int(index) for index in indices.aminmax())
    if least >= 0 and most < num_classes and not least <= ignore_index <= most:
        return None
    used = indices != ignore_index
    wrong = indices[used & ((indices < 0) | (indices >= num_classes))]
    if wrong.numel():
        raise InputError(
            f"class indices should be from 0 to {num_classes - 1}, or {ignore_index} for samples "
            f"to ignore; {int(wrong[0])} is not"
        )
    return used


def smoothed(distributions: Tensor, label_smoothing: float) -> Tensor:
    """Return (1 - a) t + a/n for distributions t, (N, n), and a in [0, 1]."""
    if not label_smoothing:
        return distributions
    share = label_smoothing / distributions.shape[-1]
    return distributions * (1 - label_smoothing) + share
