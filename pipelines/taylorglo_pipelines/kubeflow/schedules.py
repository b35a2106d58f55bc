"""Sweeps that recur, as Kubeflow's recurring runs.

A schedule is found by its name, among the recurring runs that this module made. An experiment has
one schedule of a name. After a change that was cut off it may have two, one of them disabled, until
the next change deletes one.
"""

import contextlib
from collections.abc import Sequence
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

from taylorglo.errors import InputError, ServiceError, TaylorgloError
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.kubeflow.client import Connection, MissingError
from taylorglo_pipelines.kubeflow.cron import Cron, next_times, parse
from taylorglo_pipelines.kubeflow.runs import (
    experiment_name,
    experiment_of,
    find_experiment,
    named,
    start_run,
    upload,
)

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))  # seconds
# The description of a recurring run that this module made begins with it.
_MARK = "taylorglo schedule"
# Kubeflow fills one of these in if a recurring run names no service account.
_DEFAULT_ACCOUNTS = (None, "", "pipeline-runner", "default-editor")


def create(
    config: Config, connection: Connection, name: str, experiment: str, trigger: Cron | int
) -> tuple[str, list[str]]:
    """Create a schedule, or change the one of this name; a schedule that was paused stays paused.

    Kubeflow cannot change a recurring run, so another one replaces it. At most one is ever enabled.

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
        ServiceError: Kubeflow is away; the message says so if no schedule may be active now.
    """
    name = name or config.name
    version = upload(config, connection)
    experiment_id = experiment_of(connection, experiment_name(experiment, config.name))
    draft = _recurring_run(config, name, experiment_id, version, trigger)
    replaced = _schedules(connection, name, experiment_id)
    if len(replaced) == 1 and _content(replaced[0]) == _content(draft):
        return "unchanged", describe(connection, replaced[0])
    draft.mode = "DISABLE" if replaced else "ENABLE"
    old_ids = {schedule.recurring_run_id for schedule in replaced}

    def find() -> Any:
        schedules = _schedules(connection, name, experiment_id)
        return next((s for s in schedules if s.recurring_run_id not in old_ids), None)

    api = connection.recurring_runs
    schedule = connection.create(find, api.recurring_run_service_create_recurring_run, draft)
    if replaced:
        _replace(connection, replaced, schedule)
    return (
        "updated" if replaced else "created",
        describe(connection, _get(connection, schedule)),
    )


def _replace(connection: Connection, replaced: Sequence[Any], schedule: Any) -> None:
    """Enable a schedule in place of others, which are disabled before and deleted afterwards.

    What fails on the way is undone. If all of the others are paused, the schedule stays disabled.
    """
    active = [other for other in replaced if _is_enabled(other)]
    try:
        for other in active:
            _disable(connection, other)
        if active:
            _enable(connection, schedule)
    except (TaylorgloError, KeyboardInterrupt) as error:
        _undo(connection, active, schedule, error)
        raise
    for other in replaced:
        _delete(connection, other)


def _undo(
    connection: Connection, active: Sequence[Any], schedule: Any, error: BaseException
) -> None:
    """Delete a schedule that could not be enabled, and enable again the ones that were active."""
    try:
        # This one first: it may have been enabled although the answer was lost.
        _delete(connection, schedule)
        for other in active:
            _enable(connection, other)
    except TaylorgloError:
        raise ServiceError(
            f"{str(error) or 'interrupted'}; schedule {schedule.display_name!r} may not be "
            "active now: repeat the command"
        ) from None


def listing(connection: Connection, experiment: str) -> list[str]:
    """Return all schedules as a table, a line each.

    Args:
        connection: to Kubeflow.
        experiment: name of the experiment to look in, or empty for all.
    """
    schedules = _schedules(connection, "", _experiment_id(connection, experiment))
    if not schedules:
        return ["there are no schedules"]
    width = max(len(schedule.display_name) for schedule in schedules)
    lines = [f"{'NAME':{width}}  STATE    NEXT (UTC)           WHEN"]
    for schedule in sorted(schedules, key=lambda schedule: schedule.display_name):
        times = _next_times(schedule, 1)
        upcoming = f"{times[0]:%Y-%m-%d %H:%M:%S}" if times else "-"
        lines.append(
            f"{schedule.display_name:{width}}  {_state(schedule):7}  {upcoming:19}  "
            f"{_when(schedule)}"
        )
    return lines


def show(connection: Connection, name: str, experiment: str) -> list[str]:
    """Return lines that describe a schedule, with its next firings."""
    return describe(connection, _find(connection, name, experiment)[0])


def pause(connection: Connection, name: str, experiment: str) -> None:
    """Stop firing until resumed; a run that has begun goes on."""
    for schedule in _find(connection, name, experiment):
        _disable(connection, schedule)


def resume(connection: Connection, name: str, experiment: str) -> list[str]:
    """Fire again, without catching up, and return lines that describe the schedule."""
    first, *others = _find(connection, name, experiment)
    for other in filter(_is_enabled, others):
        _disable(connection, other)
    _enable(connection, first)
    return describe(connection, _get(connection, first))


def delete(connection: Connection, name: str, experiment: str) -> None:
    """Delete a schedule; its runs and their results stay."""
    for schedule in _find(connection, name, experiment):
        _delete(connection, schedule)


