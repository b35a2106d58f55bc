"""MLflow for real: on SQLite, and behind its own server."""

import json
import logging
import math
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from servers import mlflow_server

import taylorglo
from taylorglo.errors import InputError, ServiceError
from taylorglo.loss.functions import TaylorLoss
from taylorglo.services.tracking import Tracker

PASSWORD = "hunter2"


@pytest.fixture(autouse=True)
def no_injected_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: creating one takes seconds, copying one does not."""
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    Tracker.open(f"sqlite:///{path}", "template", run_name="template")
    return path


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(template, tmp_path / 'mlflow.db')}"


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> Tracker:
    return Tracker.open(
        uri, "digits", run_name="first", artifact_location=str(tmp_path / "artifacts")
    )


def candidate(trial: int, **changes: Any) -> dict[str, Any]:
    return {
        "trial": trial,
        "theta": [0.5, -1.25, float(trial)],
        "coefficients": {"c_0": 4.0, "c_h": -1.5},
        "fitness": 0.75,
        "status": "ok",
        "reason": "",
        "accuracies": [0.7, 0.8],
        "curve": [[100, 0.5, 1.5], [200, 0.75, 0.9]],
        "seconds": 2.5,
        "started": 1_700_000_000.25,
        "ended": 1_700_000_002.75,
    } | changes


def nested(uri: str, tracker: Tracker) -> dict[str, Any]:
    """The nested runs of the tracker's parent, by name; a doubled name fails."""
    query = f"tags.`mlflow.parentRunId` = '{tracker.run_id}'"
    runs = MlflowClient(tracking_uri=uri).search_runs([tracker.experiment_id], query)
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted(
        (m.step, m.value) for m in MlflowClient(tracking_uri=uri).get_metric_history(run_id, key)
    )


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, taylorglo.services.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestParent:
    def test_open_creates_experiment_and_run(
        self, uri: str, tracker: Tracker, tmp_path: Path
    ) -> None:
        client = MlflowClient(tracking_uri=uri)
        run = client.get_run(tracker.run_id)
        assert (run.info.run_name, run.info.status, run.info.experiment_id) == (
            "first",
            "RUNNING",
            tracker.experiment_id,
        )
        experiment = client.get_experiment(tracker.experiment_id)
        assert (experiment.name, experiment.artifact_location) == (
            "digits",
            str(tmp_path / "artifacts"),
        )

    def test_second_run_shares_the_experiment(self, uri: str, tracker: Tracker) -> None:
        second = Tracker.open(uri, "digits", run_name="second")
        assert second.experiment_id == tracker.experiment_id
        assert second.run_id != tracker.run_id

    def test_experiment_created_by_another_process_in_between(
        self, uri: str, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = MlflowClient.get_experiment_by_name, []

        def late(self: MlflowClient, name: str) -> Any:
            calls.append(name)
            return None if len(calls) == 1 else real(self, name)

        monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
        assert Tracker.open(uri, "digits", run_name="second").experiment_id == tracker.experiment_id
        assert len(calls) == 2

    def test_deleted_experiment_is_named(self, uri: str, tracker: Tracker) -> None:
        MlflowClient(tracking_uri=uri).delete_experiment(tracker.experiment_id)
        with pytest.raises(InputError, match="experiment 'digits': was deleted"):
            Tracker.open(uri, "digits", run_name="second")

    @pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
    def test_finish_then_resume(self, uri: str, tracker: Tracker, status: Any) -> None:
        client = MlflowClient(tracking_uri=uri)
        tracker.finish(status)
        assert client.get_run(tracker.run_id).info.status == status
        resumed = Tracker.open(uri, "another name", run_name="again", resume_run_id=tracker.run_id)
        assert (resumed.run_id, resumed.experiment_id) == (tracker.run_id, tracker.experiment_id)
        assert client.get_run(tracker.run_id).info.status == "RUNNING"
        assert client.get_experiment_by_name("another name") is None

    def test_attach_finds_the_experiment(self, uri: str, tracker: Tracker) -> None:
        attached = Tracker.attach(uri, tracker.run_id)
        assert (attached.run_id, attached.experiment_id) == (tracker.run_id, tracker.experiment_id)

    @pytest.mark.parametrize("run_id", ["0" * 32, "no/such run"])
    def test_unknown_run_is_named(
        self, uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(InputError, match=f"parent run '{run_id}': there is no such run"):
            Tracker.attach(uri, run_id)
        with pytest.raises(InputError, match=f"run to resume '{run_id}'"):
            Tracker.open(uri, "digits", run_name="x", resume_run_id=run_id)
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        with pytest.raises(InputError, match=f"MLFLOW_RUN_ID '{run_id}'"):
            Tracker.open(uri, "digits", run_name="x")

    def test_deleted_run_is_named(self, uri: str, tracker: Tracker) -> None:
        MlflowClient(tracking_uri=uri).delete_run(tracker.run_id)
        with pytest.raises(InputError, match="was deleted"):
            Tracker.attach(uri, tracker.run_id)

    def test_injected_run_is_the_parent_and_is_left_to_its_owner(
        self, uri: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = MlflowClient(tracking_uri=uri)
        experiment_id = client.create_experiment("of the scheduler")
        injected = client.create_run(experiment_id).info.run_id
        other = client.create_run(experiment_id).info.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", injected)
        tracker = Tracker.open(uri, "digits", run_name="ours", resume_run_id=other)
        assert (tracker.run_id, tracker.experiment_id) == (injected, experiment_id)
        assert client.get_experiment_by_name("digits") is None
        tracker.finish()
        assert client.get_run(injected).info.status == "RUNNING"

    def test_injected_run_that_ended_is_not_reopened(
        self, uri: str, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tracker.finish()
        monkeypatch.setenv("MLFLOW_RUN_ID", tracker.run_id)
        Tracker.open(uri, "digits", run_name="ours")
        assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).info.status == "FINISHED"

    def test_global_state_is_untouched(self, tracker: Tracker) -> None:
        import mlflow

        tracker.log_metrics({"fitness": 0.5})
        assert mlflow.active_run() is None
        assert str(tracker.run_id) not in mlflow.get_tracking_uri()


class TestParentContents:
    def test_settings(self, uri: str, tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
        settings = {"seed": 0, "training_nesterov": True, "rate": 0.1, "long": "x" * 7000}
        settings |= {
            f"setting_{index}": index for index in range(150)
        }  # more than one batch of MLflow
        with caplog.at_level(logging.WARNING, "taylorglo.services.tracking"):
            tracker.log_settings(settings)
            tracker.log_settings(settings)
        assert not caplog.records
        params = MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.params
        assert params == {key: str(value)[:6000] for key, value in settings.items()}

    def test_changed_setting_keeps_its_first_value_and_is_reported(
        self, uri: str, tracker: Tracker, caplog: pytest.LogCaptureFixture
    ) -> None:
        tracker.log_settings({"seed": 0, "popsize": 8})
        with caplog.at_level(logging.WARNING, "taylorglo.services.tracking"):
            tracker.log_settings({"seed": 1, "popsize": 8, "sigma": 1.2})
        assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["seed"]
        params = MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.params
        assert params == {"seed": "0", "popsize": "8", "sigma": "1.2"}

    @pytest.mark.parametrize(
        ("given", "stored"),
        [
            (f"postgresql://user:{PASSWORD}@db:5432/optuna", "postgresql://db:5432/optuna"),
            (f"http://user:{PASSWORD}/x@host/path", "http://host/path"),
            (f"http://user:{PASSWORD}@x@host:80/path", "http://host:80/path"),
            (
                f"study=postgresql://u:{PASSWORD}@db/a and s3://bucket/key@2",
                "study=postgresql://db/a and s3://bucket/key@2",
            ),
            ("http://host:8080/a@b", "http://host:8080/a@b"),
            ("a@b:c", "a@b:c"),
        ],
    )
    def test_no_credentials_are_stored(
        self, uri: str, tracker: Tracker, tmp_path: Path, given: str, stored: str
    ) -> None:
        tracker.log_settings({"data_root": given})
        tracker.log_dataset(
            name="d", fingerprint="f" * 64, source=given, splits={"train": 1}, num_classes=2
        )
        tracker.log_candidates(0, [candidate(0, status="failed", reason=given)])
        run = MlflowClient(tracking_uri=uri).get_run(tracker.run_id)
        assert run.data.params["data_root"] == stored
        assert json.loads(run.inputs.dataset_inputs[0].dataset.source) == {"uri": stored}
        assert nested(uri, tracker)["g00-c000"].data.tags["taylorglo.reason"] == stored
        assert PASSWORD.encode() not in (tmp_path / "mlflow.db").read_bytes()

    def test_dataset(self, uri: str, tracker: Tracker) -> None:
        splits = {"train": 1078, "validation": 269, "test": 450}
        for _ in range(2):
            tracker.log_dataset(
                name="digits",
                fingerprint="0123456789abcdef" * 4,
                source="s3://b/k",
                splits=splits,
                num_classes=10,
            )
        inputs = MlflowClient(tracking_uri=uri).get_run(tracker.run_id).inputs.dataset_inputs
        assert {
            i.tags[0].value: json.loads(i.dataset.profile)["num_rows"] for i in inputs
        } == splits
        assert len(inputs) == 3
        assert {i.dataset.name for i in inputs} == {
            "digits-train",
            "digits-validation",
            "digits-test",
        }
        assert {(i.dataset.digest, i.dataset.source_type) for i in inputs} == {
            ("0123456789abcdef0123456789abcdef0123", "s3")
        }

    def test_metrics_that_are_not_finite_are_dropped(self, uri: str, tracker: Tracker) -> None:
        tracker.log_metrics(
            {"best": 0.5, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}, step=1
        )
        tracker.log_metrics({"best": 0.25}, step=2)
        tracker.log_metrics({"nan": math.nan})
        assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.metrics == {"best": 0.25}
        assert history(uri, tracker.run_id, "best") == [(1, 0.5), (2, 0.25)]

    def test_files_bear_the_names_of_their_keys(self, tracker: Tracker, tmp_path: Path) -> None:
        source = tmp_path / "kfp-output"
        source.write_text("<html>")
        tracker.log_files({"report.html": source, "figures/loss.json": source})
        artifacts = tmp_path / "artifacts" / tracker.run_id / "artifacts"
        assert (artifacts / "report.html").read_text() == "<html>"
        assert (artifacts / "figures" / "loss.json").read_text() == "<html>"
        assert not any(path.is_symlink() for path in artifacts.rglob("*"))

    @pytest.mark.parametrize("name", ["../escape", "/etc/absolute", ""])
    def test_artifact_outside_the_run_is_refused(
        self, tracker: Tracker, tmp_path: Path, name: str
    ) -> None:
        source = tmp_path / "file"
        source.touch()
        with pytest.raises(InputError, match="relative path inside the run"):
            tracker.log_files({name: source})

    def test_missing_file_is_named(self, tracker: Tracker, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"artifact 'report.html': there is no file .*absent"):
            tracker.log_files({"report.html": tmp_path / "absent"})

    def test_artifact_store_that_fails(self, tracker: Tracker, tmp_path: Path) -> None:
        (tmp_path / "artifacts").write_text("a file where the folder should be")
        with pytest.raises(ServiceError, match="MLflow at sqlite"):
            tracker.log_files({"report.html": Path(__file__)})


class TestCandidates:
    def test_contents(self, uri: str, tracker: Tracker) -> None:
        tracker.log_candidates(3, [candidate(41)])
        run = nested(uri, tracker)["g03-c041"]
        assert (run.info.start_time, run.info.end_time) == (1_700_000_000_250, 1_700_000_002_750)
        assert run.info.status == "FINISHED"
        assert run.data.params == {
            "theta": "0.5, -1.25, 41.0",
            "theta_0": "0.5",
            "theta_1": "-1.25",
            "theta_2": "41.0",
            "coefficient_c_0": "4.0",
            "coefficient_c_h": "-1.5",
        }
        assert {
            key: value for key, value in run.data.tags.items() if key.startswith("taylorglo.")
        } == {
            "taylorglo.stage": "candidate",
            "taylorglo.generation": "3",
            "taylorglo.trial": "41",
            "taylorglo.status": "ok",
            "taylorglo.reason": "",
        }
        assert (run.data.metrics["fitness"], run.data.metrics["seconds"]) == (0.75, 2.5)
        assert history(uri, run.info.run_id, "validation_accuracy") == [(100, 0.5), (200, 0.75)]
        assert history(uri, run.info.run_id, "validation_loss") == [(100, 1.5), (200, 0.9)]
        assert history(uri, run.info.run_id, "attempt_accuracy") == [(0, 0.7), (1, 0.8)]

    def test_a_long_curve_is_kept_whole(self, uri: str, tracker: Tracker) -> None:
        tracker.log_candidates(0, [candidate(0, curve=[[step, 0.5, 1.0] for step in range(1200)])])
        run_id = nested(uri, tracker)["g00-c000"].info.run_id
        assert history(uri, run_id, "validation_loss") == [(step, 1.0) for step in range(1200)]

    @pytest.mark.parametrize(
        ("status", "ended_as"), [("ok", "FINISHED"), ("diverged", "FINISHED"), ("failed", "FAILED")]
    )
    def test_status(self, uri: str, tracker: Tracker, status: str, ended_as: str) -> None:
        changes = {
            "status": status,
            "reason": "loss is nan",
            "fitness": math.nan,
            "accuracies": [None],
        }
        tracker.log_candidates(
            0, [candidate(0, **changes, curve=[[100, 0.1, math.inf], [200, None, math.nan]])]
        )
        run = nested(uri, tracker)["g00-c000"]
        assert run.info.status == ended_as
        assert run.data.tags["taylorglo.status"] == status
        assert run.data.metrics == {"seconds": 2.5, "validation_accuracy": 0.1}

    def test_logging_twice_doubles_nothing(self, uri: str, tracker: Tracker) -> None:
        tracker.log_candidates(0, [candidate(trial) for trial in range(3)])
        before = nested(uri, tracker)
        again = Tracker.attach(uri, tracker.run_id)
        again.log_candidates(0, [candidate(trial, fitness=0.1) for trial in range(5)])
        after = nested(uri, tracker)
        assert set(after) == {f"g00-c{trial:03d}" for trial in range(5)}
        for name, run in before.items():
            assert after[name].to_dictionary() == run.to_dictionary()

    def test_one_search_however_many_candidates(
        self, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        candidates = [candidate(trial) for trial in range(5)]
        tracker.log_candidates(0, candidates)
        calls: list[str] = []
        for name in ("search_runs", "get_run", "create_run", "log_batch", "set_terminated"):
            real = getattr(MlflowClient, name)

            def counted(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
                calls.append(_name)
                return _real(*args, **kwargs)

            monkeypatch.setattr(MlflowClient, name, counted)
        tracker.log_candidates(0, candidates)
        assert calls == ["search_runs"]

    @pytest.mark.parametrize("cut_off_at", ["log_batch", "set_terminated"])
    def test_a_candidate_cut_off_half_way_is_completed(
        self, uri: str, tracker: Tracker, cut_off_at: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, cut_off_at, killed)
            with pytest.raises(KeyboardInterrupt):
                tracker.log_candidates(0, [candidate(0)])
        assert nested(uri, tracker)["g00-c000"].info.status == "RUNNING"
        tracker.log_candidates(0, [candidate(0)])
        run = nested(uri, tracker)["g00-c000"]
        assert (run.info.status, run.data.metrics["fitness"]) == ("FINISHED", 0.75)
        assert history(uri, run.info.run_id, "validation_loss") == [(100, 1.5), (200, 0.9)]

    def test_generations_and_parents_do_not_mix(self, uri: str, tracker: Tracker) -> None:
        other = Tracker.open(uri, "digits", run_name="other")
        tracker.log_candidates(0, [candidate(0)])
        tracker.log_candidates(1, [candidate(1)])
        other.log_candidates(0, [candidate(0)])
        assert set(nested(uri, tracker)) == {"g00-c000", "g01-c001"}
        assert set(nested(uri, other)) == {"g00-c000"}


def log_final(tracker: Tracker, file: Path, accuracy: float = 0.97) -> str:
    return tracker.log_final(
        "baseline",
        "cross-entropy",
        params={"learning_rate": 0.1},
        metrics={"test_accuracy": accuracy, "p_value": math.nan},
        curves={"validation_accuracy": [(100, 0.5), (200, accuracy), (300, math.nan)]},
        files={"network.safetensors": file},
    )


class TestFinal:
    def test_contents(self, uri: str, tracker: Tracker, tmp_path: Path) -> None:
        source = tmp_path / "weights"
        source.write_bytes(b"weights")
        run_id = log_final(tracker, source)
        run = nested(uri, tracker)["cross-entropy"]
        assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
        assert (run.data.tags["taylorglo.stage"], run.data.params) == (
            "baseline",
            {"learning_rate": "0.1"},
        )
        assert run.data.metrics == {"test_accuracy": 0.97, "validation_accuracy": 0.97}
        assert history(uri, run_id, "validation_accuracy") == [(100, 0.5), (200, 0.97)]
        stored = tmp_path / "artifacts" / run_id / "artifacts" / "network.safetensors"
        assert stored.read_bytes() == b"weights"

    def test_a_second_time_replaces_the_first(self, uri: str, tracker: Tracker) -> None:
        log_final(tracker, Path(__file__), 0.5)
        tracker.log_final("baseline", "squared-error", params={}, metrics={}, curves={}, files={})
        tracker.log_final("champion", "champion", params={}, metrics={}, curves={}, files={})
        tracker.log_candidates(0, [candidate(0)])
        second = log_final(tracker, Path(__file__))
        runs = nested(uri, tracker)
        assert set(runs) == {"cross-entropy", "squared-error", "champion", "g00-c000"}
        assert runs["cross-entropy"].info.run_id == second
        assert runs["cross-entropy"].data.metrics["test_accuracy"] == 0.97

    def test_the_same_again_is_the_first(self, uri: str, tracker: Tracker) -> None:
        first = log_final(tracker, Path(__file__))
        assert log_final(tracker, Path(__file__)) == first
        assert history(uri, first, "validation_accuracy") == [(100, 0.5), (200, 0.97)]
        MlflowClient(tracking_uri=uri).update_run(first, status="RUNNING")  # cut off half-way
        assert log_final(tracker, Path(__file__)) != first
        assert set(nested(uri, tracker)) == {"cross-entropy"}

    def test_a_failed_upload_leaves_the_earlier_run(
        self, uri: str, tracker: Tracker, tmp_path: Path
    ) -> None:
        first = log_final(tracker, Path(__file__))
        with pytest.raises(InputError, match="there is no file"):
            log_final(tracker, tmp_path / "absent")
        client = MlflowClient(tracking_uri=uri)
        assert client.get_run(first).info.lifecycle_stage == "active"
        log_final(tracker, Path(__file__))
        assert set(nested(uri, tracker)) == {"cross-entropy"}


class TestBadUri:
    @pytest.mark.parametrize(
        ("uri", "problem"),
        [
            ("", "should start with"),
            ("mlruns", "should start with"),
            ("ftp://host/x", "should start with"),
            ("http://", "has no host"),
            ("http://host:port", "malformed"),
            ("http://host:99999", "malformed"),
            ("http://[::1", "malformed"),
            (f"http://user:{PASSWORD}/1@host", "malformed"),
            (f"mysql://user:{PASSWORD}@host/db", "should start with"),
            ("sqlite:///", "should name a file"),
            ("sqlite:///:memory:", "should name a file"),
        ],
    )
    def test_is_refused_without_showing_a_password(self, uri: str, problem: str) -> None:
        with pytest.raises(InputError, match=problem) as caught:
            Tracker.attach(uri, "0" * 32)
        assert PASSWORD[:4] not in str(caught.value)

    def test_sqlite_in_no_folder_creates_none(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"there is no folder .*absent"):
            Tracker.open(f"sqlite:///{tmp_path}/absent/mlflow.db", "digits", run_name="x")
        assert not list(tmp_path.iterdir())

    def test_sqlite_that_is_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("these are notes, not a database")
        with pytest.raises(InputError, match=r"notes\.txt' is not an SQLite database"):
            Tracker.open(f"sqlite:///{tmp_path}/notes.txt", "digits", run_name="x")
        with pytest.raises(InputError, match="is not a file"):
            Tracker.open(f"sqlite:///{tmp_path.parent}/{tmp_path.name}", "digits", run_name="x")
        assert (tmp_path / "notes.txt").read_text() == "these are notes, not a database"

    def test_damaged_sqlite(self, tmp_path: Path) -> None:
        (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\x00" + bytes(4096))
        with pytest.raises(InputError, match="is not an SQLite database"):
            Tracker.open(f"sqlite:///{tmp_path}/mlflow.db", "digits", run_name="x")

    def test_database_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE studies (study_id INTEGER)")
        before = path.read_bytes()
        with pytest.raises(InputError, match="not one of MLflow"):
            Tracker.open(f"sqlite:///{path}", "digits", run_name="x")
        assert path.read_bytes() == before

    def test_sqlite_in_a_folder_that_is_not_writable(self) -> None:
        user = os.geteuid()
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # tmp_path lies in a folder that another user may not enter
            Path(folder).chmod(0o555)
            try:
                if user == 0:
                    os.seteuid(65534)  # root may write everywhere
                with pytest.raises(InputError, match="should be writable"):
                    Tracker.open(f"sqlite:///{folder}/mlflow.db", "digits", run_name="x")
            finally:
                os.seteuid(user)
                Path(folder).chmod(0o755)


def shard(uri: str, barrier: Any, run_ids: Any, parent: Any, first: int) -> None:
    """What a process of its own does: open a new database with another one, then log under one
    parent with it."""
    barrier.wait(60)
    run_ids.put(Tracker.open(uri, "digits", run_name=f"of {first}").run_id)
    tracker = Tracker.attach(uri, parent.get(timeout=60))
    for trial in range(first, first + 20):
        tracker.log_candidates(0, [candidate(trial)])
    run_ids.put(
        (os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    )


class TestConcurrency:
    def test_two_processes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "")
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
        context = multiprocessing.get_context("spawn")
        barrier, run_ids, parent = context.Barrier(2), context.Queue(), context.Queue()
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        processes = [
            context.Process(target=shard, args=(uri, barrier, run_ids, parent, first))
            for first in (0, 20)
        ]
        for process in processes:
            process.start()
        opened = [run_ids.get(timeout=60) for _ in processes]
        assert len(set(opened)) == 2
        for _ in processes:
            parent.put(opened[0])
        # MLflow's patience over http is cut short, but not that which the user asked for.
        assert [run_ids.get(timeout=60) for _ in processes] == [("3", "7")] * 2
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        output = capfd.readouterr()
        assert (output.out, output.err) == ("", "")
        assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
        runs = nested(uri, Tracker.attach(uri, opened[0]))
        assert set(runs) == {f"g00-c{trial:03d}" for trial in range(40)}
        assert {(run.info.status, run.data.metrics["fitness"]) for run in runs.values()} == {
            ("FINISHED", 0.75)
        }

    def test_a_locked_database_is_tried_again(
        self,
        uri: str,
        tracker: Tracker,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: Any,
    ) -> None:
        patience = "PRAGMA busy_timeout = 20000;"
        impatient = patience.replace("20000", "1")
        from mlflow.store.db import utils

        real = utils.sql.text
        monkeypatch.setattr(
            utils.sql, "text", lambda text: real(impatient if text == patience else text)
        )
        attempted = threading.Event()
        real_batch = MlflowClient.log_batch
        attempts: list[bool] = []

        def log_batch(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
            try:
                result = real_batch(self, *args, **kwargs)
            except Exception:
                attempts.append(False)
                attempted.set()
                raise
            attempts.append(True)
            return result

        monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
        lock = sqlite3.connect(
            tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False
        )
        lock.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=tracker.log_metrics, args=({"best": 0.5},))
        writer.start()
        assert attempted.wait(30)
        lock.execute("ROLLBACK")
        lock.close()
        writer.join(30)
        assert attempts[0] is False
        assert attempts[-1] is True
        assert history(uri, tracker.run_id, "best") == [(0, 0.5)]
        assert "Traceback" not in capfd.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(uri: str, tmp_path: Path) -> Iterator[str]:
    """A real tracking server, which also stores the artifacts."""
    with mlflow_server(uri, str(tmp_path / "served"), tmp_path / "server.log") as running:
        yield running.uri


class TestHttp:
    def test_everything_through_a_server(self, server: str, tmp_path: Path, capfd: Any) -> None:
        with pytest.raises(InputError, match=f"parent run '{'0' * 32}': there is no such run"):
            Tracker.attach(server, "0" * 32)
        tracker = Tracker.open(server, "digits", run_name="first")
        tracker.log_settings({"seed": 0})
        tracker.log_settings({"seed": 0})
        tracker.log_dataset(
            name="d", fingerprint="f" * 64, source="sklearn", splits={"train": 9}, num_classes=2
        )
        tracker.log_metrics({"best": 0.5, "nan": math.nan})
        for _ in range(2):
            tracker.log_candidates(0, [candidate(0), candidate(1)])
            log_final(tracker, Path(__file__))
        tracker.log_files({"figures/report.html": Path(__file__)})
        tracker.finish()
        assert set(nested(server, tracker)) == {"g00-c000", "g00-c001", "cross-entropy"}
        run = MlflowClient(tracking_uri=server).get_run(tracker.run_id)
        assert (run.info.status, run.data.params, run.data.metrics) == (
            "FINISHED",
            {"seed": "0"},
            {"best": 0.5},
        )
        assert len(run.inputs.dataset_inputs) == 1
        assert [
            path.name for path in (tmp_path / "served").rglob(f"{tracker.run_id}/**/*.html")
        ] == ["report.html"]
        resumed = Tracker.open(server, "digits", run_name="x", resume_run_id=tracker.run_id)
        assert MlflowClient(tracking_uri=server).get_run(resumed.run_id).info.status == "RUNNING"
        output = capfd.readouterr()
        assert (output.out, output.err) == ("", "")

    def test_refused_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        port = free_port()
        with pytest.raises(
            ServiceError, match=f"MLflow at http://127.0.0.1:{port}: .*refused"
        ) as caught:
            Tracker.open(f"http://user:{PASSWORD}@127.0.0.1:{port}", "digits", run_name="x")
        assert PASSWORD not in str(caught.value)
        assert "\n" not in str(caught.value)


THETA = [0.0, 0.0, 0.5, -1.25, 0.0, 2.0, 0.25, 0.0]


def logged_loss(tracker: Tracker, folder: Path, theta: list[float]) -> str:
    """A champion's run with its loss; returns its id."""
    path = folder / "loss.json"
    TaylorLoss(theta, classes=10, provenance={"learning_rate": 0.3}).save(path)
    return tracker.log_final(
        "champion", "champion", params={}, metrics={}, curves={}, files={"loss.json": path}
    )


class TestRegistry:
    """Registered on SQLite, and through a server, which is where the two ways of storing artifacts
    differ."""

    @pytest.fixture(params=["sqlite", "server"])
    def mlflow(self, request: pytest.FixtureRequest) -> str:
        return str(request.getfixturevalue({"sqlite": "uri", "server": "server"}[request.param]))

    def test_a_loss_is_registered_once_crowned_and_loaded(
        self, mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        location = str(tmp_path / "artifacts") if mlflow.startswith("sqlite") else None
        tracker = Tracker.open(mlflow, "digits", run_name="first", artifact_location=location)
        assert tracker.standing_champion("digits-loss") is None
        run_id = logged_loss(tracker, tmp_path, THETA)
        for _ in range(2):  # a report that is written again
            assert tracker.register_loss("digits-loss", run_id, "digits", THETA) == "1"
        assert tracker.standing_champion("digits-loss") is None
        for _ in range(2):
            assert tracker.move_champion("digits-loss", "1", former=None)
        assert tracker.standing_champion("digits-loss") == {
            "version": "1", "study": "digits", "theta": THETA, "learning_rate": 0.3
        }  # fmt: skip

        better = [*THETA[:-1], 1.0]
        other = logged_loss(Tracker.open(mlflow, "digits", run_name="second"), tmp_path, better)
        assert tracker.register_loss("digits-loss", other, "digits.2", better) == "2"
        assert not tracker.move_champion("digits-loss", "2", former=None), (
            "somebody else's is not moved"
        )
        assert not tracker.move_champion("digits-loss", "2", former="7")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
        assert taylorglo.load_loss("models:/digits-loss@champion").theta.tolist() == THETA
        assert tracker.move_champion("digits-loss", "2", former="1")
        assert taylorglo.load_loss("models:/digits-loss@champion").theta.tolist() == better
        assert taylorglo.load_loss("models:/digits-loss/1").theta.tolist() == THETA
        for name, problem in (
            ("digits-loss@nobody", "alias nobody not found"),
            ("nobody/1", "not found"),
            ("digits-loss/9", "not found"),
            ("digits-loss", "should be models:/NAME@ALIAS or models:/NAME/VERSION"),
        ):
            with pytest.raises(InputError, match=problem):
                taylorglo.load_loss(f"models:/{name}")
        output = capfd.readouterr()
        assert (output.out, output.err) == ("", "")

    def test_a_version_whose_run_was_deleted_is_registered_anew(
        self, uri: str, tracker: Tracker, tmp_path: Path
    ) -> None:
        first = logged_loss(tracker, tmp_path, THETA)
        assert tracker.register_loss("digits-loss", first, "digits", THETA) == "1"
        MlflowClient(tracking_uri=uri).delete_run(first)
        again = logged_loss(tracker, tmp_path, THETA)
        assert tracker.register_loss("digits-loss", again, "digits", THETA) == "2"

    def test_a_champion_that_is_no_loss_is_named(self, tracker: Tracker, tmp_path: Path) -> None:
        path = tmp_path / "loss.json"
        for content in ("", "[]", "{}", '{"theta": [1, 2]}', '{"theta": "x"}'):
            path.write_text(content)
            run_id = tracker.log_final(
                "champion", "c", params={}, metrics={}, curves={}, files={"loss.json": path}
            )
            version = tracker.register_loss("digits-loss", run_id, content, THETA)
            bearer = str(int(version) - 1) if version != "1" else None
            assert tracker.move_champion("digits-loss", version, former=bearer)
            with pytest.raises(
                InputError, match=rf"^models:/digits-loss/{version}: is not a saved loss: "
            ):
                tracker.standing_champion("digits-loss")

    def test_a_champion_whose_file_is_gone_is_named(self, tracker: Tracker, tmp_path: Path) -> None:
        version = tracker.register_loss(
            "digits-loss", logged_loss(tracker, tmp_path, THETA), "digits", THETA
        )
        tracker.move_champion("digits-loss", version, former=None)
        for path in (tmp_path / "artifacts").rglob("loss.json"):
            path.unlink()
        with pytest.raises(
            InputError,
            match=r"^models:/digits-loss/1: its loss\.json cannot be read from .*artifacts",
        ):
            tracker.standing_champion("digits-loss")

    def test_without_mlflow_there_is_nothing_to_load_from(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is not set"):
            taylorglo.load_loss("models:/digits-loss@champion")


def test_a_loss_is_loaded_from_files_and_importing_the_package_is_light(tmp_path: Path) -> None:
    TaylorLoss(THETA).save(tmp_path / "champion.json")
    assert taylorglo.load_loss(tmp_path / "champion.json").theta.tolist() == THETA
    assert taylorglo.load_loss(f"file://{tmp_path}/champion.json").theta.tolist() == THETA
    with pytest.raises(InputError, match="no such file"):
        taylorglo.load_loss(tmp_path / "nothing.json")
    code = "import sys, taylorglo; print(sorted({'torch', 'mlflow', 'boto3', 'kfp'} & set(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout == "[]\n"
