"""Sweeps that recur, as Kubeflow's recurring runs.

A schedule is found by its name, among the recurring runs that this module made. An experiment has
one schedule of a name. After a change that was cut off it may have two, one of them disabled, until
the next change deletes one.

Kubeflow cannot change a recurring run, and starts a run at once if one is enabled that has missed a
time while it was disabled. So another recurring run takes its place in both cases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kfp_server_api import (
    V2beta1CronSchedule,
    V2beta1PeriodicSchedule,
    V2beta1RecurringRun,
    V2beta1Run,
    V2beta1RuntimeConfig,
    V2beta1Trigger,
)

from taylorglo.errors import ServiceError, TaylorgloError
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.kubeflow import recurring
from taylorglo_pipelines.kubeflow.client import Connection
from taylorglo_pipelines.kubeflow.cron import Cron
from taylorglo_pipelines.kubeflow.firings import IF_UTC, RUN_NOW, Firings, is_running
from taylorglo_pipelines.kubeflow.recurring import is_enabled
from taylorglo_pipelines.kubeflow.runs import (
    create_without_plugin,
    description,
    experiment_name,
    experiment_of,
    parameters,
    start_run,
    upload,
)

_SHOWN_RUNS = 5
_SHOWN_TIMES = 3


def create(
    config: Config, connection: Connection, name: str, experiment: str, trigger: Cron | int
) -> tuple[str, list[str]]:
    """Create a schedule, or change the one of this name; a schedule that was paused stays paused.

    At most one schedule of a name is ever enabled, and the running runs go on.

    Args:
        config: the sweep.
        connection: to Kubeflow.
        name: of the schedule; empty: the sweep's.
        experiment: name of the runs' experiment, or empty for the default.
        trigger: when the schedule fires: a cron expression, or an interval in seconds.

    Returns:
        ``created``, ``updated`` or ``unchanged``, and lines that describe the schedule.

    Raises:
        InputError: Kubeflow refuses.
        ServiceError: Kubeflow is away; the message says so if the schedule may be paused now.
    """
    name = name or config.name
    version = upload(config, connection)
    experiment_id = experiment_of(connection, experiment_name(experiment, config.name))
    draft = _recurring_run(config, name, experiment_id, version, trigger)
    replaced = recurring.schedules_of(connection, name, experiment_id)
    if len(replaced) == 1 and recurring.content(replaced[0]) == recurring.content(draft):
        return "unchanged", _described(connection, Firings(connection), replaced[0])
    is_paused = bool(replaced) and not any(map(is_enabled, replaced))
    draft.mode = "DISABLE" if is_paused else "ENABLE"
    lines = _replace(connection, replaced, draft)
    return "updated" if replaced else "created", lines


def _replace(connection: Connection, replaced: Sequence[Any], draft: Any) -> list[str]:
    """Create a schedule in place of others, which are disabled before and deleted afterwards.

    What fails on the way is undone.

    Args:
        connection: to Kubeflow.
        replaced: the others: all those of the same name and experiment.
        draft: the schedule, as a V2beta1RecurringRun.

    Returns:
        Lines that describe the schedule, and the runs of the others that go on.
    """
    beside = ", and the next one does not wait for it" if is_enabled(draft) else ""
    going_on = Firings(connection).still_running(replaced[0], beside) if replaced else []
    old_ids = {other.recurring_run_id for other in replaced}

    def find() -> Any:
        schedules = recurring.schedules_of(connection, draft.display_name, draft.experiment_id)
        made = [schedule for schedule in schedules if schedule.recurring_run_id not in old_ids]
        return next((s for s in made if recurring.content(s) == recurring.content(draft)), None)

    api = connection.recurring_runs
    active = [other for other in replaced if is_enabled(other)]
    try:
        for other in active:
            recurring.disable(connection, other)
        schedule = create_without_plugin(
            connection, find, api.recurring_run_service_create_recurring_run, draft
        )
    except (TaylorgloError, KeyboardInterrupt) as error:
        _undo(connection, active, find, error)
        raise
    for other in replaced:
        recurring.delete(connection, other)
    schedule = recurring.get(connection, schedule)
    return [*_described(connection, Firings(connection), schedule), *going_on]


def _undo(
    connection: Connection, active: Sequence[Any], find: Callable[[], Any], error: BaseException
) -> None:
    """Enable again the schedules that were active, in place of one that could not be created."""
    try:
        # It may have been created although the answer was lost.
        if schedule := find():
            recurring.delete(connection, schedule)
        for other in active:
            recurring.enable(connection, other)
    except TaylorgloError:
        raise ServiceError(
            f"{str(error) or 'interrupted'}; taylorglo schedule show tells whether the schedule is "
            "active or paused now"
        ) from None


@dataclass(frozen=True)
class Listed:
    """A schedule in a list of all.

    Attributes:
        name: of the schedule.
        state: ``active`` or ``paused``.
        running: whether a run of it is going on.
        next: when it fires next; None if that is not known.
        due: whether a firing waits.
        when: its cron expression or interval, in words.
        remarks: on its times and its runs.
    """

    name: str
    state: str
    running: bool
    next: datetime | None
    due: bool
    when: str
    remarks: list[str]

    def row(self, width: int) -> str:
        """Return its line in a table, with the name in so many columns."""
        first = f"{self.next:%Y-%m-%d %H:%M:%S}" if self.next else "-"
        return (
            f"{self.name:{width}}  {self.state:7}  {'running' if self.running else '-':7}  "
            f"{'due' if self.due else first:19}  {self.when}"
        )


def listed(connection: Connection, experiment: str) -> list[Listed]:
    """Return all schedules, in the order of their names.

    Args:
        connection: to Kubeflow.
        experiment: name of the experiment to look in, or empty for all.
    """
    experiment_id = recurring.experiment_id_of(connection, experiment)
    schedules = recurring.schedules_of(connection, "", experiment_id)
    firings = Firings(connection)
    return [
        _listed(firings, schedule)
        for schedule in sorted(schedules, key=lambda schedule: schedule.display_name)
    ]


def _listed(firings: Firings, schedule: Any) -> Listed:
    upcoming = firings.upcoming(schedule, 1)
    name = schedule.display_name
    remarks = [f"schedule {name!r}: {problem}" for problem in firings.never_ending(schedule)]
    if upcoming.remark == IF_UTC:
        remarks.insert(0, f"NEXT holds for a cron expression {IF_UTC}")
    return Listed(
        name=name,
        state=recurring.state(schedule),
        running=any(map(is_running, firings.runs(schedule))),
        next=upcoming.times[0] if upcoming.times else None,
        due=bool(upcoming.due),
        when=recurring.when(schedule),
        remarks=remarks,
    )


def listing(connection: Connection, experiment: str) -> list[str]:
    """Return all schedules as a table, a line each, and remarks on them; as :func:`listed`."""
    schedules = listed(connection, experiment)
    if not schedules:
        return ["there are no schedules"]
    width = max(len(schedule.name) for schedule in schedules)
    remarks = [remark for schedule in schedules for remark in schedule.remarks]
    return [
        f"{'NAME':{width}}  STATE    NOW      NEXT (UTC)           WHEN",
        *(schedule.row(width) for schedule in schedules),
        *dict.fromkeys(remarks),
    ]


def show(connection: Connection, name: str, experiment: str) -> list[str]:
    """Return lines that describe a schedule, with its next firings and its last runs."""
    schedule = recurring.find(connection, name, experiment)[0]
    firings = Firings(connection)
    runs = firings.table(firings.runs(schedule)[:_SHOWN_RUNS])
    return [
        *_described(connection, firings, schedule),
        *_labelled("runs", runs or ["none yet"]),
        *firings.never_ending(schedule),
    ]


def pause(connection: Connection, name: str, experiment: str) -> list[str]:
    """Stop firing until resumed, and return a line for each run that goes on."""
    return _to_each(connection, name, experiment, recurring.disable)


def resume(connection: Connection, name: str, experiment: str) -> list[str]:
    """Fire again, from the next time on, and return lines that describe the schedule."""
    schedules = recurring.find(connection, name, experiment)
    first, *others = schedules
    if not is_enabled(first):
        return _replace(connection, schedules, recurring.enabled_copy(first))
    for other in filter(is_enabled, others):
        recurring.disable(connection, other)
    return _described(connection, Firings(connection), first)


def delete(connection: Connection, name: str, experiment: str) -> list[str]:
    """Delete a schedule, but not its runs, and return a line for each run that goes on."""
    return _to_each(connection, name, experiment, recurring.delete)


def _to_each(
    connection: Connection, name: str, experiment: str, action: Callable[[Connection, Any], None]
) -> list[str]:
    """Do something to the schedules of a name; return a line for each run that goes on."""
    schedules = recurring.find(connection, name, experiment)
    lines = Firings(connection).still_running(schedules[0])
    for schedule in schedules:
        action(connection, schedule)
    return lines


def run_now(connection: Connection, name: str, experiment: str) -> Any:
    """Start a run as the schedule would, in addition to the runs that it starts.

    Returns:
        The run as Kubeflow describes it.
    """
    schedule = recurring.find(connection, name, experiment)[0]
    return start_run(
        connection,
        name,
        V2beta1Run(
            description=f"{RUN_NOW}{schedule.description}",
            experiment_id=schedule.experiment_id,
            pipeline_version_reference=schedule.pipeline_version_reference,
            runtime_config=schedule.runtime_config,
            service_account=schedule.service_account or None,
        ),
    )


def _described(connection: Connection, firings: Firings, schedule: Any) -> list[str]:
    """Return lines that describe a schedule, with its next firings."""
    upcoming = firings.upcoming(schedule, _SHOWN_TIMES)
    times = [f"{time:%Y-%m-%d %H:%M:%S} UTC" for time in upcoming.times]
    if upcoming.due:
        times.append(f"due since {upcoming.due:%Y-%m-%d %H:%M:%S} UTC")
    if is_enabled(schedule) and firings.is_busy(schedule):
        times.append("(a firing waits until the run of the last one has ended)")
    if upcoming.remark:
        times.append(f"({upcoming.remark})")
    return [
        f"state     {recurring.state(schedule)}",
        f"when      {recurring.when(schedule)}",
        f"pipeline  version {schedule.pipeline_version_reference.pipeline_version_id}",
        f"page      {connection.link(f'recurringrun/details/{schedule.recurring_run_id}')}",
        *_labelled("next", times),
    ]


def _labelled(label: str, lines: Sequence[str]) -> list[str]:
    """Return lines below one another, with a label before the first one."""
    return [f"{'' if number else label:8}  {line}" for number, line in enumerate(lines)]


def _recurring_run(
    config: Config, name: str, experiment_id: str, version: Any, trigger: Cron | int
) -> Any:
    """Return a recurring run for Kubeflow, whose mode is still to be set.

    Each of its runs goes on with the last search, or begins another one if the last is finished.
    """
    search = {**config.search.model_dump(mode="json"), "renew": True}
    if isinstance(trigger, Cron):
        when = V2beta1Trigger(cron_schedule=V2beta1CronSchedule(cron=trigger.expression))
    else:
        period = V2beta1PeriodicSchedule(interval_second=str(trigger))
        when = V2beta1Trigger(periodic_schedule=period)
    return V2beta1RecurringRun(
        display_name=name,
        description=description(config, f"{recurring.MARK} of sweep {config.name}"),
        experiment_id=experiment_id,
        pipeline_version_reference=version,
        runtime_config=V2beta1RuntimeConfig(parameters={**parameters(config), "search": search}),
        service_account=config.pipeline.service_account or None,
        max_concurrency="1",
        no_catchup=True,
        trigger=when,
    )
