"""Tracking of a sweep in MLflow.

Each sweep has an experiment. Each pipeline run has a parent run in it, and under that a nested run
for each candidate, for the champion and for each baseline. All writing is idempotent, so that a
task that is tried again doubles nothing. MLflow takes over a second to import, and is imported when
a tracker is opened.
"""

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taylorglo.errors import InputError, one_line
from taylorglo.loss.polynomial import MOST_BYTES, checked_theta
from taylorglo.reading import parse_json, read_bytes
from taylorglo.results import Candidate, DatasetDescription, Evaluation, StandingChampion
from taylorglo.scores import is_known
from taylorglo.services import layout
from taylorglo.services.mlflow import Connection, redacted
from taylorglo.services.models import Models
from taylorglo.services.views import TRAINING_MENU, describe, save_candidates_view, view_page
from taylorglo.settings import HIGHEST_RATE

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, Run, RunTag

# The tag of a parent run with the address of its run in Kubeflow.
KFP_PAGE = "taylorglo.kfp_page"

# The alias, in MLflow's model registry, of the version to use.
CHAMPION = "champion"

# The most characters that MLflow accepts.
_MAX_PARAM = 6000
_MAX_TAG = 5000
_MAX_DIGEST = 36

# The most runs that MLflow returns for one search. A generation has at most 10 000 candidates.
_MAX_RUNS = 50_000

_logger = logging.getLogger(__name__)


