"""Screening: full generations of accepted candidates, and filters that accept too few."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from searches import CLASSES, evaluation, facts, in_memory, open_search, url_of

from taylorglo.errors import InputError
from taylorglo.loss.filters import all_of
from taylorglo.results import GenerationSummary


@pytest.mark.parametrize("filters", [["published"], ["learnable"], ["learnable", "stable"]])
def test_resample_gives_a_full_generation_of_accepted_candidates(
    tmp_path: Path, filters: list[str]
) -> None:
    search = open_search(tmp_path / "db", coordinates="theta", popsize=5, filters=filters)
    assert len(search.propose(1)) == 5
    drawn = search.screen(1)
    judge = all_of(filters)
    rejected = [c for c in drawn if c.rejected]
    accepted = [c for c in drawn if not c.rejected]
    assert rejected
    assert len(accepted) == 5
    for c in drawn:
        assert c.verdict == judge(c.theta, CLASSES)
        assert c.verdict.accepted is not c.rejected
        assert c.finished is c.rejected
        assert c.fitness is None
    study = optuna.load_study(study_name="s", storage=url_of(tmp_path / "db"))
    states = {trial.number: trial.state for trial in study.trials}
    assert {states[c.trial] for c in rejected} == {TrialState.FAIL}
    assert {states[c.trial] for c in accepted} == {TrialState.RUNNING}

    assert facts(search.screen(1)) == facts(drawn)
    for c in accepted:
        search.tell(c.trial, evaluation(0.5))
    assert GenerationSummary.of(search.candidates(1)) == GenerationSummary(
        drawn=len(drawn),
        rejected=len(rejected),
        trained=5,
        diverged=0,
        failed=0,
        best=0.5,
        median=0.5,
    )
    assert [c.trial for c in search.propose(2)] == list(range(len(drawn), len(drawn) + 5))


def test_filters_that_accept_too_few() -> None:
    mean = [-100.0, 0.0, 0.0, 0.0]
    search = in_memory(popsize=3, max_draws=7, mean=mean, filters=["learnable"])
    search.propose(1)
    with pytest.raises(InputError) as caught:
        search.screen(1)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        "generation 1: the filters (learnable) accepted 0 of 6 candidates, and 3 are needed"
    )
    assert "search.max_draws (7)" in message
    assert len(search.candidates()) == 6
