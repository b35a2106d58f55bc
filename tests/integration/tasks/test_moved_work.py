"""A work folder that was moved, copied, or lost its store goes on."""

import shutil
from pathlib import Path

import pytest
from small_sweeps import (
    NO_ATTACK,
    Work,
    begin_generation,
    evaluation,
    full_training,
    mlflow_client,
)

import taylorglo
from taylorglo.services import layout
from taylorglo.tasks.champion import crown
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.report import write_report

TUNING = [full_training("cross-entropy", 0.6)]


def finish(sweep: Sweep, work: Work) -> None:
    """Search one generation, crown its champion and report it."""
    begin_generation(sweep, 1, [evaluation(sweep, value) for value in (0.5, 0.6, 0.7, 0.8)])
    outcome = crown(sweep, work.search_data, work.full_data, TUNING)
    files = {name: work.folder / name for name in (layout.LOSS, layout.NETWORK)}
    outcome.loss.save(files[layout.LOSS])
    outcome.save_network(files[layout.NETWORK])
    write_report(
        sweep,
        tuning=TUNING,
        comparison=outcome.comparison,
        robustness=NO_ATTACK,
        champion=files,
        page=work.folder / "page",
    )


@pytest.fixture(scope="module")
def reported(prepared: Work, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A work folder with a finished sweep and its champion in the registry."""
    work = Work(shutil.copytree(prepared.folder, tmp_path_factory.mktemp("reported") / "work"))
    with pytest.MonkeyPatch.context() as patch:
        work.name_services(patch)
        finish(work.open(1), work)
    return work


def places() -> set[str]:
    """Return the places of the artifacts of every run and version, and of the experiment."""
    client = mlflow_client()
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id])
    versions = client.search_model_versions("name = 'digits-loss'")
    return {
        experiment.artifact_location,
        *(run.info.artifact_uri for run in runs),
        *(version.source for version in versions),
    }


@pytest.mark.parametrize("copied", [False, True])
def test_mlflow_follows_a_work_folder_to_its_new_place(
    copied: bool,
    reported: Work,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reported.name_services(monkeypatch)
    theta = taylorglo.load_loss("models:/digits-loss@champion").theta.tolist()
    place = tmp_path / "a %41 new, place?"
    moved = Work(shutil.copytree(reported.folder, place))
    if not copied:
        reported.folder.rename(tmp_path / "not there")
        request.addfinalizer(lambda: (tmp_path / "not there").rename(reported.folder))
    moved.name_services(monkeypatch)
    capsys.readouterr()
    again = moved.open(1, search={"renew": True})
    assert "the store was moved: MLflow has " in capsys.readouterr().out
    assert again.standing is not None
    assert (again.standing.version, again.standing.theta) == ("1", theta)
    assert taylorglo.load_loss("models:/digits-loss@champion").theta.tolist() == theta
    assert all(uri.startswith(place.as_uri() + "/") for uri in places())
    # The second time, nothing is left to do.
    moved.open(1, search={"renew": True})
    assert "the store was moved" not in capsys.readouterr().out


def test_a_champion_whose_store_was_deleted_is_replaced(
    reported: Work,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = Work(shutil.copytree(reported.folder, tmp_path / "work"))
    work.name_services(monkeypatch)
    # Here MLflow follows the copy.
    work.open(1, search={"renew": True})
    shutil.rmtree(work.folder / "store")
    sweep = work.open(1, search={"renew": True})
    assert sweep.standing is not None
    assert "its loss.json cannot be read from" in sweep.standing.lost
    finish(sweep, work)
    output = capsys.readouterr().out
    assert "models:/digits-loss@champion is version 2 now, because version 1 is lost" in output
    assert taylorglo.load_loss("models:/digits-loss@champion").provenance["study"] == sweep.study
