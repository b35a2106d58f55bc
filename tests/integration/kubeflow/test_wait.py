"""A run is followed to its end: changes of state, how it ended, and what cannot be seen of it."""

from pathlib import Path

import pytest
from clocks import Clock
from kfp_samples import SHORT, TOKEN, Follow, pod, recorded, show, tasks, write_kubeconfig
from kfp_server import Fault, KubeflowServer

from taylorglo.errors import InputError, ServiceError
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.kubeflow.client import Access, Connection
from taylorglo_pipelines.kubeflow.runs import submit
from taylorglo_pipelines.kubeflow.wait import RunFailedError, wait

GENERATION_2 = "taylorglo-real-gcc64(0).root(0).next-generation(0)"


def test_every_change_of_a_task_is_said_once(follow: Follow, server: KubeflowServer) -> None:
    server.script = [
        {"state": "RUNNING", **tasks(prepare_dataset="RUNNING")},
        {"state": "RUNNING", **tasks(prepare_dataset="RUNNING")},
        {"state": "RUNNING", **tasks(prepare_dataset="SUCCEEDED", report="PENDING")},
        {"state": "SUCCEEDED", **tasks(prepare_dataset="SUCCEEDED", report="SUCCEEDED")},
    ]
    lines = follow()
    # The time of an end is not in these answers.
    assert sorted(line[10:38].rstrip(" (") for line in lines) == [
        "pending    Report",
        "running    Prepare data set",
        "succeeded  Prepare data set",
        "succeeded  Report",
    ]
    assert lines[0].startswith("21:30:01  ")


def test_a_recorded_sweep(follow: Follow, server: KubeflowServer) -> None:
    run_id = show(server, "run-running-early", "run-running-generation-1", "run-succeeded")
    assert follow(run_id) == [
        "15:15:27  succeeded  Check inputs (10 s)",
        "15:15:37  running    Prepare data set",
        "15:15:57  succeeded  Prepare data set (20 s)",
        "15:16:28  succeeded  Open study and MLflow run (21 s)",
        "15:16:58  succeeded  Propose candidates: generation 1 (10 s)",
        "15:17:08  succeeded  Tune baselines (30 s)",
        "15:17:18  succeeded  Filter candidates: generation 1 (10 s)",
        "15:17:48  running    Evaluate candidates: generation 1, iteration 1",
        "15:17:48  running    Evaluate candidates: generation 1, iteration 2",
        "15:18:22  succeeded  Evaluate candidates: generation 1, iteration 1 (34 s)",
        "15:18:22  succeeded  Evaluate candidates: generation 1, iteration 2 (34 s)",
        "15:18:53  succeeded  Propose candidates: generation 2 (10 s)",
        "15:19:13  succeeded  Filter candidates: generation 2 (10 s)",
    ]
    version = server.asked("GET", "/pipelines/.*/versions/.*")
    assert len(version) == 1


def test_a_pipeline_that_was_deleted_since(follow: Follow, server: KubeflowServer) -> None:
    """Its tasks are then called by their keys."""
    run_id = show(server, "run-running-early", state="SUCCEEDED")
    server.versions.clear()
    assert follow(run_id)[0] == "15:15:27  succeeded  check-inputs (10 s)"


def test_a_run_that_kubeflow_shows_no_longer(
    follow: Follow, server: KubeflowServer, kubeconfig: Path, clock: Clock
) -> None:
    """Its state is over a mebibyte: what Kubeflow shows stays as it was, and only the pods tell."""
    run_id = show(server, "run-succeeded", state="RUNNING")
    node = f"{GENERATION_2}.for-loop-2(0).iteration-iterations(1:1)(0).iteration-item(0)"
    node += ".evaluate-candidates(0).executor(0)"
    started = {"startedAt": "2026-11-26T15:19:50Z"}
    ended = {**started, "finishedAt": "2026-11-26T15:20:09Z", "exitCode": 0}

    def later() -> None:
        looks = len(clock.pauses)
        if looks == 1:
            server.pods = [pod("Running", node=node, run_id=run_id, running=started)]
        elif looks == 2:
            server.pods = [pod("Succeeded", node=node, run_id=run_id, terminated=ended)]
        elif looks == 3:
            server.script = [recorded("run-succeeded")]

    clock.during = later
    assert follow(run_id)[-2:] == [
        "15:19:50  running    Evaluate candidates: generation 2, iteration 2",
        "15:20:09  succeeded  Evaluate candidates: generation 2, iteration 2 (19 s)",
    ]


