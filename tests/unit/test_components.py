"""The program that runs a component in a task: ``python -m taylorglo.components``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from taylorglo import components
from taylorglo.addresses import sqlite_url
from taylorglo.components.__main__ import WITH_WORKERS
from taylorglo.settings import SweepSettings
from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI

EXECUTOR = "kfp.dsl.executor_main"


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taylorglo.components", *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )


def executor_input(folder: Path, seed: object) -> str:
    """Return the input of the task ``check-inputs`` as Kubeflow gives it."""
    sections = SweepSettings().model_dump(mode="json")
    settings = {"name": "settings", "type": {"schemaTitle": "system.Artifact"}}
    artifact = {**settings, "uri": str(folder / "settings"), "metadata": {}}
    return json.dumps(
        {
            "inputs": {"parameterValues": {**sections, "seed": seed}},
            "outputs": {
                "parameters": {"Output": {"outputFile": str(folder / "Output")}},
                "artifacts": {"settings": {"artifacts": [artifact]}},
                "outputFile": str(folder / "output.json"),
            },
        }
    )


@pytest.fixture(autouse=True)
def _services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STUDY_URL, sqlite_url(tmp_path / "study.db"))
    monkeypatch.setenv(STORE_URI, str(tmp_path / "store"))
    monkeypatch.setenv(TRACKING_URI, sqlite_url(tmp_path / "mlruns.db"))


def check_inputs(folder: Path, seed: object) -> subprocess.CompletedProcess[str]:
    words = ("--executor_input", executor_input(folder, seed))
    return run(EXECUTOR, *words, "--function_to_execute", "check_inputs")


def test_a_component_of_the_image_is_run(tmp_path: Path) -> None:
    process = check_inputs(tmp_path, 7.0)
    assert process.returncode == 0, process.stdout + process.stderr
    assert json.loads((tmp_path / "settings").read_text())["seed"] == 7
    assert json.loads((tmp_path / "output.json").read_text())["parameterValues"]["Output"]


def test_an_error_of_the_task_ends_it_with_one_line(tmp_path: Path) -> None:
    process = check_inputs(tmp_path, "seven")
    assert process.returncode == 2
    assert process.stdout.splitlines()[-1].startswith("taylorglo: error: parameters: seed: ")
    assert "Traceback" not in process.stdout + process.stderr


@pytest.mark.parametrize(
    "words",
    [
        (EXECUTOR, "--function_to_execute", "of_another_version"),
        (EXECUTOR, "--function_to_execute", "../tasks/check"),
        (EXECUTOR, "--function_to_execute", "__init__"),
        ("antigravity", "--function_to_execute", "check_inputs"),
        (EXECUTOR,),
        (),
    ],
)
def test_what_the_image_does_not_have_is_refused(words: tuple[str, ...]) -> None:
    process = run(*words)
    assert process.returncode == 2
    (line,) = process.stdout.splitlines()
    assert line.startswith("taylorglo: error: ")
    assert line.endswith(
        "this image has no such component; it should have the version of taylorglo that compiled "
        "the pipeline"
    )


def test_the_components_for_which_workers_are_prepared_exist() -> None:
    names = {path.stem for path in Path(components.__file__).parent.glob("*.py")}
    assert names >= WITH_WORKERS
