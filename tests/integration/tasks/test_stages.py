"""What the tasks do, on a real study, store and MLflow: the parts that a sweep run to its end does
not show."""

import dataclasses
import importlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import pytest
import torch
from mlflow import MlflowClient
from servers import MlflowServer, at_once
from trainings import steps_counted

import taylorglo
from taylorglo.data import dataset as data
from taylorglo.errors import InputError, ServiceError, TaylorgloError
from taylorglo.evaluation import fitness as evaluation
from taylorglo.evaluation.comparison import Contender, Trained
from taylorglo.report.builder import sweep_record
from taylorglo.search import study as search
from taylorglo.search.study import summary
from taylorglo.services.tracking import Tracker
from taylorglo.settings import AttackSettings, SweepSettings
from taylorglo.stats import paired
from taylorglo.tasks import context as environment
from taylorglo.tasks import progress as telling
from taylorglo.tasks import stages
from taylorglo.tasks.context import Sweep
from taylorglo.training import devices

PARAMETERS: dict[str, Any] = {
    **SweepSettings().parameters(),
    "search_popsize": 4,
    "training_steps": 3,
    "evaluation_steps": 2,
    "evaluation_attempts": 1,
    "evaluation_give_up_step": 0,
    "training_workers": 1,  # in this process, where a test can see what is trained
    "champion_finalists": 3,
    "champion_seeds": 2,
    "attack_seeds": 1,
    "baselines_attempts": 1,
    "baselines_learning_rates": "0.1",
}
RATES = {
    "cross-entropy": (0.1, 0.3),
    "squared error": (0.3, 0.1),
}  # the worse and the better learning rate


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first three tasks leave: artifacts, study, store and MLflow."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        _services(patch, folder)
        settings = SweepSettings.from_parameters(PARAMETERS)
        outputs = [str(folder / name) for name in ("description", "search_data", "full_data")]
        stages.prepare(settings.data, settings.seed, settings.model.name, *outputs)
        opened(folder)
    return folder


def opened(folder: Path, generations: int = 2, **parameters: Any) -> Sweep:
    """The sweep as the next run of the pipeline opens it, on the prepared data."""
    description, full_data, sweep = (
        str(folder / name) for name in ("description", "full_data", "sweep")
    )
    stages.open_sweep(
        {**PARAMETERS, **parameters},
        environment.read_json(description),
        full_data,
        generations,
        sweep,
    )
    return Sweep.read(sweep)


