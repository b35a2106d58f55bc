"""Losses in MLflow's model registry, and loading a loss from there, from files and from the zoo."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

import taylorglo
from taylorglo.errors import InputError
from taylorglo.extras import MissingExtraError
from taylorglo.loss.filters import learnable, stable
from taylorglo.loss.functions import TaylorLoss
from taylorglo.results import StandingChampion
from taylorglo.services.layout import LOSS
from taylorglo.services.registry import zoo
from taylorglo.services.tracking import Tracker

THETA = [0.0, 0.0, 0.5, -1.25, 0.0, 2.0, 0.25, 0.0]
BETTER = [*THETA[:-1], 1.0]
NAME = "registry-loss"


def log_champion(tracker: Tracker, file: Path) -> str:
    """Log a file as the loss of a champion; return the id of the logged model."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return tracker.models.log_loss({LOSS: file}, digest=digest, tags={})


def logged_loss(tracker: Tracker, folder: Path, theta: list[float]) -> str:
    """Log the loss of a champion; return the id of the logged model."""
    path = folder / "saved.json"
    TaylorLoss(theta, classes=10, provenance={"learning_rate": 0.3}).save(path)
    return log_champion(tracker, path)


@pytest.fixture(params=["uri", "server"])
def mlflow(request: pytest.FixtureRequest) -> str:
    """Return the URI of an SQLite file, then of a server: they keep artifacts in two ways."""
    uri: str = request.getfixturevalue(request.param)
    return uri


