"""A run is followed to its end: changes of state, and why it failed or does not start."""

from collections.abc import Callable
from pathlib import Path

import pytest
from kfp_samples import SHORT, TOKEN, pod, tasks, write_kubeconfig
from kfp_server import Fault, KubeflowServer

from taylorglo.errors import InputError, ServiceError
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.kubeflow.client import Access, Connection
from taylorglo_pipelines.kubeflow.runs import submit
from taylorglo_pipelines.kubeflow.wait import RunFailedError, wait

Follow = Callable[..., list[str]]


@pytest.fixture
def follow(connection: Connection, config: Config) -> Follow:
    """Start a run, wait for it with short pauses, and return the lines that are said."""

    def start_and_wait(connection: Connection = connection, start: float = 0.1) -> list[str]:
        lines: list[str] = []
        run = submit(config, connection, "")
        patience = (0.01,) * 5
        wait(connection, run.run_id, lines.append, poll=0.02, patience=patience, start=start)
        return lines

    return start_and_wait


def test_every_change_of_a_task_is_said_once(follow: Follow, server: KubeflowServer) -> None:
    server.script = [
        {"state": "RUNNING", **tasks(prepare_dataset="RUNNING")},
        {"state": "RUNNING", **tasks(prepare_dataset="RUNNING")},
        {"state": "RUNNING", **tasks(prepare_dataset="SUCCEEDED", propose="PENDING")},
        {"state": "SUCCEEDED", **tasks(prepare_dataset="SUCCEEDED", propose="SUCCEEDED")},
    ]
    assert follow() == [
        "running    prepare-dataset",
        "succeeded  prepare-dataset",
        "pending    propose",
        "succeeded  propose",
    ]


def test_a_failed_task_is_named(follow: Follow, server: KubeflowServer) -> None:
    end = tasks(generation_1="FAILED", evaluate="FAILED")
    end["run_details"]["task_details"][-1]["error"] = {"code": 2, "message": "out of\nmemory"}
    server.script = [{"state": "FAILED", **end}]
    with pytest.raises(RunFailedError) as error:
        follow()
    assert str(error.value) == "the run failed: task evaluate: out of memory"
    assert error.value.exit_status == 1


def test_the_error_line_of_a_pod_is_the_reason(
    follow: Follow, server: KubeflowServer, tmp_path: Path
) -> None:
    """Kubeflow's API does not have it; the pod's log has it."""
    write_kubeconfig(tmp_path / "kubeconfig", server.url)
    server.script = [{"state": "FAILED", **tasks(prepare_dataset="FAILED")}]
    server.logs["pod-1"] = (
        "I1124 launcher\n"
        "2026-11-24T21:30:00Z taylorglo: error: the first of two lines\n"
        "2026-11-24T21:30:00Z taylorglo: error: the bucket 'x' is not for you\n"
        "exit status 1\n"
    )
    server.pods = [pod("Failed", terminated={"reason": "Error", "exitCode": 1})]
    with pytest.raises(RunFailedError) as error:
        follow()
    assert str(error.value) == (
        "the run failed: task prepare-dataset: the bucket 'x' is not for you"
    )


