"""The classic losses against formulas of their own, at extreme logits, and in their limits."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import taylorglo
from taylorglo.errors import InputError
from taylorglo.loss import dynamics
from taylorglo.loss.classic import (
    Baikal,
    CrossEntropy,
    GeneralisedCrossEntropy,
    MeanAbsoluteError,
    SquaredError,
    SymmetricCrossEntropy,
    classic,
)
from taylorglo.loss.functions import Loss

CLASSES = [2, 3, 10]
POWERS = [0.01, 0.3, 0.7, 1.0]
KINDS = {
    "cross-entropy": CrossEntropy,
    "squared-error": SquaredError,
    "baikal": Baikal,
    "generalised-cross-entropy": GeneralisedCrossEntropy,
    "symmetric-cross-entropy": SymmetricCrossEntropy,
    "mean-absolute-error": MeanAbsoluteError,
}
# Those that are finite for all logits.
BOUNDED: list[Loss] = [
    CrossEntropy(),
    CrossEntropy(0.1),
    SquaredError(),
    GeneralisedCrossEntropy(),
    GeneralisedCrossEntropy(1e-3),
    GeneralisedCrossEntropy(1.0),
    SymmetricCrossEntropy(),
    SymmetricCrossEntropy(6.0, 0.1),
    MeanAbsoluteError(),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (8, n), soft targets, of which some are 0 and some tiny, and class indices."""
    source = generator(seed)
    logits = 3 * torch.randn(8, n, generator=source, dtype=torch.float64)
    shares = torch.rand(8, n, generator=source, dtype=torch.float64).pow(4)
    shares[0, 0] = shares[1, 1] = 0.0
    shares[2, 0] = 1e-6
    soft = shares / shares.sum(dim=1, keepdim=True)
    return logits, soft, torch.randint(n, (8,), generator=source)


def one_hot(indices: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[indices]


def softmax(z: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in z]
    return [value / math.fsum(exponentials) for value in exponentials]


def log_at_least_minus_4(t: float) -> float:
    return max(-4.0, math.log(t)) if t > 0 else -4.0


def generalised(q: float, t: list[float], h: list[float]) -> float:
    return math.fsum(a * (1 - b**q) / q for a, b in zip(t, h, strict=True))


def symmetric(alpha: float, beta: float, t: list[float], h: list[float]) -> float:
    cross_entropy = -math.fsum(a * math.log(b) for a, b in zip(t, h, strict=True))
    reverse = -math.fsum(b * log_at_least_minus_4(a) for a, b in zip(t, h, strict=True))
    return alpha * cross_entropy + beta * reverse


def absolute(t: list[float], h: list[float]) -> float:
    return math.fsum(abs(a - b) for a, b in zip(t, h, strict=True))


@pytest.mark.parametrize("n", CLASSES)
def test_values_are_those_of_the_papers(n: int) -> None:
    for seed in range(5):
        logits, soft, indices = batch(n, seed)
        for targets, distributions in ((soft, soft), (indices, one_hot(indices, n))):
            pairs = [
                (t, softmax(z))
                for t, z in zip(distributions.tolist(), logits.tolist(), strict=True)
            ]
            expected: list[tuple[Loss, list[float]]] = [
                *(
                    (GeneralisedCrossEntropy(q), [generalised(q, t, h) for t, h in pairs])
                    for q in POWERS
                ),
                *(
                    (SymmetricCrossEntropy(a, b), [symmetric(a, b, t, h) for t, h in pairs])
                    for a, b in ((0.1, 1.0), (6.0, 0.1), (0.0, 2.0))
                ),
                (MeanAbsoluteError(), [absolute(t, h) for t, h in pairs]),
            ]
            for loss, values in expected:
                computed = loss.per_sample(logits, targets)
                assert computed.dtype == torch.float64
                assert computed.tolist() == pytest.approx(values, rel=1e-10, abs=1e-12)
                mean = math.fsum(values) / len(values)
                assert loss(logits, targets).item() == pytest.approx(mean, rel=1e-10)


def test_the_defaults_are_those_of_the_papers() -> None:
    assert GeneralisedCrossEntropy().q == 0.7
    weights = SymmetricCrossEntropy()
    assert (weights.alpha, weights.beta) == (0.1, 1.0)


@settings(deadline=None, derandomize=True)
@given(st.floats(0.01, 1), st.sampled_from(CLASSES), st.integers(0, 2**31))
def test_gradients_follow_gamma(q: float, n: int, seed: int) -> None:
    """dL/dz_j = -h_j (gamma_j - sum_k h_k gamma_k), with gamma = df/dh by hand."""
    logits, soft, indices = batch(n, seed)
    h = logits.softmax(dim=1)
    for targets, t in ((soft, soft), (indices, one_hot(indices, n))):
        rules: list[tuple[Loss, Tensor]] = [
            (GeneralisedCrossEntropy(q), t * h ** (q - 1)),
            (SymmetricCrossEntropy(q, 2 * q), q * t / h + 2 * q * t.log().clamp(min=-4)),
            (MeanAbsoluteError(), (t - h).sign()),
        ]
        for loss, gamma in rules:
            leaf = logits.clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss.per_sample(leaf, targets).sum(), leaf)
            expected = -h * (gamma - (h * gamma).sum(dim=1, keepdim=True))
            torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)


