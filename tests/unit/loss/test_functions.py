"""The losses against direct evaluations, their learning rules by autograd, and files of losses."""

import itertools
import json
import math
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from taylorglo.errors import InputError
from taylorglo.loss import dynamics
from taylorglo.loss.classic import Baikal, CrossEntropy, SquaredError
from taylorglo.loss.functions import Loss, TaylorLoss

# The loss of the regularization paper that was found on MNIST.
MNIST = [-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513]
ORDERS = [2, 3, 4, 5]
CLASSES = [2, 3, 10]


def size(order: int) -> int:
    """Return the length of a theta without the logarithm."""
    return 2 + order * (order + 1) // 2


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_theta(order: int, seed: int, *, log: bool = False) -> list[float]:
    numbers = torch.randn(size(order) + log, generator=generator(seed), dtype=torch.float64)
    theta: list[float] = (1.2 * numbers).tolist()
    return [*theta[:-1], abs(theta[-1])] if log else theta


class Batch(NamedTuple):
    """Logits with soft targets, and with class indices."""

    logits: Tensor
    soft: Tensor
    indices: Tensor

    @property
    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """Each kind of targets with the distributions that they stand for."""
        distributions = one_hot(self.indices, self.logits.shape[1])
        return [(self.soft, self.soft), (self.indices, distributions)]


def random_batch(n: int, seed: int, samples: int = 6) -> Batch:
    source = generator(seed)
    logits = 2 * torch.randn(samples, n, generator=source, dtype=torch.float64)
    shares = torch.rand(samples, n, generator=source, dtype=torch.float64).pow(3)
    indices = torch.randint(n, (samples,), generator=source)
    return Batch(logits, shares / shares.sum(dim=1, keepdim=True), indices)


