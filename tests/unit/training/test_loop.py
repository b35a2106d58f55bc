"""Training: exact repetition, common random numbers, schedules step by step, and what ends a
training early."""

import importlib
import math
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from trainings import BACKWARDS, GOOD, OTHER, Notes, evaluated, steps_counted, sweep, untimed

from taylorglo.data import dataset as data
from taylorglo.data.batches import derived_seed, scaled
from taylorglo.data.dataset import Dataset, Split
from taylorglo.errors import InputError
from taylorglo.evaluation.fitness import Evaluation, evaluate
from taylorglo.loss.functions import CrossEntropy, Loss
from taylorglo.settings import DataSettings, SweepSettings, TrainingSettings
from taylorglo.training.devices import device_of
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, Training, build_network, resident, train, validate


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.without_test(data.load(DataSettings(), 0))


NETWORKS = """
import torch
from torch import nn

initial, batches, evaluated, calls = [], [], [], 0


class Recording(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
        initial.append(torch.cat([p.detach().flatten() for p in network.parameters()]).tolist())

    def forward(self, images):
        if self.training:
            batches.append(images.flatten(1).clone())
        else:
            evaluated.append(len(images))
        return self.network(images)


def recording(image_shape, num_classes):
    return Recording(nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes)))


def dropout(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, num_classes))


class Failing(nn.Module):
    def __init__(self, times, num_classes):
        super().__init__()
        self.times = times
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, images):
        global calls
        calls += 1
        if calls in self.times:
            raise RuntimeError("disk on fire\\nwith details")
        return self.network(images)


def failing_once(image_shape, num_classes):
    return Failing({3}, num_classes)


def failing_twice(image_shape, num_classes):
    return Failing({3, 6}, num_classes)


def sound(image_shape, num_classes):
    return Failing(set(), num_classes)
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A user's module of networks that tell what they are shown."""
    (tmp_path / "training_networks.py").write_text(textwrap.dedent(NETWORKS))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("training_networks")
    del sys.modules["training_networks"]


def recorded(
    networks: ModuleType,
    theta: list[float],
    generation: int,
    dataset: Dataset,
    settings: SweepSettings,
) -> Evaluation:
    """Evaluate a candidate, and forget what its network was shown before that, while the training
    was planned."""
    with Engine(settings, lambda: dataset) as engine:
        assert engine.plan.engine == "sequential"
        networks.initial.clear()
        networks.batches.clear()
        networks.evaluated.clear()
        networks.calls = 0
        ((_, evaluation),) = evaluate(
            [(0, theta, settings.evaluation.attempts)], generation, engine, Notes()
        )
    return evaluation


@pytest.fixture
def rates() -> Iterator[list[tuple[float, float]]]:
    """The learning rate and momentum of every optimizer step from here on."""
    with steps_counted() as seen:
        yield seen


def trained(
    dataset: Dataset,
    settings: TrainingSettings,
    steps: int,
    loss: Loss | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Training, nn.Module]:
    network = build_network(sweep(), dataset, 1)
    recipe = Recipe(
        loss or CrossEntropy(), settings.learning_rate, seed, steps=steps, horizon=steps, **options
    )
    result = train(network, recipe, dataset, SweepSettings.model_construct(training=settings))
    return result.training, network


# Training works, and repeats exactly


def test_cross_entropy_learns_the_digits(digits):
    result, network = trained(digits, TrainingSettings(), 200)
    assert result.status == "ok"
    assert result.accuracy > 0.93
    assert not network.training
    assert (result.accuracy, result.curve[-1][2]) == validate(network, digits.validation, 64)
    assert [step for step, _, _ in result.curve] == list(range(20, 201, 20))
    assert result.curve[-1][2] < result.curve[0][2] < math.log(10)
    assert result.started <= result.ended


def test_a_candidate_learns_the_digits(digits):
    result = evaluated(GOOD, 1, digits, sweep(training={"steps": 200}, steps=200, attempts=1))
    assert result.status == "ok"
    assert result.fitness > 0.93


def test_same_seed_same_bits(digits):
    (first, one), (second, two) = (trained(digits, TrainingSettings(), 30) for _ in range(2))
    assert (first.accuracy, first.curve) == (second.accuracy, second.curve)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    _, three = trained(digits, TrainingSettings(), 30, seed=1)
    assert not any(
        torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True)
    )


@pytest.mark.usefixtures("networks")
def test_dropout_repeats_and_the_global_generator_is_left_alone(digits):
    settings = sweep(model="training_networks:dropout")
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = untimed(evaluated(GOOD, 1, digits, settings))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    assert untimed(evaluated(GOOD, 1, digits, settings)) == first
    assert (
        untimed(evaluated(GOOD, 1, digits, sweep(model="training_networks:dropout", seed=1)))
        != first
    )


