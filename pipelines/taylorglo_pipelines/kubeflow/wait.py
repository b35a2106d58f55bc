"""Follow a run on Kubeflow to its end, and find out why it failed or does not start."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from taylorglo.errors import TaylorgloError, shortened
from taylorglo.tasks import console
from taylorglo_pipelines.kubeflow.client import Connection

_POLL = 5.0  # seconds
# Five minutes without an answer.
_PATIENCE = (1.0, 2.0, 4.0, 8.0, 15.0, *(30.0 for _ in range(9)))  # seconds
_START = 120.0  # seconds
_TIMEOUT = (3, 10)  # seconds to connect to Kubernetes, and for its answer
_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_UNSTARTABLE = (
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
)
_LOG_LINES = 100


class RunFailedError(TaylorgloError):
    """The run ended without success, or cannot start."""

    exit_status = 1


def wait(
    connection: Connection,
    run_id: str,
    say: Callable[[str], None],
    *,
    poll: float = _POLL,
    patience: Sequence[float] = _PATIENCE,
    start: float = _START,
) -> None:
    """Follow a run to its end, and say each change of a task's state once.

    Args:
        connection: to Kubeflow.
        run_id: id of the run.
        say: prints a line.
        poll: seconds between one look at the run and the next.
        patience: seconds between the tries of a call while Kubeflow is away.
        start: seconds that a pod may wait for its image or its Secret before the waiting ends.

    Raises:
        RunFailedError: the run failed or was cancelled, or a pod of it does not start.
        InputError: the token has expired, or the run was deleted.
        ServiceError: Kubeflow is away for longer than the patience lasts.
        KeyboardInterrupt: the user interrupted the waiting; the message is that the run goes on.
    """
    connection = connection.with_delays(patience)
    pods = Pods(connection.namespace, run_id)
    states: set[tuple[str, str]] = set()
    stuck_since: dict[str, float] = {}
    try:
        while True:
            run = connection.call(connection.runs.run_service_get_run, run_id)
            _say_changes(run, states, say)
            if run.state == "SUCCEEDED":
                return
            problems = pods.problems()
            if run.state in _ENDED:
                raise RunFailedError(_why(run, problems, pods))
            now = time.monotonic()
            stuck_since = {pod: stuck_since.get(pod, now) for pod in problems}
            stuck = [pod for pod, since in stuck_since.items() if now - since >= start]
            if stuck:
                raise RunFailedError(
                    f"{problems[stuck[0]]}; no longer waiting, but the run goes on: it starts by "
                    "itself once that is mended, or end it in the user interface"
                )
            time.sleep(poll)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the run goes on") from None


def _tasks(run: Any) -> list[Any]:
    return (run.run_details and run.run_details.task_details) or []


def _say_changes(run: Any, states: set[tuple[str, str]], say: Callable[[str], None]) -> None:
    """Say the states of tasks that are not in ``states`` yet, and add them to it."""
    for task in sorted(_tasks(run), key=_start_time):
        state = (task.task_id, task.state)
        if task.state and state not in states and not _is_internal(task.display_name):
            say(f"{task.state.lower():<10} {task.display_name}")
            states.add(state)


def _why(run: Any, problems: Mapping[str, str], pods: "Pods") -> str:
    """Return the one line about a run that did not succeed.

    Args:
        run: the run.
        problems: why pods of it cannot start.
        pods: its pods.
    """
    if run.state == "CANCELED":
        return "the run was cancelled"
    if run.state != "FAILED":
        return f"the run was {run.state.lower()}"
    # Latest first: the tasks around a failed one fail too, and began earlier.
    failed = [task for task in _tasks(run) if task.state == "FAILED"]
    failed.sort(key=_start_time, reverse=True)
    named = [task for task in failed if not _is_internal(task.display_name)] or failed
    errors = [_error_of(task) for task in failed]
    reasons = [*problems.values(), *pods.failures(), *errors, _message(run.error)]
    reason = next(filter(None, reasons), "Kubeflow gives no reason; see the log of the task")
    task_name = f"task {named[0].display_name}: " if named else ""
    return f"the run failed: {task_name}{reason}"


def _error_of(task: Any) -> str:
    history = [_message(status.error) for status in task.state_history or ()]
    return next(filter(None, [_message(task.error), *reversed(history)]), "")


def _message(error: Any) -> str:
    return shortened(error.message) if error and error.message else ""


def _start_time(task: Any) -> float:
    return float(task.start_time.timestamp()) if task.start_time else 0.0


def _is_internal(name: str | None) -> bool:
    """Return whether a node is Argo's: the whole workflow, or the driver or executor of a task."""
    return (
        not name
        or name in ("root", "driver", "executor")
        or name.startswith("taylorglo-")
        or name.endswith("-driver")
    )


