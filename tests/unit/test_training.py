"""Training on real digits: determinism, common random numbers, schedules, and how it ends early."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from taylorglo import data, training
from taylorglo.loss import CrossEntropy, TaylorLoss
from taylorglo.polynomial import from_coefficients
from taylorglo.settings import EvaluationSettings, ModelSettings, SweepSettings, TrainingSettings

NEAR_CROSS_ENTROPY = from_coefficients(4, -4, -1, 0)
SETTINGS = SweepSettings(
    training=TrainingSettings(steps=60, batch_size=32),
    evaluation=EvaluationSettings(steps=40, attempts=2, give_up_step=0),
)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load(SETTINGS.data, 0)


def run(digits: data.Dataset, settings: SweepSettings = SETTINGS, *, seed: int = 1, **kwargs: object):
    network = training.build_network(settings, digits, 1)
    arguments = {"steps": 40, "horizon": 40, "learning_rate": 0.1, "seed": seed, **kwargs}
    result = training.train(network, CrossEntropy(), digits, settings.training, **arguments)
    return network, result


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_cross_entropy_learns_digits(digits: data.Dataset) -> None:
    network, result = run(digits, steps=300, horizon=300)
    assert result.status == "ok"
    assert result.accuracy > 0.93
    assert [step for step, _, _ in result.curve] == [30 * point for point in range(1, 11)]
    assert result.accuracy == result.curve[-1][1] == training.validate(network, digits.validation)[0]


def test_the_same_seed_gives_the_same_bits_and_another_one_others(digits: data.Dataset) -> None:
    (first, one), (second, two), (third, _) = run(digits), run(digits), run(digits, seed=2)
    assert torch.equal(weights(first), weights(second))
    assert one.curve == two.curve
    assert not torch.equal(weights(first), weights(third))


def test_dropout_is_seeded_and_the_global_generator_left_alone(digits: data.Dataset) -> None:
    settings = SETTINGS.model_copy(update={"model": ModelSettings(name="mnist-cnn")})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = run(digits, settings, steps=3, horizon=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second, _ = run(digits, settings, steps=3, horizon=3)
    assert torch.equal(weights(first), weights(second))


def test_validate_is_accuracy_and_log_loss(digits: data.Dataset) -> None:
    network, _ = run(digits)
    accuracy, cross_entropy = training.validate(network, digits.validation)
    with torch.no_grad():
        h = network(training.scaled(digits.validation.images)).softmax(dim=1).double().numpy()
    labels = digits.validation.labels.numpy()
    assert accuracy == pytest.approx(accuracy_score(labels, h.argmax(axis=1)))
    assert cross_entropy == pytest.approx(log_loss(labels, h / h.sum(axis=1, keepdims=True)), rel=1e-4)


def test_a_batch_larger_than_the_data_is_all_of_them(digits: data.Dataset) -> None:
    settings = SETTINGS.model_copy(update={"training": TrainingSettings(steps=5, batch_size=5000)})
    assert run(digits, settings, steps=5, horizon=5)[1].status == "ok"


class RecordedRates:
    """The learning rate of every step that an optimizer takes."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def __call__(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self.rates.append(float(optimizer.param_groups[0]["lr"]))


@pytest.fixture
def recorded() -> Iterator[RecordedRates]:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    hook = RecordedRates()
    handle = register_optimizer_step_pre_hook(hook)
    yield hook
    handle.remove()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, lambda step: 0.1),
        ({"schedule": "cosine"}, lambda step: 0.05 * (1 + math.cos(math.pi * step / 40))),
        (
            {"schedule": "step", "milestones": [0.25, 0.5], "decay": 0.5},
            lambda step: 0.1 / 2 ** ((step >= 10) + (step >= 20)),
        ),
    ],
    ids=["constant", "cosine", "step"],
)
@pytest.mark.parametrize("steps", [40, 25])
def test_schedules_are_what_their_names_say_in_whole_and_in_part(
    digits: data.Dataset, recorded: RecordedRates, settings: dict, expected: object, steps: int
) -> None:
    chosen = SETTINGS.model_copy(update={"training": TrainingSettings(steps=60, **settings)})
    run(digits, chosen, steps=steps, horizon=40)
    assert recorded.rates == pytest.approx([expected(step) for step in range(steps)], abs=1e-9)


def test_one_cycle_rises_to_the_rate_and_falls(digits: data.Dataset, recorded: RecordedRates) -> None:
    chosen = SETTINGS.model_copy(update={"training": TrainingSettings(steps=60, schedule="one-cycle")})
    run(digits, chosen)
    peak = int(np.argmax(recorded.rates))
    assert len(recorded.rates) == 40
    assert max(recorded.rates) == pytest.approx(0.1, rel=0.01)
    assert np.all(np.diff(recorded.rates[: peak + 1]) > 0)
    assert np.all(np.diff(recorded.rates[peak:]) < 0)
    assert 8 <= peak <= 16


@pytest.mark.parametrize(
    ("anneal", "last"),
    [(True, 0.05 * (1 + math.cos(math.pi * 39 / 40))), (False, 0.05 * (1 + math.cos(math.pi * 39 / 60)))],
)
def test_a_short_training_anneals_or_is_the_beginning_of_the_full_one(
    digits: data.Dataset, recorded: RecordedRates, anneal: bool, last: float
) -> None:
    settings = SETTINGS.model_copy(update={"evaluation": SETTINGS.evaluation.model_copy(update={"anneal": anneal})})
    training.evaluate_candidate(NEAR_CROSS_ENTROPY, 1, digits, settings)
    assert len(recorded.rates) == 80
    assert recorded.rates[39] == recorded.rates[79] == pytest.approx(last)


