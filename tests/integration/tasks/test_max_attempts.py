"""Leaders that are trained more often as long as their order is noise.

Here it is always noise, and two of the four candidates lead.
"""

import itertools
from collections.abc import Sequence
from statistics import fmean

import pytest
from small_sweeps import NO_DATA, Work, begin_generation
from trainings import steps_counted

from taylorglo.evaluation import fitness
from taylorglo.results import Candidate, Evaluation, GenerationSummary
from taylorglo.search.study import Search
from taylorglo.tasks import evaluate
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.evaluate import evaluate_shard


class Reports:
    """In place of report_generation: keeps the summaries that would be printed."""

    def __init__(self) -> None:
        self.summaries: list[GenerationSummary] = []

    def report_generation(
        self, sweep: Sweep, generation: int, candidates: Sequence[Candidate], *, new: bool
    ) -> None:
        self.summaries.append(GenerationSummary.of(candidates))


@pytest.fixture
def sweep(work: Work, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(fitness, "is_noise", lambda rows: True)
    return work.open(name="noisy", evaluation={"attempts": 2, "max_attempts": 5})


@pytest.fixture
def trials(sweep: Sweep) -> list[int]:
    return begin_generation(sweep, 1)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Reports:
    reports = Reports()
    monkeypatch.setattr(evaluate, "report_generation", reports.report_generation)
    return reports


def attempts(sweep: Sweep) -> dict[int, int]:
    """Return the number of attempts that the study has of each candidate."""
    candidates = sweep.search.candidates(1)
    return {c.trial: len(c.result.accuracies) if c.result else 0 for c in candidates}


def test_the_last_shard_trains_the_leaders_again_and_reports_all_candidates(
    sweep: Sweep, work: Work, trials: list[int], reports: Reports
) -> None:
    evaluate_shard(sweep, 1, trials[0::2], work.search_data)
    half = sweep.search.candidates(1)
    assert attempts(sweep) == {trial: 2 if trial in trials[0::2] else 0 for trial in trials}
    # Their fitness is not known yet.
    assert not any(c.finished for c in half)
    assert reports.summaries == []
    own = evaluate_shard(work.sweep(), 1, trials[1::2], work.search_data)
    assert [c.trial for c in own] == trials[1::2]
    candidates = sweep.search.candidates(1)
    assert all(c.finished for c in candidates)
    assert set(attempts(sweep).values()) <= {2, 4, 5}
    leaders = sorted(candidates, key=lambda c: -(c.fitness or 0))[:2]
    assert all(attempts(sweep)[c.trial] == 5 for c in leaders)
    for candidate in candidates:
        assert candidate.result is not None
        assert candidate.fitness == pytest.approx(fmean(candidate.result.accuracies))
    (summary,) = reports.summaries
    assert summary.best == leaders[0].fitness
    assert summary.trained == 4
    with steps_counted() as steps:
        evaluate_shard(work.sweep(), 1, trials[0::2], NO_DATA)
    assert steps == []
    # The other shard was the last to end, and it alone reports the generation again.
    assert len(reports.summaries) == 1


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [0, 1])
def test_a_shard_that_is_killed_between_note_and_tell(
    sweep: Sweep,
    work: Work,
    trials: list[int],
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: int,
    first: int,
) -> None:
    calls = itertools.count(1)
    tell = Search.tell

    def killed(search: Search, trial: int, result: Evaluation) -> None:
        if next(calls) == killed_at:
            raise KeyboardInterrupt
        tell(search, trial, result)

    evaluate_shard(sweep, 1, trials[0::2], work.search_data)
    with monkeypatch.context() as patch:
        patch.setattr(Search, "tell", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_shard(work.sweep(), 1, trials[1::2], work.search_data)
    noted = {c.trial: c.result for c in sweep.search.candidates(1)}
    assert sum(c.finished for c in sweep.search.candidates(1)) == killed_at - 1
    assert reports.summaries == []
    with steps_counted() as steps:
        for shard in (first, 1 - first):
            evaluate_shard(work.sweep(), 1, trials[shard::2], work.search_data)
    assert steps == []
    candidates = sweep.search.candidates(1)
    assert {c.trial: c.result for c in candidates} == noted
    assert all(c.finished for c in candidates)
    assert all(c.result and c.fitness == c.result.fitness for c in candidates)
    assert len(reports.summaries) == 1
