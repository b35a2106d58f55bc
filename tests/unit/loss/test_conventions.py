"""The Taylor loss against nn.CrossEntropyLoss: shapes, targets, options, and the same mistakes."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import taylorglo
from taylorglo.errors import InputError
from taylorglo.loss import closed_form
from taylorglo.loss.functions import TaylorLoss
from taylorglo.loss.polynomial import HIGHEST_ORDER, length

# The loss of the regularization paper that was found on MNIST, with a logarithm.
THETA = [-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513, 0.5]
CROSS_ENTROPY = [0.0] * 8 + [1.0]
N = 5
WEIGHTS = [0.5, 2.0, 0.0, 1.25, 3.0]
TIGHT = {torch.float64: 1e-12, torch.float32: 3e-6}


def logits_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return (2 * torch.randn(shape, generator=source, dtype=torch.float64)).to(dtype)


def indices_of(shape: tuple[int, ...]) -> Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randint(N, shape[:1] * (len(shape) > 1) + shape[2:], generator=source)


def shares_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    source = torch.Generator().manual_seed(2)
    shares = torch.rand(shape, generator=source, dtype=torch.float64).pow(3)
    return (shares / shares.sum(min(1, len(shape) - 1), keepdim=True)).to(dtype)


def value_and_gradient(loss: nn.Module, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, targets)
    # Each sample has a slope of its own.
    slopes = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    return value.detach(), torch.autograd.grad(value, logits, slopes)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("kind", "ignored"),
    [
        ("indices", "nothing"),
        ("indices", "some"),
        ("indices", "a class"),
        ("indices", "everything"),
        ("distributions", "nothing"),
    ],
)
@pytest.mark.parametrize("shape", [(N,), (6, N), (4, N, 3), (2, N, 2, 3), (0, N)], ids=str)
def test_cross_entropy_is_a_member_with_all_conventions_of_pytorch(
    shape: tuple[int, ...],
    kind: str,
    weighted: bool,
    ignored: str,
    dtype: torch.dtype,
) -> None:
    for reduction, label_smoothing in itertools.product(("none", "mean", "sum"), (0.0, 0.2, 1.0)):
        assert_a_member(shape, kind, weighted, ignored, reduction, label_smoothing, dtype)


def assert_a_member(
    shape: tuple[int, ...],
    kind: str,
    weighted: bool,
    ignored: str,
    reduction: Any,
    label_smoothing: float,
    dtype: torch.dtype,
) -> None:
    """Compare value and gradient with those of PyTorch's cross-entropy."""
    logits = logits_of(shape, dtype)
    ignore_index = 1 if ignored == "a class" else -100
    if kind == "distributions":
        targets = shares_of(shape, dtype)
    else:
        targets = indices_of(shape)
        if ignored == "some":
            targets.view(-1)[::2] = ignore_index
        elif ignored == "everything":
            targets.fill_(ignore_index)
    # PyTorch computes short floats in their own precision, and a Taylor loss in float32.
    exact = dtype if dtype in TIGHT else torch.float32
    weight = torch.tensor(WEIGHTS, dtype=exact) if weighted else None
    options: dict[str, Any] = {
        "weight": weight,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    exact_targets = targets.to(exact) if kind == "distributions" else targets
    expected, expected_slope = value_and_gradient(
        nn.CrossEntropyLoss(**options), logits.to(exact), exact_targets
    )
    value, slope = value_and_gradient(TaylorLoss(CROSS_ENTROPY, **options), logits, targets)
    bound = TIGHT[exact]
    torch.testing.assert_close(value, expected, rtol=bound, atol=bound, equal_nan=True)
    assert slope.dtype == dtype
    rounding = bound if dtype in TIGHT else torch.finfo(dtype).eps
    torch.testing.assert_close(
        slope.to(exact), expected_slope, rtol=rounding, atol=rounding, equal_nan=True
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize("shape", [(N,), (6, N), (4, N, 3)], ids=str)
def test_a_one_hot_distribution_is_its_class_index(
    shape: tuple[int, ...], weight: list[float] | None, label_smoothing: float
) -> None:
    logits, indices = logits_of(shape), indices_of(shape)
    one_hot = torch.eye(N, dtype=torch.float64)[indices].movedim(-1, min(1, len(shape) - 1))
    loss = TaylorLoss(THETA, weight=weight, reduction="none", label_smoothing=label_smoothing)
    for hard, soft in zip(
        value_and_gradient(loss, logits, indices),
        value_and_gradient(loss, logits, one_hot),
        strict=True,
    ):
        torch.testing.assert_close(hard, soft, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_the_mean_is_over_the_weights_of_the_targets_that_count(ignore_index: int) -> None:
    logits = logits_of((40, N))
    targets = torch.arange(40) % N
    targets[:3] = ignore_index
    values = TaylorLoss(THETA).per_sample(logits, targets.clamp(min=0))
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)[targets.clamp(min=0)]
    weights[targets == ignore_index] = 0
    options: Any = {"weight": WEIGHTS, "ignore_index": ignore_index}
    for reduction, expected in {
        "none": values * weights,
        "sum": (values * weights).sum(),
        "mean": (values * weights).sum() / weights.sum(),
    }.items():
        value = TaylorLoss(THETA, **options, reduction=reduction)(logits, targets)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_weights_of_distributions() -> None:
    logits, shares = logits_of((6, N)), shares_of((6, N))
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    polynomial = TaylorLoss(THETA[:-1]).per_sample(logits, shares)
    cross_entropy = -(weights * shares * logits.log_softmax(1)).sum(1)
    expected = (shares @ weights) * polynomial + THETA[-1] * cross_entropy
    loss = TaylorLoss(THETA, weight=weights, reduction="none")
    torch.testing.assert_close(loss(logits, shares), expected, rtol=1e-12, atol=1e-12)
    mean = TaylorLoss(THETA, weight=weights)(logits, shares)
    torch.testing.assert_close(mean, expected.mean(), rtol=1e-12, atol=1e-12)


def test_label_smoothing_is_of_the_targets() -> None:
    logits, shares, indices = logits_of((6, N)), shares_of((6, N)), indices_of((6, N))
    loss = TaylorLoss(THETA, reduction="none", label_smoothing=0.3)
    for targets, distributions in ((shares, shares), (indices, torch.eye(N)[indices].double())):
        expected = TaylorLoss(THETA).per_sample(logits, 0.7 * distributions + 0.3 / N)
        torch.testing.assert_close(loss(logits, targets), expected, rtol=1e-12, atol=1e-12)


def thetas_of(order: int) -> st.SearchStrategy[tuple[int, list[float]]]:
    numbers = st.lists(st.floats(-3, 3), min_size=length(order), max_size=length(order))
    weights = st.just([]) | st.floats(0, 10).map(lambda weight: [weight])
    return st.tuples(st.just(order), st.builds(list.__add__, numbers, weights))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(2, HIGHEST_ORDER).flatmap(thetas_of),
    st.sampled_from([2, 3, 10]),
    st.integers(0, 99),
)
def test_the_closed_form_is_the_formula(
    order_and_theta: tuple[int, list[float]], n: int, seed: int
) -> None:
    order, theta = order_and_theta
    source = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(7, n, generator=source, dtype=torch.float64)
    targets = torch.randint(n, (7,), generator=source)
    loss = TaylorLoss(theta, order, reduction="none")
    # Terms of the size 3 * 4^order cancel.
    bound = 1e-14 * n * sum(4.0**power for power in range(order + 3))
    value, slope = value_and_gradient(loss, logits, targets)
    leaf = logits.clone().requires_grad_()
    expected = loss.per_sample(leaf, targets)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-11, atol=bound)
    (expected_slope,) = torch.autograd.grad(
        expected, leaf, torch.linspace(0.5, 1.5, 7, dtype=torch.float64)
    )
    torch.testing.assert_close(slope, expected_slope, rtol=1e-11, atol=10 * bound)
    with torch.no_grad():
        assert torch.equal(loss(logits, targets), value)
    for reduction, total in (("mean", value.mean()), ("sum", value.sum())):
        reduced = TaylorLoss(theta, order, reduction=reduction)  # type: ignore[arg-type]
        torch.testing.assert_close(reduced(logits, targets), total, rtol=1e-12, atol=bound)


