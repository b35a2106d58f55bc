"""The pods of a run, as the Kubernetes API describes them."""

from datetime import datetime, timedelta
from typing import Any

from taylorglo_pipelines.kubeflow.nodes import Attempt, place_of

Object = dict[str, Any]  # an object of Kubernetes as JSON

_NODE_NAME = "workflows.argoproj.io/node-name"
_STATES = {
    "Pending": "PENDING",
    "Running": "RUNNING",
    "Succeeded": "SUCCEEDED",
    "Failed": "FAILED",
}


def trimmed(pod: Object) -> Object:
    """Return what is read of a pod, without the rest, which is long."""
    metadata = pod["metadata"]
    kept = {key: metadata.get(key) for key in ("name", "creationTimestamp", "annotations")}
    deadline = (pod.get("spec") or {}).get("activeDeadlineSeconds")
    return {
        "metadata": kept,
        "spec": {"activeDeadlineSeconds": deadline},
        "status": pod.get("status") or {},
    }


def name_of(pod: Object) -> str:
    """Return the name of a pod."""
    return str(pod["metadata"]["name"])


def node_of(pod: Object) -> str:
    """Return the name of Argo's node that a pod belongs to, or an empty string."""
    return str((pod["metadata"].get("annotations") or {}).get(_NODE_NAME) or "")


def phase_of(pod: Object) -> str:
    """Return Pending, Running, Succeeded, Failed or Unknown."""
    return str((pod.get("status") or {}).get("phase") or "Unknown")


def containers_of(pod: Object) -> list[Object]:
    """Return the states of a pod's containers, in the order in which they run."""
    status = pod.get("status") or {}
    return [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]


def state_of(container: Object, state: str) -> Object:
    """Return a container's state of this name (waiting, running, terminated), or nothing."""
    found: Object = (container.get("state") or {}).get(state) or {}
    return found


def attempt_of(pod: Object) -> Attempt | None:
    """Return the attempt of a pod, or None if it is not one of Argo's."""
    name = node_of(pod)
    place, state = place_of(name), _STATES.get(phase_of(pod))
    if not place or not state:
        return None
    main = next((c for c in containers_of(pod) if c.get("name") == "main"), {})
    ended = state_of(main, "terminated")
    begun = ended or state_of(main, "running")
    start = time_of(begun.get("startedAt")) or time_of(pod["metadata"].get("creationTimestamp"))
    end = time_of(ended.get("finishedAt")) or _last_change(pod) or _deadline(pod)
    return Attempt(name, place, state, start, None if state in ("PENDING", "RUNNING") else end)


def _last_change(pod: Object) -> datetime | None:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    times = [time_of(condition.get("lastTransitionTime")) for condition in conditions]
    return max(filter(None, times), default=None)


def _deadline(pod: Object) -> datetime | None:
    """Return when a pod was over its deadline: Kubernetes then forgets what its containers did."""
    status = pod.get("status") or {}
    begun, seconds = time_of(status.get("startTime")), pod["spec"]["activeDeadlineSeconds"]
    if status.get("reason") == "DeadlineExceeded" and begun and seconds:
        return begun + timedelta(seconds=seconds)
    return None


def time_of(text: str | None) -> datetime | None:
    """Return a time of the Kubernetes API, or None if it is not set."""
    return datetime.fromisoformat(text) if text else None
