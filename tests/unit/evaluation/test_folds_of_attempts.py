"""The folds of candidates, of the baselines' tuning and of finalists, and their keys."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from comparisons import CROSS_ENTROPY, Memory, settings_of
from trainings import BACKWARDS, GOOD, OTHER, MemoryCache, all_evaluated, sweep, untimed

from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.folds import Fold, fold_of, fold_of_attempt
from taylorglo.data.seeds import derived_seed
from taylorglo.evaluation.comparison import compare, train_finalists, tune_baselines
from taylorglo.evaluation.fitness import Assignment, evaluate, short_training
from taylorglo.results import Training
from taylorglo.settings import SweepSettings
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, TrainedNetwork, build_network, train_network


class Listing(Engine):
    """An engine that trains nothing, and keeps the recipes."""

    def __init__(self, settings: SweepSettings, dataset: Dataset) -> None:
        super().__init__(settings, lambda: dataset)
        self.recipes: list[Recipe] = []

    def run(self, recipes: Iterable[tuple[Any, Recipe]]) -> Iterator[tuple[Any, TrainedNetwork]]:
        training = Training(
            status="ok", accuracy=0.5, curve=[], started=0.0, ended=1.0, seconds=1.0
        )
        for key, recipe in recipes:
            self.recipes.append(recipe)
            yield key, TrainedNetwork(training)

    def attempts(self) -> dict[int, list[Fold | None]]:
        """Return the folds of all recipes by their seeds."""
        folds: dict[int, list[Fold | None]] = {}
        for recipe in self.recipes:
            folds.setdefault(recipe.seed, []).append(recipe.fold)
        return folds


def listed(dataset: Dataset, generation: int, attempts: int, **evaluation: Any) -> Listing:
    """Return the recipes of three candidates of a generation."""
    engine = Listing(sweep(seed=4, **evaluation), dataset)
    assignments = [
        Assignment(trial, theta, attempts) for trial, theta in enumerate((GOOD, OTHER, BACKWARDS))
    ]
    assert len(list(evaluate(assignments, generation, engine, MemoryCache()))) == 3
    return engine


def test_all_candidates_of_a_generation_have_the_same_folds(search_digits: Dataset) -> None:
    engine = listed(search_digits, 2, attempts=5, folds=3)
    seeds = [derived_seed(4, 2, attempt) for attempt in range(5)]
    expected = [fold_of_attempt(engine.settings, search_digits, 2, n) for n in range(5)]
    assert engine.attempts() == {
        seed: [fold] * 3 for seed, fold in zip(seeds, expected, strict=True)
    }
    assert len(set(expected)) == 5
    other = listed(search_digits, 3, attempts=5, folds=3)
    partitions = {recipe.fold.seed for recipe in engine.recipes if recipe.fold}
    others = {recipe.fold.seed for recipe in other.recipes if recipe.fold}
    assert len(partitions) == len(others) == 2
    assert not partitions & others


def test_without_folds_the_recipes_are_as_before(search_digits: Dataset) -> None:
    own = replace(
        search_digits,
        provenance={**search_digits.provenance, "validation_split": "of the source"},
    )
    for engine in (listed(search_digits, 2, 2, folds=0), listed(own, 2, 2, folds=3)):
        assert {recipe.fold for recipe in engine.recipes} == {None}


def test_tuning_and_finalists_share_folds_and_the_comparison_has_none(
    digits: Dataset, search_digits: Dataset
) -> None:
    settings = settings_of(seed=4, evaluation={"folds": 2}, baselines={"attempts": 3})
    tuning, finals, compared = (
        Listing(settings, dataset) for dataset in (search_digits, search_digits, digits)
    )
    tune_baselines(tuning, Memory())
    train_finalists([GOOD, OTHER], finals, Memory())
    compare(CROSS_ENTROPY, compared, Memory())
    folds = [fold_of_attempt(settings, search_digits, 0, attempt) for attempt in range(3)]
    seeds = [derived_seed(4, 0, attempt) for attempt in range(3)]
    expected = dict(zip(seeds, folds, strict=True))
    assert {seed: set(own) for seed, own in tuning.attempts().items()} == {
        seed: {fold} for seed, fold in expected.items()
    }
    assert finals.attempts() == {seed: [fold] * 2 for seed, fold in expected.items()}
    assert [fold.index for fold in folds if fold] == [0, 1, 0]
    assert {recipe.fold for recipe in compared.recipes} == {None}
    # The candidates are on other partitions.
    candidates = listed(search_digits, 1, 3, folds=2).recipes
    assert not {one.fold.seed for one in candidates if one.fold} & {f.seed for f in folds if f}


class Forbidden(Split):
    """A split that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} of the test split was read")

    def __len__(self) -> int:
        raise AssertionError("the test split was counted")