@pytest.mark.parametrize("size", [1, 12, 30])
def test_blocks_do_not_change_the_result(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, indices = logits_of((7, N)), indices_of((7, N))
    loss = TaylorLoss(THETA, reduction="none")
    expected = value_and_gradient(loss, logits, indices)
    monkeypatch.setattr(closed_form, "_BLOCK", size)
    for found, whole in zip(value_and_gradient(loss, logits, indices), expected, strict=True):
        torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_first_and_second_derivatives(weight: list[float] | None, reduction: Any) -> None:
    logits, indices = logits_of((4, N)).requires_grad_(), indices_of((4, N))
    loss = TaylorLoss(THETA, weight=weight, reduction=reduction)
    assert torch.autograd.gradcheck(lambda z: loss(z, indices), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: loss(z, indices), (logits,))


def test_logits_of_minus_infinity_are_classes_that_cannot_be() -> None:
    logits, indices = logits_of((6, N), torch.float32), torch.arange(6) % (N - 1)
    logits[:, -1] = -math.inf
    for theta in (CROSS_ENTROPY, THETA, THETA[:-1], [*THETA[:-1], 0.0]):
        value, slope = value_and_gradient(TaylorLoss(theta), logits, indices)
        expected, expected_slope = value_and_gradient(TaylorLoss(theta), logits[:, :-1], indices)
        assert slope[:, -1].tolist() == [0.0] * 6
        torch.testing.assert_close(slope[:, :-1], expected_slope, rtol=1e-4, atol=1e-4)
        # The class that cannot be has the constant loss -f(0, 0), which is 0 for cross-entropy.
        constant = -f_at_zero(theta)
        torch.testing.assert_close(value, expected + constant, rtol=1e-4, atol=0)


def f_at_zero(theta: list[float]) -> float:
    """Return f(0, 0), in plain arithmetic."""
    th0, th1, *coefficients = theta
    exponents = [(a, b) for a in range(3) for b in range(1, 4 - a)]
    pairs = zip(exponents, coefficients, strict=False)
    return math.fsum(value * (-th0) ** a * (-th1) ** b for (a, b), value in pairs)


def test_a_gradient_of_theta_with_all_options() -> None:
    theta = torch.tensor(THETA, dtype=torch.float64, requires_grad=True)
    logits, indices = logits_of((6, N)), indices_of((6, N))
    indices[2] = -100

    def value(theta: Tensor) -> Tensor:
        loss = TaylorLoss(theta, weight=WEIGHTS, label_smoothing=0.1)
        result: Tensor = loss(logits, indices)
        return result

    assert torch.autograd.gradcheck(value, (theta,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "average"}, "reduction should be none, mean or sum, is 'average'"),
        ({"reduction": None}, "reduction should be none, mean or sum, is None"),
        ({"label_smoothing": -0.1}, "label_smoothing should be a number from 0 to 1, is -0.1"),
        ({"label_smoothing": 1.5}, "label_smoothing should be a number from 0 to 1, is 1.5"),
        ({"label_smoothing": math.nan}, "label_smoothing should be a number from 0 to 1, is nan"),
        ({"label_smoothing": "0"}, "label_smoothing should be a number from 0 to 1, is '0'"),
        ({"ignore_index": 1.5}, "ignore_index should be a whole number, is 1.5"),
        ({"weight": [[1.0, 2.0]]}, r"weight should have shape \(classes,\), has \(1, 2\)"),
        ({"weight": torch.ones(2, 2)}, r"weight should have shape \(classes,\), has \(2, 2\)"),
        ({"weight": [1.0, math.nan]}, "weight should be finite numbers, has NaN or infinity"),
        ({"weight": "heavy"}, "weight should be numbers, is 'heavy'"),
        ({"weight": ["a"]}, r"weight should be numbers, is \['a'\]"),
    ],
)
def test_wrong_options_are_refused_when_the_loss_is_made(
    options: dict[str, Any], message: str
) -> None:
    for make in (
        lambda: TaylorLoss(THETA, **options),
        lambda: TaylorLoss.from_coefficients(1.0, 0.0, 0.0, 0.0, **options),
        lambda: taylorglo.load_loss("zoo:digits", **options),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            make()


@pytest.mark.parametrize(
    ("options", "logits", "targets", "message"),
    [
        ({}, torch.zeros(4, 3), torch.tensor([0, 3, 1, 2]), "from 0 to 2, or -100 .*; 3 is not$"),
        ({}, torch.zeros(4, 3), torch.tensor([0, -1, 1, 2]), "from 0 to 2, or -100 .*; -1 is not$"),
        (
            {"ignore_index": -1, "label_smoothing": 0.1},
            torch.zeros(4, 3),
            torch.tensor([0, -1, -100, 2]),
            "from 0 to 2, or -1 .*; -100 is not$",
        ),
        ({}, torch.zeros(3), torch.tensor(7), "from 0 to 2, or -100 .*; 7 is not$"),
        (
            {"weight": [1.0, 2.0]},
            torch.zeros(4, 3),
            torch.zeros(4).long(),
            "weight has 2 numbers; there should be 3, one per class$",
        ),
        (
            {"ignore_index": 1},
            torch.zeros(4, 3),
            torch.zeros(4, 3),
            "ignore_index is 1, but only class indices can be ignored; these targets are dist",
        ),
        ({}, torch.zeros(()), torch.tensor(0), r"2 classes or more, are float32 of shape \(\)$"),
        ({}, torch.zeros(4, 1), torch.zeros(4).long(), r"or more, are float32 of shape \(4, 1\)$"),
        ({}, torch.zeros(1), torch.tensor(0), r"2 classes or more, are float32 of shape \(1,\)$"),
        (
            {},
            torch.zeros(4, 3).long(),
            torch.zeros(4).long(),
            r"logits should be floats of .*, are int64 of shape \(4, 3\)$",
        ),
        (
            {},
            torch.zeros(4, 3, 2),
            torch.zeros(4, 3).long(),
            r"class indices should have shape \(4, 2\), have \(4, 3\)$",
        ),
        (
            {},
            torch.zeros(4, 3, 2),
            torch.zeros(4, 2),
            r"soft targets should have shape \(4, 3, 2\), have \(4, 2\)$",
        ),
        ({}, torch.zeros(3), torch.zeros(3).long(), r"indices should have shape \(\), have \(3,\)"),
        (
            {},
            torch.zeros(4, 3),
            torch.zeros(4).bool(),
            "targets should be integers or floats, are bool$",
        ),
    ],
)
def test_the_mistakes_that_pytorch_refuses_are_refused_in_one_line(
    options: dict[str, Any], logits: Tensor, targets: Tensor, message: str
) -> None:
    usual = {name: value for name, value in options.items() if name != "weight"}
    weight = torch.tensor(options["weight"]) if "weight" in options else None
    if logits.shape[-1:] != (1,):
        # nn.CrossEntropyLoss accepts one class, which has no loss.
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            nn.CrossEntropyLoss(weight=weight, **usual)(logits, targets)
    with pytest.raises(InputError, match=message) as caught:
        TaylorLoss(THETA, **options)(logits, targets)
    assert "\n" not in str(caught.value)


def test_integers_of_any_size_are_indices() -> None:
    logits = logits_of((4, N))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        indices = torch.tensor([0, 4, 2, 1], dtype=dtype)
        assert torch.equal(
            TaylorLoss(THETA)(logits, indices), TaylorLoss(THETA)(logits, indices.long())
        )


def test_a_loss_prints_the_options_that_were_set() -> None:
    assert repr(TaylorLoss(CROSS_ENTROPY)).endswith("1.0], order=3)")
    loss = TaylorLoss(CROSS_ENTROPY, weight=[1.0, 2.0], reduction="sum", label_smoothing=0.5)
    assert repr(loss).endswith("order=3, weight=[1.0, 2.0], reduction='sum', label_smoothing=0.5)")
