"""Why a run failed: the failure that came first, in its own words, from pods, logs and Argo."""

import copy
from typing import Any

import pytest
from kfp_samples import Follow, pod, recorded, show, tasks
from kfp_server import KubeflowServer

from taylorglo_pipelines.kubeflow.reasons import last_words
from taylorglo_pipelines.kubeflow.wait import RunFailedError

pytestmark = pytest.mark.usefixtures("kubeconfig")

TASK = "the run failed: task Prepare data set: "
NODE = "taylorglo-tiny-x7(0).root(0).prepare-dataset(0).executor"
FATAL = "F1126 15:27:04.218906      28 main.go:57] failed to execute component: "
UPLOAD = 'failed to upload output artifact "data" to remote storage URI: AccessDenied'
TRACEBACK = """Traceback (most recent call last):
  File "/app/task.py", line 1, in <module>
    train()
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
"""


def outcome(follow: Follow, run_id: str = "") -> str:
    """Return the line about a run that failed."""
    with pytest.raises(RunFailedError) as error:
        follow(run_id)
    return str(error.value)


def ended(number: int, minute: int, reason: str = "Error", code: int = 1) -> dict[str, Any]:
    """Return the pod of an attempt at prepare-dataset, which failed at a minute."""
    end = {"reason": reason, "exitCode": code, "finishedAt": f"2026-11-24T21:{minute}:00Z"}
    return pod("Failed", node=f"{NODE}({number})", name=f"pod-{number}", terminated=end)


def node(name: str, phase: str, message: str, kind: str = "Pod") -> dict[str, Any]:
    """Return a node of Argo."""
    return {"name": name, "type": kind, "phase": phase, "message": message}


@pytest.fixture(autouse=True)
def failed_run(server: KubeflowServer) -> None:
    server.script = [{"state": "FAILED", **tasks(prepare_dataset="FAILED")}]


def recorded_pods(run_id: str) -> list[dict[str, Any]]:
    """Return the recorded pods of a run."""
    pods: list[dict[str, Any]] = recorded("pods-failed")
    return [pod for pod in pods if pod["metadata"]["labels"]["pipeline/runid"] == run_id]


def test_bad_data(follow: Follow, server: KubeflowServer) -> None:
    run_id = show(server, "run-bad-data-failed")
    server.pods = recorded_pods(run_id)
    server.logs[server.pods[0]["metadata"]["name"]] = (
        f"taylorglo: error: data.root /data: there is no such folder\n{FATAL}exit status 2\n"
    )
    line = "the run failed: task Check inputs: data.root /data: there is no such folder"
    assert outcome(follow, run_id) == line


def test_the_first_of_several_tasks_that_ran_out_of_memory(
    follow: Follow, server: KubeflowServer
) -> None:
    run_id = show(server, "run-out-of-memory-failed")
    server.pods = list(reversed(recorded_pods(run_id)))
    line = "the run failed: task Tune baselines: OOMKilled (exit status 137)"
    assert outcome(follow, run_id) == line
    logs = [request for request in server.requests if request.path.endswith("/log")]
    assert len(logs) == 1


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "2026-11-24T21:30:00Z taylorglo: error: the first of two lines\n"
            "2026-11-24T21:30:00Z taylorglo: error: the bucket 'x' is not for you\n"
            "exit status 1\n",
            "the bucket 'x' is not for you",
        ),
        (f"I1126 launcher\n{FATAL}{UPLOAD}\n", f"failed to execute component: {UPLOAD}"),
        (
            f"{TRACEBACK}{FATAL}exit status 1\n",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        (f"Killed\n{FATAL}exit status 1\n", "Error (exit status 1)"),
        ("", "Error (exit status 1)"),
    ],
    ids=["error", "upload", "traceback", "nothing", "no log"],
)
def test_what_a_log_tells(log: str, reason: str, follow: Follow, server: KubeflowServer) -> None:
    server.pods = [ended(0, 31)]
    server.logs["pod-0"] = log
    assert outcome(follow) == TASK + reason


def test_a_traceback_with_time_stamps() -> None:
    log = "".join(f"2026-11-24T21:30:00Z {line}\n" for line in TRACEBACK.splitlines())
    assert last_words(log).startswith("torch.OutOfMemoryError: CUDA out of memory.")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            {
                "reason": "DeadlineExceeded",
                "message": "Pod was active on the node longer than the specified deadline",
            },
            "DeadlineExceeded: Pod was active on the node longer than the specified deadline",
        ),
        (
            {"reason": "Evicted", "message": "The node was low on resource: memory. "},
            "Evicted: The node was low on resource: memory.",
        ),
        (
            {
                "conditions": [
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "PreemptionByScheduler",
                        "message": "default-scheduler: preempting to accommodate a pod",
                    }
                ]
            },
            "PreemptionByScheduler: default-scheduler: preempting to accommodate a pod",
        ),
        (
            {
                "initContainerStatuses": [
                    {"name": "kfp-launcher", "state": {"terminated": {"exitCode": 2}}}
                ]
            },
            "container kfp-launcher: Error (exit status 2)",
        ),
        (
            {
                "containerStatuses": [
                    {"name": "main", "state": {"terminated": {"exitCode": 0}}},
                    {
                        "name": "wait",
                        "state": {"terminated": {"exitCode": 64, "message": "no\nrights"}},
                    },
                ]
            },
            "container wait: no rights",
        ),
    ],
    ids=["deadline", "evicted", "preempted", "init", "wait"],
)
def test_what_a_pod_tells(
    status: dict[str, Any], reason: str, follow: Follow, server: KubeflowServer
) -> None:
    """Kubernetes ends a pod without a word of its containers."""
    server.pods = [pod("Failed", status={"containerStatuses": [], **status})]
    assert outcome(follow) == TASK + reason


