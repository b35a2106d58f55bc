"""The Taylor loss as its formula, class by class, for any targets and for several thetas at once.

It is what the searches train with. :mod:`taylorglo.loss.closed_form` is quicker for class indices.
"""

import torch
from torch import Tensor

from taylorglo.errors import InputError
from taylorglo.loss.polynomial import length, terms


def taylor(
    theta: Tensor, order: int, logits: Tensor, targets: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Return the Taylor loss of each sample, for one theta or for several.

    With weights w_k of the classes, cross-entropy is -sum_k w_k t_k log h_k, as
    ``nn.CrossEntropyLoss`` has it. The polynomial of a class depends on all logits, so it is the
    whole sum of a sample that is weighted, by sum_k w_k t_k. Both are w_y times the loss if the
    target is the class y.

    Args:
        theta: (L,), or (M, L) for M networks at once; L is the length of a theta of this order,
            without the weight of the logarithm or with it.
        order: k >= 2.
        logits: (N, n), or (M, N, n).
        targets: distributions, (N, n), or (M, N, n).
        weight: of the classes, (n,).

    Returns:
        (N,), or (M, N).
    """
    logits = widened(logits)
    targets = targets.to(logits.dtype)
    # First the precision, then the device: Apple's GPUs have no float64.
    th = theta.to(logits.dtype).to(logits.device)[..., None, None, :].unbind(-1)
    index = {exponents: 2 + position for position, exponents in enumerate(terms(order))}
    v = targets - th[0]
    u = logits.softmax(dim=-1) - th[1]
    f = torch.zeros_like(th[0])
    # Horner's rule: in h outside, and in t inside.
    for b in range(order, 0, -1):
        coefficient = th[index[order - b, b]]
        for a in range(order - b - 1, -1, -1):
            coefficient = torch.addcmul(th[index[a, b]], coefficient, v)
        f = (f + coefficient) * u
    values = -f.sum(dim=-1)
    if weight is not None:
        targets = targets * weight
        values = values * targets.sum(dim=-1)
    if len(th) > length(order):
        # The logarithm of h itself would be infinite if h is below the smallest float.
        cross_entropies = -(targets * logits.log_softmax(dim=-1)).sum(dim=-1)
        values = values + th[-1].squeeze(-1) * cross_entropies
    return values


def at_least_float32(logits: Tensor) -> Tensor:
    """Return the logits in float32 or float64; refuse another shape than (N, n)."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError(
            f"logits should have shape (samples, classes >= 2), have {tuple(logits.shape)}"
        )
    return widened(logits)


def widened(logits: Tensor) -> Tensor:
    """Return the logits in float32 or float64."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def distribution(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the targets as distributions, in the shape and the precision of the logits."""
    if targets.is_floating_point():
        if targets.shape != logits.shape:
            raise InputError(
                f"soft targets should have shape {tuple(logits.shape)}, have {tuple(targets.shape)}"
            )
        return targets.to(logits.dtype)
    if targets.shape != logits.shape[:1]:
        raise InputError(
            f"class indices should have shape ({logits.shape[0]},), have {tuple(targets.shape)}"
        )
    return one_hot(targets, logits)


def one_hot(indices: Tensor, logits: Tensor) -> Tensor:
    """Return class indices (N,) as distributions, in the shape and the precision of the logits."""
    # Not functional.one_hot: it waits for the device, and has no rule for vmap.
    return torch.zeros_like(logits).scatter(1, indices.long().unsqueeze(1), 1.0)
