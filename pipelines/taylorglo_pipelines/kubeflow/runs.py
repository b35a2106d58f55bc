"""Upload a sweep to Kubeflow Pipelines, unless it is there already, and start runs of it."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kfp_server_api import (
    V2beta1Experiment,
    V2beta1Pipeline,
    V2beta1PipelineVersionReference,
    V2beta1Run,
    V2beta1RuntimeConfig,
)

from taylorglo.errors import InputError, shortened
from taylorglo.services.mlflow import redacted
from taylorglo.settings import SweepSettings
from taylorglo.variables import TRACKING_URI
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.kubeflow.client import Connection, MissingError
from taylorglo_pipelines.pipeline.compile import compile_sweep

# Kubeflow's database may hold 255 characters. A schedule's runs put some words before them.
_LONGEST_DESCRIPTION = 230
# Kubeflow's own MLflow plugin would make a run of MLflow for each task, and set variables that the
# tasks have already.
_WITHOUT_MLFLOW_PLUGIN = {"mlflow": {"disabled": True}}


def submit(config: Config, connection: Connection, experiment: str) -> Any:
    """Upload the sweep, unless it is there already, and start a run of it.

    Args:
        config: the sweep.
        connection: to Kubeflow.
        experiment: name of the run's experiment, or empty for the default.

    Returns:
        The run as Kubeflow describes it.
    """
    version = upload(config, connection)
    experiment_id = experiment_of(connection, experiment_name(experiment, config.name))
    return start_run(
        connection,
        config.name,
        V2beta1Run(
            description=description(config, f"sweep {config.name}"),
            experiment_id=experiment_id,
            pipeline_version_reference=version,
            runtime_config=V2beta1RuntimeConfig(parameters=parameters(config)),
            service_account=config.pipeline.service_account or None,
        ),
    )


def experiment_name(given: str, default: str) -> str:
    """Return the name of the experiment to use; the variables are those of kfp's own client."""
    overriding = os.environ.get("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME")
    return overriding or given or os.environ.get("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME") or default


def parameters(config: Config) -> dict[str, Any]:
    """Return the parameters of the pipeline that are worth showing: the name, and what was set.

    The pipeline has these values already. A run's page shows those only that the run was given.
    """
    values = config.sweep.model_dump(mode="json")
    defaults = SweepSettings().model_dump(mode="json")
    return {key: value for key, value in values.items() if key == "name" or value != defaults[key]}


def description(config: Config, beginning: str) -> str:
    """Return a line that describes a sweep, with the page of MLflow if it has one.

    Args:
        config: the sweep.
        beginning: of the line.
    """
    layout, number = config.pipeline.layout, config.pipeline.generations
    line = (
        f"{beginning}: data {config.data.name}, network {config.model.name}, layout {layout}, "
        f"{number} generation{'s' if number > 1 else ''} x {config.search.popsize} candidates"
    )
    uri = redacted(config.services.variables()[TRACKING_URI])
    page = uri.partition("?")[0].partition("#")[0]
    with_page = f"{line}, MLflow {page}"
    fits = page.startswith(("http://", "https://")) and len(with_page) <= _LONGEST_DESCRIPTION
    return with_page if fits else shortened(line, _LONGEST_DESCRIPTION)


