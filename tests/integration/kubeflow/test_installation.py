"""What ``make e2e-kfp`` does with a Kubeflow, tried on the server of these tests."""

import sys
from pathlib import Path

import pytest
from kfp_server import KubeflowServer

sys.path.append(str(Path(__file__).parents[2] / "e2e"))
from installation import PREFIX, Installation


@pytest.fixture
def kubeflow(server: KubeflowServer, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    return Installation.find()


def test_a_sweep_is_submitted_followed_and_removed(
    kubeflow: Installation, server: KubeflowServer
) -> None:
    server.script = [{"state": "RUNNING"}, {"state": "SUCCEEDED"}]
    outcome = kubeflow.submitted("workers", "pipeline.shards=2", seconds=120)
    assert outcome.status == 0, outcome.errors
    assert [run.run_id for run in kubeflow.runs()] == [outcome.run]
    assert outcome.reason == "the run has succeeded"
    assert kubeflow.table()[2].split()[0] == "workers"
    kubeflow.remove_everything()
    assert list(kubeflow.runs()) == []
    left = (server.runs, server.recurring_runs, server.pipelines, server.versions)
    assert not any(left)
    assert not [e for e in server.experiments.values() if e["display_name"].startswith(PREFIX)]


def test_a_sweep_that_fails_is_noted_with_its_reason(
    kubeflow: Installation, server: KubeflowServer
) -> None:
    server.script = [{"state": "FAILED", "error": {"code": 2, "message": "no such folder"}}]
    outcome = kubeflow.submitted("bad-data", seconds=120)
    assert outcome.status == 1
    assert "no such folder" in outcome.reason
    assert kubeflow.seen[0][2:] == ("status 1", outcome.reason)
