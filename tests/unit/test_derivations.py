"""The formulas of docs/derivations.md, as they are written there, against PyTorch's gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import taylorglo
from taylorglo.loss import coordinates
from taylorglo.loss.polynomial import from_coefficients

number = st.floats(-3, 3)
weights = st.floats(0, 2)
thetas = st.lists(number, min_size=8, max_size=8)
classes = st.integers(2, 12)
repeated = settings(deadline=None, derandomize=True, max_examples=60)


def gradient(theta: list[float], logits: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the losses by the logits of each sample, by autograd."""
    z = logits.clone().requires_grad_()
    taylorglo.TaylorLoss(theta).double().per_sample(z, targets).sum().backward()
    assert z.grad is not None
    return z.grad


def logits_of(confidence: float, n: int) -> Tensor:
    """Return the logits of a sample of class 0 with a confidence; the others share the rest."""
    others = (1 - confidence) / (n - 1)
    logits = [math.log(confidence), *[math.log(others)] * (n - 1)]
    return torch.tensor([logits], dtype=torch.float64)


def hard(n: int) -> Tensor:
    """Return a target of class 0."""
    return torch.eye(n, dtype=torch.float64)[:1]


def pull(theta: list[float], n: int) -> Callable[[float], float]:
    """Return the net pull as the page writes it in coefficients."""
    c = taylorglo.coefficients(theta)

    def g(p: float) -> float:
        q = (1 - p) / (n - 1)
        polynomial = c.cy + c.cyy + c.chy * p + c.ch * (p - q) + c.chh * (p**2 - q**2)
        return polynomial + c.log_weight / p

    return g


@given(theta=thetas, weight=weights, seed=st.integers(0, 99))
@repeated
def test_the_learning_rule_is_the_gradient(theta: list[float], weight: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    z, soft = torch.randn(2, 5, 4, generator=random, dtype=torch.float64)
    t, h = soft.softmax(dim=1), z.softmax(dim=1)
    theta = [*theta, weight]
    c = taylorglo.coefficients(theta)
    gamma = (
        c.c1 + c.ch * h + c.chh * h**2 + c.chy * h * t + c.cy * t + c.cyy * t**2 + weight * t / h
    )
    rule = -h * (gamma - (h * gamma).sum(dim=1, keepdim=True))
    torch.testing.assert_close(gradient(theta, z, t), rule)


@given(theta=thetas, weight=weights, n=classes)
@repeated
def test_the_first_step_moves_the_margin_by_a_over_n(
    theta: list[float], weight: float, n: int
) -> None:
    theta = [*theta, weight]
    c = taylorglo.coefficients(theta)
    drive = c.cy + c.cyy + c.chy / n + weight * n
    slope = gradient(theta, torch.zeros(1, n, dtype=torch.float64), hard(n))[0]
    assert float(slope[1] - slope[0]) == pytest.approx(drive / n, abs=1e-9)
    assert taylorglo.learning_drive(theta, n) == pytest.approx(drive, abs=1e-9)


@given(theta=thetas, weight=weights, n=classes, p=st.floats(0.01, 0.99))
@repeated
def test_the_gradient_on_the_logit_of_the_target_is_the_net_pull(
    theta: list[float], weight: float, n: int, p: float
) -> None:
    theta = [*theta, weight]
    g = pull(theta, n)
    slope = float(gradient(theta, logits_of(p, n), hard(n))[0, 0])
    assert slope == pytest.approx(-p * (1 - p) * g(p), abs=1e-8)
    assert taylorglo.net_pull(theta, n)(p) == pytest.approx(g(p), abs=1e-8)
    assert g(1 / n) == pytest.approx(taylorglo.learning_drive(theta, n), abs=1e-8)


@given(theta=thetas, weight=weights, n=classes)
@repeated
def test_the_drift_of_all_samples_grows_by_b_over_n_squared(
    theta: list[float], weight: float, n: int
) -> None:
    theta = [*theta, weight]
    c = taylorglo.coefficients(theta)
    rate = c.ch + 2 * c.chh / n + c.chy / n - weight * n
    drift = torch.zeros(n, dtype=torch.float64)
    drift[0] = 1e-5
    # One sample of each class, all with the logits of the drift.
    slope = gradient(theta, drift.expand(n, n), torch.eye(n, dtype=torch.float64)).mean(dim=0)
    expected = -rate / n**2 * (drift - drift.mean())
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-8)
    assert taylorglo.collapse_rate(theta, n) == pytest.approx(rate, abs=1e-9)


