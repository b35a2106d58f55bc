"""What is no longer needed of a sweep: files in the store, and runs in MLflow."""

import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow_runs import candidate, log_baseline, log_candidates

from taylorglo.services import layout
from taylorglo.services.memo import References
from taylorglo.services.mlflow import Connection
from taylorglo.services.retention import (
    aliased_runs,
    delete_run,
    old_runs,
    unlisted,
    unneeded_attacks,
    unneeded_data,
    unneeded_references,
    unneeded_trainings,
)
from taylorglo.services.storage import FolderStore, Store, StoredFile, open_store
from taylorglo.services.tracking import Tracker

# Later than anything that the tests write, however long they take.
NOW = datetime.now(UTC) + timedelta(days=1)
LONG_AGO = NOW - timedelta(days=40)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    s3: Any = request.getfixturevalue("s3")
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://{s3.bucket}/{secrets.token_hex(8)}")


def fill(store: Store, sweep: str = "digits") -> None:
    """Write four trainings, the data of two searches, and the files that are always kept."""
    for key in "abcd":
        store.write(layout.weights(sweep, key), b"weights")
        store.write(layout.training(sweep, key), b"{}")
    for fingerprint in ("0" * 12, "1" * 12):
        store.write(layout.search_data(sweep, fingerprint), b"data")
    for key in (layout.dataset(sweep), layout.champion(sweep), layout.report(sweep)):
        store.write(key, b"kept")


def keys(files: Sequence[StoredFile]) -> list[str]:
    return [file.key for file in files]


def test_trainings_that_no_study_refers_to(store: Store) -> None:
    fill(store)
    fill(store, "digits-2")
    References(results=["a", "b"], weights=["a"]).write(store, "digits", "digits.2")
    References(results=["c"], weights=["c"]).write(store, "digits", "digits.3")
    studies = ["digits.2", "digits.3"]
    assert keys(unneeded_trainings(store, "digits", studies, NOW)) == [
        "digits/trainings/b.safetensors",
        "digits/trainings/d.json",
        "digits/trainings/d.safetensors",
    ]
    assert keys(unneeded_trainings(store, "digits", ["digits.3"], NOW)) == [
        *("digits/trainings/a.json", "digits/trainings/a.safetensors"),
        *("digits/trainings/b.json", "digits/trainings/b.safetensors"),
        *("digits/trainings/d.json", "digits/trainings/d.safetensors"),
    ]
    assert unneeded_trainings(store, "digits", studies, LONG_AGO) == []


def test_attacks_on_networks_that_no_study_refers_to(store: Store) -> None:
    for training in "abc":
        for key in "12":
            store.write(layout.attack("digits", training, key), b"{}")
    References(results=["a", "b"], weights=["a"]).write(store, "digits", "digits.2")
    References(results=["c"], weights=["c"]).write(store, "digits", "digits.3")
    studies = ["digits.2", "digits.3"]
    gone = keys(unneeded_attacks(store, "digits", studies, NOW))
    assert gone == ["digits/attacks/b.1.json", "digits/attacks/b.2.json"]
    assert unneeded_attacks(store, "digits", studies, LONG_AGO) == []


def test_data_and_references_of_studies_that_are_gone(store: Store) -> None:
    fill(store)
    for study in ("digits", "digits.2"):
        References(results=[], weights=[]).write(store, "digits", study)
    fingerprints = ["1" * 64]
    assert keys(unneeded_data(store, "digits", fingerprints, NOW)) == [
        "digits/search-data/000000000000.safetensors"
    ]
    assert unneeded_data(store, "digits", fingerprints, LONG_AGO) == []
    assert keys(unneeded_references(store, "digits", ["digits.2"], NOW)) == [
        "digits/references/digits.json"
    ]
    assert unneeded_references(store, "digits", ["digits.2"], LONG_AGO) == []
    assert unlisted(store, "digits", ["digits", "digits.2", "digits.3"]) == ["digits.3"]


