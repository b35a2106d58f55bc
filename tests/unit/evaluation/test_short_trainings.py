"""The cache of short trainings: what is not trained again, and the keys."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from trainings import (
    BACKWARDS,
    GOOD,
    OTHER,
    MemoryCache,
    all_evaluated,
    steps_counted,
    sweep,
    untimed,
)
from user_networks import Record

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.evaluation.fitness import Assignment, evaluate
from taylorglo.results import Training
from taylorglo.settings import DataSettings, SweepSettings
from taylorglo.training import devices
from taylorglo.training.engine import Engine

Changes = dict[str, dict[str, Any]]


def test_a_recorded_training_is_not_trained_again(search_digits: Dataset) -> None:
    cache, settings = MemoryCache(), sweep(give_up_step=5, attempts=2, adversarial_weight=0.1)
    first = all_evaluated([GOOD, BACKWARDS], search_digits, settings, cache=cache)
    # The candidate that has not learned has no second attempt.
    assert len(cache.trainings) == 3
    with steps_counted() as steps:
        assert all_evaluated([GOOD, BACKWARDS], search_digits, settings, cache=cache) == first
        assert all_evaluated([BACKWARDS], search_digits, settings, cache=cache) == first[1:]
    assert steps == []


def test_more_attempts_begin_with_those_that_are_recorded(search_digits: Dataset) -> None:
    cache, settings = MemoryCache(), sweep(attempts=2)
    (two,) = all_evaluated([GOOD], search_digits, settings, cache=cache)
    with steps_counted() as steps:
        (four,) = all_evaluated([GOOD], search_digits, settings, cache=cache, attempts=4)
    assert len(steps) == 2 * 20
    assert four.accuracies[:2] == two.accuracies
    assert len(four.accuracies) == 4
    (again,) = all_evaluated([GOOD], search_digits, settings, attempts=4)
    assert untimed(four) == untimed(again)
    (one,) = all_evaluated([GOOD], search_digits, settings, cache=cache, attempts=1)
    assert one.accuracies == two.accuracies[:1]


def test_a_training_that_failed_is_not_recorded(search_digits: Dataset, record: Record) -> None:
    cache, settings = MemoryCache(), sweep(model="user_networks:breakable")
    record.broken = True
    (failed,) = all_evaluated([GOOD], search_digits, settings, cache=cache)
    assert (failed.status, failed.fitness, failed.reason) == ("failed", 0.0, "disk on fire")
    assert cache.trainings == {}
    record.broken = False
    (sound,) = all_evaluated([GOOD], search_digits, settings, cache=cache)
    assert sound.status == "ok"
    assert len(cache.trainings) == 2


class FullCache:
    """A cache that has every training, and remembers the keys."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def recall(self, key: str) -> Training:
        self.keys.append(key)
        accuracies = {"accuracy": 0.5, "robust_accuracy": 0.5, "curve": [(1, 0.5, 1.0)]}
        times = {"started": 0.0, "ended": 1.0, "seconds": 1.0}
        return Training.model_validate({"status": "ok", **accuracies, **times})

    def record(self, key: str, training: Training) -> None:
        raise AssertionError("trained")


class Keys:
    """The keys of short trainings on a data set."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def of_attempts(
        self,
        attempts: int,
        theta: Sequence[float] = GOOD,
        *,
        generation: int = 1,
        dataset: Dataset | None = None,
        seed: int = 0,
        **changes: dict[str, Any],
    ) -> list[str]:
        """Return a key for each attempt; ``changes`` are other settings, by section."""
        values = sweep(steps=20, give_up_step=5, seed=seed).model_dump()
        for section, content in changes.items():
            values[section] = {**values[section], **content}
        settings = SweepSettings.model_validate(values)
        cache = FullCache()
        with Engine(settings, lambda: dataset or self._dataset) as engine:
            list(evaluate([Assignment(0, theta, attempts)], generation, engine, cache))
        return cache.keys

    def of(self, theta: Sequence[float] = GOOD, **options: Any) -> str:
        """Return the key of a candidate's only attempt."""
        (key,) = self.of_attempts(1, theta, **options)
        return key

    def of_training(self, **changes: Any) -> str:
        """Return the key with other settings of the section ``training``."""
        return self.of(training=changes)


