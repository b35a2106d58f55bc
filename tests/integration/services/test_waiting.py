"""On a cluster, a task waits for a real service that is away, and goes on when it is back."""

from pathlib import Path

import pytest
from clocks import Clock
from mlflow import MlflowClient
from servers import MlflowServer

from taylorglo import retries
from taylorglo.errors import ServiceError
from taylorglo.services.storage import S3Store
from taylorglo.services.tracking import Tracker
from taylorglo.variables import SERVICE_TIMEOUT


def test_mlflow_is_waited_for_until_it_is_back(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    server = MlflowServer(uri, str(tmp_path / "served"), tmp_path / "server.log")
    with pytest.raises(ServiceError):
        Tracker.open(server.uri, "away", run_name="run")
    clock = Clock(during=server.start)
    monkeypatch.setattr(retries, "time", clock)
    monkeypatch.setenv(SERVICE_TIMEOUT, "60")
    try:
        tracker = Tracker.open(server.uri, "away", run_name="run")
        assert clock.pauses == [15]
        tracker.log_metrics({"accuracy": 0.75})
        run = MlflowClient(server.uri).get_run(tracker.run_id)
    finally:
        server.stop()
    assert run.data.metrics == {"accuracy": 0.75}


def test_a_store_is_waited_for_until_the_time_is_up(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        (SERVICE_TIMEOUT, "40"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("taylorglo.services.storage._TRIES", 1)
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)
    store = S3Store("bucket")
    path = tmp_path / "file"
    path.write_bytes(b"x")
    for method, arguments in (
        (store.write, ("key", b"x")),
        (store.read, ("key",)),
        (store.exists, ("key",)),
        (store.upload, (path, "key")),
        (store.download, ("key", tmp_path / "copy")),
        (store.versions, ("key",)),
    ):
        clock.pauses.clear()
        with pytest.raises(ServiceError, match="after 1 tries"):
            method(*arguments)
        assert clock.pauses == [15, 15, 10], method
