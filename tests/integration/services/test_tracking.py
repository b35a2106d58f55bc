"""The runs that a sweep logs to a real MLflow."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from mlflow import MlflowClient
from mlflow_runs import (
    PASSWORD,
    candidate,
    description,
    history,
    log_baseline,
    log_candidates,
    nested_runs,
)

from taylorglo.errors import InputError, ServiceError
from taylorglo.services.tracking import Tracker

LOGGER = "taylorglo.services.tracking"


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, taylorglo.services.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_open_creates_experiment_and_run(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(tracker.run_id)
    assert run.info.run_name == "first"
    assert run.info.status == "RUNNING"
    assert run.info.experiment_id == tracker.experiment_id
    experiment = client.get_experiment(tracker.experiment_id)
    assert experiment.name == "digits"
    assert experiment.artifact_location == str(tmp_path / "artifacts")


def test_a_second_run_shares_the_experiment(uri: str, tracker: Tracker) -> None:
    second = Tracker.open(uri, "digits", run_name="second")
    assert second.experiment_id == tracker.experiment_id
    assert second.run_id != tracker.run_id


def test_an_experiment_that_another_process_creates_in_between_is_used(
    uri: str, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MlflowClient.get_experiment_by_name
    names = []

    def absent_at_first(self: MlflowClient, name: str) -> Any:
        names.append(name)
        return None if len(names) == 1 else real(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", absent_at_first)
    second = Tracker.open(uri, "digits", run_name="second")
    assert second.experiment_id == tracker.experiment_id
    assert len(names) == 2


def test_a_deleted_experiment_is_named(uri: str, tracker: Tracker) -> None:
    MlflowClient(tracking_uri=uri).delete_experiment(tracker.experiment_id)
    with pytest.raises(InputError, match="experiment 'digits': was deleted"):
        Tracker.open(uri, "digits", run_name="second")


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_finished_run_is_resumed(
    uri: str, tracker: Tracker, status: Literal["FINISHED", "FAILED", "KILLED"]
) -> None:
    client = MlflowClient(tracking_uri=uri)
    tracker.finish(status)
    assert client.get_run(tracker.run_id).info.status == status
    resumed = Tracker.open(uri, "another name", run_name="again", resume_run_id=tracker.run_id)
    assert resumed.run_id == tracker.run_id
    assert resumed.experiment_id == tracker.experiment_id
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    assert client.get_experiment_by_name("another name") is None


def test_attach_finds_the_experiment(uri: str, tracker: Tracker) -> None:
    attached = Tracker.attach(uri, tracker.run_id)
    assert attached.run_id == tracker.run_id
    assert attached.experiment_id == tracker.experiment_id


@pytest.mark.parametrize("run_id", ["0" * 32, "no/such run"])
def test_an_unknown_run_is_named(uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=f"parent run '{run_id}': there is no such run"):
        Tracker.attach(uri, run_id)
    with pytest.raises(InputError, match=f"run to resume '{run_id}'"):
        Tracker.open(uri, "digits", run_name="x", resume_run_id=run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(InputError, match=f"MLFLOW_RUN_ID '{run_id}'"):
        Tracker.open(uri, "digits", run_name="x")


def test_a_deleted_run_is_named(uri: str, tracker: Tracker) -> None:
    MlflowClient(tracking_uri=uri).delete_run(tracker.run_id)
    with pytest.raises(InputError, match="was deleted"):
        Tracker.attach(uri, tracker.run_id)


def test_an_injected_run_is_the_parent_and_is_left_to_its_owner(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking_uri=uri)
    experiment_id = client.create_experiment("of the scheduler")
    injected = client.create_run(experiment_id).info.run_id
    other = client.create_run(experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    tracker = Tracker.open(uri, "digits", run_name="ours", resume_run_id=other)
    assert tracker.run_id == injected
    assert tracker.experiment_id == experiment_id
    assert client.get_experiment_by_name("digits") is None
    tracker.finish()
    assert client.get_run(injected).info.status == "RUNNING"


def test_an_injected_run_that_ended_is_not_reopened(
    uri: str, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.finish()
    monkeypatch.setenv("MLFLOW_RUN_ID", tracker.run_id)
    Tracker.open(uri, "digits", run_name="ours")
    assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_global_state_of_mlflow_is_left_alone(tracker: Tracker) -> None:
    import mlflow

    tracker.log_metrics({"fitness": 0.5})
    assert mlflow.active_run() is None
    assert str(tracker.run_id) not in mlflow.get_tracking_uri()


def test_settings_become_params(
    uri: str, tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"seed": 0, "training_nesterov": True, "rate": 0.1, "long": "x" * 7000}
    # MLflow takes them in more than one batch.
    settings |= {f"setting_{index}": index for index in range(150)}
    with caplog.at_level(logging.WARNING, LOGGER):
        tracker.log_settings(settings)
        tracker.log_settings(settings)
    assert not caplog.records
    params = MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.params
    assert params == {key: str(value)[:6000] for key, value in settings.items()}


def test_a_changed_setting_keeps_its_first_value_and_is_reported(
    uri: str, tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.log_settings({"seed": 0, "popsize": 8})
    with caplog.at_level(logging.WARNING, LOGGER):
        tracker.log_settings({"seed": 1, "popsize": 8, "sigma": 1.2})
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["seed"]
    params = MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.params
    assert params == {"seed": "0", "popsize": "8", "sigma": "1.2"}


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (f"postgresql://user:{PASSWORD}@db:5432/optuna", "postgresql://db:5432/optuna"),
        (f"http://user:{PASSWORD}/x@host/path", "http://host/path"),
        (f"http://user:{PASSWORD}@x@host:80/path", "http://host:80/path"),
        (
            f"study=postgresql://u:{PASSWORD}@db/a and s3://bucket/key@2",
            "study=postgresql://db/a and s3://bucket/key@2",
        ),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("a@b:c", "a@b:c"),
    ],
)
def test_no_credentials_are_stored(
    uri: str, tracker: Tracker, tmp_path: Path, given: str, stored: str
) -> None:
    tracker.log_settings({"data_root": given})
    tracker.log_dataset(description(given, {"train": 1}))
    log_candidates(tracker, [candidate(0, status="failed", reason=given)])
    run = MlflowClient(tracking_uri=uri).get_run(tracker.run_id)
    assert run.data.params["data_root"] == stored
    assert json.loads(run.inputs.dataset_inputs[0].dataset.source) == {"uri": stored}
    assert nested_runs(uri, tracker)["g001-c00000"].data.tags["taylorglo.reason"] == stored
    assert PASSWORD.encode() not in (tmp_path / "mlflow.db").read_bytes()


def test_the_splits_of_a_data_set_are_inputs_of_the_run(uri: str, tracker: Tracker) -> None:
    splits = {"train": 1078, "validation": 269, "test": 450}
    for _ in range(2):
        tracker.log_dataset(description("s3://b/k", splits))
    inputs = MlflowClient(tracking_uri=uri).get_run(tracker.run_id).inputs.dataset_inputs
    assert len(inputs) == 3
    profiles = {i.tags[0].value: json.loads(i.dataset.profile) for i in inputs}
    assert {split: profile["num_rows"] for split, profile in profiles.items()} == splits
    assert {profile["num_classes"] for profile in profiles.values()} == {10}
    names = {i.dataset.name for i in inputs}
    assert names == {"digits-train", "digits-validation", "digits-test"}
    assert {i.dataset.digest for i in inputs} == {"0123456789abcdef0123456789abcdef0123"}
    assert {i.dataset.source_type for i in inputs} == {"s3"}


def test_metrics_that_are_not_finite_are_dropped(uri: str, tracker: Tracker) -> None:
    numbers = {"best": 0.5, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    tracker.log_metrics(numbers)
    tracker.log_curves({name: [(2, value)] for name, value in numbers.items()}, 1.7e9)
    assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.metrics == {"best": 0.5}
    assert history(uri, tracker.run_id, "best") == [(0, 0.5), (2, 0.5)]


def test_a_metric_that_is_logged_again_is_stored_once(uri: str, tracker: Tracker) -> None:
    for seconds in (1.0, 2.0):
        tracker.log_metrics({"best": 0.5, "seconds": seconds}, once=["seconds"])
        tracker.log_curves({"curve": [(1, 0.25), (2, 0.5)]}, 1.7e9)
    tracker.log_metrics({"best": 0.75})
    assert history(uri, tracker.run_id, "best") == [(0, 0.5), (0, 0.75)]
    assert history(uri, tracker.run_id, "seconds") == [(0, 1.0)]
    assert history(uri, tracker.run_id, "curve") == [(1, 0.25), (2, 0.5)]


def test_what_a_person_chose_for_the_experiment_is_kept(uri: str, tracker: Tracker) -> None:
    client = MlflowClient(tracking_uri=uri)
    chosen = {
        "mlflow.experimentKind": "genai_development",
        "mlflow.note.content": "My notes.",
        "mlflow.sharedViewState.taylorglo-outcomes": "my view",
    }
    for key, value in chosen.items():
        client.set_experiment_tag(tracker.experiment_id, key, value)
    Tracker.open(uri, "digits", run_name="again")
    assert chosen.items() <= client.get_experiment(tracker.experiment_id).tags.items()


def test_a_kind_that_mlflow_guessed_for_the_experiment_is_replaced(
    uri: str, tracker: Tracker
) -> None:
    client, key = MlflowClient(tracking_uri=uri), "mlflow.experimentKind"
    client.set_experiment_tag(tracker.experiment_id, key, "genai_development_inferred")
    Tracker.open(uri, "digits", run_name="again")
    tags = client.get_experiment(tracker.experiment_id).tags
    assert tags[key] == "custom_model_development"


def test_artifacts_have_the_names_of_their_keys(tracker: Tracker, tmp_path: Path) -> None:
    source = tmp_path / "kfp-output"
    source.write_text("<html>")
    tracker.log_files({"report.html": source, "figures/loss.json": source})
    artifacts = tmp_path / "artifacts" / tracker.run_id / "artifacts"
    assert (artifacts / "report.html").read_text() == "<html>"
    assert (artifacts / "figures" / "loss.json").read_text() == "<html>"
    assert not any(path.is_symlink() for path in artifacts.rglob("*"))


@pytest.mark.parametrize("name", ["../escape", "/etc/absolute", ""])
def test_an_artifact_outside_the_run_is_refused(
    tracker: Tracker, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "file"
    source.touch()
    with pytest.raises(InputError, match="relative path inside the run"):
        tracker.log_files({name: source})


def test_a_missing_file_is_named(tracker: Tracker, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"artifact 'report.html': there is no file .*absent"):
        tracker.log_files({"report.html": tmp_path / "absent"})


def test_an_artifact_store_that_fails_is_named(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file in place of the folder")
    with pytest.raises(ServiceError, match="MLflow at sqlite"):
        tracker.log_files({"report.html": Path(__file__)})


def test_a_candidate_is_logged(uri: str, tracker: Tracker) -> None:
    log_candidates(tracker, [candidate(41, generation=3, robust_accuracies=[0.3, 0.4])])
    run = nested_runs(uri, tracker)["g003-c00041"]
    assert run.info.start_time == 1_700_000_000_250
    assert run.info.end_time == 1_700_000_002_750
    assert run.info.status == "FINISHED"
    assert run.data.params == {"theta": "0.5, -1.25, 41.0"}
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("taylorglo.")}
    assert tags == {
        "taylorglo.stage": "candidate",
        "taylorglo.generation": "3",
        "taylorglo.trial": "41",
        "taylorglo.status": "ok",
        "taylorglo.reason": "",
    }
    assert run.data.metrics["fitness"] == 0.75
    assert run.data.metrics["coefficient_c_0"] == 4.0
    assert run.data.metrics["coefficient_c_h"] == -1.5
    assert run.data.metrics["seconds"] == 2.5
    assert history(uri, run.info.run_id, "validation_accuracy") == [(100, 0.5), (200, 0.75)]
    assert history(uri, run.info.run_id, "validation_loss") == [(100, 1.5), (200, 0.9)]
    assert history(uri, run.info.run_id, "attempt_accuracy") == [(0, 0.7), (1, 0.8)]
    assert history(uri, run.info.run_id, "attempt_robust_accuracy") == [(0, 0.3), (1, 0.4)]


def test_a_candidate_without_a_result_is_left_out(uri: str, tracker: Tracker) -> None:
    untrained = candidate(0).model_copy(update={"result": None})
    log_candidates(tracker, [untrained, candidate(1)])
    assert set(nested_runs(uri, tracker)) == {"g001-c00001"}


def test_a_long_curve_is_kept_whole(uri: str, tracker: Tracker) -> None:
    curve = [(step, 0.5, 1.0) for step in range(1200)]
    log_candidates(tracker, [candidate(0, curve=curve)])
    run_id = nested_runs(uri, tracker)["g001-c00000"].info.run_id
    assert history(uri, run_id, "validation_loss") == [(step, 1.0) for step in range(1200)]


@pytest.mark.parametrize(
    ("status", "run_status"), [("ok", "FINISHED"), ("diverged", "FINISHED"), ("failed", "FAILED")]
)
def test_the_status_of_a_candidate_is_logged(
    uri: str, tracker: Tracker, status: str, run_status: str
) -> None:
    unmeasured = candidate(
        0,
        fitness=math.nan,
        status=status,
        reason="loss is nan",
        accuracies=[math.nan],
        curve=[(100, 0.1, math.inf), (200, math.nan, math.nan)],
    )
    log_candidates(tracker, [unmeasured])
    run = nested_runs(uri, tracker)["g001-c00000"]
    assert run.info.status == run_status
    assert run.data.tags["taylorglo.status"] == status
    assert set(run.data.metrics) == {
        "seconds",
        "validation_accuracy",
        "coefficient_c_0",
        "coefficient_c_h",
    }


def test_logging_twice_doubles_nothing(uri: str, tracker: Tracker) -> None:
    log_candidates(tracker, [candidate(trial) for trial in range(3)])
    before = nested_runs(uri, tracker)
    again = Tracker.attach(uri, tracker.run_id)
    log_candidates(again, [candidate(trial, fitness=0.1) for trial in range(5)])
    after = nested_runs(uri, tracker)
    assert set(after) == {f"g001-c{trial:05d}" for trial in range(5)}
    for name, run in before.items():
        assert after[name].to_dictionary() == run.to_dictionary()


def test_there_is_one_search_for_any_number_of_candidates(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = [candidate(trial) for trial in range(5)]
    log_candidates(tracker, candidates)
    calls: list[str] = []
    for name in ("search_runs", "get_run", "create_run", "log_batch", "set_terminated"):
        real = getattr(MlflowClient, name)

        def counted(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
            calls.append(_name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, counted)
    log_candidates(tracker, candidates)
    assert calls == ["search_runs"]


@pytest.mark.parametrize("cut_off_at", ["log_batch", "set_terminated"])
def test_a_candidate_that_was_cut_off_half_way_is_completed(
    uri: str, tracker: Tracker, cut_off_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, cut_off_at, killed)
        with pytest.raises(KeyboardInterrupt):
            log_candidates(tracker, [candidate(0)])
    assert nested_runs(uri, tracker)["g001-c00000"].info.status == "RUNNING"
    log_candidates(tracker, [candidate(0)])
    run = nested_runs(uri, tracker)["g001-c00000"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["fitness"] == 0.75
    assert run.data.metrics["coefficient_c_0"] == 4.0
    assert run.data.metrics["coefficient_c_h"] == -1.5
    assert history(uri, run.info.run_id, "validation_loss") == [(100, 1.5), (200, 0.9)]


def test_generations_and_parents_do_not_mix(uri: str, tracker: Tracker) -> None:
    other = Tracker.open(uri, "digits", run_name="other")
    log_candidates(tracker, [candidate(0)])
    log_candidates(tracker, [candidate(1, generation=2)])
    log_candidates(other, [candidate(0)])
    assert set(nested_runs(uri, tracker)) == {"g001-c00000", "g002-c00001"}
    assert set(nested_runs(uri, other)) == {"g001-c00000"}


def test_a_baseline_is_logged(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"weights")
    run_id = log_baseline(tracker, source)
    run = nested_runs(uri, tracker)["cross-entropy"]
    assert run.info.run_id == run_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["taylorglo.stage"] == "baseline"
    assert run.data.params == {"learning_rate": "0.1"}
    assert run.data.metrics == {"test_accuracy": 0.97, "validation_accuracy": 0.97}
    assert history(uri, run_id, "validation_accuracy") == [(100, 0.5), (200, 0.97)]
    stored = tmp_path / "artifacts" / run_id / "artifacts" / "network.safetensors"
    assert stored.read_bytes() == b"weights"


def test_a_changed_baseline_replaces_the_earlier_run(uri: str, tracker: Tracker) -> None:
    log_baseline(tracker, Path(__file__), 0.5)
    tracker.log_final("baseline", "squared-error", params={}, metrics={}, curves={}, files={})
    tracker.log_final("champion", "champion", params={}, metrics={}, curves={}, files={})
    log_candidates(tracker, [candidate(0)])
    second = log_baseline(tracker, Path(__file__))
    runs = nested_runs(uri, tracker)
    assert set(runs) == {"cross-entropy", "squared-error", "champion", "g001-c00000"}
    assert runs["cross-entropy"].info.run_id == second
    assert runs["cross-entropy"].data.metrics["test_accuracy"] == 0.97


def test_an_unchanged_baseline_keeps_the_earlier_run(uri: str, tracker: Tracker) -> None:
    first = log_baseline(tracker, Path(__file__))
    assert log_baseline(tracker, Path(__file__)) == first
    assert history(uri, first, "validation_accuracy") == [(100, 0.5), (200, 0.97)]


def test_a_baseline_that_was_cut_off_half_way_is_replaced(uri: str, tracker: Tracker) -> None:
    first = log_baseline(tracker, Path(__file__))
    MlflowClient(tracking_uri=uri).update_run(first, status="RUNNING")
    assert log_baseline(tracker, Path(__file__)) != first
    assert set(nested_runs(uri, tracker)) == {"cross-entropy"}


def test_a_failed_upload_leaves_the_earlier_run(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    first = log_baseline(tracker, Path(__file__))
    with pytest.raises(InputError, match="there is no file"):
        log_baseline(tracker, tmp_path / "absent")
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(first).info.lifecycle_stage == "active"
    log_baseline(tracker, Path(__file__))
    assert set(nested_runs(uri, tracker)) == {"cross-entropy"}
