"""Records to log to MLflow, and the runs that were logged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from taylorglo.results import Candidate, DatasetDescription, Evaluation, Guessing, MemoryNeed
from taylorglo.services.tracking import Tracker

PASSWORD = "hunter2"


def candidate(
    trial: int, *, generation: int = 1, fitness: float = 0.75, **changes: Any
) -> Candidate:
    """Return a trained candidate, with changes of its result."""
    values = {
        "status": "ok",
        "curve": [(100, 0.5, 1.5), (200, 0.75, 0.9)],
        "started": 1_700_000_000.25,
        "ended": 1_700_000_002.75,
        "seconds": 2.5,
        "fitness": fitness,
        "accuracies": [0.7, 0.8],
        "robust_accuracies": [],
    }
    return Candidate(
        trial=trial,
        generation=generation,
        theta=[0.5, -1.25, float(trial)],
        result=Evaluation.model_validate({**values, **changes}),
        fitness=fitness,
        finished=True,
    )


def log_candidates(tracker: Tracker, candidates: Sequence[Candidate]) -> None:
    """Log candidates of one generation."""
    coefficients = {candidate.trial: {"c_0": 4.0, "c_h": -1.5} for candidate in candidates}
    tracker.log_candidates(candidates[0].generation, candidates, coefficients)


def log_baseline(tracker: Tracker, file: Path, accuracy: float = 0.97) -> str:
    """Log a baseline with a file; return the id of its run."""
    return tracker.log_final(
        "baseline",
        "cross-entropy",
        params={"learning_rate": 0.1},
        metrics={"test_accuracy": accuracy, "p_value": float("nan")},
        curves={"validation_accuracy": [(100, 0.5), (200, accuracy), (300, float("nan"))]},
        files={"network.safetensors": file},
    )


def description(source: str, splits: dict[str, int]) -> DatasetDescription:
    """Describe a data set from a source."""
    return DatasetDescription(
        name="digits",
        num_classes=10,
        splits=splits,
        memory=MemoryNeed(weights=1, activations_per_image=1),
        fingerprint="0123456789abcdef" * 4,
        provenance={"source": source},
        guessing=Guessing(accuracy=0.1, images=10),
    )


def nested_runs(uri: str, tracker: Tracker) -> dict[str, Any]:
    """Return the nested runs of the tracker's parent by name; check that no name is doubled."""
    query = f"tags.`mlflow.parentRunId` = '{tracker.run_id}'"
    runs = MlflowClient(tracking_uri=uri).search_runs([tracker.experiment_id], query)
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """Return the values of a metric as (step, value), by step."""
    metrics = MlflowClient(tracking_uri=uri).get_metric_history(run_id, key)
    return sorted((metric.step, metric.value) for metric in metrics)
