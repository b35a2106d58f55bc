"""How MLflow shows an experiment: its menu, its description, and its views of the table of runs.

MLflow keeps a view, with its filter, order and columns, as a tag of the experiment. Its menu
"Views" lists those that have a name, and an address can name one.
"""

import json
import time
from typing import TYPE_CHECKING

from taylorglo.services.mlflow import NOTE, Connection

if TYPE_CHECKING:
    from mlflow.entities import Experiment

# The tag that decides which menu MLflow shows for an experiment, and the menu of trained models.
_KIND = "mlflow.experimentKind"
_TRAINING = "custom_model_development"

# The part of an address that has MLflow show its menu of trained models. Without it, MLflow 3.17
# shows the menu that was used last in the browser, and at first the one of language models.
TRAINING_MENU = "workflowType=machine_learning"

_VIEW = "mlflow.sharedViewState."  # and the name that addresses have for the view
_OUTCOMES = "taylorglo-outcomes"
_CANDIDATES = "taylorglo-candidates"

_NOTE = (
    "[Outcomes of the runs]({outcomes}) · [candidates by fitness]({candidates})\n\n"
    "A search for a loss function by [TaylorGLO](https://arxiv.org/abs/2002.00059). Each run at "
    "the top level is a run of the pipeline: its page begins with the verdict. Nested in it are "
    "the candidates, the champion and the baselines."
)


def describe(connection: Connection, experiment: "Experiment", metric: str) -> None:
    """Give an experiment its menu, description and views, unless somebody chose others.

    Args:
        connection: to MLflow.
        experiment: of a sweep.
        metric: name of the score among metrics, such as ``accuracy``.
    """
    experiment_id = str(experiment.experiment_id)
    note = _NOTE.format(
        outcomes=view_page(experiment_id, _OUTCOMES),
        candidates=view_page(experiment_id, _CANDIDATES),
    )
    tags = {
        _KIND: _TRAINING,
        NOTE: note,
        _VIEW + _OUTCOMES: _named("Outcomes of the runs", _outcomes(metric)),
        _VIEW + _CANDIDATES: _named("Candidates by fitness", _candidates()),
    }
    for key, value in tags.items():
        known = experiment.tags.get(key)
        # MLflow itself guesses a kind from the first runs, and marks it as a guess.
        if known is None or (key == _KIND and known.endswith("_inferred")):
            connection.call(connection.client.set_experiment_tag, experiment_id, key, value)


def save_candidates_view(connection: Connection, experiment_id: str, run_id: str) -> None:
    """Save the view of the candidates of one parent run, under the id of the run.

    It has no name, so that the menu does not list one view more for each run.
    """
    key, value = _VIEW + run_id, json.dumps(_candidates(run_id))
    connection.call(connection.client.set_experiment_tag, experiment_id, key, value)


def delete_candidates_view(connection: Connection, experiment_id: str, run_id: str) -> None:
    """Delete the view of the candidates of one parent run, if there is one."""
    key = _VIEW + run_id
    experiment = connection.call(connection.client.get_experiment, experiment_id)
    if key in experiment.tags:
        connection.call(connection.client.delete_experiment_tag, experiment_id, key)


def view_page(experiment_id: str, name: str) -> str:
    """Return the address of a view inside MLflow."""
    return f"#/experiments/{experiment_id}/runs?{TRAINING_MENU}&viewStateShareKey={name}"


def _outcomes(metric: str) -> dict[str, object]:
    """Return the view of the parent runs, the newest first, with what came of them."""
    numbers = (
        f"champion_{metric}",
        f"best_baseline_{metric}",
        "difference",
        "p_value",
        "robust_accuracy",
        "trainings",
        "seconds",
    )
    return {
        "searchFilter": "tags.`taylorglo.stage` = 'sweep'",
        "orderByKey": "attributes.`start_time`",
        "orderByAsc": False,
        "selectedColumns": ["tags.`taylorglo.outcome`", *(f"metrics.`{name}`" for name in numbers)],
    }


def _candidates(run_id: str | None = None) -> dict[str, object]:
    """Return the view of the candidates, the fittest first, of one parent run or of all."""
    query = "tags.`taylorglo.stage` = 'candidate'"
    if run_id is not None:
        query = f"{query} and tags.`mlflow.parentRunId` = '{run_id}'"
    return {
        "searchFilter": query,
        "orderByKey": "metrics.`fitness`",
        "orderByAsc": False,
        "selectedColumns": [
            "metrics.`fitness`",
            "metrics.`coefficient_A`",
            "metrics.`coefficient_B`",
            "tags.`taylorglo.status`",
            "params.`theta`",
        ],
    }


def _named(name: str, view: dict[str, object]) -> str:
    """Return a view as the menu lists it."""
    now = round(1000 * time.time())
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(view)})
