"""Trainings on folds: alone, in a stack, in several processes, and the memory that they take."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_runs import assert_same, results
from test_stacked import LOSSES, assert_alike, recipe, trained_alone
from trainings import BACKWARDS, GOOD, OTHER, score_and_entropy, sweep, untimed_network

from taylorglo.data.dataset import Dataset
from taylorglo.data.folds import MOST_VIEWS, Fold, fold_of
from taylorglo.loss.functions import TaylorLoss
from taylorglo.networks.factory import skeleton
from taylorglo.settings import SweepSettings
from taylorglo.training import engine as engines
from taylorglo.training import memory
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, TrainedNetwork, build_network, train_network
from taylorglo.training.plan import plan
from taylorglo.training.stacked import train_stack
from taylorglo.variables import CPUS


def settings_of(model: str = "mlp", batch_size: int = 16, **training: Any) -> SweepSettings:
    values = {"batch_size": batch_size, "precision": "float32", **training}
    return sweep(model=model, training=values, folds=5)


def on_folds(number: int = 12, folds: int = 3, **options: Any) -> list[Recipe]:
    """Return recipes with losses of their own; their attempts have seeds and folds of their own."""
    return [
        recipe(
            TaylorLoss([x * (1 + 0.01 * (i // folds)) for x in GOOD]),
            seed=i % folds,
            fold=Fold(7, 5, i % folds),
            **options,
        )
        for i in range(number)
    ]


def test_a_fold_is_validated_on_and_the_others_are_trained_on(digits: Dataset) -> None:
    fold = Fold(3, 5, 2)
    view = fold_of(digits, fold)
    network, other = (build_network(settings_of(), digits, 3) for _ in range(2))
    result = train_network(network, recipe(LOSSES[0], fold=fold), digits, settings_of())
    # The same on a data set that has the fold as its validation split.
    by_hand = train_network(other, recipe(LOSSES[0]), view, settings_of())
    assert untimed_network(result) == untimed_network(by_hand)
    assert result.training.accuracy == score_and_entropy(network, view.validation, 16)[0]
    assert digits.test is not None
    assert result.training.test_accuracy == score_and_entropy(network, digits.test, 16)[0]
    plain = trained_alone([recipe(LOSSES[0])], digits, settings_of())
    assert plain[0].weights != result.weights


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_stack_on_folds_equals_single_trainings(digits: Dataset, model: str) -> None:
    recipes = [
        recipe(loss, seed=index, fold=Fold(7, 5, index), epsilon=0.03)
        for loss in LOSSES[:3]
        for index in range(3)
    ]
    found = train_stack(recipes, digits, settings_of(model))
    assert_alike(found, trained_alone(recipes, digits, settings_of(model)))


def test_folds_and_the_validation_split_in_one_program(digits: Dataset) -> None:
    recipes = [recipe(LOSSES[0]), *on_folds(4, 2), replace(recipe(LOSSES[1]), fold=Fold(9, 2, 1))]
    found = train_stack(recipes, digits, settings_of())
    assert_alike(found, trained_alone(recipes, digits, settings_of()))


def test_the_place_in_a_stack_of_folds_does_not_matter(digits: Dataset) -> None:
    recipes = on_folds(12, 3, steps=40)
    whole = list(map(untimed_network, train_stack(recipes, digits, settings_of())))
    for size in (1, 2, 5):
        parts = [
            untimed_network(one)
            for start in range(0, 12, size)
            for one in train_stack(recipes[start : start + size], digits, settings_of())
        ]
        assert parts == whole
    backwards = train_stack(recipes[::-1], digits, settings_of())
    assert list(map(untimed_network, backwards))[::-1] == whole
    assert len({one.training.accuracy for one in whole}) > 3


def test_networks_that_leave_a_stack_take_their_folds_with_them(digits: Dataset) -> None:
    """At the end, one fold has one network left, another has two, and the third has none."""
    contenders = ((BACKWARDS, 0), (GOOD, 1), (BACKWARDS, 2), (OTHER, 1), (GOOD, 0), (BACKWARDS, 1))
    recipes = [
        recipe(TaylorLoss(theta), index, fold=Fold(7, 5, index), give_up=(10, 0.16), steps=20)
        for theta, index in contenders
    ]
    found = train_stack(recipes, digits, settings_of())
    expected = ["diverged", "ok", "diverged", "ok", "ok", "diverged"]
    assert [one.training.status for one in found] == expected
    assert_alike(found, trained_alone(recipes, digits, settings_of()))
    alone = train_stack([recipes[4]], digits, settings_of())
    assert untimed_network(alone[0]) == untimed_network(found[4])


def test_every_engine_trains_on_the_folds(saved_digits: Path) -> None:
    recipes = dict(enumerate(on_folds(8, 2)))
    expected = results(settings_of(engine="sequential"), saved_digits, recipes)
    parallel = settings_of(engine="parallel", workers=2)
    assert_same(results(parallel, saved_digits, recipes), expected)
    one = results(settings_of(engine="fused", workers=1), saved_digits, recipes)
    assert_same(results(settings_of(engine="fused", workers=2), saved_digits, recipes), one)
    assert_alike(list(one.values()), list(expected.values()))


def test_a_program_trains_on_few_folds(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fold is a copy of the images."""
    seen: list[set[Fold | None]] = []

    def noted(recipes: Sequence[Recipe], *rest: Any) -> list[TrainedNetwork]:
        seen.append({one.fold for one in recipes})
        return train_stack(recipes, *rest)

    monkeypatch.setattr(engines, "train_stack", noted)
    recipes = [
        recipe(TaylorLoss(theta), index, steps=2, fold=Fold(7, 12, index))
        for theta in (GOOD, OTHER)
        for index in range(12)
    ]
    with Engine(settings_of(engine="fused"), lambda: digits) as engine:
        found = dict(engine.run(enumerate(recipes)))
    assert len(found) == 24
    assert sorted(map(len, seen)) == [12 - MOST_VIEWS, MOST_VIEWS]
    assert_alike(
        [found[number] for number in range(24)], trained_alone(recipes, digits, settings_of())
    )


