"""Which candidates a run logs to MLflow, and when."""

import time

import pytest
from small_sweeps import NO_DATA, Work, begin_generation, changed, evaluation, logged_trials

from taylorglo.services.tracking import Tracker
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.evaluate import evaluate_shard
from taylorglo.tasks.progress import track_generations
from taylorglo.variables import TRACKING_URI, required


def test_short_generations_wait_for_each_other(sweep: Sweep) -> None:
    now = time.time()
    new = evaluation(sweep, 0.5, started=now - 1, ended=now)
    first = begin_generation(sweep, 1, [new] * 4)
    track_generations(sweep, 1, patience=600)
    assert (logged_trials(sweep), sweep.tracked()) == ([], 0)
    better = evaluation(sweep, 0.6, started=now - 1, ended=now)
    second = begin_generation(sweep, 2, [better] * 4)
    track_generations(sweep, 2)
    assert logged_trials(sweep) == sorted(first + second)
    assert sweep.tracked() == 2


def test_a_later_run_logs_the_candidates_that_it_trains(sweep: Sweep) -> None:
    first = begin_generation(sweep, 1, [evaluation(sweep, 0.5)] * 4)
    # The report of the first of several runs asks for all generations of the search.
    track_generations(sweep, 20)
    second = begin_generation(sweep, 2, [evaluation(sweep, 0.6)] * 4)
    track_generations(sweep, 20)
    assert logged_trials(sweep) == sorted(first + second)


def test_the_generations_that_another_run_has_logged_do_not_count(sweep: Sweep) -> None:
    tracker = Tracker.open(required(TRACKING_URI), "digits", run_name="another")
    other = changed(sweep, run_id=tracker.run_id)
    trials = begin_generation(sweep, 1, [evaluation(sweep, 0.5, run=other.run_id)] * 4)
    sweep.set_tracked(1)
    track_generations(other, 1)
    assert logged_trials(other) == sorted(trials)


def test_old_results_do_not_wait(sweep: Sweep) -> None:
    trials = begin_generation(sweep, 1, [evaluation(sweep, 0.5)] * 4)
    track_generations(sweep, 1, patience=600)
    assert logged_trials(sweep) == sorted(trials)
    track_generations(sweep, 1)
    assert logged_trials(sweep) == sorted(trials)


def test_results_of_a_clock_that_was_set_back_do_not_wait(sweep: Sweep) -> None:
    later = time.time() + 86_400
    new = evaluation(sweep, 0.5, started=later - 1, ended=later)
    trials = begin_generation(sweep, 1, [new] * 4)
    track_generations(sweep, 1)
    assert logged_trials(sweep) == sorted(trials)


def test_candidates_of_an_earlier_run_are_not_logged_again(sweep: Sweep) -> None:
    earlier = evaluation(sweep, 0.5, run="earlier")
    trials = begin_generation(sweep, 1, [earlier] * 3 + [evaluation(sweep, 0.6)])
    track_generations(sweep, 1)
    assert logged_trials(sweep) == [trials[3]]


def test_without_mlflow_results_are_kept_and_logged_once_it_answers(
    sweep: Sweep,
    work: Work,
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    trials = begin_generation(sweep, 1, [evaluation(sweep, 0.5)] * 3)
    uri = f"http://127.0.0.1:{closed_port}"
    with monkeypatch.context() as away:
        away.setenv(TRACKING_URI, uri)
        evaluate_shard(sweep, 1, trials, work.search_data)
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"taylorglo: MLflow at {uri}: ")
    assert line.endswith("; the results are kept, and MLflow is told of them once it answers")
    candidates = sweep.search.candidates(1)
    assert all(c.finished and c.result for c in candidates if not c.rejected)
    # As the next task does, once MLflow is back.
    sweep = work.sweep()
    evaluate_shard(sweep, 1, trials, NO_DATA)
    assert logged_trials(sweep) == sorted(trials)
    assert "MLflow" not in capsys.readouterr().out
