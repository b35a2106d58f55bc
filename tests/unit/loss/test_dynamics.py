"""The learning rule, A, B and p*, each measured by autograd through a real softmax, in float64."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from taylorglo.errors import InputError
from taylorglo.loss import classic as losses
from taylorglo.loss.classic import CrossEntropy
from taylorglo.loss.dynamics import (
    classic,
    coefficients,
    collapse_rate,
    dynamics,
    equilibrium_confidence,
    gamma,
    label_smoothed,
    learning_drive,
    net_pull,
)
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.loss.polynomial import from_coefficients

CLASSES = [2, 3, 5, 10, 100]
MNIST = [-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513]


def random_theta(
    rng: np.random.Generator, order: int, sigma: float = 1.2, *, log: bool = False
) -> list[float]:
    theta = rng.normal(0, sigma, order * (order + 1) // 2 + 2).tolist()
    return [*theta, abs(rng.normal(0, sigma))] if log else theta


def order_3(theta: list[float], t: Tensor, h: Tensor) -> Tensor:
    """Return f(t, h) as the papers write it."""
    th0, th1, th2, th3, th4, th5, th6, th7 = theta
    v, u = t - th0, h - th1
    return th2 * u + th3 * u**2 + th4 * u**3 + th5 * v * u + th6 * v * u**2 + th7 * v**2 * u


def order_2(theta: list[float], t: Tensor, h: Tensor) -> Tensor:
    th0, th1, th2, th3, th5 = theta
    return th2 * (h - th1) + th3 * (h - th1) ** 2 + th5 * (t - th0) * (h - th1)


def gradient(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """Return dL/dz of each sample, (N, n)."""
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(loss.per_sample(logits, targets).sum(), logits)[0]


def at_confidence(p: float, n: int) -> Tensor:
    """Return logits of one sample whose target 0 has probability p; the others share the rest."""
    logits = torch.zeros(1, n, dtype=torch.float64)
    logits[0, 0] = math.log(p * (n - 1) / (1 - p))
    return logits


def pull_on_target(loss: Loss, p: float, n: int) -> float:
    """Return how far a step at confidence p lifts the target's logit, per learning rate."""
    slope = gradient(loss, at_confidence(p, n), torch.tensor([0]))[0]
    return float(slope[1] - slope[0])


def measured_drive(loss: Loss, n: int) -> float:
    """Return A: at equal logits, a step lifts the target's logit over the others by rate A/n."""
    slopes = gradient(loss, torch.zeros(n, n, dtype=torch.float64), torch.arange(n))
    # The lift of each target over each other class.
    lifts = slopes - slopes.diagonal()[:, None]
    others = lifts[~torch.eye(n, dtype=torch.bool)]
    torch.testing.assert_close(others, others[0].expand_as(others), rtol=1e-9, atol=1e-12)
    return float(others[0]) * n


def measured_collapse_matrix(loss: Loss, n: int) -> Tensor:
    """Return -d(gradient)/d(delta) at delta = 0, if all samples share the logits delta.

    The batch is balanced. The learning rule averaged over the targets is

        dL/dz_j = -h_j (G(h_j) - sum_k h_k G(h_k))

    with G(h) the mean over the classes of gamma(t, h). At h = 1/n it is 0. To first order in delta
    (its sum is zero, so that dh = delta/n) it is -G'(1/n) delta / n^2. On that subspace the matrix
    is B/n^2, and along (1, ..., 1) it is 0.
    """

    def batch_gradient(delta: Tensor) -> Tensor:
        return torch.func.grad(lambda d: loss(d.expand(n, n), torch.arange(n)))(delta)

    return -torch.func.jacrev(batch_gradient)(torch.zeros(n, dtype=torch.float64))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", [2, 3])