def test_a_fold_is_made_once_for_all_trainings_on_it(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Fold | None] = []

    def noted(dataset: Dataset, fold: Fold | None) -> Dataset:
        made.append(fold)
        return fold_of(dataset, fold)

    monkeypatch.setattr(engines, "fold_of", noted)
    recipes = on_folds(6, 2, steps=1)
    for kind in ("sequential", "fused"):
        with Engine(settings_of(engine=kind), lambda: digits) as engine:
            assert len(dict(engine.run(enumerate(recipes)))) == 6
        assert made == [Fold(7, 5, 0), Fold(7, 5, 1)]
        made.clear()


@pytest.mark.parametrize(
    ("processes", "trainings", "workers", "chunk"), [(0, 2.5, 1, 2), (3, 5.5, 3, 5)]
)
def test_the_plan_counts_the_copies_of_the_images(
    digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    trainings: float,
    workers: int,
    chunk: int,
) -> None:
    """Two attempts are on two folds; while one is made, there are two copies more."""
    monkeypatch.setenv(CPUS, "8")
    tensors = [(split.images, split.labels) for split in (digits.train, digits.validation)]
    copy = sum(images.nbytes + labels.nbytes for images, labels in tensors)
    training = memory.footprint(skeleton("mlp", digits.image_shape, 10), digits.image_shape, 16)
    size = max(1, processes) * (trainings * training.training + 4 * copy)
    size += processes * (memory.PROCESS + copy)
    monkeypatch.setattr(memory, "available_memory", lambda device: int(size / 0.9))
    settings = settings_of(engine="fused", workers=0)
    baselines = settings.baselines.model_copy(update={"attempts": 2})
    chosen = plan(settings.model_copy(update={"baselines": baselines}), digits)
    assert (chosen.workers, chosen.chunk) == (workers, chunk)