@given(alpha=st.floats(0.01, 0.9), n=classes)
@repeated
def test_label_smoothing_rests_at_its_equilibrium(alpha: float, n: int) -> None:
    rest = 1 - alpha * (n - 1) / n
    z = logits_of(rest, n).requires_grad_()
    smoothed = torch.nn.CrossEntropyLoss(label_smoothing=alpha)
    smoothed(z, torch.tensor([0])).backward()
    assert z.grad is not None
    assert float(z.grad.abs().max()) < 1e-12
    assert (1 - rest) * n / (n - 1) == pytest.approx(alpha)


@given(
    scale=st.floats(-2, 2),
    end=st.floats(-3, 2),
    bend=number,
    collapse=number,
    share=st.floats(0, 1),
    n=st.integers(3, 12),
)
@repeated
def test_the_coordinates_are_solved_as_the_page_solves_them(
    scale: float, end: float, bend: float, collapse: float, share: float, n: int
) -> None:
    drive = n * math.exp(scale)
    first, last = drive * (1 - share), drive * (end - share / n)
    middle = drive * ((1 + end) / 2 - bend - 2 * share / (n + 1))
    rate = drive * (collapse + share)
    chh = 4 * n / (n - 2) * ((first + last) / 2 - middle)
    chy = n / (n - 2) * (last - first - rate - (n - 2) / n * chh)
    ch = rate - 2 * chh / n - chy / n
    cy = first - chy / n
    point = {"scale": scale, "end": end, "bend": bend, "collapse": collapse, "log_share": share}
    found = taylorglo.coefficients(coordinates.theta_at(point, n))
    assert (found.cy + found.cyy, found.chy, found.ch, found.chh) == pytest.approx(
        (cy, chy, ch, chh), abs=1e-6
    )
    assert found.log_weight == pytest.approx(share * drive / n)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 100])
def test_the_matrix_of_the_coordinates_has_the_determinant_of_the_page(n: int) -> None:
    # The columns are the pulls at 1/n, at 1 and half way, and B, of one coefficient at a time.
    rows = []
    for one in np.eye(4):
        theta = from_coefficients(*one)
        pulls = [float(taylorglo.net_pull(theta, n)(p)) for p in (1 / n, 1.0, (1 + 1 / n) / 2)]
        rows.append([*pulls, taylorglo.collapse_rate(theta, n)])
    assert np.linalg.det(np.array(rows)) == pytest.approx((n - 2) ** 2 / (4 * n**2), abs=1e-12)
    m = (1 + 1 / n) / 2
    matrix = [
        [1, 1 / n, 0, 0],
        [1, 1, 1, 1],
        [1, m, 1 / 2, (n + 2) / (4 * n)],
        [0, 1 / n, 1, 2 / n],
    ]
    np.testing.assert_allclose(np.array(rows).T, matrix, atol=1e-12)


@given(end=st.floats(-5, -0.01), n=st.integers(3, 12))
@repeated
def test_a_straight_pull_rests_where_the_page_says(end: float, n: int) -> None:
    point = {"scale": 0.0, "end": end, "bend": 0.0, "collapse": -1.0}
    rest = taylorglo.equilibrium_confidence(coordinates.theta_at(point, n), n)
    assert rest == pytest.approx(1 / n + (1 - 1 / n) / (1 - end))