def test_the_attempts_at_a_task(follow: Follow, server: KubeflowServer) -> None:
    evicted = copy.deepcopy(ended(0, 31))
    evicted["status"].update(reason="Evicted", message="too much memory", containerStatuses=[])
    server.pods = [ended(1, 33, "OOMKilled", 137), evicted]
    words = "Evicted: too much memory; attempt 2: OOMKilled (exit status 137)"
    assert outcome(follow) == TASK + words


def test_a_task_that_succeeded_in_the_end_is_not_the_reason(
    follow: Follow, server: KubeflowServer
) -> None:
    server.script = [{"state": "FAILED", **tasks(prepare_dataset="SUCCEEDED", report="FAILED")}]
    again = pod("Succeeded", node=f"{NODE}(1)", name="pod-1", terminated={"exitCode": 0})
    report = ended(0, 40, "OOMKilled", 137)
    report["metadata"] |= {
        "name": "pod-2",
        "annotations": {"workflows.argoproj.io/node-name": "t-x(0).root(0).report(0).executor(0)"},
    }
    server.pods = [ended(0, 31), again, report]
    assert outcome(follow) == "the run failed: task Report: OOMKilled (exit status 137)"


def test_a_deadline_that_passed_later_is_not_the_first_failure(
    follow: Follow, server: KubeflowServer
) -> None:
    """Of a pod over its deadline, Kubernetes tells only when it started."""
    node = "t-x(0).root(0).report(0).executor(0)"
    late = pod("Failed", node=node, status={"reason": "DeadlineExceeded", "containerStatuses": []})
    late["status"]["startTime"] = "2026-11-24T21:00:00Z"
    late["spec"] = {"activeDeadlineSeconds": 3600}
    server.pods = [late, ended(0, 31, "OOMKilled", 137)]
    assert outcome(follow) == TASK + "OOMKilled (exit status 137)"
    late["spec"] = {"activeDeadlineSeconds": 600}
    assert outcome(follow) == "the run failed: task Report: DeadlineExceeded"


def test_kubeflows_driver_failed(follow: Follow, server: KubeflowServer) -> None:
    server.pods = [
        pod(
            "Failed",
            node="t-x(0).root(0).prepare-dataset-driver(0)",
            terminated={"reason": "Error", "exitCode": 1},
        )
    ]
    server.logs["pod-1"] = "F1126 15:27:04.2 1 main.go:79] KFP driver: driver.Container: no MLMD\n"
    line = (
        "the run failed: the driver of task Prepare data set: KFP driver: driver.Container: no MLMD"
    )
    assert outcome(follow) == line


def test_argo_knows_more_than_an_exit_status(follow: Follow, server: KubeflowServer) -> None:
    """An attempt that still runs when the time for attempts is over is killed."""
    server.pods = [ended(0, 31, code=143)]
    nodes = [
        node(NODE, "Failed", "Max duration limit exceeded", "Retry"),
        node(f"{NODE}(0)", "Failed", "main: Error (exit code 143)"),
    ]
    server.cluster.workflow = {"status": {"nodes": {n["name"]: n for n in nodes}}}
    assert outcome(follow) == TASK + "Max duration limit exceeded"


def test_pods_that_are_gone(follow: Follow, server: KubeflowServer) -> None:
    server.cluster.compress({"1": node(f"{NODE}(0)", "Error", "pod deleted")})
    assert outcome(follow) == TASK + "pod deleted"


def test_a_run_that_became_too_large(follow: Follow, server: KubeflowServer) -> None:
    size = "workflow is longer than maximum allowed size. compressed size 1050613 > maxSize 1048576"
    server.cluster.workflow = {"status": {"phase": "Error", "message": size}}
    server.pods = [ended(0, 31)]
    assert outcome(follow) == (
        f"the run failed: the run has become too large for Argo ({size}); "
        "set pipeline.layout=workers, or fewer generations and shards"
    )


def test_a_run_that_argo_was_told_to_stop(follow: Follow, server: KubeflowServer) -> None:
    message = "Stopped with strategy 'Terminate'"
    server.script = [{"state": "FAILED"}]
    server.cluster.workflow = {"status": {"phase": "Failed", "message": message}}
    assert outcome(follow) == f"the run failed: {message}"
