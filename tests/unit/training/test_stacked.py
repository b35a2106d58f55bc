"""Stacked trainings: the results of a training do not depend on the other ones."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load
from trainings import (
    BACKWARDS,
    EXTREME,
    GOOD,
    OTHER,
    sweep,
    synthetic,
    untimed_network,
)

from taylorglo.data.dataset import Dataset
from taylorglo.loss.classic import (
    Baikal,
    CrossEntropy,
    GeneralisedCrossEntropy,
    MeanAbsoluteError,
    SquaredError,
    SymmetricCrossEntropy,
)
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.networks.factory import BUILT_IN, build
from taylorglo.settings import SweepSettings
from taylorglo.training.loop import Recipe, TrainedNetwork, build_network, train_network
from taylorglo.training.stacked import StackedLoss, draws, kind_of, qualifies, train_stack

LOSSES: tuple[Loss, ...] = (
    TaylorLoss(GOOD),
    CrossEntropy(),
    TaylorLoss(OTHER),
    SquaredError(),
    CrossEntropy(0.1),
    TaylorLoss([*GOOD[:4], 0.0], order=2),
    CrossEntropy(0.2),
)
SHAPES = {"allcnn-c": (3, 9, 9), "alexnet": (3, 29, 29)}
STACKABLE = ("mlp", "cnn", "mnist-cnn", "allcnn-c", "alexnet")


def settings_of(
    model: str = "mlp", augmentation: dict[str, Any] | None = None, **training: Any
) -> SweepSettings:
    values = sweep(model=model, training={"batch_size": 16, **training}).model_dump()
    return SweepSettings.model_validate({**values, "augmentation": augmentation or {}})


def recipe(loss: Loss, seed: int = 3, steps: int = 8, rate: float = 0.05, **options: Any) -> Recipe:
    values = {"steps": steps, "horizon": steps, "validations": 2, "kept": True, **options}
    return Recipe(loss, rate, seed, **values)


def trained_alone(
    recipes: Sequence[Recipe], dataset: Dataset, settings: SweepSettings
) -> list[TrainedNetwork]:
    return [
        train_network(build_network(settings, dataset, one.seed), one, dataset, settings)
        for one in recipes
    ]


def assert_alike(
    results: Sequence[TrainedNetwork], expected: Sequence[TrainedNetwork], rtol: float = 1e-4
) -> None:
    """Compare up to rounding."""
    assert len(results) == len(expected)
    for one, two in zip(results, expected, strict=True):
        a, b = one.training, two.training
        assert (a.status, a.reason) == (b.status, b.reason)
        assert a.accuracy == pytest.approx(b.accuracy, abs=0)
        assert a.test_accuracy == pytest.approx(b.test_accuracy, abs=0)
        assert [step for step, _, _ in a.curve] == [step for step, _, _ in b.curve]
        accuracies = [accuracy for _, accuracy, _ in b.curve]
        assert [accuracy for _, accuracy, _ in a.curve] == pytest.approx(accuracies, abs=0)
        losses = [loss for _, _, loss in b.curve]
        assert [loss for _, _, loss in a.curve] == pytest.approx(losses, rel=rtol)
        assert_close_weights(one.weights, two.weights, rtol)


def assert_close_weights(weights: bytes, expected: bytes, rtol: float) -> None:
    """Compare two networks, as safetensors, up to rounding."""
    values, others = load(weights), load(expected)
    assert values.keys() == others.keys()
    for name, value in values.items():
        torch.testing.assert_close({name: value}, {name: others[name]}, rtol=rtol, atol=rtol * 0.1)


def assert_same(results: Sequence[TrainedNetwork], expected: Sequence[TrainedNetwork]) -> None:
    """Compare to the bit."""
    assert list(map(untimed_network, results)) == list(map(untimed_network, expected))


@pytest.mark.parametrize("model", STACKABLE)
def test_every_network_is_trained_as_alone(digits: Dataset, model: str) -> None:
    dataset = synthetic(SHAPES[model]) if model in SHAPES else digits
    settings = settings_of(model)
    # Nine layers from He's initialisation amplify rounding at rates that they do not learn with.
    rate, rtol = (1e-3, 1e-3) if model == "allcnn-c" else (0.05, 1e-4)
    losses = (TaylorLoss(GOOD), CrossEntropy(), TaylorLoss(OTHER))
    recipes = [recipe(loss, steps=4, rate=rate) for loss in losses]
    results = train_stack(recipes, dataset, settings)
    assert_alike(results, trained_alone(recipes, dataset, settings), rtol)
    after = load(results[0].weights)
    before = build_network(settings, dataset, 3).state_dict()
    weights = [name for name in after if name.endswith("weight")]
    assert not any(torch.equal(after[name], before[name]) for name in weights)


def test_different_losses_in_one_program(digits: Dataset) -> None:
    recipes = [recipe(loss, steps=20) for loss in LOSSES]
    results = train_stack(recipes, digits, settings_of())
    assert_alike(results, trained_alone(recipes, digits, settings_of()))
    assert len({result.weights for result in results}) == len(LOSSES)


@pytest.mark.parametrize("augmentation", [{}, {"cutmix": 0.5}], ids=["hard", "soft"])
def test_the_classic_losses_in_one_program(digits: Dataset, augmentation: dict[str, Any]) -> None:
    settings = settings_of("mlp", augmentation)
    losses: list[Loss] = [
        CrossEntropy(),
        CrossEntropy(0.1),
        SquaredError(),
        Baikal(),
        GeneralisedCrossEntropy(),
        GeneralisedCrossEntropy(0.3),
        SymmetricCrossEntropy(),
        SymmetricCrossEntropy(1.0, 0.5),
        MeanAbsoluteError(),
    ]
    # Losses of other parameters are of another kind, and equal ones of the same.
    assert len({kind_of(loss) for loss in losses}) == len(losses)
    assert kind_of(GeneralisedCrossEntropy(0.3)) == kind_of(GeneralisedCrossEntropy(0.3))
    recipes = [recipe(loss, seed, rate=0.01) for seed in (1, 2) for loss in losses]
    results = train_stack(recipes, digits, settings)
    assert_alike(results, trained_alone(recipes, digits, settings))
    assert len({result.weights for result in results}) == len(recipes)


def test_different_seeds_in_one_program(digits: Dataset) -> None:
    recipes = [recipe(loss, seed, steps=4) for seed in (1, 2, 3) for loss in LOSSES[:2]]
    results = train_stack(recipes, digits, settings_of("cnn"))
    assert_alike(results, trained_alone(recipes, digits, settings_of("cnn")))


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one-cycle"])
def test_every_schedule_and_plain_momentum(digits: Dataset, schedule: str) -> None:
    milestones = [0.3, 0.6] if schedule == "step" else []
    settings = settings_of(
        schedule=schedule, milestones=milestones, nesterov=False, momentum=0.6, weight_decay=0.01
    )
    recipes = [recipe(loss, horizon=11) for loss in LOSSES[:2]]
    results = train_stack(recipes, digits, settings)
    assert_alike(results, trained_alone(recipes, digits, settings))


@pytest.mark.parametrize(
    "augmentation",
    [{"crop_padding": 1, "flip": True, "cutout": 3}, {"cutmix": 1.0}, {"cutmix": 0.5}],
)
def test_augmentation_and_soft_targets(digits: Dataset, augmentation: dict[str, Any]) -> None:
    settings = settings_of("mlp", augmentation)
    # With a probability of 1/2, some of the seeds have soft targets in a step, and others have not.
    recipes = [recipe(loss, seed) for seed in (1, 2) for loss in LOSSES[:3]]
    results = train_stack(recipes, digits, settings)
    assert_alike(results, trained_alone(recipes, digits, settings))
    plain = train_stack(recipes, digits, settings_of())
    assert not any(one.weights == two.weights for one, two in zip(results, plain, strict=True))


@pytest.mark.parametrize("network", ["tied", "frozen", "dropout", "tokens"])
def test_networks_of_a_user(digits: Dataset, network: str) -> None:
    settings = settings_of(f"user_networks:{network}")
    assert qualifies(build_network(settings, digits, 0), digits.image_shape)
    recipes = [recipe(loss) for loss in LOSSES[:3]]
    results = train_stack(recipes, digits, settings)
    assert_alike(results, trained_alone(recipes, digits, settings))


def test_frozen_weights_stay_frozen_when_other_networks_leave_the_stack(digits: Dataset) -> None:
    settings = settings_of("user_networks:frozen")
    recipes = [
        recipe(TaylorLoss(theta), give_up=(4, 0.12), steps=12) for theta in (GOOD, BACKWARDS, OTHER)
    ]
    results = train_stack(recipes, digits, settings)
    assert [result.training.status for result in results] == ["ok", "diverged", "ok"]
    assert_alike(results, trained_alone(recipes, digits, settings))
    name = "network.1.weight"
    start = build_network(settings, digits, 3).state_dict()[name]
    assert all(torch.equal(load(result.weights)[name], start) for result in results)


def test_attacks_leave_the_same_accuracy_as_alone(digits: Dataset) -> None:
    recipes = [recipe(loss, steps=30, kept=False, epsilon=0.05) for loss in LOSSES[:3]]
    results = [one.training for one in train_stack(recipes, digits, settings_of())]
    expected = [one.training for one in trained_alone(recipes, digits, settings_of())]
    robust = [training.robust_accuracy or 0.0 for training in results]
    assert robust == pytest.approx([training.robust_accuracy for training in expected], abs=0.01)
    assert all(0 < left < one.accuracy for left, one in zip(robust, results, strict=True))


def test_networks_that_are_not_kept_have_no_weights_and_no_test_accuracy(digits: Dataset) -> None:
    recipes = [recipe(loss, steps=2, kept=False, epsilon=0.05) for loss in LOSSES[:3]]
    results = train_stack(recipes, digits, settings_of())
    assert [(one.weights, one.training.test_accuracy) for one in results] == [(b"", None)] * 3


def test_the_size_of_the_stack_does_not_matter(digits: Dataset) -> None:
    recipes = [recipe(TaylorLoss([x * (1 + 0.01 * i) for x in GOOD]), steps=20) for i in range(7)]
    whole = train_stack(recipes, digits, settings_of())
    for size in (1, 2, 5):
        parts = [
            result
            for start in range(0, len(recipes), size)
            for result in train_stack(recipes[start : start + size], digits, settings_of())
        ]
        assert_same(parts, whole)


@pytest.mark.parametrize(
    ("model", "shape"), [("allcnn-c", SHAPES["allcnn-c"]), ("mlp", (1, 28, 28))]
)
def test_the_size_of_the_stack_does_not_matter_for_larger_networks(
    model: str, shape: tuple[int, int, int]
) -> None:
    """One network is computed in another way than several, and convolutions than very many."""
    dataset, settings = synthetic(shape), settings_of(model)
    recipes = [recipe(loss, steps=2, rate=1e-3) for loss in LOSSES[:3]]
    whole = train_stack(recipes, dataset, settings)
    assert_same(train_stack(recipes[:2], dataset, settings), whole[:2])
    assert_same(train_stack(recipes[2:], dataset, settings), whole[2:])
    if model == "mlp":
        assert_same(train_stack(recipes * 4, dataset, settings), whole * 4)


def test_networks_that_are_given_up_leave_the_stack(digits: Dataset) -> None:
    thetas = (BACKWARDS, GOOD, BACKWARDS, OTHER, BACKWARDS)
    recipes = [recipe(TaylorLoss(theta), give_up=(6, 0.13), steps=20) for theta in thetas]
    results = train_stack(recipes, digits, settings_of())
    trainings = [result.training for result in results]
    assert [one.status for one in trainings] == ["diverged", "ok", "diverged", "ok", "diverged"]
    assert [one.curve[-1][0] for one in trainings] == [6, 20, 6, 20, 6]
    assert_alike(results, trained_alone(recipes, digits, settings_of()))
    # The time of a step is shared among the networks that are still in the stack.
    seconds = [one.seconds for one in trainings]
    assert max(seconds[0::2]) < min(seconds[1::2])
    wall_seconds = max(one.ended for one in trainings) - min(one.started for one in trainings)
    assert 0 < sum(seconds) <= wall_seconds
    # The others go on with their own momentum, as in a stack that no network left.
    stayed = train_stack([recipes[1], recipes[3]], digits, settings_of())
    assert_same([results[1], results[3]], stayed)
    assert_same([results[1]], train_stack([recipes[0], recipes[1]], digits, settings_of())[1:])


def test_losses_are_moved_to_the_device() -> None:
    """The device ``meta`` stands in for a GPU: its tensors cannot be mixed with the CPU's."""
    losses = [TaylorLoss(GOOD), TaylorLoss(OTHER), CrossEntropy(0.1)]
    stacked_loss = StackedLoss(losses, torch.device("meta"))
    logits, targets = torch.zeros(3, 8, 10, device="meta"), torch.zeros(8, 10, device="meta")
    values = stacked_loss(logits, targets)
    assert (values.device.type, values.shape) == ("meta", (3,))