def test_a_loss_is_registered_once_becomes_the_champion_and_is_loaded(
    mlflow: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    location = str(tmp_path / "artifacts") if mlflow.startswith("sqlite") else None
    tracker = Tracker.open(mlflow, "registry", run_name="first", artifact_location=location)
    assert tracker.standing_champion(NAME) is None
    model_id = logged_loss(tracker, tmp_path, THETA)
    # A report that is written again registers the same version and moves no alias.
    for _ in range(2):
        assert tracker.register_loss(NAME, model_id, "digits", THETA) == "1"
    assert tracker.standing_champion(NAME) is None
    for _ in range(2):
        assert tracker.move_champion(NAME, "1", standing=None)
    assert tracker.standing_champion(NAME) == StandingChampion(
        version="1", study="digits", theta=THETA, learning_rate=0.3
    )

    second = Tracker.open(mlflow, "registry", run_name="second")
    other = logged_loss(second, tmp_path, BETTER)
    assert tracker.register_loss(NAME, other, "digits.2", BETTER) == "2"
    # An alias that somebody else moved in between is left alone.
    assert not tracker.move_champion(NAME, "2", standing=None)
    assert not tracker.move_champion(NAME, "2", standing="7")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    assert taylorglo.load_loss(f"models:/{NAME}@champion").theta.tolist() == THETA
    assert tracker.move_champion(NAME, "2", standing="1")
    assert taylorglo.load_loss(f"models:/{NAME}@champion").theta.tolist() == BETTER
    assert taylorglo.load_loss(f"models:/{NAME}/1").theta.tolist() == THETA
    for model in (NAME, "absent"):
        tracker.set_champion(model, None)
    assert tracker.standing_champion(NAME) is None
    problems = {
        f"{NAME}@nobody": "alias nobody not found",
        "nobody/1": "not found",
        f"{NAME}/9": "not found",
        NAME: "should be models:/NAME@ALIAS or models:/NAME/VERSION",
    }
    for name, problem in problems.items():
        with pytest.raises(InputError, match=problem):
            taylorglo.load_loss(f"models:/{name}")
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == ""


def test_a_version_whose_run_was_deleted_is_registered_again(
    uri: str, tracker: Tracker, tmp_path: Path
) -> None:
    first = logged_loss(tracker, tmp_path, THETA)
    assert tracker.register_loss(NAME, first, "digits", THETA) == "1"
    MlflowClient(tracking_uri=uri).delete_run(tracker.run_id)
    second = Tracker.open(uri, "digits", run_name="second")
    again = logged_loss(second, tmp_path, THETA)
    assert second.register_loss(NAME, again, "digits", THETA) == "2"


def test_a_champion_that_is_no_loss_is_lost(tracker: Tracker, tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    standing = None
    for content in ("", "[]", "{}", '{"theta": [1, 2]}', '{"theta": "x"}'):
        path.write_text(content)
        model_id = log_champion(tracker, path)
        version = tracker.register_loss(NAME, model_id, content, THETA)
        assert tracker.move_champion(NAME, version, standing=standing)
        standing = version
        champion = tracker.standing_champion(NAME)
        assert champion is not None
        assert (champion.version, champion.theta) == (version, [])
        assert champion.lost.startswith(f"models:/{NAME}/{version}: is not a saved loss: ")


def test_a_champion_whose_file_is_gone_is_lost_and_registered_again(
    uri: str, tracker: Tracker, tmp_path: Path
) -> None:
    model_id = logged_loss(tracker, tmp_path, THETA)
    version = tracker.register_loss(NAME, model_id, "digits", THETA)
    tracker.move_champion(NAME, version, standing=None)
    for path in (tmp_path / "artifacts").rglob(LOSS):
        path.unlink()
    champion = tracker.standing_champion(NAME)
    assert champion is not None
    assert re.match(
        rf"models:/{NAME}/1: its loss\.json cannot be read from .*artifacts", champion.lost
    )
    # The version that is there already cannot be loaded, so it is no use.
    second = Tracker.open(uri, "digits", run_name="second")
    again = logged_loss(second, tmp_path, THETA)
    assert second.register_loss(NAME, again, "digits", THETA) == "2"
    assert second.move_champion(NAME, "2", standing="1")
    restored = second.standing_champion(NAME)
    assert restored is not None
    assert (restored.theta, restored.lost) == (THETA, "")


@pytest.mark.parametrize(
    ("provenance", "optimizer"), [({}, "sgd"), ({"optimizer": "adamw"}, "adamw")]
)
def test_the_standing_champion_has_the_optimizer_of_its_file(
    tracker: Tracker, tmp_path: Path, provenance: dict[str, str], optimizer: str
) -> None:
    path = tmp_path / "saved.json"
    TaylorLoss(THETA, classes=10, provenance={"learning_rate": 0.3, **provenance}).save(path)
    version = tracker.register_loss(NAME, log_champion(tracker, path), "digits", THETA)
    tracker.move_champion(NAME, version, standing=None)
    champion = tracker.standing_champion(NAME)
    assert champion is not None
    assert (champion.learning_rate, champion.optimizer) == (0.3, optimizer)


def test_a_registered_loss_needs_the_address_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is not set"):
        taylorglo.load_loss(f"models:/{NAME}@champion")


def test_a_loss_is_loaded_from_files(tmp_path: Path) -> None:
    path = tmp_path / LOSS
    TaylorLoss(THETA).save(path)
    assert taylorglo.load_loss(path).theta.tolist() == THETA
    assert taylorglo.load_loss(path.as_uri()).theta.tolist() == THETA
    with pytest.raises(InputError, match="no such file"):
        taylorglo.load_loss(tmp_path / "nothing.json")


@pytest.mark.parametrize("name", zoo())
def test_a_loss_of_the_zoo_can_learn_and_says_where_it_comes_from(name: str) -> None:
    loss = taylorglo.load_loss(f"zoo:{name}")
    assert loss.classes is not None
    for judge in (learnable, stable):
        assert judge(loss.theta.tolist(), loss.classes).accepted
    assert {"sweep", "seed", "data", "fingerprint", "model", "learning_rate", "taylorglo"} <= set(
        loss.provenance
    )


def test_the_zoo_is_its_folder() -> None:
    folder = Path(taylorglo.__file__).parent / "zoo"
    assert "digits" in zoo()
    assert zoo() == sorted(path.stem for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("zoo:nobody", ""),
        ("zoo:", ""),
        ("zoo:digit", "; did you mean 'zoo:digits'?"),
        ("zoo:digits.json", "; did you mean 'zoo:digits'?"),
        ("zoo:../zoo/digits", "; did you mean 'zoo:digits'?"),
    ],
)
def test_an_unknown_loss_of_the_zoo_is_refused_with_the_names(name: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        taylorglo.load_loss(name)
    known = ", ".join(f"zoo:{other}" for other in zoo())
    assert str(caught.value) == f"unknown loss {name!r}; the zoo has {known}{hint}"


def test_a_local_loss_needs_no_package_of_the_extra(tmp_path: Path) -> None:
    found = taylorglo.load_loss("zoo:digits")
    found.save(tmp_path / LOSS)
    script = """if True:
        import sys
        from taylorglo.services.registry import load_loss
        for source in sys.argv[1:]:
            print(load_loss(source).theta.tolist())
        extras = {"boto3", "botocore", "kfp", "mlflow", "optuna", "pydantic", "sqlalchemy"}
        print(sorted(extras & set(sys.modules)))
    """
    command = [sys.executable, "-c", script, LOSS, "zoo:digits"]
    process = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert process.stdout == 2 * f"{found.theta.tolist()}\n" + "[]\n"


@pytest.mark.parametrize(
    ("source", "feature", "package"),
    [
        ("s3://bucket/loss.json", "s3://bucket", "boto3"),
        ("models:/digits-loss@champion", "models:/digits-loss@champion", "mlflow"),
    ],
)
def test_a_source_whose_package_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch, source: str, feature: str, package: str
) -> None:
    # An entry of None makes Python report that there is no such package.
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        taylorglo.load_loss(source)
    assert str(caught.value) == (
        f"{feature} needs the package {package}, which is not installed: "
        "pip install 'taylorglo[pipeline]'"
    )


def test_importing_the_package_is_light() -> None:
    packages = {"torch", "mlflow", "boto3", "kfp"}
    code = f"import sys, taylorglo; print(sorted({packages} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"
