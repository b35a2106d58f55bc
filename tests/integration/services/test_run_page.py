"""What a whole sweep leaves in a real MLflow server: its run, its models, and their versions."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from logged_sweeps import ATTACKS, EPSILONS, GENERATIONS, POPSIZE, THETA, LoggedSweep
from mlflow import MlflowClient
from mlflow_runs import PASSWORD, history
from servers import mlflow_server

import taylorglo
from taylorglo.variables import IMAGE, KFP_PAGES, KFP_RUN, REVISION

LOADS_WITHOUT_US = """
import sys
sys.modules["taylorglo"] = None  # an import of it fails
import mlflow, numpy, torch
mlflow.set_tracking_uri(sys.argv[1])
uri = "models:/digits-network@champion"
samples = numpy.load(sys.argv[2])
by_torch = mlflow.pytorch.load_model(uri)(torch.from_numpy(samples)).detach().numpy()
by_pyfunc = mlflow.pyfunc.load_model(uri).predict(samples)
assert numpy.array_equal(by_torch, by_pyfunc)
numpy.save(sys.argv[2], by_torch)
"""


@pytest.fixture(scope="module")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a tracking server for the tests of this module; return its URI."""
    folder = tmp_path_factory.mktemp("server")
    database = folder / "mlflow.db"
    database.write_bytes(template.read_bytes())
    uri = f"sqlite:///{database}"
    with mlflow_server(uri, str(folder / "served"), folder / "server.log") as running:
        yield running.uri


@pytest.fixture(scope="module")
def logged(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoggedSweep]:
    """Log a whole sweep, and its outcome twice, as a task that is tried again does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.setenv(REVISION, "0123456789ab")
        patch.setenv(IMAGE, f"https://user:{PASSWORD}@registry/taylorglo@sha256:00ff")
        patch.setenv(KFP_RUN, "5f0c")
        patch.setenv(KFP_PAGES, "https://kubeflow.example/")
        sweep = LoggedSweep(server, tmp_path_factory.mktemp("sweep"), patch)
        for _ in range(2):
            sweep.log_candidates()
            sentence = sweep.log_outcome()
            # A repeated report finds the alias at the version that it registered itself.
            assert sentence == "models:/digits-loss@champion is version 1 now"
        yield sweep


@pytest.fixture
def parent(server: str, logged: LoggedSweep) -> Any:
    return MlflowClient(server).get_run(logged.sweep.run_id)


def test_the_experiment_opens_with_the_menu_of_trained_models(server: str, parent: Any) -> None:
    experiment = MlflowClient(server).get_experiment(parent.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_description_begins_with_the_verdict(parent: Any) -> None:
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("**The champion is ahead of tuned cross-entropy, the best baseline, by")
    assert "| champion | 0.1 | 97.30 ± 0.26 |" in note
    assert "loss = −Σₖ ( " in note
    assert len(note) < 5000


def test_the_tags_tell_where_the_run_comes_from(server: str, parent: Any) -> None:
    tags = parent.data.tags
    expected = {
        "mlflow.source.git.commit": "0123456789ab",
        "mlflow.source.name": "taylorglo-digits",
        "mlflow.source.type": "JOB",
        "taylorglo.sweep": "digits",
        "taylorglo.data": "digits",
        "taylorglo.network": "mlp",
        "taylorglo.image": "https://registry/taylorglo@sha256:00ff",
        "taylorglo.kfp_run": "5f0c",
        "taylorglo.kfp_page": "https://kubeflow.example/#/runs/details/5f0c",
        "taylorglo.outcome": "ahead",
    }
    assert {key: tags.get(key) for key in expected} == expected
    assert tags["mlflow.user"]
    assert PASSWORD not in str(tags)


def test_the_metrics_are_a_headline_and_curves(server: str, parent: Any) -> None:
    single = {key for key in parent.data.metrics if "/" not in key}
    assert single == {
        "champion_accuracy",
        "best_baseline_accuracy",
        "difference",
        "p_value",
        "robust_accuracy",
        "trainings",
        "seconds",
        "training_share",
    }
    assert parent.data.metrics["difference"] == pytest.approx(0.02)
    assert parent.data.metrics["robust_accuracy"] == pytest.approx(0.45)
    assert parent.data.metrics["trainings"] == GENERATIONS * POPSIZE + 12
    for attack in ATTACKS:
        curve = history(server, parent.info.run_id, f"robust_accuracy/{attack}/cross-entropy")
        points = [
            (round(1000 * epsilon), pytest.approx(0.95 - 5 * epsilon)) for epsilon in EPSILONS
        ]
        assert curve == points
    best = history(server, parent.info.run_id, "generation/best")
    assert [step for step, _ in best] == [1, 2, 3]
    assert [step for step, _ in history(server, parent.info.run_id, "seconds")] == [0]


def test_the_figures_are_images(server: str, parent: Any) -> None:
    figures = MlflowClient(server).list_artifacts(parent.info.run_id, "figures")
    names = [figure.path.rpartition("/")[2] for figure in figures]
    assert names == ["1-loss.png", "2-seeds.png", "3-search.png", "4-attacks.png"]


def test_the_models_are_linked_once(server: str, parent: Any) -> None:
    client = MlflowClient(server)
    models = client.search_logged_models([parent.info.experiment_id])
    assert sorted(model.name for model in models) == ["loss", "network"]
    assert {model.source_run_id for model in models} == {parent.info.run_id}
    assert {output.model_id for output in parent.outputs.model_outputs} == {
        model.model_id for model in models
    }
    places = {model.name: model.artifact_location for model in models}
    for name, model in (("digits-loss", "loss"), ("digits-network", "network")):
        (version,) = client.search_model_versions(f"name = '{name}'")
        version = client.get_model_version(name, version.version)
        assert version.source == places[model]
        assert version.run_id == parent.info.run_id
        assert version.aliases == ["champion"]
        assert version.description.startswith("The champion is ahead of")


def test_the_network_is_loaded_without_this_package(
    server: str, logged: LoggedSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import torch

    samples = np.random.default_rng(1).random((3, 1, 8, 8), dtype=np.float32)
    path = tmp_path / "samples.npy"
    np.save(path, samples)
    command = [sys.executable, "-c", LOADS_WITHOUT_US, server, str(path)]
    subprocess.run(command, check=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    network = taylorglo.load_network("models:/digits-network@champion")
    expected = network(torch.from_numpy(samples)).detach().numpy()
    assert np.load(path) == pytest.approx(expected, abs=1e-5)
    assert taylorglo.load_loss("models:/digits-loss@champion").theta.tolist() == pytest.approx(
        THETA
    )


def test_the_signature_names_samples_and_logits(
    server: str, logged: LoggedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    info = mlflow.models.get_model_info("models:/digits-network@champion")
    assert info.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert info.signature.outputs.inputs[0].shape == (-1, 10)
    assert info.saved_input_example_info is not None
    assert "pickle" not in str(info.flavors["pytorch"])