def test_a_training_is_as_old_as_its_youngest_file(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    fill(store)
    for path in tmp_path.rglob("*"):
        os.utime(path, (LONG_AGO.timestamp(),) * 2)
    month_ago = NOW - timedelta(days=30)
    # Its weights were written a moment before the limit, and its result a moment after it.
    (tmp_path / layout.training("digits", "b")).touch()
    # A process was killed in between, long ago.
    (tmp_path / layout.training("digits", "c")).unlink()
    assert keys(unneeded_trainings(store, "digits", [], month_ago)) == [
        *("digits/trainings/a.json", "digits/trainings/a.safetensors"),
        "digits/trainings/c.safetensors",
        *("digits/trainings/d.json", "digits/trainings/d.safetensors"),
    ]


def log_run(uri: str, name: str, file: Path, sweep: str = "digits") -> Tracker:
    """Log a finished pipeline run with two candidates and a baseline."""
    tracker = Tracker.open(uri, sweep, run_name=name, artifact_location=str(file.parent))
    tracker.log_settings({"study": f"{sweep}.2"})
    log_candidates(tracker, [candidate(0), candidate(1)])
    log_baseline(tracker, file)
    tracker.finish()
    return tracker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "artifacts" / "loss.json"
    path.parent.mkdir()
    path.write_text("{}")
    return path


def test_old_runs_of_the_sweep_alone(uri: str, file: Path) -> None:
    first, second = (log_run(uri, name, file) for name in ("first", "second"))
    log_run(uri, "of another sweep", file, "digits-2")
    connection = Connection(uri)
    client = connection.client
    foreign = client.create_run(first.experiment_id, run_name="somebody's own")
    nested = {"mlflow.parentRunId": foreign.info.run_id}
    client.create_run(first.experiment_id, tags=nested)
    found = old_runs(connection, "digits", NOW, kept=())
    assert {(run.name, run.parent, len(run.nested)) for run in found} == {
        ("first", first.run_id, 3),
        ("second", second.run_id, 3),
    }
    assert old_runs(connection, "digits", LONG_AGO, kept=()) == []
    assert old_runs(connection, "absent", NOW, kept=()) == []
    for run in found:
        assert list(run.ids())[-1] == run.parent
        # One of its runs is enough to keep them all.
        for kept in run.ids():
            (left,) = old_runs(connection, "digits", NOW, kept=[kept])
            assert left.parent != run.parent


def test_a_run_that_is_active_is_young_however_long_ago_it_began(uri: str, file: Path) -> None:
    tracker = Tracker.open(uri, "digits", run_name="long", artifact_location=str(file.parent))
    tracker.log_settings({"study": "digits"})
    log_candidates(tracker, [candidate(0)])  # of 2023
    connection = Connection(uri)
    month_ago = NOW - timedelta(days=30)
    assert old_runs(connection, "digits", month_ago, kept=()) == []
    (found,) = old_runs(connection, "digits", NOW, kept=())
    assert len(found.nested) == 1


def test_models_and_view_are_deleted_with_their_run(uri: str, file: Path) -> None:
    first, second = (log_run(uri, name, file) for name in ("first", "second"))
    for tracker in (first, second):
        tracker.models.log_loss({"loss.json": file}, digest="of the loss", tags={})
    connection = Connection(uri)
    delete_run(connection, old_runs(connection, "digits", NOW, kept=[second.run_id])[0])
    (model,) = connection.client.search_logged_models([first.experiment_id])
    assert model.source_run_id == second.run_id
    tags = connection.client.get_experiment(first.experiment_id).tags
    views = {key.rpartition(".")[2] for key in tags if key.startswith("mlflow.sharedViewState.")}
    assert views == {"taylorglo-outcomes", "taylorglo-candidates", second.run_id}


def test_a_deletion_that_was_interrupted_goes_on(
    uri: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = log_run(uri, "first", file)
    connection = Connection(uri)
    client = connection.client
    (run,) = old_runs(connection, "digits", NOW, kept=())
    client.delete_run(run.nested[0])
    (rest,) = old_runs(connection, "digits", NOW, kept=())
    assert (rest.parent, len(rest.nested)) == (run.parent, 2)
    # Somebody deleted the parent on MLflow's page.
    client.delete_run(tracker.run_id)
    (orphans,) = old_runs(connection, "digits", NOW, kept=())
    assert (orphans.parent, orphans.nested) == (None, rest.nested)
    delete_run(connection, orphans)
    assert old_runs(connection, "digits", NOW, kept=()) == []
    # MLflow can restore them.
    stages = {client.get_run(run_id).info.lifecycle_stage for run_id in run.ids()}
    assert stages == {"deleted"}


def test_more_runs_than_one_answer_has(
    uri: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taylorglo.services.retention._PAGE", 2)
    runs = {log_run(uri, name, file).run_id for name in ("first", "second")}
    connection = Connection(uri)
    found = old_runs(connection, "digits", NOW, kept=())
    assert {run.parent for run in found} == runs
    assert [len(run.nested) for run in found] == [3, 3]
    for model in "abc":
        connection.client.create_registered_model(model)
        run_id = found[0].nested[0]
        connection.client.create_model_version(model, str(file.parent), run_id)
    connection.client.set_registered_model_alias("c", "champion", "1")
    assert aliased_runs(connection) == {found[0].nested[0]}


def test_the_runs_behind_any_alias(server: str, file: Path) -> None:
    connection = Connection(server)
    client = connection.client
    assert aliased_runs(connection) == set()
    experiment = client.create_experiment("digits")
    runs = [client.create_run(experiment).info.run_id for _ in range(4)]
    client.create_registered_model("digits-loss")
    for run_id in runs:
        client.create_model_version("digits-loss", f"runs:/{run_id}/loss", run_id)
    client.set_registered_model_alias("digits-loss", "champion", "2")
    client.set_registered_model_alias("digits-loss", "candidate", "3")
    assert aliased_runs(connection) == {runs[1], runs[2]}
