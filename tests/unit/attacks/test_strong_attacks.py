"""APGD, FAB and Square against closed forms and a linear program, and the suites' invariants."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn
from victims import fashion, linear, predictions, trained, uniform

from taylorglo.attacks import (
    SUITES,
    Strength,
    apgd,
    dlr,
    fab,
    fgsm,
    pgd,
    robust_accuracy,
    square,
    withstood,
)
from taylorglo.attacks.draws import Draws
from taylorglo.attacks.objectives import targeted_dlr
from taylorglo.attacks.problem import problem
from taylorglo.errors import InputError

NORMS = ["linf", "l2"]
STANDARD = SUITES["standard"]
FAST = {"suite": "standard", "pgd_steps": 5, "apgd_steps": 12, "fab_steps": 8, "queries": 60}


def attacks(norm: str, unit: Tensor | None = None) -> dict[str, Callable[..., Tensor]]:
    """Return every attack, as a function of model, images, labels and epsilon."""
    common = {"norm": norm, "unit": unit}
    return {
        "fgsm": lambda *a: fgsm(*a, **common),
        "pgd": lambda *a: pgd(*a, **common, steps=5, restarts=2),
        "apgd-ce": lambda *a: apgd(*a, **common, steps=20),
        "apgd-dlr": lambda *a: apgd(*a, **common, steps=20, objective="dlr"),
        "apgd-t": lambda *a: apgd(*a, **common, steps=20, objective="targeted-dlr"),
        "fab": lambda *a: fab(*a, **common, steps=10),
        "square": lambda *a: square(*a, **common, queries=60),
    }


def boundary_distance(model: nn.Sequential, images: Tensor, labels: Tensor, norm: str) -> Tensor:
    """Return how far each image is from the boundary of a linear model of two classes."""
    weight, bias = model[1].weight.detach().double(), model[1].bias.detach().double()
    towards = weight[1 - labels] - weight[labels]
    margin = -((images.flatten(1).double() * towards).sum(1) + bias[1 - labels] - bias[labels])
    dual = towards.abs().sum(1) if norm == "linf" else towards.norm(dim=1)
    return margin / dual


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    epsilon=st.floats(0, 1),
    shape=st.sampled_from([(3, 5), (2, 1, 6, 6), (2, 3, 2, 2), (2, 4, 3)]),
    classes=st.sampled_from([2, 3, 4, 6]),
    norm=st.sampled_from(NORMS),
    with_unit=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_attack_stays_in_the_ball(
    epsilon: float, shape: tuple[int, ...], classes: int, norm: str, with_unit: bool, seed: int
) -> None:
    images = uniform(*shape, low=-0.5, high=1.5, seed=seed)
    unit = uniform(*shape[1:], low=0.5, high=3.0, seed=seed) if with_unit else None
    if not with_unit:
        images = images.clamp(0, 1)
    labels = torch.randint(classes, shape[:1], generator=torch.Generator().manual_seed(seed))
    model = linear(math.prod(shape[1:]), classes, seed=seed)
    for name, attack in attacks(norm, unit).items():
        change = attack(model, images, labels, epsilon) - images
        if with_unit:
            change = change / unit
        else:
            assert bool(((images + change >= 0) & (images + change <= 1)).all()), name
        change = change.flatten(1)
        size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
        assert float(size.max()) <= epsilon * (1 + 1e-5) + 1e-5, name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_fab_finds_the_boundary_of_a_linear_model(norm: str, scale: float) -> None:
    model = linear(16, 2)
    images = uniform(200, 16, low=0.4, high=0.6)
    labels = predictions(model, images)
    distance = boundary_distance(model, images, labels, norm)
    near = distance < (0.2 if norm == "linf" else 0.3)
    images, labels, distance = images[near], labels[near], distance[near]
    unit = torch.full((16,), 1 / scale) if scale != 1 else None
    attacked = fab(model, images, labels, 1.0, norm=norm, unit=unit)
    change = (attacked - images).flatten(1) * scale
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert len(images) > 50
    assert bool((predictions(model, attacked) != labels).all())
    torch.testing.assert_close(size.double(), distance * scale, rtol=5e-3, atol=1e-4)


def test_fab_respects_the_range_of_pixels_as_a_linear_program_does() -> None:
    model = linear(12, 2, seed=3)
    # Many pixels are so near to black or white that the smallest change is not the same in all.
    images = uniform(40, 12, low=-0.4, high=1.4).clamp(0.02, 0.98)
    labels = predictions(model, images)
    attacked = fab(model, images, labels, 1.0)
    found = predictions(model, attacked) != labels
    weight, bias = model[1].weight.detach().double(), model[1].bias.detach().double()
    bounded = 0
    for image, label, size in zip(
        images[found], labels[found], (attacked - images)[found].abs().amax(1), strict=True
    ):
        towards = weight[1 - label] - weight[label]
        rise = -(image.double() @ towards + bias[1 - label] - bias[label])
        # Variables: the changes and their largest size. Minimise the size.
        rows = [[*(-towards).tolist(), 0.0]]
        limits = [-rise.item()]
        for pixel in range(12):
            for sign in (1.0, -1.0):
                rows.append([sign * (place == pixel) for place in range(12)] + [-1.0])
                limits.append(0.0)
        ranges = [(-x, 1 - x) for x in image.double().tolist()]
        least = linprog([0.0] * 12 + [1.0], rows, limits, bounds=[*ranges, (0, None)]).fun
        assert size.item() == pytest.approx(least, rel=0.02, abs=1e-4)
        bounded += least > (rise / towards.abs().sum()).item() * 1.01
    assert found.all()
    assert bounded > 5


@pytest.mark.parametrize("norm", NORMS)
def test_two_classes_are_attacked_up_to_the_closed_form(norm: str) -> None:
    model = linear(16, 2)
    images = uniform(300, 1, 4, 4, low=0.4, high=0.6)
    labels = predictions(model, images)
    epsilons = [0.0, 0.01, 0.05]
    strength = Strength(**FAST, norm=norm)
    accuracies = withstood(model, images, labels, epsilons, strength=strength).accuracies
    distance = boundary_distance(model, images, labels, norm)
    for epsilon in epsilons:
        exact = (distance > epsilon).double().mean().item()
        assert accuracies["worst"][epsilon] == pytest.approx(exact, abs=0.005)
    assert accuracies["worst"][0.05] < 0.9


def test_a_target_is_reached_where_the_ratio_says() -> None:
    logits = torch.tensor([[4.0, 1.0, 0.5, 2.0], [1.0, 3.0, 2.5, 0.0]], dtype=torch.float64)
    labels, targets = torch.tensor([0, 1]), torch.tensor([3, 0])

    def value(classes: int) -> Tensor:
        images = uniform(2, 3)
        own = problem(linear(3, 4), images, labels, 0.1, norm="linf", seed=0, unit=None)
        return targeted_dlr(logits[:, :classes], own.towards(targets.clamp(max=classes - 1)))

    # (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)
    by_hand = [(2 - 4) / (4 - (1 + 0.5) / 2), (1 - 3) / (3 - (1 + 0) / 2)]
    torch.testing.assert_close(value(4), torch.tensor(by_hand, dtype=torch.float64))
    # Three classes have the denominator of the untargeted ratio.
    by_hand = [(0.5 - 4) / (4 - 0.5), (1 - 3) / (3 - 1)]
    torch.testing.assert_close(value(3), torch.tensor(by_hand, dtype=torch.float64))
    # Of two classes there is one other.
    targets = torch.tensor([1, 0])
    torch.testing.assert_close(value(2), dlr(logits[:, :2], labels))


@pytest.mark.parametrize("norm", NORMS)
def test_strong_attacks_break_what_a_weak_one_leaves(norm: str) -> None:
    _, _, images, labels = fashion()
    images, labels = images[:80], labels[:80]
    model = trained("mlp", label_smoothing=0.3)
    epsilon = 0.1 if norm == "linf" else 1.5

    def left(attack: Callable[..., Tensor], **options: object) -> float:
        attacked = attack(model, images, labels, epsilon, norm=norm, **options)
        return (predictions(model, attacked) == labels).double().mean().item()

    weak = left(pgd, steps=20, restarts=2)
    assert left(apgd, steps=50, objective="targeted-dlr") < weak - 0.03
    assert left(fab, steps=50) < weak - 0.03
    # Square sees no gradients, and takes more queries.
    assert left(square, queries=300) < left(square, queries=20) - 0.1


class Steps(nn.Module):
    """A network behind a step that has no derivative: its gradients are 0 everywhere."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images * 32).round() / 32)


