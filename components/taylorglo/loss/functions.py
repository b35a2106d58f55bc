"""The loss functions: what all of them share, and the Taylor loss of the search.

All are called in the same way: ``loss(logits, targets)`` is the mean over the samples, and
``loss.per_sample(logits, targets)`` has the value of each sample.
"""

import json
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeGuard, Unpack

import torch
from torch import Tensor, nn

from taylorglo.errors import InputError, quoted
from taylorglo.files import replacing
from taylorglo.loss import closed_form
from taylorglo.loss.conventions import (
    IGNORED,
    Options,
    Reduction,
    check_options,
    counted,
    is_plain,
    rows,
    smoothed,
    weight_tensor,
)
from taylorglo.loss.formula import at_least_float32, distribution, one_hot, taylor
from taylorglo.loss.polynomial import (
    MOST_BYTES,
    check_classes,
    checked_theta,
    from_coefficients,
    length,
)
from taylorglo.loss.source import python_source
from taylorglo.reading import is_safetensors, parse_json, read_bytes

# Files of the first format have a theta without the logarithm, and name no family.
_FIRST_FORMAT = "taylorglo.loss/1"
_FORMAT = "taylorglo.loss/2"
_FAMILIES = {"taylor": False, "taylor-log": True}


class Loss(nn.Module, ABC):
    """A classification loss, called as ``nn.CrossEntropyLoss`` is without options.

    It is computed in float32 at least, also for logits of a lower precision.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the samples, a scalar; the class index -100 marks those to ignore.

        Args:
            logits: (n,), (N, n), or (N, n, d1, ...).
            targets: class indices (), (N,), or (N, d1, ...), or distributions of the logits' shape.

        Raises:
            InputError: a shape does not fit, or a class index is out of range (on other devices
                than the CPU, PyTorch says so itself).
        """
        z, t, _ = rows(logits, targets)
        used = None if t.is_floating_point() else counted(t, z.shape[1], IGNORED)
        if used is None:
            return self.per_sample(z, t).mean()
        return self.per_sample(z, t.where(used, 0)).where(used, 0).sum() / used.sum()

    @abstractmethod
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, (N,).

        Args:
            logits: (N, n).
            targets: class indices (N,), or distributions (N, n).
        """


class TaylorLoss(Loss):
    """The Taylor loss L = -sum_k f(t_k, softmax(z)_k) of a theta (regularization paper, section 2).

    It is called as ``nn.CrossEntropyLoss`` is, with the same options, shapes and targets: logits
    (n,), (N, n) or (N, n, d1, ...), and class indices or distributions. With ``reduction="mean"``
    and class indices, the result is divided by the sum of the weights of the targets, and otherwise
    by the number of samples. The gradient is with respect to logits, and to theta if it requires
    one. Nothing of a loss is in the ``state_dict``.

    Args:
        theta: k(k+1)/2 + 2 finite numbers: the two centres, then the coefficients in the order of
            ``taylorglo.loss.polynomial``. One more number, w >= 0, adds w times cross-entropy. A
            tensor is used without a copy, so that one compiled graph serves all candidates (assign
            to ``loss.theta`` in place) and gradients with respect to theta can be taken.
        order: k from 2 to 8.
        weight: of each class, n numbers: a sample of the class y counts w_y times. For other
            distributions see :func:`taylorglo.loss.formula.taylor`.
        ignore_index: the class index of the samples that do not count.
        reduction: ``none``, ``mean`` or ``sum``.
        label_smoothing: a in [0, 1]; a target t becomes (1 - a) t + a/n.
        classes: number of classes of the data that the loss was found on, if it is known.
        provenance: where the loss comes from, as JSON values; :meth:`save` keeps it.

    Raises:
        InputError: theta has the wrong length, an entry that is not a finite number, or a w < 0; or
            an option is none that ``nn.CrossEntropyLoss`` takes.
    """

    theta: Tensor
    weight: Tensor | None

    def __init__(
        self,
        theta: Sequence[float] | Tensor,
        order: int = 3,
        *,
        weight: Sequence[float] | Tensor | None = None,
        ignore_index: int = IGNORED,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        classes: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        weights = weight_tensor(weight)
        check_options(weights, ignore_index, reduction, label_smoothing)
        if classes is not None:
            check_classes(classes)
        self.register_buffer("theta", _theta_tensor(theta, order), persistent=False)
        self.register_buffer("weight", weights, persistent=False)
        self.order = order
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.classes = classes
        self.provenance = dict(provenance or {})
        self._warned = False
        # A theta on another device as numbers, with the tensor and the version that were read.
        self._read: tuple[Tensor, int, tuple[float, ...]] | None = None

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
        **options: Unpack[Options],
    ) -> Self:
        """Build the loss of order 3 whose gamma has these coefficients.

        gamma(t, h) = c1 + ch h + chh h^2 + chy h t + cy t + cyy t^2 (regularization paper, section
        3), and w t/h besides if the weight w >= 0 of the logarithm is given.

        Raises:
            InputError: a number is not finite, ``log_weight`` is below 0, or an option is wrong.
        """
        theta = from_coefficients(cy, chy, ch, chh, cyy=cyy, c1=c1, log_weight=log_weight)
        return cls(theta, 3, classes=classes, provenance=provenance, **options)

    @property
    def family(self) -> str:
        """Return ``taylor``, or ``taylor-log`` if theta has the weight of the logarithm."""
        return "taylor" if len(self.theta) == length(self.order) else "taylor-log"

    @property
    def log_weight(self) -> float:
        """Return the weight w of the logarithm: 0 in the family ``taylor``."""
        return 0.0 if self.family == "taylor" else float(self.theta[-1])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move the module, but keep the precision of its numbers, which ``half()`` would round.

        Apple's GPUs have no float64: such numbers stay on the CPU, and are rounded on their way.
        """
        exact = dict(self._buffers)
        self._buffers.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            if value is not None:
                device = fn(torch.empty(0, device=value.device)).device
                stays = device.type == "mps" and value.dtype == torch.float64
                value = value if stays else value.to(device)
            self._buffers[name] = value
        return self

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss as ``reduction`` says: a scalar, or the loss of each sample.

        Args:
            logits: (n,), (N, n), or (N, n, d1, ...).
            targets: class indices (), (N,), or (N, d1, ...), or distributions of the logits' shape.

        Raises:
            InputError: a shape does not fit, a class index is out of range (on other devices than
                the CPU, PyTorch says so itself), there are not as many weights as classes, or
                ``ignore_index`` names a class and the targets are distributions.
        """
        z, t, shape = rows(logits, targets)
        self._check_classes(z.shape[1])
        sizes = None
        if t.is_floating_point():
            if self.ignore_index >= 0:
                raise InputError(
                    f"ignore_index is {self.ignore_index}, but only class indices can be ignored; "
                    "these targets are distributions"
                )
            values = self._of_distributions(z, t)
        else:
            used = counted(t, z.shape[1], self.ignore_index)
            if used is not None:
                t = t.where(used, 0)
            alike = used is None and self.weight is None and self.reduction != "none"
            if alike and self._is_quick(z):
                return self._in_closed_form(z, t, self._share(len(t)))
            values = self._of_indices(z, t)
            if self.weight is not None:
                sizes = self.weight.to(z)[t]
            if used is not None:
                values = values.where(used, 0)
                sizes = used.to(z.dtype) if sizes is None else sizes.where(used, 0)
        if self.reduction == "none":
            return values.reshape(shape)
        if self.reduction == "mean" and sizes is not None:
            return values.sum() / sizes.sum()
        return values.mean() if self.reduction == "mean" else values.sum()

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, (N,), as its formula is and as a search computes it.

        It may be negative: a Taylor loss is defined up to a constant only. Weights, label smoothing
        and ``ignore_index`` have no effect on it. With class indices, :meth:`forward` computes the
        same in closed form, which rounds differently.

        Args:
            logits: (N, n).
            targets: class indices (N,), or distributions (N, n).
        """
        logits = at_least_float32(logits)
        return taylor(self.theta, self.order, logits, distribution(logits, targets))

    def _is_quick(self, logits: Tensor) -> bool:
        """Return whether the closed form will do: it has a gradient for the logits alone.

        Exported programs and PyTorch's transforms of functions take the formula.
        """
        if self.label_smoothing or self.theta.requires_grad:
            return False
        if torch.compiler.is_compiling():
            return not torch.compiler.is_exporting()
        return is_plain(logits)

    def _of_indices(self, logits: Tensor, indices: Tensor) -> Tensor:
        """Return the weighted losses (N,) of class indices."""
        if not self._is_quick(logits):
            return self._of_distributions(logits, one_hot(indices, logits))
        values = self._in_closed_form(logits, indices)
        return values if self.weight is None else values * self.weight.to(logits)[indices]

    def _in_closed_form(
        self, logits: Tensor, indices: Tensor, share: float | None = None
    ) -> Tensor:
        """Return the losses (N,) of class indices without weights, or a share of their sum."""
        numbers = None if torch.compiler.is_compiling() else self._numbers()
        return closed_form.losses(
            logits, indices, self.theta, self.order, numbers=numbers, share=share
        )

    def _share(self, number: int) -> float:
        """Return what the sum of this number of losses is multiplied by."""
        if self.reduction == "sum":
            return 1.0
        # The mean of nothing is NaN, as in PyTorch.
        return 1 / number if number else math.nan

    def _of_distributions(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted losses (N,) of distributions (N, n)."""
        weight = None if self.weight is None else self.weight.to(logits)
        targets = smoothed(targets, self.label_smoothing)
        return taylor(self.theta, self.order, logits, targets, weight=weight)

    def _numbers(self) -> tuple[float, ...]:
        """Return theta as numbers, without waiting for another device unless theta is new."""
        theta = self.theta
        if theta.device.type == "cpu":
            return tuple(theta.tolist())
        # A tensor of the inference mode has no version: nothing tells whether it was changed.
        if theta.is_inference():
            return tuple(theta.tolist())
        if self._read is None or self._read[0] is not theta or self._read[1] != theta._version:
            self._read = (theta, theta._version, tuple(theta.tolist()))
        return self._read[2]

    def _check_classes(self, number: int) -> None:
        """Refuse weights of another number of classes, and warn, once, of another loss."""
        if self.weight is not None and len(self.weight) != number:
            raise InputError(
                f"weight has {len(self.weight)} numbers; there should be {number}, one per class"
            )
        if torch.compiler.is_compiling() or self._warned or self.classes in (None, number):
            return
        # NumPy is not needed otherwise.
        from taylorglo.loss.dynamics import dynamics

        self._warned = True
        theta = self.theta.tolist()
        names = ("A", "B", "p*")
        pairs = zip(names, dynamics(theta, self.classes), dynamics(theta, number), strict=True)
        changes = ", ".join(f"{name} {_digits(old)} -> {_digits(new)}" for name, old, new in pairs)
        warnings.warn(
            f"this loss was found for {self.classes} classes, and the logits have {number}: "
            f"{changes} (learning drive, collapse rate, equilibrium confidence)",
            stacklevel=5,
        )

    def source(self) -> str:
        """Return a Python program of some thirty lines that has this loss and needs PyTorch alone.

        Its ``loss(logits, targets)`` is the mean of :meth:`per_sample`, to the bit, and so are its
        gradients. It has no options.
        """
        return python_source(
            self.theta.tolist(), self.order, classes=self.classes, provenance=self.provenance
        )

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
    def load(cls, path: str | os.PathLike[str], **options: Unpack[Options]) -> Self:
        """Read what :meth:`save` wrote, also in the format of versions before the logarithm.

        Args:
            path: of the file.
            **options: ``weight``, ``ignore_index``, ``reduction`` and ``label_smoothing``.

        Raises:
            InputError: the file is missing, is no saved loss, has a format that this version does
                not read, or holds an invalid theta; or an option is wrong.
        """
        try:
            if is_safetensors(path):
                raise InputError(
                    f"{path}: is a network or data, and no saved loss: taylorglo.load_network "
                    "reads networks, and taylorglo.load_loss the loss.json beside them"
                )
            content = parse_json(read_bytes(path, MOST_BYTES))
        except InputError:
            raise
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
            saved = cls._from_saved(content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        classes, provenance = saved.classes, saved.provenance
        return cls(saved.theta, saved.order, classes=classes, provenance=provenance, **options)

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
        """Return the coefficients and the options that were set, for ``print(loss)``."""
        theta = [round(value, 4) for value in self.theta.tolist()]
        weight = None if self.weight is None else self.weight.tolist()
        options = [
            ("weight", weight, None),
            ("ignore_index", self.ignore_index, -100),
            ("reduction", self.reduction, "mean"),
            ("label_smoothing", self.label_smoothing, 0.0),
        ]
        chosen = "".join(f", {name}={value!r}" for name, value, usual in options if value != usual)
        return f"theta={theta}, order={self.order}{chosen}"


def _digits(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


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