def start_run(connection: Connection, name: str, run: Any) -> Any:
    """Create a run that is named after the sweep and the time, and return it as Kubeflow has it.

    Args:
        connection: to Kubeflow.
        name: of the sweep.
        run: a V2beta1Run; its display name is set here.
    """
    now = datetime.now(UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")
    run.display_name = f"{name} {now}"

    def find() -> Any:
        runs = connection.pages(
            connection.runs.run_service_list_runs,
            "runs",
            experiment_id=run.experiment_id,
            filter=named(run.display_name),
        )
        return next(runs, None)

    return create_without_plugin(connection, find, connection.runs.run_service_create_run, run)


def create_without_plugin(
    connection: Connection, find: Callable[[], Any], method: Callable[..., Any], thing: Any
) -> Any:
    """Create a run or a recurring run that Kubeflow's MLflow plugin leaves alone.

    Args:
        connection: to Kubeflow.
        find: looks for the thing, as for ``Connection.create``.
        method: creates it.
        thing: a V2beta1Run or V2beta1RecurringRun.
    """
    thing.plugins_input = _WITHOUT_MLFLOW_PLUGIN
    try:
        return connection.create(find, method, thing)
    except InputError as error:
        if "plugins_input" not in str(error):
            raise
    # A Kubeflow older than 2.17 has no plugins, and refuses a field that it does not know.
    thing.plugins_input = None
    return connection.create(find, method, thing)


def upload(config: Config, connection: Connection) -> Any:
    """Upload the sweep as a version of its pipeline, unless that version is there already.

    The version is found by its name, which has the hash of the compiled pipeline in it. People see
    its display name, which has the start of the hash.

    Returns:
        A V2beta1PipelineVersionReference.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_sweep(config, path)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        layout = config.pipeline.layout
        # Kubernetes allows no spaces in it, and an older Kubeflow at most 100 characters.
        name = f"{config.name}-{layout}-{content[:24]}"
        display_name = f"{config.name} {layout} {content[:8]}"
        pipeline_id = _pipeline_id(connection, f"taylorglo-{config.name}")
        version_id = _version_id(connection, pipeline_id, name, display_name, path)
    return V2beta1PipelineVersionReference(pipeline_id=pipeline_id, pipeline_version_id=version_id)


def experiment_of(connection: Connection, name: str) -> str:
    """Return the id of the experiment of this name, which is created if there is none."""
    experiment = find_experiment(connection, name) or connection.create(
        lambda: find_experiment(connection, name),
        connection.experiments.experiment_service_create_experiment,
        V2beta1Experiment(display_name=name, namespace=connection.tenant),
    )
    return str(experiment.experiment_id)


def find_experiment(connection: Connection, name: str) -> Any:
    """Return the experiment of this name, or None."""
    experiments = connection.pages(
        connection.experiments.experiment_service_list_experiments,
        "experiments",
        filter=named(name),
        **_in_tenant(connection),
    )
    return next(experiments, None)


def named(name: str) -> str:
    """Return the filter of a list for the display name, as Kubeflow's API takes it."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _pipeline_id(connection: Connection, name: str) -> str:
    """Return the id of the pipeline of this name, which is created if there is none."""
    pipeline = _find_pipeline(connection, name) or connection.create(
        lambda: _find_pipeline(connection, name),
        connection.pipelines.pipeline_service_create_pipeline,
        V2beta1Pipeline(name=name, display_name=name, namespace=connection.tenant),
    )
    return str(pipeline.pipeline_id)


def _find_pipeline(connection: Connection, name: str) -> Any:
    by_name = connection.pipelines.pipeline_service_get_pipeline_by_name
    try:
        return connection.call(by_name, name, **_in_tenant(connection))
    except MissingError:
        return None


def _version_id(
    connection: Connection, pipeline_id: str, name: str, display_name: str, path: Path
) -> str:
    """Return the id of a pipeline's version, which is uploaded from ``path`` if there is none."""
    version = _find_version(connection, pipeline_id, name) or connection.create(
        lambda: _find_version(connection, pipeline_id, name),
        connection.uploads.upload_pipeline_version,
        str(path),
        name=name,
        display_name=display_name,
        pipelineid=pipeline_id,
    )
    return str(version.pipeline_version_id)


def _find_version(connection: Connection, pipeline_id: str, name: str) -> Any:
    versions = connection.pages(
        connection.pipelines.pipeline_service_list_pipeline_versions,
        "pipeline_versions",
        pipeline_id=pipeline_id,
    )
    # An older Kubeflow has no names beside the display names, and takes the name for that.
    return next((v for v in versions if name in (v.name, v.display_name)), None)


def _in_tenant(connection: Connection) -> dict[str, str]:
    """Return the argument of a list that names the user's namespace, if there are several."""
    return {"namespace": connection.tenant} if connection.tenant else {}
