"""The family with the logarithm: w times cross-entropy beside the polynomial."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from taylorglo.loss.formula import taylor
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.loss.polynomial import length
from taylorglo.training.stacked import StackedLoss, kind_of

CLASSES = [2, 3, 10]
MNIST = [-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513]


def batch(n: int, seed: int, samples: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, soft targets and class indices, in float64."""
    source = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, n, generator=source, dtype=torch.float64)
    shares = torch.rand(samples, n, generator=source, dtype=torch.float64).pow(3)
    indices = torch.randint(n, (samples,), generator=source)
    return logits, shares / shares.sum(1, keepdim=True), indices


def gradient(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(loss.per_sample(logits, targets).sum(), logits)[0]


def thetas_of(order: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-10, 10), min_size=length(order), max_size=length(order))


@settings(deadline=None, derandomize=True)
@given(
    st.integers(2, 5).flatmap(thetas_of),
    st.floats(0, 10),
    st.sampled_from(CLASSES),
    st.integers(0, 2**31),
)
def test_the_logarithm_adds_cross_entropy_and_its_gradient(
    theta: list[float], weight: float, n: int, seed: int
) -> None:
    order = {5: 2, 8: 3, 12: 4, 17: 5}[len(theta)]
    logits, soft, indices = batch(n, seed)
    plain, loss = TaylorLoss(theta, order), TaylorLoss([*theta, weight], order)
    h = logits.softmax(1)
    for targets in (soft, indices):
        t = targets if targets.is_floating_point() else functional.one_hot(targets, n).double()
        cross_entropies = -(t * h.log()).sum(1)
        values = plain.per_sample(logits, targets)
        added = loss.per_sample(logits, targets) - values
        rounding = 1e-12 * (1 + float(values.abs().max()))
        torch.testing.assert_close(added, weight * cross_entropies, rtol=1e-9, atol=rounding)
        slopes = gradient(plain, logits, targets)
        # dL/dz of cross-entropy is h - t for targets whose sum is 1.
        torch.testing.assert_close(
            gradient(loss, logits, targets) - slopes,
            weight * (h - t),
            rtol=1e-9,
            atol=1e-12 * (1 + float(slopes.abs().max())),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_weight_of_0_gives_the_bits_of_the_family_without(dtype: torch.dtype) -> None:
    logits, soft, indices = batch(10, 0)
    plain, loss = TaylorLoss(MNIST), TaylorLoss([*MNIST, 0.0])
    for targets in (soft, indices):
        values = loss.per_sample(logits.to(dtype), targets)
        assert torch.equal(values, plain.per_sample(logits.to(dtype), targets))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_and_gradients_are_finite_for_extreme_logits(dtype: torch.dtype) -> None:
    logits = torch.full((4, 10), -1e4)
    logits[torch.arange(4), torch.arange(4)] = 1e4
    logits = logits.to(dtype)
    gap = 2 * float(logits.max())
    loss = TaylorLoss.from_coefficients(1.0, -0.5, 0.2, 0.1, log_weight=2.0)
    right, wrong = torch.arange(4), torch.arange(4) + 1
    mixed = torch.full((4, 10), 0.1)
    for targets in (right, wrong, mixed):
        assert loss.per_sample(logits, targets).isfinite().all()
        assert gradient(loss, logits, targets).isfinite().all()
    # The target that has lost all of its probability is still pulled up with the whole weight.
    assert gradient(loss, logits, wrong)[0, 1] == -2.0
    lost = loss.per_sample(logits, wrong) - loss.per_sample(logits, right)
    assert lost.tolist() == pytest.approx([2 * gap] * 4, rel=1e-3)


def test_the_properties_of_a_loss() -> None:
    plain = TaylorLoss(MNIST)
    loss = TaylorLoss.from_coefficients(1.0, 2.0, 3.0, 4.0, log_weight=0.5)
    assert (plain.family, plain.log_weight, len(plain.theta)) == ("taylor", 0.0, 8)
    assert (loss.family, loss.log_weight, len(loss.theta)) == ("taylor-log", 0.5, 9)
    loss.theta[-1] = 0.75
    assert loss.log_weight == 0.75
    assert repr(loss).startswith("TaylorLoss(theta=[0.0, 0.0, 0.0, 1.5, 1.3333, 1.0, 1.0, 0.0, 0.7")


def test_several_thetas_at_once_are_one_after_another() -> None:
    thetas = torch.tensor([[*MNIST, 0.5], [1.0] * 9, [0.0] * 8 + [3.0]], dtype=torch.float64)
    batches = [batch(10, seed) for seed in range(3)]
    logits = torch.stack([logits for logits, _, _ in batches])
    own = torch.stack([soft for _, soft, _ in batches])
    for targets in (own, own[0]):
        values = taylor(thetas, 3, logits, targets)
        assert values.shape == (3, 6)
        for row, theta in enumerate(thetas):
            expected = taylor(theta, 3, logits[row], targets[row] if targets is own else targets)
            torch.testing.assert_close(values[row], expected, rtol=1e-12, atol=1e-12)


def test_a_stack_keeps_the_families_apart() -> None:
    losses = [
        TaylorLoss(MNIST),
        TaylorLoss([*MNIST, 0.5]),
        TaylorLoss([1.0] * 6, 2),
        TaylorLoss([0.0] * 8 + [3.0]),
        TaylorLoss([1.0] * 8),
    ]
    assert [kind_of(loss) for loss in losses] == [
        "taylor 3",
        "taylor-log 3",
        "taylor-log 2",
        "taylor-log 3",
        "taylor 3",
    ]
    logits, soft, _ = batch(10, 7)
    stacked = StackedLoss(losses, torch.device("cpu"))(logits.expand(5, -1, -1), soft)
    expected = torch.stack([loss(logits, soft) for loss in losses])
    torch.testing.assert_close(stacked, expected, rtol=1e-12, atol=1e-12)
