"""Two runs of one sweep at once: they share its study, and train no candidate twice."""

import pytest
from clocks import Clock
from servers import at_once
from small_sweeps import Work, begin_generation, evaluation

from taylorglo.tasks import evaluate
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.evaluate import evaluate_shard
from taylorglo.variables import STUDY_URL

# Of each sweep, the arguments have the path of its context and the URL of its study.
IMPORTS = """
import os
from taylorglo.variables import STUDY_URL
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.evaluate import evaluate_shard
from taylorglo.training import engine
# These would be imported by each process at its first proposal and its first step.
import taylorglo.search.optimizers
import torch._dynamo
"""
TWO_GENERATIONS = """
train_stack = engine.train_stack

def counted(recipes, *rest):
    for recipe in recipes:
        print("trained", sweep.study, recipe.loss.theta.tolist(), flush=True)
    return train_stack(recipes, *rest)

engine.train_stack = counted
_, search_data, *sweeps = sys.argv
wait()
for path, url in zip(sweeps[0::2], sweeps[1::2]):
    os.environ[STUDY_URL] = url
    sweep = Sweep.read(path)
    for generation in (1, 2):
        sweep.search.propose(generation)
        screened = sweep.search.screen(generation)
        trials = [candidate.trial for candidate in screened if not candidate.rejected]
        evaluate_shard(sweep, generation, trials, search_data)
"""


def test_two_runs_at_once_share_a_study_and_train_no_candidate_twice(
    work: Work, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {"sqlite": f"sqlite:///{work.folder / 'study.db'}", "postgresql": postgres_url}
    arguments = []
    for steps, (database, url) in enumerate(urls.items(), start=2):
        monkeypatch.setenv(STUDY_URL, url)
        # The steps differ, because the two sweeps share the store and its short trainings.
        sweep = work.open(name=database, evaluation={"steps": steps})
        sweep.write(work.folder / database)
        arguments += [str(work.folder / database), url]
    outputs = at_once(TWO_GENERATIONS, work.search_data, *arguments, imports=IMPORTS)
    lines = [line for output, _ in outputs for line in output.splitlines()]
    for database, url in urls.items():
        monkeypatch.setenv(STUDY_URL, url)
        search = Sweep.read(work.folder / database).search
        candidates = [c for c in search.candidates() if not c.rejected]
        assert [c.generation for c in candidates] == [1] * 4 + [2] * 4
        assert all(c.finished and c.result for c in candidates)
        trained = [line for line in lines if line.startswith(f"trained {database} ")]
        assert sorted(trained) == sorted(f"trained {database} {c.theta}" for c in candidates)


def test_a_candidate_that_another_run_trains_is_waited_for_and_not_trained_twice(
    work: Work, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claims in PostgreSQL belong to a connection, so that this process can be both runs.
    monkeypatch.setenv(STUDY_URL, postgres_url)
    sweep = work.open()
    other = work.sweep()
    trials = begin_generation(sweep, 1)
    result = evaluation(sweep, 0.5, run="the other run")
    unfinished: list[list[int]] = []

    def look() -> None:
        unfinished.append([c.trial for c in other.search.candidates(1) if not c.finished])
        if len(unfinished) == 3:
            other.search.tell(trials[1], result)

    clock = Clock(look)
    monkeypatch.setattr(evaluate, "time", clock)
    with other.search.claimed(trials[1]):
        done = evaluate_shard(sweep, 1, trials, work.search_data)
    assert unfinished == [[trials[1]]] * 3
    assert {c.trial: c.result.run for c in done if c.result} == {
        trial: "the other run" if trial == trials[1] else sweep.run_id for trial in trials
    }
