"""The task that trains a shard of a generation's candidates."""

from typing import Any

import pytest
from small_sweeps import NO_DATA, Work, begin_generation, evaluation
from trainings import steps_counted

from taylorglo.errors import InputError
from taylorglo.settings import TrainingSettings
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.evaluate import evaluate_shard
from taylorglo.training import plan


def test_each_candidate_is_trained_once_by_the_shard_it_belongs_to(
    sweep: Sweep, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = begin_generation(sweep, 1)
    first = evaluate_shard(sweep, 1, trials[0::2], work.search_data)
    assert [c.trial for c in first] == trials[0::2]
    assert capsys.readouterr().out == ""
    results = {c.trial: c.result for c in sweep.search.candidates(1)}
    assert [results[trial] is not None for trial in trials] == [True, False, True, False]
    # The last shard to end reports the generation.
    evaluate_shard(sweep, 1, trials[1::2], work.search_data)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("taylorglo: generation 1/2  best ")
    assert line.endswith(" s")
    assert {c.trial: c.result for c in sweep.search.candidates(1)}.items() >= {
        trial: results[trial] for trial in trials[0::2]
    }.items()


def test_a_result_that_a_killed_task_recorded_is_told_and_not_trained_again(sweep: Sweep) -> None:
    trials = begin_generation(sweep, 1)
    recorded = evaluation(sweep, 0.5)
    for trial in trials:
        sweep.search.note(trial, recorded)
    done = evaluate_shard(sweep, 1, trials, NO_DATA)
    assert [(c.fitness, c.result, c.finished) for c in done] == [(0.5, recorded, True)] * 4


def test_all_shards_again(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    trials = begin_generation(sweep, 1, [evaluation(sweep, 0.5)] * 4)
    for shard in (0, 1):
        evaluate_shard(sweep, 1, trials[shard::2], NO_DATA)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("known from before")


def test_a_shard_without_candidates(sweep: Sweep) -> None:
    begin_generation(sweep, 1)
    assert evaluate_shard(sweep, 1, [], NO_DATA) == []


class Machine:
    """A machine that trains in this precision, if the settings leave it open."""

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def precision_of(self, settings: TrainingSettings, *_: object, **__: object) -> str:
        return self.precision if settings.precision == "auto" else settings.precision


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine("float32")
    monkeypatch.setattr(plan, "precision_of", machine.precision_of)
    return machine


@pytest.fixture
def mixed(work: Work, machine: Machine) -> Sweep:
    """A search whose first generation was trained in float32, now on a machine with bfloat16."""
    sweep = work.open(name="mixed", model={"name": "cnn"})
    evaluate_shard(sweep, 1, begin_generation(sweep, 1), work.search_data)
    assert sweep.search.precisions() == {"float32"}
    machine.precision = "bfloat16"
    return sweep


def test_one_search_has_one_precision(mixed: Sweep, work: Work) -> None:
    trials = begin_generation(mixed, 2)
    with steps_counted() as steps, pytest.raises(InputError) as refused:
        evaluate_shard(mixed, 2, trials, work.search_data)
    assert str(refused.value) == (
        "search 'mixed' was trained in float32 so far, and this machine would train in bfloat16, "
        "which cannot be compared: set training.precision to the former, if the machine has "
        "arithmetic for it, or give the new sweep another name"
    )
    assert steps == []
    assert not any(c.result for c in mixed.search.candidates(2))
    # The generation that is complete is shown again on any machine.
    evaluate_shard(mixed, 1, [c.trial for c in mixed.search.candidates(1)], NO_DATA)
    same = work.open(name="mixed", model={"name": "cnn"}, training={"precision": "float32"})
    evaluate_shard(same, 2, trials, work.search_data)
    assert same.search.precisions() == {"float32"}
    assert all(c.result for c in same.search.candidates(2) if not c.rejected)


def test_another_precision_needs_another_search(mixed: Sweep, work: Work) -> None:
    other: dict[str, Any] = {"model": {"name": "cnn"}, "training": {"precision": "bfloat16"}}
    with pytest.raises(
        InputError, match="was begun with training_precision 'auto', now 'bfloat16'"
    ):
        work.open(name="mixed", **other)
    assert work.open(name="mixed", **other, search={"renew": True}).study == "mixed.2"
