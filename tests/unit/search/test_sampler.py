"""The sampler: the candidates of an undisturbed CMA-ES, whichever process asks for them."""

import pickle
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
import pytest
from programs import run_program
from searches import (
    distance,
    evaluation,
    facts,
    fitness,
    in_memory,
    open_search,
    point,
    run_generation,
)

from taylorglo.results import Candidate, GenerationSummary

Order = Callable[[list[Candidate]], list[Candidate]]


def seeded(optimizer: cmaes.CMA, seed: int, trial: int) -> cmaes.CMA:
    """Seed CMA-ES as Optuna's sampler does: its first number, and the trial's number on top."""
    optimizer.reseed_rng(np.random.RandomState(seed).randint(1, 2**16) + trial)
    return optimizer


@pytest.mark.parametrize(
    ("coordinates", "order", "mean"),
    [("reduced", 3, [4.0, -4.0, -1.0, 0.0]), ("theta", 2, [0.5, -0.5, 1.0, 0.0, 2.0])],
)
def test_candidates_are_those_of_an_uninterrupted_cma_es(
    tmp_path: Path, coordinates: str, order: int, mean: list[float]
) -> None:
    popsize, seed = 5, 11
    optimizer = cmaes.CMA(mean=np.array(mean), sigma=0.7, population_size=popsize)

    def value(x: np.ndarray) -> float:
        return 1 / (1 + float(np.sum((x - 1) ** 2)))

    for generation in range(1, 5):
        # A new object each time: nothing is remembered but the database.
        search = open_search(
            tmp_path / "db",
            seed=seed,
            coordinates=coordinates,
            order=order,
            mean=mean,
            sigma=0.7,
            popsize=popsize,
        )
        trials = range((generation - 1) * popsize, generation * popsize)
        expected = [seeded(optimizer, seed, trial).ask() for trial in trials]
        proposed = search.propose(generation)
        points = np.array(
            [point(c.theta) if coordinates == "reduced" else c.theta for c in proposed]
        )
        np.testing.assert_allclose(points, expected, rtol=1e-9, atol=1e-9)
        optimizer.tell([(x, -value(x)) for x in expected])
        for candidate, x in zip(search.candidates(generation), expected, strict=True):
            search.tell(candidate.trial, evaluation(value(x)))


# That the candidates are those of CMA-ES says as much.
@pytest.mark.long
def test_the_search_converges() -> None:
    search = in_memory(seed=2, popsize=6, filters=["none"])
    best = [
        max(c.fitness or 0.0 for c in run_generation(search, g, lambda theta: -distance(theta)))
        for g in range(1, 16)
    ]
    assert best[0] < -1
    assert best[-1] > best[0] / 50


def test_candidates_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def two_generations(name: str, seed: int) -> list[Candidate]:
        search = open_search(tmp_path / name, seed=seed, filters=["learnable"])
        return facts(run_generation(search, 1) + run_generation(search, 2))

    def thetas(candidates: list[Candidate]) -> set[tuple[float, ...]]:
        return {tuple(candidate.theta) for candidate in candidates}

    first = two_generations("a", 3)
    assert two_generations("b", 3) == first
    assert not thetas(first) & thetas(two_generations("c", 4))


def test_the_order_of_telling_does_not_matter(tmp_path: Path) -> None:
    def rounded(theta: Sequence[float]) -> float:
        # So that some candidates have the same fitness.
        return round(fitness(theta), 1)

    def third_generation(name: str, order: Order) -> list[list[float]]:
        search = open_search(tmp_path / name, popsize=6)
        for generation in (1, 2):
            run_generation(search, generation, rounded, order)
        return [c.theta for c in search.propose(3)]

    def shuffled(candidates: list[Candidate]) -> list[Candidate]:
        return [candidates[i] for i in np.random.default_rng(0).permutation(len(candidates))]

    expected = third_generation("a", list)
    assert third_generation("b", lambda candidates: candidates[::-1]) == expected
    assert third_generation("c", shuffled) == expected