@pytest.mark.parametrize("engine", ["sequential", "fused"])
def test_the_fitness_is_the_mean_over_the_folds(search_digits: Dataset, engine: str) -> None:
    """There are more attempts than folds, and the test split stays out of it."""
    settings = sweep(folds=2, attempts=3, training={"engine": engine}, adversarial_weight=0.25)
    sealed = replace(search_digits, test=Forbidden.__new__(Forbidden))
    (result,) = all_evaluated([GOOD], sealed, settings)
    by_hand = []
    for attempt in range(3):
        fold = fold_of_attempt(settings, search_digits, 1, attempt)
        with Engine(settings, lambda: search_digits) as own:
            recipe = short_training(GOOD, derived_seed(0, 1, attempt), own)
        network = build_network(settings, search_digits, recipe.seed)
        view = fold_of(search_digits, fold)
        by_hand.append(train_network(network, recipe, view, settings).training)
    assert result.accuracies == [training.accuracy for training in by_hand]
    assert result.robust_accuracies == pytest.approx(
        [training.robust_accuracy for training in by_hand], abs=0.01
    )
    assert len(set(result.accuracies)) > 1
    fitnesses = [
        0.75 * accuracy + 0.25 * robust
        for accuracy, robust in zip(result.accuracies, result.robust_accuracies, strict=True)
    ]
    assert result.fitness == pytest.approx(sum(fitnesses) / 3)


def test_more_attempts_begin_with_the_folds_that_are_recorded(search_digits: Dataset) -> None:
    cache, settings = MemoryCache(), sweep(attempts=2, folds=2)
    (two,) = all_evaluated([GOOD], search_digits, settings, cache=cache)
    (four,) = all_evaluated([GOOD], search_digits, settings, cache=cache, attempts=4)
    assert four.accuracies[:2] == two.accuracies
    assert len(cache.trainings) == 4
    (again,) = all_evaluated([GOOD], search_digits, settings, attempts=4)
    assert untimed(again) == untimed(four)


def short_keys(dataset: Dataset, generation: int = 1, **evaluation: Any) -> list[str]:
    """Return the keys of two attempts of a candidate."""
    cache = MemoryCache()
    engine = Listing(sweep(**evaluation), dataset)
    list(evaluate([Assignment(0, GOOD, 2)], generation, engine, cache))
    return list(cache.trainings)


def full_keys(dataset: Dataset, **evaluation: Any) -> list[str]:
    """Return the keys of the tuning."""
    settings = settings_of(evaluation=evaluation)
    return [full.key for full in tune_baselines(Listing(settings, dataset), Memory())]


def test_fold_and_score_are_in_the_keys(search_digits: Dataset) -> None:
    changes: list[dict[str, Any]] = [
        {"folds": 0},
        {"folds": 2},
        {"folds": 3},
        {"folds": 0, "score": "balanced-accuracy"},
        {"folds": 2, "score": "balanced-accuracy"},
    ]
    short = [key for change in changes for key in short_keys(search_digits, **change)]
    assert len(set(short)) == 2 * len(changes)
    full = [key for change in changes for key in full_keys(search_digits, **change)]
    assert len(set(full)) == 12 * len(changes)
    # These are the settings that there were before.
    assert short_keys(search_digits, folds=0, score="accuracy") == short[:2]
    assert full_keys(search_digits, folds=0, score="accuracy") == full[:12]


def test_a_validation_split_of_the_source_leaves_the_keys_as_they_are(
    search_digits: Dataset,
) -> None:
    provenance = {**search_digits.provenance, "validation_split": "of the source"}
    own = replace(search_digits, provenance=provenance)
    assert short_keys(own, folds=5) == short_keys(search_digits, folds=0)
    assert full_keys(own, folds=5) == full_keys(search_digits, folds=0)
