"""One JSON document on standard output, the completion of words, and Optuna's dashboard."""

import json
import os
import shutil
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from servers import mlflow_database

from taylorglo.results import Champion, Evaluation, LossResult, SweepResult
from taylorglo.search.study import Search
from taylorglo.services.memo import RunState, read_result, write_result
from taylorglo.services.storage import FolderStore
from taylorglo.settings import SweepSettings
from taylorglo_pipelines.cli import COMMANDS, main
from taylorglo_pipelines.commands.run import document

CONFIG = str(Path(__file__).parents[3] / "pipelines" / "configs" / "digits.yaml")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """Return the JSON document that a command prints."""
    assert main([*words, "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return json.loads(output.out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line with which a command refuses its input."""
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def begin(folder: Path, name: str, **settings: Any) -> Search:
    """Begin a search as the task ``open`` does."""
    sweep = SweepSettings.model_validate({"name": name, "search": {"popsize": 4}, **settings})
    url = f"sqlite:///{folder / 'study.db'}"
    search = Search.begin(url, name, sweep.search, 0, sweep.identity("digits 0123"), num_classes=10)
    search.plan(3)
    return search


def result(name: str, scores: list[float | None], **changes: Any) -> SweepResult:
    """Return the result of a finished sweep with a champion of these scores."""
    values: dict[str, Any] = {
        "sweep": name,
        "study": name,
        "created": "2026-01-02T03:04:05+00:00",
        "complete": True,
        "seed": 0,
        "seeds": list(range(len(scores))),
        "data": "digits",
        "fingerprint": "0" * 64,
        "score": "accuracy",
        "table": "loss  test accuracy (%)",
        "verdict": "The champion is ahead.",
        "champion": Champion(theta=[1.0] * 8, order=3, fitness=0.5, generation=1, trial=0),
        "losses": [
            LossResult(loss="champion", learning_rate=0.1, label_smoothing=0, scores=scores)
        ],
        "seconds": 1.0,
    }
    return SweepResult.model_validate({**values, **changes})


def evaluation(status: str) -> Evaluation:
    """Return the result of a training that ended in this way."""
    return Evaluation.model_validate(
        {
            "status": status,
            "fitness": 0.5,
            "accuracies": [0.5],
            "robust_accuracies": [],
            "curve": [],
            "started": 0.0,
            "ended": 1.0,
            "seconds": 1.0,
        }
    )


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a finished sweep ``one`` and sweeps to compare it with."""
    folder = tmp_path_factory.mktemp("runs")
    store = FolderStore(folder / "store")
    for name in ("one", "two", "three", "four", "begun"):
        begin(folder, name)
    write_result(store, result("one", [0.90, 0.92, 0.91]))
    write_result(store, result("two", [0.91, 0.93, 0.93]))
    write_result(store, result("three", [0.91, 0.93, None], seeds=[7, 8, 9]))
    write_result(store, result("four", [0.5, 0.6, 0.7], fingerprint="1" * 64))
    return folder


@pytest.fixture
def folder(untouched: Path, tmp_path: Path) -> Path:
    """A copy of the folder of runs."""
    return shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)


class TestInspect:
    def test_a_theta(self, capsys: pytest.CaptureFixture[str]) -> None:
        document = printed(capsys, "inspect", "0", "0", "0", "-1", "0", "2", "0", "0")
        assert document["theta"] == [0, 0, 0, -1, 0, 2, 0, 0]
        # Squared error: its drive is 2 whatever the number of classes is.
        assert (document["classes"], document["learning_drive"]) == (10, 2.0)
        assert document["verdicts"]["learnable"]["accepted"] is True

    def test_a_classic_loss(self, capsys: pytest.CaptureFixture[str]) -> None:
        document = printed(capsys, "inspect", "cross-entropy", "--classes", "4")
        assert (document["loss"], document["learning_drive"]) == ("cross-entropy", 4)
        assert document["equilibrium_confidence"] is None

    def test_a_loss_that_is_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "unknown loss" in refused(capsys, "inspect", "nothing", "--json")


def test_gc_lists_what_it_would_delete(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAYLORGLO_STUDY_URL", f"sqlite:///{folder / 'study.db'}")
    monkeypatch.setenv("TAYLORGLO_STORE_URI", str(folder / "store"))
    monkeypatch.setenv("TAYLORGLO_TRACKING_URI", f"sqlite:///{folder / 'mlruns.db'}")
    (folder / "mlruns.db").write_bytes(mlflow_database())
    document = printed(capsys, "gc")
    assert (document["deleted"], document["items"]) == (False, [])
    assert "one: unfinished, so all of its files are kept" in document["remarks"]


def test_the_document_of_a_run_has_numbers_and_no_table() -> None:
    finished = result("one", [0.9, 0.92])
    shown = document(finished, {"report": "store/one/report.html"})
    assert "table" not in shown
    assert shown["places"] == {"report": "store/one/report.html"}
    assert shown["losses"] == [loss.to_json() for loss in finished.losses]


def test_compile_tells_the_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.yaml"
    document = printed(capsys, "compile", CONFIG, "-o", str(path))
    assert document["bytes"] == path.stat().st_size


class TestCompare:
    def test_the_same_seeds_are_paired(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from scipy.stats import ttest_rel

        document = printed(capsys, "compare", "one", "two", "--folder", str(folder))
        (row,) = document["losses"]
        assert (document["test"], document["same_seeds"]) == ("paired", True)
        expected = ttest_rel([0.90, 0.92, 0.91], [0.91, 0.93, 0.93]).pvalue
        assert row["p_value"] == pytest.approx(expected)
        assert row["difference"] == pytest.approx(0.04 / 3)

    def test_other_seeds_are_tested_by_welch_unless_a_score_is_lacking(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        document = printed(capsys, "compare", "one", "three", "--folder", str(folder))
        (row,) = document["losses"]
        assert document["test"] == "welch"
        assert row["second"] == [0.91, 0.93, None]
        # The trainings that are left are the better ones.
        assert row["p_value"] is None
        write_result(FolderStore(folder / "store"), result("three", [0.8, 0.81], seeds=[7, 8]))
        assert main(["compare", "one", "three", "--folder", str(folder)]) == 0
        text = capsys.readouterr().out
        assert "Same data and other seeds: p is that of Welch's test" in text
        assert "−10.50" in text

    def test_other_data_are_not_tested(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        document = printed(capsys, "compare", "one", "four", "--folder", str(folder))
        assert (document["test"], document["same_data"]) == (None, False)
        assert document["losses"][0]["p_value"] is None
        assert document["losses"][0]["difference"] == pytest.approx(-0.31)

    def test_other_scores_have_no_difference(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_result(FolderStore(folder / "store"), result("two", [0.9], score="macro-f1"))
        document = printed(capsys, "compare", "one", "two", "--folder", str(folder))
        assert document["losses"][0]["difference"] is None
        assert "The scores are different ones (accuracy and macro-f1)" in document["remark"]

    def test_a_sweep_without_a_result(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = refused(capsys, "compare", "one", "begun", "--folder", str(folder))
        assert "sweep 'begun' is interrupted and has no result yet" in line


class TestStates:
    def test_every_state_is_told(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from taylorglo_pipelines.local.claim import only_run

        store = FolderStore(folder / "store")
        begin(folder, "two").finish()
        RunState(unfinished="id", study="three").write(store, "three")
        with only_run(folder, "four"):
            listed = printed(capsys, "list", str(folder))
        assert {sweep["sweep"]: sweep["state"] for sweep in listed} == {
            "begun": "interrupted",
            "four": "running",
            "one": "unfinished",
            "three": "interrupted",
            "two": "finished",
        }
        assert {sweep["generations"] for sweep in listed} == {3}

    def test_a_search_is_counted(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        search = begin(folder, "begun")
        search.propose(1)
        drawn = search.screen(1)
        status = printed(capsys, "status", "begun", "--folder", str(folder))
        assert (status["generation"], status["candidates_of_generation"]) == (1, 4)
        assert (status["candidates_finished"], status["candidates_trained"]) == (0, 0)
        assert status["candidates_rejected"] == sum(candidate.rejected for candidate in drawn)
        assert (status["best_fitness"], status["champion_score"]) == (None, None)

    def test_the_other_sweeps_are_listed_beside_a_damaged_one(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "store" / "one" / "result.json").write_text("{")
        assert main(["list", str(folder)]) == 2
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert "one/result.json: is damaged" in line
        assert [row.split()[0] for row in output.out.splitlines()[1:]] == [
            "begun",
            "four",
            "three",
            "two",
        ]

    def test_a_result_is_read_as_it_was_written(self, folder: Path) -> None:
        written = result("one", [0.5, None])
        write_result(FolderStore(folder / "store"), written)
        assert read_result(FolderStore(folder / "store"), "one") == written


class TestCompletion:
    @staticmethod
    def words(line: str, folder: Path) -> list[str]:
        """Return what bash would complete the last word of a line to."""
        process = subprocess.run(
            [sys.executable, "-m", "taylorglo_pipelines.cli"],
            env={
                **os.environ,
                "_TAYLORGLO_COMPLETE": "bash_complete",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split()) - (not line.endswith(" "))),
            },
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return [word.partition(",")[2] for word in process.stdout.split()]

    def test_commands_options_and_sweeps(self, tmp_path: Path) -> None:
        (tmp_path / "runs").mkdir()
        for name in ("digits", "mnist"):
            (tmp_path / "runs" / f".{name}.lock").touch()
        assert self.words("taylorglo ", tmp_path) == list(COMMANDS)
        assert self.words("taylorglo run --q", tmp_path) == ["--quiet"]
        assert self.words("taylorglo status ", tmp_path) == ["digits", "mnist"]
        assert self.words("taylorglo compare digits m", tmp_path) == ["mnist"]
        assert self.words("taylorglo status --folder nowhere d", tmp_path) == []

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_script_is_one_of_the_shell(self, shell: str) -> None:
        script = subprocess.run(
            [sys.executable, "-m", "taylorglo_pipelines.cli", "completion", shell],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "_TAYLORGLO_COMPLETE=" in script.stdout
        assert script.stderr == ""
        if shutil.which(shell):
            checked = subprocess.run([shell, "-n"], input=script.stdout, text=True, check=False)
            assert checked.returncode == 0

    def test_another_shell_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in refused(capsys, "completion", "tcsh")


@pytest.mark.parametrize(
    ("target", "variable"), [("ui", "UI_PORT"), ("dashboard", "DASHBOARD_PORT")]
)
def test_a_port_that_is_in_use_is_one_line_that_names_the_variable(
    target: str, variable: str, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "study.db").touch()
    # The set-up counts as done already.
    done = [
        word for name in ("installed", "installed-dashboard") for word in ("-o", f".venv/.{name}")
    ]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = [f"{variable}={port}", f"BIN={Path(sys.executable).parent}"]
        made = subprocess.run(
            ["make", "-f", str(Path(CONFIG).parents[2] / "Makefile"), *done, target, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert made.returncode == 2
    line, _ = made.stderr.splitlines()  # the second one is of make itself
    assert line.startswith(f"port {port} of 127.0.0.1 is in use")
    assert line.endswith(f"take another one: make {target} {variable}={port + 1}")


def test_optunas_dashboard_shows_a_search_with_its_names(tmp_path: Path) -> None:
    """The page of the dashboard asks for these addresses."""
    from optuna.storages import RDBStorage
    from optuna_dashboard import wsgi

    search = begin(tmp_path, "digits", evaluation={"score": "balanced-accuracy"})
    search.propose(1)
    trials = [candidate.trial for candidate in search.screen(1) if not candidate.rejected]
    assert trials[:2] == [0, 1]
    for trial, status in zip(trials, ("ok", "diverged"), strict=False):
        search.tell(trial, evaluation(status))
    application = wsgi(RDBStorage(f"sqlite:///{tmp_path / 'study.db'}"))

    def get(path: str) -> Any:
        statuses: list[str] = []
        environment = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": "after=0",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(),
            "wsgi.errors": sys.stderr,
        }
        body = b"".join(application(environment, lambda status, *_: statuses.append(status)))
        assert statuses == ["200 OK"], body
        return json.loads(body)

    (summary,) = get("/api/studies")["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == ("digits", ["maximize"])
    study = get(f"/api/studies/{summary['study_id']}")
    assert study["objective_names"] == ["validation balanced accuracy"]
    assert {"key": "generations", "value": "3"} in study["user_attrs"]
    names = {parameter["name"] for parameter in study["trials"][0]["params"]}
    assert names == set(search.space.names)
    of_trials = [
        {attribute["key"]: attribute["value"] for attribute in trial["user_attrs"]}
        for trial in study["trials"]
    ]
    assert [attributes.get("status") for attributes in of_trials[:2]] == ["trained", "diverged"]