def test_another_process_gives_the_candidates_of_one_process(tmp_path: Path) -> None:
    """Optuna does not print or warn meanwhile."""
    path = tmp_path / "processes"
    settings: dict[str, Any] = {"popsize": 2, "filters": ["learnable", "stable"]}
    run_generation(open_search(path, **settings), 1)
    opened = f"open_search(Path({str(path)!r}), **{settings!r})"
    assert run_program(f"run_generation({opened}, 2)") == ""
    search = open_search(tmp_path / "one", **settings)
    expected = run_generation(search, 1) + run_generation(search, 2)
    assert facts(open_search(path).candidates()) == facts(expected)


def test_rejected_candidates_do_not_move_the_distribution(tmp_path: Path) -> None:
    """With resample, the accepted ones alone make the next generation's distribution."""
    mean = [1.0, 0.0, 0.0, 0.0]
    search = open_search(tmp_path / "db", popsize=5, mean=mean, filters=["learnable"], seed=5)
    drawn = run_generation(search, 1)
    accepted = [c for c in drawn if not c.rejected]
    assert len(accepted) == 5 < len(drawn)
    optimizer = cmaes.CMA(mean=np.array(mean), sigma=1.2, population_size=5)
    optimizer.tell([(point(c.theta), -fitness(c.theta)) for c in accepted])
    expected = seeded(optimizer, 5, len(drawn)).ask()
    np.testing.assert_allclose(point(search.propose(2)[0].theta), expected, rtol=1e-9, atol=1e-9)


def test_penalized_candidates_count_with_the_worst_fitness(tmp_path: Path) -> None:
    search = open_search(
        tmp_path / "db",
        coordinates="theta",
        popsize=8,
        filters=["learnable"],
        on_reject="penalize",
        seed=1,
    )
    drawn = run_generation(search, 1, lambda theta: 0.75)
    rejected = [c for c in drawn if c.rejected]
    assert len(drawn) == 8
    assert 0 < len(rejected) < 8
    assert [(c.fitness, c.result) for c in rejected] == [(0.0, None)] * len(rejected)
    assert {c.fitness for c in drawn if not c.rejected} == {0.75}
    summary = GenerationSummary.of(drawn)
    assert summary.trained == 8 - len(rejected)
    assert summary.median == 0.75
    assert not any(c.rejected for c in search.best(8))
    optimizer = cmaes.CMA(mean=np.zeros(8), sigma=1.2, population_size=8)
    optimizer.tell([(np.array(c.theta), -(c.fitness or 0.0)) for c in drawn])
    expected = seeded(optimizer, 1, 8).ask()
    np.testing.assert_allclose(search.propose(2)[0].theta, expected, rtol=1e-9, atol=1e-9)


class Poison:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_the_database_holds_no_pickle_and_none_is_loaded(tmp_path: Path) -> None:
    poisoned = tmp_path / "poisoned"
    search = open_search(tmp_path / "db")
    for generation in (1, 2):
        run_generation(search, generation)
    content = dump_of(tmp_path / "db")
    # The dump has the trials in it.
    assert "'chy'" in content
    assert "optimizer" not in content
    poison(tmp_path / "db", pickle.dumps(Poison(poisoned)))
    proposed = open_search(tmp_path / "db").propose(3)
    assert not poisoned.exists()
    clean = open_search(tmp_path / "clean")
    for generation in (1, 2):
        run_generation(clean, generation)
    assert [c.theta for c in proposed] == [c.theta for c in clean.propose(3)]


def dump_of(path: Path) -> str:
    """Return the content of a database as SQL."""
    with sqlite3.connect(path) as connection:
        return "\n".join(connection.iterdump())


def poison(path: Path, payload: bytes) -> None:
    """Write a pickle to each trial, where Optuna's own sampler keeps its state."""
    statement = (
        "INSERT INTO trial_system_attributes (trial_id, key, value_json) "
        "SELECT trial_id, 'cma:optimizer:0', ? FROM trials"
    )
    with sqlite3.connect(path) as connection:
        connection.execute(statement, (f'"{payload.hex()}"',))
    connection.close()
