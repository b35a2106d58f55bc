"""The Taylor loss of class indices in closed form, with its gradient.

With a one-hot target, the loss per class is l(1, h_y) for the target y and l(0, h_k) for the others
(l = -f, see :mod:`taylorglo.loss.polynomial`). Let a_j be the coefficients of l(0, h) in powers of
h, and d_j those of l(1, h) - l(0, h), which has the degree k - 1. Because the h_k add up to 1,

    L = n a_0 + a_1 + d_0 + sum_{j>=2} a_j sum_k h_k^j + sum_{j>=1} d_j h_y^j - w log h_y

and with r(h) = sum_{j>=2} j a_j h^j and e = sum_{j>=1} j d_j h_y^j - w, the learning rule is

    dL/dz_j = r(h_j) - h_j (sum_k r(h_k) + e) + [j = y] e

(a_1 has no effect on it). So no one-hot tensor is needed, and value and gradient together take a
few passes over the logits.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taylorglo.loss.formula import one_hot, taylor
from taylorglo.loss.polynomial import length, terms

# The exponential function as a power of 2: PyTorch computes powers of 2 much faster on a CPU.
_LOG2_E = math.log2(math.e)
# How many logits are worked on at a time on a CPU, so that they stay in its cache.
_BLOCK = 2**19


class ClosedForm(NamedTuple):
    """The numbers of the closed form for n classes, each a tensor without axes.

    Attributes:
        constant: n a_0 + a_1 + d_0.
        sums: a_j (1 - j/k) for j from 2 to k - 1.
        pulls: j a_j for j from 2 to k.
        share: 1/k. The sum over a_j h^j is 1/k of the sum over j a_j h^j, and that of ``sums``.
        target: d_j for j from 1 to k - 1.
        target_pulls: j d_j for j from 1 to k - 1.
        log_weight: w; None if the loss has no logarithm.
    """

    constant: Tensor
    sums: list[Tensor]
    pulls: list[Tensor]
    share: Tensor
    target: list[Tensor]
    target_pulls: list[Tensor]
    log_weight: Tensor | None


def closed_form(theta: Tensor, order: int, num_classes: int, dtype: torch.dtype) -> ClosedForm:
    """Return the closed form of a loss, computed in the precision of theta and rounded to another.

    Args:
        theta: (L,), as for :func:`taylorglo.loss.functions.taylor`.
        order: k >= 2.
        num_classes: n.
        dtype: the precision of the numbers.
    """
    numbers = theta.unbind()
    th0, th1 = numbers[:2]
    zero = torch.zeros_like(th0)
    each, target = [zero] * (order + 1), [zero] * (order + 1)
    for (a, b), value in zip(terms(order), numbers[2 : length(order)], strict=True):
        # l(t, h) = -value (t - th0)^a (h - th1)^b at t = 0, and the difference of t = 1 from it.
        at_zero = -value * (-th0) ** a
        difference = -value * (1 - th0) ** a - at_zero if a else zero
        for j in range(b + 1):
            factor = math.comb(b, j) * (-th1) ** (b - j)
            each[j] = each[j] + at_zero * factor
            target[j] = target[j] + difference * factor

    def rounded(values: Sequence[Tensor]) -> list[Tensor]:
        return [value.to(dtype) for value in values]

    weight = numbers[-1].to(dtype) if len(numbers) > length(order) else None
    constant = num_classes * each[0] + each[1] + target[0]
    return ClosedForm(
        constant=constant.to(dtype),
        sums=rounded([each[j] * (1 - j / order) for j in range(2, order)]),
        pulls=rounded([j * each[j] for j in range(2, order + 1)]),
        share=torch.full_like(zero, 1 / order, dtype=dtype),
        target=rounded(target[1:order]),
        target_pulls=rounded([j * target[j] for j in range(1, order)]),
        log_weight=weight,
    )


@functools.lru_cache(maxsize=64)
def _remembered(
    theta: tuple[float, ...], order: int, num_classes: int, dtype: torch.dtype
) -> ClosedForm:
    """Return the closed form of a theta of numbers, on the CPU, whose numbers any device takes."""
    with torch.inference_mode(False), torch.no_grad():
        numbers = torch.tensor(theta, dtype=torch.float64, device="cpu")
        return closed_form(numbers, order, num_classes, dtype)


def losses(
    logits: Tensor,
    indices: Tensor,
    theta: Tensor,
    order: int,
    *,
    numbers: tuple[float, ...] | None = None,
    share: float | None = None,
) -> Tensor:
    """Return the loss of each sample, (N,), or a share of their sum.

    Args:
        logits: (N, n), in float32 or float64.
        indices: int64, (N,), all in range.
        theta: (L,), without a gradient.
        order: k >= 2.
        numbers: theta as numbers; None to compute with the tensor, in a compiled graph.
        share: if it is given, the result is this number times the sum.
    """
    form = None
    if numbers is not None:
        form = _remembered(numbers, order, logits.shape[1], logits.dtype)
    if torch.is_grad_enabled() and logits.requires_grad:
        values: Tensor = _Losses.apply(logits, indices, theta, order, form, share)
        return values
    if form is None:
        form = closed_form(theta, order, logits.shape[1], logits.dtype)
    values = _in_blocks(logits, indices, form, None)
    return values if share is None else values.sum() * share


class _Losses(torch.autograd.Function):
    """The losses, whose gradient is computed beside them."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        indices: Tensor,
        theta: Tensor,
        order: int,
        form: ClosedForm | None,
        share: float | None,
    ) -> Tensor:
        if form is None:
            form = closed_form(theta, order, logits.shape[1], logits.dtype)
        gradient = torch.empty_like(logits)
        values = _in_blocks(logits, indices, form, gradient)
        ctx.save_for_backward(gradient, logits, indices, theta)
        ctx.order, ctx.share = order, share
        return values if share is None else values.sum() * share

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        gradient, logits, indices, theta = ctx.saved_tensors
        slopes = slope.unsqueeze(1) if ctx.share is None else slope * ctx.share
        if torch.is_grad_enabled():
            # The gradient will be differentiated, too.
            distributions = one_hot(indices, logits)
            total = taylor(theta, ctx.order, logits, distributions).unsqueeze(1) * slopes
            (product,) = torch.autograd.grad(total.sum(), logits, create_graph=True)
        else:
            product = gradient * slopes
        return product, None, None, None, None, None


