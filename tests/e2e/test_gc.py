"""``taylorglo gc`` on a real sweep: what it deletes is not missed."""

import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import pytest
from in_process import run_sweep
from sweeps import CONFIG, SMALL, files_of, final_table, mlflow_of, runs_of

import taylorglo
from taylorglo.services.storage import open_store
from taylorglo_pipelines.cli import main


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.long)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty store."""
    if request.param == "folder":
        return str(tmp_path / "store")
    s3: Any = request.getfixturevalue("s3")
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.bucket}/{secrets.token_hex(8)}"


def table_of(work: Path, *settings: str) -> list[str]:
    """Run the sweep, again or for the first time; return its final table."""
    shutil.rmtree(work / "in-process", ignore_errors=True)
    return final_table(run_sweep(work, *settings))


def test_a_finished_sweep_loses_nothing_that_it_needs(
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "work"
    settings = [f"services.store_uri={store}"]
    table = table_of(work, *settings)
    # A run that is repeated has a parent run of its own in MLflow, which holds no champion.
    assert table_of(work, *settings) == table
    overrides = [f"services.work_dir={work}", *SMALL, *settings]
    words = ["gc", str(CONFIG)] + [word for value in overrides for word in ("--set", value)]

    def listed() -> dict[str, int]:
        return {file.key: file.size for file in open_store(store).files("digits")}

    # Everything is younger than a day.
    before = listed()
    assert main([*words, "--older-than", "1d", "--delete"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["there is nothing to delete"]
    # Without --delete, nothing changes.
    databases = {name: state for name, state in files_of(work).items() if name.endswith(".db")}
    assert main([*words, "--older-than", "0d"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert listed() == before
    assert {name: files_of(work)[name] for name in databases} == databases

    assert main([*words, "--older-than", "0d", "--delete"]) == 0
    deleted = capsys.readouterr().out.splitlines()
    assert deleted[1:-1] == shown[1:-1]
    # The networks of six trainings that tuned the baselines, and of three finalists.
    gone = before.keys() - listed().keys()
    assert len(gone) == 6 + 3
    assert all(re.fullmatch(r"digits/trainings/\w+\.safetensors", key) for key in gone)
    weights = sum(before[key] for key in gone)
    assert {line.split()[1] for line in deleted if line.startswith("weights ")} == gone
    assert deleted[-1] == f"deleted 10 items and {weights / 1e3:.3g} kB in the store"
    # Of the two pipeline runs in MLflow, the one with the champion is left.
    (parent,), nested = runs_of(mlflow_of(work))
    stages = [run.data.tags["taylorglo.stage"] for run in nested]
    assert stages.count("champion") == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}

    assert main([*words, "--older-than", "0d", "--delete"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["there is nothing to delete"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work / 'mlruns.db'}")
    champion = taylorglo.load_loss("models:/digits-loss@champion")
    assert champion.provenance["sweep"] == "digits"
    attack = ["attack", f"{store}/digits/champion", "--set", "images=20", "--set", "pgd_steps=2"]
    assert main(attack) == 0
    assert "worst" in capsys.readouterr().out
    assert table_of(work, *settings) == table
    assert {name: size for name, size in listed().items() if "trainings" in name} == {
        name: size for name, size in before.items() if "trainings" in name and name not in gone
    }
