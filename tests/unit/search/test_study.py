"""The search: the distribution it draws from, its likeness to an undisturbed CMA-ES, filters,
seeds, and kills."""

import math
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
import optuna
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from taylorglo.errors import InputError, ServiceError
from taylorglo.loss.dynamics import coefficients
from taylorglo.loss.filters import all_of
from taylorglo.search.study import Candidate, Search, summary
from taylorglo.settings import SearchSettings

IDENTITY = {"popsize": 4}
CLASSES = 10
OPTIMUM = np.array([1.0, -2.0, 3.0, 0.5])


@event.listens_for(Engine, "connect")
def _without_fsync(connection: Any, record: Any) -> None:
    """A killed process loses nothing by it, a machine without power would; the tests take half the
    time."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def open_search(path: Path, *, seed: int = 0, **settings: Any) -> Search:
    return Search(
        url_of(path),
        "s",
        SearchSettings(**{"popsize": 4, "filters": ["none"], **settings}),
        seed,
        IDENTITY,
    )


def in_memory(*, seed: int = 0, **settings: Any) -> Search:
    return Search("sqlite:///:memory:", "s", SearchSettings(**settings), seed, IDENTITY)


def point(theta: Sequence[float]) -> np.ndarray:
    """The reduced coordinates (cy', chy, ch, chh) of a theta."""
    c = coefficients(theta)
    return np.array([c.cy + c.cyy, c.chy, c.ch, c.chh])


def fitness(theta: Sequence[float]) -> float:
    return 1 / (1 + float(np.sum((point(theta) - OPTIMUM) ** 2)))


def run_generation(
    search: Search,
    generation: int,
    value: Callable[[Sequence[float]], float] = fitness,
    order: Callable[[list[Candidate]], list[Candidate]] = list,
) -> list[Candidate]:
    """Propose, screen and tell whatever is not finished yet."""
    search.propose(generation)
    for candidate in order([c for c in search.screen(generation, CLASSES) if not c.finished]):
        search.tell(candidate.trial, value(candidate.theta), {"status": "ok"})
    return search.candidates(generation)


def facts(candidates: list[Candidate]) -> list[tuple[Any, ...]]:
    return [
        (c.trial, c.generation, c.theta, c.verdict, c.result, c.fitness, c.finished)
        for c in candidates
    ]


# The first generation


@pytest.mark.parametrize(
    ("settings", "mean", "sigma"),
    [
        ({"coordinates": "theta"}, [0.0] * 8, 1.2),
        ({"coordinates": "reduced"}, [4.0, -4.0, -1.0, 0.0], 1.2),
        (
            {"coordinates": "reduced", "mean": [-3.0, 10.0, 0.5, 100.0], "sigma": 0.05},
            [-3.0, 10.0, 0.5, 100.0],
            0.05,
        ),
    ],
    ids=["theta", "reduced", "custom"],
)
def test_first_generation_is_normal(settings, mean, sigma):
    from scipy.stats import kstest

    drawn = [
        c.theta if settings["coordinates"] == "theta" else point(c.theta)
        for seed in range(4)
        for c in in_memory(seed=seed, popsize=30, filters=["none"], **settings).propose(1)
    ]
    z = (np.array(drawn) - mean) / sigma
    number, dimensions = z.shape
    assert (number, dimensions) == (120, len(mean))
    # Five standard errors each: of a mean, of a variance, of a correlation.
    assert np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(number)
    assert np.abs(z.var(axis=0) - 1).max() < 5 * math.sqrt(2 / number)
    assert np.abs(np.corrcoef(z.T) - np.eye(dimensions)).max() < 5 / math.sqrt(number)
    # One draw after another, too: their seeds are neighbours.
    assert np.abs((z[:-1] * z[1:]).mean(axis=0)).max() < 5 / math.sqrt(number)
    assert min(kstest(column, "norm").pvalue for column in z.T) > 1e-3 / dimensions
    assert kstest(z.flatten(), "norm").pvalue > 1e-3
    assert np.abs(z).max() > 2.5  # not truncated


def test_theta_of_other_orders():
    search = in_memory(
        popsize=2,
        coordinates="theta",
        order=2,
        mean=[1.0, 2, 3, 4, 5],
        sigma=1e-6,
        filters=["none"],
    )
    assert [c.theta for c in search.propose(1)] == [pytest.approx([1, 2, 3, 4, 5], abs=1e-4)] * 2


# The generations after it


@pytest.mark.parametrize("coordinates", ["reduced", "theta"])
def test_candidates_are_those_of_an_uninterrupted_cma_es(tmp_path, coordinates):
    mean = [4.0, -4.0, -1.0, 0.0] if coordinates == "reduced" else [0.5, -0.5, 1.0, 0.0, 2.0]
    order = 3 if coordinates == "reduced" else 2
    popsize, seed = 5, 11
    optimizer = cmaes.CMA(mean=np.array(mean), sigma=0.7, population_size=popsize)
    first = np.random.RandomState(seed).randint(1, 2**16)  # and each trial's number on top of it
    trial = 0

    def value(x: np.ndarray) -> float:
        return 1 / (1 + float(np.sum((x - 1) ** 2)))

    for generation in range(1, 7):
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
        expected = []
        for _ in range(popsize):
            optimizer.reseed_rng(first + trial)
            expected.append(optimizer.ask())
            trial += 1
        found = [
            point(c.theta) if coordinates == "reduced" else c.theta
            for c in search.propose(generation)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        optimizer.tell([(x, -value(x)) for x in expected])
        for candidate, x in zip(search.candidates(generation), expected, strict=True):
            search.tell(candidate.trial, value(x), {})


def test_search_converges():
    search = in_memory(popsize=8, filters=["none"])
    best = [
        max(
            c.fitness
            for c in run_generation(
                search, g, lambda theta: -float(np.sum((point(theta) - OPTIMUM) ** 2))
            )
        )
        for g in range(1, 21)
    ]
    assert best[0] < -1
    assert best[-1] > best[0] / 50


def test_candidates_depend_on_the_seed_alone(tmp_path):
    def two_generations(name: str, seed: int) -> list[tuple[Any, ...]]:
        search = open_search(tmp_path / name, seed=seed, filters=["learnable"])
        return facts(run_generation(search, 1) + run_generation(search, 2))

    assert two_generations("a", 3) == two_generations("b", 3)
    assert not {tuple(f[2]) for f in two_generations("c", 3)} & {
        tuple(f[2]) for f in two_generations("d", 4)
    }


def test_the_order_of_telling_does_not_matter(tmp_path):
    def rounded(theta: Sequence[float]) -> float:  # with equals
        return round(fitness(theta), 1)

    def third_generation(
        name: str, order: Callable[[list[Candidate]], list[Candidate]]
    ) -> list[list[float]]:
        search = open_search(tmp_path / name, popsize=6)
        for generation in (1, 2):
            run_generation(search, generation, rounded, order)
        return [c.theta for c in search.propose(3)]

    def shuffled(candidates: list[Candidate]) -> list[Candidate]:
        return [candidates[i] for i in np.random.default_rng(0).permutation(len(candidates))]

    expected = third_generation("a", list)
    assert third_generation("b", lambda candidates: candidates[::-1]) == expected
    assert third_generation("c", shuffled) == expected


def python(code: str) -> str:
    """Run code in a new process with this module's names and the warnings of every day; it must not
    complain."""
    paths = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [sys.executable, "-c", f"from test_search import *\n{code}"],
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_one_process_per_generation_and_not_a_word_from_optuna(tmp_path):
    path, settings = tmp_path / "processes", {"popsize": 2, "filters": ["learnable", "stable"]}
    for generation in (1, 2):
        assert (
            python(
                f"run_generation(open_search(Path({str(path)!r}), **{settings!r}), {generation})"
            )
            == ""
        )
    search = open_search(tmp_path / "one", **settings)
    expected = run_generation(search, 1) + run_generation(search, 2)
    assert facts(open_search(path).candidates()) == facts(expected)


# Filters


@pytest.mark.parametrize("filters", [["published"], ["learnable"], ["learnable", "stable"]])
def test_resample_gives_a_full_generation_of_accepted_ones(tmp_path, filters):
    from optuna.trial import TrialState

    search = open_search(tmp_path / "db", coordinates="theta", popsize=5, filters=filters)
    assert len(search.propose(1)) == 5
    drawn = search.screen(1, CLASSES)
    judge = all_of(filters)
    rejected = [c for c in drawn if c.rejected]
    assert rejected
    assert len(drawn) - len(rejected) == 5
    for c in drawn:
        assert c.verdict == judge(c.theta, CLASSES)
        assert c.verdict.accepted is not c.rejected
        assert c.finished is c.rejected
        assert c.fitness is None
    states = {t.number: t.state for t in search._study.trials}
    assert {states[c.trial] for c in rejected} == {TrialState.FAIL}
    assert {states[c.trial] for c in drawn if not c.rejected} == {TrialState.RUNNING}

    assert facts(search.screen(1, CLASSES)) == facts(drawn)
    for c in drawn:
        if not c.rejected:
            search.tell(c.trial, 0.5, {"status": "ok"})
    assert summary(search.candidates(1)) == {
        "drawn": len(drawn),
        "rejected": len(rejected),
        "trained": 5,
        "diverged": 0,
        "failed": 0,
        "best": 0.5,
        "median": 0.5,
    }
    assert [c.trial for c in search.propose(2)] == list(range(len(drawn), len(drawn) + 5))


def test_the_rejected_leave_cma_es_alone(tmp_path):
    """With resample, the accepted alone make the next generation's distribution."""
    search = open_search(
        tmp_path / "db", popsize=5, mean=[1.0, 0.0, 0.0, 0.0], filters=["learnable"], seed=5
    )
    drawn = run_generation(search, 1)
    accepted = [c for c in drawn if not c.rejected]
    assert len(accepted) == 5 < len(drawn)
    optimizer = cmaes.CMA(mean=np.array([1.0, 0.0, 0.0, 0.0]), sigma=1.2, population_size=5)
    optimizer.tell([(point(c.theta), -fitness(c.theta)) for c in accepted])
    optimizer.reseed_rng(np.random.RandomState(5).randint(1, 2**16) + len(drawn))
    np.testing.assert_allclose(
        point(search.propose(2)[0].theta), optimizer.ask(), rtol=1e-9, atol=1e-9
    )


def test_penalized_candidates_count_with_the_worst_fitness(tmp_path):
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
    assert {(c.fitness, c.result) for c in rejected} == {(0.0, None)}
    assert {c.fitness for c in drawn if not c.rejected} == {0.75}
    assert summary(drawn)["trained"] == 8 - len(rejected)
    assert summary(drawn)["median"] == 0.75
    assert not any(c.rejected for c in search.best(8))
    optimizer = cmaes.CMA(mean=np.zeros(8), sigma=1.2, population_size=8)
    optimizer.tell([(np.array(c.theta), -(c.fitness or 0.0)) for c in drawn])
    optimizer.reseed_rng(np.random.RandomState(1).randint(1, 2**16) + 8)
    np.testing.assert_allclose(search.propose(2)[0].theta, optimizer.ask(), rtol=1e-9, atol=1e-9)


def test_filters_that_accept_too_few():
    search = in_memory(popsize=3, max_draws=7, mean=[-100.0, 0, 0, 0], filters=["learnable"])
    search.propose(1)
    with pytest.raises(InputError) as caught:
        search.screen(1, CLASSES)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        "generation 1: the filters (learnable) accepted 0 of 6 candidates, and 3 are needed"
        in message
    )
    assert "search.max_draws (7)" in message
    assert len(search.candidates()) == 6


# What is refused


def test_a_generation_waits_for_the_former_one(tmp_path):
    search = open_search(tmp_path / "db")
    first = search.propose(1)
    for c in first[:3]:
        search.tell(c.trial, 0.5, {})
    with pytest.raises(
        InputError, match=r"^generation 2 cannot be proposed: generation 1 has 3 of 4 results$"
    ):
        search.propose(2)
    search.tell(first[3].trial, 0.5, {})
    assert len(search.propose(2)) == 4
    with pytest.raises(InputError, match="generation 2 has 0 of 4"):
        search.propose(3)


def test_a_study_of_other_settings_is_refused(tmp_path):
    def opened(identity: dict[str, Any] | None, name: str = "s") -> Search:
        return Search(url_of(tmp_path / "db"), name, SearchSettings(), 0, identity)

    identity = {"seed": 1, "model": "mlp", "data": "digits abc"}
    opened(identity)
    opened(dict(reversed(identity.items())))
    opened(None)
    with pytest.raises(InputError) as caught:
        opened({**identity, "model": "cnn", "seed": 2})
    assert "sweep 's' was begun with model 'mlp', now 'cnn', seed 1, now 2" in str(caught.value)
    with pytest.raises(InputError, match="with data 'digits abc', now None"):
        opened({"seed": 1, "model": "mlp"})
    opened({"seed": 2}, name="another")
    # Settings that nobody was trained with yet may have been a mistake, and are corrected, with
    # what was drawn.
    search = opened({**identity, "steps": 3})
    candidates = search.propose(1)
    assert opened({**identity, "steps": 4}).propose(1) == candidates
    search.note(candidates[0].trial, {"fitness": 0.5})
    with pytest.raises(InputError, match="with steps 4, now 3"):
        opened({**identity, "steps": 3})
    opened({**identity, "steps": 4})


# Results


def test_telling_twice_changes_nothing(tmp_path):
    search = open_search(tmp_path / "db")
    trial = search.propose(1)[0].trial
    search.tell(trial, 0.25, {"status": "ok", "curve": [[1, 0.5, 2.0]]})
    before = search.candidates()
    search.tell(trial, 0.75, {"status": "diverged"})
    open_search(tmp_path / "db").tell(trial, 0.75, {"status": "failed"})
    assert search.candidates() == before  # with the time of telling
    assert (before[0].fitness, before[0].result) == (
        0.25,
        {"status": "ok", "curve": [[1, 0.5, 2.0]]},
    )


def test_a_process_that_loses_the_race_to_tell_changes_nothing(tmp_path, monkeypatch):
    slow, fast = open_search(tmp_path / "db"), open_search(tmp_path / "db")
    one, two = (c.trial for c in slow.propose(1)[:2])
    write, finish = slow._storage.set_trial_user_attr, slow._study.tell

    def overtaken_before_writing(*args: Any) -> None:
        fast.tell(one, 0.25, {"by": "fast"})
        write(*args)

    def overtaken_before_finishing(number: int, *args: Any, **kwargs: Any) -> Any:
        storage = slow._storage
        found = storage.get_trial(slow._trial_id(number))
        fast.tell(two, 0.25, {"by": "fast"})
        with monkeypatch.context() as patch:  # what slow read before fast told
            patch.setattr(type(slow._study._storage), "get_trial", lambda *_: found)
            return finish(number, *args, **kwargs)

    monkeypatch.setattr(slow._storage, "set_trial_user_attr", overtaken_before_writing)
    slow.tell(one, 0.5, {"by": "slow"})
    monkeypatch.setattr(slow._storage, "set_trial_user_attr", write)
    monkeypatch.setattr(slow._study, "tell", overtaken_before_finishing)
    slow.tell(two, 0.5, {"by": "slow"})
    first, second = fast.candidates()[:2]
    assert (first.fitness, first.result) == (0.25, {"by": "fast"})
    assert second.fitness == 0.25


def test_the_best(tmp_path):
    search = open_search(tmp_path / "db")
    told = search.propose(1)
    for candidate, value in zip(told, [0.5, 0.75, 0.25, 0.75], strict=True):
        search.tell(candidate.trial, value, {"status": "ok"})
    assert [c.trial for c in search.best(3)] == [1, 3, 0]
    assert len(search.best(9)) == 4
    assert search.best(1)[0].as_dict()["theta"] == told[1].theta


# Kills


def _die_before_write(number: int) -> None:
    """End this process with SIGKILL when it is about to commit its ``number``-th transaction that
    writes."""
    left = number

    @event.listens_for(Engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        connection.info["writes"] = connection.info.get("writes", False) or statement.startswith(
            ("INSERT", "UPDATE")
        )

    @event.listens_for(Engine, "rollback")
    def forget(connection: Any) -> None:
        connection.info["writes"] = False

    @event.listens_for(Engine, "commit")
    def count(connection: Any) -> None:
        nonlocal left
        if connection.info.pop("writes", False):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def live_short_lives(path: Path, settings: dict[str, Any], generations: int, writes: int) -> int:
    """Run generations in processes that are killed before their ``writes``-th write; returns how
    many were."""
    for killed in range(500):
        if (process := os.fork()) == 0:
            _die_before_write(writes)
            search = Search(url_of(path), "s", SearchSettings(**settings), seed=6)
            for generation in range(1, generations + 1):
                run_generation(search, generation)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status != -signal.SIGKILL:
            return killed if status == 0 else -1
    return -1


@pytest.mark.parametrize(("on_reject", "generations"), [("resample", 2), ("penalize", 1)])
def test_processes_killed_at_every_write(tmp_path, on_reject, generations):
    """Each process lives for two writes (one may be a repetition); together they do what one
    process does."""
    settings = {"popsize": 2, "mean": [0.0] * 4, "filters": ["learnable"], "on_reject": on_reject}
    undisturbed = open_search(tmp_path / "undisturbed", seed=6, **settings)
    expected = [f for g in range(1, generations + 1) for f in facts(run_generation(undisturbed, g))]
    assert any(f[3].accepted is False for f in expected)
    open_search(tmp_path / "killed", seed=6, **settings)
    killed = python(
        f"print(live_short_lives(Path({str(tmp_path / 'killed')!r}), {settings!r}, {generations}, 3))"
    )
    assert int(killed) > 3 * len(expected)
    assert facts(open_search(tmp_path / "killed", **settings).candidates()) == expected


def test_a_trial_left_behind_is_the_next_draw(tmp_path):
    expected = open_search(tmp_path / "a").propose(1)
    search = open_search(tmp_path / "b")
    search._study.ask()
    assert search.candidates() == []
    assert search.propose(1) == expected
    assert len(search._study.trials) == 4


# Pickles


def _stored(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        return "\n".join(connection.iterdump())


class _Poison:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_the_database_holds_no_pickle_and_none_is_loaded(tmp_path):
    poisoned = tmp_path / "poisoned"
    search = open_search(tmp_path / "db")
    for generation in (1, 2, 3):
        run_generation(search, generation)
    stored = _stored(tmp_path / "db")
    assert "'chy'" in stored  # the dump has the trials in it
    assert "optimizer" not in stored

    payload = pickle.dumps(_Poison(poisoned)).hex()
    with sqlite3.connect(tmp_path / "db") as connection:
        for (trial,) in connection.execute("SELECT trial_id FROM trials").fetchall():
            connection.execute(
                "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, 'cma:optimizer:0', ?)",
                (trial, f'"{payload}"'),
            )
    connection.close()
    again = open_search(tmp_path / "db")
    found = again.propose(4)
    assert not poisoned.exists()
    clean = open_search(tmp_path / "clean")
    for generation in (1, 2, 3):
        run_generation(clean, generation)
    assert [c.theta for c in found] == [c.theta for c in clean.propose(4)]


# Searches that follow each other


RENEW = {"popsize": 4, "filters": ["none"], "renew": True}


def begin(path: Path, identity: dict[str, Any] = IDENTITY, **settings: Any) -> Search:
    return Search.begin(url_of(path), "s", SearchSettings(**{**RENEW, **settings}), 0, identity)


def test_a_run_goes_on_with_the_search_until_it_is_finished(tmp_path):
    first = begin(tmp_path / "db")
    assert (first.study, first.source, first.finished, first.complete_generations()) == (
        "s",
        None,
        False,
        0,
    )
    run_generation(first, 1)
    again = begin(tmp_path / "db")
    assert (again.study, again.complete_generations()) == ("s", 1)
    again.propose(2)
    assert again.complete_generations() == 1  # proposed, but without results
    again.finish()
    assert begin(tmp_path / "db", renew=False).study == "s"
    renewed = begin(tmp_path / "db")
    assert (renewed.study, renewed.source, renewed.complete_generations()) == ("s.2", "s", 0)
    assert begin(tmp_path / "db").study == "s.2"
    assert begin(tmp_path / "db", renew=False).study == "s.2"


def test_other_data_begin_another_search_where_that_is_wanted_and_are_refused_where_not(tmp_path):
    run_generation(begin(tmp_path / "db"), 1)
    other = {**IDENTITY, "data": "new"}
    with pytest.raises(InputError, match="sweep 's' was begun with data None, now 'new'"):
        begin(tmp_path / "db", other, renew=False)
    assert begin(tmp_path / "db", other).study == "s.2"
    assert begin(tmp_path / "db", other).study == "s.2"


def test_only_the_studies_of_this_sweep_count(tmp_path):
    for name in ("s.x", "s.1", "s.02", "sweep.7", "another.9"):
        Search(url_of(tmp_path / "db"), name, SearchSettings(), 0, IDENTITY)
    assert begin(tmp_path / "db").study == "s"


def test_a_warm_started_search_begins_where_the_former_one_ended(tmp_path):
    first = begin(tmp_path / "db", popsize=20)
    for generation in range(1, 13):
        run_generation(first, generation)
    first.finish()
    results = sorted((c for c in first.candidates()), key=lambda c: -c.fitness)
    best = np.array([point(c.theta) for c in results[: len(results) // 10]])
    drawn = np.array([point(c.theta) for c in begin(tmp_path / "db", popsize=20).propose(1)])
    # WS-CMA-ES (arXiv 2012.06932, eq. 8-10): the moments of the best tenth, and a prior of a tenth
    # of the domain (6 sigma) in every direction. Five standard errors each.
    covariance = np.cov(best.T, bias=True) + (0.1 * 6 * 1.2) ** 2 * np.eye(4)
    error = np.sqrt(np.diag(covariance) / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - best.mean(axis=0)) < 5 * error).all()
    whitened = (drawn - best.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    assert abs(whitened.var() - 1) < 5 * math.sqrt(2 / whitened.size)
    cold = np.array([point(c.theta) for c in open_search(tmp_path / "cold", popsize=20).propose(1)])
    assert (
        np.linalg.norm(drawn - OPTIMUM, axis=1).mean()
        < np.linalg.norm(cold - OPTIMUM, axis=1).mean() / 2
    )


def test_a_warm_started_search_draws_the_same_from_any_process(tmp_path):
    run_generation(first := begin(tmp_path / "db"), 1)
    first.finish()
    run_generation(begin(tmp_path / "db"), 1)
    second = facts(run_generation(begin(tmp_path / "db"), 2))
    run_generation(other := begin(tmp_path / "other"), 1)
    other.finish()
    whole = begin(tmp_path / "other")
    run_generation(whole, 1)
    assert facts(run_generation(whole, 2)) == second


def test_where_a_search_begins_does_not_depend_on_what_becomes_of_the_former_one(tmp_path):
    former = begin(tmp_path / "db")
    run_generation(former, 1)
    other_data = {**IDENTITY, "data": "new"}
    second = begin(tmp_path / "db", other_data)
    assert second.study == "s.2"
    run_generation(former, 2)  # its own run is still at it
    expected = facts(run_generation(second, 1))
    optuna.delete_study(study_name="s", storage=url_of(tmp_path / "db"))
    again = begin(tmp_path / "db", other_data)
    assert (again.study, again.source) == ("s.2", "s")
    assert len(facts(run_generation(again, 2))) == 4

    run_generation(begin(tmp_path / "undisturbed"), 1)
    undisturbed = begin(tmp_path / "undisturbed", other_data)
    assert facts(run_generation(undisturbed, 1)) == expected
    assert facts(run_generation(undisturbed, 2)) == facts(again.candidates(2))


@pytest.mark.parametrize("number", [1, 2, 4, 9, 49])
def test_few_results_are_enough_for_a_warm_start(tmp_path, number):
    first = begin(tmp_path / "db", popsize=50)
    for candidate in first.propose(1)[:number]:
        first.tell(candidate.trial, fitness(candidate.theta), {"status": "ok"})
    first.finish()
    assert begin(tmp_path / "db").source == "s"
    assert np.isfinite([c.theta for c in begin(tmp_path / "db").propose(1)]).all()


def test_a_search_in_other_coordinates_begins_afresh(tmp_path):
    run_generation(first := begin(tmp_path / "db"), 1)
    first.finish()
    other = begin(tmp_path / "db", coordinates="theta")
    assert (other.study, other.source) == ("s.2", None)
    assert len(other.propose(1)) == 4


# Two runs at once


def test_a_candidate_is_claimed_by_one_process_at_a_time(tmp_path):
    mine, theirs = open_search(tmp_path / "db"), open_search(tmp_path / "db")
    trial = mine.propose(1)[0].trial
    with mine.claimed(trial) as first:
        assert first is not None
        assert first.trial == trial
        with mine.claimed(trial) as twice:
            assert twice is None
        with mine.claimed(trial + 1) as other:
            assert other is not None
            assert claimed_elsewhere(tmp_path / "db", trial + 1)
        assert not claimed_elsewhere(tmp_path / "db", trial + 1)
        assert claimed_elsewhere(tmp_path / "db", trial)
    assert not claimed_elsewhere(tmp_path / "db", trial)
    with pytest.raises(ZeroDivisionError), theirs.claimed(trial):
        raise ZeroDivisionError
    assert not claimed_elsewhere(tmp_path / "db", trial)


def claimed_elsewhere(path: Path, trial: int) -> bool:
    """Whether another process finds the candidate taken."""
    code = f"""
from pathlib import Path
from test_search import open_search
with open_search(Path({str(path)!r})).claimed({trial}) as candidate:
    print(candidate is None)
"""
    paths = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment = {**os.environ, "PYTHONPATH": paths}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return process.stdout == "True\n"


def test_what_another_run_keeps_to_itself_is_waited_for_and_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("taylorglo.search.study._EXCLUSIVE_SECONDS", 0.3)
    search = open_search(tmp_path / "db")
    with (
        search.exclusively(),
        pytest.raises(ServiceError, match=r"^another run has kept study 's' to itself for 0\.3 s"),
    ):
        search.exclusively().__enter__()
    with search.exclusively():
        pass
