"""Attacks against closed forms of linear models, their invariants, and foolbox."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from victims import linear, uniform

from taylorglo.attacks import dlr, fgsm, pgd, robust_accuracy
from taylorglo.errors import InputError

OBJECTIVES = ["ce", "dlr"]


class Scaled(nn.Module):
    """The same decisions with larger logits: cross-entropy saturates, the classes do not change."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.model(images)


def test_a_unit_scales_the_attack_of_each_feature_and_nothing_is_cut() -> None:
    model = linear(6, 2)
    points, labels = uniform(40, 6, low=-1, high=2), torch.arange(40) % 2
    unit = torch.tensor([0.1, 1.0, 5.0, 2.0, 0.5, 3.0])
    # Of two classes, the gradient of cross-entropy has the sign of the difference of the weights.
    weight = model[1].weight.detach()
    ascent = torch.sign(weight[1 - labels] - weight[labels])
    expected = points + 0.3 * unit * ascent
    torch.testing.assert_close(fgsm(model, points, labels, 0.3, unit=unit), expected)
    for objective in OBJECTIVES:
        attacked = pgd(model, points, labels, 0.3, objective=objective, restarts=3, unit=unit)
        assert bool(((attacked - points).abs() <= 0.3 * unit * (1 + 1e-4) + 1e-5).all())
        margin = predictions_margin(model, attacked, labels)
        least = predictions_margin(model, expected, labels)
        # A point beyond the decision counts as the worst, however far beyond it is.
        assert bool(((margin <= least + 1e-3) | ((margin < 0) & (least < 0))).all())


def predictions_margin(model: nn.Sequential, points: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(points)
    rows = torch.arange(len(labels))
    return logits[rows, labels] - logits[rows, 1 - labels]


def test_a_unit_of_one_is_the_attack_on_pixels_away_from_black_and_white() -> None:
    model, labels = linear(6, 4), torch.arange(20) % 4
    images, unit = uniform(20, 6, low=0.3, high=0.7), torch.ones(6)
    assert torch.equal(
        fgsm(model, images, labels, 0.1), fgsm(model, images, labels, 0.1, unit=unit)
    )
    for objective in OBJECTIVES:
        options = {"restarts": 2, "objective": objective}
        plain = pgd(model, images, labels, 0.1, **options)
        assert torch.equal(plain, pgd(model, images, labels, 0.1, **options, unit=unit))
    values = {"epsilons": [0.1], "pgd_steps": 5, "pgd_restarts": 2}
    assert robust_accuracy(model, images, labels, **values) == robust_accuracy(
        model, images, labels, **values, unit=unit
    )


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (torch.ones(5), "unit: should be finite numbers above 0 of a shape that broadcasts to"),
        (torch.zeros(6), "unit: should be finite numbers above 0"),
        (torch.tensor(math.nan), "unit: should be finite numbers above 0"),
        (torch.tensor(math.inf), "unit: should be finite numbers above 0"),
        (torch.ones(40, 6), "unit: should be finite numbers above 0"),
    ],
)
def test_a_unit_that_does_not_fit_is_refused(unit: Tensor, message: str) -> None:
    model, points, labels = linear(6, 2), torch.zeros(40, 6), torch.zeros(40, dtype=torch.int64)
    with pytest.raises(InputError, match=message):
        fgsm(model, points, labels, 0.1, unit=unit)


def test_data_that_are_no_pixels_need_a_unit_and_finite_numbers() -> None:
    model, labels = linear(6, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(InputError, match="data without pixels need a unit"):
        fgsm(model, torch.full((4, 6), 2.0), labels, 0.1)
    with pytest.raises(InputError, match="should be finite numbers"):
        fgsm(model, torch.full((4, 6), math.nan), labels, 0.1, unit=torch.ones(6))


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images).argmax(dim=1)


