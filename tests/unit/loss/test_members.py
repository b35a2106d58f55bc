"""The thetas of classic losses, against the classic losses themselves."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taylorglo.errors import InputError
from taylorglo.loss.classic import classic
from taylorglo.loss.dynamics import (
    Dynamics,
    collapse_rate,
    dynamics,
    equilibrium_confidence,
    net_pull,
)
from taylorglo.loss.dynamics import classic as classic_dynamics
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.loss.members import MEMBERS, member, nearest
from taylorglo.loss.polynomial import has_log

CLASSES = [2, 3, 10, 100]
ALPHA, Q = 0.1, 0.7

Pull = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def gradient(loss: Loss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(loss.per_sample(logits, labels).sum(), logits)[0]


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("n", CLASSES)
def test_a_member_has_the_gradients_of_the_classic_loss(name: str, n: int) -> None:
    source = torch.Generator().manual_seed(n)
    logits = 3 * torch.randn(50, n, generator=source, dtype=torch.float64)
    labels = torch.randint(n, (50,), generator=source)
    loss, taylor = classic(name), TaylorLoss(member(name))
    torch.testing.assert_close(
        gradient(taylor, logits, labels), gradient(loss, logits, labels), rtol=1e-9, atol=1e-12
    )
    differences = taylor.per_sample(logits, labels) - loss.per_sample(logits, labels)
    torch.testing.assert_close(differences, differences[0].expand(50), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("n", CLASSES)
def test_a_member_has_the_dynamics_of_the_classic_loss(name: str, n: int) -> None:
    found: Dynamics = dynamics(member(name), n)
    expected: Dynamics = classic_dynamics(name, n)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-12, abs=1e-12)
    rest = expected.equilibrium_confidence
    assert found.equilibrium_confidence == (rest if rest is None else pytest.approx(rest))


def test_the_members_with_a_logarithm() -> None:
    assert {name: has_log(member(name)) for name in MEMBERS} == {
        "cross-entropy": True,
        "squared-error": False,
        "symmetric-cross-entropy": True,
        "mean-absolute-error": False,
    }


@pytest.mark.parametrize("name", ["baikal", "generalised-cross-entropy", "hinge", ""])
def test_other_losses_are_no_members(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is no Taylor loss; these are: cross-entropy, "):
        member(name)


def label_smoothing(n: int) -> Pull:
    """Return the net pull of label smoothing: gamma is ((1-alpha) t + alpha/n) / h."""
    return lambda p: (1 - ALPHA + ALPHA / n) / p - (ALPHA / n) * (n - 1) / (1 - p)


def generalised(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the net pull of the generalised cross-entropy: gamma is t h^(q-1)."""
    return np.power(p, Q - 1)


# The deviations that docs/method.md states, for ten classes.
@pytest.mark.parametrize(
    ("pull", "rate", "log", "deviation"),
    [
        (label_smoothing(10), -10.0, False, 0.349),
        (label_smoothing(10), -10.0, True, 0.110),
        (generalised, (Q - 1) * 10 ** (1 - Q), False, 0.054),
        (generalised, (Q - 1) * 10 ** (1 - Q), True, 0.008),
        (lambda p: 1 / p, -10.0, False, 0.331),
    ],
    ids=["smoothing", "smoothing log", "generalised", "generalised log", "cross-entropy"],
)
def test_the_deviations_of_the_nearest_losses(
    pull: Pull, rate: float, log: bool, deviation: float
) -> None:
    found = nearest(pull, rate, 10, log=log)
    assert found.deviation == pytest.approx(deviation, abs=5e-4)
    assert has_log(found.theta) is log
    assert collapse_rate(found.theta, 10) == pytest.approx(rate)
    # The deviation is measured anew, from gradients, on other confidences.
    loss = TaylorLoss(found.theta)
    p = np.linspace(0.1, 0.999, 400)
    logits = torch.zeros(len(p), 10, dtype=torch.float64)
    logits[:, 0] = torch.tensor(np.log(9 * p / (1 - p)))
    steps = -gradient(loss, logits, torch.zeros(len(p), dtype=torch.long))[:, 0].numpy()
    wanted = p * (1 - p) * pull(p)
    assert np.abs(steps - wanted).max() / np.abs(wanted).max() == pytest.approx(deviation, abs=2e-3)


def test_no_other_theta_is_nearer_by_least_squares() -> None:
    n, p = 10, np.linspace(0.1, 1, 1000, endpoint=False)
    wanted = p * (1 - p) * label_smoothing(n)(p)

    def distance(theta: list[float]) -> float:
        steps = p * (1 - p) * net_pull(theta, n)(p)
        return float(np.square(steps - wanted).sum())

    for log in (False, True):
        theta = nearest(label_smoothing(n), -10.0, n, log=log).theta
        least = distance(theta)
        for index in range(3, len(theta)):
            for step in (-1e-3, 1e-3):
                other = [*theta[:index], theta[index] + step, *theta[index + 1 :]]
                assert distance(other) > least


def test_the_nearest_loss_to_label_smoothing_pushes_back_with_a_logarithm_only() -> None:
    rests = [
        equilibrium_confidence(nearest(label_smoothing(10), -10.0, 10, log=log).theta, 10)
        for log in (False, True)
    ]
    assert rests[0] is None
    assert rests[1] == pytest.approx(0.954, abs=1e-3)


@settings(deadline=None, derandomize=True)
@given(st.tuples(*[st.floats(-5, 5)] * 4), st.none() | st.floats(0, 5), st.sampled_from(CLASSES))
def test_a_member_is_its_own_nearest(
    numbers: tuple[float, ...], weight: float | None, n: int
) -> None:
    theta = TaylorLoss.from_coefficients(*numbers, log_weight=weight).theta.tolist()
    pull = net_pull(theta, n)
    p = np.linspace(1 / n, 1, 1000, endpoint=False)
    if np.abs(p * (1 - p) * pull(p)).max() < 1e-3:
        return
    found = nearest(pull, collapse_rate(theta, n), n, log=weight is not None)
    assert found.deviation < 1e-9
    if n > 2:
        assert collapse_rate(found.theta, n) == pytest.approx(collapse_rate(theta, n), abs=1e-7)
        # Then the learning rule is the same for all logits, not only along the net pull.
        source = torch.Generator().manual_seed(0)
        logits = torch.randn(8, n, generator=source, dtype=torch.float64)
        labels = torch.randint(n, (8,), generator=source)
        torch.testing.assert_close(
            gradient(TaylorLoss(found.theta), logits, labels),
            gradient(TaylorLoss(theta), logits, labels),
            rtol=1e-6,
            atol=1e-6,
        )


def test_a_weight_that_would_be_negative_is_0() -> None:
    # g = 3 - 1/p: the best weight is -1, which is not allowed.
    found = nearest(lambda p: 3 - 1 / p, -1.0, 10, log=True)
    without = nearest(lambda p: 3 - 1 / p, -1.0, 10, log=False)
    assert found.theta == [*without.theta, 0.0]
    assert math.isclose(found.deviation, without.deviation)


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="number of classes should be at least 2, is 1"):
        nearest(generalised, 0.0, 1, log=True)