def one_hot(indices: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[indices]


def expansion(theta: list[float], order: int, t: float, h: float) -> float:
    """Return f(t, h) with every monomial written out, and the logarithm."""
    coefficients = iter(theta[2:])
    polynomial = math.fsum(
        next(coefficients) * (t - theta[0]) ** a * (h - theta[1]) ** b
        for a, b in itertools.product(range(order), range(1, order + 1))
        if a + b <= order
    )
    return polynomial + next(coefficients, 0.0) * t * math.log(h)


def direct(theta: list[float], order: int, logits: Tensor, targets: Tensor) -> list[float]:
    """Return L of each sample, in plain Python."""
    values = []
    for z, t in zip(logits.tolist(), targets.tolist(), strict=True):
        exponentials = [math.exp(logit) for logit in z]
        h = [exponential / math.fsum(exponentials) for exponential in exponentials]
        values.append(-math.fsum(expansion(theta, order, a, b) for a, b in zip(t, h, strict=True)))
    return values


def gradient(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(loss.per_sample(logits, targets).sum(), logits)[0]


def learning_rule(
    gamma: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> Tensor:
    """Return dL/dz_j = -h_j (gamma_j - sum_k h_k gamma_k)."""
    h = logits.softmax(dim=1)
    values = gamma(targets, h)
    return -h * (values - (h * values).sum(dim=1, keepdim=True))


def taylor_gamma(theta: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
    def gamma(t: Tensor, h: Tensor) -> Tensor:
        pairs = zip(t.flatten().tolist(), h.flatten().tolist(), strict=True)
        values = [dynamics.gamma(theta, a)(b) for a, b in pairs]
        return torch.tensor(values, dtype=torch.float64).view_as(h)

    return gamma


def thetas_of(order: int) -> st.SearchStrategy[tuple[int, list[float]]]:
    numbers = st.lists(st.floats(-10, 10), min_size=size(order), max_size=size(order))
    weights = st.just([]) | st.floats(0, 10).map(lambda weight: [weight])
    return st.tuples(st.just(order), st.builds(list.__add__, numbers, weights))


ORDERS_WITH_THETAS = st.sampled_from(ORDERS).flatmap(thetas_of)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ORDERS_WITH_THETAS, st.sampled_from(CLASSES), st.integers(0, 2**31))
def test_a_taylor_loss_is_its_expansion_for_soft_and_hard_targets(
    order_and_theta: tuple[int, list[float]], n: int, seed: int
) -> None:
    order, theta = order_and_theta
    batch = random_batch(n, seed)
    loss = TaylorLoss(theta, order)
    # Terms of the size 10 * 11^order cancel.
    bound = 1e-14 * n * sum(11.0**power for power in range(order + 2))
    hard = one_hot(batch.indices, n)
    for targets, distributions in [*batch.targets, (hard, hard)]:
        values = loss.per_sample(batch.logits, targets)
        assert values.shape == (len(batch.logits),)
        assert values.dtype == torch.float64
        expected = direct(theta, order, batch.logits, distributions)
        assert values.tolist() == pytest.approx(expected, rel=1e-10, abs=bound)
        torch.testing.assert_close(loss(batch.logits, targets), values.mean())


def test_the_published_mnist_loss() -> None:
    n = 10
    loss = TaylorLoss(MNIST, classes=n)
    logits, _, indices = random_batch(n, 1)
    th0, th1, th2, th3, th4, th5, th6, th7 = MNIST
    u = logits.softmax(dim=1) - th1
    v = one_hot(indices, n) - th0
    f = th2 * u + th3 * u**2 + th4 * u**3 + th5 * v * u + th6 * v * u**2 + th7 * v**2 * u
    torch.testing.assert_close(loss.per_sample(logits, indices), -f.sum(dim=1), rtol=1e-12, atol=0)
    # At the null epoch L = -(f(1, 1/n) + (n-1) f(0, 1/n)), in plain arithmetic.
    expected = -(expansion(MNIST, 3, 1.0, 0.1) + 9 * expansion(MNIST, 3, 0.0, 0.1))
    at_null_epoch = loss(torch.zeros(1, n, dtype=torch.float64), torch.tensor([4]))
    assert float(at_null_epoch) == pytest.approx(expected, rel=1e-13)


def taylor_rule(theta: list[float], order: int) -> tuple[Loss, Callable[[Tensor, Tensor], Tensor]]:
    return TaylorLoss(theta, order), taylor_gamma(theta)


RULES: dict[str, tuple[Loss, Callable[[Tensor, Tensor], Tensor]]] = {
    **{f"taylor-{order}": taylor_rule(random_theta(order, seed=order), order) for order in ORDERS},
    **{
        f"taylor-log-{order}": taylor_rule(random_theta(order, seed=order, log=True), order)
        for order in ORDERS
    },
    "mnist": taylor_rule(MNIST, 3),
    "cross-entropy": (CrossEntropy(), lambda t, h: t / h),
    "smoothed": (CrossEntropy(0.2), lambda t, h: (0.8 * t + 0.2 / t.shape[1]) / h),
    "squared-error": (SquaredError(), lambda t, h: 2 * (t - h)),
    "baikal": (Baikal(), lambda t, h: 1 / h + t / h**2),
}


@pytest.mark.parametrize("n", CLASSES)
@pytest.mark.parametrize("name", RULES)
def test_gradients_follow_the_learning_rule(name: str, n: int) -> None:
    loss, gamma = RULES[name]
    for seed in range(5):
        batch = random_batch(n, seed)
        for targets, distributions in batch.targets:
            expected = learning_rule(gamma, batch.logits, distributions)
            torch.testing.assert_close(
                gradient(loss, batch.logits, targets),
                expected,
                rtol=1e-9,
                atol=1e-9 * float(expected.abs().max()),
            )
            mean = loss.per_sample(batch.logits, targets).mean()
            torch.testing.assert_close(loss(batch.logits, targets), mean)


def test_the_values_of_the_classic_losses() -> None:
    batch = random_batch(5, 0)
    h = batch.logits.softmax(dim=1)
    for targets, t in batch.targets:
        expected = {
            CrossEntropy(): -(t * h.log()).sum(dim=1),
            CrossEntropy(0.3): -((0.7 * t + 0.3 / 5) * h.log()).sum(dim=1),
            SquaredError(): ((t - h) ** 2).sum(dim=1),
            Baikal(): -(h.log() - t / h).sum(dim=1),
        }
        for loss, values in expected.items():
            torch.testing.assert_close(loss.per_sample(batch.logits, targets), values)


@pytest.mark.parametrize("order", ORDERS)
def test_c1_is_a_gauge_freedom(order: int) -> None:
    theta = random_theta(order, seed=20)
    logits, soft, indices = random_batch(4, 20)
    loss = TaylorLoss(theta, order)
    for shift in (-30.0, 0.7, 500.0):
        # The coefficient of (h - theta_1) alone is a constant in df/dh.
        shifted = TaylorLoss([*theta[:2], theta[2] + shift, *theta[3:]], order)
        for targets in (soft, indices):
            torch.testing.assert_close(
                gradient(shifted, logits, targets),
                gradient(loss, logits, targets),
                rtol=1e-9,
                atol=1e-12 * abs(shift),
            )
            assert not torch.allclose(shifted(logits, targets), loss(logits, targets))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(-20, 20), min_size=6, max_size=6), st.floats(-20, 20))
def test_only_the_sum_of_cy_and_cyy_enters_with_one_hot_targets(
    numbers: list[float], shift: float
) -> None:
    cy, chy, ch, chh, cyy, c1 = numbers
    logits, soft, indices = random_batch(4, 21)
    loss = TaylorLoss.from_coefficients(cy, chy, ch, chh, cyy=cyy, c1=c1)
    other = TaylorLoss.from_coefficients(cy - shift, chy, ch, chh, cyy=cyy + shift, c1=0.0)
    torch.testing.assert_close(
        gradient(loss, logits, indices), gradient(other, logits, indices), rtol=1e-9, atol=1e-11
    )
    # With soft targets the gradients differ.
    if abs(shift) > 1e-3:
        difference = gradient(loss, logits, soft) - gradient(other, logits, soft)
        assert difference.abs().max() > 1e-4 * abs(shift)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6))