@pytest.mark.parametrize("sees", ["nothing", "another cluster", "no pods"])
def test_a_silence_that_nothing_explains(
    sees: str, follow: Follow, server: KubeflowServer, tmp_path: Path, clock: Clock
) -> None:
    """It may be a long training just as well. Without a look at the pods, it is said once."""
    run_id = show(server, "run-succeeded", state="RUNNING")
    with KubeflowServer() as other:
        other.cluster.workflow = None
        if sees != "nothing":
            url = other.url if sees == "another cluster" else server.url
            write_kubeconfig(tmp_path / "kubeconfig", url)
        server.cluster.forbidden = {"pods", "workflows"}

        def later() -> None:
            if sum(clock.pauses) > 350:
                server.script = [recorded("run-succeeded")]

        clock.during = later
        lines = follow(run_id)
    assert lines[-1][10:].startswith(
        "Kubeflow has shown nothing new for 5 min: a task takes long, or the run has become too "
        "large for Kubeflow to show its tasks"
    )
    assert len([line for line in lines if "nothing new" in line]) == 1


def test_a_silence_that_argo_explains(
    follow: Follow, server: KubeflowServer, kubeconfig: Path, clock: Clock
) -> None:
    """Argo's state of the run is as good as the pods, also in its compressed form."""
    run_id = show(server, "run-succeeded", state="RUNNING")
    server.cluster.forbidden = {"pods"}
    nodes = {node["name"]: node for node in recorded("argo-nodes-succeeded")}
    server.cluster.compress(nodes)

    def later() -> None:
        if sum(clock.pauses) > 350:
            server.script = [recorded("run-succeeded")]

    clock.during = later
    lines = follow(run_id)
    assert lines[-1] == "15:21:42  succeeded  Report (12 s)"
    assert not [line for line in lines if "nothing new" in line]


def test_a_failed_task_is_named(follow: Follow, server: KubeflowServer) -> None:
    end = tasks(generation_1="FAILED", evaluate="FAILED")
    end["run_details"]["task_details"][-1]["error"] = {"code": 2, "message": "out of\nmemory"}
    server.script = [{"state": "FAILED", **end}]
    with pytest.raises(RunFailedError) as error:
        follow()
    assert str(error.value) == "the run failed: task evaluate: out of memory"
    assert error.value.exit_status == 1


def test_the_task_that_failed_first_is_named(follow: Follow, server: KubeflowServer) -> None:
    run_id = show(server, "run-out-of-memory-failed")
    with pytest.raises(RunFailedError) as error:
        follow(run_id)
    assert str(error.value) == (
        "the run failed: task Tune baselines: Kubeflow gives no reason; see the log of the task"
    )


def test_no_task_is_known_to_have_failed(follow: Follow, server: KubeflowServer) -> None:
    run_id = show(server, "run-succeeded", state="FAILED")
    with pytest.raises(
        RunFailedError, match="shows no task that failed; see the message of Argo's"
    ):
        follow(run_id)


def test_a_cancelled_run(follow: Follow, server: KubeflowServer) -> None:
    """Kubeflow calls it failed, in the end."""
    run_id = show(server, "run-terminated-failed")
    with pytest.raises(RunFailedError) as error:
        follow(run_id)
    assert str(error.value) == "the run was cancelled"
    assert (error.value.event.state, error.value.exit_status) == ("CANCELED", 1)


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
        follow(connection=Connection.open(access, delays=SHORT))
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
