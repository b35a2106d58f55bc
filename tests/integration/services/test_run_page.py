"""What a whole sweep leaves in a real MLflow server, and how its pages look in a real browser.

One sweep is shared by all tests, because it takes seconds.
"""

import re
import runpy
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

import taylorglo
from taylorglo.errors import InputError
from taylorglo.networks.weights import Origin, weights_of
from taylorglo.services.models import save_network
from taylorglo.variables import IMAGE, KFP_PAGES, KFP_RUN, REVISION

PAGE = Path(__file__).parents[3] / "docs/mlflow.md"
TRAINING_MENU = "workflowType=machine_learning"

LOADS_WITHOUT_US = """
import os, sys
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
# An import of these fails. MLflow imports Lightning if it is there, which takes seconds.
sys.modules["taylorglo"] = sys.modules["pytorch_lightning"] = None
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


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """Open a page in a browser that was never on MLflow before."""
    context = browser.new_context(viewport={"width": 1280, "height": 1800})
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def test_the_experiment_is_of_trained_models_and_has_views(server: str, parent: Any) -> None:
    tags = MlflowClient(server).get_experiment(parent.info.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    views = {key.rpartition(".")[2] for key in tags if key.startswith("mlflow.sharedViewState.")}
    assert views == {"taylorglo-outcomes", "taylorglo-candidates", parent.info.run_id}


def test_the_description_begins_with_the_verdict(parent: Any) -> None:
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("**The champion is ahead of tuned cross-entropy, the best baseline, by")
    assert "[run in Kubeflow](https://kubeflow.example/#/runs/details/5f0c)" in note
    row = next(line for line in note.splitlines() if line.startswith("| champion"))
    cells = [cell.strip().replace("\N{NO-BREAK SPACE}", " ") for cell in row.strip("|").split("|")]
    assert cells == ["champion", "0.1", "97.30 ± 0.26", "4", "–", "–", "–"]
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
    assert names == [
        "1-loss.png",
        "2-seeds.png",
        "3-search.png",
        "4-robustness.png",
        "5-attacks.png",
        "6-attacked-images.png",
        "7-corruptions.png",
    ]


def test_the_results_by_image_are_an_artifact(server: str, parent: Any) -> None:
    artifacts = {file.path for file in MlflowClient(server).list_artifacts(parent.info.run_id)}
    assert {"report.html", "attacked-images.parquet"} <= artifacts


def test_corruptions_are_curves_by_strength(server: str, parent: Any) -> None:
    curve = history(server, parent.info.run_id, "under_corruption/blur/champion")
    assert curve == [(1, 0.75), (2, 0.5), (3, 0.25)]


def test_the_first_curves_of_the_page_are_those_over_the_generations(parent: Any) -> None:
    """MLflow sorts the sections of the page, which are what is before the last slash, by name."""
    sections = sorted({name.rpartition("/")[0] for name in parent.data.metrics if "/" in name})
    assert sections[0] == "generation"
    assert len(sections) > 4


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


def test_a_network_is_logged_without_lightning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning takes seconds to import, and so do the libraries that it imports."""
    import torch

    # As in a process that has imported neither.
    for name in list(sys.modules):
        if name.startswith(("mlflow.pytorch", "pytorch_lightning")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(mlflow, "pytorch", mlflow.pytorch)
    network = torch.nn.Linear(4, 2)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights_of(network, Origin("my:network", (4,), 2)))
    save_network(network, weights, tmp_path / "exported")
    assert "mlflow.pytorch" in sys.modules
    assert "pytorch_lightning" not in sys.modules
    assert (tmp_path / "exported/requirements.txt").read_text().startswith("mlflow==")


def test_a_network_that_cannot_be_exported_is_refused_with_the_reason(tmp_path: Path) -> None:
    import torch

    class Branching(torch.nn.Linear):
        def forward(self, samples: torch.Tensor) -> torch.Tensor:
            return super().forward(samples if samples.sum() > 0 else -samples)

    network = Branching(4, 2)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights_of(network, Origin("my:network", (4,), 2)))
    with pytest.raises(InputError, match="PyTorch cannot export it: "):
        save_network(network, weights, tmp_path / "exported")


def test_the_signature_names_samples_and_logits(
    server: str, logged: LoggedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    info = mlflow.models.get_model_info("models:/digits-network@champion")
    assert info.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert info.signature.outputs.inputs[0].shape == (-1, 10)
    assert info.saved_input_example_info is not None
    assert "pickle" not in str(info.flavors["pytorch"])


def test_the_champion_is_three_clicks_away(page: Any, server: str, logged: LoggedSweep) -> None:
    page.goto(f"{server}/#/experiments")
    page.get_by_text("Model training", exact=True).first.click()
    page.get_by_role("link", name="digits", exact=True).first.click()
    page.get_by_role("link", name="digits first").first.click()
    # The page of the run answers at once.
    page.get_by_text(re.compile("The champion is ahead of tuned cross-entropy")).wait_for()
    page.get_by_role("cell", name="97.30 ± 0.26").wait_for()
    page.get_by_text(re.compile("loss = −Σₖ")).wait_for()
    for name in ("digits-loss", "digits-network"):
        page.get_by_text(name).first.wait_for()
    page.get_by_role("tab", name="Model metrics").click()
    for section in ("generation", "robust_accuracy/worst"):
        page.get_by_text(re.compile(rf"^{section} ?\(\d+\)")).first.wait_for()


def open_anew(page: Any, address: str) -> None:
    """Open an address as a new tab would: the page before may go on to change its own address."""
    page.goto("about:blank")
    page.goto(address)


def test_the_links_of_the_pages_lead_on(
    page: Any, server: str, parent: Any, logged: LoggedSweep
) -> None:
    page.goto(f"{server}/#/experiments/{parent.info.experiment_id}/runs?{TRAINING_MENU}")
    address = page.get_by_role("link", name="Outcomes of the runs").get_attribute("href")
    open_anew(page, f"{server}/{address}")
    page.get_by_text("1 matching run", exact=True).wait_for()
    page.get_by_role("columnheader", name="champion_accuracy").first.wait_for()
    page.goto(f"{server}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}")
    address = page.get_by_role("link", name="candidates by fitness").get_attribute("href")
    open_anew(page, f"{server}/{address}")
    page.get_by_role("columnheader", name="fitness").first.wait_for()
    page.get_by_text(f"{GENERATIONS * POPSIZE} matching runs").wait_for()
    names = page.get_by_text(re.compile(r"^g00\d-c000\d\d$")).all_text_contents()
    # Candidate 8 has the highest fitness, because of sin(8), and candidates 5 and 11 the lowest.
    assert names[0] == "g003-c00008"
    assert names[-1] in ("g002-c00005", "g003-c00011")


def test_the_examples_of_the_documentation_run(
    server: str, logged: LoggedSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    # The example sets it, and so it is put back at the end.
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    script = tmp_path / "documented.py"
    names: dict[str, Any] = {"images": torch.rand(3, 1, 8, 8)}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        script.write_text(code)
        names |= runpy.run_path(str(script), init_globals=names)
    assert list(names["runs"]["tags.taylorglo.outcome"]) == ["ahead"]
    assert names["candidates"]["tags.mlflow.runName"][0] == "g003-c00008"
    assert list(names["ahead"]["run_id"]) == [logged.sweep.run_id]
    assert [step for step, _ in names["best"]] == [1, 2, 3]
    assert names["logits"].shape == (3, 10)
