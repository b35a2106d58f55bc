"""Follow a run on Kubeflow to its end, and say why it failed or does not start."""

import time
from collections.abc import Callable
from typing import Any

from taylorglo.errors import TaylorgloError
from taylorglo.tasks import console
from taylorglo_pipelines.kubeflow.client import Connection

_POLL = 5.0  # seconds
_PATIENCE = (1.0, 2.0, 4.0, 8.0, 15.0, *(30.0 for _ in range(9)))  # five minutes without an answer
_STUCK = 120.0  # seconds for which a pod may wait for its image or its Secret
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
_MAX_REASON = 300


class RunFailedError(TaylorgloError):
    """The run ended without success, or cannot start."""

    exit_status = 1


def wait(connection: Connection, run_id: str, say: Callable[[str], None]) -> None:
    """Follow a run to its end, each change of a task's state said once.

    Raises:
        RunFailedError: it failed or was cancelled, or a pod of it does not start for two minutes.
        InputError: the token has expired, or the run was deleted.
        ServiceError: Kubeflow is away for five minutes.
    """
    connection.delays = _PATIENCE
    pods = Pods(connection.namespace, run_id)
    seen: set[tuple[str, str]] = set()
    stuck: dict[str, float] = {}
    try:
        while True:
            run = connection.call(connection.runs.run_service_get_run, run_id)
            tasks = (run.run_details and run.run_details.task_details) or []
            for task in sorted(tasks, key=_started):
                change = (task.task_id, task.state)
                if task.state and change not in seen and not _is_plumbing(task.display_name):
                    say(f"{task.state.lower():<10} {task.display_name}")
                    seen.add(change)
            if run.state == "SUCCEEDED":
                return
            waiting = pods.waiting()
            if run.state in _ENDED:
                raise RunFailedError(_why(run, tasks, pods, waiting))
            now = time.monotonic()
            stuck = {pod: stuck.get(pod, now) for pod in waiting}
            for pod, since in stuck.items():
                if now - since >= _STUCK:
                    raise RunFailedError(
                        f"{waiting[pod]}; no longer waiting, but the run goes on: it starts by itself once that is "
                        "mended, or end it in the user interface"
                    )
            time.sleep(_POLL)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the run goes on") from None


def _why(run: Any, tasks: list[Any], pods: "Pods", waiting: dict[str, str]) -> str:
    """The one line about a run that did not succeed."""
    if run.state != "FAILED":
        return f"the run was {'cancelled' if run.state == 'CANCELED' else run.state.lower()}"
    failed = [task for task in tasks if task.state == "FAILED"]
    named = [task for task in failed if not _is_plumbing(task.display_name)] or failed
    # The tasks around a failed one fail too, and began earlier.
    task = max(named, key=_started, default=None)
    errors = [_error_of(each) for each in sorted(failed, key=_started, reverse=True)]
    reasons = [*waiting.values(), *pods.failures(), *errors, _message(run.error)]
    reason = next(filter(None, reasons), "Kubeflow gives no reason; see the log of the task")
    return f"the run failed: {f'task {task.display_name}: ' if task else ''}{reason}"


def _error_of(task: Any) -> str:
    history = [_message(status.error) for status in task.state_history or ()]
    return next(filter(None, [_message(task.error), *reversed(history)]), "")


def _message(error: Any) -> str:
    return " ".join(error.message.split())[:_MAX_REASON] if error and error.message else ""


def _started(task: Any) -> float:
    return float(task.start_time.timestamp()) if task.start_time else 0.0


def _is_plumbing(name: str | None) -> bool:
    """Whether a node of Argo's is none of the pipeline's tasks: the whole workflow, or a task's driver or executor."""
    return (
        not name
        or name in ("root", "driver", "executor")
        or name.startswith("taylorglo-")
        or name.endswith("-driver")
    )


class Pods:
    """The pods of a run, as far as a kubeconfig or the pod's own account lets one see them; or else none.

    Kubeflow's API does not tell why a pod does not start, nor what it printed.
    """

    def __init__(self, namespace: str, run_id: str) -> None:
        from kubernetes import client, config

        self._namespace, self._selector = namespace, f"pipeline/runid={run_id}"
        configuration = client.Configuration()
        try:
            try:
                config.load_incluster_config(configuration)
            except config.ConfigException:
                config.load_kube_config(client_configuration=configuration)
        except Exception:  # no kubeconfig, or one that is no good: there are many ways
            self._api = None
            return
        configuration.retries = False
        self._api = client.CoreV1Api(client.ApiClient(configuration))

    def waiting(self) -> dict[str, str]:
        """The pods that cannot start as they are, by name: why, in a line."""
        found = {}
        for pod in self._list("Pending"):
            for status in [
                *(pod.status.init_container_statuses or ()),
                *(pod.status.container_statuses or ()),
            ]:
                waiting = status.state and status.state.waiting
                if waiting and waiting.reason in _UNSTARTABLE:
                    reason = ": ".join(
                        filter(None, [waiting.reason, " ".join((waiting.message or "").split())])
                    )
                    found[pod.metadata.name] = (
                        f"task {_task_of(pod)} does not start: {reason[:_MAX_REASON]}"
                    )
        return found

    def failures(self) -> list[str]:
        """What the pods that failed said last about it, in our own words if there are any."""
        found = []
        for pod in self._list("Failed"):
            said = [
                line.text
                for printed in self._log(pod).splitlines()
                # Kubernetes may put a time stamp before what the task printed.
                if (line := console.parse(printed[max(0, printed.find(console.PREFIX)) :]))
                and line.is_error
            ]
            ends = [
                f"{end.reason} (exit status {end.exit_code})"
                for status in pod.status.container_statuses or ()
                if (end := status.state and status.state.terminated) and end.exit_code
            ]
            found += [*said[-1:], *ends][:1]
        return found

    def _list(self, phase: str) -> list[Any]:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        if self._api is None:
            return []
        try:
            pods = self._api.list_namespaced_pod(
                self._namespace,
                label_selector=self._selector,
                field_selector=f"status.phase={phase}",
                _request_timeout=(3, 10),
            )
        except (
            ApiException,
            HTTPError,
        ):  # what it would tell is a help, and not what is waited for
            return []
        return list(pods.items)

    def _log(self, pod: Any) -> str:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        assert self._api is not None
        try:
            log = self._api.read_namespaced_pod_log(
                pod.metadata.name,
                self._namespace,
                container="main",
                tail_lines=_LOG_LINES,
                _request_timeout=(3, 10),
            )
        except (ApiException, HTTPError):
            return ""
        return str(log)


def _task_of(pod: Any) -> str:
    """The task that a pod belongs to: Argo notes the path to its node, workflow.task.executor."""
    path = (
        (pod.metadata.annotations or {}).get("workflows.argoproj.io/node-name", "").split(".")[1:]
    )
    return str(next((part for part in reversed(path) if not _is_plumbing(part)), pod.metadata.name))