def test_from_coefficients_has_the_coefficients_given(numbers: list[float]) -> None:
    cy, chy, ch, chh, cyy, c1 = numbers
    loss = TaylorLoss.from_coefficients(
        cy, chy, ch, chh, cyy=cyy, c1=c1, classes=7, provenance={"by": "hand"}
    )
    expected = dynamics.Coefficients(c1, ch, chh, chy, cy, cyy)
    coefficients = dynamics.coefficients(loss.theta.tolist())
    assert coefficients == pytest.approx(expected, rel=1e-14, abs=1e-300)
    assert loss.order == 3
    assert loss.classes == 7
    assert loss.provenance == {"by": "hand"}


@pytest.mark.parametrize("scale", [1e-3, 2.0, 1e4])
def test_the_scale_of_the_coefficients_scales_the_gradients(scale: float) -> None:
    for order in ORDERS:
        theta = random_theta(order, seed=30)
        logits, soft, _ = random_batch(5, 30)
        scaled = TaylorLoss([*theta[:2], *(scale * value for value in theta[2:])], order)
        expected = scale * gradient(TaylorLoss(theta, order), logits, soft)
        torch.testing.assert_close(
            gradient(scaled, logits, soft), expected, rtol=1e-9, atol=1e-12 * scale
        )


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "name", ["mnist", "order-5", "log", "cross-entropy", "smoothed", "squared-error", "baikal"]
)
def test_short_logits_are_computed_in_float32(name: str, precision: torch.dtype) -> None:
    loss: Loss = {
        "mnist": TaylorLoss(MNIST),
        "order-5": TaylorLoss(random_theta(5, 1), 5),
        "log": TaylorLoss([*MNIST, 3.0]),
        "cross-entropy": CrossEntropy(),
        "smoothed": CrossEntropy(0.1),
        "squared-error": SquaredError(),
        "baikal": Baikal(),
    }[name]
    logits, soft, indices = random_batch(10, 40)
    short = logits.to(precision)
    for targets in (soft, soft.to(precision), indices, indices.to(torch.uint8)):
        values = loss.per_sample(short, targets)
        exact_targets = targets.double() if targets.is_floating_point() else targets
        exact = loss.per_sample(short.double(), exact_targets)
        assert values.dtype == torch.float32
        assert loss(short, targets).dtype == torch.float32
        torch.testing.assert_close(
            values.double(), exact, rtol=3e-6, atol=3e-6 * float(exact.abs().max())
        )
    slope = gradient(loss, short, indices)
    assert slope.dtype == precision
    expected = gradient(loss, short.double(), indices)
    torch.testing.assert_close(
        slope.double(),
        expected,
        rtol=1e-2,
        atol=torch.finfo(precision).eps * float(expected.abs().max()),
    )


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_saturated_logits_are_safe(precision: torch.dtype) -> None:
    logits = torch.full((4, 10), -100.0)
    logits[torch.arange(4), torch.arange(4)] = 100.0
    logits = logits.to(precision)
    right, wrong = torch.arange(4), torch.arange(4) + 1
    for loss in (
        TaylorLoss(MNIST),
        TaylorLoss(random_theta(5, 2), 5),
        TaylorLoss([*MNIST, 3.0]),
        CrossEntropy(),
        SquaredError(),
    ):
        for targets in (right, wrong):
            assert loss.per_sample(logits, targets).isfinite().all()
            assert gradient(loss, logits, targets).isfinite().all()
    # Baikal is t/h there. It is finite at the target, or if float64 holds e^200.
    assert Baikal().per_sample(logits, right).tolist() == pytest.approx([9 * 200 + 1.0] * 4)
    assert gradient(Baikal(), logits, right).isfinite().all()
    assert not Baikal().per_sample(logits, wrong).isnan().any()