@pytest.fixture
def work(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it for one test."""
    folder = shutil.copytree(prepared, tmp_path / "work")
    _services(monkeypatch, folder)
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def sweep(work: Path) -> Sweep:
    return Sweep.read(str(work / "sweep"))


def _services(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv(environment.STUDY_URL, f"sqlite:///{folder / 'study.db'}")
    patch.setenv(environment.STORE_URI, str(folder / "store"))
    patch.setenv(environment.TRACKING_URI, f"sqlite:///{folder / 'mlruns.db'}")
    for name in (environment.LOCAL_RUN, "MLFLOW_RUN_ID"):
        patch.delenv(name, raising=False)


def result(
    sweep: Sweep, fitness: float, started: float, ended: float, run: str | None = None
) -> dict[str, Any]:
    return {
        "status": "ok",
        "fitness": fitness,
        "accuracies": [fitness],
        "robust_accuracies": [],
        "curve": [(2, fitness, 1.0)],
        "started": started,
        "ended": ended,
        "seconds": ended - started,
        "reason": "",
        "method": "fused, float32, cpu",
        "run": run or sweep.run_id,
    }


def generation(sweep: Sweep, number: int, results: list[dict[str, Any]]) -> list[int]:
    """A generation with these results; returns its accepted trials."""
    sweep.search.propose(number)
    accepted = [c.trial for c in sweep.search.screen(number, sweep.num_classes) if not c.rejected]
    for trial, each in zip(accepted, results, strict=False):
        sweep.search.tell(trial, each["fitness"], each)
    return accepted


def trained(
    name: str, accuracy: float, rate: float = 0.1, started: float = 0, ended: float = 0
) -> dict[str, Any]:
    loss = {"champion": "taylor", "finalist": "taylor", "squared error": "squared-error"}.get(
        name, "cross-entropy"
    )
    contender = Contender(name, loss, rate, theta=[1.0] * 8 if loss == "taylor" else [])
    curve = [(3, accuracy, 1.0)]
    return Trained(contender, 1, "ok", accuracy, accuracy, curve, started, ended, "key").as_dict()


def nested(sweep: Sweep, run_id: str) -> list[int]:
    """The trials that MLflow knows, by the number of the run's own tag."""
    client = MlflowClient(tracking_uri=environment.variable(environment.TRACKING_URI))
    runs = client.search_runs(
        [sweep.tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    return sorted(int(run.data.tags["taylorglo.trial"]) for run in runs)


def test_the_sweep_artifact_is_read_as_it_was_written(sweep: Sweep, work: Path) -> None:
    sweep.write(str(work / "again"))
    assert Sweep.read(str(work / "again")) == sweep
    assert sweep.settings.parameters() == PARAMETERS
    assert (sweep.study, sweep.generations, sweep.first, sweep.num_classes) == ("digits", 2, 1, 10)
    assert sweep.standing is None


class TestEvaluateShard:
    def test_each_candidate_is_trained_once_by_the_shard_it_belongs_to(
        self, sweep: Sweep, work: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trials = generation(sweep, 1, [])
        first = stages.evaluate_shard(sweep, 1, trials[0::2], str(work / "search_data"))
        assert [c.trial for c in first] == trials[0::2]
        assert capsys.readouterr().out == ""
        told = {c.trial: c.result for c in sweep.search.candidates(1)}
        assert [told[trial] is not None for trial in trials] == [True, False, True, False]
        # The last shard to end speaks for all of them.
        stages.evaluate_shard(sweep, 1, trials[1::2], str(work / "search_data"))
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("taylorglo: generation 1/2  best ")
        assert line.endswith(" s")
        assert {c.trial: c.result for c in sweep.search.candidates(1)}.items() >= {
            trial: told[trial] for trial in trials[0::2]
        }.items()

    def test_a_result_of_a_killed_task_is_told_and_not_trained_again(self, sweep: Sweep) -> None:
        trials = generation(sweep, 1, [])
        known = result(sweep, 0.5, 10.0, 11.0)
        for trial in trials:  # written, but the task was killed before it could close the trial
            sweep.search._set(trial, "result", known)
        done = stages.evaluate_shard(sweep, 1, trials, "there is no data to train on")
        assert [(c.fitness, c.result, c.finished) for c in done] == [
            (0.5, {**known, "curve": [[2, 0.5, 1.0]]}, True)
        ] * 4

    def test_all_shards_again(self, sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
        trials = generation(sweep, 1, [result(sweep, 0.5, 10.0, 11.0)] * 4)
        for shard in (0, 1):
            stages.evaluate_shard(sweep, 1, trials[shard::2], "there is no data to train on")
        (line,) = capsys.readouterr().out.splitlines()
        assert line.endswith("known from before")

    def test_a_shard_without_candidates(self, sweep: Sweep) -> None:
        generation(sweep, 1, [])
        assert stages.evaluate_shard(sweep, 1, [], "there is no data to train on") == []

    def test_a_candidate_that_another_run_trains_is_waited_for_and_not_trained_twice(
        self, sweep: Sweep, work: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stages, "_OTHERS_SECONDS", 0.01)
        trials = generation(sweep, 1, [])
        other = dataclasses.replace(sweep)  # with a study, and claims, of its own
        told = result(sweep, 0.5, 10.0, 11.0, "the other run")
        looks = []

        def look(seconds: float) -> None:
            looks.append([c.trial for c in other.search.candidates(1) if not c.finished])
            if len(looks) == 3:  # the other one is done at last
                other.search.tell(trials[1], told["fitness"], told)

        class Claimed:
            """The claims of this process, where another one holds one of them."""

            def take(self, number: int) -> bool:
                return number != 2 + trials[1]

            def release(self, number: int) -> None:
                pass

        monkeypatch.setattr(sweep.search, "_claims", Claimed())
        monkeypatch.setattr(stages.time, "sleep", look)
        done = stages.evaluate_shard(sweep, 1, trials, str(work / "search_data"))
        assert looks == [[trials[1]]] * 3
        runs = {c.trial: (c.result or {})["run"] for c in done}
        assert runs == {
            trial: "the other run" if trial == trials[1] else sweep.run_id for trial in trials
        }


class TestFailedTrainings:
    """A network of the user's own that raises an error as often as it is told to; a training is
    tried twice."""

    @pytest.fixture
    def network(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        (work / "failing_network.py").write_text(
            """
from torch import nn

failures = 0

class Failing(nn.Sequential):
    def forward(self, images):
        global failures
        if failures and self.training and images.device.type != "meta":
            failures -= 1
            raise RuntimeError("disk on fire")
        return super().forward(images)

def build(image_shape, num_classes):
    return Failing(nn.Flatten(), nn.Linear(64, num_classes))
"""
        )
        monkeypatch.syspath_prepend(work)
        yield importlib.import_module("failing_network")
        del sys.modules["failing_network"]

    @pytest.fixture
    def sweep(self, work: Path, network: Any) -> Sweep:
        return opened(
            work, name="failing", model_name="failing_network:build", training_engine="sequential"
        )

    def statuses(self, sweep: Sweep) -> list[str | None]:
        """Of the accepted candidates, None: it has no result."""
        return [
            c.result and c.result["status"] for c in sweep.search.candidates(1) if not c.rejected
        ]

    def test_some_are_the_worst_and_the_generation_says_so(
        self, sweep: Sweep, work: Path, network: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trials = generation(sweep, 1, [])
        network.failures = 4
        done = stages.evaluate_shard(sweep, 1, trials, str(work / "search_data"))
        assert self.statuses(sweep) == ["failed", "failed", "ok", "ok"]
        assert all(c.finished for c in done)
        assert [c.fitness for c in done[:2]] == [0.0, 0.0]
        line, reason = capsys.readouterr().out.splitlines()
        assert re.search(r"  rejected \d+ of \d+  diverged 0  failed 2  \d+ s$", line)
        assert reason == "taylorglo: the first training that failed: disk on fire"
        with steps_counted() as steps:
            stages.evaluate_shard(sweep, 1, trials, "there is nothing to train")
        assert steps == []

    def test_where_all_fail_the_search_ends_and_goes_on_once_that_is_mended(
        self, sweep: Sweep, work: Path, network: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trials, data = generation(sweep, 1, []), str(work / "search_data")
        network.failures = 8
        with pytest.raises(
            TaylorgloError, match=r"^generation 1: every training failed, .*: disk on fire; none of"
        ):
            stages.evaluate_shard(sweep, 1, trials, data)
        assert network.failures == 0
        assert self.statuses(sweep) == [None] * 4
        assert not any(c.finished for c in sweep.search.candidates(1) if not c.rejected)
        assert capsys.readouterr().out == ""
        stages.evaluate_shard(sweep, 1, trials, data)
        assert self.statuses(sweep) == ["ok"] * 4
        (line,) = capsys.readouterr().out.splitlines()
        assert "failed" not in line

    def test_a_shard_of_failures_counts_where_the_other_one_trained(
        self, sweep: Sweep, work: Path, network: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trials, data = generation(sweep, 1, []), str(work / "search_data")
        network.failures = 4
        with pytest.raises(TaylorgloError, match="every training failed"):
            stages.evaluate_shard(sweep, 1, trials[0::2], data)
        stages.evaluate_shard(sweep, 1, trials[1::2], data)
        assert self.statuses(sweep) == [None, "ok", None, "ok"]
        network.failures = 4
        stages.evaluate_shard(sweep, 1, trials[0::2], data)
        assert self.statuses(sweep) == ["failed", "ok", "failed", "ok"]
        assert "  failed 2  " in capsys.readouterr().out

    def test_leaders_that_all_fail_when_they_are_trained_again_keep_what_they_have(
        self, work: Path, network: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parameters = {"model_name": "failing_network:build", "training_engine": "sequential"}
        sweep = opened(
            work, name="noisy", evaluation_attempts=2, evaluation_max_attempts=3, **parameters
        )
        trials, data = generation(sweep, 1, []), str(work / "search_data")
        network.failures = 8
        with pytest.raises(TaylorgloError, match="every training failed"):
            stages.evaluate_shard(sweep, 1, trials, data)
        assert self.statuses(sweep) == [None] * 4

        def noisy(rows: Any) -> bool:
            network.failures = 4
            return True

        monkeypatch.setattr(evaluation, "_noisy", noisy)
        with pytest.raises(TaylorgloError, match="every training failed"):
            stages.evaluate_shard(sweep, 1, trials, data)
        assert network.failures == 0
        assert self.statuses(sweep) == ["ok"] * 4
        assert not any(c.finished for c in sweep.search.candidates(1) if not c.rejected)
        monkeypatch.setattr(evaluation, "_noisy", lambda rows: True)
        done = stages.evaluate_shard(sweep, 1, trials, data)
        assert sorted(len((c.result or {})["accuracies"]) for c in done) == [2, 2, 3, 3]
        assert all(c.finished for c in done)


class TestPrecision:
    """Machines with and without arithmetic in bfloat16, which the search on this network takes
    where it can."""

    @pytest.fixture
    def begun(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
        """A search whose first generation was trained in float32."""
        monkeypatch.setattr(devices, "_has_bfloat16", lambda device: False)
        sweep = opened(work, name="mixed", model_name="cnn")
        stages.evaluate_shard(sweep, 1, generation(sweep, 1, []), str(work / "search_data"))
        assert sweep.search.precisions() == {"float32"}
        monkeypatch.setattr(devices, "_has_bfloat16", lambda device: True)
        return sweep

    def test_one_search_has_one(self, begun: Sweep, work: Path) -> None:
        data = str(work / "search_data")
        trials = generation(begun, 2, [])
        with steps_counted() as steps, pytest.raises(InputError) as refused:
            stages.evaluate_shard(begun, 2, trials, data)
        assert str(refused.value) == (
            "search 'mixed' was trained in float32 so far, and this machine would train in bfloat16, which cannot be "
            "compared: set training.precision to the former, if the machine has arithmetic for it, or give the new "
            "sweep another name"
        )
        assert steps == []
        assert not any(c.result for c in begun.search.candidates(2))
        stages.evaluate_shard(
            begun, 1, [c.trial for c in begun.search.candidates(1)], "there is nothing to train"
        )
        same = opened(work, name="mixed", model_name="cnn", training_precision="float32")
        stages.evaluate_shard(same, 2, trials, data)
        assert same.search.precisions() == {"float32"}
        assert all(c.result for c in same.search.candidates(2) if not c.rejected)

    def test_another_one_is_another_search(self, begun: Sweep, work: Path) -> None:
        changed = {"name": "mixed", "model_name": "cnn", "training_precision": "bfloat16"}
        with pytest.raises(
            InputError, match="was begun with training_precision 'auto', now 'bfloat16'"
        ):
            opened(work, **changed)
        assert opened(work, **changed, search_renew=True).study == "mixed.2"


class TestAttackNetwork:
    def test_computes_in_float32_whatever_the_convolutions_may_do_otherwise(
        self, work: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cudnn, seen = torch.backends.cudnn, set()
        monkeypatch.setattr(cudnn, "allow_tf32", True)  # as PyTorch has it
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        network.register_forward_hook(
            lambda *_: seen.add((cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        )
        settings = AttackSettings(images=20, pgd_steps=2)
        robust = stages.attack_network(network, data.read(work / "full_data"), settings, seed=0)
        assert set(robust["worst"]) == set(settings.epsilons)
        assert seen == {(False, False)}
        assert cudnn.allow_tf32


class TestMaxAttempts:
    """Leaders that are trained more often, where their order is noise; here it always is, and two
    of four lead."""

    @pytest.fixture
    def trials(self, sweep: Sweep) -> list[int]:
        return generation(sweep, 1, [])

    @pytest.fixture
    def sweep(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
        monkeypatch.setattr(evaluation, "_noisy", lambda rows: True)
        return opened(work, name="noisy", evaluation_attempts=2, evaluation_max_attempts=5)

    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """What is said of generations."""
        told: list[dict[str, Any]] = []
        monkeypatch.setattr(
            stages,
            "tell_generation",
            lambda sweep, number, candidates, *, new: told.append(
                {"number": number} | summary(candidates)
            ),
        )
        return told

    def attempts(self, sweep: Sweep) -> dict[int, int]:
        return {
            c.trial: len((c.result or {"accuracies": []})["accuracies"])
            for c in sweep.search.candidates(1)
        }

    def again(self, sweep: Sweep) -> Sweep:
        """The sweep in another process."""
        return dataclasses.replace(sweep)

    def test_the_last_shard_trains_the_leaders_again_and_speaks_for_all(
        self, sweep: Sweep, work: Path, trials: list[int], told: list[dict[str, Any]]
    ) -> None:
        data = str(work / "search_data")
        stages.evaluate_shard(sweep, 1, trials[0::2], data)
        half = sweep.search.candidates(1)
        assert self.attempts(sweep) == {
            trial: 2 if trial in trials[0::2] else 0 for trial in trials
        }
        assert not any(c.finished for c in half)  # what the fitness is, is not known yet
        assert told == []
        own = stages.evaluate_shard(self.again(sweep), 1, trials[1::2], data)
        assert [c.trial for c in own] == trials[1::2]
        everybody = sweep.search.candidates(1)
        assert all(c.finished for c in everybody)
        assert set(self.attempts(sweep).values()) <= {2, 4, 5}
        leaders = sorted(everybody, key=lambda c: -(c.fitness or 0))[:2]
        assert all(len((c.result or {})["accuracies"]) == 5 for c in leaders)
        for candidate in everybody:
            assert candidate.result is not None
            assert candidate.fitness == pytest.approx(fmean(candidate.result["accuracies"]))
        (line,) = told
        assert line["best"] == leaders[0].fitness
        assert line["trained"] == 4
        with steps_counted() as steps:
            stages.evaluate_shard(
                self.again(sweep), 1, trials[0::2], "there is no data to train on"
            )
        assert steps == []
        assert len(told) == 1  # the other shard spoke last, and is the one to say it again

    @pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
    @pytest.mark.parametrize("first", [0, 1])
    def test_a_shard_that_is_killed_between_note_and_tell(
        self,
        sweep: Sweep,
        work: Path,
        trials: list[int],
        told: list[dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
        killed_at: int,
        first: int,
    ) -> None:
        data, calls, tell = str(work / "search_data"), 0, search.Search.tell

        def killed(self: search.Search, trial: int, fitness: float, result: dict[str, Any]) -> None:
            nonlocal calls
            calls += 1
            if calls == killed_at:
                raise KeyboardInterrupt
            tell(self, trial, fitness, result)

        stages.evaluate_shard(sweep, 1, trials[0::2], data)
        with monkeypatch.context() as patch:
            patch.setattr(search.Search, "tell", killed)
            with pytest.raises(KeyboardInterrupt):
                stages.evaluate_shard(self.again(sweep), 1, trials[1::2], data)
        noted = {c.trial: c.result for c in sweep.search.candidates(1)}
        assert sum(c.finished for c in sweep.search.candidates(1)) == killed_at - 1
        assert told == []
        with steps_counted() as steps:
            for shard in (first, 1 - first):
                stages.evaluate_shard(self.again(sweep), 1, trials[shard::2], data)
        assert steps == []
        everybody = sweep.search.candidates(1)
        assert {c.trial: c.result for c in everybody} == noted
        assert all(c.finished for c in everybody)
        assert all(c.fitness == (c.result or {})["fitness"] for c in everybody)
        assert len(told) == 1


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_two_runs_at_once_share_a_study_and_train_no_candidate_twice(
    database: str, work: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database == "postgresql":
        monkeypatch.setenv(environment.STUDY_URL, request.getfixturevalue("postgres_url"))
        opened(work)
    code = """
from taylorglo.training import engine
from taylorglo.tasks import stages
from taylorglo.tasks.context import Sweep

train = engine.train_together

def counted(recipes, *rest):
    for recipe in recipes:
        print("trained", recipe.loss.theta.tolist(), flush=True)
    return train(recipes, *rest)

engine.train_together = counted
sweep = Sweep.read(sys.argv[1])
wait()
for generation in (1, 2):
    sweep.search.propose(generation)
    trials = [c.trial for c in sweep.search.screen(generation, sweep.num_classes) if not c.rejected]
    stages.evaluate_shard(sweep, generation, trials, sys.argv[2])
"""
    outputs = at_once(code, str(work / "sweep"), str(work / "search_data"))
    trained = [
        line for output, _ in outputs for line in output.splitlines() if line.startswith("trained")
    ]
    candidates = [c for c in Sweep.read(str(work / "sweep")).search.candidates() if not c.rejected]
    assert [c.generation for c in candidates] == [1] * 4 + [2] * 4
    assert all(c.finished and c.result for c in candidates)
    assert sorted(trained) == sorted(f"trained {c.theta}" for c in candidates)


class TestOpenSweep:
    """How a search is cut into runs, and followed by another one."""

    def complete(self, sweep: Sweep, numbers: range) -> None:
        for number in numbers:
            generation(sweep, number, [result(sweep, 0.5 + 0.01 * number, 10.0, 11.0)] * 4)

    def test_each_run_goes_on_where_the_last_one_stopped(
        self, work: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        firsts = []
        for _ in range(4):
            sweep = opened(work, 2, search_generations=5)
            firsts.append(sweep.first)
            assert (sweep.study, sweep.generations) == ("digits", 5)
            assert [sweep.generation(number) for number in (1, 2)] == [sweep.first, sweep.first + 1]
            self.complete(sweep, range(sweep.first, sweep.first + 2))
        assert firsts == [
            1,
            3,
            4,
            4,
        ]  # the last run ends with the search; once it is complete, it is shown again
        assert sweep.complete
        assert "this run: generations 4 to 5 of 5" in capsys.readouterr().out

    def test_half_a_run_is_not_lost(self, work: Path) -> None:
        sweep = opened(work, 3, search_generations=7)
        self.complete(sweep, range(1, 3))
        sweep.search.propose(3)
        assert opened(work, 3, search_generations=7).first == 3

    def test_one_run_shows_all_of_its_search_again(self, work: Path) -> None:
        self.complete(opened(work, 3), range(1, 3))
        assert opened(work, 3).first == 1
        longer = opened(work, 5)
        assert (longer.first, longer.generations, longer.complete) == (1, 5, False)

    def test_a_finished_search_is_followed_by_another_where_that_is_wanted(
        self, work: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = opened(work, 2, search_renew=True)
        self.complete(first, range(1, 3))
        first.finish(search=True)
        assert opened(work, 2, search_renew=False).study == "digits"
        second = opened(work, 2, search_renew=True)
        assert (second.study, second.first) == ("digits.2", 1)
        assert second.run_id != first.run_id
        assert "search 'digits.2', warm-started from 'digits'" in capsys.readouterr().out
        client = MlflowClient(tracking_uri=environment.variable(environment.TRACKING_URI))
        assert client.get_run(second.run_id).data.params["study"] == "digits.2"

    def test_an_unfinished_run_is_finished_as_far_as_mlflow_is_concerned_only(
        self, work: Path
    ) -> None:
        sweep = opened(work, 1, search_generations=2, search_renew=True)
        self.complete(sweep, range(1, 2))
        sweep.finish(search=False)
        again = opened(work, 1, search_generations=2, search_renew=True)
        assert (again.study, again.first) == ("digits", 2)
        assert again.run_id != sweep.run_id


class TestMlflowAway:
    def test_results_are_kept_and_told_when_it_is_back(
        self,
        work: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        server = MlflowServer(
            f"sqlite:///{work / 'mlruns.db'}", str(tmp_path / "served"), tmp_path / "mlflow.log"
        )
        monkeypatch.setenv(environment.TRACKING_URI, server.uri)
        server.start()
        try:
            sweep = opened(work)
            server.stop()
            trials = generation(sweep, 1, [result(sweep, 0.5, 10.0, 11.0)] * 3)
            stages.evaluate_shard(sweep, 1, trials, str(work / "search_data"))
            *_, line = capsys.readouterr().out.splitlines()
            assert line.startswith(f"taylorglo: MLflow at {server.uri}: ")
            assert line.endswith(
                "; the results are kept, and MLflow is told of them once it answers"
            )
            assert all(
                c.finished and c.result for c in sweep.search.candidates(1) if not c.rejected
            )
            server.start()
            sweep = Sweep.read(str(work / "sweep"))  # as the next task does
            stages.evaluate_shard(sweep, 1, trials, "there is nothing to train")
            assert nested(sweep, sweep.run_id) == sorted(trials)
            assert "MLflow" not in capsys.readouterr().out
        finally:
            server.stop()


class TestTrackGenerations:
    def test_short_generations_wait_for_each_other(self, sweep: Sweep) -> None:
        now = time.time()
        first = generation(sweep, 1, [result(sweep, 0.5, now - 1, now)] * 4)
        telling.track_generations(sweep, 1, patience=600)
        assert (nested(sweep, sweep.run_id), sweep.tracked()) == ([], 0)
        second = generation(sweep, 2, [result(sweep, 0.6, now - 1, now)] * 4)
        telling.track_generations(sweep, 2)
        assert nested(sweep, sweep.run_id) == sorted(first + second)
        assert sweep.tracked() == 2

    def test_what_a_later_run_trains_is_told_by_it(self, sweep: Sweep) -> None:
        first = generation(sweep, 1, [result(sweep, 0.5, 10.0, 11.0)] * 4)
        telling.track_generations(sweep, 20)  # as the report of the first of several runs does
        second = generation(sweep, 2, [result(sweep, 0.6, 10.0, 11.0)] * 4)
        telling.track_generations(sweep, 20)
        assert nested(sweep, sweep.run_id) == sorted(first + second)

    def test_what_another_run_was_told_does_not_count(self, sweep: Sweep, work: Path) -> None:
        other = dataclasses.replace(sweep, run_id=Tracker.open(
            environment.variable(environment.TRACKING_URI), "digits", run_name="another"
        ).run_id)  # fmt: skip
        trials = generation(sweep, 1, [result(sweep, 0.5, 10.0, 11.0, other.run_id)] * 4)
        sweep.set_tracked(1)
        telling.track_generations(other, 1)
        assert nested(other, other.run_id) == sorted(trials)

    def test_old_news_do_not_wait(self, sweep: Sweep) -> None:
        trials = generation(sweep, 1, [result(sweep, 0.5, 10.0, 11.0)] * 4)
        telling.track_generations(sweep, 1, patience=600)
        assert nested(sweep, sweep.run_id) == sorted(trials)
        telling.track_generations(sweep, 1)
        assert nested(sweep, sweep.run_id) == sorted(trials)

    def test_candidates_of_an_earlier_run_are_not_told_again(self, sweep: Sweep) -> None:
        others, own = (
            [result(sweep, 0.5, 10.0, 11.0, "earlier")] * 3,
            [result(sweep, 0.6, 10.0, 11.0)],
        )
        trials = generation(sweep, 1, others + own)
        telling.track_generations(sweep, 1)
        assert nested(sweep, sweep.run_id) == [trials[3]]


class TestParentRun:
    def test_goes_on_while_unfinished_and_is_new_afterwards(self, sweep: Sweep) -> None:
        assert environment.open_tracker(sweep.settings, sweep.study).run_id == sweep.run_id
        sweep.set_tracked(1)
        assert environment.open_tracker(sweep.settings, sweep.study).run_id == sweep.run_id
        assert sweep.tracked() == 1
        sweep.finish(search=False)
        assert environment.open_tracker(sweep.settings, sweep.study).run_id != sweep.run_id
        assert sweep.tracked() == 0

    def test_is_new_where_the_unfinished_one_was_deleted(self, sweep: Sweep) -> None:
        MlflowClient(tracking_uri=environment.variable(environment.TRACKING_URI)).delete_run(
            sweep.run_id
        )
        again = environment.open_tracker(sweep.settings, sweep.study).run_id
        assert again != sweep.run_id
        assert environment.open_tracker(sweep.settings, sweep.study).run_id == again

    def test_a_deleted_experiment_is_still_an_error(self, sweep: Sweep) -> None:
        client = MlflowClient(tracking_uri=environment.variable(environment.TRACKING_URI))
        client.delete_experiment(sweep.tracker.experiment_id)
        with pytest.raises(InputError, match="experiment 'digits': was deleted"):
            environment.open_tracker(sweep.settings, sweep.study)


class TestCrown:
    """Real trainings of three steps, whose results in the store are then rewritten: the memo is
    what counts."""

    @pytest.fixture
    def candidates(self, sweep: Sweep) -> list[Any]:
        """Best first."""
        fitnesses = (0.5, 0.9, 0.7, 0.8)
        generation(sweep, 1, [result(sweep, fitness, 10.0, 11.0) for fitness in fitnesses])
        return sorted(
            (c for c in sweep.search.candidates() if c.fitness is not None),
            key=lambda c: -c.fitness,
        )

    @pytest.fixture
    def tuning(self) -> list[dict[str, Any]]:
        return [
            trained(name, accuracy, rate)
            for name, rates in RATES.items()
            for rate, accuracy in zip(rates, (0.6, 0.7), strict=True)
        ]

    def crown(self, sweep: Sweep, work: Path, tuning: list[dict[str, Any]]) -> stages.Outcome:
        return stages.crown(sweep, str(work / "search_data"), str(work / "full_data"), tuning)

    def rewrite(self, sweep: Sweep, outcome: stages.Outcome, accuracies: list[float]) -> None:
        """Validation accuracies of the finalists, best candidate first, in the store."""
        for training, accuracy in zip(outcome.finalists, accuracies, strict=True):
            content = {**training.as_dict(), "accuracy": accuracy}
            sweep.store.write(
                sweep.key(f"trainings/{training.key}.json"), json.dumps(content).encode()
            )

    def test_by_validation_accuracy_of_full_trainings_and_of_equals_the_fitter(
        self, sweep: Sweep, work: Path, candidates: list[Any], tuning: list[dict[str, Any]]
    ) -> None:
        outcome = self.crown(sweep, work, tuning)
        thetas = [c.theta for c in candidates[:3]]
        assert [t.contender.theta for t in outcome.finalists] == thetas
        assert all(t.test_accuracy is None for t in outcome.finalists)
        for accuracies, winner in (
            ([0.1, 0.2, 0.3], 2),
            ([0.1, 0.3, 0.2], 1),
            ([0.3, 0.3, 0.3], 0),
            ([0.1, 0.3, 0.3], 1),
        ):
            self.rewrite(sweep, outcome, accuracies)
            again = self.crown(sweep, work, tuning)
            assert again.champion == candidates[winner]
            assert again.loss.theta.tolist() == thetas[winner]
            saved = json.loads((work / "store" / "digits" / "champion" / "loss.json").read_text())
            assert saved["theta"] == thetas[winner]

    def test_one_finalist_needs_no_choice(
        self, sweep: Sweep, work: Path, candidates: list[Any], tuning: list[dict[str, Any]]
    ) -> None:
        settings = SweepSettings.from_parameters({**PARAMETERS, "champion_finalists": 1})
        outcome = self.crown(dataclasses.replace(sweep, settings=settings), work, tuning)
        assert (outcome.champion, outcome.finalists) == (candidates[0], [])

    def test_baselines_run_at_their_better_learning_rate_from_the_champion_seeds(
        self, sweep: Sweep, work: Path, candidates: list[Any], tuning: list[dict[str, Any]]
    ) -> None:
        outcome = self.crown(sweep, work, tuning)
        rates = {t.contender.name: t.contender.learning_rate for t in outcome.trainings}
        assert rates == {"champion": 0.1, **{name: better for name, (_, better) in RATES.items()}}
        seeds = {
            name: [t.seed for t in outcome.trainings if t.contender.name == name] for name in rates
        }
        assert len(set(seeds["champion"])) == 2
        assert set(map(tuple, seeds.values())) == {tuple(seeds["champion"])}
        assert not set(seeds["champion"]) & {t.seed for t in outcome.finalists}
        assert outcome.mean_accuracy == pytest.approx(
            sum(t.test_accuracy or 0 for t in outcome.trainings if t.contender.name == "champion")
            / 2
        )
        assert outcome.network == sweep.memo.weights(outcome.trainings[0].key)

    def test_lost_weights_are_named(
        self, sweep: Sweep, work: Path, candidates: list[Any], tuning: list[dict[str, Any]]
    ) -> None:
        for path in (work / "store" / "digits" / "trainings").glob("*.safetensors"):
            path.unlink()
        outcome = self.crown(sweep, work, tuning)
        key = outcome.trainings[0].key
        (work / "store" / "digits" / "trainings" / f"{key}.safetensors").unlink()
        with pytest.raises(
            InputError, match=rf"trainings/{key}\.safetensors is gone; remove the \.json beside it"
        ):
            self.crown(sweep, work, tuning)


class TestStanding:
    """The champion of an earlier search, which the new one has to beat."""

    THETA: ClassVar = [0.0, 0.0, 0.0, -2.0, 0.0, 4.0, -1.0, 0.0]

    def outcome(self, sweep: Sweep, work: Path, generations: int = 1) -> stages.Outcome:
        for number in range(1, generations + 1):
            if sweep.search.complete_generations() < number:
                generation(
                    sweep, number, [result(sweep, 0.5 + 0.1 * i, 10.0, 11.0) for i in range(4)]
                )
        tuning = [trained("cross-entropy", 0.6)]
        return stages.crown(sweep, str(work / "search_data"), str(work / "full_data"), tuning)

    def standing(self, sweep: Sweep, theta: list[float]) -> Sweep:
        standing = {"version": "7", "study": "digits", "theta": theta, "learning_rate": 0.2}
        return dataclasses.replace(sweep, generations=1, standing=standing)

    def test_is_trained_from_the_seeds_of_the_champion_with_its_own_learning_rate(
        self, sweep: Sweep, work: Path
    ) -> None:
        outcome = self.outcome(self.standing(sweep, self.THETA), work)
        champion = [t for t in outcome.trainings if t.contender.name == "champion"]
        assert [t.seed for t in outcome.standing] == [t.seed for t in champion]
        assert {t.contender.learning_rate for t in outcome.standing} == {0.2}
        assert {tuple(t.contender.theta) for t in outcome.standing} == {tuple(self.THETA)}
        record = sweep_record(
            self.standing(sweep, self.THETA),
            [trained("cross-entropy", 0.6)],
            outcome.as_dict(),
            ROBUST,
        )
        assert record.standing is not None
        assert (record.standing.version, record.standing.study) == ("7", "digits")
        assert record.standing.p_value == paired(
            [t.test_accuracy for t in champion], [t.test_accuracy for t in outcome.standing]
        )
        assert [row.loss for row in record.comparison] == ["champion", "cross-entropy"]

    def test_is_not_trained_where_it_is_the_same_or_the_search_goes_on(
        self, sweep: Sweep, work: Path
    ) -> None:
        same = self.outcome(sweep, work).champion.theta
        assert self.outcome(self.standing(sweep, same), work).standing == []
        unfinished = dataclasses.replace(self.standing(sweep, self.THETA), generations=2)
        assert self.outcome(unfinished, work).standing == []

    @pytest.mark.parametrize(("gain", "moved"), [(0.2, True), (-0.2, False)])
    def test_the_alias_moves_to_a_better_champion_alone(
        self, gain: float, moved: bool, sweep: Sweep, work: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tuning, page = [trained("cross-entropy", 0.6)], str(work / "page")
        sweep = dataclasses.replace(sweep, generations=1)
        outcome = self.outcome(sweep, work)
        files = champion_files(outcome, work)
        for _ in range(2):  # the second time, as a task that is tried again
            telling.write_report(sweep, tuning, outcome.as_dict(), ROBUST, files, page)
            assert "models:/digits-loss@champion is version 1 now" in capsys.readouterr().out
        assert environment.Sweep.read(str(work / "sweep")).search.finished

        second = opened(work, 1, search_renew=True)
        assert second.standing == {
            "version": "1", "study": "digits", "theta": outcome.champion.theta, "learning_rate": 0.1
        }  # fmt: skip
        outcome = self.outcome(second, work)
        content = outcome.as_dict()
        for index, (ours, theirs) in enumerate(
            zip(content["trainings"], content["standing"], strict=False)
        ):
            theirs["test_accuracy"] = ours["test_accuracy"] - gain - 1e-4 * index
        telling.write_report(second, tuning, content, ROBUST, champion_files(outcome, work), page)
        output = capsys.readouterr().out
        assert (
            f"The new champion {'beats' if moved else 'does not beat'} the standing one (version 1, "
            in output
        )
        loss = taylorglo.load_loss("models:/digits-loss@champion")
        assert loss.provenance["study"] == ("digits.2" if moved else "digits")
        assert taylorglo.load_loss("models:/digits-loss/2").theta.tolist() == outcome.champion.theta


def champion_files(outcome: stages.Outcome, folder: Path) -> dict[str, Path]:
    """The champion's files, as train_champion writes them."""
    files = {name: folder / name for name in ("loss.json", "model.safetensors")}
    outcome.loss.save(files["loss.json"])
    outcome.save_network(str(files["model.safetensors"]))
    return files


ROBUST = {"rows": [], "started": 0.0, "ended": 0.0}


class TestSweepRecord:
    """Time spans in seconds after the start of the sweep."""

    def record(self, sweep: Sweep, spans: dict[str, list[tuple[float, float]]], wall: float) -> Any:
        start = time.time() - wall
        sweep = dataclasses.replace(sweep, started=start)
        at = {name: [(start + a, start + b) for a, b in own] for name, own in spans.items()}
        generation(sweep, 1, [result(sweep, 0.5, *span) for span in at["candidates"]])
        (attack,) = at["attack"]
        return sweep_record(
            sweep,
            [trained("cross-entropy", 0.6, 0.1, *span) for span in at["tuning"]],
            {
                "champion": {
                    "theta": [1.0] * 8,
                    "order": 3,
                    "fitness": 0.5,
                    "generation": 1,
                    "trial": 0,
                },
                "finalists": [trained("finalist", 0.6, 0.1, *span) for span in at["finalists"]],
                "standing": [],
                "complete": True,
                "trainings": [
                    trained(name, accuracy, 0.1, *span)
                    for name in ("champion", "cross-entropy")
                    for accuracy, span in zip((0.6, 0.7), at["final"], strict=True)
                ],
            },
            {
                "rows": [
                    {"loss": "champion", "attack": "worst", "epsilon": 0.1, "accuracies": [0.4]}
                ],
                "started": attack[0],
                "ended": attack[1],
            },
        )

    def test_time_is_counted_once_where_tasks_run_side_by_side(self, sweep: Sweep) -> None:
        spans = {
            "candidates": [(10, 20), (12, 22), (30, 35), (30, 34)],  # 12 + 5
            "tuning": [(40, 45), (50, 55)],
            "finalists": [(60, 62)],
            "final": [(62, 70), (69, 75)],
            "attack": [(80, 90)],
        }
        record = self.record(sweep, spans, 100)
        *stages_, rest = record.seconds.values()
        assert stages_ == pytest.approx([17, 10, 15, 10], abs=1e-3)
        assert record.wall_seconds == pytest.approx(100, abs=2)
        assert record.training_share == pytest.approx(42 / record.wall_seconds)
        assert rest == pytest.approx(record.wall_seconds - 52)
        assert record.generations[0].seconds == pytest.approx(17, abs=1e-3)

    def test_stages_side_by_side(self, sweep: Sweep) -> None:
        """As on a cluster, where the baselines are tuned while candidates are trained."""
        spans = {
            "candidates": [(0, 80)],
            "tuning": [(10, 90)],
            "finalists": [(90, 91)],
            "final": [(91, 92), (92, 93)],
            "attack": [(93, 94)],
        }
        record = self.record(sweep, spans, 100)
        assert list(record.seconds.values())[:2] == pytest.approx([80, 80], abs=1e-3)
        assert record.training_share == pytest.approx(93 / record.wall_seconds)
        assert list(record.seconds.values())[-1] == pytest.approx(record.wall_seconds - 94)

    def test_what_an_earlier_run_did_is_not_counted(self, sweep: Sweep) -> None:
        spans = {
            "candidates": [(-500, -400), (-5, 5)],
            "tuning": [(-300, -200)],
            "finalists": [(-100, -90)],
            "final": [(10, 20), (20, 30)],
            "attack": [(30, 40)],
        }
        record = self.record(sweep, spans, 50)
        assert list(record.seconds.values())[:4] == pytest.approx([5, 0, 20, 10], abs=1e-3)
        assert record.training_share == pytest.approx(25 / record.wall_seconds)

    def test_p_values_and_groups(self, sweep: Sweep) -> None:
        spans = {
            "candidates": [(0, 1)],
            "tuning": [(1, 2), (2, 3)],
            "finalists": [],
            "final": [(3, 4)] * 2,
            "attack": [(4, 5)],
        }
        record = self.record(sweep, spans, 10)
        assert [(row.loss, row.p_value) for row in record.comparison] == [
            ("champion", None),
            ("cross-entropy", pytest.approx(1.0)),  # the same accuracies
        ]
        assert [row.accuracies for row in record.tuning] == [[0.6, 0.6]]


class TestRetried:
    def test_a_failing_service_is_tried_again_so_often_and_no_more(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(environment.time, "sleep", pauses.append)
        outcomes: list[Any] = [ServiceError("gone"), ServiceError("gone"), "back"]

        def action() -> str:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return str(outcome)

        assert environment.retried(2, action) == "back"
        assert pauses == [10, 10]
        assert capsys.readouterr().out.splitlines()[-1] == "taylorglo: gone; trying again (2 of 2)"
        outcomes[:] = [ServiceError("gone")] * 2
        with pytest.raises(ServiceError):
            environment.retried(1, action)
        outcomes[:] = [InputError("wrong"), "never"]
        with pytest.raises(InputError):
            environment.retried(5, action)
        assert outcomes == ["never"]


class TestTask:
    def test_an_error_of_the_user_is_lines_and_status_2(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as exit_, environment.task():
            raise InputError("one\ntwo")
        assert exit_.value.code == 2
        assert capsys.readouterr().out == "taylorglo: error: one\ntaylorglo: error: two\n"

    def test_an_error_of_ours_is_a_traceback(self) -> None:
        with pytest.raises(ZeroDivisionError), environment.task():
            raise ZeroDivisionError

    def test_artifacts_hold_finite_numbers_alone(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            environment.write_json(str(tmp_path / "artifact"), [float("nan")])
        assert not (tmp_path / "artifact").exists()


def test_the_tracker_joins_the_run_of_the_artifact(sweep: Sweep) -> None:
    assert isinstance(sweep.tracker, Tracker)
    assert sweep.tracker.run_id == sweep.run_id
