"""The classic losses, to compare a found loss with.

All take hard targets (class indices) and soft ones, and are computed from the logarithm of the
softmax, so that values and gradients stay finite however large the logits are. The exception is
:class:`Baikal`, which has no bound if the target's probability goes to 0.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from taylorglo.errors import InputError, quoted
from taylorglo.loss.dynamics import (
    GENERALISED_POWER,
    LOG_OF_ZERO,
    SYMMETRIC_WEIGHTS,
    check_classic,
)
from taylorglo.loss.formula import at_least_float32, distribution
from taylorglo.loss.functions import Loss
from taylorglo.loss.polynomial import is_number


class CrossEntropy(Loss):
    """L = -sum_k t_k log h_k, with the targets smoothed by ``label_smoothing`` in [0, 1)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not (is_number(label_smoothing) and 0 <= label_smoothing < 1):
            raise InputError(
                f"label smoothing should be at least 0 and below 1, is {quoted(label_smoothing)}"
            )
        self.label_smoothing = label_smoothing

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,)."""
        logits = at_least_float32(logits)
        t = distribution(logits, targets)
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
        logits = at_least_float32(logits)
        return (distribution(logits, targets) - logits.softmax(dim=1)).square().sum(dim=1)


class Baikal(Loss):
    """L = -sum_k (log h_k - t_k / h_k), the loss found by GLO (arXiv 1905.11528)."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,)."""
        logits = at_least_float32(logits)
        log_h = logits.log_softmax(dim=1)
        # t/h is computed as one power of e: it is 0 if t is 0, even if 1/h alone would overflow.
        return (torch.exp(distribution(logits, targets).log() - log_h) - log_h).sum(dim=1)


class GeneralisedCrossEntropy(Loss):
    """L = sum_k t_k (1 - h_k^q) / q, between cross-entropy (q -> 0) and absolute error (q = 1).

    It is the L_q loss of Zhang & Sabuncu 2018 (arXiv 1805.07836, section 3.2), for noisy labels;
    its value is in [0, 1/q]. At q = 1 it is half of :class:`MeanAbsoluteError`.

    Args:
        q: in (0, 1]; 0.7 is the value of the paper.

    Raises:
        InputError: q is outside of its range.
    """

    def __init__(self, q: float = GENERALISED_POWER) -> None:
        super().__init__()
        if not (is_number(q) and 0 < q <= 1):
            raise InputError(f"q should be above 0 and at most 1, is {quoted(q)}")
        self.q = q

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,)."""
        logits = at_least_float32(logits)
        # The slope of h^q has no bound at h = 0, but that of e^(q log h) is q e^(q log h).
        # 1 - h^q by itself would lose all digits if h is near 1, or q near 0.
        lost = -torch.expm1(self.q * logits.log_softmax(dim=1)) / self.q
        return (distribution(logits, targets) * lost).sum(dim=1)

    def extra_repr(self) -> str:
        """Return q, for ``print(loss)``."""
        return f"q={self.q}"


class SymmetricCrossEntropy(Loss):
    """L = alpha CE + beta RCE, with RCE = -sum_k h_k log t_k, in which log t_k is at least -4.

    It is the loss of Wang et al. 2019 (arXiv 1908.06112, section 4) for noisy labels: log 0 counts
    as A = -4. With hard targets RCE is 4 (1 - h_y). With soft targets the logarithms below A count
    as A, too, so that RCE does not jump at t_k = 0.

    Args:
        alpha: weight of cross-entropy, at least 0; 0.1 is the paper's for CIFAR-10.
        beta: weight of the reverse cross-entropy, at least 0; 1 is the paper's for CIFAR-10.

    Raises:
        InputError: a weight is negative or not finite.
    """

    def __init__(
        self, alpha: float = SYMMETRIC_WEIGHTS[0], beta: float = SYMMETRIC_WEIGHTS[1]
    ) -> None:
        super().__init__()
        for name, weight in {"alpha": alpha, "beta": beta}.items():
            if not (is_number(weight) and 0 <= weight < math.inf):
                raise InputError(
                    f"{name} should be a finite number, at least 0, is {quoted(weight)}"
                )
        self.alpha = alpha
        self.beta = beta

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,)."""
        logits = at_least_float32(logits)
        t = distribution(logits, targets)
        cross_entropy = functional.cross_entropy(logits, t, reduction="none")
        log_t = t.log().clamp(min=LOG_OF_ZERO)
        reverse = -(logits.softmax(dim=1) * log_t).sum(dim=1)
        return self.alpha * cross_entropy + self.beta * reverse

    def extra_repr(self) -> str:
        """Return the weights, for ``print(loss)``."""
        return f"alpha={self.alpha}, beta={self.beta}"


class MeanAbsoluteError(Loss):
    """L = sum_k |t_k - h_k|, which is 2 (1 - h_y) for hard targets.

    Ghosh et al. 2017 (arXiv 1712.09482) prove that it withstands uniform label noise. As there, it
    is the sum over the classes, and the mean over the samples alone; its value is in [0, 2].
    """

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (N,)."""
        logits = at_least_float32(logits)
        return (distribution(logits, targets) - logits.softmax(dim=1)).abs().sum(dim=1)


_CLASSES: Mapping[str, Callable[[], Loss]] = {
    "squared-error": SquaredError,
    "baikal": Baikal,
    "generalised-cross-entropy": GeneralisedCrossEntropy,
    "symmetric-cross-entropy": SymmetricCrossEntropy,
    "mean-absolute-error": MeanAbsoluteError,
}


def classic(name: str, label_smoothing: float = 0.0) -> Loss:
    """Return a classic loss, with the parameters of its paper.

    Args:
        name: one of :data:`taylorglo.loss.dynamics.CLASSIC`.
        label_smoothing: in [0, 1), for cross-entropy only.

    Raises:
        InputError: the name is unknown, or the label smoothing is impossible.
    """
    check_classic(name, label_smoothing)
    return CrossEntropy(label_smoothing) if name == "cross-entropy" else _CLASSES[name]()