def test_derived_seeds():
    seeds = {
        derived_seed(seed, a, b)
        for seed in range(3)
        for a in (0, 1, 2, 1_000_000)
        for b in range(100)
    }
    assert len(seeds) == 1200
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert derived_seed(7, 1, 2) == int(np.random.SeedSequence([7, 1, 2]).generate_state(1)[0]) // 2


# Common random numbers


def test_candidates_of_a_generation_differ_by_their_loss_alone(digits, networks):
    settings = sweep(model="training_networks:recording", attempts=2)

    def seen(theta: list[float], generation: int) -> tuple[list[Any], list[torch.Tensor]]:
        recorded(networks, theta, generation, digits, settings)
        return list(networks.initial), list(networks.batches)

    initial, batches = seen(GOOD, 1)
    others, other_batches = seen(OTHER, 1)
    assert (len(initial), len(batches)) == (2, 40)
    assert others == initial
    assert all(torch.equal(a, b) for a, b in zip(batches, other_batches, strict=True))
    # Attempts and generations have weights and batches of their own.
    later, later_batches = seen(GOOD, 2)
    assert len({tuple(weights) for weights in initial + later}) == 4
    starts = [batches[0], batches[20], later_batches[0], later_batches[20]]
    assert not any(torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_losses_that_differ_in_c1_alone_train_alike(digits):
    settings = sweep(steps=40)
    gauged = [*GOOD[:2], GOOD[2] + 3.0, *GOOD[3:]]
    one, two, other = (evaluated(theta, 1, digits, settings) for theta in (GOOD, gauged, OTHER))
    curves = [[loss for _, _, loss in evaluation.curve] for evaluation in (one, two, other)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    assert curves[0] != pytest.approx(curves[2], rel=1e-2)


def test_fitness_does_not_depend_on_the_order_or_the_shard(digits):
    settings = sweep(give_up_step=10)
    together = [
        untimed(evaluated(theta, 3, digits, settings)) for theta in (GOOD, BACKWARDS, OTHER)
    ]
    apart = [untimed(evaluated(theta, 3, digits, settings)) for theta in (OTHER, GOOD)]
    assert apart == [together[2], together[0]]
    assert together[1].status == "diverged"


# Batches


def test_an_epoch_shows_every_image_once(digits, networks):
    settings = sweep(
        model="training_networks:recording", training={"batch_size": 100}, attempts=1, steps=20
    )
    recorded(networks, GOOD, 1, digits, settings)
    size = len(digits.train)
    per_epoch = size // 100
    assert [len(batch) for batch in networks.batches] == [100] * 20
    epochs = [torch.cat(networks.batches[start : start + per_epoch]) for start in (0, per_epoch)]
    different = len(scaled(digits.train.images).flatten(1).unique(dim=0))
    assert different == size  # no two images are alike, so that equal ones are the same one
    for epoch in epochs:
        assert len(epoch.unique(dim=0)) == per_epoch * 100
    assert not torch.equal(*epochs)
    # A candidate is validated when it is known what it can do, and not before.
    assert sum(networks.evaluated) == len(digits.validation)
    assert max(networks.evaluated) == 100  # an evaluation takes no more memory than a training


def test_a_training_in_full_is_validated_ten_times(digits, networks):
    network = build_network(sweep(model="training_networks:recording"), digits, 1)
    train(network, Recipe(CrossEntropy(), 0.1, 0, steps=20, horizon=20), digits, sweep())
    assert sum(networks.evaluated) == 10 * len(digits.validation)


def test_a_batch_larger_than_the_data_is_refused(digits):
    few = replace(digits, train=Split(digits.train.images[:63], digits.train.labels[:63]))
    with pytest.raises(
        InputError, match=r"^training\.batch_size: 64 is more than the 63 training images$"
    ):
        evaluated(GOOD, 1, few, sweep())
    assert evaluated(GOOD, 1, few, sweep(training={"batch_size": 63}, steps=3)).status == "ok"


@pytest.mark.parametrize("steps", [1, 2, 7, 11])
def test_steps_are_counted_exactly(digits, rates, steps):
    result, _ = trained(digits, TrainingSettings(), steps)
    assert len(rates) == steps
    assert result.curve[-1][0] == steps
    assert all(1 <= step <= steps for step, _, _ in result.curve)


# Schedules


def rate_at(step: int, settings: TrainingSettings, horizon: int) -> float:
    """The learning rate of a step, from 1: in closed form."""
    top, done = settings.learning_rate, step - 1
    if settings.schedule == "step":
        return top * settings.decay ** sum(
            done >= round(fraction * horizon) for fraction in settings.milestones
        )
    if settings.schedule == "cosine":
        return top * (1 + math.cos(math.pi * done / horizon)) / 2
    if (
        settings.schedule == "one-cycle"
    ):  # Smith & Topin 2018, as in torch: up for 30 % of the way, then down
        peak = 0.3 * (horizon + 1) - 1
        low, high, share = (
            (top / 25, top, done / peak) if done <= peak else (top / 25e4, top, (horizon - done))
        )
        if done > peak:
            share /= horizon - peak
        return low + (high - low) * (1 - math.cos(math.pi * share)) / 2
    return top


@pytest.mark.parametrize("anneal", [True, False])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one-cycle"])
def test_learning_rates_of_a_short_training(digits, rates, schedule, anneal):
    milestones = [0.2, 0.5] if schedule == "step" else []
    training = {
        "learning_rate": 0.08,
        "momentum": 0.7,
        "schedule": schedule,
        "milestones": milestones,
        "decay": 0.3,
    }
    settings = sweep(training=training, anneal=anneal, attempts=2)
    evaluated(GOOD, 1, digits, settings)
    horizon = 20 if anneal else 60
    expected = [rate_at(step, settings.training, horizon) for step in range(1, 21)]
    assert [rate for rate, _ in rates] == pytest.approx(expected * 2, rel=1e-6)
    assert {momentum for _, momentum in rates} == {0.7}
    assert len(set(expected)) == {"constant": 1, "step": 3 if anneal else 2}.get(schedule, 20)


def test_one_step_of_one_cycle(digits, rates):
    result, _ = trained(digits, TrainingSettings(schedule="one-cycle"), 1)
    assert (result.status, len(rates)) == ("ok", 1)


def test_the_optimizer_is_the_one_that_was_asked_for(digits):
    """One step of plain SGD with weight decay, by hand."""
    settings = TrainingSettings(
        learning_rate=0.05, momentum=0, nesterov=False, weight_decay=0.1, batch_size=1077
    )
    _, network = trained(digits, settings, 1)
    start = build_network(sweep(), digits, 1)
    CrossEntropy()(start(scaled(digits.train.images)), digits.train.labels).backward()
    for after, before in zip(network.parameters(), start.parameters(), strict=True):
        assert before.grad is not None
        torch.testing.assert_close(
            after, before - 0.05 * (before.grad + 0.1 * before), rtol=1e-4, atol=1e-6
        )


# What ends a training early


def test_a_candidate_that_has_not_learned_is_given_up(digits, rates):
    settings = sweep(steps=20, give_up_step=7, give_up_gain=0.05, attempts=3)
    result = evaluated(BACKWARDS, 1, digits, settings)
    assert len(rates) == 7  # of the first attempt, and there is no second one
    assert result.status == "diverged"
    assert result.accuracies == [result.fitness]
    assert result.fitness <= 0.15
    assert "at step 7: no learning" in result.reason
    assert result.curve[-1][0] == 7


def test_a_candidate_is_given_up_only_where_it_has_not_learned(digits, rates):
    expected = untimed(evaluated(GOOD, 1, digits, sweep(give_up_step=0, steps=40)))
    settings = sweep(give_up_step=20, give_up_gain=0.05, steps=40)
    looked = untimed(evaluated(GOOD, 1, digits, settings))
    assert [step for step, _, _ in looked.curve] == [20, 40]
    assert replace(looked, curve=looked.curve[1:]) == expected  # the look itself changes nothing
    assert expected.status == "ok"
    assert len(expected.accuracies) == 2
    rates.clear()
    assert (
        evaluated(GOOD, 1, digits, sweep(give_up_step=20, give_up_gain=0.899)).status == "diverged"
    )
    assert len(rates) == 20
    rates.clear()
    assert evaluated(BACKWARDS, 1, digits, sweep(give_up_step=0, attempts=1)).status == "ok"
    assert len(rates) == 20


def test_giving_up_compares_with_the_accuracy_given(digits):
    accuracy = trained(digits, TrainingSettings(), 10)[0].accuracy
    stopped, _ = trained(digits, TrainingSettings(), 10, give_up=(10, accuracy))
    assert (stopped.status, stopped.accuracy) == ("diverged", accuracy)
    assert trained(digits, TrainingSettings(), 10, give_up=(10, accuracy - 1e-6))[0].status == "ok"


@pytest.mark.parametrize(
    ("theta", "rate"),
    [([x * 2e29 for x in GOOD], 0.1), (GOOD, 1e30)],
    ids=["extreme loss", "extreme learning rate"],
)
def test_numbers_that_run_off(digits, rates, theta, rate):
    result = evaluated(
        theta, 1, digits, sweep(training={"learning_rate": rate}, steps=20, attempts=2)
    )
    assert (result.status, result.fitness, result.accuracies) == ("diverged", 0.0, [0.0])
    assert "no longer finite at step" in result.reason
    assert len(rates) < 20
    assert all(math.isfinite(loss) for _, _, loss in result.curve)


def test_fitness_is_the_mean_over_the_attempts(digits):
    result = evaluated(GOOD, 1, digits, sweep(attempts=3, steps=10))
    assert len(set(result.accuracies)) > 1
    assert result.fitness == pytest.approx(sum(result.accuracies) / 3)
    assert result.curve[-1][1] == pytest.approx(result.fitness)
    assert 0 < result.seconds <= result.ended - result.started + 0.01


# Errors


def test_an_error_of_the_machine_is_tried_again(digits, networks):
    expected = untimed(evaluated(GOOD, 1, digits, sweep(model="training_networks:sound")))
    failing = sweep(model="training_networks:failing_once")
    assert untimed(recorded(networks, GOOD, 1, digits, failing)) == expected
    assert networks.calls > 3
    assert expected.status == "ok"


def test_an_error_that_comes_again_is_a_result(digits, networks):
    result = recorded(
        networks, GOOD, 1, digits, sweep(model="training_networks:failing_twice", attempts=3)
    )
    assert networks.calls == 6
    assert untimed(result) == Evaluation("failed", 0.0, [], [], [], 0.0, 0.0, 0.0, "disk on fire")
    assert result.as_dict()["status"] == "failed"


def test_bad_input_is_not_tried_again(digits):
    with pytest.raises(InputError, match="theta has 3 numbers"):
        evaluated([1.0, 2.0, 3.0], 1, digits, sweep())
    with pytest.raises(InputError, match="no_such_module"):
        evaluated(GOOD, 1, digits, sweep(model="no_such_module:network"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_gpu_that_is_not_there():
    assert device_of(TrainingSettings()) == torch.device("cpu")
    with pytest.raises(InputError, match=r"training\.device is cuda"):
        device_of(TrainingSettings(device="cuda"))


# The splits


class Forbidden(Split):
    """A split that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} of the test split was read")

    def __len__(self) -> int:
        raise AssertionError("the test split was counted")


def test_fitness_never_sees_the_test_split(digits):
    sealed = replace(digits, test=Forbidden.__new__(Forbidden))
    expected = untimed(evaluated(GOOD, 1, digits, sweep()))
    assert untimed(evaluated(GOOD, 1, sealed, sweep())) == expected


def test_validation_images_are_not_trained_on(digits, networks):
    recorded(
        networks, GOOD, 1, digits, sweep(model="training_networks:recording", attempts=1, steps=60)
    )
    held_out = {tuple(row) for row in normalised(digits, digits.validation)}
    shown = {tuple(row) for batch in networks.batches for row in batch.tolist()}
    assert len(shown) > 1000
    assert not shown & held_out


def normalised(dataset: Dataset, split: Split) -> list[list[float]]:
    images = (scaled(split.images) - dataset.mean[0]) / dataset.std[0]
    rows: list[list[float]] = images.flatten(1).tolist()
    return rows


def test_resident_keeps_the_data(digits):
    whole = data.load(DataSettings(), 0)
    assert whole.test is not None
    moved = resident(whole, torch.device("cpu"))
    assert moved.test is not None
    assert torch.equal(moved.test.images, whole.test.images)
    assert torch.equal(moved.train.labels, whole.train.labels)
    assert resident(digits, torch.device("cpu")).test is None


def test_validate_agrees_with_scikit_learn(digits):
    from sklearn.metrics import accuracy_score, log_loss

    _, network = trained(digits, TrainingSettings(), 30)
    split = digits.train
    assert len(split) > 1000  # more than one batch of the evaluation, the last one shorter
    network.train()
    accuracy, cross_entropy = validate(network, split, 64)
    assert not network.training
    with torch.no_grad():
        probabilities = network(scaled(split.images)).double().softmax(dim=1).numpy()
    assert accuracy == pytest.approx(
        accuracy_score(split.labels, probabilities.argmax(axis=1)), abs=1e-6
    )
    assert cross_entropy == pytest.approx(log_loss(split.labels, probabilities), rel=1e-5)
