"""Runs of an experiment, and the removal of all that belongs to a sweep in Kubeflow."""

from contextlib import suppress
from typing import Any

from taylorglo.errors import TaylorgloError, one_line
from taylorglo_pipelines.kubeflow import recurring
from taylorglo_pipelines.kubeflow.client import Connection, MissingError
from taylorglo_pipelines.kubeflow.firings import is_running
from taylorglo_pipelines.kubeflow.runs import find_experiment


def runs_in(connection: Connection, experiment: str) -> list[Any]:
    """Return the runs of an experiment."""
    found = find_experiment(connection, experiment)
    if found is None:
        return []
    listing = connection.runs.run_service_list_runs
    return list(connection.pages(listing, "runs", experiment_id=found.experiment_id))


def remove_runs(connection: Connection, sweep: str) -> bool:
    """Remove the schedules and runs of a sweep; return whether there were any."""
    experiment = find_experiment(connection, sweep)
    if experiment is None:
        return False
    listing = connection.recurring_runs.recurring_run_service_list_recurring_runs
    where = {"experiment_id": experiment.experiment_id}
    schedules = list(connection.pages(listing, "recurring_runs", **where))
    # Another look finds what could not be removed.
    for schedule in schedules:
        with suppress(TaylorgloError):
            recurring.delete(connection, schedule)
    runs = runs_in(connection, sweep)
    for run in runs:
        if is_running(run):
            with suppress(TaylorgloError):
                connection.call(connection.runs.run_service_terminate_run, run.run_id)
        with suppress(TaylorgloError):
            connection.call(connection.runs.run_service_delete_run, run.run_id)
    return bool(schedules or runs)


def remove_rest(connection: Connection, sweep: str) -> str:
    """Remove the pipeline and the experiment of a sweep; return why not, or an empty text."""
    if remove_runs(connection, sweep):
        return f"experiment {sweep} still has runs or schedules"
    try:
        _remove_pipeline(connection, f"taylorglo-{sweep}")
        if experiment := find_experiment(connection, sweep):
            delete = connection.experiments.experiment_service_delete_experiment
            connection.call(delete, experiment.experiment_id)
    except TaylorgloError as error:
        return f"{sweep}: {one_line(error)}"
    return ""


def _remove_pipeline(connection: Connection, name: str) -> None:
    """Remove a pipeline and its versions."""
    api = connection.pipelines
    where = {"namespace": connection.tenant} if connection.tenant else {}
    try:
        pipeline = connection.call(api.pipeline_service_get_pipeline_by_name, name, **where)
    except MissingError:
        return
    listing = api.pipeline_service_list_pipeline_versions
    versions = connection.pages(listing, "pipeline_versions", pipeline_id=pipeline.pipeline_id)
    for version in list(versions):
        delete = api.pipeline_service_delete_pipeline_version
        connection.call(delete, version.pipeline_id, version.pipeline_version_id)
    connection.call(api.pipeline_service_delete_pipeline, pipeline.pipeline_id)
