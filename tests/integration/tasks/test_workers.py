"""Workers that share a search through the study: same results as one, and nothing trained twice."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from crowd import Line, Plan, run_crowd, trained_again
from servers import new_database
from small_sweeps import NO_DATA, Work

from taylorglo.tasks import search
from taylorglo.tasks.context import Sweep
from taylorglo.variables import STORE_URI, STUDY_URL

GENERATIONS = 2
POPSIZE = 8
# Each test is run on both databases; one of them is enough for the suite that runs each time.
ON_SQLITE = pytest.mark.parametrize(
    "run", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=True
)
ON_POSTGRESQL = pytest.mark.parametrize(
    "run", ["postgresql", pytest.param("sqlite", marks=pytest.mark.long)], indirect=True
)
Table = list[tuple[int, int, list[float], float | None]]
Run = Callable[..., tuple[list[Line], Table]]


def table(sweep: Sweep) -> Table:
    """Return every candidate with its fitness."""
    return [(c.generation, c.trial, c.theta, c.fitness) for c in sweep.search.candidates()]


def opened(work: Work, workers: int = 4, max_attempts: int = 0) -> Sweep:
    sweep = work.open(
        GENERATIONS,
        "crowd",
        search={"popsize": POPSIZE},
        evaluation={"attempts": 2, "max_attempts": max_attempts},
    )
    shared = sweep.model_copy(update={"shards": workers})
    shared.write(work.folder / "sweep")
    return shared


@pytest.fixture
def run(
    request: pytest.FixtureRequest, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Return a function that runs the workers on a fresh study and a fresh store."""
    count = 0

    def run_once(plan: Plan, max_attempts: int = 0) -> tuple[list[Line], Table]:
        nonlocal count
        count += 1
        url = f"sqlite:///{tmp_path / f'study-{count}.db'}"
        if request.param == "postgresql":
            url = new_database(request.getfixturevalue("postgres"))
        monkeypatch.setenv(STUDY_URL, url)
        monkeypatch.setenv(STORE_URI, str(tmp_path / f"store-{count}"))
        sweep = opened(work, plan.workers, max_attempts)
        log = tmp_path / f"log-{count}"
        return run_crowd(work.folder / "sweep", work.search_data, log, plan), table(sweep)

    return run_once


@pytest.fixture
def alone(work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], Table]:
    """Return a function that returns the table of a search by one worker."""

    def search_alone(max_attempts: int = 0) -> Table:
        with monkeypatch.context() as patch:
            patch.setenv(STUDY_URL, f"sqlite:///{tmp_path / 'alone.db'}")
            patch.setenv(STORE_URI, str(tmp_path / "store-alone"))
            sweep = opened(work, max_attempts=max_attempts)
            assert search.search(sweep, work.search_data) == GENERATIONS * POPSIZE
            return table(sweep)

    return search_alone


@pytest.mark.long
@ON_POSTGRESQL
def test_workers_find_what_one_finds_and_train_nothing_twice(
    run: Run, alone: Callable[[], Table]
) -> None:
    trainings, found = run(Plan(4))
    assert found == alone()
    assert trained_again(trainings) == []
    assert len({training.worker for training in trainings}) > 1


@ON_SQLITE
def test_workers_are_killed_at_random(run: Run, alone: Callable[[int], Table]) -> None:
    # Leaders are trained more often.
    kill_at_random(run, alone(6), workers=4, killed=2, seed=1, max_attempts=6)


@pytest.mark.long
@pytest.mark.timeout(1800)
@ON_POSTGRESQL
def test_five_of_eight_workers_are_killed_at_twenty_points(
    run: Run, alone: Callable[[], Table]
) -> None:
    expected = alone()
    for seed in range(20):
        kill_at_random(run, expected, workers=8, killed=5, seed=seed)


def kill_at_random(
    run: Run, expected: Table, *, workers: int, killed: int, seed: int, max_attempts: int = 0
) -> None:
    """Kill some workers; in every second case they come back, in every third one comes late."""
    chance = random.Random(seed)
    order = chance.sample(range(workers), workers)
    # Each training of two attempts begins, and is recorded.
    events = 2 * 2 * GENERATIONS * POPSIZE
    plan = Plan(
        workers,
        killed=order[:killed],
        event=chance.randrange(1, events - 2 * workers),
        back=seed % 2 == 0,
        late=order[killed : killed + 1] if seed % 3 == 0 else (),
    )
    trainings, found = run(plan, max_attempts)
    assert found == expected, plan
    assert trained_again(trainings) == [], plan


@pytest.mark.long
@ON_SQLITE
def test_leaders_are_trained_more_often_by_all_as_by_one(
    run: Run, alone: Callable[[int], Table]
) -> None:
    trainings, found = run(Plan(4), 6)
    assert found == alone(6)
    assert trained_again(trainings) == []


def test_a_worker_that_comes_late_helps_and_one_that_comes_last_has_nothing_to_do(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = opened(work)
    assert search.search(sweep, work.search_data, worker=3) == GENERATIONS * POPSIZE
    lines = capsys.readouterr().out.splitlines()
    assert [line[:25] for line in lines[-2:]] == [
        f"taylorglo: generation {number}/2" for number in (1, 2)
    ]
    assert search.search(work.sweep(), NO_DATA, worker=4) == 0
    assert capsys.readouterr().out == ""
    # The first worker speaks of what was known before.
    assert search.search(work.sweep(), NO_DATA, worker=0) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.endswith("known from before") for line in lines)
    assert len(lines) == GENERATIONS
