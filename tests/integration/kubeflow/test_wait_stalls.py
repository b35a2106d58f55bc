"""A run that cannot go on by itself: its pods do not start, or its Workflow object is gone."""

from typing import Any

import pytest
from clocks import Clock
from kfp_samples import Follow, pod, recorded, show, tasks
from kfp_server import KubeflowServer

from taylorglo_pipelines.kubeflow.wait import RunFailedError

pytestmark = pytest.mark.usefixtures("kubeconfig")

GOES_ON = (
    "; no longer waiting, but the run goes on: it starts by itself once that is mended, or end it "
    "in the user interface"
)
NO_NODE = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
UNSCHEDULABLE = {
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_NODE}
    ],
    "containerStatuses": [],
}
EVALUATION = (
    "taylorglo-unsched-svcmb(0).root(0).first-generation(0).for-loop-2(0)"
    ".iteration-iterations(1:1)(0).iteration-item(0).evaluate-candidates(0).executor(0)"
)
TUNING = "taylorglo-unsched-svcmb(0).root(0).evaluate-baselines(0).executor(0)"
REFUSAL = (
    'Pod "taylorglo-x" is invalid: spec.containers[1].env[1].valueFrom: Invalid value: "": may not '
    "be specified when `value` is not empty"
)


def problem(follow: Follow, run_id: str = "") -> str:
    """Return the line with which the waiting ends."""
    with pytest.raises(RunFailedError) as error:
        follow(run_id)
    assert error.value.exit_status == 1
    return str(error.value)


def nodes(*items: dict[str, Any]) -> dict[str, Any]:
    """Return a Workflow object with these nodes."""
    return {"status": {"nodes": {str(number): item for number, item in enumerate(items)}}}


def node(name: str, phase: str, message: str = "", kind: str = "Pod") -> dict[str, Any]:
    """Return a node of Argo."""
    start = {"startedAt": "2026-11-26T15:40:00Z"}
    return {"name": name, "type": kind, "phase": phase, "message": message, **start}


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "nobody/nothing:1"'),
        ("ErrImagePull", "not found"),
        ("CreateContainerConfigError", 'secret "taylorglo" not found'),
        ("CreateContainerConfigError", "couldn't find key PGPASSWORD in Secret kubeflow/taylorglo"),
    ],
)
def test_a_pod_that_cannot_start(
    reason: str, message: str, follow: Follow, server: KubeflowServer, clock: Clock
) -> None:
    """For Kubeflow, its task is pending for ever."""
    server.script = [{"state": "RUNNING", **tasks(prepare_dataset="PENDING")}]
    server.pods = [pod("Pending", waiting={"reason": reason, "message": message})]
    line = f"task Prepare data set does not start: {reason}: {message}"
    assert problem(follow) == line + GOES_ON
    assert sum(clock.pauses) == 120


def test_a_pod_that_starts_after_all(follow: Follow, server: KubeflowServer, clock: Clock) -> None:
    server.script = [{"state": "RUNNING"}]
    server.pods = [pod("Pending", waiting={"reason": "ErrImagePull"})]

    def later() -> None:
        if len(clock.pauses) == 3:
            server.script = [{"state": "SUCCEEDED"}]

    clock.during = later
    assert [line[10:] for line in follow()] == ["pending    Prepare data set"]


def test_pods_that_no_node_takes(follow: Follow, server: KubeflowServer) -> None:
    run_id = show(server, "run-unschedulable-running")
    server.pods = [
        pod("Pending", name=str(number), node=name, run_id=run_id, status=UNSCHEDULABLE)
        for number, name in enumerate((EVALUATION, TUNING))
    ]
    line = f"task Tune baselines does not start: Unschedulable: {NO_NODE}"
    assert problem(follow, run_id) == line + GOES_ON


