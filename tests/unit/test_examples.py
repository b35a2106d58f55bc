"""The examples of the documentation run as they are, and their results are right."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import taylorglo

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
    for color in ("#b3392c", "#2f6690"):
        assert f"stroke: {color}" in text


def test_the_factory_of_the_example_is_a_network_of_a_sweep(scripts: Scripts) -> None:
    output = scripts.run("custom_network.py")
    assert output == "model.name: custom_network:two_layers\n"
    # The docstring's command names the network in the same way.
    source = (EXAMPLES / "custom_network.py").read_text()
    assert "--set model.name=custom_network:two_layers" in source


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
