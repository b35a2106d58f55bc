"""The study of the search: its targets, its statistics, and a small one."""

import math
import sys
from pathlib import Path

import cmaes
import numpy as np
import pytest
from scipy.stats import binom

from taylorglo.data.seeds import derived_seed

sys.path.append(str(Path(__file__).parents[2] / "studies"))

from search import (
    FRESH,
    FRESH_SEEDS,
    do,
    learning_rate_adaptation,
    search_cells,
)
from search_cases import BASE, DEFAULT, FULL, METHODS, TASKS
from search_tables import (
    MARGIN,
    Reached,
    interval_of_median,
    reached,
    relative,
    resampled,
    targets_of,
)
from studies import Row, Study


def rows_of(task: str, method: str, accuracies: list[float], per_generation: int = 24) -> list[Row]:
    """Return the rows of a search with these true accuracies, the first before any training."""
    return [
        {
            "task": task,
            "method": method,
            "seed": 0,
            "fresh": 10,
            "generation": generation,
            "trainings": generation * per_generation,
            "wasted": 0,
            "accuracy": accuracy,
        }
        for generation, accuracy in enumerate(accuracies)
    ]


def counts(*trainings: float, last: int = 144) -> dict[str, list[Reached]]:
    """Return the searches of the task ``digits``."""
    return {"digits": [Reached(number, last) for number in trainings]}


class TestReached:
    def test_the_first_generation_at_the_target_counts(self) -> None:
        search = rows_of("digits", "dynamics", [0.1, 0.8, 0.9, 0.85, 0.95])
        assert reached(search, 0.9) == Reached(48, 96)
        assert reached(search, 0.96) == Reached(math.inf, 96)

    def test_what_nobody_trained_does_not_count(self) -> None:
        assert reached(rows_of("digits", "dynamics", [0.99, 0.5]), 0.9) == Reached(math.inf, 24)

    def test_a_search_without_a_loss_has_not_reached_anything(self) -> None:
        assert reached(rows_of("digits", "filtered", [math.nan] * 2), 0.0).trainings == math.inf


@pytest.mark.parametrize("number", range(1, 40))
def test_the_interval_of_the_median_is_the_shortest_of_95_percent(number: int) -> None:
    low, high = interval_of_median(list(np.random.default_rng(0).permutation(number)))
    assert low == number - 1 - high
    # The median is outside if at most ``low`` of the values are on one side of it.
    if number > 5:
        assert 2 * binom.cdf(low, number, 0.5) <= 0.05
        assert 2 * binom.cdf(low + 1, number, 0.5) > 0.05
    else:
        assert low == 0


class TestRelative:
    def test_it_is_the_geometric_mean_over_the_tasks(self) -> None:
        own = {**counts(24, 48, 72), "fashion": [Reached(100, 144)], "cnn": [Reached(1, 1)]}
        base = {**counts(96, 96), "fashion": [Reached(50, 360)]}
        ratio = relative(own, base)
        assert ratio is not None
        assert ratio.value == pytest.approx(math.sqrt((48 / 96) * (100 / 50)))
        assert ratio[1:] == ("", 2)

    @pytest.mark.parametrize(
        ("own", "base", "value", "sign"),
        [
            (counts(24, 24), counts(math.inf, math.inf, last=360), 24 / 360, "<="),
            (counts(math.inf, 24, math.inf), counts(72), 144 / 72, ">="),
        ],
    )
    def test_a_search_that_ended_before_the_target_gives_a_bound(
        self,
        own: dict[str, list[Reached]],
        base: dict[str, list[Reached]],
        value: float,
        sign: str,
    ) -> None:
        ratio = relative(own, base)
        assert ratio is not None
        assert ratio == (pytest.approx(value), sign, 1)

    def test_a_task_on_which_neither_reached_the_target_says_nothing(self) -> None:
        never = [Reached(math.inf, 144)]
        assert relative({"cnn": never}, {"cnn": never}) is None
        ratio = relative({**counts(24), "cnn": never}, {**counts(48), "cnn": never})
        assert ratio == (pytest.approx(0.5), "", 1)

    def test_the_interval_is_around_the_ratio(self) -> None:
        own, base = counts(*range(20, 40)), counts(*range(60, 100))
        ratio = relative(own, base)
        assert ratio is not None
        low, high = resampled(own, base)
        assert low < ratio.value < high
        assert resampled(counts(30, 30, 30), counts(60, 60)) == (0.5, 0.5)


