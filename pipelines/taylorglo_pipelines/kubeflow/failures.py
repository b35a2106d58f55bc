"""Why a run failed: the failure that came first, in its own words."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from taylorglo.errors import shortened
from taylorglo_pipelines.kubeflow import reasons
from taylorglo_pipelines.kubeflow.cluster import Cluster
from taylorglo_pipelines.kubeflow.names import Names
from taylorglo_pipelines.kubeflow.nodes import Attempt, Place, order, tasks_of, workflow_of
from taylorglo_pipelines.kubeflow.objects import GoneError
from taylorglo_pipelines.kubeflow.pods import node_of
from taylorglo_pipelines.kubeflow.progress import Progress
from taylorglo_pipelines.kubeflow.reasons import Reason
from taylorglo_pipelines.kubeflow.workflow import Workflow

_NO_REASON = "Kubeflow gives no reason; see the log of the task"
_LATE = datetime.max.replace(tzinfo=UTC)


def was_cancelled(run: Any) -> bool:
    """Return whether a run was cancelled: Kubeflow shows most cancelled runs as failed."""
    states = [run.state, *(status.state for status in run.state_history or ())]
    return run.state == "CANCELED" or (run.state == "FAILED" and "CANCELING" in states)


def why(run: Any, cluster: Cluster, progress: Progress, names: Names) -> str:
    """Return the one line about a run that did not succeed.

    Args:
        run: the run.
        cluster: its objects in Kubernetes.
        progress: how its tasks ended.
        names: of its tasks.
    """
    if was_cancelled(run):
        return "the run was cancelled"
    if run.state != "FAILED":
        return f"the run was {run.state.lower()}"
    try:
        workflow = cluster.workflow(workflow_of(run))
    except GoneError:
        workflow = None
    message = workflow.message if workflow else ""
    if reasons.is_too_large(message):
        return f"the run failed: {reasons.of_workflow(message)}"
    failed = _failed_attempts(cluster, workflow, progress)
    if failed:
        first = min(failed, key=lambda attempts: _end(attempts[-1]))
        words = _words(first, cluster, workflow)
        return f"the run failed: {names.subject(first[0].place)}: {words}"
    told = _told_by_kubeflow(run, names, reasons.of_workflow(message))
    return f"the run failed: {told}"


def _failed_attempts(
    cluster: Cluster, workflow: Workflow | None, progress: Progress
) -> list[list[Attempt]]:
    """Return the failed attempts, those of one task or driver together, in the order of time.

    Those of a task that succeeded in the end are left out.
    """
    attempts = {attempt.name: attempt for attempt in cluster.attempts()}
    for attempt in workflow.attempts() if workflow else ():
        # A pod that is gone is known as it was seen last.
        if attempt.name not in attempts or attempts[attempt.name].end is None:
            attempts[attempt.name] = attempt
    groups: dict[Place, list[Attempt]] = {}
    for name in sorted(attempts, key=order):
        groups.setdefault(attempts[name].place, []).append(attempts[name])
    return [
        [attempt for attempt in group if attempt.state == "FAILED"]
        for place, group in groups.items()
        if group[-1].state == "FAILED" and not progress.has_succeeded(place.path)
    ]


def _end(attempt: Attempt) -> tuple[datetime, datetime]:
    """Return a key that sorts attempts by their ends; those whose end is not known are last."""
    return attempt.end or _LATE, attempt.start or _LATE


def _words(attempts: Sequence[Attempt], cluster: Cluster, workflow: Workflow | None) -> str:
    """Return why the attempts at a task failed: the first, and the last if for another reason."""
    first = _reason(attempts[0], cluster, workflow)
    last = _reason(attempts[-1], cluster, workflow) if len(attempts) > 1 else first
    return first if first == last else f"{first}; attempt {len(attempts)}: {last}"


def _reason(attempt: Attempt, cluster: Cluster, workflow: Workflow | None) -> str:
    pods = (pod for pod in cluster.pods.values() if node_of(pod) == attempt.name)
    pod = next(pods, None)
    told = reasons.failure(pod, cluster.log(pod)) if pod else Reason(_NO_REASON, is_telling=False)
    if told.is_telling:
        return told.text
    messages = workflow.messages(attempt.name) if workflow else iter(())
    return next((shortened(text) for text in messages if reasons.is_telling(text)), told.text)


def _told_by_kubeflow(run: Any, names: Names, message: str) -> str:
    """Return what Kubeflow itself tells of a failure, or else Argo.

    Args:
        run: the run.
        names: of its tasks.
        message: Argo's about the whole run, or empty.
    """
    records = (run.run_details and run.run_details.task_details) or []
    # Latest first: the nodes around a failed one fail too, and began earlier.
    errors = map(_error_of, sorted(filter(_has_failed, records), key=_start, reverse=True))
    reason = next(filter(None, [*errors, _message(run.error), message]), "")
    tasks = tasks_of(run)
    failed = [task for task in tasks if task.state == "FAILED"]
    if failed:
        first = min(failed, key=lambda task: (task.end or _LATE, -_seconds(task.start)))
        return f"{names.subject(Place(first.path, is_driver=False))}: {reason or _NO_REASON}"
    if tasks and not reason:
        name = workflow_of(run)
        return (
            "Kubeflow gives no reason, and shows no task that failed; see the message of Argo's "
            f"Workflow object {name}"
        )
    return reason or _NO_REASON


def _has_failed(record: Any) -> bool:
    return bool(record.state == "FAILED")


def _error_of(record: Any) -> str:
    history = [_message(status.error) for status in record.state_history or ()]
    return next(filter(None, [_message(record.error), *reversed(history)]), "")


def _message(error: Any) -> str:
    return shortened(error.message) if error and error.message else ""


def _start(record: Any) -> float:
    return _seconds(record.start_time)


def _seconds(time: datetime | None) -> float:
    return time.timestamp() if time else 0.0