def test_square_breaks_a_network_that_has_no_gradients() -> None:
    _, _, images, labels = fashion()
    images, labels = images[:100], labels[:100]
    strength = Strength("standard", pgd_steps=5, apgd_steps=5, fab_steps=5, queries=500)
    model = Steps(trained("mlp"))
    accuracies = withstood(model, images, labels, [0.1], strength=strength).accuracies
    assert accuracies["fab-t"][0.1] > accuracies["fab-t"][0.0] - 0.2
    assert accuracies["square"][0.1] < accuracies["fab-t"][0.1] - 0.4


@pytest.mark.parametrize("norm", NORMS)
def test_the_suite_does_not_depend_on_its_batches(norm: str) -> None:
    _, _, images, labels = fashion()
    images, labels = images[:40], labels[:40]
    model = trained("mlp")
    epsilons = [0.02, 0.1] if norm == "linf" else [0.5, 1.5]

    def run(batch_size: int | None) -> list[str]:
        strength = Strength(**FAST, norm=norm, batch_size=batch_size)
        result = withstood(model, images, labels, epsilons, strength=strength)
        for name, curve in result.accuracies.items():
            assert list(curve.values()) == sorted(curve.values(), reverse=True), name
        return [f"{by} {d:.4f}" for by, d in zip(result.by, result.distances, strict=True)]

    assert run(None) == run(7)


