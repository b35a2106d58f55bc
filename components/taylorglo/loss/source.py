"""A found loss as a Python program that needs PyTorch alone.

It computes what :func:`taylorglo.loss.formula.taylor` does, in the same order, to the last bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from taylorglo.errors import quoted
from taylorglo.loss.polynomial import checked_theta, length

_PROGRAM = '''\
"""A loss for PyTorch, called as nn.CrossEntropyLoss is. taylorglo found it."""
{origin}
import torch
from torch.nn.functional import one_hot

ORDER = {order}
THETA = [  # two centres, then the coefficients of v^a u^b (a + b <= {order}){logarithm}
{theta}]


def loss(logits, targets):
    """Return the mean loss of logits (N, n) and class indices (N,) or distributions (N, n)."""
    return per_sample(logits, targets).mean()


def per_sample(logits, targets):
    """Return the loss of each sample, (N,): -sum_k f(t_k, h_k) with h = softmax(logits)."""
    z = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    t = targets if targets.is_floating_point() else one_hot(targets.long(), z.shape[1])
    t = t.to(z.dtype)
    theta = iter(torch.tensor(THETA, dtype=z.dtype).to(z.device).view(-1, 1, 1))
    v = t - next(theta)
    u = z.softmax(dim=-1) - next(theta)
    c = {{(a, b): next(theta) for a in range(ORDER) for b in range(1, ORDER - a + 1)}}
    f = 0.0
    for b in range(ORDER, 0, -1):
        row = c[ORDER - b, b]
        for a in range(ORDER - b - 1, -1, -1):
            row = torch.addcmul(c[a, b], row, v)
        f = (f + row) * u
{result}
'''

_POLYNOMIAL = "    return -f.sum(dim=-1)"
_LOGARITHM = """\
    cross_entropy = -(t * z.log_softmax(dim=-1)).sum(dim=-1)
    return -f.sum(dim=-1) + next(theta).squeeze(-1) * cross_entropy"""


def python_source(
    theta: Sequence[float], order: int, *, classes: int | None, provenance: Mapping[str, Any]
) -> str:
    """Return the program of a loss.

    Args:
        theta: of either family.
        order: k.
        classes: the number of classes of the data that the loss was found on, if it is known.
        provenance: of the loss; its ``sweep`` and ``data`` are named.

    Raises:
        InputError: theta is not valid.
    """
    numbers, _ = checked_theta(theta, order)
    log = len(numbers) > length(order)
    # Names are another's words. Quoted, they are one line, and cannot end the comment.
    named = [f"{key} {quoted(provenance[key])}" for key in ("sweep", "data") if key in provenance]
    words = [*named, *([f"{classes} classes"] if classes else [])]
    origin = f"# It is from: {', '.join(words)}.\n" if words else ""
    return _PROGRAM.format(
        origin=origin,
        order=order,
        logarithm=", then w" if log else "",
        theta="".join(f"    {number!r},\n" for number in numbers),
        result=_LOGARITHM if log else _POLYNOMIAL,
    )