def test_fitness_is_the_mean_over_attempts_from_different_seeds(digits: data.Dataset) -> None:
    found = training.evaluate_candidate(NEAR_CROSS_ENTROPY, 1, digits, SETTINGS)
    assert found.status == "ok"
    assert len(set(found.accuracies)) == 2
    assert found.fitness == pytest.approx(np.mean(found.accuracies))
    assert 0 < found.seconds == pytest.approx(found.ended - found.started, abs=0.1)


def test_candidates_of_a_generation_differ_by_their_loss_alone(digits: data.Dataset) -> None:
    # c1 has no part in a training, so with the same weights and batches these two are one candidate, up to rounding.
    shifted = from_coefficients(4, -4, -1, 0, c1=0.5)
    one = training.evaluate_candidate(NEAR_CROSS_ENTROPY, 1, digits, SETTINGS)
    other = training.evaluate_candidate(shifted, 1, digits, SETTINGS)
    later = training.evaluate_candidate(NEAR_CROSS_ENTROPY, 2, digits, SETTINGS)
    assert other.curve[-1][2] == pytest.approx(one.curve[-1][2], rel=1e-3)
    assert abs(later.curve[-1][2] - one.curve[-1][2]) > 1e-3 * one.curve[-1][2]


def test_fitness_does_not_depend_on_what_was_evaluated_before(digits: data.Dataset) -> None:
    first = training.evaluate_candidate(NEAR_CROSS_ENTROPY, 3, digits, SETTINGS)
    training.evaluate_candidate(from_coefficients(1, 0, 0, 0), 3, digits, SETTINGS)
    again = training.evaluate_candidate(NEAR_CROSS_ENTROPY, 3, digits, SETTINGS)
    assert again.accuracies == first.accuracies
    assert again.curve == first.curve


def test_the_test_split_is_never_touched(digits: data.Dataset) -> None:
    with_test = training.evaluate_candidate(NEAR_CROSS_ENTROPY, 1, digits, SETTINGS)
    without = training.evaluate_candidate(NEAR_CROSS_ENTROPY, 1, data.without_test(digits), SETTINGS)
    assert with_test.accuracies == without.accuracies


def test_no_learning_by_the_step_given_ends_a_candidate(digits: data.Dataset) -> None:
    short = EvaluationSettings(steps=40, attempts=3, give_up_step=15, give_up_gain=0.05)
    settings = SETTINGS.model_copy(update={"evaluation": short})
    found = training.evaluate_candidate(from_coefficients(-4, 0, 0, 0), 1, digits, settings)
    assert found.status == "diverged"
    assert "no learning" in found.reason
    assert len(found.accuracies) == 1
    assert found.curve[-1][0] == 15
    assert found.fitness <= 0.15
    assert training.evaluate_candidate(NEAR_CROSS_ENTROPY, 1, digits, settings).status == "ok"


def test_numbers_that_run_off_end_a_candidate_with_fitness_0(digits: data.Dataset) -> None:
    found = training.evaluate_candidate(from_coefficients(1e30, 0, 0, 0), 1, digits, SETTINGS)
    assert (found.status, found.fitness, found.accuracies) == ("diverged", 0.0, [0.0])
    assert "finite" in found.reason


def test_an_error_of_the_machine_is_tried_once_more_then_a_result(
    digits: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frail_networks.py").write_text(
        "import torch\n"
        "calls = []\n"
        "class Frail(torch.nn.Module):\n"
        "    def __init__(self, failures, classes):\n"
        "        super().__init__()\n"
        "        self.failures, self.linear = failures, torch.nn.Linear(64, classes)\n"
        "    def forward(self, x):\n"
        "        calls.append(1)\n"
        "        if len(calls) <= self.failures:\n"
        "            raise RuntimeError('out of memory\\nsecond line')\n"
        "        return self.linear(x.flatten(1))\n"
        "def once(shape, classes): return Frail(1, classes)\n"
        "def always(shape, classes): return Frail(10**9, classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    once = SETTINGS.model_copy(update={"model": ModelSettings(name="frail_networks:once")})
    assert training.evaluate_candidate(NEAR_CROSS_ENTROPY, 1, digits, once).status == "ok"
    always = SETTINGS.model_copy(update={"model": ModelSettings(name="frail_networks:always")})
    found = training.evaluate_candidate(NEAR_CROSS_ENTROPY, 1, digits, always)
    assert (found.status, found.fitness, found.reason) == ("failed", 0.0, "out of memory")


def test_a_loss_trains_alike_on_indices_and_distributions(digits: data.Dataset) -> None:
    loss = TaylorLoss(NEAR_CROSS_ENTROPY)
    logits = torch.randn(8, 10)
    assert torch.allclose(loss(logits, torch.arange(8)), loss(logits, torch.eye(10)[:8]))


def test_seeds_of_different_paths_differ() -> None:
    paths = [(g, a) for g in range(50) for a in range(5)] + [(1_000_000, k) for k in range(50)]
    seeds = {training.derived_seed(0, *path) for path in paths}
    assert len(seeds) == len(paths)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert training.derived_seed(0, 1, 2) != training.derived_seed(1, 1, 2)


def test_cuda_is_refused_where_there_is_none() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            training.device_of(TrainingSettings(device="cuda"))
    assert training.device_of(TrainingSettings(device="cpu")).type == "cpu"


def test_resident_moves_all_splits(digits: data.Dataset) -> None:
    moved = training.resident(replace(digits, test=None), torch.device("meta"))
    assert moved.train.images.device.type == moved.validation.labels.device.type == "meta"
    assert moved.test is None
