"""The filters against the inequalities of the paper, and against trained networks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.nn import functional

from taylorglo.errors import InputError
from taylorglo.loss.dynamics import coefficients, collapse_rate, learning_drive
from taylorglo.loss.filters import FILTERS, all_of, learnable, none, published, stable
from taylorglo.loss.functions import TaylorLoss
from taylorglo.loss.polynomial import from_coefficients
from taylorglo.settings import SearchSettings, validated

CLASSES = [2, 3, 5, 10, 100]


def random_thetas(
    count: int, order: int = 3, sigma: float = 1.2, seed: int = 0, *, log: bool = False
) -> list[list[float]]:
    size = order * (order + 1) // 2 + 2 + log
    thetas = np.random.default_rng(seed).normal(0, sigma, (count, size))
    if log:
        thetas[:, -1] = 0.1 * np.abs(thetas[:, -1])
    return thetas.tolist()


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("n", CLASSES)
def test_published_is_the_inequality_of_the_paper(n: int, order: int, log: bool) -> None:
    decisions = set()
    for theta in random_thetas(100, order, log=log):
        c1, ch, chh, chy, cy, cyy, w = coefficients(theta)
        # The logarithm adds w t/h = w n to the target's side.
        left, right = cy + cyy + chy / n + w * n, (n - 2) * (c1 + ch / n + chh / n**2)
        verdict = published(theta, n)
        assert verdict.accepted == (left > right)
        assert verdict.numbers["margin"] == pytest.approx(left - right, rel=1e-9, abs=1e-9)
        decisions.add(verdict.accepted)
    assert decisions == {True, False}


def test_published_is_learnable_for_two_classes() -> None:
    for theta in random_thetas(150):
        assert published(theta, 2).accepted == learnable(theta, 2).accepted


def test_published_depends_on_c1_and_learnable_does_not() -> None:
    low, high = (from_coefficients(1.0, 0.0, 0.0, 0.0, c1=c1) for c1 in (-1.0, 1.0))
    assert published(low, 10).accepted
    assert not published(high, 10).accepted
    assert learnable(low, 10).accepted
    assert learnable(high, 10).accepted


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("n", CLASSES)
def test_learnable_is_a_positive_learning_drive(n: int, order: int, log: bool) -> None:
    for theta in random_thetas(50, order, seed=1, log=log):
        drive = learning_drive(theta, n)
        verdict = learnable(theta, n)
        assert verdict.accepted == (drive > 0)
        assert verdict.numbers == {"A": drive}


def test_a_loss_without_any_pull_is_refused() -> None:
    assert not learnable([0.0] * 8, 10).accepted
    assert not published([0.0] * 8, 10).accepted


@pytest.mark.parametrize(("n", "kappa"), [(2, 1.0), (3, 1.0), (5, 1.0), (6, 0.5), (100, 0.5)])
def test_stable_limits_the_collapse_rate_to_kappa_times_the_drive(n: int, kappa: float) -> None:
    # With chy = chh = 0, A = cy and B = ch exactly.
    acceptances = {-5.0: True, 0.0: True, 0.99: True, 1.01: False, 10.0: False}
    for share, accepted in acceptances.items():
        theta = from_coefficients(4.0, 0.0, share * kappa * 4.0, 0.0)
        assert learning_drive(theta, n) == pytest.approx(4.0)
        assert stable(theta, n).accepted is accepted


def test_stable_accepts_the_limit_itself() -> None:
    # The numbers are powers of two, so that A = 4 and B = 4 are exact.
    theta = from_coefficients(4.0, 0.0, 4.0, 0.0)
    assert learning_drive(theta, 2) == 4.0
    assert collapse_rate(theta, 2) == 4.0
    assert stable(theta, 2).accepted
    assert not stable(from_coefficients(4.0, 0.0, np.nextafter(4.0, 9.0), 0.0), 2).accepted


@pytest.mark.parametrize(("n", "kappa"), [(2, 1.0), (3, 1.0), (10, 0.5)])
def test_the_logarithm_damps_what_is_unstable(n: int, kappa: float) -> None:
    # A = 4 + w n, and B = 20 - w n is at most kappa A if w n (1 + kappa) is at least 20 - 4 kappa.
    limit = (20 - 4 * kappa) / (1 + kappa) / n
    for share, accepted in {0.0: False, 0.99: False, 1.01: True, 5.0: True}.items():
        theta = from_coefficients(4.0, 0.0, 20.0, 0.0, log_weight=share * limit)
        assert stable(theta, n).accepted is accepted


@pytest.mark.parametrize("n", [2, 10])
def test_stable_without_a_drive_asks_for_a_rate_that_is_not_positive(n: int) -> None:
    assert stable(from_coefficients(-1.0, 0.0, 0.0, 0.0), n).accepted
    assert stable(from_coefficients(-1.0, 0.0, -1.0, 0.0), n).accepted
    assert not stable(from_coefficients(-1.0, 0.0, 0.01, 0.0), n).accepted


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-50, 50), min_size=8, max_size=8)
    | st.tuples(*[st.floats(-50, 50)] * 8, st.floats(0, 50)).map(list),
    st.sampled_from(CLASSES),
)
def test_every_filter_gives_a_reason_with_its_numbers(theta: list[float], n: int) -> None:
    symbols = {"published": "gamma_T - (n-1) gamma_N", "learnable": "A", "stable": "B"}
    expected = {"A": learning_drive(theta, n), "B": collapse_rate(theta, n)}
    for name, symbol in symbols.items():
        verdict = FILTERS[name](theta, n)
        decision = "accepted" if verdict.accepted else "rejected"
        assert verdict.reason.startswith(f"{decision} by {name}: {symbol} = ")
        assert "should be" in verdict.reason
        for key, value in verdict.numbers.items():
            if key in expected:
                assert value == expected[key]
    assert set(stable(theta, n).numbers) == {"A", "B"}


def test_a_reason_in_full() -> None:
    theta = from_coefficients(4.0, 0.0, 2.5, 0.0)
    assert learnable(theta, 10).reason == "accepted by learnable: A = 4, should be above 0"
    assert stable(theta, 10).reason == "rejected by stable: B = 2.5, should be at most 2"


def test_none_accepts_everything() -> None:
    for theta in random_thetas(20):
        assert none(theta, 10).accepted


@pytest.mark.parametrize(
    "names", [["learnable"], ["stable", "learnable"], ["published", "learnable", "stable"]]
)
def test_all_of_needs_every_filter_and_names_the_first_that_rejects(names: list[str]) -> None:
    combined = all_of(names)
    rejecting = set()
    for theta in random_thetas(80, seed=3):
        verdicts = {name: FILTERS[name](theta, 10) for name in names}
        verdict = combined(theta, 10)
        numbers: dict[str, float] = {}
        for part in verdicts.values():
            numbers |= part.numbers
        assert verdict.accepted == all(part.accepted for part in verdicts.values())
        assert verdict.numbers == numbers
        first = next((name for name, part in verdicts.items() if not part.accepted), None)
        rejecting.add(first)
        if first:
            assert verdict.reason == verdicts[first].reason
        else:
            assert all(part.reason in verdict.reason for part in verdicts.values())
    assert {None, names[0]} <= rejecting


def test_the_settings_know_exactly_these_filters() -> None:
    with pytest.raises(InputError) as caught:
        validated(SearchSettings, {"filters": ["lernable"]}, "search")
    assert f"there are {', '.join(FILTERS)};" in str(caught.value)


def test_unknown_and_missing_filters_are_refused() -> None:
    unknown = "unknown filter lernable; there are published, learnable, stable, none"
    with pytest.raises(InputError, match=unknown):
        all_of(["stable", "lernable"])
    with pytest.raises(InputError, match="unknown filter"):
        all_of([])


@pytest.mark.parametrize("name", ["published", "learnable", "stable"])
def test_one_class_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="number of classes should be at least 2, is 1"):
        FILTERS[name]([0.0] * 8, 1)


def trained_accuracy(
    theta: list[float], images: torch.Tensor, labels: torch.Tensor, seed: int
) -> float:
    """Return the training accuracy of a small MLP after 40 full-batch steps.

    The learning rate is scaled so that the first step has a similar size for each theta.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [
        (torch.randn(shape, generator=generator) / shape[0] ** 0.5).requires_grad_()
        for shape in [(64, 24), (24, 10)]
    ]
    loss = TaylorLoss(theta)
    rate = 3.0 / max(1.0, abs(learning_drive(theta, 10)))
    for _ in range(40):
        logits = functional.relu(images @ weights[0]) @ weights[1]
        gradients = torch.autograd.grad(loss(logits, labels), weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.data -= rate * gradient
    logits = functional.relu(images @ weights[0]) @ weights[1]
    return float((logits.argmax(dim=1) == labels).float().mean())


def test_a_network_learns_with_a_positive_drive_only_and_reliably_when_stable() -> None:
    data = load_digits()
    pixels = torch.tensor(data.data[:500], dtype=torch.float32)
    images = (pixels - pixels.mean(dim=0)) / 8
    labels = torch.tensor(data.target[:500])
    accuracies: dict[str, list[float]] = {"no drive": [], "unstable": [], "stable": []}
    for seed, theta in enumerate(random_thetas(60, seed=11)):
        if not learnable(theta, 10).accepted:
            kind = "no drive"
        elif stable(theta, 10).accepted:
            kind = "stable"
        else:
            kind = "unstable"
        accuracies[kind].append(trained_accuracy(theta, images, labels, seed))
    assert all(len(values) >= 15 for values in accuracies.values())
    assert max(accuracies["no drive"]) < 0.25
    assert min(accuracies["stable"]) > 0.4
    assert np.median(accuracies["stable"]) > 0.85
    assert np.median(accuracies["unstable"]) < 0.65
