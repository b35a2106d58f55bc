"""The loss functions: what all of them share, and the Taylor loss of the search.

All are called in the same way: ``loss(logits, targets)`` is the mean over the batch, and
``loss.per_sample(logits, targets)`` has the value of each sample.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from taylorglo.errors import InputError, quoted
from taylorglo.files import replacing
from taylorglo.loss.polynomial import (
    MOST_BYTES,
    check_classes,
    checked_theta,
    from_coefficients,
    length,
    terms,
)
from taylorglo.reading import parse_json, read_bytes

# Files of the first format have a theta without the logarithm, and name no family.
_FIRST_FORMAT = "taylorglo.loss/1"
_FORMAT = "taylorglo.loss/2"
_FAMILIES = {"taylor": False, "taylor-log": True}


class Loss(nn.Module, ABC):
    """A classification loss on logits (N, n).

    Targets are class indices (N,), or distributions (N, n). The loss is computed in float32 at
    least, also for logits of a lower precision.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the batch, a scalar."""
        return self.per_sample(logits, targets).mean()

    @abstractmethod
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,)."""


class TaylorLoss(Loss):
    """The Taylor loss L = -sum_k f(t_k, softmax(z)_k) of a theta (regularization paper, section 2).

    Args:
        theta: k(k+1)/2 + 2 finite numbers: the two centres, then the coefficients in the order of
            ``taylorglo.loss.polynomial``. One more number, w >= 0, adds w times cross-entropy. A
            tensor is used without a copy, so that one compiled graph serves all candidates (assign
            to ``loss.theta`` in place) and gradients with respect to theta can be taken.
        order: k from 2 to 8.
        classes: number of classes of the data that the loss was found on, if it is known.
        provenance: where the loss comes from, as JSON values; :meth:`save` keeps it.

    Raises:
        InputError: theta has the wrong length, an entry that is not a finite number, or a w < 0.
    """

    theta: Tensor

    def __init__(
        self,
        theta: Sequence[float] | Tensor,
        order: int = 3,
        *,
        classes: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("theta", _theta_tensor(theta, order))
        if classes is not None:
            check_classes(classes)
        self.order = order
        self.classes = classes
        self.provenance = dict(provenance or {})

    @classmethod
    def from_coefficients(
        cls,
        cy: float,
        chy: float,
        ch: float,
        chh: float,
        *,
        cyy: float = 0.0,
        c1: float = 0.0,
        log_weight: float | None = None,
        classes: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Self:
        """Build the loss of order 3 whose gamma has these coefficients.

        gamma(t, h) = c1 + ch h + chh h^2 + chy h t + cy t + cyy t^2 (regularization paper, section
        3), and w t/h besides if the weight w >= 0 of the logarithm is given.

        Raises:
            InputError: a number is not finite, or ``log_weight`` is below 0.
        """
        theta = from_coefficients(cy, chy, ch, chh, cyy=cyy, c1=c1, log_weight=log_weight)
        return cls(theta, 3, classes=classes, provenance=provenance)

    @property
    def family(self) -> str:
        """Return ``taylor``, or ``taylor-log`` if theta has the weight of the logarithm."""
        return "taylor" if len(self.theta) == length(self.order) else "taylor-log"

    @property
    def log_weight(self) -> float:
        """Return the weight w of the logarithm: 0 in the family ``taylor``."""
        return 0.0 if self.family == "taylor" else float(self.theta[-1])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Convert the module, but not the precision of theta, which ``half()`` would round."""
        exact = self.theta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.theta = exact.to(self.theta.device)
        return self

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,).

        It may be negative: a Taylor loss is defined up to a constant only.
        """
        logits = at_least_float32(logits)
        return taylor(self.theta, self.order, logits, distribution(logits, targets))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write family, theta, order, classes and provenance as JSON.

        If there is such a file already, it is replaced as a whole or not at all.

        Raises:
            InputError: the file cannot be written, or provenance has values that JSON cannot hold.
        """
        target = Path(path)
        content = {
            "format": _FORMAT,
            "family": self.family,
            "theta": self.theta.detach().tolist(),
            "order": self.order,
            "classes": self.classes,
            "provenance": self.provenance,
        }
        try:
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            with replacing(target) as file:
                file.write(text.encode())
        except (TypeError, ValueError) as error:
            raise InputError(f"{target}: the loss is not JSON: {error}") from None
        except OSError as error:
            raise InputError(f"{target}: cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote, also in the format of versions before the logarithm.

        Raises:
            InputError: the file is missing, is no saved loss, has a format that this version does
                not read, or holds an invalid theta.
        """
        try:
            content = parse_json(read_bytes(path, MOST_BYTES))
        except OSError as error:
            raise InputError(f"{path}: is not a saved loss: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{path}: is not a saved loss: {error}") from None
        if not isinstance(content, dict) or "format" not in content:
            raise InputError(f'{path}: is not a saved loss: there is no "format": "{_FORMAT}"')
        if content["format"] not in (_FIRST_FORMAT, _FORMAT):
            raise InputError(
                f"{path}: is not a saved loss that this version reads: the format is "
                f"{quoted(content['format'])}; it should be {_FORMAT!r} or {_FIRST_FORMAT!r}"
            )
        try:
            return cls._from_saved(content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def _from_saved(cls, content: Mapping[str, Any]) -> Self:
        theta = content.get("theta")
        order = content.get("order")
        classes = content.get("classes")
        provenance = content.get("provenance")
        if not isinstance(theta, list) or not all(_is_number(value) for value in theta):
            raise InputError("theta should be a list of numbers")
        if not _is_whole(order) or not (classes is None or _is_whole(classes)):
            raise InputError("order and classes should be whole numbers")
        if not isinstance(provenance, dict | None) or not _is_json(provenance):
            raise InputError("provenance should be a group of named values, all numbers finite")
        family = content.get("family") if content["format"] == _FORMAT else "taylor"
        if not isinstance(family, str) or family not in _FAMILIES:
            raise InputError(f"family should be taylor or taylor-log, is {quoted(family)}")
        checked_theta(theta, order, log=_FAMILIES[family])
        return cls(theta, order, classes=classes, provenance=provenance)

    def extra_repr(self) -> str:
        """Return the coefficients, for ``print(loss)``."""
        return f"theta={[round(value, 4) for value in self.theta.tolist()]}, order={self.order}"


def taylor(theta: Tensor, order: int, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the Taylor loss of each sample, for one theta or for several.

    Args:
        theta: (L,), or (M, L) for M networks at once; L is the length of a theta of this order,
            without the weight of the logarithm or with it.
        order: k >= 2.
        logits: (N, n), or (M, N, n).
        targets: distributions, (N, n), or (M, N, n).

    Returns:
        (N,), or (M, N).
    """
    logits = _widened(logits)
    targets = targets.to(logits.dtype)
    th = theta.to(device=logits.device, dtype=logits.dtype)[..., None, None, :].unbind(-1)
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
    if len(th) > length(order):
        # The logarithm of h itself would be infinite if h is below the smallest float.
        cross_entropies = -(targets * logits.log_softmax(dim=-1)).sum(dim=-1)
        values = values + th[-1].squeeze(-1) * cross_entropies
    return values


def _is_whole(value: object) -> TypeGuard[int]:
    # To Python, a truth value is a whole number.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float) or _is_whole(value)


def _is_json(values: object) -> bool:
    """Return whether :meth:`TaylorLoss.save` could write what was read: not NaN, or infinity."""
    try:
        json.dumps(values, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return True


def _theta_tensor(theta: Sequence[float] | Tensor, order: int) -> Tensor:
    """Return a theta as a tensor: a tensor as it is, and numbers in float64."""
    if not isinstance(theta, Tensor):
        numbers, _ = checked_theta(theta, order)
        return torch.tensor(numbers, dtype=torch.float64)
    checked_theta(theta.detach().flatten().tolist(), order)
    if theta.dim() != 1:
        raise InputError(f"theta should have shape ({theta.numel()},), has {tuple(theta.shape)}")
    return theta


def at_least_float32(logits: Tensor) -> Tensor:
    """Return the logits in float32 or float64; refuse another shape than (N, n)."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError(
            f"logits should have shape (samples, classes >= 2), have {tuple(logits.shape)}"
        )
    return _widened(logits)


def _widened(logits: Tensor) -> Tensor:
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
    return functional.one_hot(targets.long(), logits.shape[1]).to(logits.dtype)