def test_the_distances_say_what_the_curves_say() -> None:
    _, _, images, labels = fashion()
    images, labels = images[:60], labels[:60]
    strength = Strength(**FAST)
    result = withstood(trained("mlp"), images, labels, [0.02, 0.1], strength=strength)
    for epsilon, accuracy in result.accuracies["worst"].items():
        share = (result.distances > epsilon).double().mean().item()
        assert accuracy == pytest.approx(share)
    wrong = predictions(trained("mlp"), images) != labels
    assert [by == "clean" for by in result.by] == wrong.tolist()
    assert set(result.by) <= {"", "clean", *STANDARD}
    assert bool((result.distances[wrong] == 0).all())


class Counting(nn.Module):
    """A network that counts the images that it sees."""

    def __init__(self, network: nn.Module, most: int = 10_000) -> None:
        super().__init__()
        self.network, self.most, self.seen = network, most, 0

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("the memory is full")
        self.seen += len(images)
        return self.network(images)


def test_no_attack_gets_the_merit_of_a_later_one() -> None:
    """FAB looks for small perturbations, and so it answers for larger balls before others do."""
    model = trained("mlp")
    _, _, images, labels = fashion()
    epsilons = [0.02, 0.05, 0.1]

    def left(suite: str) -> dict[str, dict[float, float]]:
        strength = Strength(**{**FAST, "suite": suite})
        return withstood(model, images[:100], labels[:100], epsilons, strength=strength).accuracies

    strong = left("standard")
    for suite in ("quick", "apgd"):
        weak = left(suite)
        assert {name: strong[name] for name in SUITES[suite]} == {
            name: weak[name] for name in SUITES[suite]
        }


def test_images_that_are_broken_cost_nothing() -> None:
    model = Counting(linear(16, 2))
    images = uniform(50, 16)
    labels = predictions(model.network, images)
    # FGSM is exact for a linear model of two classes, and breaks all images at 1.
    accuracies = robust_accuracy(
        model, images, labels, epsilons=[1.0], suite="standard", batch_size=50
    )
    assert accuracies["fgsm"][1.0] == accuracies["worst"][1.0] == 0
    # The clean images, and two passes of FGSM.
    assert model.seen == 3 * 50


def test_an_attack_leaves_an_image_alone_once_it_is_broken() -> None:
    model = Counting(linear(16, 2))
    images = uniform(50, 16)
    labels = predictions(model.network, images)
    attacked = pgd(model, images, labels, 1.0, steps=10, step_size=1.0, restarts=3)
    assert bool((predictions(model.network, attacked) != labels).all())
    # The images, and where the first step led them.
    assert model.seen == 2 * 50


