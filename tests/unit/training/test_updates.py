"""The optimizers of a training, and what belongs to them: each against a step by hand."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from schedules import rate_at
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from trainings import GOOD, score_and_entropy, sweep

from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset
from taylorglo.evaluation.fitness import candidate_rate
from taylorglo.loss.classic import CrossEntropy
from taylorglo.loss.coordinates import point_of, theta_at
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.loss.members import member
from taylorglo.settings import SweepSettings, TrainingSettings
from taylorglo.training.loop import Recipe, TrainedNetwork, build_network, train_network
from taylorglo.training.updates import Average, by_decay

WHOLE = 1077  # images of the digits' training split: every batch has the same images
EPSILON = 1e-8  # PyTorch's default, of Adam and AdamW


@pytest.fixture
def rates() -> Iterator[list[float]]:
    """The learning rate of every optimizer step from here on."""
    steps: list[float] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: steps.append(float(optimizer.param_groups[0]["lr"]))
    )
    yield steps
    handle.remove()


def settings_of(**training: Any) -> SweepSettings:
    return sweep(training={"batch_size": WHOLE, "schedule": "constant", **training})


def trained(
    dataset: Dataset,
    sweep_settings: SweepSettings,
    steps: int,
    loss: Loss | None = None,
    rate: float | None = None,
) -> TrainedNetwork:
    """Train from the initial weights of seed 1."""
    recipe = Recipe(
        loss or CrossEntropy(),
        sweep_settings.training.learning_rate if rate is None else rate,
        1,
        steps=steps,
        horizon=steps,
        kept=True,
    )
    return train_network(build_network(sweep_settings, dataset, 1), recipe, dataset, sweep_settings)


def weights(trained_network: TrainedNetwork) -> dict[str, Tensor]:
    """Return the parameters, in double precision."""
    state = load(trained_network.weights)
    return {name: value.double() for name, value in state.items() if "normalize" not in name}


def start(dataset: Dataset) -> nn.Module:
    return build_network(settings_of(), dataset, 1)


def gradients(network: nn.Module, dataset: Dataset) -> dict[str, Tensor]:
    """Return the gradient of cross-entropy on all training images, in double precision."""
    network.zero_grad()
    images, labels = dataset.train.images, dataset.train.labels
    CrossEntropy()(network(scaled(images)), labels).backward()
    found = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad.double()
    return found


def by_hand(dataset: Dataset, training: TrainingSettings, steps: int) -> dict[str, Tensor]:
    """Return the weights after steps of Adam or AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019).

    The schedule is constant, and everything decays that ``weight_decay_on`` names.
    """
    network = start(dataset)
    first, second = training.betas
    rate, parameters = training.learning_rate, dict(network.named_parameters())
    moments = {name: [torch.zeros(()).double()] * 2 for name in parameters}
    for step in range(1, steps + 1):
        found = gradients(network, dataset)
        for name, parameter in parameters.items():
            decays = training.weight_decay_on == "all" or name.endswith("weight")
            decay = training.weight_decay if decays else 0.0
            weight, gradient = parameter.detach().double(), found[name]
            if training.optimizer == "adam":
                gradient = gradient + decay * weight
            else:
                weight = weight * (1 - rate * decay)
            m, v = moments[name]
            m = first * m + (1 - first) * gradient
            v = second * v + (1 - second) * gradient**2
            moments[name] = [m, v]
            unbiased = (v / (1 - second**step)).sqrt() + EPSILON
            after = weight - rate * m / (1 - first**step) / unbiased
            with torch.no_grad():
                parameter.copy_(after)
    return {name: parameter.detach().double() for name, parameter in parameters.items()}


@pytest.mark.parametrize("decayed", ["all", "weights"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_steps_of_adam_and_adamw(search_digits: Dataset, optimizer: str, decayed: str) -> None:
    chosen = settings_of(
        optimizer=optimizer,
        learning_rate=0.01,
        betas=[0.8, 0.95],
        weight_decay=0.3,
        weight_decay_on=decayed,
    )
    found = weights(trained(search_digits, chosen, 3))
    expected = by_hand(search_digits, chosen.training, 3)
    assert found.keys() == expected.keys()
    before = dict(start(search_digits).named_parameters())
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(value, before[name].double(), atol=1e-3)
    # The settings make a difference that is far larger than the tolerance.
    other = chosen.model_copy(
        update={"training": chosen.training.model_copy(update={"weight_decay": 0.0})}
    )
    without = weights(trained(search_digits, other, 3))
    name = "network.1.weight"
    assert not torch.allclose(found[name], without[name], atol=1e-4)


@pytest.mark.parametrize("decayed", ["all", "weights"])
def test_which_parameters_decay_with_sgd(search_digits: Dataset, decayed: str) -> None:
    chosen = settings_of(
        learning_rate=0.05, momentum=0, nesterov=False, weight_decay=0.5, weight_decay_on=decayed
    )
    found = weights(trained(search_digits, chosen, 1))
    network = start(search_digits)
    for name, gradient in gradients(network, search_digits).items():
        decay = 0.5 if decayed == "all" or name.endswith("weight") else 0.0
        before = network.get_parameter(name).detach().double()
        expected = before - 0.05 * (gradient + decay * before)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def test_normalisations_and_biases_are_those_that_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    chosen = TrainingSettings(weight_decay_on="weights")
    decaying, others = by_decay(network.parameters(), chosen)
    assert [tuple(p.shape) for p in decaying["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert [tuple(p.shape) for p in others["params"]] == [(4,), (4,), (4,), (2,)]
    assert "weight_decay" not in decaying
    assert others["weight_decay"] == 0
    stacked = [nn.Parameter(p.detach().expand(5, *p.shape)) for p in network.parameters()]
    groups = by_decay(stacked, chosen, stacked=1)
    assert [len(group["params"]) for group in groups] == [2, 4]


@pytest.mark.parametrize("anneal", [True, False])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one-cycle"])
def test_the_warm_up_is_a_factor_on_every_schedule(
    search_digits: Dataset, rates: list[float], schedule: str, anneal: bool
) -> None:
    training = {
        "learning_rate": 0.08,
        "schedule": schedule,
        "milestones": [0.1, 0.5] if schedule == "step" else [],
        "warmup_steps": 12,
    }
    chosen = sweep(training=training, anneal=anneal)
    horizon = 20 if anneal else 60
    recipe = Recipe(CrossEntropy(), 0.08, 1, steps=20, horizon=horizon)
    network = build_network(chosen, search_digits, 1)
    train_network(network, recipe, search_digits, chosen)
    # A third of the schedule has a third of the warm-up.
    warmup = 4 if anneal else 12
    expected = [
        rate_at(step, chosen.training, horizon) * min(1, step / (warmup + 1))
        for step in range(1, 21)
    ]
    assert rates == pytest.approx(expected, rel=1e-6)


def norm(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((value**2).sum()) for value in tensors.values()))


def test_a_gradient_is_cut_to_the_norm_and_a_shorter_one_is_left(search_digits: Dataset) -> None:
    plain = {"learning_rate": 0.05, "momentum": 0, "nesterov": False, "weight_decay": 0}
    network = start(search_digits)
    found = gradients(network, search_digits)
    length = norm(found)
    before = {name: p.detach().double() for name, p in network.named_parameters()}
    for limit, factor in ((length / 4, 1 / 4), (length * 4, 1.0)):
        after = weights(trained(search_digits, settings_of(**plain, clip_norm=limit), 1))
        for name, gradient in found.items():
            expected = before[name] - 0.05 * factor * gradient
            torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6)


def test_the_average_of_the_weights_is_what_is_kept_and_measured(search_digits: Dataset) -> None:
    plain = settings_of(learning_rate=0.5)
    course = [weights(trained(search_digits, plain, steps)) for steps in (1, 2, 3, 4)]
    expected = {name: p.detach().double() for name, p in start(search_digits).named_parameters()}
    # The decay rises with the steps to the one of the settings: 2/11, 3/12, then 0.3.
    for decay, live in zip((2 / 11, 3 / 12, 0.3, 0.3), course, strict=True):
        for name, value in live.items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    result = trained(search_digits, settings_of(learning_rate=0.5, ema=0.3), 4)
    for name, value in weights(result).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
        assert not torch.allclose(value, course[-1][name], atol=1e-4)
    kept = start(search_digits)
    kept.load_state_dict(load(result.weights))
    accuracy, entropy = score_and_entropy(kept, search_digits.validation, WHOLE)
    assert (result.training.accuracy, result.training.curve[-1][2]) == (accuracy, entropy)


def test_the_validations_leave_the_weights_in_training_as_they_are(search_digits: Dataset) -> None:
    chosen = settings_of(learning_rate=0.5, ema=0.9)

    def kept(validations: int) -> bytes:
        recipe = Recipe(
            CrossEntropy(), 0.5, 1, steps=6, horizon=6, validations=validations, kept=True
        )
        network = build_network(chosen, search_digits, 1)
        return train_network(network, recipe, search_digits, chosen).weights

    assert kept(1) == kept(6)


def test_running_statistics_are_averaged_with_the_weights() -> None:
    network = nn.BatchNorm1d(2)
    average = Average.of(network, 0.5)
    network(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    live = network.running_mean.clone()
    assert not torch.equal(live, torch.zeros(2))
    average.update()
    with average.shown():
        torch.testing.assert_close(network.running_mean, live * 9 / 11)
        assert network.num_batches_tracked == 1
    assert torch.equal(network.running_mean, live)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(0, 0.999), st.integers(1, 40))
def test_the_average_of_weights_that_stay_is_the_weights(decay: float, steps: int) -> None:
    live = [torch.tensor([1.5, -2.25]), torch.tensor(3.125)]
    averages = [value.clone() for value in live]
    average = Average(live, averages, decay)
    for _ in range(steps):
        average.update()
    assert all(torch.equal(a, b) for a, b in zip(live, averages, strict=True))


class TestScaleAndLearningRate:
    """The scale of a loss is a learning rate: with SGD of itself, with Adam by our own rule."""

    def test_sgd_takes_the_scale_for_a_learning_rate(self, search_digits: Dataset) -> None:
        chosen = settings_of(weight_decay=0)
        scaled_loss = weights(trained(search_digits, chosen, 4, TaylorLoss(times(GOOD, 4)), 0.01))
        rated = weights(trained(search_digits, chosen, 4, TaylorLoss(GOOD), 0.04))
        for name, value in rated.items():
            torch.testing.assert_close(scaled_loss[name], value, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("optimizer", ["adam", "adamw"])
    def test_adam_does_not_see_the_scale(self, search_digits: Dataset, optimizer: str) -> None:
        chosen = settings_of(optimizer=optimizer, weight_decay=0)

        def found(factor: float, rate: float) -> dict[str, Tensor]:
            loss = TaylorLoss(times(GOOD, factor))
            return weights(trained(search_digits, chosen, 4, loss, rate))

        first, second, rated = found(1, 1e-3), found(4, 1e-3), found(1, 4e-3)
        name = "network.1.bias"
        torch.testing.assert_close(first[name], second[name], rtol=1e-2, atol=1e-5)
        assert not torch.allclose(first[name], rated[name], rtol=0.1, atol=1e-4)

    def test_the_rate_of_a_candidate(self) -> None:
        sgd = TrainingSettings(learning_rate=0.02)
        adam = TrainingSettings(learning_rate=0.02, optimizer="adam")
        assert candidate_rate(times(GOOD, 7), sgd, 10) == 0.02
        # Cross-entropy has the scale 0, and so the rate of the settings.
        assert candidate_rate(member("cross-entropy"), adam, 10) == pytest.approx(0.02)
        rate = candidate_rate(GOOD, adam, 10)
        assert candidate_rate(times(GOOD, 7), adam, 10) == pytest.approx(7 * rate)
        assert rate == pytest.approx(0.02 * math.exp(point_of(GOOD, 10)["scale"]))

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.floats(-4, 4), st.floats(-3, 1), st.integers(2, 40))
    def test_the_axis_scale_is_the_logarithm_of_the_rate(
        self, scale: float, end: float, n: int
    ) -> None:
        adam = TrainingSettings(learning_rate=0.02, optimizer="adamw")
        point = {"scale": scale, "end": end}
        if n > 2:
            point |= {"bend": 0.05, "collapse": -1.0}
        rate = candidate_rate(theta_at(point, n), adam, n)
        assert math.log(rate / 0.02) == pytest.approx(scale, abs=1e-9)


def times(theta: list[float], factor: float) -> list[float]:
    """Return the theta of a multiple of a loss: its centre stays."""
    return [*theta[:2], *(factor * value for value in theta[2:])]


def test_a_loss_without_drive_is_not_trained_by_adam(search_digits: Dataset) -> None:
    chosen = settings_of(optimizer="adam")
    result = trained(search_digits, chosen, 2, TaylorLoss([0.0] * 8), 0.0)
    before = start(search_digits).state_dict()
    assert result.training.status == "ok"
    assert all(torch.equal(value, before[name]) for name, value in load(result.weights).items())
