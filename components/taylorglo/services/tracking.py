"""The MLflow edge: what a sweep leaves in the tracking server.

An experiment per sweep; in it one parent run per pipeline run; under that a nested run per candidate, and one for the
champion and for each baseline. All writing is idempotent, so that a task that is tried again doubles nothing.
MLflow takes over a second to import and is imported only once a tracker is opened.
"""

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from taylorglo.errors import InputError, ServiceError
from taylorglo.loss.polynomial import checked_theta
from taylorglo.results import Candidate, DatasetDescription, StandingChampion
from taylorglo.services.mlflow import Connection, redacted

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, Run, RunTag

CHAMPION = "champion"  # the alias, in MLflow's model registry, of the loss to use
_MAX_PARAM, _MAX_TAG, _MAX_DIGEST = 6000, 5000, 36  # characters that MLflow accepts
_MOST_RUNS = 50_000  # of one search in MLflow; a generation has at most 10 000 candidates
_logger = logging.getLogger(__name__)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _params(values: Mapping[str, object]) -> "list[Param]":
    from mlflow.entities import Param

    return [Param(key, redacted(str(value))[:_MAX_PARAM]) for key, value in values.items()]


def _tags(values: Mapping[str, str]) -> "list[RunTag]":
    from mlflow.entities import RunTag

    return [RunTag(key, redacted(value)[:_MAX_TAG]) for key, value in values.items()]


def _metrics(values: Mapping[str, float | None], timestamp: int, step: int = 0) -> "list[Metric]":
    """The finite ones of the values: MLflow stores others as numbers that nobody measured."""
    from mlflow.entities import Metric

    finite = {
        key: value for key, value in values.items() if value is not None and math.isfinite(value)
    }
    return [Metric(key, float(value), timestamp, step) for key, value in finite.items()]


