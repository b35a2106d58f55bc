"""Trainings in one program: each is what it would be alone, whatever else is in the program and
becomes of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from trainings import BACKWARDS, GOOD, OTHER, sweep, synthetic

from taylorglo.data import dataset as data
from taylorglo.data.dataset import Dataset
from taylorglo.loss.functions import CrossEntropy, Loss, SquaredError, TaylorLoss
from taylorglo.networks.factory import BUILT_IN, build
from taylorglo.settings import DataSettings, SweepSettings
from taylorglo.training import stacked as fused
from taylorglo.training.loop import Recipe, Result, build_network, train
from taylorglo.training.stacked import draws, qualifies, train_together

LOSSES: tuple[Loss, ...] = (
    TaylorLoss(GOOD),
    CrossEntropy(),
    TaylorLoss(OTHER),
    SquaredError(),
    CrossEntropy(0.1),
    TaylorLoss([*GOOD[:4], 0.0], order=2),
    CrossEntropy(0.2),
)
SHAPES = {"allcnn-c": (3, 12, 12), "alexnet": (3, 29, 29)}
STACKABLE = ("mlp", "cnn", "mnist-cnn", "allcnn-c", "alexnet")

NETWORKS = """
import torch
from torch import nn


def tied(image_shape, num_classes):
    one, two = nn.Linear(64, 64), nn.Linear(64, 64)
    two.weight = one.weight
    return nn.Sequential(nn.Flatten(), one, nn.ReLU(), two, nn.ReLU(), nn.Linear(64, num_classes))


def frozen(image_shape, num_classes):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, num_classes))
    network[1].weight.requires_grad = False
    return network


def dropout(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, num_classes))


class Peeking(nn.Sequential):
    def forward(self, images):
        if images.sum() > 0:
            return super().forward(images)
        return super().forward(-images)


def tokens(image_shape, num_classes):
    rows = nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Flatten())
    return nn.Sequential(rows, nn.Linear(128, num_classes))


def peeking(image_shape, num_classes):
    return Peeking(nn.Flatten(), nn.Linear(64, num_classes))


