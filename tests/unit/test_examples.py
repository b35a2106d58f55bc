"""The examples of the documentation run as they are, and their results are right."""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import taylorglo
from taylorglo.report.figures import SERIES
from taylorglo_pipelines.config import load

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
SERVICES = ("TAYLORGLO_", "MLFLOW_", "AWS_", "PG")


class Scripts:
    """The examples as scripts, run in this process so that PyTorch is imported once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        # Python puts the folder of a script there, too.
        monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(self, name: str, *arguments: str) -> str:
        """Run a script; return its standard output."""
        script = str(EXAMPLES / name)
        self._monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(script, run_name="__main__")
        return self._capsys.readouterr().out


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Scripts:
    return Scripts(monkeypatch, capsys)


def percentage(name: str, output: str) -> float:
    """Return the percentage that follows a name in the output."""
    match = re.search(rf"^{re.escape(name)}:?\s+([\d.]+)%$", output, re.MULTILINE)
    assert match, output
    return float(match[1])


@pytest.mark.parametrize("source", ["the first loss of a search", "a saved loss"])
def test_a_network_that_is_trained_with_a_loss_classifies_held_out_digits(
    source: str, tmp_path: Path, scripts: Scripts
) -> None:
    arguments = []
    if source == "a saved loss":
        saved = tmp_path / "loss.json"
        theta = [0.0, 0.0, 0.0, -1.0, 0.0, 2.0, 0.0, 0.0]
        taylorglo.TaylorLoss(theta).save(saved)
        arguments = [str(saved)]
    output = scripts.run("train_with_a_loss.py", *arguments)
    shown = "-1.0, 0.0, 2.0, 0.0" if arguments else "-0.5, 0.0, 4.0, -2.0"
    assert shown in output
    assert percentage("accuracy on held-out images", output) > 94


@pytest.mark.parametrize(
    ("name", "package", "source"),
    [
        ("use_in_lightning", "pytorch_lightning", "zoo:digits"),
        ("use_in_trainer", "transformers", "zoo:little-data"),
    ],
)
def test_a_found_loss_trains_in_another_framework(
    name: str, package: str, source: str, scripts: Scripts
) -> None:
    pytest.importorskip(package, reason=f"needs {package}, of the extra dev")
    output = scripts.run(f"{name}.py", source)
    assert percentage(re.findall(r"accuracy on held-out \w+", output)[0], output) > 94


def test_the_worst_of_the_attacks_leaves_the_least_accuracy(scripts: Scripts) -> None:
    output = scripts.run("attack_a_network.py")
    clean, fgsm, pgd, worst = (
        percentage(name, output) for name in ("clean", "FGSM", "PGD-DLR", "worst")
    )
    assert clean > 90
    assert clean > fgsm > pgd >= worst
    assert worst < 60


def test_a_loss_is_drawn_with_its_equilibrium(tmp_path: Path, scripts: Scripts) -> None:
    drawing = tmp_path / "loss.svg"
    output = scripts.run("draw_a_loss.py", str(drawing))
    assert "learning drive A = 140.4\n" in output
    assert "collapse rate B = -305.5\n" in output
    assert "equilibrium confidence p* = 0.5308\n" in output
    text = drawing.read_text()
    assert "<svg" in text
    # One polyline for each loss, in the colours of the report.
    for color in SERIES[:2]:
        assert f"stroke: {color}" in text


def test_the_factory_of_the_example_is_a_network_of_a_sweep(scripts: Scripts) -> None:
    output = scripts.run("custom_network.py")
    assert output == "model.name: custom_network:two_layers\n"
    # The docstring's command names the network in the same way.
    source = (EXAMPLES / "custom_network.py").read_text()
    assert "--set model.name=custom_network:two_layers" in source


@pytest.mark.long
def test_a_sweep_over_arrays_ends_with_a_loss_and_a_report(tmp_path: Path) -> None:
    call = (
        "from pathlib import Path; import search_your_own_arrays as example; "
        f"loss = example.search(Path({str(tmp_path)!r}), images=200, generations=1, popsize=3, "
        "steps=60); print('theta', loss.theta.tolist(), loss.classes)"
    )
    # A process of its own, because the runner takes over the signals and the output.
    process = subprocess.run(
        [sys.executable, "-c", call],
        cwd=EXAMPLES,
        env={k: v for k, v in os.environ.items() if not k.startswith(SERVICES)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    output = process.stdout
    assert "data: safetensors, 2 classes, 120 train, 30 validation, 50 test images" in output
    assert "generation 1/1" in output
    store = tmp_path / "runs/store/bars"
    champion = json.loads((store / "champion/loss.json").read_text())
    assert f"theta {champion['theta']} 2\n" in output
    assert champion["provenance"]["data"] == "safetensors"
    assert (store / "report.html").is_file()


# Each training of a user, with the package that it needs, its classes, its learning rate, the score
# that guessing reaches, and enough steps to be far above it.
TRAININGS = {
    "own_training": ("", 4, 0.003, 0.3, 100),
    "segmentation": ("", 3, 0.01, 0.32, 100),
    "lightning_training": ("pytorch_lightning", 10, 0.003, 0.15, 40),
    "hugging_face_training": ("transformers", 3, 0.003, 0.5, 100),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_loss_is_searched_for_a_training_of_an_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, classes, rate, guessed, steps = TRAININGS[name]
    if package:
        pytest.importorskip(package, reason=f"needs {package}, of the extra dev")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module(name)
    common = {"seed": 1, "steps": steps, "learning_rate": rate, "device": "cpu"}
    validated, tested = (
        example.train(taylorglo.CrossEntropy(), split=taylorglo.Split(split), **common)
        for split in ("validation", "test")
    )
    assert validated > guessed + 0.1
    assert tested > guessed + 0.1
    # Otherwise they were measured on the same data.
    assert validated != tested
    result = taylorglo.search(
        example.train,
        classes=classes,
        generations=1,
        popsize=2,
        # That it learns was seen above.
        steps=10,
        learning_rate=rate,
        score="mean IoU" if name == "segmentation" else "accuracy",
        folder=tmp_path,
        settings={
            # In this process, where the packages are imported already.
            "training": {"engine": "sequential", "threads": 1},
            "champion": {"finalists": 1, "seeds": 2},
        },
    )
    assert 0 < result.score <= 1
    assert result.loss.classes == classes


def test_the_folds_of_the_own_training_part_what_is_not_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("own_training")
    pool, tested = example.rows_of(taylorglo.Split("test"))
    assert sorted([*pool, *tested]) == list(range(len(example.TABLE)))
    folds = [example.rows_of(taylorglo.Split("validation", i, 5, seed=3)) for i in range(5)]
    assert sorted(row for _, held in folds for row in held) == list(pool)
    for trained, held in folds:
        assert sorted([*trained, *held]) == list(pool)


def test_a_loop_of_ones_own_goes_on_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("ask_and_tell")
    first = example.search(str(tmp_path), generations=1, popsize=2)
    assert len(re.findall(r"^generation 1: [\d.]+%$", capsys.readouterr().out, re.MULTILINE)) == 2
    again = example.search(str(tmp_path), generations=1, popsize=2)
    assert capsys.readouterr().out == ""
    assert torch.equal(first.theta, again.theta)


def test_the_sweep_of_the_own_training_is_valid() -> None:
    config = load(EXAMPLES / "own_training.yaml")
    assert config.training.function == "own_training:train"
    source = (EXAMPLES / "own_training.py").read_text()
    assert f"CLASSES, HELD_OUT = {config.data.classes}, " in source


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_about_a_screen_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 90