def test_the_exit_status_of_a_pod_is_the_reason(
    follow: Follow, server: KubeflowServer, tmp_path: Path
) -> None:
    write_kubeconfig(tmp_path / "kubeconfig", server.url)
    server.script = [{"state": "FAILED", **tasks(prepare_dataset="FAILED")}]
    server.logs["pod-1"] = "Killed\n"
    server.pods = [pod("Failed", terminated={"reason": "OOMKilled", "exitCode": 137})]
    with pytest.raises(RunFailedError) as error:
        follow()
    assert str(error.value) == ("the run failed: task prepare-dataset: OOMKilled (exit status 137)")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("CANCELED", "the run was cancelled"),
        ("SKIPPED", "the run was skipped"),
        ("FAILED", "the run failed: Kubeflow gives no reason; see the log of the task"),
    ],
)
def test_other_ends(state: str, words: str, follow: Follow, server: KubeflowServer) -> None:
    server.script = [{"state": state}]
    with pytest.raises(RunFailedError) as error:
        follow()
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "nobody/nothing:1"'),
        ("ErrImagePull", "not found"),
        ("CreateContainerConfigError", 'secret "taylorglo" not found'),
    ],
)
def test_a_pod_that_cannot_start(
    reason: str, message: str, follow: Follow, server: KubeflowServer, tmp_path: Path
) -> None:
    """For Kubeflow, its task is pending for ever."""
    server.token = TOKEN
    (tmp_path / "token").write_text(TOKEN)
    write_kubeconfig(tmp_path / "kubeconfig", server.url)
    server.script = [{"state": "RUNNING", **tasks(prepare_dataset="PENDING")}]
    server.pods = [pod("Pending", waiting={"reason": reason, "message": message})]
    access = Access(server.url, token_file=tmp_path / "token")
    with pytest.raises(RunFailedError) as error:
        follow(Connection.open(access, delays=SHORT))
    assert str(error.value) == (
        f"task prepare-dataset does not start: {reason}: {message}; "
        "no longer waiting, but the run goes on: it starts by itself once that is mended, "
        "or end it in the user interface"
    )


def test_a_pod_that_starts_after_all(
    follow: Follow, server: KubeflowServer, tmp_path: Path
) -> None:
    write_kubeconfig(tmp_path / "kubeconfig", server.url)
    server.script = [*({"state": "RUNNING"} for _ in range(3)), {"state": "SUCCEEDED"}]
    server.pods = [pod("Pending", waiting={"reason": "ErrImagePull"})]
    assert follow(start=30.0) == []


def test_a_cluster_that_does_not_show_its_pods(
    follow: Follow, server: KubeflowServer, tmp_path: Path
) -> None:
    with KubeflowServer() as gone:
        write_kubeconfig(tmp_path / "kubeconfig", gone.url)
    server.script = [{"state": "RUNNING"}, {"state": "SUCCEEDED"}]
    assert follow() == []


@pytest.mark.parametrize("status", [0, 503], ids=["dropped", "503"])
def test_an_absence_is_survived(status: int, follow: Follow, server: KubeflowServer) -> None:
    server.script = [{"state": "RUNNING"}, {"state": "SUCCEEDED"}]
    server.faults = [Fault("GET", "/runs/.*", status, 4)]
    assert follow() == []


def test_a_long_absence_ends_the_waiting(follow: Follow, server: KubeflowServer) -> None:
    server.script = [{"state": "RUNNING"}]
    server.faults = [Fault("GET", "/runs/.*", 503, 10**6)]
    with pytest.raises(ServiceError) as error:
        follow()
    assert str(error.value) == (f"Kubeflow Pipelines at {server.url}: as the test wants it (503)")
    assert len(server.asked("GET", "/runs/.*")) == 6


def test_a_token_that_expires(follow: Follow, server: KubeflowServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    server.token = TOKEN
    server.script = [{"state": "RUNNING"}]
    server.faults = [Fault("GET", "/runs/.*", 401, body=b'{"message": "expired"}')]
    access = Access(server.url, token_file=tmp_path / "token")
    with pytest.raises(InputError) as error:
        follow(Connection.open(access, delays=SHORT))
    assert str(error.value) == (
        f"Kubeflow Pipelines at {server.url}: the token has expired (401: expired)"
    )


def test_ctrl_c_ends_the_waiting_and_not_the_run(
    connection: Connection, config: Config, server: KubeflowServer
) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    run = submit(config, connection, "")
    server.script = [{"state": "RUNNING", **tasks(prepare_dataset="RUNNING")}]
    with pytest.raises(KeyboardInterrupt, match="the run goes on"):
        wait(connection, run.run_id, interrupt)
    assert not server.asked("POST", "/runs/.*")