def test_the_targets_are_those_of_the_task() -> None:
    searches = [
        *rows_of("digits", "dynamics", [math.nan, 0.9, 0.97]),
        *rows_of("digits-low", BASE, [0.1, 0.95, 0.2]),
    ]
    smoothing: list[Row] = [
        # The rate is chosen without the test split.
        {"task": "digits", "rate": 0.1, "validation": 0.95, "accuracy": 0.99, "deviation": 0.01},
        {"task": "digits", "rate": 0.3, "validation": 0.96, "accuracy": 0.98, "deviation": 0.02},
    ]
    targets = targets_of(searches, smoothing)
    assert targets["digits"] == (0.98, 0.02, 0.3, 0.97, "dynamics")
    assert targets["digits-low"] == (0.98, 0.02, 0.3, 0.95, BASE)
    assert targets["digits"].values == (0.98, pytest.approx(0.97 - MARGIN))


def test_the_full_size_has_the_cells_of_the_default_size() -> None:
    full = search_cells(FULL)
    assert all(cell in full for cell in search_cells(DEFAULT))
    assert len(full) == len(TASKS) * len(METHODS) * 10


def test_no_search_has_the_fresh_seeds() -> None:
    fresh = {derived_seed(FRESH_SEEDS, index) for index in range(FRESH)}
    generations = range(1, 1 + max(method.generations for method in METHODS.values()))
    searched = {
        derived_seed(seed, generation, attempt)
        for seed in range(10)
        for generation in generations
        for attempt in range(2)
    }
    assert len(fresh) == FRESH
    assert not fresh & searched


def test_the_learning_rate_is_adapted_in_the_block_only() -> None:
    def told() -> np.ndarray:
        optimizer = cmaes.CMA(mean=np.zeros(2), sigma=1.0, population_size=4, seed=0)
        points = [optimizer.ask() for _ in range(4)]
        optimizer.tell([(point, float(number)) for number, point in enumerate(points)])
        mean: np.ndarray = optimizer.mean
        return mean

    plain = told()
    with learning_rate_adaptation(False):
        assert (told() == plain).all()
    with learning_rate_adaptation(True):
        # Smaller steps, because nothing says yet that the first one was right.
        assert np.linalg.norm(told()) < np.linalg.norm(plain)
    assert (told() == plain).all()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_small_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    size = {"digits": (tuple(METHODS), 1), "digits-high": ((BASE, "dynamics"), 1)}
    do(Study("search", 1, folder), size, steps=20, generations=2, fresh=2)
    rows = Study("search", 1, folder).rows(
        search_cells(size, steps=20, generations=2, fresh=2), lambda cell: []
    )
    assert [row["generation"] for row in rows] == [0, 1, 2] * (len(METHODS) + 2)
    for row, former in zip(rows[1:], rows, strict=False):
        if int(row["generation"]) > 0:
            method = METHODS[str(row["method"])]
            most = int(method.search.get("popsize", 12)) * method.attempts
            assert 0 < int(row["trainings"]) - int(former["trainings"]) <= most
            assert 0 <= int(row["wasted"]) <= int(row["trainings"])
    known = {(r["task"], r["method"], r["generation"]): r for r in rows}
    same = [known["digits", method, 1] for method in ("dynamics", "adapted")]
    # Methods that differ after the first generation begin with the same candidates.
    assert same[0]["fitness"] == same[1]["fitness"]
    assert known["digits", BASE, 0]["accuracy"] < 0.2
    output = capsys.readouterr().out
    assert output.count("digits") >= len(METHODS)
    for name in ("targets.md", "trainings.md", "methods.md", "search.svg"):
        assert (folder / name).stat().st_size > 0