def test_gradients_are_the_slopes_of_the_values() -> None:
    logits, soft, indices = batch(4, 3)
    for loss in BOUNDED:
        for targets in (soft, indices):
            assert torch.autograd.gradcheck(
                lambda z, loss=loss, targets=targets: loss.per_sample(z, targets),
                (logits.clone().requires_grad_(),),
            )


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize(
    "precision", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("loss", BOUNDED, ids=repr)
def test_extreme_logits_have_finite_values_and_gradients(
    loss: Loss, precision: torch.dtype, size: float
) -> None:
    logits = torch.full((4, 10), -size)
    logits[torch.arange(4), torch.arange(4)] = size
    soft = torch.full((4, 10), 0.1)
    for targets in (torch.arange(4), torch.arange(4) + 1, soft):
        leaf = logits.to(precision).requires_grad_()
        values = loss.per_sample(leaf, targets)
        (slope,) = torch.autograd.grad(values.sum(), leaf)
        assert values.isfinite().all()
        assert slope.isfinite().all()


def test_the_values_at_both_ends() -> None:
    logits = torch.tensor([[1e4, -1e4, -1e4]])
    right, wrong = torch.tensor([0]), torch.tensor([1])
    ends: list[tuple[Loss, float]] = [
        (GeneralisedCrossEntropy(), 1 / 0.7),
        (SymmetricCrossEntropy(), 0.1 * 2e4 + 4),
        (MeanAbsoluteError(), 2.0),
    ]
    for loss, worst in ends:
        assert loss(logits, right).item() == pytest.approx(0, abs=1e-6)
        assert loss(logits, wrong).item() == pytest.approx(worst)


@pytest.mark.parametrize("n", CLASSES)
def test_limits_and_relations_of_the_losses(n: int) -> None:
    logits, soft, indices = batch(n, 7)
    h = logits.softmax(dim=1)
    target = h.gather(1, indices[:, None])[:, 0]
    absolute_error = MeanAbsoluteError().per_sample(logits, indices)
    torch.testing.assert_close(absolute_error, 2 * (1 - target))
    reverse = SymmetricCrossEntropy(0.0, 1.0).per_sample(logits, indices)
    torch.testing.assert_close(reverse, 4 * (1 - target))
    # The generalised cross-entropy is half of the absolute error at q = 1.
    linear = GeneralisedCrossEntropy(1.0).per_sample(logits, indices)
    torch.testing.assert_close(linear, absolute_error / 2)
    for targets in (soft, indices):
        cross_entropy = CrossEntropy().per_sample(logits, targets)
        without_reverse = SymmetricCrossEntropy(1.0, 0.0).per_sample(logits, targets)
        torch.testing.assert_close(without_reverse, cross_entropy)
        # Towards q = 0 it is cross-entropy: the difference is q log(h)^2 / 2 at most.
        near = GeneralisedCrossEntropy(1e-9).per_sample(logits, targets)
        torch.testing.assert_close(near, cross_entropy, rtol=1e-7, atol=0)
        # In between, a larger q has a smaller value.
        values = [GeneralisedCrossEntropy(q).per_sample(logits, targets) for q in POWERS]
        assert all((a > b).all() for a, b in zip([cross_entropy, *values], values, strict=False))


def test_tiny_targets_count_as_zero_in_the_reverse_cross_entropy() -> None:
    logits = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    loss = SymmetricCrossEntropy(0.0, 1.0)
    first, second = logits.softmax(dim=1)[0].tolist()
    for t in (0.0, 1e-300, 1e-12, 0.9999 * math.exp(-4)):
        soft = torch.tensor([[1 - t, t]], dtype=torch.float64)
        expected = 4 * second - first * math.log1p(-t)
        assert loss(logits, soft).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("q", [0, -0.1, 1.0001, 2, math.nan, math.inf])
def test_an_impossible_power_is_refused(q: float) -> None:
    with pytest.raises(InputError, match=rf"^q should be above 0 and at most 1, is {q}$"):
        GeneralisedCrossEntropy(q)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_impossible_weights_are_refused(weight: float) -> None:
    message = f"should be a finite number, at least 0, is {weight}$"
    with pytest.raises(InputError, match=f"^alpha {message}"):
        SymmetricCrossEntropy(alpha=weight)
    with pytest.raises(InputError, match=f"^beta {message}"):
        SymmetricCrossEntropy(beta=weight)


@pytest.mark.parametrize(
    "loss", [GeneralisedCrossEntropy(), SymmetricCrossEntropy(), MeanAbsoluteError()], ids=repr
)
def test_wrong_shapes_are_refused(loss: Loss) -> None:
    with pytest.raises(InputError, match=r"^class indices should have shape \(4,\), have \(5,\)$"):
        loss(torch.zeros(4, 10), torch.zeros(5, dtype=torch.long))
    with pytest.raises(InputError, match=r"^soft targets should have shape \(4, 10\), have \(4, 9"):
        loss(torch.zeros(4, 10), torch.zeros(4, 9))
    with pytest.raises(
        InputError, match=r"^logits should be floats of shape \(classes,\), \(sampl"
    ):
        loss(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(
        InputError, match=r"^class indices should be from 0 to 9, or -100 for sampl"
    ):
        loss(torch.zeros(1, 10), torch.tensor([10]))


@pytest.mark.parametrize("loss", [*BOUNDED, Baikal()], ids=repr)
def test_a_loss_is_called_as_that_of_pytorch_is(loss: Loss) -> None:
    """A training of a user that calls it for pixels or for words also calls the baselines so."""
    source = generator(5)
    logits = torch.randn(2, 3, 4, 5, generator=source, dtype=torch.float64)
    labels = torch.randint(3, (2, 4, 5), generator=source)
    flat = logits.movedim(1, -1).flatten(0, -2)
    values = loss.per_sample(flat, labels.flatten())
    torch.testing.assert_close(loss(logits, labels), values.mean())
    torch.testing.assert_close(loss(logits, logits.softmax(dim=1)), loss(flat, flat.softmax(dim=1)))
    torch.testing.assert_close(loss(flat[7], labels.flatten()[7]), values[7])
    ignored = torch.rand(2, 4, 5, generator=source) < 0.3
    leaf = logits.clone().requires_grad_()
    partly = loss(leaf, labels.masked_fill(ignored, -100))
    torch.testing.assert_close(partly, values[~ignored.flatten()].mean())
    (slope,) = torch.autograd.grad(partly, leaf)
    assert (slope.movedim(1, -1)[ignored] == 0).all()
    assert loss(logits, torch.full_like(labels, -100)).isnan()


def test_every_name_has_its_loss_and_its_dynamics() -> None:
    assert tuple(KINDS) == dynamics.CLASSIC
    for name, kind in KINDS.items():
        loss = classic(name)
        assert type(loss) is kind
        # The dynamics are those of the default parameters.
        assert repr(loss) == repr(kind())
        assert dynamics.classic(name, 10).learning_drive > 0
        assert getattr(taylorglo, kind.__name__) is kind
        assert getattr(taylorglo.loss, kind.__name__) is kind


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hinge", ""),
        ("", ""),
        ("generalized-cross-entropy", "; did you mean 'generalised-cross-entropy'\\?"),
        ("label-smoothing", ""),
    ],
)
def test_unknown_names_are_refused(name: str, meant: str) -> None:
    message = (
        f"^unknown loss '{name}'; there are cross-entropy, squared-error, baikal, "
        f"generalised-cross-entropy, symmetric-cross-entropy, mean-absolute-error{meant}$"
    )
    with pytest.raises(InputError, match=message):
        classic(name)
    with pytest.raises(InputError, match=message):
        dynamics.classic(name, 10)