def _in_blocks(
    logits: Tensor, indices: Tensor, form: ClosedForm, gradient: Tensor | None
) -> Tensor:
    """Return the losses, (N,), and fill the gradient, with a few rows at a time on a CPU."""
    index = indices.unsqueeze(1)
    number = len(logits)
    if torch.compiler.is_compiling() or logits.device.type != "cpu" or logits.numel() <= _BLOCK:
        return _evaluate(logits, index, form, gradient).squeeze(1)
    size = max(1, _BLOCK // logits.shape[1])
    blocks = []
    for start in range(0, number, size):
        rows = slice(start, start + size)
        part = None if gradient is None else gradient[rows]
        blocks.append(_evaluate(logits[rows], index[rows], form, part))
    return torch.cat(blocks).squeeze(1)


def _evaluate(logits: Tensor, indices: Tensor, form: ClosedForm, gradient: Tensor | None) -> Tensor:
    """Return the loss of each sample, (N, 1), for indices (N, 1); fill the gradient, (N, n)."""
    log_h = logits.log_softmax(dim=1)
    log_y = log_h.gather(1, indices)
    y = log_y.exp()
    h = log_h.mul_(_LOG2_E).exp2_()
    power = h * h
    r = _polynomial(power, h, form.pulls)
    pull = r.sum(dim=1, keepdim=True)
    values = pull * form.share
    values += _polynomial(y, y, form.target)
    values += form.constant
    if form.log_weight is not None:
        values -= log_y.mul_(form.log_weight)
    for index, number in enumerate(form.sums):
        if index:
            power *= h
        values += power.sum(dim=1, keepdim=True).mul_(number)
    if gradient is not None:
        at_target = _polynomial(y, y, form.target_pulls)
        if form.log_weight is not None:
            at_target -= form.log_weight
        pull += at_target
        torch.addcmul(r, h, pull, value=-1, out=gradient)
        gradient.scatter_add_(1, indices, at_target)
    return values


def _polynomial(factor: Tensor, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
    """Return a factor times sum_{j>=0} c_j x^j, by Horner's rule."""
    *others, last = coefficients
    if not others:
        return factor * last
    first, *middle = others
    value = x * last
    for number in reversed(middle):
        value += number
        value *= x
    value += first
    value *= factor
    return value