def test_a_pod_that_waits_for_another_one_to_end(
    follow: Follow, server: KubeflowServer, clock: Clock
) -> None:
    """It is told about, once, and waited for: the other one may have its GPU."""
    run_id = show(server, "run-unschedulable-running")
    waiting = pod("Pending", node=EVALUATION, run_id=run_id, status=UNSCHEDULABLE)
    running = pod("Running", name="pod-2", node=TUNING, run_id=run_id, running={})
    server.pods = [waiting, running]

    def later() -> None:
        if sum(clock.pauses) == 240:
            server.pods = [waiting]

    clock.during = later
    lines: list[str] = []
    name = "task Evaluate candidates: generation 1, iteration 2"
    with pytest.raises(RunFailedError, match=f"{name} does not start: Unschedulable"):
        follow(run_id, lines=lines)
    assert sum(clock.pauses) == 240
    notices = [line for line in lines if "not start" in line]
    assert [line[10:] for line in notices] == [
        f"{name} does not start yet: Unschedulable: {NO_NODE}"
    ]


def test_a_pod_for_which_a_node_is_made(
    follow: Follow, server: KubeflowServer, clock: Clock
) -> None:
    scaling = {
        "involvedObject": {"name": "pod-1"},
        "reason": "TriggeredScaleUp",
        "lastTimestamp": "2026-11-24T21:31:00Z",
    }
    given_up = {**scaling, "reason": "NotTriggerScaleUp", "lastTimestamp": "2026-11-24T21:40:00Z"}
    server.cluster.events = [scaling]
    server.pods = [pod("Pending", status=UNSCHEDULABLE)]
    server.script = [{"state": "RUNNING"}]

    def later() -> None:
        if sum(clock.pauses) == 300:
            server.cluster.events = [given_up, scaling]

    clock.during = later
    assert "does not start: Unschedulable" in problem(follow)
    assert sum(clock.pauses) == 300


def test_a_pod_in_a_queue(follow: Follow, server: KubeflowServer, clock: Clock) -> None:
    gate = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    server.pods = [pod("Pending", status={"conditions": [gate]})]
    server.script = [{"state": "RUNNING"}]

    def later() -> None:
        if sum(clock.pauses) == 390:
            server.script = [{"state": "SUCCEEDED"}]

    clock.during = later
    assert len(follow()) == 1


@pytest.mark.parametrize("is_mounted", [False, True])
def test_a_volume_that_cannot_be_mounted(
    is_mounted: bool, follow: Follow, server: KubeflowServer, clock: Clock
) -> None:
    """Only the events tell; the last of them counts, since a large image may take its time."""
    failed = {
        "involvedObject": {"name": "pod-1"},
        "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "ca" : configmap "ca" not found',
        "lastTimestamp": "2026-11-24T21:31:00Z",
    }
    pulling = {**failed, "reason": "Pulling", "lastTimestamp": "2026-11-24T21:32:00Z"}
    server.cluster.events = [*([pulling] if is_mounted else []), failed]
    server.pods = [pod("Pending", waiting={"reason": "ContainerCreating"})]
    server.script = [{"state": "RUNNING"}]
    if not is_mounted:
        line = f"task Prepare data set does not start: FailedMount: {failed['message']}"
        assert problem(follow) == line + GOES_ON
        return

    def later() -> None:
        if sum(clock.pauses) == 390:
            server.script = [{"state": "SUCCEEDED"}]

    clock.during = later
    follow()


def test_a_pod_that_kubernetes_refuses(follow: Follow, server: KubeflowServer) -> None:
    """There is no pod: only Argo knows, in the node of an attempt."""
    run_id = show(server, "run-pod-refused-running")
    name = "taylorglo-unsched-tfgzj(0).root(1).check-inputs(0).executor"
    server.cluster.workflow = nodes(
        node(name, "Running", kind="Retry"),
        *(node(f"{name}({number})", "Error", REFUSAL) for number in range(3)),
    )
    line = f"task Check inputs does not start: Kubernetes refuses its pod: {REFUSAL}"
    assert problem(follow, run_id) == line + GOES_ON


