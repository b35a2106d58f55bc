"""The loss functions: the Taylor loss of the search, and the classic losses to compare it with.

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

from taylorglo.errors import InputError
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

_FORMAT = "taylorglo.loss/1"


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
            ``taylorglo.loss.polynomial``. A tensor is used without a copy, so that one compiled
            graph serves all candidates (assign to ``loss.theta`` in place) and gradients with
            respect to theta can be taken.
        order: k from 2 to 8.
        classes: number of classes of the data that the loss was found on, if it is known.
        provenance: where the loss comes from, as JSON values; :meth:`save` keeps it.

    Raises:
        InputError: theta has the wrong length, or an entry that is not a finite number.
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
        classes: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Self:
        """Build the loss of order 3 whose gamma has these coefficients.

        gamma(t, h) = c1 + ch h + chh h^2 + chy h t + cy t + cyy t^2 (regularization paper, section
        3).
        """
        theta = from_coefficients(cy, chy, ch, chh, cyy=cyy, c1=c1)
        return cls(theta, 3, classes=classes, provenance=provenance)

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
        logits = _at_least_float32(logits)
        return taylor(self.theta, self.order, logits, _distribution(logits, targets))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write theta, order, classes and provenance as JSON.

        If there is such a file already, it is replaced as a whole or not at all.

        Raises:
            InputError: the file cannot be written, or provenance has values that JSON cannot hold.
        """
        target = Path(path)
        content = {
            "format": _FORMAT,
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
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is missing, is no saved loss, or holds an invalid theta.
        """
        try:
            content = parse_json(read_bytes(path, MOST_BYTES))
        except OSError as error:
            raise InputError(f"{path}: is not a saved loss: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{path}: is not a saved loss: {error}") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise InputError(f'{path}: is not a saved loss: there is no "format": "{_FORMAT}"')
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
        return cls(theta, order, classes=classes, provenance=provenance)

    def extra_repr(self) -> str:
        """Return the coefficients, for ``print(loss)``."""
        return f"theta={[round(value, 4) for value in self.theta.tolist()]}, order={self.order}"


def taylor(theta: Tensor, order: int, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the Taylor loss of each sample, for one theta or for several.

    Args:
        theta: (L,), or (M, L) for M networks at once; L is the length of a theta of this order.
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
    return -f.sum(dim=-1)


class CrossEntropy(Loss):
    """L = -sum_k t_k log h_k, with the targets smoothed by ``label_smoothing`` in [0, 1)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise InputError(
                f"label smoothing should be at least 0 and below 1, is {label_smoothing}"
            )
        self.label_smoothing = label_smoothing

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,)."""
        logits = _at_least_float32(logits)
        t = _distribution(logits, targets)
        return functional.cross_entropy(
            logits, t, reduction="none", label_smoothing=self.label_smoothing
        )

    def extra_repr(self) -> str:
        """Return the label smoothing, for ``print(loss)``."""
        return f"label_smoothing={self.label_smoothing}"


class SquaredError(Loss):
    """L = sum_k (t_k - h_k)^2 on the softmax outputs (the Brier score)."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,)."""
        logits = _at_least_float32(logits)
        return (_distribution(logits, targets) - logits.softmax(dim=1)).square().sum(dim=1)


class Baikal(Loss):
    """L = -sum_k (log h_k - t_k / h_k), the loss found by GLO (arXiv 1905.11528)."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,)."""
        logits = _at_least_float32(logits)
        log_h = logits.log_softmax(dim=1)
        # t/h is computed as one power of e: it is 0 if t is 0, even if 1/h alone would overflow.
        return (torch.exp(_distribution(logits, targets).log() - log_h) - log_h).sum(dim=1)


def classic(name: str, label_smoothing: float = 0.0) -> Loss:
    """Return a classic loss.

    Args:
        name: ``cross-entropy``, ``squared-error`` or ``baikal``.
        label_smoothing: in [0, 1), for cross-entropy only.

    Raises:
        InputError: the name is unknown, or the label smoothing is impossible.
    """
    if label_smoothing and name != "cross-entropy":
        raise InputError(f"label smoothing is for cross-entropy only, not for {name!r}")
    if name == "cross-entropy":
        return CrossEntropy(label_smoothing)
    if name == "squared-error":
        return SquaredError()
    if name == "baikal":
        return Baikal()
    raise InputError(f"unknown loss {name!r}; there are cross-entropy, squared-error and baikal")


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
    if theta.shape != (length(order),):
        raise InputError(f"theta should have shape ({length(order)},), has {tuple(theta.shape)}")
    return theta


def _at_least_float32(logits: Tensor) -> Tensor:
    """Return the logits in float32 or float64; refuse another shape than (N, n)."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError(
            f"logits should have shape (samples, classes >= 2), have {tuple(logits.shape)}"
        )
    return _widened(logits)


def _widened(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _distribution(logits: Tensor, targets: Tensor) -> Tensor:
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