@pytest.mark.parametrize("change", ["half", "bfloat16", "float", "double"])
def test_a_models_precision_does_not_round_theta(change: str) -> None:
    model = nn.Module()
    model.loss, model.layer = TaylorLoss(MNIST), nn.Linear(2, 2)
    getattr(model, change)()
    assert model.loss.theta.dtype == torch.float64
    assert model.loss.theta.tolist() == MNIST
    # The parameter of the model can still be changed in place.
    model.loss.theta.fill_(0.1)
    assert model.loss.theta.tolist() == [0.1] * 8


def test_theta_moves_with_the_model() -> None:
    assert TaylorLoss(MNIST).to("meta").theta.is_meta


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_the_gradient_with_respect_to_theta(order: int, log: bool) -> None:
    numbers = random_theta(order, 50, log=log)
    theta = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    logits, soft, _ = random_batch(4, 50)

    def value(theta: Tensor) -> Tensor:
        mean: Tensor = TaylorLoss(theta, order)(logits, soft)
        return mean

    assert torch.autograd.gradcheck(value, (theta,))
    assert torch.autograd.grad(value(theta), theta)[0].abs().min() > 0


@pytest.mark.parametrize("weight", [[], [2.0]])
def test_theta_is_used_as_it_is_and_can_be_changed_in_place(weight: list[float]) -> None:
    logits, soft, _ = random_batch(4, 51)
    theta = torch.tensor([*MNIST, *weight], dtype=torch.float64)
    loss = TaylorLoss(theta)
    assert loss.theta is theta
    other = random_theta(3, 51, log=bool(weight))
    theta.copy_(torch.tensor(other))
    torch.testing.assert_close(
        loss(logits, soft), TaylorLoss(theta.tolist())(logits, soft), rtol=0, atol=0
    )
    assert not torch.allclose(loss(logits, soft), TaylorLoss(MNIST)(logits, soft))


