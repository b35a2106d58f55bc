"""Fitness: what it is made of, what is not computed twice, and when a candidate is trained more
often."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainings import (
    BACKWARDS,
    GOOD,
    OTHER,
    Notes,
    all_evaluated,
    evaluated,
    steps_counted,
    sweep,
    untimed,
)

from taylorglo.attacks import fgsm
from taylorglo.data import dataset as data
from taylorglo.data.batches import derived_seed, scaled
from taylorglo.data.dataset import Dataset
from taylorglo.evaluation.fitness import Evaluation, attempts_wanted, evaluate, short_training
from taylorglo.loss.functions import TaylorLoss
from taylorglo.settings import DataSettings, SweepSettings
from taylorglo.training import devices
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, build_network, robust_accuracy, train


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.without_test(data.load(DataSettings(), 0))


def evaluated_with(
    cache: Any,
    thetas: Sequence[Sequence[float]],
    dataset: Dataset,
    own: SweepSettings,
    attempts: int | None = None,
) -> list[Evaluation]:
    candidates = [
        (number, theta, attempts or own.evaluation.attempts) for number, theta in enumerate(thetas)
    ]
    with Engine(own, lambda: dataset) as engine:
        found = dict(evaluate(candidates, 1, engine, cache))
    return [found[number] for number in range(len(thetas))]


# What it is made of


def test_fitness_with_a_share_of_the_accuracy_under_attack(digits):
    own = sweep(steps=40, training={"steps": 60}, adversarial_weight=0.3, adversarial_epsilon=0.07)
    found = evaluated(GOOD, 2, digits, own)
    split = digits.validation
    accuracies, robust = [], []
    for attempt in range(2):
        with Engine(own, lambda: digits) as engine:
            recipe = short_training(GOOD, derived_seed(0, 2, attempt), engine)
        network = build_network(own, digits, recipe.seed)
        train(network, Recipe(recipe.loss, 0.1, recipe.seed, steps=40, horizon=40), digits, own)
        attacked = fgsm(network, scaled(split.images), split.labels, 0.07)
        for images, found_so_far in ((scaled(split.images), accuracies), (attacked, robust)):
            found_so_far.append(
                (network(images).argmax(dim=1) == split.labels).float().mean().item()
            )
    assert found.accuracies == pytest.approx(accuracies, abs=1e-6)
    assert found.robust_accuracies == pytest.approx(robust, abs=1e-6)
    assert found.fitness == pytest.approx(
        0.7 * sum(accuracies) / 2 + 0.3 * sum(robust) / 2, abs=1e-6
    )
    assert 0.1 < robust[0] < accuracies[0] - 0.05
    plain = evaluated(
        GOOD, 2, digits, sweep(steps=40, training={"steps": 60}, adversarial_epsilon=0.07)
    )
    assert (plain.accuracies, plain.robust_accuracies) == (found.accuracies, [])
    assert plain.fitness == pytest.approx(sum(accuracies) / 2)


def test_no_accuracy_is_left_of_numbers_that_ran_off(digits):
    own = sweep(adversarial_weight=0.5, attempts=2)
    found = evaluated([x * 2e29 for x in GOOD], 1, digits, own)
    assert (found.status, found.fitness) == ("diverged", 0.0)
    assert (found.accuracies, found.robust_accuracies) == ([0.0], [0.0])


def test_one_that_is_given_up_is_attacked_too(digits):
    found = evaluated(BACKWARDS, 1, digits, sweep(adversarial_weight=0.5, give_up_step=5))
    assert found.status == "diverged"
    assert len(found.accuracies) == len(found.robust_accuracies) == 1
    assert found.fitness == pytest.approx((found.accuracies[0] + found.robust_accuracies[0]) / 2)


def test_fitness_in_one_program(digits):
    thetas = [GOOD, BACKWARDS, OTHER, [x * 2e29 for x in GOOD]]
    options = {"give_up_step": 10, "attempts": 2, "adversarial_weight": 0.2}
    expected = all_evaluated(thetas, 1, digits, sweep(**options))
    found = all_evaluated(thetas, 1, digits, sweep(training={"engine": "fused"}, **options))
    for one, two in zip(found, expected, strict=True):
        assert (one.status, one.reason) == (two.status, two.reason)
        assert one.accuracies == pytest.approx(two.accuracies, abs=1e-6)
        assert one.fitness == pytest.approx(
            two.fitness, abs=0.01
        )  # an attack turns on the sign of tiny gradients
    assert [each.status for each in expected] == ["ok", "diverged", "ok", "diverged"]


# What is not computed twice


def test_what_is_known_is_not_trained_again(digits):
    cache, own = Notes(), sweep(give_up_step=5, attempts=2, adversarial_weight=0.1)
    first = evaluated_with(cache, [GOOD, BACKWARDS], digits, own)
    assert len(cache.results) == 3  # of the one that has not learned there is no second attempt
    with steps_counted() as steps:
        assert evaluated_with(cache, [GOOD, BACKWARDS], digits, own) == first
        assert evaluated_with(cache, [BACKWARDS], digits, own) == first[1:]
    assert steps == []


def test_more_attempts_begin_with_those_that_are_known(digits):
    cache, own = Notes(), sweep(attempts=2)
    two = evaluated_with(cache, [GOOD], digits, own)[0]
    with steps_counted() as steps:
        four = evaluated_with(cache, [GOOD], digits, own, attempts=4)[0]
    assert len(steps) == 2 * 20
    assert four.accuracies[:2] == two.accuracies
    assert len(four.accuracies) == 4
    assert untimed(four) == untimed(evaluated_with(Notes(), [GOOD], digits, own, attempts=4)[0])
    one = evaluated_with(cache, [GOOD], digits, own, attempts=1)[0]
    assert one.accuracies == two.accuracies[:1]


def test_what_failed_is_tried_again_another_time(digits, tmp_path, monkeypatch):
    (tmp_path / "failing_networks.py").write_text("""