def test_random_numbers_belong_to_an_image() -> None:
    every = Draws(3, 150)
    some = torch.tensor([1, 5, 64, 149])
    for draw in (Draws.uniform, Draws.normal):
        numbers = draw(every, "start", (2, 3))
        assert torch.equal(draw(every.take(some), "start", (2, 3)), numbers[some])
        assert torch.equal(draw(every.take(some).take(some == 64), "start", (2, 3)), numbers[[64]])
        assert len(numbers.flatten().unique()) > 890
        assert not torch.equal(draw(every, "stripes", (2, 3)), numbers)
        assert not torch.equal(draw(Draws(4, 150), "start", (2, 3)), numbers)


def test_the_batches_become_smaller_once_memory_is_full() -> None:
    model = Counting(linear(16, 3), most=20)
    images = uniform(70, 16)
    labels = torch.arange(70) % 3
    options = {"epsilons": [0.05], "pgd_steps": 3}
    assert robust_accuracy(model, images, labels, **options) == robust_accuracy(
        model.network, images, labels, **options
    )


@pytest.mark.parametrize("norm", NORMS)
def test_the_seed_decides_what_the_random_attacks_find(norm: str) -> None:
    model, images = linear(36, 4), uniform(20, 1, 6, 6)
    labels = predictions(model, images)
    for attack in (
        lambda seed: apgd(model, images, labels, 0.01, steps=3, norm=norm, seed=seed),
        lambda seed: square(model, images, labels, 0.01, queries=5, norm=norm, seed=seed),
        lambda seed: pgd(
            model, images, labels, 0.01, restarts=3, step_size=1e-4, norm=norm, seed=seed
        ),
    ):
        assert torch.equal(attack(1), attack(1))
        assert not torch.equal(attack(1), attack(2))


def test_the_model_is_as_it_was_after_each_attack() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    model[2].bias.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    images, labels = uniform(6, 1, 4, 4), torch.arange(6) % 3
    for attack in attacks("linf").values():
        attack(model, images, labels, 0.1)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    trained_parameters = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained_parameters == ["1.weight", "1.bias", "2.weight"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_function_a_script_and_an_exported_program_are_attacked_as_the_module_is() -> None:
    model, images = linear(16, 3), uniform(30, 1, 4, 4)
    labels = predictions(model, images)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(
        model, (images,), dynamic_shapes={"input": {0: batch}}, strict=False
    ).module()

    def left(network: Callable[[Tensor], Tensor]) -> dict[str, dict[float, float]]:
        return withstood(network, images, labels, [0.02], strength=Strength(**FAST)).accuracies

    expected = left(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still in use
        scripted = torch.jit.script(model)
    for other in (lambda x: model(x), scripted, exported):
        assert left(other) == expected


def test_a_network_that_returns_no_logits_is_named() -> None:
    images, labels = uniform(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(InputError, match="got a tuple"):
        robust_accuracy(lambda x: (x, x), images, labels, epsilons=[0.1])
    with pytest.raises(InputError, match=r"got \(3, 4, 1\)"):
        robust_accuracy(lambda x: x[..., None], images, labels, epsilons=[0.1])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"suite": "strongest"}, "suite: should be one of quick, apgd, standard"),
        ({"norm": "l1"}, "norm: should be one of linf, l2"),
        ({"norm": "l2", "epsilons": [math.inf]}, "epsilon: should be a finite number"),
    ],
)
def test_a_wrong_choice_is_named(options: dict[str, object], match: str) -> None:
    images, labels = uniform(2, 4), torch.tensor([0, 1])
    with pytest.raises(InputError, match=match):
        robust_accuracy(linear(4, 3), images, labels, **{"epsilons": [0.1], **options})


def test_a_diverged_network_withstands_nothing() -> None:
    model = linear(4, 3)
    nn.init.constant_(model[1].weight, math.nan)
    accuracies = robust_accuracy(
        model, uniform(6, 4), torch.zeros(6, dtype=torch.int64), epsilons=[0.1], suite="standard"
    )
    assert all(value == 0 for curve in accuracies.values() for value in curve.values())