def broken(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(63, num_classes))
"""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load(DataSettings(), 0)


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stacked_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    import sys

    sys.modules.pop("stacked_networks", None)


def settings_of(
    model: str = "mlp", augmentation: dict[str, Any] | None = None, **training: Any
) -> SweepSettings:
    values = sweep(model=model, training={"batch_size": 16, **training}).model_dump()
    return SweepSettings.model_validate({**values, "augmentation": augmentation or {}})


def recipe(loss: Loss, seed: int = 3, steps: int = 8, rate: float = 0.05, **options: Any) -> Recipe:
    return Recipe(
        loss,
        rate,
        seed,
        **{"steps": steps, "horizon": steps, "validations": 2, "kept": True, **options},
    )


def alone(recipes: Sequence[Recipe], dataset: Dataset, settings: SweepSettings) -> list[Result]:
    return [
        train(build_network(settings, dataset, each.seed), each, dataset, settings)
        for each in recipes
    ]


def assert_alike(
    found: Sequence[Result], expected: Sequence[Result], rtol: float = 1e-4, flips: float = 0.0
) -> None:
    """The same up to rounding; at most ``flips`` of the images are classified otherwise."""
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        a, b = one.training, two.training
        assert (a.status, a.reason) == (b.status, b.reason)
        assert a.accuracy == pytest.approx(b.accuracy, abs=flips)
        assert a.test_accuracy == pytest.approx(b.test_accuracy, abs=flips)
        assert [step for step, _, _ in a.curve] == [step for step, _, _ in b.curve]
        assert [accuracy for _, accuracy, _ in a.curve] == pytest.approx(
            [x for _, x, _ in b.curve], abs=flips
        )
        assert [x for _, _, x in a.curve] == pytest.approx([x for _, _, x in b.curve], rel=rtol)
        weights, others = load(one.weights), load(two.weights)
        assert weights.keys() == others.keys()
        for name, value in weights.items():
            torch.testing.assert_close(
                value, others[name], rtol=rtol, atol=rtol * 0.1, msg=lambda m, n=name: f"{n}: {m}"
            )


def assert_same(found: Sequence[Result], expected: Sequence[Result]) -> None:
    """The same to the bit."""
    assert [untimed(each) for each in found] == [untimed(each) for each in expected]


def untimed(result: Result) -> tuple[Any, bytes]:
    return replace(result.training, started=0.0, ended=0.0, seconds=0.0, method=""), result.weights


# As alone


@pytest.mark.parametrize("model", STACKABLE)
def test_every_network_is_trained_as_alone(digits, model):
    dataset = synthetic(SHAPES[model]) if model in SHAPES else digits
    settings = settings_of(model)
    # Nine layers from He's initialisation amplify rounding at rates that they do not learn with.
    rate = 1e-3 if model == "allcnn-c" else 0.05
    recipes = [
        recipe(loss, steps=4, rate=rate)
        for loss in (TaylorLoss(GOOD), CrossEntropy(), TaylorLoss(OTHER))
    ]
    results = train_together(recipes, dataset, settings)
    assert_alike(
        results, alone(recipes, dataset, settings), rtol=1e-3 if model == "allcnn-c" else 1e-4
    )
    moved = load(results[0].weights)
    start = build_network(settings, dataset, 3).state_dict()
    assert not any(
        torch.equal(moved[name], start[name]) for name in moved if name.endswith("weight")
    )


def test_different_losses_in_one_program(digits):
    recipes = [recipe(loss, steps=20) for loss in LOSSES]
    results = train_together(recipes, digits, settings_of())
    assert_alike(results, alone(recipes, digits, settings_of()))
    assert len({result.weights for result in results}) == len(LOSSES)


def test_different_seeds_in_one_program(digits):
    recipes = [recipe(loss, seed) for seed in (1, 2, 3) for loss in LOSSES[:4]]
    assert_alike(
        train_together(recipes, digits, settings_of("cnn")),
        alone(recipes, digits, settings_of("cnn")),
    )


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one-cycle"])
def test_every_schedule_and_plain_momentum(digits, schedule):
    milestones = [0.3, 0.6] if schedule == "step" else []
    settings = settings_of(
        schedule=schedule, milestones=milestones, nesterov=False, momentum=0.6, weight_decay=0.01
    )
    recipes = [recipe(loss, horizon=11) for loss in LOSSES[:2]]
    assert_alike(train_together(recipes, digits, settings), alone(recipes, digits, settings))


@pytest.mark.parametrize(
    "augmentation",
    [{"crop_padding": 1, "flip": True, "cutout": 3}, {"cutmix": 1.0}, {"cutmix": 0.5}],
)
def test_with_augmentation_and_soft_targets(digits, augmentation):
    settings = settings_of("mlp", augmentation)
    # With a probability of 1/2, some of the seeds have soft targets in a step, and others have not.
    recipes = [recipe(loss, seed) for seed in (1, 2) for loss in LOSSES[:5]]
    results = train_together(recipes, digits, settings)
    assert_alike(results, alone(recipes, digits, settings))
    plain = train_together(recipes, digits, settings_of())
    assert not any(one.weights == two.weights for one, two in zip(results, plain, strict=True))


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("network", ["tied", "frozen", "dropout", "tokens"])
def test_networks_of_a_user(digits, network):
    settings = settings_of(f"stacked_networks:{network}")
    assert qualifies(build_network(settings, digits, 0), digits.image_shape)
    recipes = [recipe(loss) for loss in LOSSES[:3]]
    assert_alike(train_together(recipes, digits, settings), alone(recipes, digits, settings))


@pytest.mark.usefixtures("networks")
def test_what_is_frozen_stays_so_when_others_leave(digits):
    settings = settings_of("stacked_networks:frozen")
    recipes = [
        recipe(TaylorLoss(theta), give_up=(4, 0.12), steps=12) for theta in (GOOD, BACKWARDS, OTHER)
    ]
    results = train_together(recipes, digits, settings)
    assert [each.training.status for each in results] == ["ok", "diverged", "ok"]
    assert_alike(results, alone(recipes, digits, settings))
    start = build_network(settings, digits, 3).state_dict()["network.1.weight"]
    assert all(torch.equal(load(each.weights)["network.1.weight"], start) for each in results)


def test_attacked_as_alone(digits):
    recipes = [recipe(loss, steps=30, kept=False, epsilon=0.05) for loss in LOSSES[:3]]
    found, expected = (
        train_together(recipes, digits, settings_of()),
        alone(recipes, digits, settings_of()),
    )
    robust = [each.training.robust_accuracy for each in found]
    assert robust == pytest.approx([each.training.robust_accuracy for each in expected], abs=0.01)
    assert all(0 < left < each.training.accuracy for left, each in zip(robust, found, strict=True))
    assert [(each.weights, each.training.test_accuracy) for each in found] == [(b"", None)] * 3


# What becomes of the others


def test_the_size_of_the_program_does_not_matter(digits):
    recipes = [recipe(TaylorLoss([x * (1 + 0.01 * i) for x in GOOD]), steps=40) for i in range(12)]
    whole = train_together(recipes, digits, settings_of())
    for size in (1, 2, 5):
        parts = [
            result
            for start in range(0, 12, size)
            for result in train_together(recipes[start : start + size], digits, settings_of())
        ]
        assert_same(parts, whole)


@pytest.mark.parametrize(
    ("model", "shape"), [("allcnn-c", SHAPES["allcnn-c"]), ("mlp", (1, 28, 28))]
)
def test_nor_does_it_for_larger_networks(model, shape):
    """Of which one network alone would be computed in another way than several; of convolutions, so
    would very many."""
    dataset, settings = synthetic(shape), settings_of(model)
    recipes = [recipe(loss, steps=3, rate=1e-3) for loss in LOSSES[:3]]
    whole = train_together(recipes, dataset, settings)
    assert_same(train_together(recipes[:2], dataset, settings), whole[:2])
    assert_same(train_together(recipes[2:], dataset, settings), whole[2:])
    if model == "mlp":
        assert_same(train_together(recipes * 4, dataset, settings), whole * 4)


def test_those_that_are_given_up_leave(digits):
    thetas = (BACKWARDS, GOOD, BACKWARDS, OTHER, BACKWARDS)
    recipes = [recipe(TaylorLoss(theta), give_up=(6, 0.13), steps=20) for theta in thetas]
    results = train_together(recipes, digits, settings_of())
    assert [each.training.status for each in results] == [
        "diverged",
        "ok",
        "diverged",
        "ok",
        "diverged",
    ]
    assert [each.training.curve[-1][0] for each in results] == [6, 20, 6, 20, 6]
    assert_alike(results, alone(recipes, digits, settings_of()))
    # Their shares of the time are of what was done while they were there.
    seconds = [each.training.seconds for each in results]
    assert max(seconds[0::2]) < min(seconds[1::2])
    assert (
        0
        < sum(seconds)
        <= max(e.training.ended for e in results) - min(e.training.started for e in results)
    )
    # Those that stay go on with their own momentum: as in a program that nobody left.
    assert_same(
        [results[1], results[3]], train_together([recipes[1], recipes[3]], digits, settings_of())
    )
    assert_same([results[1]], train_together([recipes[0], recipes[1]], digits, settings_of())[1:])


def test_nothing_of_a_loss_stays_on_another_device():
    """The device ``meta`` stands in for a GPU: of its tensors and the CPU's none is made either."""
    losses = [TaylorLoss(GOOD), TaylorLoss(OTHER), CrossEntropy(0.1)]
    objective = fused._Objective(losses, torch.device("meta"))
    logits, targets = torch.zeros(3, 8, 10, device="meta"), torch.zeros(8, 10, device="meta")
    assert (objective(logits, targets).device.type, objective(logits, targets).shape) == (
        "meta",
        (3,),
    )


