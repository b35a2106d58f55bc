"""One training: exact repetition, schedules step by step, and early ends."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from schedules import rate_at
from torch import nn
from trainings import EXTREME, GOOD, evaluated, score_and_entropy, steps_counted, sweep
from user_networks import Record

from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset
from taylorglo.errors import InputError
from taylorglo.loss.classic import CrossEntropy
from taylorglo.results import Training
from taylorglo.settings import SweepSettings, TrainingSettings
from taylorglo.training.devices import device_of
from taylorglo.training.loop import Recipe, build_network, resident, train_network

Rates = list[tuple[float, float]]


@pytest.fixture
def rates() -> Iterator[Rates]:
    """Learning rate and momentum of every optimizer step from here on."""
    with steps_counted() as steps:
        yield steps


def trained(
    dataset: Dataset, settings: TrainingSettings, steps: int, seed: int = 0, **options: Any
) -> tuple[Training, nn.Module]:
    """Train with cross-entropy, always from the same initial weights."""
    network = build_network(sweep(), dataset, 1)
    rate = settings.learning_rate
    recipe = Recipe(CrossEntropy(), rate, seed, steps=steps, horizon=steps, **options)
    whole = SweepSettings.model_construct(training=settings)
    return train_network(network, recipe, dataset, whole).training, network


def test_cross_entropy_learns_the_digits(search_digits: Dataset) -> None:
    result, network = trained(search_digits, TrainingSettings(), 200)
    assert result.status == "ok"
    assert result.accuracy > 0.93
    assert not network.training
    assert (result.accuracy, result.curve[-1][2]) == score_and_entropy(
        network, search_digits.validation, 64
    )
    assert [step for step, _, _ in result.curve] == list(range(20, 201, 20))
    assert result.curve[-1][2] < result.curve[0][2] < math.log(10)
    assert result.started <= result.ended


def test_the_same_seed_gives_the_same_bits(search_digits: Dataset) -> None:
    def weights(network: nn.Module) -> list[nn.Parameter]:
        return list(network.parameters())

    first, one = trained(search_digits, TrainingSettings(), 30)
    second, two = trained(search_digits, TrainingSettings(), 30)
    assert (first.accuracy, first.curve) == (second.accuracy, second.curve)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(two), strict=True))
    _, other = trained(search_digits, TrainingSettings(), 30, seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_a_training_in_full_is_validated_ten_times(search_digits: Dataset, record: Record) -> None:
    network = build_network(sweep(model="user_networks:recording"), search_digits, 1)
    recipe = Recipe(CrossEntropy(), 0.1, 0, steps=20, horizon=20)
    train_network(network, recipe, search_digits, sweep())
    assert sum(record.validated) == 10 * len(search_digits.validation)


@pytest.mark.parametrize("steps", [1, 2, 7, 11])
def test_steps_are_counted_exactly(search_digits: Dataset, rates: Rates, steps: int) -> None:
    result, _ = trained(search_digits, TrainingSettings(), steps)
    assert len(rates) == steps
    assert result.curve[-1][0] == steps
    assert all(1 <= step <= steps for step, _, _ in result.curve)


@pytest.mark.parametrize("anneal", [True, False])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one-cycle"])
def test_learning_rates_of_a_short_training(
    search_digits: Dataset, rates: Rates, schedule: str, anneal: bool
) -> None:
    training = {
        "learning_rate": 0.08,
        "momentum": 0.7,
        "schedule": schedule,
        "milestones": [0.2, 0.5] if schedule == "step" else [],
        "decay": 0.3,
    }
    settings = sweep(training=training, anneal=anneal, attempts=2)
    evaluated(GOOD, 1, search_digits, settings)
    horizon = 20 if anneal else 60
    expected = [rate_at(step, settings.training, horizon) for step in range(1, 21)]
    assert [rate for rate, _ in rates] == pytest.approx(expected * 2, rel=1e-6)
    assert {momentum for _, momentum in rates} == {0.7}
    assert len(set(expected)) == {"constant": 1, "step": 3 if anneal else 2}.get(schedule, 20)


def test_one_step_of_one_cycle(search_digits: Dataset, rates: Rates) -> None:
    result, _ = trained(search_digits, TrainingSettings(schedule="one-cycle"), 1)
    assert (result.status, len(rates)) == ("ok", 1)


def test_the_optimizer_is_sgd_with_the_configured_weight_decay(search_digits: Dataset) -> None:
    """Compare one step of plain SGD with a step by hand."""
    settings = TrainingSettings(
        learning_rate=0.05, momentum=0, nesterov=False, weight_decay=0.1, batch_size=1077
    )
    _, network = trained(search_digits, settings, 1)
    start = build_network(sweep(), search_digits, 1)
    logits = start(scaled(search_digits.train.images))
    CrossEntropy()(logits, search_digits.train.labels).backward()
    for after, before in zip(network.parameters(), start.parameters(), strict=True):
        assert before.grad is not None
        expected = before - 0.05 * (before.grad + 0.1 * before)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)


def test_giving_up_compares_with_the_accuracy_of_the_recipe(search_digits: Dataset) -> None:
    def status_and_accuracy(give_up: tuple[int, float] | None) -> tuple[str, float]:
        training, _ = trained(search_digits, TrainingSettings(), 10, give_up=give_up)
        return training.status, training.accuracy

    _, accuracy = status_and_accuracy(None)
    assert status_and_accuracy((10, accuracy)) == ("diverged", accuracy)
    assert status_and_accuracy((10, accuracy - 1e-6))[0] == "ok"


@pytest.mark.parametrize(
    ("theta", "rate"),
    [(EXTREME, 0.1), (GOOD, 1e6)],
    ids=["extreme loss", "extreme learning rate"],
)
def test_a_training_ends_when_numbers_become_infinite(
    search_digits: Dataset, rates: Rates, theta: list[float], rate: float
) -> None:
    settings = sweep(training={"learning_rate": rate}, steps=20, attempts=2)
    result = evaluated(theta, 1, search_digits, settings)
    assert (result.status, result.fitness, result.accuracies) == ("diverged", 0.0, [0.0])
    assert "no longer finite at step" in result.reason
    assert len(rates) < 20
    assert all(math.isfinite(loss) for _, _, loss in result.curve)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_gpu_that_is_not_there() -> None:
    assert device_of(TrainingSettings()) == torch.device("cpu")
    with pytest.raises(InputError, match=r"training\.device is cuda"):
        device_of(TrainingSettings(device="cuda"))


def test_resident_keeps_the_data(digits: Dataset, search_digits: Dataset) -> None:
    assert digits.test is not None
    moved = resident(digits, torch.device("cpu"))
    assert moved.test is not None
    assert torch.equal(moved.test.images, digits.test.images)
    assert torch.equal(moved.train.labels, digits.train.labels)
    assert resident(search_digits, torch.device("cpu")).test is None


def test_score_and_cross_entropy_agree_with_scikit_learn(search_digits: Dataset) -> None:
    from sklearn.metrics import accuracy_score, log_loss

    _, network = trained(search_digits, TrainingSettings(), 30)
    split = search_digits.train
    # This is more than one batch of the evaluation, and the last batch is shorter.
    assert len(split) > 1000
    network.train()
    accuracy, cross_entropy = score_and_entropy(network, split, 64)
    assert not network.training
    with torch.no_grad():
        probabilities = network(scaled(split.images)).double().softmax(dim=1).numpy()
    expected = accuracy_score(split.labels, probabilities.argmax(axis=1))
    assert accuracy == pytest.approx(expected, abs=1e-6)
    assert cross_entropy == pytest.approx(log_loss(split.labels, probabilities), rel=1e-5)