def test_networks_that_leave_the_stack_take_their_batches_with_them(digits: Dataset) -> None:
    contenders = ((BACKWARDS, 1), (GOOD, 2), (OTHER, 1), (BACKWARDS, 2), (OTHER, 3))
    recipes = [
        recipe(TaylorLoss(theta), seed, give_up=(6, 0.16), steps=20) for theta, seed in contenders
    ]
    results = train_stack(recipes, digits, settings_of())
    statuses = [result.training.status for result in results]
    assert statuses == ["diverged", "ok", "ok", "diverged", "ok"]
    assert_alike(results, trained_alone(recipes, digits, settings_of()))


def test_all_networks_are_given_up(digits: Dataset) -> None:
    losses = (TaylorLoss(BACKWARDS), LOSSES[1])
    recipes = [recipe(loss, give_up=(2, 0.9), steps=500) for loss in losses]
    for stack in (recipes, recipes[:1]):
        trainings = [result.training for result in train_stack(stack, digits, settings_of())]
        ends = [(training.status, training.curve[-1][0]) for training in trainings]
        assert ends == [("diverged", 2)] * len(stack)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_network_that_diverges_leaves_the_others_as_they_are(digits: Dataset, place: int) -> None:
    sound = [recipe(loss, steps=20) for loss in LOSSES[:4]]
    extreme = recipe(TaylorLoss(EXTREME), steps=20)
    results = train_stack([*sound[:place], extreme, *sound[place:]], digits, settings_of())
    diverged = results.pop(place).training
    assert (diverged.status, diverged.accuracy) == ("diverged", 0.0)
    assert "no longer finite at step" in diverged.reason
    assert diverged.curve == []
    assert_same(results, train_stack(sound, digits, settings_of()))


