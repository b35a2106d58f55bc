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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taylorglo.errors import InputError, ServiceError, TaylorgloError
from taylorglo.mlflow_connection import Connection, redacted
from taylorglo.polynomial import checked_theta

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

    finite = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
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
            run = connection.run(injected or resume_run_id or "", "MLFLOW_RUN_ID" if injected else "run to resume")
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
        if changed := sorted(param.key for param in wanted if known.get(param.key, param.value) != param.value):
            _logger.warning(
                "MLflow run %s keeps the first value of changed settings: %s", self.run_id, ", ".join(changed)
            )
        new = [param for param in wanted if param.key not in known]
        self._connection.call(self._client.log_batch, self.run_id, params=new)

    def log_dataset(
        self, *, name: str, fingerprint: str, source: str, splits: Mapping[str, int], num_classes: int
    ) -> None:
        """Log each split as an input of the parent run.

        Args:
            name: of the data set; a split is logged as ``name-split``, for MLflow keeps one input per name and digest.
            fingerprint: checksum of the whole data set; its first 36 characters are the digest.
            source: folder, file or URI of the data; credentials are removed.
            splits: number of images by split (train, validation, test).
            num_classes: number of classes.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = redacted(source)
        scheme, separator, _ = source.partition("://")
        inputs = [
            DatasetInput(
                Dataset(
                    name=f"{name}-{split}",
                    digest=fingerprint[:_MAX_DIGEST],
                    source_type=scheme if separator else "local",
                    source=json.dumps({"uri": source}),
                    profile=json.dumps({"num_rows": rows, "num_classes": num_classes, "fingerprint": fingerprint}),
                ),
                [InputTag("mlflow.data.context", split)],
            )
            for split, rows in splits.items()
        ]
        self._connection.call(self._client.log_inputs, self.run_id, datasets=inputs)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the finite ones of ``metrics`` on the parent."""
        batch = _metrics(metrics, _milliseconds(time.time()), step)
        self._connection.call(self._client.log_batch, self.run_id, metrics=batch)

    def log_candidates(self, generation: int, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Log a nested run for each candidate that has none yet under this parent.

        Args:
            generation: number of the generation, from 1.
            candidates: each with ``trial`` (int, unique in the study), ``theta`` (list of float), ``coefficients``
                (dict of float), ``fitness`` (validation accuracy in [0, 1]), ``status`` (ok, diverged or failed),
                ``reason`` (str), ``accuracies`` (one per attempt), ``curve`` (list of [step, validation accuracy,
                validation loss]), ``seconds``, ``started`` and ``ended`` (seconds since the epoch).
                Numbers that are not finite, or None, are left out.
        """
        logged = {
            int(run.data.tags["taylorglo.trial"]): run
            for run in self._nested({"taylorglo.stage": "candidate", "taylorglo.generation": str(generation)})
        }
        for candidate in candidates:
            run = logged.get(int(candidate["trial"]))
            if run is None:
                self._log_candidate(generation, candidate, None)
            elif run.info.status == "RUNNING":  # cut off half-way: nobody else logs this candidate, so complete it
                self._log_candidate(generation, candidate, run.info.run_id)

    def _log_candidate(self, generation: int, candidate: Mapping[str, Any], run_id: str | None) -> None:
        started, ended = _milliseconds(candidate["started"]), _milliseconds(candidate["ended"])
        if run_id is None:
            run_id = self._create_nested(
                f"g{generation:02d}-c{candidate['trial']:03d}",
                {
                    "taylorglo.stage": "candidate",
                    "taylorglo.generation": str(generation),
                    "taylorglo.trial": str(candidate["trial"]),
                },
                started,
            )
        theta = candidate["theta"]
        params = {
            "theta": ", ".join(repr(value) for value in theta),
            **{f"theta_{index}": value for index, value in enumerate(theta)},
            **{f"coefficient_{name}": value for name, value in candidate["coefficients"].items()},
        }
        # The time stamps are those of the candidate, so that what is logged twice is stored once.
        metrics = _metrics({"fitness": candidate["fitness"], "seconds": candidate["seconds"]}, ended)
        for attempt, accuracy in enumerate(candidate["accuracies"]):
            metrics += _metrics({"attempt_accuracy": accuracy}, ended, attempt)
        for step, accuracy, loss in candidate["curve"]:
            metrics += _metrics({"validation_accuracy": accuracy, "validation_loss": loss}, ended, int(step))
        tags = _tags({"taylorglo.status": candidate["status"], "taylorglo.reason": candidate["reason"]})
        self._connection.call(self._client.log_batch, run_id, metrics=metrics, params=_params(params), tags=tags)
        status = "FAILED" if candidate["status"] == "failed" else "FINISHED"
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
            run for run in self._nested({"taylorglo.stage": stage}) if run.data.tags.get("taylorglo.name") == name
        ]
        now = _milliseconds(time.time())
        batch = _metrics(metrics, now)
        wanted = {param.key: param.value for param in _params(params)}, {metric.key: metric.value for metric in batch}
        for run in earlier:
            found = {key: run.data.metrics.get(key) for key in wanted[1]}
            if run.info.status == "FINISHED" and (run.data.params, found) == wanted:
                self._connection.upload(run.info.run_id, files)
                return str(run.info.run_id)
        run_id = self._create_nested(name, {"taylorglo.stage": stage, "taylorglo.name": name}, now)
        for curve, points in curves.items():
            for step, value in points:
                batch += _metrics({curve: value}, now, step)
        self._connection.call(self._client.log_batch, run_id, metrics=batch, params=_params(params))
        self._connection.upload(run_id, files)
        self._connection.call(self._client.set_terminated, run_id, "FINISHED")
        # Params cannot be changed and points would be doubled, so a run is replaced: last, so that none is missing.
        for run in earlier:
            self._connection.call(self._client.delete_run, run.info.run_id)
        return run_id

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

    def standing_champion(self, name: str) -> dict[str, Any] | None:
        """The version of a registered loss that bears the alias ``champion``, or None.

        Returns:
            ``version`` and ``study`` (str), ``theta`` (list of float) and ``learning_rate`` (float, or None where its
            file does not tell).

        Raises:
            InputError: its file is not a saved loss.
            ServiceError: the server, the database or the artifact store fails.
        """
        try:
            version = self._connection.call(self._client.get_model_version_by_alias, name, CHAMPION)
        except InputError:  # no such model, or no such alias
            return None
        where = f"models:/{name}/{version.version}"
        with tempfile.TemporaryDirectory(prefix="taylorglo-") as folder:
            try:
                content = json.loads(self._connection.download_loss(where, Path(folder)).read_text())
                theta, _ = checked_theta(content["theta"])
                rate = (content.get("provenance") or {}).get("learning_rate")
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                if isinstance(error, TaylorgloError):
                    raise
                raise InputError(f"{where}: is not a saved loss: {error}") from None
        study = str(version.tags.get("taylorglo.study", "unknown"))
        return {"version": str(version.version), "study": study, "theta": theta, "learning_rate": rate}

    def register_loss(self, name: str, run_id: str, study: str, theta: Sequence[float]) -> str:
        """Register the loss among the artifacts of a nested run as a version of the model ``name``.

        A version of the same study with the same theta, whose run is still there, is that version already.

        Returns:
            The version.
        """
        call, client = self._connection.call, self._client
        try:
            call(client.create_registered_model, name)
        except (InputError, ServiceError):  # it exists, or there is more to it, which the next call tells
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
            bearer = self._connection.call(self._client.get_model_version_by_alias, name, CHAMPION).version
        except InputError:
            bearer = None
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
        found = self._connection.call(self._client.search_runs, [self.experiment_id], query, max_results=_MOST_RUNS)
        return list(found)
