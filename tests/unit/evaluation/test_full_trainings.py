"""Trainings in full: what the memory of them spares, their keys, and failures."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from comparisons import CROSS_ENTROPY, STEPS, Memory, changed, engine_on, trained, without_times
from trainings import GOOD, steps_counted
from user_networks import Record

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset, Split
from taylorglo.errors import TaylorgloError
from taylorglo.evaluation.comparison import tune_baselines
from taylorglo.results import Contender, FullTraining
from taylorglo.settings import DataSettings


@pytest.fixture
def new_steps() -> Iterator[Callable[[], int]]:
    """A function that returns the number of optimizer steps since its last call."""
    with steps_counted() as steps:

        def count() -> int:
            number = len(steps)
            steps.clear()
            return number

        yield count


def test_nothing_is_trained_twice(search_digits: Dataset, new_steps: Callable[[], int]) -> None:
    memo = Memory()
    with engine_on(search_digits) as engine:
        first = tune_baselines(engine, memo)
        assert new_steps() == 3 * 2 * 2 * STEPS
        assert len(memo.trainings) == 12
        assert tune_baselines(engine, memo) == first
        assert new_steps() == 0
    # Only the new learning rate of a larger grid is trained.
    with engine_on(search_digits, baselines={"learning_rates": [0.05, 0.1, 0.2]}) as engine:
        more = tune_baselines(engine, memo)
    assert new_steps() == 3 * 2 * STEPS
    assert [full for full in more if full.contender.learning_rate != 0.1] == first


def test_a_result_does_not_depend_on_the_memory(
    digits: Dataset, new_steps: Callable[[], int]
) -> None:
    memo, other_memo = Memory(), Memory()
    first = trained(CROSS_ENTROPY, digits, memo)
    assert trained(CROSS_ENTROPY, digits, memo) == first
    assert new_steps() == STEPS
    again = trained(CROSS_ENTROPY, digits, other_memo)
    assert without_times(again) == without_times(first)
    # The weights are the same to the byte.
    assert other_memo.networks == memo.networks
    assert FullTraining.model_validate_json(first.model_dump_json()) == first


def test_another_name_is_the_same_training(
    search_digits: Dataset, new_steps: Callable[[], int]
) -> None:
    memo = Memory()
    first = trained(CROSS_ENTROPY, search_digits, memo)
    renamed = changed(CROSS_ENTROPY, name="the winner")
    changes: dict[str, Any] = {"search": {"popsize": 99}, "evaluation": {"steps": 7}}
    full = trained(renamed, search_digits, memo, name="other-name", seed=9, **changes)
    assert new_steps() == STEPS
    assert full == first.model_copy(update={"contender": renamed})


def test_everything_that_decides_a_training_is_in_its_key(
    search_digits: Dataset, digits: Dataset
) -> None:
    memo = Memory()

    def key(
        contender: Contender = CROSS_ENTROPY, dataset: Dataset = search_digits, **options: Any
    ) -> str:
        return trained(contender, dataset, memo, **options).key

    def training(**changes: Any) -> str:
        return key(training=changes)

    test = digits.test
    assert test is not None
    moved = replace(digits, test=Split(test.images.roll(1, 0), test.labels))
    relabelled = replace(digits, test=Split(test.images, test.labels.roll(1, 0)))
    other_data = datasets.without_test(datasets.load(DataSettings(train_fraction=0.5), 0))
    taylor = changed(CROSS_ENTROPY, loss="taylor", theta=GOOD)
    keys = {
        "default": key(),
        "rate": key(changed(CROSS_ENTROPY, learning_rate=0.2)),
        "smoothing": key(changed(CROSS_ENTROPY, label_smoothing=0.1)),
        "loss": key(changed(CROSS_ENTROPY, loss="squared-error")),
        "theta": key(taylor),
        "another theta": key(changed(taylor, theta=[*GOOD[:-1], 0.1])),
        "seed": key(from_seed=6),
        "data": key(dataset=other_data),
        "tested": key(dataset=digits),
        "test images": key(dataset=moved),
        "test labels": key(dataset=relabelled),
        "model": key(model={"name": "cnn"}),
        "user's model": key(model={"name": "user_networks:perceptron"}),
        "steps": training(steps=13),
        "batch_size": training(batch_size=32),
        "momentum": training(momentum=0.8),
        "nesterov": training(nesterov=False),
        "weight_decay": training(weight_decay=0.0),
        "schedule": training(schedule="constant"),
        "milestones": training(schedule="step", milestones=[0.5]),
        "other milestones": training(schedule="step", milestones=[0.6]),
        "decay": training(schedule="step", milestones=[0.5], decay=0.2),
        "crop": key(augmentation={"crop_padding": 1}),
        "flip": key(augmentation={"flip": True}),
        "cutout": key(augmentation={"cutout": 2}),
        "cutmix": key(augmentation={"cutmix": 0.5}),
    }
    assert [item for item in Counter(keys.values()).items() if item[1] > 1] == []
    assert len(memo.trainings) == len(keys)
    assert key() == keys["default"]


def test_a_changed_test_split_is_tested_anew(digits: Dataset) -> None:
    memo, test = Memory(), digits.test
    assert test is not None
    wrong = replace(digits, test=Split(test.images, (test.labels + 1) % 10))
    assert trained(CROSS_ENTROPY, digits, memo).test_accuracy > 0.5
    assert trained(CROSS_ENTROPY, wrong, memo).test_accuracy < 0.2


def test_a_training_that_diverges_is_recorded(search_digits: Dataset) -> None:
    memo, extreme = Memory(), changed(CROSS_ENTROPY, learning_rate=1e30)
    full = trained(extreme, search_digits, memo)
    assert (full.training.status, full.training.accuracy) == ("diverged", 0.0)
    assert trained(extreme, search_digits, memo) == full


def test_a_training_that_fails_twice_is_an_error(search_digits: Dataset, record: Record) -> None:
    memo = Memory()
    record.broken = True
    message = r"^a training in full of cross-entropy failed: disk on fire$"
    with pytest.raises(TaylorgloError, match=message):
        trained(CROSS_ENTROPY, search_digits, memo, model={"name": "user_networks:breakable"})
    assert not memo.trainings
