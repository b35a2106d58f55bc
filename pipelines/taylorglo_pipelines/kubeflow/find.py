"""Find a run of Kubeflow by what a person has of it: an id, the address of a page, or a name."""

import re

from taylorglo.errors import InputError
from taylorglo_pipelines.kubeflow.client import Connection, MissingError
from taylorglo_pipelines.kubeflow.runs import find_experiment, named

_PAGE = re.compile(r"/runs/details/([\w-]+)")
_MAX_NAMED = 5  # runs that an error names


def find_run(connection: Connection, run: str, experiment: str) -> str:
    """Return the id of a run.

    Args:
        connection: to Kubeflow.
        run: id of the run, address of its page, or its display name if only one run has it.
        experiment: name of the experiment to look for a display name in, or empty for all.

    Raises:
        InputError: there is no such run, or more than one.
    """
    if match := _PAGE.search(run):
        return match[1]
    if "://" in run:
        raise InputError(f"{run}: should be the address of a run's page, .../#/runs/details/ID")
    if re.fullmatch(r"[\w-]+", run):
        try:
            connection.call(connection.runs.run_service_get_run, run)
        except MissingError:
            pass
        else:
            return run
    ids = _ids_of(connection, run, experiment)
    if not ids:
        where = f" in experiment {experiment!r}" if experiment else ""
        raise InputError(f"there is no run of the id or name {run!r}{where}")
    if len(ids) > 1:
        some = ", ".join(ids[:_MAX_NAMED])
        more = ", ..." if len(ids) > _MAX_NAMED else ""
        raise InputError(f"{len(ids)} runs are called {run!r}; give the id of one: {some}{more}")
    return ids[0]


def _ids_of(connection: Connection, name: str, experiment: str) -> list[str]:
    """Return the ids of all runs of a display name."""
    where = {"namespace": connection.tenant} if connection.tenant else {}
    if experiment:
        found = find_experiment(connection, experiment)
        if found is None:
            raise InputError(f"there is no experiment {experiment!r}")
        where = {"experiment_id": found.experiment_id}
    runs = connection.pages(
        connection.runs.run_service_list_runs, "runs", filter=named(name), **where
    )
    return [str(run.run_id) for run in runs]