class Pods:
    """The pods of a run, which show why a task does not start and what it printed last.

    Kubeflow's API shows neither. The Kubernetes API is asked with the service account of the pod
    that this process runs in, or else with the kubeconfig. Without both, no pods are shown.
    """

    def __init__(self, namespace: str, run_id: str) -> None:
        self._namespace = namespace
        self._selector = f"pipeline/runid={run_id}"
        self._api: Any = None
        configuration = client.Configuration()
        try:
            try:
                config.load_incluster_config(configuration)
            except config.ConfigException:
                config.load_kube_config(client_configuration=configuration)
        except Exception:
            # There is no kubeconfig, or it is wrong, in one of many ways.
            return
        configuration.retries = False
        self._api = client.CoreV1Api(client.ApiClient(configuration))

    def problems(self) -> dict[str, str]:
        """Return the pods that cannot start as they are: by name, a line about the reason."""
        lines = {}
        for pod in self._list("Pending"):
            containers = [
                *(pod.status.init_container_statuses or ()),
                *(pod.status.container_statuses or ()),
            ]
            waiting = [container.state and container.state.waiting for container in containers]
            for state in waiting:
                if state and state.reason in _UNSTARTABLE:
                    reason = shortened(": ".join(filter(None, [state.reason, state.message])))
                    lines[pod.metadata.name] = f"task {_task_of(pod)} does not start: {reason}"
        return lines

    def failures(self) -> list[str]:
        """Return the last words of each pod that failed: its error line, or its exit status."""
        return [words for pod in self._list("Failed") if (words := self._last_words(pod))]

    def _last_words(self, pod: Any) -> str:
        for printed in reversed(self._log(pod).splitlines()):
            # Kubernetes may put a time stamp before the line that the task printed.
            line = console.parse(printed[max(0, printed.find(console.PREFIX)) :])
            if line and line.is_error:
                return line.text
        for container in pod.status.container_statuses or ():
            end = container.state and container.state.terminated
            if end and end.exit_code:
                return f"{end.reason} (exit status {end.exit_code})"
        return ""

    def _list(self, phase: str) -> list[Any]:
        if self._api is None:
            return []
        try:
            pods = self._api.list_namespaced_pod(
                self._namespace,
                label_selector=self._selector,
                field_selector=f"status.phase={phase}",
                _request_timeout=_TIMEOUT,
            )
        except (ApiException, HTTPError):
            # The run is followed without its pods.
            return []
        return list(pods.items)

    def _log(self, pod: Any) -> str:
        try:
            log = self._api.read_namespaced_pod_log(
                pod.metadata.name,
                self._namespace,
                container="main",
                tail_lines=_LOG_LINES,
                _request_timeout=_TIMEOUT,
            )
        except (ApiException, HTTPError):
            return ""
        return str(log)


def _task_of(pod: Any) -> str:
    """Return the task of a pod, or the pod's name if Argo does not give the task.

    Argo notes the path to the pod's node: workflow.task.executor.
    """
    annotations = pod.metadata.annotations or {}
    path = annotations.get("workflows.argoproj.io/node-name", "").split(".")[1:]
    return str(next((part for part in reversed(path) if not _is_internal(part)), pod.metadata.name))
