"""A search with two objectives: CMA-ES is told ranks by Pareto fronts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
import pytest
from searches import begin, distance, evaluation, facts, open_search, point, run_generation

from taylorglo.pareto import ranks
from taylorglo.results import Candidate, Evaluation
from taylorglo.search.study import Search

BOTH = {"objectives": "accuracy-and-robustness"}
Values = Callable[[Sequence[float]], tuple[float, float]]

# Where each objective is best, in the reduced coordinates.
ACCURATE = np.array([3.0, -4.0, -1.0, 0.0])
ROBUST = np.array([5.0, -4.0, -1.0, 1.0])


def objectives(theta: Sequence[float]) -> tuple[float, float]:
    """Return two objectives in [0, 1], on a scale of their own each."""
    away = [float(np.sum((point(theta) - best) ** 2)) for best in (ACCURATE, ROBUST)]
    return 1 / (1 + away[0]), 0.3 / (1 + away[1])


def judged(values: tuple[float, float], **others: Any) -> Evaluation:
    """Return an evaluation of two attempts with these means; the fitness is that of weight 0.5."""
    accuracy, robust = values
    return evaluation(
        (accuracy + robust) / 2,
        accuracies=[1.25 * accuracy, 0.75 * accuracy],
        robust_accuracies=[0.5 * robust, 1.5 * robust],
        **others,
    )


def run(search: Search, generation: int, values: Values = objectives) -> list[Candidate]:
    """Propose a generation, and tell every result that is missing."""
    search.propose(generation)
    for candidate in search.screen(generation):
        if not candidate.finished:
            search.tell(candidate.trial, judged(values(candidate.theta)))
    return search.candidates(generation)


def test_cma_es_is_told_the_ranks(tmp_path: Path) -> None:
    popsize, seed = 6, 5
    mean = [4.0, -4.0, -1.0, 0.0]
    optimizer = cmaes.CMA(mean=np.array(mean), sigma=0.7, population_size=popsize)
    for generation in range(1, 4):
        # A new object each time: nothing is remembered but the database.
        search = open_search(tmp_path / "db", seed=seed, popsize=popsize, sigma=0.7, **BOTH)
        first = (generation - 1) * popsize
        expected = []
        for trial in range(first, first + popsize):
            optimizer.reseed_rng(np.random.RandomState(seed).randint(1, 2**16) + trial)
            expected.append(optimizer.ask())
        drawn = run(search, generation)
        points = np.array([point(candidate.theta) for candidate in drawn])
        np.testing.assert_allclose(points, expected, rtol=1e-9, atol=1e-9)
        values = [objectives(candidate.theta) for candidate in drawn]
        worst = min(value for value, _ in values), min(value for _, value in values)
        optimizer.tell(list(zip(expected, ranks(values, worst), strict=True)))


def test_the_search_goes_to_the_front_of_both_optima(tmp_path: Path) -> None:
    search = open_search(tmp_path / "db", popsize=6, **BOTH)
    candidates = [candidate for number in range(1, 11) for candidate in run(search, number)]
    # The front is the line between the optima, and both ends of it are known.
    line = ROBUST - ACCURATE

    def place(candidate: Candidate) -> tuple[float, float]:
        along = float((point(candidate.theta) - ACCURATE) @ line / (line @ line))
        off = point(candidate.theta) - ACCURATE - along * line
        return along, float(np.linalg.norm(off))

    first = np.array([place(candidate) for candidate in candidates[:6]])
    last = np.array([place(candidate) for candidate in candidates[-12:]])
    assert np.median(last[:, 1]) < np.median(first[:, 1]) / 3
    assert -0.5 < last[:, 0].min() < last[:, 0].max() < 1.5


def test_another_process_goes_on_with_the_same_candidates(tmp_path: Path) -> None:
    once = open_search(tmp_path / "once", popsize=5, **BOTH)
    undisturbed = [facts(run(once, generation)) for generation in (1, 2)]
    for generation in (1, 2):
        interrupted = open_search(tmp_path / "killed", popsize=5, **BOTH)
        interrupted.propose(generation)
        for candidate in interrupted.screen(generation)[:2]:
            interrupted.tell(candidate.trial, judged(objectives(candidate.theta)))
        resumed = open_search(tmp_path / "killed", popsize=5, **BOTH)
        assert facts(run(resumed, generation)) == undisturbed[generation - 1]


def thetas_after(path: Path, results: Sequence[Evaluation], **settings: Any) -> list[list[float]]:
    """Return the candidates of a second generation that follow on results of the first one."""
    search = open_search(path, popsize=len(results), **settings)
    search.propose(1)
    for candidate, result in zip(search.screen(1), results, strict=True):
        search.tell(candidate.trial, result)
    return [candidate.theta for candidate in search.propose(2)]


def test_one_objective_alone_decides_if_the_other_is_even(tmp_path: Path) -> None:
    scores = [0.4, 0.9, 0.6, 0.8, 0.2, 0.7]
    by_fitness = thetas_after(tmp_path / "one", [evaluation(score) for score in scores])
    even = [judged((score, 0.5)) for score in scores]
    assert thetas_after(tmp_path / "accuracy", even, **BOTH) == by_fitness
    even = [judged((0.5, score)) for score in scores]
    assert thetas_after(tmp_path / "robustness", even, **BOTH) == by_fitness
    assert thetas_after(tmp_path / "two", even[::-1], **BOTH) != by_fitness


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_candidate_without_a_network_is_the_last(tmp_path: Path, status: str) -> None:
    values = [(0.9, 0.2), (0.8, 0.4), (0.6, 0.5), (0.85, 0.3)]
    bad = evaluation(0.0, status=status, reason="x")
    if status == "diverged":
        bad = judged((0.0, 0.0), status=status, reason="x")
    found = thetas_after(tmp_path / "bad", [*map(judged, values), bad], **BOTH)
    # What counts is the order: the same as that of a single fitness. The middle of the front covers
    # 0.2 x 0.1 and 0.05 x 0.1 beyond its neighbours, and its ends cover nothing.
    order = ranks(values, (0.6, 0.2))
    assert order == [2, 0, 3, 1]
    as_fitness = [evaluation(1 - rank / 10) for rank in [*order, 4]]
    assert found == thetas_after(tmp_path / "order", as_fitness)


def test_a_rejected_candidate_is_the_last_if_it_counts(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "coordinates": "theta",
        "popsize": 8,
        "filters": ["learnable"],
        "on_reject": "penalize",
    }
    both = open_search(tmp_path / "both", seed=1, **settings, **BOTH)
    one = open_search(tmp_path / "one", seed=1, **settings)
    drawn = run(both, 1, lambda theta: (1 / (1 + theta[2] ** 2), 0.5))
    assert 0 < sum(candidate.rejected for candidate in drawn) < 8
    run_generation(one, 1, lambda theta: 1 / (1 + theta[2] ** 2))
    assert [c.theta for c in both.propose(2)] == [c.theta for c in one.propose(2)]


def test_generations_of_the_two_starts_are_ranked_together(tmp_path: Path) -> None:
    """CMA-ES begins from the start whose candidates dominate, not from the one with more ranks."""

    def third_generation(name: str, better: int) -> np.ndarray:
        search = open_search(
            tmp_path / name, popsize=6, family="taylor-log", coordinates="dynamics", **BOTH
        )
        for generation in (1, 2):
            raised = 0.3 if generation == better else 0.0
            numbers = {
                tuple(candidate.theta): index
                for index, candidate in enumerate(search.propose(generation))
            }

            def values(
                theta: Sequence[float],
                numbers: dict[tuple[float, ...], int] = numbers,
                raised: float = raised,
            ) -> tuple[float, float]:
                number = numbers[tuple(theta)]
                return 0.3 + raised + number / 100, 0.3 + raised - number / 100

            run(search, generation, values)
        return np.array([candidate.theta for candidate in search.propose(3)])

    first, second = third_generation("a", 1), third_generation("b", 2)
    # The weight of the logarithm is the last number of a theta; the second start has more of it.
    assert not np.allclose(first, second)
    shares = [np.median(np.abs(thetas[:, -1])) for thetas in (first, second)]
    assert shares[0] != pytest.approx(shares[1], rel=0.05)


def test_a_warm_start_is_by_rank_too(tmp_path: Path) -> None:
    def begun(name: str, told: Callable[[Sequence[float]], Evaluation]) -> list[list[float]]:
        search = begin(tmp_path / name, **(BOTH if name != "one" else {}))
        for generation in (1, 2):
            search.propose(generation)
            for candidate in search.screen(generation):
                search.tell(candidate.trial, told(candidate.theta))
        search.finish()
        again = begin(tmp_path / name, **(BOTH if name != "one" else {}))
        assert again.source == "s"
        return [candidate.theta for candidate in again.propose(1)]

    def score(theta: Sequence[float]) -> float:
        return 1 / (1 + distance(theta))

    one = begun("one", lambda theta: evaluation(score(theta)))
    assert begun("both", lambda theta: judged((score(theta), 0.5))) == one
    # A search by one fitness without attacks is a source, too.
    assert begun("unknown", lambda theta: evaluation(score(theta), accuracies=[0.3])) == one
