"""Small sweeps on real services for the tests of the tasks, and results for their studies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from taylorglo.addresses import sqlite_url
from taylorglo.results import (
    Contender,
    DatasetDescription,
    Evaluation,
    FullTraining,
    Robustness,
    Training,
    read_json,
)
from taylorglo.settings import SweepSettings
from taylorglo.tasks import prepare
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.open import PreparedData, open_sweep
from taylorglo.variables import LOCAL_RUN, STORE_URI, STUDY_URL, TRACKING_URI, required

SETTINGS: dict[str, dict[str, Any]] = {
    # One worker trains in the process of the test, which can count the steps there.
    "training": {"steps": 3, "workers": 1},
    "evaluation": {"steps": 2, "attempts": 1, "give_up_step": 0},
    "search": {"popsize": 4},
    "baselines": {"attempts": 1, "learning_rates": [0.1]},
    "champion": {"finalists": 3, "seeds": 2},
    "attack": {"seeds": 1},
}
NO_DATA = "there is no data to train on"  # the path of data that no task may read
NO_ATTACK = Robustness(rows=[], started=0.0, ended=0.0)


def small_settings(name: str = "digits", **sections: dict[str, Any]) -> SweepSettings:
    """Return settings of a sweep that takes a moment, with the given settings of some sections."""
    changed = {key: {**SETTINGS.get(key, {}), **values} for key, values in sections.items()}
    return SweepSettings.model_validate({**SETTINGS, **changed, "name": name})


@dataclass(frozen=True)
class Work:
    """A folder with the artifacts of the first tasks, and with study, store and MLflow."""

    folder: Path

    @property
    def search_data(self) -> str:
        """The path of the data without the test split."""
        return str(self.folder / "search_data")

    @property
    def full_data(self) -> str:
        """The path of the data with the test split."""
        return str(self.folder / "full_data")

    def name_services(self, patch: pytest.MonkeyPatch) -> None:
        """Name study, store and MLflow of this folder in the environment."""
        patch.setenv(STUDY_URL, sqlite_url(self.folder / "study.db"))
        patch.setenv(STORE_URI, str(self.folder / "store"))
        # The second one is for load_loss, which is not a task.
        for name in (TRACKING_URI, "MLFLOW_TRACKING_URI"):
            patch.setenv(name, sqlite_url(self.folder / "mlruns.db"))
        for name in (LOCAL_RUN, "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)

    def prepare(self) -> None:
        """Run the task that prepares the data."""
        settings = small_settings()
        prepare.run(
            data=settings.data.model_dump(),
            model=settings.model.model_dump(),
            seed=settings.seed,
            description_path=str(self.folder / "description"),
            search_data_path=self.search_data,
            full_data_path=self.full_data,
        )

    def description(self) -> DatasetDescription:
        """Return the description of the prepared data."""
        return read_json(self.folder / "description", DatasetDescription)

    def open(self, generations: int = 2, name: str = "digits", **sections: dict[str, Any]) -> Sweep:
        """Open the sweep as the next run of the pipeline does; settings as in small_settings."""
        settings = small_settings(name, **sections)
        data = PreparedData(self.search_data, self.full_data)
        sweep = open_sweep(settings, self.description(), data, generations)
        sweep.write(self.folder / "sweep")
        return self.sweep()

    def sweep(self) -> Sweep:
        """Return the opened sweep as another process reads it."""
        return Sweep.read(self.folder / "sweep")


def changed(sweep: Sweep, **fields: Any) -> Sweep:
    """Return the sweep of another process with some fields changed."""
    return Sweep.model_validate({**sweep.model_dump(), **fields})


def evaluation(
    sweep: Sweep,
    fitness: float,
    *,
    started: float = 10.0,
    ended: float = 11.0,
    run: str | None = None,
) -> Evaluation:
    """Return the result of a candidate, trained by the sweep's own run unless ``run`` is given."""
    return Evaluation(
        status="ok",
        fitness=fitness,
        accuracies=[fitness],
        robust_accuracies=[],
        curve=[(2, fitness, 1.0)],
        started=started,
        ended=ended,
        seconds=ended - started,
        engine="fused",
        precision="float32",
        device="cpu",
        run=run or sweep.run_id,
    )


def begin_generation(
    sweep: Sweep, number: int, evaluations: Sequence[Evaluation] = ()
) -> list[int]:
    """Draw a generation, tell the study these results of it, and return its accepted trials."""
    sweep.search.propose(number)
    screened = sweep.search.screen(number)
    accepted = [candidate.trial for candidate in screened if not candidate.rejected]
    for trial, result in zip(accepted, evaluations, strict=False):
        sweep.search.tell(trial, result)
    return accepted


def full_training(
    name: str,
    accuracy: float,
    *,
    learning_rate: float = 0.1,
    started: float = 0.0,
    ended: float = 0.0,
) -> FullTraining:
    """Return a training in full of the loss of this name, with one accuracy on both splits."""
    losses = {"champion": "taylor", "finalist": "taylor", "squared error": "squared-error"}
    loss = losses.get(name, "cross-entropy")
    return FullTraining(
        contender=Contender(
            name=name,
            loss=loss,
            learning_rate=learning_rate,
            theta=[1.0] * 8 if loss == "taylor" else [],
        ),
        seed=1,
        key="key",
        training=Training(
            status="ok",
            accuracy=accuracy,
            test_accuracy=accuracy,
            curve=[(3, accuracy, 1.0)],
            started=started,
            ended=ended,
            seconds=ended - started,
        ),
    )


def mlflow_client() -> MlflowClient:
    """Return a client of the MLflow that the environment names."""
    return MlflowClient(tracking_uri=required(TRACKING_URI))


def logged_trials(sweep: Sweep) -> list[int]:
    """Return the trials that MLflow has under the sweep's run."""
    children = mlflow_client().search_runs(
        [sweep.tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep.run_id}'"
    )
    return sorted(int(run.data.tags["taylorglo.trial"]) for run in children)