def linear_margins(model: nn.Sequential, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Return the exact least margin over the l-infinity ball, (N,).

    It is the minimum over the other classes o of m - epsilon ||w_y - w_o||_1.
    """
    weight = model[1].weight.detach().double()
    logits = images.flatten(1).double() @ weight.T + model[1].bias.detach().double()
    difference = weight[labels][:, None] - weight[None]
    margins = logits.gather(1, labels[:, None]) - logits - epsilon * difference.abs().sum(dim=2)
    return margins.scatter(1, labels[:, None], math.inf).amin(dim=1)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a convolutional network trained on the first 1000 digits, and the other images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 32),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(32, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[:1000]), labels[:1000]).backward()
            optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return model, images[1000:], labels[1000:]


@pytest.mark.parametrize("features", [1, 7, 64])
def test_two_class_linear_optimum_is_reached(features: int) -> None:
    model = linear(features, 2)
    images = uniform(50, features, low=0.2, high=0.8)
    labels = torch.arange(50) % 2
    exact = linear_margins(model, images, labels, 0.1)
    stepped = linear_margins(model, fgsm(model, images, labels, 0.1), labels, 0.0)
    torch.testing.assert_close(stepped, exact, rtol=0, atol=1e-4)
    withstood = exact > 1e-4
    for objective in OBJECTIVES:
        adversarial = pgd(model, images, labels, 0.1, steps=5, objective=objective)
        margins = linear_margins(model, adversarial, labels, 0.0)
        # An image is left alone from the first misclassified point on.
        torch.testing.assert_close(margins[withstood], exact[withstood], rtol=0, atol=1e-4)
        assert bool((margins[exact < -1e-4] <= 0).all())


def test_two_class_robust_accuracy_is_the_closed_form() -> None:
    model = linear(16, 2)
    images = uniform(400, 1, 4, 4, low=0.3, high=0.7)
    labels = predictions(model, images)
    labels[::5] = 1 - labels[::5]
    epsilons = [0.0, 0.01, 0.03, 0.1]
    answer = robust_accuracy(
        model, images, labels, epsilons=epsilons, pgd_steps=4, pgd_restarts=1, batch_size=150
    )
    for epsilon in epsilons:
        exact = (linear_margins(model, images, labels, epsilon) > 0).double().mean().item()
        for name in ("fgsm", "pgd-ce", "pgd-dlr", "worst"):
            assert answer[name][epsilon] == pytest.approx(exact, abs=1e-12)
    assert 0 < answer["worst"][0.03] < answer["worst"][0.0] == pytest.approx(0.8)


# Cross-entropy is convex in the image of a linear model and may lead to the wrong corner. The
# margin leads to the nearest boundary.
@pytest.mark.parametrize(("objective", "share"), [("ce", 0.85), ("dlr", 0.98)])
@pytest.mark.parametrize("classes", [3, 10])
def test_linear_certificate_is_never_broken_and_nearly_met(
    classes: int, objective: str, share: float
) -> None:
    model = linear(16, classes)
    images = uniform(300, 16, low=0.2, high=0.8)
    labels = predictions(model, images)
    vulnerable = linear_margins(model, images, labels, 0.03) < -1e-4
    adversarial = pgd(model, images, labels, 0.03, steps=20, restarts=3, objective=objective)
    fooled = predictions(model, adversarial) != labels
    certified = linear_margins(model, images, labels, 0.03) > 1e-4
    assert certified.sum() > 20
    assert vulnerable.sum() > 20
    assert not (fooled & certified).any()
    assert (fooled & vulnerable).sum() >= share * vulnerable.sum()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    epsilon=st.floats(0, 1),
    shape=st.sampled_from([(3, 5), (2, 1, 4, 4), (1, 3, 2, 2)]),
    classes=st.sampled_from([2, 3, 4]),
    objective=st.sampled_from(OBJECTIVES),
    seed=st.integers(0, 2**31),
)
def test_stays_in_the_ball_and_in_range(
    epsilon: float, shape: tuple[int, ...], classes: int, objective: str, seed: int
) -> None:
    images = uniform(*shape, low=-0.5, high=1.5, seed=seed).clamp(0, 1)
    labels = torch.randint(classes, shape[:1], generator=torch.Generator().manual_seed(seed))
    model = linear(math.prod(shape[1:]), classes, seed=seed)
    for adversarial in (
        fgsm(model, images, labels, epsilon),
        pgd(model, images, labels, epsilon, steps=3, restarts=2, objective=objective, seed=seed),
        pgd(model, images, labels, epsilon, steps=2, step_size=2.0, objective=objective, seed=seed),
    ):
        assert adversarial.shape == images.shape
        assert not adversarial.requires_grad
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        assert (adversarial - images).abs().max() <= epsilon + 1e-6


def test_epsilon_zero_gives_a_copy() -> None:
    model, images = linear(4, 3), uniform(5, 4)
    labels = torch.zeros(5, dtype=torch.int64)
    for adversarial in (
        fgsm(model, images, labels, 0.0),
        pgd(model, images, labels, 0.0, restarts=2),
    ):
        assert torch.equal(adversarial, images)
        assert adversarial.data_ptr() != images.data_ptr()


def test_dlr_sees_through_masked_gradients(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = digits
    images, labels = images[:200], labels[:200]
    plain, masked = (
        robust_accuracy(
            attacked,
            images,
            labels,
            epsilons=[0.1],
            suite="quick",
            pgd_steps=10,
            pgd_restarts=1,
        )
        for attacked in (model, Scaled(model, 1e4))
    )
    assert masked["pgd-ce"][0.1] > plain["pgd-ce"][0.1] + 0.3
    assert masked["worst"][0.1] == masked["pgd-dlr"][0.1] < masked["pgd-ce"][0.1] - 0.3
    # Alone, the attack on DLR finds the same with and without the mask.
    fooled = [
        predictions(model, pgd(attacked, images, labels, 0.1, steps=10, objective="dlr")) != labels
        for attacked in (model, Scaled(model, 1e4))
    ]
    assert (fooled[0] ^ fooled[1]).float().mean() <= 0.02


def test_dlr_is_the_published_ratio() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0, 2.0], [0.0, 4.0, 3.0, 1.0]], dtype=torch.float64)
    values = dlr(logits, torch.tensor([0, 2]))
    # The ratio is -(z_y - max other) / (z_(1) - z_(3)).
    by_hand = torch.tensor([-(3 - 2) / (3 - 1), (4 - 3) / (4 - 1)], dtype=torch.float64)
    torch.testing.assert_close(values, by_hand)
    # The scale of the logits cancels.
    torch.testing.assert_close(dlr(1e6 * logits, torch.tensor([0, 2])), values)
    # Two classes have the margin alone.
    margins = dlr(logits[:, :2], torch.tensor([0, 0]))
    torch.testing.assert_close(margins, torch.tensor([-2.0, 4.0], dtype=torch.float64))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_more_restarts_and_steps_never_fool_less(
    digits: tuple[nn.Module, Tensor, Tensor], objective: str
) -> None:
    model, images, labels = digits
    images, labels = images[:100], labels[:100]

    def fooled(steps: int, restarts: int) -> Tensor:
        adversarial = pgd(
            model,
            images,
            labels,
            0.06,
            steps=steps,
            restarts=restarts,
            step_size=0.02,
            objective=objective,
            seed=3,
        )
        return predictions(model, adversarial) != labels

    assert not (fooled(3, 1) & ~fooled(3, 3)).any()
    assert not (fooled(2, 2) & ~fooled(6, 2)).any()
    assert fooled(6, 2).any()


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    images = uniform(6, 1, 4, 4)
    labels = torch.arange(6) % 3
    model[2].weight.grad = torch.ones_like(model[2].weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()

    fgsm(model, images, labels, 0.1)
    pgd(model, images, labels, 0.1, steps=2, restarts=2)
    robust_accuracy(model, images, labels, epsilons=[0.1], pgd_steps=2, pgd_restarts=2)

    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert torch.equal(model[2].weight.grad, torch.ones_like(model[2].weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "2.weight")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not images.requires_grad


def test_the_training_flag_is_restored_after_an_error() -> None:
    model = nn.Linear(4, 3).train()
    with pytest.raises(InputError, match="labels"):
        fgsm(model, uniform(2, 4), torch.tensor([0, 3]), 0.1)
    assert model.training


def test_an_attack_works_if_gradients_are_off() -> None:
    model = linear(4, 2)
    images = uniform(5, 4)
    labels = torch.arange(5) % 2
    with torch.no_grad():
        inside = fgsm(model, images, labels, 0.1)
        assert not torch.is_grad_enabled()
    assert torch.equal(inside, fgsm(model, images, labels, 0.1))


def test_the_seed_decides_the_images(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = digits

    def run(seed: int) -> Tensor:
        return pgd(model, images[:20], labels[:20], 0.05, steps=2, restarts=2, seed=seed)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_robust_accuracy_never_rises(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = digits
    answer = robust_accuracy(
        model,
        images[:150],
        labels[:150],
        epsilons=[0.1, 0.02, 0.3],
        pgd_steps=3,
        pgd_restarts=1,
        batch_size=64,
    )
    clean = (predictions(model, images[:150]) == labels[:150]).double().mean().item()
    for curve in answer.values():
        assert list(curve) == [0.0, 0.02, 0.1, 0.3]
        assert curve[0.0] == pytest.approx(clean)
        assert list(curve.values()) == sorted(curve.values(), reverse=True)
    for epsilon, value in answer["worst"].items():
        assert value <= min(answer[name][epsilon] for name in ("fgsm", "pgd-ce", "pgd-dlr"))
    assert answer["worst"][0.3] < answer["worst"][0.0]


def test_a_diverged_network_classifies_nothing() -> None:
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, math.nan)
    labels = torch.zeros(6, dtype=torch.int64)
    answer = robust_accuracy(
        model, uniform(6, 4), labels, epsilons=[0.1], pgd_steps=2, pgd_restarts=2
    )
    assert all(value == 0 for curve in answer.values() for value in curve.values())
    change = fgsm(model, uniform(6, 4), labels, 0.1) - uniform(6, 4)
    assert change.abs().max() <= 0.1 + 1e-6


IMAGES = torch.full((2, 4), 0.5)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "epsilon", "match"),
    [
        (IMAGES, LABELS, 1.5, "epsilon"),
        (IMAGES, LABELS, -0.1, "epsilon"),
        (IMAGES, LABELS, math.nan, "epsilon"),
        (IMAGES + 1, LABELS, 0.1, r"\[0, 1\]"),
        (IMAGES * math.nan, LABELS, 0.1, r"\[0, 1\]"),
        (torch.zeros(2, 4, dtype=torch.uint8), LABELS, 0.1, "images"),
        (IMAGES[:0], LABELS[:0], 0.1, "images"),
        (IMAGES, LABELS.int(), 0.1, "labels"),
        (IMAGES, LABELS[:1], 0.1, "labels"),
        (IMAGES, torch.tensor([0, 3]), 0.1, "from 0 to 2"),
        (IMAGES, torch.tensor([0, -1]), 0.1, "from 0 to 2"),
        (IMAGES[:, None], LABELS, 0.1, "logits"),
    ],
)
def test_bad_input_is_named(images: Tensor, labels: Tensor, epsilon: float, match: str) -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(InputError, match=match):
        fgsm(model, images, labels, epsilon)
    with pytest.raises(InputError, match=match):
        pgd(model, images, labels, epsilon, steps=1)
    with pytest.raises(InputError, match=match):
        robust_accuracy(model, images, labels, epsilons=[epsilon], pgd_steps=1, pgd_restarts=1)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"restarts": 0},
        {"objective": "cw"},
        {"step_size": 0.0},
        {"step_size": math.inf},
    ],
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        pgd(nn.Linear(4, 3), IMAGES, LABELS, 0.1, **options)


@pytest.mark.parametrize("name", ["pgd_steps", "pgd_restarts", "batch_size"])
def test_bad_counts_are_named(name: str) -> None:
    counts = {"pgd_steps": 1, "pgd_restarts": 1, "batch_size": 1, name: 0}
    with pytest.raises(InputError, match=name):
        robust_accuracy(nn.Linear(4, 3), IMAGES, LABELS, epsilons=[], **counts)


class OnePixel(nn.Module):
    """A model whose logits are given functions of the only pixel x."""

    def __init__(self, *logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([logit(images[:, 0]) for logit in self.logits], dim=1)


MIDDLE = torch.full((1, 1), 0.5)
ZERO = torch.tensor([0])


def test_misclassified_beats_a_higher_objective() -> None:
    # At 0.5 the image is classified correctly, and cross-entropy is about ln 3. At 0.6 it is
    # misclassified, and cross-entropy is lower, because class 2 fades.
    model = OnePixel(
        lambda x: 0 * x + 0.01, lambda x: x - 0.5, lambda x: -60 * functional.relu(x - 0.55)
    )
    assert predictions(model, MIDDLE) == 0
    adversarial = pgd(model, MIDDLE, ZERO, 0.1, steps=1)
    logits = model(adversarial)
    assert logits.argmax() == 1
    assert functional.cross_entropy(logits, ZERO) < functional.cross_entropy(model(MIDDLE), ZERO)


def test_an_image_that_broke_at_a_smaller_epsilon_stays_broken() -> None:
    # Class 1 wins only around 0.6, and a single step of 0.3 leaps over it.
    model = OnePixel(lambda x: 0 * x, lambda x: 0.07 - (x - 0.65).abs())
    assert predictions(model, fgsm(model, MIDDLE, ZERO, 0.1)) == 1
    assert predictions(model, fgsm(model, MIDDLE, ZERO, 0.3)) == 0
    answer = robust_accuracy(model, MIDDLE, ZERO, epsilons=[0.1, 0.3], pgd_steps=1, pgd_restarts=1)
    assert answer["fgsm"] == {0.0: 1.0, 0.1: 0.0, 0.3: 0.0}
    alone = robust_accuracy(model, MIDDLE, ZERO, epsilons=[0.3], pgd_steps=1, pgd_restarts=1)
    assert alone["fgsm"] == {0.0: 1.0, 0.3: 1.0}


def test_a_gradient_without_a_value_moves_nothing() -> None:
    # The gradient is 0 times the slope of the root at 0, which is NaN.
    model = OnePixel(lambda x: (0 * x).sqrt() + 1, lambda x: 0 * x)
    assert torch.equal(fgsm(model, MIDDLE, ZERO, 0.1), MIDDLE)
    assert torch.equal(pgd(model, MIDDLE, ZERO, 0.1, steps=3), MIDDLE)


def test_restarts_are_uniform_in_the_ball() -> None:
    # The steps are too small to matter, and no image is misclassified, so each stays where its last
    # restart began.
    model = OnePixel(lambda x: 0 * x, lambda x: x)
    images = MIDDLE.expand(4000, 1)
    labels = torch.ones(4000, dtype=torch.int64)
    attacked = pgd(model, images, labels, 0.2, steps=1, step_size=1e-9, restarts=2, seed=5)
    share = torch.histc(attacked.flatten() - 0.5, bins=8, min=-0.2, max=0.2) / 4000
    torch.testing.assert_close(share, torch.full((8,), 1 / 8), rtol=0, atol=0.02)


@pytest.mark.parametrize("power", [1, 2])
def test_restarts_are_uniform_in_the_l2_ball(power: int) -> None:
    # Of a point that is uniform in a ball of d dimensions, the length to the power of d is uniform.
    model = linear(2, 2)
    images = torch.full((4000, 2), 0.5)
    labels = predictions(model, images + 1e-3)
    unit = torch.ones(2)
    with torch.no_grad():
        model[1].bias[labels[0]] += 100.0
    attacked = pgd(
        model, images, labels, 0.2, steps=1, step_size=1e-9, restarts=2, norm="l2", unit=unit
    )
    change = attacked - images
    spread = (change.norm(dim=1) / 0.2) ** 2 if power == 2 else change[:, 0].sign().add(1) / 2
    assert spread.mean().item() == pytest.approx(0.5, abs=0.02)
    assert spread.max() <= 1 + 1e-5


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.5])
def test_fgsm_is_foolboxs(digits: tuple[nn.Module, Tensor, Tensor], epsilon: float) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = digits
    images, labels = images[:200], labels[:200]
    reference = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.FGSM(random_start=False)
    _, expected, _ = attack(reference, images, labels, epsilons=epsilon)
    adversarial = fgsm(model, images, labels, epsilon)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.1])
def test_pgd_is_no_weaker_than_foolboxs(
    digits: tuple[nn.Module, Tensor, Tensor], epsilon: float
) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = digits
    images, labels = images[:200], labels[:200]
    reference = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
        abs_stepsize=2.5 * epsilon / 10, steps=10, random_start=False
    )
    _, _, expected = attack(reference, images, labels, epsilons=epsilon)
    fooled = predictions(model, pgd(model, images, labels, epsilon, steps=10)) != labels
    # Both attacks take the same path, but here each point of the path counts, not only the last.
    assert not (expected & ~fooled).any()
    assert 0.02 < fooled.float().mean() < 0.98
