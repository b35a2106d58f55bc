"""A schedule as one of Kubeflow's recurring runs: what it says, how to find it, its switches."""

import contextlib
from typing import Any

from kfp_server_api import V2beta1RecurringRun

from taylorglo.errors import InputError
from taylorglo_pipelines.kubeflow.client import Connection, MissingError
from taylorglo_pipelines.kubeflow.cron import Cron, parse
from taylorglo_pipelines.kubeflow.runs import find_experiment, named

# The description of a recurring run that taylorglo made begins with it.
MARK = "taylorglo schedule"
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))  # seconds
# Kubeflow fills one of these in if a recurring run names no service account.
_DEFAULT_ACCOUNTS = (None, "", "pipeline-runner", "default-editor")


def is_schedule(recurring_run: Any) -> bool:
    """Return whether taylorglo made a recurring run."""
    return (recurring_run.description or "").startswith(MARK)


def is_enabled(schedule: Any) -> bool:
    """Return whether a schedule is active."""
    return bool(schedule.mode == "ENABLE")


def state(schedule: Any) -> str:
    """Return ``active`` or ``paused``."""
    return "active" if is_enabled(schedule) else "paused"


def trigger_of(schedule: Any) -> Cron | int:
    """Return the cron expression of a schedule, or its interval in seconds."""
    if schedule.trigger.cron_schedule:
        return parse(schedule.trigger.cron_schedule.cron)
    return int(schedule.trigger.periodic_schedule.interval_second)


def when(schedule: Any) -> str:
    """Return the cron expression of a schedule, or its interval such as ``every 12h``."""
    trigger = trigger_of(schedule)
    if isinstance(trigger, Cron):
        return trigger.expression
    unit, seconds = next(unit for unit in _UNITS if trigger % unit[1] == 0)
    return f"every {trigger // seconds}{unit}"


def content(schedule: Any) -> tuple[Any, ...]:
    """Return the fields that two schedules have in common if one need not replace the other."""
    version = schedule.pipeline_version_reference
    account = schedule.service_account
    return (
        when(schedule),
        (version.pipeline_id, version.pipeline_version_id),
        schedule.runtime_config.parameters,
        "" if account in _DEFAULT_ACCOUNTS else account,
    )


def enabled_copy(schedule: Any) -> Any:
    """Return a V2beta1RecurringRun with the content of a schedule, to be created anew."""
    return V2beta1RecurringRun(
        display_name=schedule.display_name,
        description=schedule.description,
        experiment_id=schedule.experiment_id,
        pipeline_version_reference=schedule.pipeline_version_reference,
        runtime_config=schedule.runtime_config,
        service_account=schedule.service_account,
        max_concurrency=schedule.max_concurrency,
        no_catchup=schedule.no_catchup,
        trigger=schedule.trigger,
        mode="ENABLE",
    )


def schedules_of(connection: Connection, name: str, experiment_id: str) -> list[Any]:
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
    schedules = filter(is_schedule, recurring_runs)
    return sorted(schedules, key=lambda s: (is_enabled(s), s.created_at), reverse=True)


def find(connection: Connection, name: str, experiment: str) -> list[Any]:
    """Return the schedules of a name in one experiment, the one to show first.

    Raises:
        InputError: there is none, or there are some in several experiments.
    """
    schedules = schedules_of(connection, name, experiment_id_of(connection, experiment))
    if not schedules:
        raise InputError(
            f"there is no schedule {name!r}; taylorglo schedule list shows those that there are"
        )
    if len({schedule.experiment_id for schedule in schedules}) > 1:
        raise InputError(
            f"there are schedules {name!r} in several experiments; choose one with --experiment"
        )
    return schedules


def experiment_id_of(connection: Connection, name: str) -> str:
    """Return the id of the experiment of this name, or nothing for no name."""
    if not name:
        return ""
    experiment = find_experiment(connection, name)
    if experiment is None:
        raise InputError(f"there is no experiment {name!r}")
    return str(experiment.experiment_id)


def get(connection: Connection, schedule: Any) -> Any:
    """Return a schedule as Kubeflow has it now."""
    api = connection.recurring_runs
    return connection.call(api.recurring_run_service_get_recurring_run, schedule.recurring_run_id)


def enable(connection: Connection, schedule: Any) -> None:
    """Let a schedule fire; Kubeflow starts a run at once if it has missed a time."""
    api = connection.recurring_runs
    connection.call(api.recurring_run_service_enable_recurring_run, schedule.recurring_run_id)


def disable(connection: Connection, schedule: Any) -> None:
    """Let a schedule fire no more; its running run goes on."""
    api = connection.recurring_runs
    connection.call(api.recurring_run_service_disable_recurring_run, schedule.recurring_run_id)


def delete(connection: Connection, schedule: Any) -> None:
    """Delete a schedule; its running run goes on.

    By default, Kubernetes would delete the workflow of that run with the schedule.
    """
    api = connection.recurring_runs
    # A try whose answer was lost has deleted it, or another process has.
    with contextlib.suppress(MissingError):
        connection.call(
            api.recurring_run_service_delete_recurring_run,
            schedule.recurring_run_id,
            propagation_policy="ORPHAN",
        )