def run_now(connection: Connection, name: str, experiment: str) -> Any:
    """Start a run as the schedule would, in addition to the runs that it starts.

    Returns:
        The run as Kubeflow describes it.
    """
    schedule = _find(connection, name, experiment)[0]
    return start_run(
        connection,
        name,
        V2beta1Run(
            experiment_id=schedule.experiment_id,
            pipeline_version_reference=schedule.pipeline_version_reference,
            runtime_config=schedule.runtime_config,
            service_account=schedule.service_account or None,
        ),
    )


def describe(connection: Connection, schedule: Any) -> list[str]:
    """Return lines that describe a schedule."""
    lines = [
        f"state     {_state(schedule)}",
        f"when      {_when(schedule)}",
        f"pipeline  version {schedule.pipeline_version_reference.pipeline_version_id}",
        f"page      {connection.link(f'recurringrun/details/{schedule.recurring_run_id}')}",
    ]
    label = "next"
    for time in _next_times(schedule, 3):
        lines.append(f"{label:8}  {time:%Y-%m-%d %H:%M:%S} UTC")
        label = ""
    return lines


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
        description=f"{_MARK} of sweep {config.name}",
        experiment_id=experiment_id,
        pipeline_version_reference=version,
        runtime_config=V2beta1RuntimeConfig(parameters={"search": search}),
        service_account=config.pipeline.service_account or None,
        max_concurrency="1",
        no_catchup=True,
        trigger=when,
    )


def _content(schedule: Any) -> tuple[Any, ...]:
    """Return the fields that two schedules have in common if one need not replace the other."""
    version = schedule.pipeline_version_reference
    account = schedule.service_account
    return (
        _when(schedule),
        (version.pipeline_id, version.pipeline_version_id),
        schedule.runtime_config.parameters,
        "" if account in _DEFAULT_ACCOUNTS else account,
        schedule.description,
    )


def _schedules(connection: Connection, name: str, experiment_id: str) -> list[Any]:
    """Return the schedules, the enabled ones first, and the newest first among equals.

    Args:
        connection: to Kubeflow.
        name: of the schedules, or empty for any.
        experiment_id: of the experiment, or empty for any.
    """
    conditions: dict[str, str] = {}
    if name:
        conditions["filter"] = named(name)
    if experiment_id:
        conditions["experiment_id"] = experiment_id
    elif connection.tenant:
        conditions["namespace"] = connection.tenant
    recurring_runs = connection.pages(
        connection.recurring_runs.recurring_run_service_list_recurring_runs,
        "recurring_runs",
        **conditions,
    )
    schedules = [run for run in recurring_runs if (run.description or "").startswith(_MARK)]
    return sorted(schedules, key=lambda s: (_is_enabled(s), s.created_at), reverse=True)


def _find(connection: Connection, name: str, experiment: str) -> list[Any]:
    """Return the schedules of a name in one experiment, the one to show first.

    Raises:
        InputError: there is none, or there are some in several experiments.
    """
    schedules = _schedules(connection, name, _experiment_id(connection, experiment))
    if not schedules:
        raise InputError(
            f"there is no schedule {name!r}; taylorglo schedule list shows those that there are"
        )
    if len({schedule.experiment_id for schedule in schedules}) > 1:
        raise InputError(
            f"there are schedules {name!r} in several experiments; choose one with --experiment"
        )
    return schedules


def _experiment_id(connection: Connection, name: str) -> str:
    """Return the id of the experiment of this name, or nothing for no name."""
    if not name:
        return ""
    experiment = find_experiment(connection, name)
    if experiment is None:
        raise InputError(f"there is no experiment {name!r}")
    return str(experiment.experiment_id)


def _get(connection: Connection, schedule: Any) -> Any:
    api = connection.recurring_runs
    return connection.call(api.recurring_run_service_get_recurring_run, schedule.recurring_run_id)


def _enable(connection: Connection, schedule: Any) -> None:
    api = connection.recurring_runs
    connection.call(api.recurring_run_service_enable_recurring_run, schedule.recurring_run_id)


def _disable(connection: Connection, schedule: Any) -> None:
    api = connection.recurring_runs
    connection.call(api.recurring_run_service_disable_recurring_run, schedule.recurring_run_id)


def _delete(connection: Connection, schedule: Any) -> None:
    api = connection.recurring_runs
    # A try whose answer was lost has deleted it, or another process has.
    with contextlib.suppress(MissingError):
        connection.call(api.recurring_run_service_delete_recurring_run, schedule.recurring_run_id)


def _trigger(schedule: Any) -> Cron | int:
    if schedule.trigger.cron_schedule:
        return parse(schedule.trigger.cron_schedule.cron)
    return int(schedule.trigger.periodic_schedule.interval_second)


def _when(schedule: Any) -> str:
    trigger = _trigger(schedule)
    if isinstance(trigger, Cron):
        return trigger.expression
    unit, seconds = next(unit for unit in _UNITS if trigger % unit[1] == 0)
    return f"every {trigger // seconds}{unit}"


def _next_times(schedule: Any, number: int) -> list[datetime]:
    """Return the next firings, none of them if the schedule is paused."""
    if not _is_enabled(schedule):
        return []
    return next_times(_trigger(schedule), schedule.created_at, number)


def _is_enabled(schedule: Any) -> bool:
    return bool(schedule.mode == "ENABLE")


def _state(schedule: Any) -> str:
    return "active" if _is_enabled(schedule) else "paused"