def test_argo_pauses_before_another_attempt(
    follow: Follow, server: KubeflowServer, clock: Clock
) -> None:
    run_id = show(server, "run-pod-refused-running")
    name = "taylorglo-unsched-tfgzj(0).root(0).check-inputs(0).executor"
    server.cluster.workflow = nodes(
        node(name, "Running", "Backoff for 4 minutes 0 seconds", kind="Retry"),
        node(f"{name}(0)", "Error", REFUSAL),
    )

    def later() -> None:
        if sum(clock.pauses) == 240:
            server.script = [{**recorded("run-pod-refused-running"), "state": "SUCCEEDED"}]

    clock.during = later
    assert follow(run_id)[0] == "15:38:58  failed     Check inputs (attempt 18, 0 s)"


def test_what_argo_tells_of_pods_that_cannot_be_read(
    follow: Follow, server: KubeflowServer
) -> None:
    run_id = show(server, "run-image-missing-running")
    server.cluster.forbidden = {"pods"}
    name = "taylorglo-noimage-5dzbk(0).root(0).check-inputs(0).executor(0)"
    message = 'ImagePullBackOff: Back-off pulling image "nobody/nothing:1"'
    server.cluster.workflow = nodes(node(name, "Pending", message))
    assert problem(follow, run_id) == f"task Check inputs does not start: {message}" + GOES_ON


def test_a_workflow_that_was_deleted(follow: Follow, server: KubeflowServer, clock: Clock) -> None:
    """Kubeflow shows its run as running, and always will."""
    run_id = show(server, "run-workflow-deleted-still-running")
    server.cluster.workflow = None
    assert problem(follow, run_id) == (
        "the run's Workflow object was deleted, as with a schedule that is deleted, although "
        "Kubeflow shows it as unfinished, and always will; no longer waiting"
    )
    assert sum(clock.pauses) <= 120


def test_a_workflow_that_is_deleted_while_it_is_followed(
    follow: Follow, server: KubeflowServer, clock: Clock
) -> None:
    """Without the right to read it, the absence of all pods tells, after a while."""
    run_id = show(server, "run-workflow-deleted-still-running")
    server.cluster.forbidden = {"workflows"}
    server.pods = [pod("Running", run_id=run_id, running={})]

    def later() -> None:
        if sum(clock.pauses) == 90:
            server.pods = []

    clock.during = later
    assert problem(follow, run_id).startswith(
        "no pod of the run is left: its Workflow object was probably deleted, although Kubeflow"
    )
    assert sum(clock.pauses) == 60 + 300


def test_a_workflow_that_waits_for_its_turn(
    follow: Follow, server: KubeflowServer, clock: Clock
) -> None:
    """It has no pods, either."""
    server.cluster.forbidden = {"workflows"}
    server.script = [{"state": "RUNNING"}]

    def later() -> None:
        if sum(clock.pauses) == 390:
            server.script = [{"state": "SUCCEEDED"}]

    clock.during = later
    (line,) = follow()
    assert line[10:].startswith("no task has begun for 5 min")


def test_another_cluster_without_the_run(
    follow: Follow, server: KubeflowServer, clock: Clock
) -> None:
    """That nothing of the run is there says nothing."""
    run_id = show(server, "run-running-early")
    server.cluster.workflow = None
    server.cluster.forbidden = {"services"}

    def later() -> None:
        if sum(clock.pauses) == 390:
            server.script = [{**recorded("run-running-early"), "state": "SUCCEEDED"}]

    clock.during = later
    assert "nothing new" in follow(run_id)[-1]


def test_a_cluster_without_argo(follow: Follow, server: KubeflowServer, clock: Clock) -> None:
    run_id = show(server, "run-running-early")
    server.cluster.has_argo = False
    server.cluster.forbidden = {"pods"}

    def later() -> None:
        if sum(clock.pauses) == 390:
            server.script = [{**recorded("run-running-early"), "state": "SUCCEEDED"}]

    clock.during = later
    assert "nothing new" in follow(run_id)[-1]
