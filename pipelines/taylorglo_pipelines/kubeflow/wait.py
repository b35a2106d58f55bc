"""Follow a run on Kubeflow to its end, or until it cannot go on by itself."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from taylorglo.errors import InputError, TaylorgloError
from taylorglo_pipelines.kubeflow.client import Connection
from taylorglo_pipelines.kubeflow.cluster import Cluster
from taylorglo_pipelines.kubeflow.failures import was_cancelled, why
from taylorglo_pipelines.kubeflow.names import Names
from taylorglo_pipelines.kubeflow.nodes import moment, tasks_of, workflow_of
from taylorglo_pipelines.kubeflow.progress import ENDED, Event, Progress, as_text
from taylorglo_pipelines.kubeflow.stalls import Stalls

_POLL = 5.0  # seconds
# Five minutes without an answer.
_PATIENCE = (1.0, 2.0, 4.0, 8.0, 15.0, *(30.0 for _ in range(9)))  # seconds
_START = 120.0  # seconds
_QUIET = 300.0  # seconds
_KUBEFLOW = "kubeflow"  # the namespace of Kubeflow Pipelines, if each user has another one


class RunFailedError(TaylorgloError):
    """The run ended without success, or cannot go on by itself.

    Attributes:
        event: the outcome.
    """

    exit_status = 1

    def __init__(self, event: Event) -> None:
        super().__init__(event.message)
        self.event = event


def wait(
    connection: Connection,
    run_id: str,
    say: Callable[[str], None],
    *,
    written: Callable[[Event], str] = as_text,
    poll: float = _POLL,
    patience: Sequence[float] = _PATIENCE,
    start: float = _START,
    quiet: float = _QUIET,
) -> Event:
    """Follow a run to its end, and say each change of a task's state once.

    Args:
        connection: to Kubeflow.
        run_id: id of the run.
        say: prints a line.
        written: makes the line of an event.
        poll: seconds between one look at the run and the next.
        patience: seconds between the tries of a call while Kubeflow is away.
        start: seconds that a pod may wait for its image, its Secret or a node before the waiting
            ends.
        quiet: seconds without any news after which this is said.

    Returns:
        The outcome of the run, which is success.

    Raises:
        RunFailedError: the run failed or was cancelled, or cannot go on by itself.
        InputError: the token has expired, or the run was deleted.
        ServiceError: Kubeflow is away for longer than the patience lasts.
        KeyboardInterrupt: the user interrupted the waiting; the message is that the run goes on.
    """
    connection = connection.with_delays(patience)

    def tell(event: Event) -> None:
        say(written(replace(event, run=run_id)))

    try:
        run = connection.call(connection.runs.run_service_get_run, run_id)
        names = Names(_specification(connection, run))
        kubeflow = _KUBEFLOW if connection.tenant else connection.namespace
        cluster = Cluster(connection.namespace, run_id, kubeflow)
        progress = Progress(names)
        stalls = Stalls(cluster, names, start=start, quiet=quiet)
        cluster.look(("Failed", "Succeeded"))
        while run.state not in ENDED:
            _tell_news(run, cluster, progress, stalls, tell)
            time.sleep(poll)
            run = connection.call(connection.runs.run_service_get_run, run_id)
            # A pod that was seen before is found by its name, even if it has succeeded.
            cluster.look(("Failed",) if run.state in ENDED else ())
        for event in progress.news(tasks_of(run), cluster.attempts()):
            tell(event)
        return _outcome(run, cluster, progress, names)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the run goes on") from None


def _tell_news(
    run: Any,
    cluster: Cluster,
    progress: Progress,
    stalls: Stalls,
    tell: Callable[[Event], None],
) -> None:
    """Tell what is new about a run that has not ended.

    Raises:
        RunFailedError: nothing goes on by itself.
    """
    tasks = tasks_of(run)
    finding = stalls.look(tasks, workflow_of(run), time.monotonic())
    attempts = cluster.attempts()
    if stalls.workflow:
        attempts = [*attempts, *stalls.workflow.attempts()]
    for event in progress.news(tasks, attempts):
        tell(event)
    now = datetime.now(UTC)
    for notice in finding.notices:
        tell(Event(now, "notice", message=notice))
    if finding.stop:
        message = finding.stop
        raise RunFailedError(
            Event(now, "outcome", state=run.state, message=message, run=run.run_id)
        )


def _outcome(run: Any, cluster: Cluster, progress: Progress, names: Names) -> Event:
    """Return the outcome of a run that has ended with success.

    Raises:
        RunFailedError: it has ended otherwise.
    """
    end = moment(run.finished_at) or datetime.now(UTC)
    event = Event(
        time=end,
        event="outcome",
        state="CANCELED" if was_cancelled(run) else run.state,
        seconds=(end - run.created_at).total_seconds() if run.created_at else None,
        message="the run has succeeded",
        run=run.run_id,
    )
    if run.state == "SUCCEEDED":
        return event
    raise RunFailedError(replace(event, message=why(run, cluster, progress, names)))


def _specification(connection: Connection, run: Any) -> Mapping[str, Any] | None:
    """Return the compiled pipeline of a run, or None if it cannot be had."""
    reference = run.pipeline_version_reference
    if run.pipeline_spec or not (reference and reference.pipeline_version_id):
        return run.pipeline_spec or None
    try:
        version = connection.call(
            connection.pipelines.pipeline_service_get_pipeline_version,
            reference.pipeline_id,
            reference.pipeline_version_id,
        )
    except InputError:
        # It was deleted, or this user may not read it.
        return None
    return version.pipeline_spec or None