def test_only_cross_entropy_is_smoothed() -> None:
    smoothed = classic("cross-entropy", 0.2)
    assert repr(smoothed) == "CrossEntropy(label_smoothing=0.2)"
    for name in dynamics.CLASSIC[1:]:
        message = f"^label smoothing is for cross-entropy only, not for '{name}'$"
        with pytest.raises(InputError, match=message):
            classic(name, 0.1)
        with pytest.raises(InputError, match=message):
            dynamics.classic(name, 10, 0.1)


def test_losses_print_their_parameters() -> None:
    """The stack of networks tells losses apart by this text."""
    assert repr(GeneralisedCrossEntropy(0.5)) == "GeneralisedCrossEntropy(q=0.5)"
    assert repr(SymmetricCrossEntropy(6, 0.1)) == "SymmetricCrossEntropy(alpha=6, beta=0.1)"
    assert repr(MeanAbsoluteError()) == "MeanAbsoluteError()"


@pytest.mark.parametrize(
    "call",
    [
        lambda: taylorglo.TaylorLoss([0.0] * 8, "3"),  # type: ignore[arg-type]
        lambda: taylorglo.TaylorLoss([0.0] * 8, 3, classes="10"),  # type: ignore[arg-type]
        lambda: taylorglo.load_loss("zoo:digits", ignore_index="1"),  # type: ignore[arg-type]
        lambda: taylorglo.load_loss("zoo:digits", label_smoothing="0.1"),  # type: ignore[arg-type]
        lambda: taylorglo.CrossEntropy("0.1"),  # type: ignore[arg-type]
        lambda: taylorglo.GeneralisedCrossEntropy("0.7"),  # type: ignore[arg-type]
        lambda: taylorglo.SymmetricCrossEntropy(alpha="0.1"),  # type: ignore[arg-type]
        lambda: taylorglo.learning_drive([0.0] * 8, "10"),  # type: ignore[arg-type]
        lambda: taylorglo.label_smoothed([0.0] * 8, "0.1", 10),  # type: ignore[arg-type]
    ],
)
def test_a_text_in_place_of_a_number_is_refused_in_one_line(call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"should be [^\n]+ '(3|10|1|0\.1|0\.7)'$"):
        call()