def test_the_coefficients_are_those_of_the_derivative_of_f(order: int, log: bool) -> None:
    rng = np.random.default_rng(order)
    f = order_3 if order == 3 else order_2
    for _ in range(50):
        theta = random_theta(rng, order, sigma=5.0, log=log)
        polynomial, weight = (theta[:-1], theta[-1]) if log else (theta, 0.0)
        t = torch.tensor(rng.uniform(-1, 2, 20))
        h = torch.tensor(rng.uniform(0.01 if log else -1, 2, 20)).requires_grad_()
        values = f(polynomial, t, h)
        if log:
            values = values + weight * t * h.log()
        expected = torch.autograd.grad(values.sum(), h)[0].numpy()
        c1, ch, chh, chy, cy, cyy, log_weight = coefficients(theta)
        assert log_weight == weight
        targets = t.numpy()
        predictions = h.detach().numpy()
        on_h = c1 + ch * predictions + chh * predictions**2
        on_t = cy * targets + cyy * targets**2
        values = on_h + chy * predictions * targets + on_t + log_weight * targets / predictions
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)
        by_gamma = [gamma(theta, a)(b) for a, b in zip(targets, predictions, strict=True)]
        np.testing.assert_allclose(by_gamma, expected, 1e-9, 1e-9)


def test_the_coefficients_of_the_published_mnist_loss() -> None:
    # 3 th4, 2 th6, th7, 2 th3 - 6 th1 th4 - 2 th0 th6, and th5 - 2 th1 th6 - 2 th0 th7 are computed
    # by hand.
    published = coefficients(MNIST)
    assert published.chh == pytest.approx(23.6178)
    assert published.chy == pytest.approx(4.0368)
    assert published.cyy == 7.0513
    assert published.ch == pytest.approx(0.4830 - 355.287291 + 44.16582144, rel=1e-6)
    assert published.cy == pytest.approx(8.9666 - 30.36319488 + 154.29372608, rel=1e-6)


def test_coefficients_of_order_4_do_not_exist() -> None:
    with pytest.raises(InputError, match="order 2 or 3 is needed"):
        coefficients([0.0] * 12)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", [2, 3, 4, 5])
