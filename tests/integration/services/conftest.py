"""MLflow for the tests of this folder: SQLite files, and a real tracking server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import mlflow_database, mlflow_server

from taylorglo.services.tracking import Tracker


@pytest.fixture(autouse=True)
def _no_injected_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """The URI of a new database of MLflow."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(mlflow_database())
    return f"sqlite:///{path}"


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> Tracker:
    """Open a parent run whose artifacts are in the folder ``artifacts``."""
    artifacts = str(tmp_path / "artifacts")
    return Tracker.open(uri, "digits", run_name="first", artifact_location=artifacts)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the artifacts of the server."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a tracking server, which keeps the artifacts, too; return its URI.

    All tests share it, because its start takes seconds. Each of them has names of its own there.
    """
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(mlflow_database())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with mlflow_server(uri, str(served), folder / "server.log") as running:
        yield running.uri