@pytest.mark.parametrize(("gradients", "log"), [(False, False), (True, True)])
def test_one_compiled_graph_serves_every_theta(gradients: bool, log: bool) -> None:
    import torch._dynamo
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if gradients else "eager")
    loss = TaylorLoss([*MNIST, *([1.5] if log else [])])
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    logits, soft, indices = random_batch(10, 52)

    def check(targets: Tensor) -> None:
        leaf = logits.clone().requires_grad_(gradients)
        value = compiled(leaf, targets)
        plain = TaylorLoss(loss.theta.tolist())
        torch.testing.assert_close(value, plain(logits, targets))
        if gradients:
            expected = gradient(plain, logits, targets) / len(logits)
            torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], expected)

    check(indices)
    assert counter.frame_count == 1
    for seed in range(3):
        loss.theta.copy_(torch.tensor(random_theta(3, seed, log=log), dtype=torch.float64))
        check(indices)
    loss.theta = torch.tensor(random_theta(3, 60, log=log), dtype=torch.float64)
    check(indices)
    assert counter.frame_count == 1
    # Another kind of targets needs another graph, so that the count above proves something.
    check(soft)
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    ("theta", "order", "message"),
    [
        ([0.0] * 7, 3, "theta has 7 numbers; there should be 8 for order 3"),
        ([0.0] * 8, 4, "theta has 8 numbers; there should be 12 for order 4, or 13 with the log"),
        ([0.0] * 8 + [-0.5], 3, r"theta\[8\] is -0.5; the weight of the logarithm should be at"),
        ([0.0] * 8 + [math.nan], 3, r"theta\[8\] is nan"),
        (torch.tensor([0.0] * 8 + [-0.5]), 3, r"theta\[8\] is -0.5; the weight"),
        (torch.zeros(3, 3), 3, r"theta should have shape \(9,\), has \(3, 3\)"),
        ([0.0] * 8, 1, "order of a Taylor loss should be at least 2, is 1"),
        ([0.0] * 7 + [math.nan], 3, r"theta\[7\] is nan"),
        ([math.inf] + [0.0] * 7, 3, r"theta\[0\] is inf"),
        (torch.tensor([0.0] * 7 + [-math.inf]), 3, r"theta\[7\] is -inf"),
        (torch.zeros(7), 3, "theta has 7 numbers"),
        (torch.zeros(2, 4), 3, r"theta should have shape \(8,\), has \(2, 4\)"),
        (torch.zeros(8, 1), 3, r"theta should have shape \(8,\), has \(8, 1\)"),
        (torch.tensor(0.0), 3, "theta has 1 numbers"),
    ],
)
def test_an_impossible_theta_is_refused(
    theta: list[float] | Tensor, order: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        TaylorLoss(theta, order)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [1, 0, -5])
def test_fewer_than_two_classes_are_refused(classes: int) -> None:
    with pytest.raises(InputError, match=f"classes should be at least 2, is {classes}"):
        TaylorLoss(MNIST, classes=classes)


@pytest.mark.parametrize("loss", [CrossEntropy(), SquaredError(), Baikal()])
@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (
            (4, 10),
            torch.zeros(5, dtype=torch.long),
            r"class indices should have shape \(4,\), have \(5,\)",
        ),
        (
            (4, 10),
            torch.zeros(4, 1, dtype=torch.long),
            r"class indices should have shape \(4,\), have \(4, 1\)",
        ),
        (
            (4, 10),
            torch.zeros(4, 10, dtype=torch.long),
            r"class indices should have shape \(4,\), have \(4, 10\)",
        ),
        ((4, 10), torch.zeros(4), r"soft targets should have shape \(4, 10\), have \(4,\)"),
        ((4, 10), torch.zeros(4, 9), r"soft targets should have shape \(4, 10\), have \(4, 9\)"),
        ((4, 10), torch.zeros(1, 10), r"soft targets should have shape \(4, 10\), have \(1, 10\)"),
    ],
)
def test_wrong_shapes_are_refused(
    loss: Loss, logits: tuple[int, ...], targets: Tensor, message: str
) -> None:
    for call in (loss, loss.per_sample, TaylorLoss(MNIST).per_sample):
        with pytest.raises(InputError, match=message):
            call(torch.zeros(logits), targets)