from torch import nn

broken = True

class Failing(nn.Sequential):
    def forward(self, images):
        if broken:
            raise RuntimeError("disk on fire")
        return super().forward(images)

def failing(image_shape, num_classes):
    return Failing(nn.Flatten(), nn.Linear(64, num_classes))
""")
    monkeypatch.syspath_prepend(tmp_path)
    cache, own = Notes(), sweep(model="failing_networks:failing")
    (found,) = evaluated_with(cache, [GOOD], digits, own)
    assert (found.status, found.fitness, found.reason) == ("failed", 0.0, "disk on fire")
    assert cache.results == {}
    sys.modules["failing_networks"].broken = False
    (found,) = evaluated_with(cache, [GOOD], digits, own)
    assert found.status == "ok"
    assert len(cache.results) == 2


class Knowing:
    """A cache that knows everything, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def recall(self, key: str) -> Mapping[str, Any]:
        self.asked.append(key)
        return {
            "status": "ok", "accuracy": 0.5, "curve": [[1, 0.5, 1.0]], "started": 0.0, "ended": 1.0, "seconds": 1.0,
            "robust_accuracy": 0.5,
        }  # fmt: skip

    def record(self, key: str, result: Mapping[str, Any]) -> None:
        raise AssertionError("trained")


def test_the_key_is_made_of_everything_that_decides(digits, tmp_path, monkeypatch):
    source = tmp_path / "keyed_networks.py"
    source.write_text("from taylorglo.networks.factory import mlp as other\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(devices, "_has_bfloat16", lambda device: True)

    def keys(
        theta: Sequence[float] = GOOD,
        generation: int = 1,
        dataset: Dataset = digits,
        attempts: int = 1,
        changes: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[str]:
        values = sweep(steps=20, give_up_step=5, **options).model_dump()
        for section, content in (changes or {}).items():
            values[section] = {**values[section], **content}
        cache = Knowing()
        with Engine(SweepSettings.model_validate(values), lambda: dataset) as engine:
            list(evaluate([(0, theta, attempts)], generation, engine, cache))
        return cache.asked

    def training(**changes: Any) -> list[str]:
        return keys(changes={"training": changes})

    attacked = {"adversarial_weight": 0.5}
    found = {
        "known": keys(),
        "theta": keys(OTHER),
        "order": keys([*GOOD[:4], 0.5], changes={"search": {"order": 2, "coordinates": "theta"}}),
        "generation": keys(generation=2),
        "attempt": keys(attempts=2)[1:],
        "seed": keys(seed=1),
        "data": keys(dataset=data.without_test(data.load(DataSettings(), 1))),
        "model": keys(model="cnn"),
        "user's model": keys(model="keyed_networks:other"),
        "anneal": keys(changes={"evaluation": {"anneal": False}}),
        "steps": keys(changes={"evaluation": {"steps": 30}}),
        "give_up_step": keys(changes={"evaluation": {"give_up_step": 6}}),
        "give_up_gain": keys(changes={"evaluation": {"give_up_gain": 0.06}}),
        "attacked": keys(changes={"evaluation": attacked}),
        "epsilon": keys(changes={"evaluation": {**attacked, "adversarial_epsilon": 0.1}}),
        "rate": training(learning_rate=0.2),
        "batch_size": training(batch_size=32),
        "momentum": training(momentum=0.8),
        "nesterov": training(nesterov=False),
        "weight_decay": training(weight_decay=0.0),
        "schedule": training(schedule="constant"),
        "milestones": training(schedule="step", milestones=[0.5]),
        "decay": training(schedule="step", milestones=[0.5], decay=0.2),
        "precision": training(precision="bfloat16"),
        "flip": keys(changes={"augmentation": {"flip": True}}),
        "cutmix": keys(changes={"augmentation": {"cutmix": 0.5}}),
    }
    assert {name for name, own in found.items() if len(own) != 1} == set()
    by_key: dict[str, list[str]] = {}
    for name, (key,) in found.items():
        by_key.setdefault(key, []).append(name)
    assert [names for names in by_key.values() if len(names) > 1] == []
    # Left to the machine, another precision is another training too.
    half = keys(model="cnn")
    with monkeypatch.context() as patch:
        patch.setattr(devices, "_has_bfloat16", lambda device: False)
        assert keys(model="cnn") != half
        assert keys() == found["known"]
    # The same network under the same name, but in another version.
    source.write_text("from taylorglo.networks.factory import cnn as other\n")
    assert keys(model="keyed_networks:other") != found["user's model"]
    # Where and how it is trained, and how often, is no part of what comes out; nor is an attack
    # that is not made.
    for same in (
        keys(attempts=2)[:1],
        training(engine="fused"),
        training(engine="parallel", workers=2),
        training(threads=2),
        training(device="cpu"),
        training(compile=True),
        keys(
            changes={"evaluation": {"adversarial_epsilon": 0.2, "max_attempts": 5, "attempts": 4}}
        ),
        keys(changes={"search": {"popsize": 99}, "champion": {"seeds": 7}}),
    ):
        assert same == found["known"]


# How often a candidate is trained


def noisy_settings(
    popsize: int = 8, attempts: int = 2, most: int = 6, weight: float = 0.0
) -> SweepSettings:
    evaluation = {"attempts": attempts, "max_attempts": most, "adversarial_weight": weight}
    return SweepSettings.model_validate({"evaluation": evaluation, "search": {"popsize": popsize}})


def result(
    accuracies: Sequence[float], status: str = "ok", robust: Sequence[float] = ()
) -> dict[str, Any]:
    fitness = float(np.mean(accuracies))
    return {
        "status": status,
        "fitness": fitness,
        "accuracies": list(accuracies),
        "robust_accuracies": list(robust),
    }


def mean_squares(table: np.ndarray) -> tuple[float, float]:
    """Between rows, and residual, by least squares on dummy variables instead of by sums of
    deviations."""
    rows, columns = table.shape
    row, column = (index.ravel() for index in np.indices(table.shape))

    def left(*factors: np.ndarray) -> float:
        design = np.column_stack(
            [np.ones(table.size), *(f[:, None] == np.arange(f.max() + 1) for f in factors)]
        )
        fitted = design @ np.linalg.lstsq(design.astype(float), table.ravel(), rcond=None)[0]
        return float(((table.ravel() - fitted) ** 2).sum())

    residual = left(row, column)
    return (left(column) - residual) / (rows - 1), residual / ((rows - 1) * (columns - 1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 5), st.integers(2, 5), st.floats(0.001, 3), st.integers(0, 2**32 - 1))
def test_more_is_wanted_where_the_order_is_noise(
    rows: int, attempts: int, spread: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    noise = (
        draw.normal(size=(rows, attempts)) + draw.normal(size=(1, attempts)) * 3
    )  # the seeds are shared
    table = 0.5 + 0.01 * (spread * draw.normal(size=(rows, 1)) + noise)
    between, residual = mean_squares(table)
    results = {number: result(row) for number, row in enumerate(table)}
    wanted = attempts_wanted(results, noisy_settings(2 * rows, attempts, 100))
    assert wanted == (dict.fromkeys(range(rows), 2 * attempts) if between / residual < 1 else {})


def test_a_known_table() -> None:
    """F = 1.5 / 2.5 = 0.6 and F = 13.5 / 2.5 = 5.4, by hand."""
    noise = {0: result([0.0, 0.3]), 1: result([0.2, 0.1])}
    assert attempts_wanted(noise, noisy_settings(4)) == {0: 4, 1: 4}
    clear = {0: result([0.9, 0.8]), 1: result([0.2, 0.15])}
    assert attempts_wanted(clear, noisy_settings(4)) == {}


NOISE = (
    [0.50, 0.59],
    [0.58, 0.50],
    [0.51, 0.56],
    [0.55, 0.50],
)  # no order that both attempts agree on


def test_only_of_leaders() -> None:
    results = {10 + number: result(row) for number, row in enumerate(NOISE)}
    results |= {number: result([0.1, 0.2]) for number in range(4)}
    assert attempts_wanted(results, noisy_settings(8)) == dict.fromkeys(range(10, 14), 4)
    assert set(attempts_wanted(results, noisy_settings(4))) == {
        10,
        11,
    }  # the two that are best on average
    assert attempts_wanted(results, noisy_settings(2)) == {}  # one alone has no order


def test_not_of_those_that_are_not_ok() -> None:
    results = {number: result(row) for number, row in enumerate(NOISE)}
    results[1] = result(NOISE[1], "diverged")
    results[2] = {**result([0.9]), "status": "failed"}
    assert attempts_wanted(results, noisy_settings(8)) == {0: 4, 3: 4}
    results[3] = result(NOISE[3], "diverged")
    assert attempts_wanted(results, noisy_settings(8)) == {}


def test_no_more_than_allowed_and_never_where_it_is_not_asked_for() -> None:
    results = {number: result(row) for number, row in enumerate(NOISE)}
    assert attempts_wanted(results, noisy_settings(8, most=3)) == dict.fromkeys(range(4), 3)
    assert attempts_wanted(results, noisy_settings(8, most=2)) == {}
    assert attempts_wanted(results, noisy_settings(8, most=0)) == {}
    longer = {number: result([*row, *row]) for number, row in enumerate(NOISE)}
    assert attempts_wanted(longer, noisy_settings(8, most=5)) == dict.fromkeys(range(4), 5)
    assert attempts_wanted(longer, noisy_settings(8, most=4)) == {}


def test_one_that_has_become_a_leader_catches_up() -> None:
    results = {number: result([*row, *row]) for number, row in enumerate(NOISE)}
    results[2] = result(NOISE[2])
    assert attempts_wanted(results, noisy_settings(8)) == {2: 4}


def test_the_noise_is_that_of_the_fitness_and_not_of_the_accuracy_alone() -> None:
    results = {number: result(row, robust=[0.1 * number] * 2) for number, row in enumerate(NOISE)}
    assert attempts_wanted(results, noisy_settings(8, weight=0.0)) == dict.fromkeys(range(4), 4)
    assert attempts_wanted(results, noisy_settings(8, weight=0.9)) == {}


# In another precision


def test_fitness_in_bfloat16_repeats_and_is_close(digits, monkeypatch):
    monkeypatch.setattr(
        devices, "_has_bfloat16", lambda device: True
    )  # all CPUs compute with it, if slowly
    options: dict[str, Any] = {"model": "cnn", "steps": 60, "attempts": 1}
    half = sweep(training={"precision": "bfloat16"}, **options)
    first, again = (evaluated(GOOD, 1, digits, half) for _ in range(2))
    assert untimed(first) == untimed(again)
    whole = evaluated(GOOD, 1, digits, sweep(training={"precision": "float32"}, **options))
    assert whole.fitness > 0.9
    assert first.fitness == pytest.approx(whole.fitness, abs=0.03)
    assert first.curve != whole.curve
    assert (first.method, whole.method) == ("sequential, bfloat16, cpu", "sequential, float32, cpu")
    assert json.dumps(first.as_dict(), allow_nan=False)
    automatic = evaluated(
        GOOD, 1, digits, sweep(**options)
    )  # the network is one of those that it was measured for
    assert untimed(automatic) == untimed(first)
    fused = evaluated(
        GOOD, 1, digits, sweep(training={"precision": "bfloat16", "engine": "fused"}, **options)
    )
    assert fused.fitness == pytest.approx(first.fitness, abs=0.03)


def test_the_attack_is_computed_in_float32(digits):
    network = build_network(sweep(model="cnn"), digits, 1)
    train(
        network, Recipe(TaylorLoss(GOOD), 0.1, 1, steps=40, horizon=40), digits, sweep(model="cnn")
    )
    alone = robust_accuracy(network, digits.validation, 0.05, 64)
    attacked = fgsm(network, scaled(digits.validation.images), digits.validation.labels, 0.05)
    types = set()
    network.register_forward_hook(lambda _network, _images, logits: types.add(logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert robust_accuracy(network, digits.validation, 0.05, 64) == alone
        assert types == {torch.float32}
        assert not torch.equal(
            fgsm(network, scaled(digits.validation.images), digits.validation.labels, 0.05),
            attacked,
        )
    assert 0.1 < alone < 0.95