def test_those_that_leave_take_their_batches_with_them(digits):
    recipes = [
        recipe(TaylorLoss(theta), seed, give_up=(6, 0.16), steps=20)
        for theta, seed in ((BACKWARDS, 1), (GOOD, 2), (OTHER, 1), (BACKWARDS, 2), (OTHER, 3))
    ]
    results = train_together(recipes, digits, settings_of())
    assert [each.training.status for each in results] == ["diverged", "ok", "ok", "diverged", "ok"]
    assert_alike(results, alone(recipes, digits, settings_of()))


def test_all_are_given_up(digits):
    recipes = [
        recipe(TaylorLoss(BACKWARDS), give_up=(2, 0.9), steps=500),
        recipe(LOSSES[1], give_up=(2, 0.9), steps=500),
    ]
    for each in (recipes, recipes[:1]):
        results = train_together(each, digits, settings_of())
        assert [(r.training.status, r.training.curve[-1][0]) for r in results] == [
            ("diverged", 2)
        ] * len(each)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_one_that_runs_off_leaves_the_others_as_they_are(digits, place):
    sound = [recipe(loss, steps=20) for loss in LOSSES[:4]]
    extreme = recipe(TaylorLoss([x * 2e29 for x in GOOD]), steps=20)
    results = train_together([*sound[:place], extreme, *sound[place:]], digits, settings_of())
    gone = results.pop(place)
    assert (gone.training.status, gone.training.accuracy) == ("diverged", 0.0)
    assert "no longer finite at step" in gone.training.reason
    assert gone.training.curve == []
    assert_same(results, train_together(sound, digits, settings_of()))


def test_two_of_which_one_runs_off(digits):
    recipes = [recipe(TaylorLoss([x * 2e29 for x in GOOD])), recipe(TaylorLoss(GOOD))]
    results = train_together(recipes, digits, settings_of())
    assert [each.training.status for each in results] == ["diverged", "ok"]
    assert_same(results[1:], train_together(recipes[1:], digits, settings_of()))


def test_the_global_generator_is_left_alone_and_does_not_matter(digits):
    settings, recipes = settings_of("mnist-cnn"), [recipe(loss, steps=2) for loss in LOSSES[:2]]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_together(recipes, digits, settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same(train_together(recipes, digits, settings), first)


# What can be stacked


@pytest.mark.parametrize("model", BUILT_IN)
def test_which_networks_qualify(model):
    shape = (3, 32, 32)
    network = build(model, shape, 10, (0.5,) * 3, (0.2,) * 3, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert qualifies(network, shape) == (model in STACKABLE)
    assert draws(network, shape) == (model in ("mnist-cnn", "allcnn-c"))
    if model in STACKABLE:  # and the question changes nothing
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("network", ["peeking", "broken"])
def test_what_vmap_cannot_compute_does_not_qualify(digits, network):
    settings = settings_of(f"stacked_networks:{network}")
    assert not qualifies(build_network(settings, digits, 0), digits.image_shape)
