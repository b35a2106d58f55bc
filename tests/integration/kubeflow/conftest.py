"""A server that speaks KFP's REST API, a sweep for it, and the ways to call it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import Clock
from kfp_samples import SHORT, TOKEN, Cli
from kfp_server import KubeflowServer

from taylorglo_pipelines.cli import main
from taylorglo_pipelines.config import Config, load
from taylorglo_pipelines.kubeflow.client import Access, Connection


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