@pytest.mark.parametrize("loss", [CrossEntropy(), SquaredError(), Baikal(), TaylorLoss(MNIST)])
@pytest.mark.parametrize(
    ("logits", "targets"), [((10,), (10,)), ((4, 1), (4, 1)), ((4, 10, 3), (4, 10, 3))]
)
def test_the_loss_of_each_sample_takes_a_row_for_each(
    loss: Loss, logits: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    message = (
        rf"^logits should have shape \(samples, classes >= 2\), have {re.escape(str(logits))}$"
    )
    with pytest.raises(InputError, match=message):
        loss.per_sample(torch.zeros(logits), torch.zeros(targets))


@settings(deadline=None, derandomize=True)
@given(ORDERS_WITH_THETAS, st.none() | st.integers(2, 1000))
def test_a_saved_loss_is_loaded_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    order_and_theta: tuple[int, list[float]],
    classes: int | None,
) -> None:
    order, theta = order_and_theta
    path = tmp_path_factory.getbasetemp() / "loss.json"
    provenance = {
        "sweep": "a",
        "generation": 3,
        "fitness": 0.1 + 0.2,
        "nested": {"list": [1, None, "ä"]},
    }
    TaylorLoss(theta, order, classes=classes, provenance=provenance).save(path)
    loaded = TaylorLoss.load(path)
    assert loaded.theta.dtype == torch.float64
    assert loaded.theta.tolist() == theta
    assert loaded.order == order
    assert loaded.family == ("taylor" if len(theta) == size(order) else "taylor-log")
    assert loaded.classes == classes
    assert loaded.provenance == provenance


@pytest.mark.parametrize(("family", "weight"), [("taylor", []), ("taylor-log", [0.25])])
def test_a_saved_loss_is_plain_json(tmp_path: Path, family: str, weight: list[float]) -> None:
    theta = torch.tensor([*MNIST, *weight], dtype=torch.float64, requires_grad=True)
    TaylorLoss(theta, classes=10).save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "format": "taylorglo.loss/2",
        "family": family,
        "theta": [*MNIST, *weight],
        "order": 3,
        "classes": 10,
        "provenance": {},
    }


def test_saving_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "loss.json"
    TaylorLoss(MNIST).save(path)
    TaylorLoss([1.0] * 8).save(path)
    assert TaylorLoss.load(str(path)).theta.tolist() == [1.0] * 8
    assert os.listdir(tmp_path) == ["loss.json"]


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "loss.json"
    TaylorLoss(MNIST).save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system cuts off a file that is larger than 64 bytes, with an error.
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(InputError, match=r"loss\.json: cannot be written: File too large"):
            TaylorLoss([1.0] * 8).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert TaylorLoss.load(path).theta.tolist() == MNIST
    assert os.listdir(tmp_path) == ["loss.json"]


