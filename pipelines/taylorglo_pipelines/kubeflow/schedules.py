"""``taylorglo schedule``: sweeps that recur, as Kubeflow's recurring runs.

A schedule is found by its name, among those that this module made. There should be one of a name in an experiment;
where a change was cut off there may be two for a while, of which one is disabled, and the next change tidies up.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from taylorglo.errors import InputError, ServiceError, TaylorgloError
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.kubeflow.client import (
    Connection,
    MissingError,
    experiment_name,
    experiment_of,
    find_experiment,
    named,
    start_run,
    upload,
)
from taylorglo_pipelines.kubeflow.cron import Cron, next_times, parse

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_MARK = "taylorglo schedule"  # begins the description of what this module made
_DEFAULT_ACCOUNTS = (
    None,
    "",
    "pipeline-runner",
    "default-editor",
)  # what Kubeflow puts in where none is asked for


def create(
    config: Config, connection: Connection, name: str, experiment: str, trigger: Cron | int
) -> tuple[str, list[str]]:
    """Make the schedule, or the one of this name what it should be; returns what was done, and what to show of it.

    Kubeflow cannot change a recurring run. The new one is made disabled, the old one is disabled, the new one enabled
    and the old one deleted; what fails on the way is undone. So never are two enabled, and none only for the moment
    between two calls. A schedule that was paused stays so.
    """
    name = name or config.name
    version = upload(config, connection)
    experiment_id = experiment_of(connection, experiment_name(experiment, config.name))
    wanted = _recurring_run(config, name, experiment_id, version, trigger)
    olds = _listed(connection, name, experiment_id)
    if len(olds) == 1 and _content(olds[0]) == _content(wanted):
        return "unchanged", describe(connection, olds[0])
    api, known = connection.recurring_runs, {old.recurring_run_id for old in olds}
    paused = bool(olds) and not any(map(_is_enabled, olds))
    if not olds:
        wanted.mode = "ENABLE"

    def find() -> Any:
        new = [
            each
            for each in _listed(connection, name, experiment_id)
            if each.recurring_run_id not in known
        ]
        return new[0] if new else None

    new = connection.create(find, api.recurring_run_service_create_recurring_run, wanted)
    if olds:
        _replace(connection, olds, new, paused)
    made = connection.call(api.recurring_run_service_get_recurring_run, new.recurring_run_id)
    return "updated" if olds else "created", describe(connection, made)


def _replace(connection: Connection, olds: Sequence[Any], new: Any, paused: bool) -> None:
    api = connection.recurring_runs
    enabled = [old for old in olds if _is_enabled(old)]
    try:
        for old in enabled:
            connection.call(api.recurring_run_service_disable_recurring_run, old.recurring_run_id)
        if not paused:
            connection.call(api.recurring_run_service_enable_recurring_run, new.recurring_run_id)
    except (TaylorgloError, KeyboardInterrupt) as error:
        try:
            _delete(connection, new)  # first this one: it may have been enabled all the same
            for old in enabled:
                connection.call(
                    api.recurring_run_service_enable_recurring_run, old.recurring_run_id
                )
        except TaylorgloError:
            name = new.display_name
            raise ServiceError(
                f"{error}; schedule {name!r} may not be active now: repeat the command"
            ) from None
        raise
    for old in olds:
        _delete(connection, old)


def listing(connection: Connection, experiment: str) -> list[str]:
    """All schedules, a line each."""
    found = sorted(
        _listed(connection, "", _experiment_id(connection, experiment)),
        key=lambda each: each.display_name,
    )
    if not found:
        return ["there are no schedules"]
    width = max(len(each.display_name) for each in found)
    rows = [("NAME".ljust(width), "STATE  ", "NEXT (UTC)         ", "WHEN")]
    for each in found:
        times = next_times(_trigger(each), each.created_at, 1) if _is_enabled(each) else []
        upcoming = f"{times[0]:%Y-%m-%d %H:%M:%S}" if times else "-".ljust(19)
        rows.append((each.display_name.ljust(width), _state(each).ljust(7), upcoming, _when(each)))
    return ["  ".join(row) for row in rows]


def show(connection: Connection, name: str, experiment: str) -> list[str]:
    """What a schedule is, and when it fires next."""
    return describe(connection, _found(connection, name, experiment)[0])


def pause(connection: Connection, name: str, experiment: str) -> None:
    """Let it not fire until it is resumed; a run that is going on goes on."""
    for each in _found(connection, name, experiment):
        connection.call(
            connection.recurring_runs.recurring_run_service_disable_recurring_run,
            each.recurring_run_id,
        )


def resume(connection: Connection, name: str, experiment: str) -> list[str]:
    """Let it fire again, without catching up; returns what to show of it."""
    newest, *others = _found(connection, name, experiment)
    api = connection.recurring_runs
    for other in filter(_is_enabled, others):
        connection.call(api.recurring_run_service_disable_recurring_run, other.recurring_run_id)
    connection.call(api.recurring_run_service_enable_recurring_run, newest.recurring_run_id)
    return describe(
        connection,
        connection.call(api.recurring_run_service_get_recurring_run, newest.recurring_run_id),
    )


def delete(connection: Connection, name: str, experiment: str) -> None:
    """Remove it; its runs and what they found stay."""
    for each in _found(connection, name, experiment):
        _delete(connection, each)


def run_now(connection: Connection, name: str, experiment: str) -> Any:
    """Start a run as the schedule would, besides its own; returns the run."""
    import kfp_server_api

    schedule = _found(connection, name, experiment)[0]
    return start_run(
        connection,
        name,
        kfp_server_api.V2beta1Run(
            experiment_id=schedule.experiment_id,
            pipeline_version_reference=schedule.pipeline_version_reference,
            runtime_config=schedule.runtime_config,
            service_account=schedule.service_account or None,
        ),
    )


def describe(connection: Connection, schedule: Any) -> list[str]:
    """A schedule in a few lines."""
    lines = [
        f"state     {_state(schedule)}",
        f"when      {_when(schedule)}",
        f"pipeline  version {schedule.pipeline_version_reference.pipeline_version_id}",
        f"page      {connection.link(f'recurringrun/details/{schedule.recurring_run_id}')}",
    ]
    times = next_times(_trigger(schedule), schedule.created_at) if _is_enabled(schedule) else []
    label = "next      "
    for time in times:
        lines.append(f"{label}{time:%Y-%m-%d %H:%M:%S} UTC")
        label = " " * len(label)
    return lines


def _recurring_run(
    config: Config, name: str, experiment_id: str, version: Any, trigger: Cron | int
) -> Any:
    import kfp_server_api as api

    # Each firing goes on with the last search, or begins another one if the last is finished.
    search = {**config.search.model_dump(mode="json"), "renew": True}
    when = (
        api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=trigger.expression))
        if isinstance(trigger, Cron)
        else api.V2beta1Trigger(
            periodic_schedule=api.V2beta1PeriodicSchedule(interval_second=str(trigger))
        )
    )
    return api.V2beta1RecurringRun(
        display_name=name,
        description=f"{_MARK} of sweep {config.name}",
        experiment_id=experiment_id,
        pipeline_version_reference=version,
        runtime_config=api.V2beta1RuntimeConfig(parameters={"search": search}),
        service_account=config.pipeline.service_account or None,
        max_concurrency="1",
        no_catchup=True,
        trigger=when,
        mode="DISABLE",
    )


def _content(schedule: Any) -> tuple[Any, ...]:
    """What makes two schedules the same."""
    version = schedule.pipeline_version_reference
    return (
        _when(schedule),
        (version.pipeline_id, version.pipeline_version_id),
        schedule.runtime_config.parameters,
        "" if schedule.service_account in _DEFAULT_ACCOUNTS else schedule.service_account,
        schedule.description,
    )


def _listed(connection: Connection, name: str, experiment_id: str) -> list[Any]:
    """The schedules of a name (any, if empty) in an experiment (likewise), the one that counts first."""
    wanted: dict[str, str] = {"filter": named(name)} if name else {}
    if experiment_id:
        wanted["experiment_id"] = experiment_id
    elif connection.tenant:
        wanted["namespace"] = connection.tenant
    api = connection.recurring_runs.recurring_run_service_list_recurring_runs
    found = [
        each
        for each in connection.pages(api, "recurring_runs", **wanted)
        if (each.description or "").startswith(_MARK)
    ]
    return sorted(found, key=lambda each: (_is_enabled(each), each.created_at), reverse=True)


def _found(connection: Connection, name: str, experiment: str) -> list[Any]:
    found = _listed(connection, name, _experiment_id(connection, experiment))
    if not found:
        raise InputError(
            f"there is no schedule {name!r}; taylorglo schedule list shows those that there are"
        )
    if len({each.experiment_id for each in found}) > 1:
        raise InputError(
            f"there are schedules {name!r} in several experiments; choose one with --experiment"
        )
    return found


def _experiment_id(connection: Connection, experiment: str) -> str:
    if not experiment:
        return ""
    found = find_experiment(connection, experiment)
    if found is None:
        raise InputError(f"there is no experiment {experiment!r}")
    return str(found.experiment_id)


def _delete(connection: Connection, schedule: Any) -> None:
    with contextlib.suppress(MissingError):  # a try whose answer was lost did it, or somebody else
        connection.call(
            connection.recurring_runs.recurring_run_service_delete_recurring_run,
            schedule.recurring_run_id,
        )


def _trigger(schedule: Any) -> Cron | int:
    if schedule.trigger.cron_schedule:
        return parse(schedule.trigger.cron_schedule.cron)
    return int(schedule.trigger.periodic_schedule.interval_second)


def _when(schedule: Any) -> str:
    trigger = _trigger(schedule)
    if isinstance(trigger, Cron):
        return trigger.expression
    unit, seconds = next(each for each in _UNITS if trigger % each[1] == 0)
    return f"every {trigger // seconds}{unit}"


def _is_enabled(schedule: Any) -> bool:
    return bool(schedule.mode == "ENABLE")


def _state(schedule: Any) -> str:
    return "active" if _is_enabled(schedule) else "paused"
