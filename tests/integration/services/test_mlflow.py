"""The connection to MLflow: URIs, SQLite files, processes at once, and a real server."""

import math
import multiprocessing
import os
import socket
import sqlite3
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow_runs import (
    PASSWORD,
    candidate,
    description,
    history,
    log_baseline,
    log_candidates,
    nested_runs,
)

from taylorglo.errors import InputError, ServiceError
from taylorglo.services.tracking import Tracker


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
        ("sqlite:///", "should be sqlite:///PATH, with the path of a file"),
        ("sqlite:///:memory:", "should be sqlite:///PATH, with the path of a file"),
    ],
)
def test_a_bad_uri_is_refused_without_showing_a_password(uri: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        Tracker.attach(uri, "0" * 32)
    assert PASSWORD[:4] not in str(caught.value)


def test_a_missing_folder_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*absent"):
        Tracker.open(f"sqlite:///{tmp_path}/absent/mlflow.db", "digits", run_name="x")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, not a database")
    with pytest.raises(InputError, match=r"notes\.txt' is not an SQLite database"):
        Tracker.open(f"sqlite:///{path}", "digits", run_name="x")
    assert path.read_text() == "these are notes, not a database"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        Tracker.open(f"sqlite:///{tmp_path}", "digits", run_name="x")


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\x00" + bytes(4096))
    with pytest.raises(InputError, match="is not an SQLite database"):
        Tracker.open(f"sqlite:///{tmp_path}/mlflow.db", "digits", run_name="x")


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE studies (study_id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(InputError, match="not one of MLflow"):
        Tracker.open(f"sqlite:///{path}", "digits", run_name="x")
    assert path.read_bytes() == before


def test_a_folder_that_is_not_writable_is_refused() -> None:
    user = os.geteuid()
    # Another user may not enter the folders above pytest's tmp_path.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        try:
            # The superuser may write everywhere.
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(InputError, match="should be writable"):
                Tracker.open(f"sqlite:///{folder}/mlflow.db", "digits", run_name="x")
        finally:
            os.seteuid(user)
            Path(folder).chmod(0o755)


def open_and_log(uri: str, barrier: Any, messages: Any, parents: Any, first: int) -> None:
    """Open a new database together with another process, then log candidates.

    Args:
        uri: of the database.
        barrier: the processes wait here, so that they open the database at once.
        messages: queue to the test: the id of the opened run, then MLflow's settings.
        parents: queue from the test: the parent run of the candidates.
        first: number of the first of 20 candidates.
    """
    barrier.wait(60)
    messages.put(Tracker.open(uri, "digits", run_name=f"of {first}").run_id)
    tracker = Tracker.attach(uri, parents.get(timeout=60))
    for trial in range(first, first + 20):
        log_candidates(tracker, [candidate(trial)])
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    messages.put([os.environ[name] for name in names])


def test_two_processes_create_one_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    messages = context.Queue()
    parents = context.Queue()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    processes = [
        context.Process(target=open_and_log, args=(uri, barrier, messages, parents, first))
        for first in (0, 20)
    ]
    for process in processes:
        process.start()
    run_ids = [messages.get(timeout=60) for _ in processes]
    assert len(set(run_ids)) == 2
    for _ in processes:
        parents.put(run_ids[0])
    # The number of retries over http is reduced, but the user's own timeout is kept.
    assert [messages.get(timeout=60) for _ in processes] == [["2", "7"]] * 2
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    runs = nested_runs(uri, Tracker.attach(uri, run_ids[0]))
    assert set(runs) == {f"g001-c{trial:05d}" for trial in range(40)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.metrics["fitness"] for run in runs.values()} == {0.75}


def test_a_locked_database_is_tried_again(
    uri: str,
    tracker: Tracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from mlflow.store.db import utils

    # MLflow gives up at once, and does not wait 20 seconds for the lock.
    patient = "PRAGMA busy_timeout = 20000;"
    impatient = "PRAGMA busy_timeout = 1;"
    real_text = utils.sql.text
    monkeypatch.setattr(
        utils.sql, "text", lambda text: real_text(impatient if text == patient else text)
    )
    failed = threading.Event()
    successes: list[bool] = []
    real_batch = MlflowClient.log_batch

    def log_batch(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        try:
            result = real_batch(self, *args, **kwargs)
        except Exception:
            successes.append(False)
            failed.set()
            raise
        successes.append(True)
        return result

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    path = tmp_path / "mlflow.db"
    lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=tracker.log_metrics, args=({"best": 0.5},))
    writer.start()
    assert failed.wait(30)
    lock.execute("ROLLBACK")
    lock.close()
    writer.join(30)
    assert successes[0] is False
    assert successes[-1] is True
    assert history(uri, tracker.run_id, "best") == [(0, 0.5)]
    assert "Traceback" not in capfd.readouterr().err


def test_everything_is_logged_through_a_server(
    server: str, served: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=f"parent run '{'0' * 32}': there is no such run"):
        Tracker.attach(server, "0" * 32)
    tracker = Tracker.open(server, "through a server", run_name="first")
    tracker.log_settings({"seed": 0})
    tracker.log_settings({"seed": 0})
    tracker.log_dataset(description("sklearn", {"train": 9}))
    tracker.log_metrics({"best": 0.5, "nan": math.nan})
    for _ in range(2):
        log_candidates(tracker, [candidate(0), candidate(1)])
        log_baseline(tracker, Path(__file__))
    tracker.log_files({"figures/report.html": Path(__file__)})
    tracker.finish()
    assert set(nested_runs(server, tracker)) == {"g001-c00000", "g001-c00001", "cross-entropy"}
    run = MlflowClient(tracking_uri=server).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0"}
    assert run.data.metrics == {"best": 0.5}
    assert len(run.inputs.dataset_inputs) == 1
    pages = list(served.rglob(f"{tracker.run_id}/**/*.html"))
    assert [path.name for path in pages] == ["report.html"]
    resumed = Tracker.open(server, "through a server", run_name="x", resume_run_id=tracker.run_id)
    assert MlflowClient(tracking_uri=server).get_run(resumed.run_id).info.status == "RUNNING"
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == ""


def test_a_server_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    # The port is bound, so that nobody else can take it, but nobody listens on it.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ServiceError, match=f"MLflow at http://{address}: .*refused") as caught:
            Tracker.open(f"http://user:{PASSWORD}@{address}", "digits", run_name="x")
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)