class Tracker:
    """One pipeline run in MLflow: its parent run and the runs nested in it.

    Attributes:
        run_id: id of the parent run.
        experiment_id: id of the experiment that has the parent run and its nested runs.
    """

    def __init__(self, connection: Connection, experiment_id: str, run_id: str) -> None:
        """Keep the ids of an existing run. Use :meth:`open` or :meth:`attach` to get a tracker."""
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
        metric: str = "accuracy",
    ) -> "Tracker":
        """Find or create the parent run, at the start of a pipeline run.

        The parent is the run that the environment names in ``MLFLOW_RUN_ID``, in any experiment;
        else ``resume_run_id``, which is set to running again; else a new run in ``experiment``.

        Args:
            tracking_uri: ``http(s)://host[:port]``, or ``sqlite:///FILE`` in an existing folder.
            experiment: name of the experiment, which is created if there is none.
            run_name: name of a new parent run.
            artifact_location: folder or URI for the artifacts of a new experiment; None: the
                server's choice.
            resume_run_id: parent run of a pipeline run that was interrupted.
            metric: name of the score among metrics.

        Raises:
            InputError: the URI is malformed or is no database of MLflow, or the run or the
                experiment was deleted.
            ServiceError: the server or the database cannot be reached.
        """
        connection = Connection(tracking_uri)
        if injected := os.environ.get("MLFLOW_RUN_ID"):
            run = connection.run(injected, "MLFLOW_RUN_ID")
        elif resume_run_id:
            run = connection.run(resume_run_id, "run to resume")
        else:
            found = connection.experiment(experiment, artifact_location)
            describe(connection, found, metric)
            run = connection.call(
                connection.client.create_run, found.experiment_id, run_name=run_name
            )
        tracker = cls(connection, run.info.experiment_id, run.info.run_id)
        save_candidates_view(connection, tracker.experiment_id, tracker.run_id)
        if run.info.status != "RUNNING" and tracker._owns_run:
            connection.call(connection.client.update_run, tracker.run_id, status="RUNNING")
        return tracker

    @classmethod
    def attach(cls, tracking_uri: str, run_id: str) -> "Tracker":
        """Find the parent run ``run_id`` from a later task.

        Raises:
            InputError: the URI is malformed, or there is no such run.
            ServiceError: the server or the database cannot be reached.
        """
        connection = Connection(tracking_uri)
        run = connection.run(run_id, "parent run")
        return cls(connection, run.info.experiment_id, run.info.run_id)

    @property
    def page(self) -> str:
        """Address of the run's page in MLflow, or the URI of MLflow if it is no server."""
        name = self._connection.name.rstrip("/")
        if not name.startswith("http"):
            return name
        return f"{name}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{TRAINING_MENU}"

    def links(self, champion: str) -> dict[str, str]:
        """Return addresses by what they show, those of MLflow's pages as they are inside MLflow.

        Args:
            champion: id of the champion's run.
        """
        home = f"#/experiments/{self.experiment_id}"
        pages = {
            "report": f"{home}/runs/{self.run_id}/artifacts/report.html?{TRAINING_MENU}",
            "champion": f"{home}/runs/{champion}?{TRAINING_MENU}",
            "candidates by fitness": view_page(self.experiment_id, self.run_id),
            "models": f"{home}/models?{TRAINING_MENU}",
        }
        tags = self._connection.call(self._client.get_run, self.run_id).data.tags
        # MLflow shows a tag as text, which nobody can click on.
        if page := tags.get(KFP_PAGE):
            pages["run in Kubeflow"] = page
        return pages

    @property
    def models(self) -> Models:
        """The logged models of the run, and their versions in the registry."""
        return Models(self._connection, self.experiment_id, self.run_id)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the parent, cut to 5000 characters and without the credentials of URIs."""
        self._connection.call(self._client.log_batch, self.run_id, tags=_tags(tags))

    @property
    def _owns_run(self) -> bool:
        """Whether this class sets the parent's status, because no scheduler injected the run."""
        return os.environ.get("MLFLOW_RUN_ID") != self.run_id

    def log_settings(self, params: Mapping[str, str | int | float | bool]) -> None:
        """Log params on the parent, cut to 6000 characters and without the credentials of URIs.

        MLflow never changes a param. If a resumed run has a new value for a setting, MLflow keeps
        the first value, and a warning is logged.
        """
        logged = self._connection.call(self._client.get_run, self.run_id).data.params
        batch = _params(params)
        changed = [p.key for p in batch if logged.get(p.key, p.value) != p.value]
        if changed:
            _logger.warning(
                "MLflow run %s keeps the first value of changed settings: %s",
                self.run_id,
                ", ".join(sorted(changed)),
            )
        news = [param for param in batch if param.key not in logged]
        self._connection.call(self._client.log_batch, self.run_id, params=news)

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

    def log_metrics(self, metrics: Mapping[str, float], *, once: Collection[str] = ()) -> None:
        """Log metrics on the parent that it does not have yet with this value.

        Numbers that are not finite are left out.

        Args:
            metrics: value by name.
            once: names of the metrics that keep their first value, such as times.
        """
        run = self._connection.call(self._client.get_run, self.run_id)
        logged = run.data.metrics
        news = {
            name: value
            for name, value in metrics.items()
            if name not in logged or (logged[name] != value and name not in once)
        }
        batch = _metrics(news, _milliseconds(time.time()))
        self._connection.call(self._client.log_batch, self.run_id, metrics=batch)

    def log_curves(self, curves: Mapping[str, Iterable[tuple[int, float]]], ended: float) -> None:
        """Log metrics by step, as (step, value), on the parent.

        Points that are not finite are left out. A point that is logged again with the same time is
        stored once.

        Args:
            curves: points by name of the metric.
            ended: when the points were measured, in seconds since the epoch.
        """
        time_stamp = _milliseconds(ended)
        batch = [
            metric
            for name, points in curves.items()
            for step, value in points
            for metric in _metrics({name: value}, time_stamp, step)
        ]
        self._connection.call(self._client.log_batch, self.run_id, metrics=batch)

    def log_candidates(
        self,
        generation: int,
        candidates: Sequence[Candidate],
        coefficients: Mapping[int, Mapping[str, float]],
        metric: str = "accuracy",
    ) -> None:
        """Log a nested run for each trained candidate that has none yet under this parent.

        Args:
            generation: number of the generation, from 1.
            candidates: candidates of the generation; those without a result are left out.
            coefficients: numbers that describe each candidate, by its trial.
            metric: name of the score among metrics.
        """
        tags = {"taylorglo.stage": "candidate", "taylorglo.generation": str(generation)}
        runs = {int(run.data.tags["taylorglo.trial"]): run for run in self._nested(tags)}

        def log(candidate: Candidate) -> None:
            result = candidate.result
            run = runs.get(candidate.trial)
            # A run that is RUNNING was cut off half-way. No other process logs this candidate, so
            # this one completes the run.
            if result is None or (run is not None and run.info.status != "RUNNING"):
                return
            if run is not None:
                run_id = run.info.run_id
            else:
                run_id = self._create_nested(
                    # The names sort in the order of the search.
                    f"g{generation:03d}-c{candidate.trial:05d}",
                    {**tags, "taylorglo.trial": str(candidate.trial)},
                    _milliseconds(result.started),
                )
            self._log_candidate(run_id, candidate, result, coefficients[candidate.trial], metric)

        self._connection.each(log, candidates)

    def _log_candidate(
        self,
        run_id: str,
        candidate: Candidate,
        result: Evaluation,
        coefficients: Mapping[str, float],
        metric: str,
    ) -> None:
        """Fill the nested run of a candidate, and set its status."""
        # The time stamps are the candidate's, so that MLflow stores a metric once that is logged
        # twice.
        ended = _milliseconds(result.ended)
        params = {"theta": ", ".join(repr(value) for value in candidate.theta)}
        metrics = _metrics(
            {
                "fitness": candidate.fitness,
                "seconds": result.seconds,
                **{f"coefficient_{name}": value for name, value in coefficients.items()},
            },
            ended,
        )
        for attempt, accuracy in enumerate(result.accuracies):
            metrics += _metrics({f"attempt_{metric}": accuracy}, ended, attempt)
        for attempt, accuracy in enumerate(result.robust_accuracies):
            metrics += _metrics({f"attempt_robust_{metric}": accuracy}, ended, attempt)
        for step, accuracy, loss in result.curve:
            values = {f"validation_{metric}": accuracy, "validation_loss": loss}
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
        """Log a nested run for the champion or a baseline, and return its id.

        It replaces an earlier run of this stage and name. If the earlier run has the same params
        and metrics, it is kept, because a version in the model registry may point to it.

        Args:
            stage: ``champion`` or ``baseline``.
            name: name of the loss and of the run.
            params: as for :meth:`log_settings`.
            metrics: as for :meth:`log_metrics`.
            curves: metrics by step, as (step, value).
            files: local file by artifact path.

        Raises:
            InputError: a file does not exist, or an artifact path is not inside the run.
            ServiceError: the server, the database or the artifact store fails.
        """
        group = {"taylorglo.stage": stage}
        runs = [r for r in self._nested(group) if r.data.tags.get("taylorglo.name") == name]
        now = _milliseconds(time.time())
        batch = _metrics(metrics, now)
        for run in runs:
            if _is_finished_with(run, _params(params), batch):
                self._connection.upload(run.info.run_id, files)
                self._delete(other for other in runs if other is not run)
                return str(run.info.run_id)
        for curve, points in curves.items():
            for step, value in points:
                batch += _metrics({curve: value}, now, step)
        run_id = self._create_nested(name, {**group, "taylorglo.name": name}, now)
        self._connection.call(self._client.log_batch, run_id, metrics=batch, params=_params(params))
        self._connection.upload(run_id, files)
        self._connection.call(self._client.set_terminated, run_id, "FINISHED")
        # A run is replaced, because its params cannot be changed and its points would be doubled.
        # The earlier one is deleted at the end, so that there is always one.
        self._delete(runs)
        return run_id

    def _delete(self, runs: "Iterable[Run]") -> None:
        for run in runs:
            self._connection.call(self._client.delete_run, run.info.run_id)

    def log_files(self, files: Mapping[str, Path]) -> None:
        """Store local files as artifacts of the parent.

        Args:
            files: local file by artifact path, such as ``report.html``.

        Raises:
            InputError: a file does not exist, or an artifact path is not inside the run.
            ServiceError: the artifact store fails.
        """
        self._connection.upload(self.run_id, files)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Set the status of the parent, unless a scheduler injected the run and sets it itself."""
        if self._owns_run:
            self._connection.call(self._client.set_terminated, self.run_id, status)

    def standing_champion(self, name: str) -> StandingChampion | None:
        """Return the version of a registered loss that has the alias ``champion``, or None.

        Raises:
            ServiceError: the server, the database or the artifact store fails.
        """
        try:
            version = self._connection.call(self._client.get_model_version_by_alias, name, CHAMPION)
        except InputError:
            # There is no such model, or no such alias.
            return None
        number = str(version.version)
        study = str(version.tags.get("taylorglo.study", "unknown"))
        try:
            theta, rate, optimizer = self._loss(f"models:/{name}/{number}")
        except InputError as error:
            # Its file was deleted or damaged. Nobody can use this champion any more.
            return StandingChampion(
                version=number, study=study, theta=[], learning_rate=None, lost=str(error)
            )
        return StandingChampion(
            version=number, study=study, theta=theta, learning_rate=rate, optimizer=optimizer
        )

    def _loss(self, uri: str) -> tuple[list[float], float | None, str]:
        """Return theta, learning rate and optimizer of a model version.

        Raises:
            InputError: its file is gone, or is not a saved loss.
            ServiceError: the server, the database or the artifact store fails.
        """
        with tempfile.TemporaryDirectory(prefix="taylorglo-") as folder:
            path = self._connection.download(uri, layout.LOSS, Path(folder))
            try:
                content = parse_json(read_bytes(path, MOST_BYTES))
                theta, _ = checked_theta(content["theta"])
                provenance = content.get("provenance") or {}
                rate = provenance.get("learning_rate")
                # A file without an optimizer is of a version that had SGD alone.
                optimizer = str(provenance.get("optimizer", "sgd"))
                return theta, None if rate is None else _rate(rate), optimizer
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{uri}: is not a saved loss: {one_line(error)}") from None

    def register_loss(
        self,
        name: str,
        model_id: str,
        study: str,
        theta: Sequence[float],
        *,
        description: str = "",
    ) -> str:
        """Register a logged loss as a version of a model, which is linked from the parent.

        If there is a version of the same study with the same theta, and neither its run nor its
        file was deleted, no other one is registered.

        Args:
            name: name of the registered model.
            model_id: the logged model with the files of the loss.
            study: name of the study that found the loss.
            theta: the coefficients of the loss.
            description: of a new version, in Markdown.

        Returns:
            The version.
        """
        call, client = self._connection.call, self._client
        self.models.create(name)
        tags = {"taylorglo.study": study, "taylorglo.theta": json.dumps(list(theta))[:_MAX_TAG]}
        for version in call(client.search_model_versions, f"name = '{name}'"):
            known = tags.items() <= version.tags.items() and self._is_active(version.run_id)
            if known and self._has_loss(f"models:/{name}/{version.version}"):
                return str(version.version)
        return self.models.add_version(name, model_id, tags=tags, description=description)

    def set_champion(self, name: str, version: str | None) -> None:
        """Give the alias ``champion`` to a version, whichever has it now; None: to no version."""
        if version is not None:
            self._connection.call(self._client.set_registered_model_alias, name, CHAMPION, version)
            return
        # There may be no such model.
        with suppress(InputError):
            self._connection.call(self._client.delete_registered_model_alias, name, CHAMPION)

    def move_champion(self, name: str, version: str, *, standing: str | None) -> bool:
        """Give the alias ``champion`` to a version.

        Args:
            name: name of the model.
            version: the version that gets the alias.
            standing: the version that had the alias before; None if none had it.

        Returns:
            Whether the version has the alias. It does not get the alias if somebody else gave it to
            another version than ``standing``.
        """
        call, client = self._connection.call, self._client
        current: str | None = None
        # Without the alias, MLflow says that there is no such version.
        with suppress(InputError):
            current = str(call(client.get_model_version_by_alias, name, CHAMPION).version)
        # The version has the alias already if the task of the report is tried again.
        if current == version:
            return True
        if current != standing:
            return False
        call(client.set_registered_model_alias, name, CHAMPION, version)
        return True

    def _is_active(self, run_id: str | None) -> bool:
        """Return whether there is such a run, and it was not deleted."""
        try:
            self._connection.run(run_id or "", "run")
        except InputError:
            return False
        return True

    def _has_loss(self, uri: str) -> bool:
        """Return whether a model version still has its loss."""
        try:
            self._loss(uri)
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
        """Return the nested runs of this parent that have these tags."""
        conditions = {"mlflow.parentRunId": self.run_id, **tags}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in conditions.items())
        runs = self._connection.call(
            self._client.search_runs, [self.experiment_id], query, max_results=_MAX_RUNS
        )
        return list(runs)


def _rate(value: Any) -> float:
    """Return a learning rate that a file names.

    Raises:
        ValueError: it is none.
    """
    rate = float(value)
    if not 0 < rate <= HIGHEST_RATE:
        raise ValueError(f"learning_rate should be above 0 and at most {HIGHEST_RATE:g}, is {rate}")
    return rate


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _params(values: Mapping[str, object]) -> "list[Param]":
    from mlflow.entities import Param

    return [Param(key, redacted(str(value))[:_MAX_PARAM]) for key, value in values.items()]


def _tags(values: Mapping[str, str]) -> "list[RunTag]":
    from mlflow.entities import RunTag

    return [RunTag(key, redacted(value)[:_MAX_TAG]) for key, value in values.items()]


def _metrics(values: Mapping[str, float | None], timestamp: int, step: int = 0) -> "list[Metric]":
    """Return the finite values as metrics: MLflow would store others as numbers nobody measured.

    Nor did anybody measure the number that stands for a training without a score.
    """
    from mlflow.entities import Metric

    return [
        Metric(key, float(value), timestamp, step)
        for key, value in values.items()
        if value is not None and math.isfinite(value) and is_known(value)
    ]


def _is_finished_with(run: "Run", params: "list[Param]", metrics: "list[Metric]") -> bool:
    """Return whether a run is finished, and has these params and metrics."""
    return (
        run.info.status == "FINISHED"
        and run.data.params == {param.key: param.value for param in params}
        and all(run.data.metrics.get(metric.key) == metric.value for metric in metrics)
    )
