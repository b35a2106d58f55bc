"""Upload a sweep to Kubeflow Pipelines, unless it is there already, and start runs of it."""

import hashlib
import json
import os
import tempfile
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

from taylorglo_pipelines.config import Config
from taylorglo_pipelines.kubeflow.client import Connection, MissingError
from taylorglo_pipelines.pipeline.compile import compile_sweep


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
            experiment_id=experiment_id,
            pipeline_version_reference=version,
            runtime_config=V2beta1RuntimeConfig(parameters={}),
            service_account=config.pipeline.service_account or None,
        ),
    )


def experiment_name(given: str, default: str) -> str:
    """Return the name of the experiment to use; the variables are those of kfp's own client."""
    overriding = os.environ.get("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME")
    return overriding or given or os.environ.get("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME") or default


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

    return connection.create(find, connection.runs.run_service_create_run, run)


def upload(config: Config, connection: Connection) -> Any:
    """Upload the sweep as a version of its pipeline, unless that version is there already.

    The version is named by the hash of the compiled pipeline.

    Returns:
        A V2beta1PipelineVersionReference.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_sweep(config, path)
        version = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        pipeline_id = _pipeline_id(connection, f"taylorglo-{config.name}")
        version_id = _version_id(connection, pipeline_id, version, path)
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


def _version_id(connection: Connection, pipeline_id: str, name: str, path: Path) -> str:
    """Return the id of a pipeline's version, which is uploaded from ``path`` if there is none."""
    version = _find_version(connection, pipeline_id, name) or connection.create(
        lambda: _find_version(connection, pipeline_id, name),
        connection.uploads.upload_pipeline_version,
        str(path),
        name=name,
        display_name=name,
        pipelineid=pipeline_id,
    )
    return str(version.pipeline_version_id)


def _find_version(connection: Connection, pipeline_id: str, name: str) -> Any:
    versions = connection.pages(
        connection.pipelines.pipeline_service_list_pipeline_versions,
        "pipeline_versions",
        pipeline_id=pipeline_id,
    )
    return next((v for v in versions if name in (v.name, v.display_name)), None)


def _in_tenant(connection: Connection) -> dict[str, str]:
    """Return the argument of a list that names the user's namespace, if there are several."""
    return {"namespace": connection.tenant} if connection.tenant else {}
