"""A server that speaks KFP's REST API, a sweep for it, and the ways to call it."""

from collections.abc import Iterator
from pathlib import Path

import kfp_server_api
import pytest
from clocks import Clock
from kfp_answers import Client
from kfp_samples import SHORT, TOKEN, Cli, Follow, write_kubeconfig
from kfp_server import KubeflowServer

from taylorglo_pipelines.cli import main
from taylorglo_pipelines.config import Config, load
from taylorglo_pipelines.kubeflow.client import Access, Connection
from taylorglo_pipelines.kubeflow.runs import submit
from taylorglo_pipelines.kubeflow.wait import wait
from taylorglo_pipelines.pipeline import compile as compile_

_COMPILED: dict[str, compile_.Compiled] = {}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the developer's own clusters: a kubeconfig is looked for in ``tmp_path``."""
    for name in (
        "ENDPOINT",
        "UI_ENDPOINT",
        "SA_TOKEN_PATH",
        "DEFAULT_EXPERIMENT_NAME",
        "OVERRIDE_EXPERIMENT_NAME",
    ):
        monkeypatch.delenv(f"KF_PIPELINES_{name}", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )


@pytest.fixture(scope="module", autouse=True)
def quick_client() -> Iterator[None]:
    """Read the answers of Kubeflow faster; a test of it compares it with the generated client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kfp_server_api, "ApiClient", Client)
        yield


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """Compile each configuration once in all these tests: the same one gives the same bytes."""
    in_full = compile_._compiled

    def remembered(config: Config) -> compile_.Compiled:
        key = config.model_dump_json()
        if key not in _COMPILED:
            _COMPILED[key] = in_full(config)
        return _COMPILED[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_, "_compiled", remembered)
        yield


@pytest.fixture
def server() -> Iterator[KubeflowServer]:
    """The test server; the test fails if the client sent, or was sent, what the models refuse."""
    with KubeflowServer() as running:
        yield running
        assert running.broken == []


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """A sweep's file."""
    path = tmp_path / "tiny.yaml"
    path.write_text("name: tiny\npipeline: {generations: 1, shards: 1}\n")
    return path


@pytest.fixture
def config(config_path: Path) -> Config:
    """The sweep."""
    return load(config_path)


@pytest.fixture
def connection(server: KubeflowServer) -> Connection:
    """A connection to the test server, with short pauses."""
    return Connection.open(Access(server.url), delays=SHORT)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, without its pauses."""
    monkeypatch.setattr("taylorglo.retries.time", Clock())

    def run(*words: object) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert TOKEN not in captured.out + captured.err
        return status, captured.out, captured.err

    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the waiting, whose pauses take no time."""
    clock = Clock()
    monkeypatch.setattr("taylorglo_pipelines.kubeflow.wait.time", clock)
    return clock


@pytest.fixture
def kubeconfig(server: KubeflowServer, tmp_path: Path) -> Path:
    """A kubeconfig of the cluster that the test server stands for."""
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, server.url)
    return path


@pytest.fixture
def follow(connection: Connection, config: Config, clock: Clock) -> Follow:
    """Wait for a run, or for a new one, and return the lines that are said."""

    def start_and_wait(
        run_id: str = "", connection: Connection = connection, lines: list[str] | None = None
    ) -> list[str]:
        lines = [] if lines is None else lines
        run_id = run_id or submit(config, connection, "").run_id
        wait(connection, run_id, lines.append, poll=30.0, patience=(0.01,) * 5)
        return lines

    return start_and_wait