@pytest.fixture
def keys(search_digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """The keys of short trainings on a CPU with arithmetic for bfloat16."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: True)
    return Keys(search_digits)


def test_everything_that_decides_a_training_is_in_its_key(keys: Keys) -> None:
    other_data = datasets.without_test(datasets.load(DataSettings(), 1))
    order_two = {"order": 2, "coordinates": "theta"}
    attacked = {"adversarial_weight": 0.5}
    _, second_attempt = keys.of_attempts(2)
    key_by_change = {
        "default": keys.of(),
        "theta": keys.of(OTHER),
        "order": keys.of([*GOOD[:4], 0.5], search=order_two),
        "generation": keys.of(generation=2),
        "attempt": second_attempt,
        "seed": keys.of(seed=1),
        "data": keys.of(dataset=other_data),
        "model": keys.of(model={"name": "cnn"}),
        "user's model": keys.of(model={"name": "user_networks:perceptron"}),
        "anneal": keys.of(evaluation={"anneal": False}),
        "steps": keys.of(evaluation={"steps": 30}),
        "give_up_step": keys.of(evaluation={"give_up_step": 6}),
        "give_up_gain": keys.of(evaluation={"give_up_gain": 0.06}),
        "attacked": keys.of(evaluation=attacked),
        "epsilon": keys.of(evaluation={**attacked, "adversarial_epsilon": 0.1}),
        "attack steps": keys.of(evaluation={**attacked, "adversarial_steps": 5}),
        "rate": keys.of_training(learning_rate=0.2),
        "batch_size": keys.of_training(batch_size=32),
        "momentum": keys.of_training(momentum=0.8),
        "nesterov": keys.of_training(nesterov=False),
        "weight_decay": keys.of_training(weight_decay=0.0),
        "schedule": keys.of_training(schedule="constant"),
        "milestones": keys.of_training(schedule="step", milestones=[0.5]),
        "decay": keys.of_training(schedule="step", milestones=[0.5], decay=0.2),
        "precision": keys.of_training(precision="bfloat16"),
        "flip": keys.of(augmentation={"flip": True}),
        "cutmix": keys.of(augmentation={"cutmix": 0.5}),
    }
    names: dict[str, list[str]] = {}
    for name, key in key_by_change.items():
        names.setdefault(key, []).append(name)
    assert [same for same in names.values() if len(same) > 1] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"engine": "fused"}},
        {"training": {"engine": "parallel", "workers": 2}},
        {"training": {"threads": 2}},
        {"training": {"device": "cpu"}},
        {"training": {"compile": True}},
        {"evaluation": {"adversarial_epsilon": 0.2, "max_attempts": 5, "attempts": 4}},
        {"search": {"popsize": 99}, "champion": {"seeds": 7}},
    ],
    ids=json.dumps,
)
def test_what_does_not_decide_a_training_is_not_in_its_key(keys: Keys, changes: Changes) -> None:
    """This is where, how and how often it is trained, and an attack that is not made."""
    assert keys.of(GOOD, **changes) == keys.of()


def test_further_attempts_do_not_change_the_key_of_the_first(keys: Keys) -> None:
    assert keys.of_attempts(2)[0] == keys.of()


def test_the_precision_that_the_device_decides_is_in_the_key(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The precision ``auto`` is bfloat16 for the network ``cnn`` if the CPU has it."""
    half, single = keys.of(model={"name": "cnn"}), keys.of()
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    assert keys.of(model={"name": "cnn"}) != half
    assert keys.of() == single


def test_the_source_of_a_users_network_is_in_the_key(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the name of the network that it replaces."""
    source = tmp_path / "keyed_networks.py"
    monkeypatch.syspath_prepend(tmp_path)
    source.write_text("from taylorglo.networks.factory import mlp as other\n")
    before = keys.of(model={"name": "keyed_networks:other"})
    source.write_text("from taylorglo.networks.factory import cnn as other\n")
    assert keys.of(model={"name": "keyed_networks:other"}) != before
