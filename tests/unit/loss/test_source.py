"""The Python program of a loss: PyTorch alone, and the same values to the last bit."""

import ast
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import taylorglo
from taylorglo.loss.functions import TaylorLoss
from taylorglo.loss.polynomial import HIGHEST_ORDER, length
from taylorglo.services.registry import zoo


def program(loss: TaylorLoss) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(loss.source(), "loss.py", "exec"), names)  # noqa: S102
    return names


def result(loss: Callable[..., Tensor], logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, targets)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def assert_same_bits(loss: TaylorLoss, seed: int, dtype: torch.dtype, n: int = 10) -> None:
    source = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(9, n, generator=source)).to(dtype)
    indices = torch.randint(n, (9,), generator=source)
    soft = torch.randn(9, n, generator=source).softmax(1)
    names = program(loss)
    for targets in (indices, indices.int(), soft, soft.to(dtype)):
        for found, expected in zip(
            result(names["per_sample"], logits, targets),
            result(loss.per_sample, logits, targets),
            strict=True,
        ):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
        mean = result(names["loss"], logits, targets)
        expected_mean = result(lambda z, t: loss.per_sample(z, t).mean(), logits, targets)
        assert all(map(torch.equal, mean, expected_mean))
        # The loss itself has these bits for distributions, and rounds differently for indices.
        value = loss(logits, targets)
        if targets.is_floating_point():
            assert torch.equal(value, mean[0])
        torch.testing.assert_close(value, mean[0], rtol=1e-5, atol=1e-5 * float(1 + mean[0].abs()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", zoo())
def test_the_losses_of_the_zoo(name: str, dtype: torch.dtype) -> None:
    for seed in range(5):
        assert_same_bits(taylorglo.load_loss(f"zoo:{name}"), seed, dtype)


def thetas_of(order: int) -> st.SearchStrategy[tuple[int, list[float]]]:
    numbers = st.lists(st.floats(-3, 3), min_size=length(order), max_size=length(order))
    weights = st.just([]) | st.floats(0, 10).map(lambda weight: [weight])
    return st.tuples(st.just(order), st.builds(list.__add__, numbers, weights))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, HIGHEST_ORDER).flatmap(thetas_of), st.integers(0, 99))
def test_any_loss(order_and_theta: tuple[int, list[float]], seed: int) -> None:
    order, theta = order_and_theta
    assert_same_bits(TaylorLoss(theta, order), seed, torch.float64, n=3)


def test_it_is_short_and_needs_pytorch_alone() -> None:
    source = taylorglo.load_loss("zoo:digits").source()
    lines = [line for line in source.splitlines() if line.strip()]
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    imported = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert imported == ["torch", "torch.nn.functional"]


@pytest.mark.parametrize(
    "name", ['"""', "'''\nraise SystemExit", "\\", "a\nimport os", "\r\nx", "{theta}", "é" * 500, 3]
)
def test_the_names_of_a_sweep_are_no_code(name: object) -> None:
    loss = TaylorLoss([0.5] * 8, classes=4, provenance={"sweep": name, "data": name})
    plain = TaylorLoss([0.5] * 8, classes=4)
    assert ast.dump(ast.parse(loss.source())) == ast.dump(ast.parse(plain.source()))
    assert "# It is from: sweep " in loss.source()
    assert "# It is from: 4 classes." in plain.source()
    assert "# It is from" not in TaylorLoss([0.5] * 8).source()