def test_one_of_two_networks_diverges(digits: Dataset) -> None:
    recipes = [recipe(TaylorLoss(EXTREME)), recipe(TaylorLoss(GOOD))]
    results = train_stack(recipes, digits, settings_of())
    assert [result.training.status for result in results] == ["diverged", "ok"]
    assert_same(results[1:], train_stack(recipes[1:], digits, settings_of()))


def test_the_global_generator_is_left_alone_and_does_not_matter(digits: Dataset) -> None:
    settings = settings_of("mnist-cnn")
    recipes = [recipe(loss, steps=2) for loss in LOSSES[:2]]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_stack(recipes, digits, settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same(train_stack(recipes, digits, settings), first)


@pytest.mark.parametrize("model", BUILT_IN)
def test_which_networks_can_be_stacked(model: str) -> None:
    shape = (3, 32, 32)
    network = build(model, shape, 10, mean=(0.5,) * 3, std=(0.2,) * 3, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert qualifies(network, shape) == (model in STACKABLE)
    assert draws(network, shape) == (model in ("mnist-cnn", "allcnn-c"))
    if model in STACKABLE:
        # The question leaves the network as it was.
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("network", ["peeking", "misfit"])
def test_a_network_that_vmap_cannot_compute_does_not_qualify(digits: Dataset, network: str) -> None:
    settings = settings_of(f"user_networks:{network}")
    assert not qualifies(build_network(settings, digits, 0), digits.image_shape)