@pytest.mark.parametrize("n", CLASSES)
def test_a_step_at_equal_logits_lifts_the_target_by_the_drive_over_n(
    n: int, order: int, log: bool
) -> None:
    rng = np.random.default_rng(order)
    for _ in range(5):
        theta = random_theta(rng, order, log=log)
        measured = measured_drive(TaylorLoss(theta, order), n)
        assert learning_drive(theta, n) == pytest.approx(measured, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("n", CLASSES)
def test_the_drive_and_the_rate_of_order_3_in_closed_form(n: int, log: bool) -> None:
    rng = np.random.default_rng(n)
    for _ in range(20):
        theta = random_theta(rng, 3, log=log)
        _, ch, chh, chy, cy, cyy, w = coefficients(theta)
        drive = cy + cyy + chy / n + w * n
        rate = ch + 2 * chh / n + chy / n - w * n
        assert learning_drive(theta, n) == pytest.approx(drive, rel=1e-9, abs=1e-9)
        assert collapse_rate(theta, n) == pytest.approx(rate, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", [2, 3, 4, 5])
@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_a_shared_shift_of_the_logits_grows_at_the_collapse_rate_over_n_squared(
    n: int, order: int, log: bool
) -> None:
    rng = np.random.default_rng(order)
    for _ in range(3):
        theta = random_theta(rng, order, log=log)
        matrix = measured_collapse_matrix(TaylorLoss(theta, order), n).numpy()
        expected = collapse_rate(theta, n) / n**2 * (np.eye(n) - 1 / n)
        np.testing.assert_allclose(matrix, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_net_pull_is_the_measured_one(order: int, log: bool) -> None:
    rng = np.random.default_rng(order)
    for n in CLASSES:
        theta = random_theta(rng, order, log=log)
        for p in rng.uniform(0.01, 0.99, 5):
            # dL/dz_T = -p (1-p) g, and the others share the rest equally.
            factor = p * (1 - p) * (1 + 1 / (n - 1))
            expected = pull_on_target(TaylorLoss(theta, order), p, n) / factor
            assert net_pull(theta, n)(p) == pytest.approx(expected, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("decades", [0, 16])
def test_the_equilibrium_is_the_first_root_of_a_fine_scan(
    order: int, decades: int, log: bool
) -> None:
    rng = np.random.default_rng(10 + order)
    absences: Counter[bool] = Counter()
    for _ in range(100):
        n = int(rng.choice(CLASSES))
        numbers = random_theta(rng, order, log=log)
        theta = [value * 10 ** -rng.uniform(0, decades) for value in numbers]
        pull = net_pull(theta, n)
        grid = np.concatenate([[1 / n + 1e-9], np.linspace(1 / n, 1, 10_001)[1:]])
        values = pull(grid)
        flips = np.flatnonzero(np.sign(values[1:]) != np.sign(values[:-1]))
        rest = equilibrium_confidence(theta, n)
        absences[rest is None] += 1
        if not flips.size:
            assert rest is None or rest < grid[0]
        else:
            first = brentq(pull, grid[flips[0]], grid[flips[0] + 1], xtol=1e-15)
            assert rest == pytest.approx(first, rel=0, abs=1e-9)
    assert min(absences[True], absences[False]) >= 15


def test_a_pull_that_only_touches_zero_rests_there_or_nowhere() -> None:
    # These coefficients make chh (p^2 - ((1-p)/9)^2) + chy p + cy equal to (p - r)^2.
    chh = 81 / 80
    for root in np.linspace(0.15, 0.95, 200):
        theta = from_coefficients(root**2 + chh / 81, -2 * root - 2 * chh / 81, 0.0, chh)
        assert net_pull(theta, 10)(0.5) == pytest.approx((0.5 - root) ** 2, abs=1e-12)
        # Rounding decides between a root and none.
        rest = equilibrium_confidence(theta, 10)
        assert rest is None or abs(rest - root) < 1e-6


def test_the_pull_vanishes_at_the_equilibrium_and_changes_sign_there() -> None:
    rng = np.random.default_rng(3)
    checked = 0
    while checked < 30:
        order, n = int(rng.integers(2, 5)), int(rng.choice(CLASSES))
        theta = random_theta(rng, order, log=checked % 2 == 1)
        rest = equilibrium_confidence(theta, n)
        if rest is None or learning_drive(theta, n) <= 0 or not 1 / n + 0.01 < rest < 0.99:
            continue
        loss, step = TaylorLoss(theta, order), 1e-3
        assert pull_on_target(loss, rest, n) == pytest.approx(0, abs=1e-9)
        assert pull_on_target(loss, rest - step, n) > 0 > pull_on_target(loss, rest + step, n)
        checked += 1


@pytest.mark.parametrize(
    ("theta", "n", "rest"),
    [
        # gamma = 2 (t - h), squared error.
        ([0, 0, 0, -1, 0, 2, 0, 0], 10, 1.0),
        # gamma = t, a constant pull.
        ([0, 0, 0, 0, 0, 1, 0, 0], 10, None),
        # gamma = c1, no pull at all.
        ([0, 0, 5, 0, 0, 0, 0, 0], 10, None),
        ([0.0] * 8, 10, None),
        # g = 0.4 - p + (1-p) = 1.4 - 2p.
        ([0, 0, 0, -0.5, 0, 0.4, 0, 0], 2, 0.7),
        # g(1/n) = 0, but 1/n is the confidence of chance: training starts and does not rest there.
        ([0, 0, 0, -0.5, 0, 0, 0, 0], 4, None),
        ([1e-200] * 8, 3, None),
        # g = 1/p, cross-entropy, and g = 1/p - 2, whose polynomial alone has no root.
        ([0, 0, 0, 0, 0, 0, 0, 0, 1], 10, None),
        ([0, 0, 0, 0, 0, -2, 0, 0, 1], 10, 0.5),
        ([0, 0, 0, 0, 0, -2e-9, 0, 0, 1e-9], 10, 0.5),
        # g = 0.1/p - 1 is 0 at 1/n, which is chance.
        ([0, 0, 0, 0, 0, -1, 0, 0, 0.1], 10, None),
        # g = w/p + 1.4 - 2p at n = 2, as above if the weight is nothing, or next to nothing.
        ([0, 0, 0, -0.5, 0, 0.4, 0, 0, 0], 2, 0.7),
        ([0, 0, 0, -0.5, 0, 0.4, 0, 0, 1e-300], 2, 0.7),
        # 2 p^2 - 1.4 p - 0.12 is 0 at (1.4 + sqrt(1.96 + 0.96)) / 4.
        ([0, 0, 0, -0.5, 0, 0.4, 0, 0, 0.12], 2, (1.4 + 2.92**0.5) / 4),
    ],
)
def test_equilibria_by_hand(theta: list[float], n: int, rest: float | None) -> None:
    equilibrium = equilibrium_confidence(theta, n)
    assert equilibrium == (rest if rest is None else pytest.approx(rest, abs=1e-12))
    assert equilibrium is None or 1 / n < equilibrium <= 1


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
def test_the_equilibrium_does_not_depend_on_the_scale(scale: float, log: bool) -> None:
    rng = np.random.default_rng(8)
    for _ in range(30):
        theta = random_theta(rng, 3, log=log)
        scaled = theta[:2] + [scale * value for value in theta[2:]]
        rest = equilibrium_confidence(theta, 10)
        expected = rest if rest is None else pytest.approx(rest, rel=1e-6)
        assert equilibrium_confidence(scaled, 10) == expected
        drive = scale * learning_drive(theta, 10)
        assert learning_drive(scaled, 10) == pytest.approx(drive, rel=1e-9)


@pytest.mark.parametrize("tiny", [1e-310, 1e-16, 1e-13, 1e-10, 1e-6])
def test_a_vanishing_leading_coefficient_does_not_disturb_the_root(tiny: float) -> None:
    # g = 0.4 - p + (1-p)/9, and a tiny square, whose other root is far away.
    rest = equilibrium_confidence([0, 0, 0, -0.5, tiny, 0.4, 0, 0], 10)
    assert rest == pytest.approx(0.46, abs=10 * tiny + 1e-12)


@pytest.mark.parametrize("n", CLASSES)
@pytest.mark.parametrize(
    ("name", "smoothing"),
    [
        ("cross-entropy", 0.0),
        ("cross-entropy", 0.1),
        ("cross-entropy", 0.5),
        ("squared-error", 0.0),
        ("baikal", 0.0),
        ("generalised-cross-entropy", 0.0),
        ("symmetric-cross-entropy", 0.0),
        ("mean-absolute-error", 0.0),
    ],
)
def test_the_classic_losses_have_the_measured_dynamics(name: str, smoothing: float, n: int) -> None:
    drive, rate, rest = classic(name, n, smoothing)
    loss = losses.classic(name, smoothing)
    assert drive == pytest.approx(measured_drive(loss, n), rel=1e-9)
    matrix = measured_collapse_matrix(loss, n).numpy()
    np.testing.assert_allclose(matrix, rate / n**2 * (np.eye(n) - 1 / n), rtol=1e-9, atol=1e-12)
    inside = np.linspace(1 / n, 1, 50)[1:-1]
    for p in inside:
        if rest is None or abs(p - rest) > 1e-6:
            assert (pull_on_target(loss, p, n) > 0) == (rest is None or p < rest)
    if rest is not None and rest < 1:
        assert pull_on_target(loss, rest, n) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("n", CLASSES)
def test_the_equilibrium_of_label_smoothing(n: int) -> None:
    for alpha in (0.05, 0.1, 0.3, 0.9):
        rest = classic("cross-entropy", n, alpha).equilibrium_confidence
        assert rest == pytest.approx(1 - alpha * (n - 1) / n)


@pytest.mark.parametrize("n", CLASSES)
def test_squared_error_is_a_taylor_loss_and_has_its_dynamics(n: int) -> None:
    taylor = dynamics([0, 0, 0, -1, 0, 2, 0, 0], n)
    assert taylor == pytest.approx(classic("squared-error", n), abs=1e-12)


def thetas_of(order: int) -> st.SearchStrategy[list[float]]:
    length = order * (order + 1) // 2 + 2
    return st.lists(st.floats(-3, 3), min_size=length, max_size=length)


@settings(deadline=None, derandomize=True)
@given(
    st.integers(2, 5).flatmap(thetas_of),
    st.floats(0, 0.95),
    st.sampled_from([2, 3, 10]),
    st.integers(0, 2**31),
)
def test_a_smoothed_theta_has_the_gradients_of_smoothed_targets(
    theta: list[float], alpha: float, n: int, seed: int
) -> None:
    order = {5: 2, 8: 3, 12: 4, 17: 5}[len(theta)]
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, n, dtype=torch.float64, generator=generator)
    soft = (1 - alpha) * torch.eye(n, dtype=torch.float64) + alpha / n
    plain = TaylorLoss(theta, order)
    smoothed = TaylorLoss(label_smoothed(theta, alpha, n), order)
    # Rounding grows with the powers of the centre theta_0 / (1 - alpha).
    bound = 1e-12 * max(1.0, max(map(abs, theta))) ** (order + 1) * (1 / (1 - alpha)) ** order
    torch.testing.assert_close(
        gradient(smoothed, logits, torch.arange(n)),
        gradient(plain, logits, soft),
        rtol=1e-9,
        atol=bound,
    )


@pytest.mark.parametrize("log", [False, True])
def test_the_integral_of_the_pull_is_the_fall_of_the_loss(log: bool) -> None:
    rng = np.random.default_rng(5)
    for n in CLASSES:
        theta = random_theta(rng, 3, log=log)
        loss, target = TaylorLoss(theta), torch.tensor([0])
        p = rng.uniform(0.01, 0.99, 5)
        start = float(loss(at_confidence(1 / n, n), target))
        falls = [start - float(loss(at_confidence(share, n), target)) for share in p]
        assert net_pull(theta, n).integ(lbnd=1 / n)(p) == pytest.approx(falls, rel=1e-9, abs=1e-9)


def test_a_logarithm_of_weight_0_is_none() -> None:
    for n in CLASSES:
        assert dynamics([*MNIST, 0.0], n) == dynamics(MNIST, n)
        assert net_pull([*MNIST, 0.0], n) == net_pull(MNIST, n)
    assert label_smoothed([*MNIST, 0.0], 0.1, 10) == [*label_smoothed(MNIST, 0.1, 10), 0.0]


def test_a_smoothed_logarithm_is_refused() -> None:
    theta = [*MNIST, 0.5]
    with pytest.raises(InputError, match=r"weight 0\.5 of the logarithm, .* should be 0, or use"):
        label_smoothed(theta, 0.1, 10)
    assert label_smoothed(theta, 0.0, 10) == theta


def test_a_smoothed_squared_error_rests_where_label_smoothing_says() -> None:
    for n in CLASSES:
        theta = label_smoothed([0, 0, 0, -1, 0, 2, 0, 0], 0.1, n)
        assert equilibrium_confidence(theta, n) == pytest.approx(1 - 0.1 * (n - 1) / n)


def test_smoothing_by_nothing_changes_nothing() -> None:
    assert label_smoothed(MNIST, 0.0, 10) == MNIST


@pytest.mark.parametrize("n", [1, 0, -2])
def test_fewer_than_two_classes_are_refused(n: int) -> None:
    calls = [
        lambda: learning_drive(MNIST, n),
        lambda: collapse_rate(MNIST, n),
        lambda: net_pull(MNIST, n),
        lambda: equilibrium_confidence(MNIST, n),
        lambda: dynamics(MNIST, n),
        lambda: label_smoothed(MNIST, 0.1, n),
        lambda: classic("cross-entropy", n),
    ]
    for call in calls:
        with pytest.raises(InputError, match=f"number of classes should be at least 2, is {n}"):
            call()


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_impossible_smoothing_is_refused(alpha: float) -> None:
    calls = (
        lambda: label_smoothed(MNIST, alpha, 10),
        lambda: classic("cross-entropy", 10, alpha),
        lambda: CrossEntropy(alpha),
    )
    for call in calls:
        with pytest.raises(InputError, match="label smoothing should be at least 0 and below 1"):
            call()


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_huge_numbers_do_not_overflow(size: float) -> None:
    rng = np.random.default_rng(0)
    for order in (3, 8):
        for _ in range(10):
            theta = size * rng.uniform(-1, 1, order * (order + 1) // 2 + 2)
            numbers = dynamics([*theta.tolist(), *rng.uniform(0, size, int(rng.integers(2)))], 10)
            assert math.isfinite(numbers.learning_drive)
            assert math.isfinite(numbers.collapse_rate)
