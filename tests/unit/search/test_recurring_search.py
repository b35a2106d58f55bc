"""Searches of a sweep that follow each other, each warm-started from the one before it."""

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from searches import (
    IDENTITY,
    OPTIMUM,
    OTHER_DATA,
    begin,
    evaluation,
    facts,
    fitness,
    open_search,
    point,
    run_generation,
    url_of,
)

from taylorglo.errors import InputError
from taylorglo.search.study import Search
from taylorglo.settings import SearchSettings


def test_a_run_goes_on_with_the_search_until_it_is_finished(tmp_path: Path) -> None:
    first = begin(tmp_path / "db")
    assert (first.study, first.source, first.finished) == ("s", None, False)
    assert first.complete_generations() == 0
    run_generation(first, 1)
    again = begin(tmp_path / "db")
    assert (again.study, again.complete_generations()) == ("s", 1)
    again.propose(2)
    # The second generation is proposed, but has no results.
    assert again.complete_generations() == 1
    again.finish()
    assert begin(tmp_path / "db", renew=False).study == "s"
    renewed = begin(tmp_path / "db")
    assert (renewed.study, renewed.source, renewed.complete_generations()) == ("s.2", "s", 0)
    assert begin(tmp_path / "db").study == "s.2"
    assert begin(tmp_path / "db", renew=False).study == "s.2"


def test_other_data_begin_another_search_with_renew_and_are_refused_without(
    tmp_path: Path,
) -> None:
    run_generation(begin(tmp_path / "db"), 1)
    with pytest.raises(InputError, match="sweep 's' was begun with data None, now 'new'"):
        begin(tmp_path / "db", OTHER_DATA, renew=False)
    assert begin(tmp_path / "db", OTHER_DATA).study == "s.2"
    assert begin(tmp_path / "db", OTHER_DATA).study == "s.2"


def test_only_the_studies_of_this_sweep_count(tmp_path: Path) -> None:
    for name in ("s.x", "s.1", "s.02", "sweep.7", "another.9"):
        Search(url_of(tmp_path / "db"), name, SearchSettings(), 0, IDENTITY, num_classes=10)
    assert begin(tmp_path / "db").study == "s"


def test_a_warm_started_search_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    first = begin(tmp_path / "db", popsize=6)
    for generation in range(1, 14):
        run_generation(first, generation)
    first.finish()
    results = sorted(first.candidates(), key=lambda c: -(c.fitness or 0.0))
    best = np.array([point(c.theta) for c in results[: len(results) // 10]])
    drawn = np.array([point(c.theta) for c in begin(tmp_path / "db", popsize=20).propose(1)])
    # WS-CMA-ES (arXiv 2012.06932, eq. 8-10) has the moments of the best tenth, and a prior of a
    # tenth of the domain (6 sigma) in every direction. The bounds are five standard errors.
    covariance = np.cov(best.T, bias=True) + (0.1 * 6 * 1.2) ** 2 * np.eye(4)
    error = np.sqrt(np.diag(covariance) / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - best.mean(axis=0)) < 5 * error).all()
    whitened = (drawn - best.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    assert abs(whitened.var() - 1) < 5 * math.sqrt(2 / whitened.size)
    cold = np.array([point(c.theta) for c in open_search(tmp_path / "cold", popsize=20).propose(1)])
    cold_distance = np.linalg.norm(cold - OPTIMUM, axis=1).mean()
    assert np.linalg.norm(drawn - OPTIMUM, axis=1).mean() < cold_distance / 2


def test_a_warm_started_search_draws_the_same_from_any_process(tmp_path: Path) -> None:
    for name in ("apart", "whole"):
        first = begin(tmp_path / name)
        run_generation(first, 1)
        first.finish()
    run_generation(begin(tmp_path / "apart"), 1)
    second = facts(run_generation(begin(tmp_path / "apart"), 2))
    whole = begin(tmp_path / "whole")
    run_generation(whole, 1)
    assert facts(run_generation(whole, 2)) == second


def test_the_start_of_a_search_does_not_change_when_the_last_one_does(tmp_path: Path) -> None:
    last = begin(tmp_path / "db")
    run_generation(last, 1)
    second = begin(tmp_path / "db", OTHER_DATA)
    assert second.study == "s.2"
    # The run of the last search is still at it.
    run_generation(last, 2)
    expected = facts(run_generation(second, 1))
    optuna.delete_study(study_name="s", storage=url_of(tmp_path / "db"))
    again = begin(tmp_path / "db", OTHER_DATA)
    assert (again.study, again.source) == ("s.2", "s")
    assert len(facts(run_generation(again, 2))) == 4

    run_generation(begin(tmp_path / "undisturbed"), 1)
    undisturbed = begin(tmp_path / "undisturbed", OTHER_DATA)
    assert facts(run_generation(undisturbed, 1)) == expected
    assert facts(run_generation(undisturbed, 2)) == facts(again.candidates(2))


@pytest.mark.parametrize("number", [1, 2, 4, 9, 25])
def test_few_results_are_enough_for_a_warm_start(tmp_path: Path, number: int) -> None:
    # One of the candidates has no result.
    first = begin(tmp_path / "db", popsize=number + 1)
    for candidate in first.propose(1)[:number]:
        first.tell(candidate.trial, evaluation(fitness(candidate.theta)))
    first.finish()
    assert begin(tmp_path / "db").source == "s"
    assert np.isfinite([c.theta for c in begin(tmp_path / "db").propose(1)]).all()


def test_a_search_in_other_coordinates_begins_afresh(tmp_path: Path) -> None:
    first = begin(tmp_path / "db")
    run_generation(first, 1)
    first.finish()
    other = begin(tmp_path / "db", coordinates="theta")
    assert (other.study, other.source) == ("s.2", None)
    assert len(other.propose(1)) == 4