class Tracker:
    """One pipeline run in MLflow: its parent run and what is nested in it.

    Attributes:
        run_id: of the parent run.
        experiment_id: of the experiment that holds the parent run and its nested runs.
    """

    def __init__(self, connection: Connection, experiment_id: str, run_id: str) -> None:
        """Take what :meth:`open` and :meth:`attach` found."""
        self._connection = connection
        self._client = connection.client
        self.experiment_id = experiment_id
        self.run_id = run_id

    @classmethod
    def open(
        cls,
        tracking_uri: str,
        experiment: str,
        *,
        run_name: str,
        artifact_location: str | None = None,
        resume_run_id: str | None = None,
    ) -> "Tracker":
        """Find or create the parent run, at the start of a pipeline run.

        The parent is the run that the environment injects (``MLFLOW_RUN_ID``, as Kubeflow Pipelines does), whatever its
        experiment; else ``resume_run_id``, which is running again; else a new run in ``experiment``.

        Args:
            tracking_uri: ``http(s)://host[:port]``, or ``sqlite:///FILE`` where the folder exists.
            experiment: name of the experiment, created if there is none.
            run_name: of a new parent run.
            artifact_location: folder or URI for the artifacts of a new experiment; None: the server's choice.
            resume_run_id: parent run of a pipeline run that was interrupted.

        Raises:
            InputError: malformed URI, not a database, or a run or experiment that does not exist any more.
            ServiceError: the server or the database cannot be reached.
        """
        connection = Connection(tracking_uri)
        client = connection.client
        injected = os.environ.get("MLFLOW_RUN_ID")
        if injected or resume_run_id:
            run = connection.run(
                injected or resume_run_id or "", "MLFLOW_RUN_ID" if injected else "run to resume"
            )
            tracker = cls(connection, run.info.experiment_id, run.info.run_id)
            if run.info.status != "RUNNING" and tracker._owns_run:
                connection.call(client.update_run, tracker.run_id, status="RUNNING")
            return tracker
        experiment_id = connection.experiment(experiment, artifact_location)
        run = connection.call(client.create_run, experiment_id, run_name=run_name)
        return cls(connection, experiment_id, run.info.run_id)

    @classmethod
    def attach(cls, tracking_uri: str, run_id: str) -> "Tracker":
        """Join the parent run ``run_id`` from a later task.

        Raises:
            InputError: malformed URI, or a run that does not exist.
            ServiceError: the server or the database cannot be reached.
        """
        connection = Connection(tracking_uri)
        run = connection.run(run_id, "parent run")
        return cls(connection, run.info.experiment_id, run.info.run_id)

    @property
    def _owns_run(self) -> bool:
        """Whether the parent's status is ours to set: not that of a run which a scheduler injected."""
        return os.environ.get("MLFLOW_RUN_ID") != self.run_id

    def log_settings(self, params: Mapping[str, str | int | float | bool]) -> None:
        """Log params on the parent, cut to 6000 characters and without the credentials of URIs.

        MLflow never changes a param: on a resumed run, a setting with a new value keeps its first one, with a warning.
        """
        known = self._connection.call(self._client.get_run, self.run_id).data.params
        wanted = _params(params)
        if changed := sorted(
            param.key for param in wanted if known.get(param.key, param.value) != param.value
        ):
            _logger.warning(
                "MLflow run %s keeps the first value of changed settings: %s",
                self.run_id,
                ", ".join(changed),
            )
        new = [param for param in wanted if param.key not in known]
        self._connection.call(self._client.log_batch, self.run_id, params=new)

    def log_dataset(self, description: DatasetDescription) -> None:
        """Log each split as an input of the parent run, without the credentials of its source.

        A split is logged as ``NAME-SPLIT``, because MLflow keeps one input for each name and
        digest. The digest is the first 36 characters of the fingerprint.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = redacted(description.provenance["source"])
        scheme, separator, _ = source.partition("://")
        fingerprint = description.fingerprint

        def profile(rows: int) -> str:
            content = {"num_rows": rows, "num_classes": description.num_classes}
            return json.dumps({**content, "fingerprint": fingerprint})

        inputs = [
            DatasetInput(
                Dataset(
                    name=f"{description.name}-{split}",
                    digest=fingerprint[:_MAX_DIGEST],
                    source_type=scheme if separator else "local",
                    source=json.dumps({"uri": source}),
                    profile=profile(rows),
                ),
                [InputTag("mlflow.data.context", split)],
            )
            for split, rows in description.splits.items()
        ]
        self._connection.call(self._client.log_inputs, self.run_id, datasets=inputs)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the finite ones of ``metrics`` on the parent."""
        batch = _metrics(metrics, _milliseconds(time.time()), step)
        self._connection.call(self._client.log_batch, self.run_id, metrics=batch)

    def log_candidates(
        self,
        generation: int,
        candidates: Sequence[Candidate],
        coefficients: Mapping[int, Mapping[str, float]],
    ) -> None:
        """Log a nested run for each candidate that has none yet under this parent.

        Args:
            generation: number of the generation, from 1.
            candidates: with their results. Numbers that are not finite are left out.
            coefficients: numbers that describe each candidate, by its trial.
        """
        tags = {"taylorglo.stage": "candidate", "taylorglo.generation": str(generation)}
        logged = {int(run.data.tags["taylorglo.trial"]): run for run in self._nested(tags)}
        for candidate in candidates:
            run = logged.get(candidate.trial)
            if run is not None and run.info.status != "RUNNING":
                continue
            # A run that is RUNNING was cut off half-way. No other process logs this candidate, so
            # this one completes it.
            self._log_candidate(
                candidate, coefficients[candidate.trial], run.info.run_id if run else None
            )

    def _log_candidate(
        self, candidate: Candidate, coefficients: Mapping[str, float], run_id: str | None
    ) -> None:
        result, trial = candidate.result, candidate.trial
        assert result is not None
        # The time stamps are the candidate's, so that what is logged twice is stored once.
        started, ended = _milliseconds(result.started), _milliseconds(result.ended)
        if run_id is None:
            run_id = self._create_nested(
                f"g{candidate.generation:02d}-c{trial:03d}",
                {
                    "taylorglo.stage": "candidate",
                    "taylorglo.generation": str(candidate.generation),
                    "taylorglo.trial": str(trial),
                },
                started,
            )
        params = {
            "theta": ", ".join(repr(value) for value in candidate.theta),
            **{f"theta_{index}": value for index, value in enumerate(candidate.theta)},
            **{f"coefficient_{name}": value for name, value in coefficients.items()},
        }
        metrics = _metrics({"fitness": candidate.fitness, "seconds": result.seconds}, ended)
        for attempt, accuracy in enumerate(result.accuracies):
            metrics += _metrics({"attempt_accuracy": accuracy}, ended, attempt)
        for step, accuracy, loss in result.curve:
            values = {"validation_accuracy": accuracy, "validation_loss": loss}
            metrics += _metrics(values, ended, step)
        tags = _tags({"taylorglo.status": result.status, "taylorglo.reason": result.reason})
        self._connection.call(
            self._client.log_batch, run_id, metrics=metrics, params=_params(params), tags=tags
        )
        status = "FAILED" if result.status == "failed" else "FINISHED"
        self._connection.call(self._client.set_terminated, run_id, status, ended)

    def log_final(
        self,
        stage: str,
        name: str,
        *,
        params: Mapping[str, object],
        metrics: Mapping[str, float],
        curves: Mapping[str, Sequence[tuple[int, float]]],
        files: Mapping[str, Path],
    ) -> str:
        """Log a nested run for the champion or a baseline, in place of an earlier one of this stage and name.

        An earlier one that is the same is kept: a version in the model registry may point to it.

        Args:
            stage: for example ``champion`` or ``baseline``; not ``candidate``.
            name: of the loss, and of the run.
            params: as for :meth:`log_settings`.
            metrics: as for :meth:`log_metrics`.
            curves: metrics by step, as (step, value).
            files: local file by artifact path.

        Returns:
            The id of the run.

        Raises:
            InputError: a file that does not exist, or an artifact path that is not inside the run.
            ServiceError: the server, the database or the artifact store fails.
        """
        earlier = [
            run
            for run in self._nested({"taylorglo.stage": stage})
            if run.data.tags.get("taylorglo.name") == name
        ]
        now = _milliseconds(time.time())
        batch = _metrics(metrics, now)
        wanted = (
            {param.key: param.value for param in _params(params)},
            {metric.key: metric.value for metric in batch},
        )
        for run in earlier:
            found = {key: run.data.metrics.get(key) for key in wanted[1]}
            if run.info.status == "FINISHED" and (run.data.params, found) == wanted:
                self._connection.upload(run.info.run_id, files)
                self._delete(other for other in earlier if other is not run)
                return str(run.info.run_id)
        run_id = self._create_nested(name, {"taylorglo.stage": stage, "taylorglo.name": name}, now)
        for curve, points in curves.items():
            for step, value in points:
                batch += _metrics({curve: value}, now, step)
        self._connection.call(self._client.log_batch, run_id, metrics=batch, params=_params(params))
        self._connection.upload(run_id, files)
        self._connection.call(self._client.set_terminated, run_id, "FINISHED")
        # Params cannot be changed and points would be doubled, so a run is replaced: last, so that
        # none is missing.
        self._delete(earlier)
        return run_id

    def _delete(self, runs: "Iterable[Run]") -> None:
        for run in runs:
            self._connection.call(self._client.delete_run, run.info.run_id)

    def log_files(self, files: Mapping[str, Path]) -> None:
        """Store local files as artifacts of the parent.

        Args:
            files: local file by artifact path, such as ``report.html``.

        Raises:
            InputError: a file that does not exist, or an artifact path that is not inside the run.
            ServiceError: the artifact store fails.
        """
        self._connection.upload(self.run_id, files)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Set the status of the parent, unless a scheduler injected the run: then it is the scheduler's to set."""
        if self._owns_run:
            self._connection.call(self._client.set_terminated, self.run_id, status)

    def standing_champion(self, name: str) -> StandingChampion | None:
        """Return the version of a registered loss that has the alias ``champion``, or None.

        Raises:
            InputError: its file is not a saved loss.
            ServiceError: the server, the database or the artifact store fails.
        """
        try:
            version = self._connection.call(self._client.get_model_version_by_alias, name, CHAMPION)
        except InputError:
            # There is no such model, or no such alias.
            return None
        where = f"models:/{name}/{version.version}"
        with tempfile.TemporaryDirectory(prefix="taylorglo-") as folder:
            text = self._connection.download_loss(where, Path(folder)).read_bytes()
        try:
            content = json.loads(text)
            theta, _ = checked_theta(content["theta"])
            rate = (content.get("provenance") or {}).get("learning_rate")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: is not a saved loss: {error}") from None
        return StandingChampion(
            version=str(version.version),
            study=str(version.tags.get("taylorglo.study", "unknown")),
            theta=theta,
            learning_rate=rate,
        )

    def register_loss(self, name: str, run_id: str, study: str, theta: Sequence[float]) -> str:
        """Register the loss among the artifacts of a nested run as a version of the model ``name``.

        A version of the same study with the same theta, whose run is still there, is that version already.

        Returns:
            The version.
        """
        call, client = self._connection.call, self._client
        try:
            call(client.create_registered_model, name)
        except (
            InputError,
            ServiceError,
        ):  # it exists, or there is more to it, which the next call tells
            call(client.get_registered_model, name)
        tags = {"taylorglo.study": study, "taylorglo.theta": json.dumps(list(theta))[:_MAX_TAG]}
        for version in call(client.search_model_versions, f"name = '{name}'"):
            if tags.items() <= version.tags.items() and self._is_active(version.run_id):
                return str(version.version)
        source = call(client.get_run, run_id).info.artifact_uri
        return str(call(client.create_model_version, name, source, run_id, tags=tags).version)

    def move_champion(self, name: str, version: str, former: str | None) -> bool:
        """Give the alias ``champion`` to a version, unless another one than ``former`` bears it by now."""
        try:
            bearer = self._connection.call(
                self._client.get_model_version_by_alias, name, CHAMPION
            ).version
        except InputError:
            bearer = None
        if bearer is not None and str(bearer) == version:  # of a report that is written again
            return True
        if (bearer and str(bearer)) != former:
            return False
        self._connection.call(self._client.set_registered_model_alias, name, CHAMPION, version)
        return True

    def _is_active(self, run_id: str | None) -> bool:
        try:
            self._connection.run(run_id or "", "run")
        except InputError:
            return False
        return True

    def _create_nested(self, name: str, tags: Mapping[str, str], started: int) -> str:
        run = self._connection.call(
            self._client.create_run,
            self.experiment_id,
            start_time=started,
            tags={"mlflow.parentRunId": self.run_id, **tags},
            run_name=name,
        )
        return str(run.info.run_id)

    def _nested(self, tags: Mapping[str, str]) -> "list[Run]":
        """The nested runs of this parent that have these tags."""
        wanted = {"mlflow.parentRunId": self.run_id, **tags}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
        found = self._connection.call(
            self._client.search_runs, [self.experiment_id], query, max_results=_MOST_RUNS
        )
        return list(found)