@pytest.mark.parametrize("provenance", [{"fitness": math.nan}, {"by": object()}])
def test_provenance_that_is_not_json_is_not_saved(
    tmp_path: Path, provenance: dict[str, object]
) -> None:
    path = tmp_path / "loss.json"
    TaylorLoss(MNIST).save(path)
    with pytest.raises(InputError, match=r"loss\.json: the loss is not JSON"):
        TaylorLoss([1.0] * 8, provenance=provenance).save(path)
    assert TaylorLoss.load(path).theta.tolist() == MNIST
    assert os.listdir(tmp_path) == ["loss.json"]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    reasons = {
        tmp_path / "missing" / "loss.json": "No such file or directory",
        tmp_path / "file" / "loss.json": "Not a directory",
        tmp_path / "folder": "Is a directory",
    }
    for path, reason in reasons.items():
        with pytest.raises(InputError, match=f"{path}: cannot be written: {reason}"):
            TaylorLoss(MNIST).save(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def saved(**changes: object) -> str:
    """Return a file of the first format, which names no family."""
    content = {
        "format": "taylorglo.loss/1",
        "theta": MNIST,
        "order": 3,
        "classes": 10,
        "provenance": {},
    }
    return json.dumps({**content, **changes})


def saved_with_family(**changes: object) -> str:
    return saved(**{"format": "taylorglo.loss/2", "family": "taylor", **changes})


def test_a_file_of_the_first_format_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "loss.json"
    path.write_text(saved(provenance={"sweep": "a"}))
    loss = TaylorLoss.load(path)
    assert loss.family == "taylor"
    assert loss.theta.tolist() == MNIST
    assert (loss.order, loss.classes, loss.provenance) == (3, 10, {"sweep": "a"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved()[:60], "is not a saved loss"),
        ("", "is not a saved loss"),
        ("\x80\x81", "is not a saved loss"),
        ("[1, 2]", 'is not a saved loss: there is no "format": "taylorglo.loss/2"'),
        (json.dumps({"theta": MNIST}), 'there is no "format": "taylorglo.loss/2"'),
        (
            saved(format="taylorglo.loss/3"),
            "is not a saved loss that this version reads: the format is 'taylorglo.loss/3'; "
            "it should be 'taylorglo.loss/2' or 'taylorglo.loss/1'",
        ),
        (saved(format=[1]), r"the format is \[1\]; it should be"),
        (saved(theta=[*MNIST, 0.5]), "theta has 9 numbers; there should be 8 for order 3$"),
        (saved_with_family(family=None), "family should be taylor or taylor-log, is None"),
        (saved_with_family(family="log"), "family should be taylor or taylor-log, is 'log'"),
        (saved_with_family(family=["taylor"]), "family should be taylor or taylor-log, is "),
        (
            saved_with_family(theta=[*MNIST, 0.5]),
            "theta has 9 numbers; there should be 8 for order 3$",
        ),
        (
            saved_with_family(family="taylor-log"),
            "theta has 8 numbers; there should be 9 for order 3 with the logarithm$",
        ),
        (
            saved_with_family(family="taylor-log", theta=[*MNIST, -0.5]),
            r"theta\[8\] is -0.5; the weight of the logarithm should be at least 0",
        ),
        (saved(theta=MNIST[:7]), "theta has 7 numbers; there should be 8 for order 3"),
        (saved(theta="1,2"), "theta should be a list of numbers"),
        (saved(theta=None), "theta should be a list of numbers"),
        (saved(theta=["1"] * 8), "theta should be a list of numbers"),
        (saved(theta=[math.nan] * 8), r"theta\[0\] is nan"),
        (saved(theta=[10**400] * 8), r"theta\[0\] is 1000"),
        (saved().replace(str(MNIST[7]), "1e400"), r"theta\[7\] is inf"),
        (saved(order=4), "theta has 8 numbers; there should be 12 for order 4"),
        (saved(order="3"), "order and classes should be whole numbers"),
        (saved(order=None), "order and classes should be whole numbers"),
        (saved(classes=2.5), "order and classes should be whole numbers"),
        (saved(classes=1), "classes should be at least 2, is 1"),
        (saved(provenance=[1]), "provenance should be a group of named values"),
    ],
)
def test_files_that_are_no_saved_loss_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "loss.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        TaylorLoss.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.json: is not a saved loss: .*No such file"):
        TaylorLoss.load(tmp_path / "missing.json")


def test_a_loss_prints_its_coefficients() -> None:
    assert repr(TaylorLoss(MNIST)) == f"TaylorLoss(theta={MNIST}, order=3)"
