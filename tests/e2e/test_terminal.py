"""A sweep as a person sees it on a terminal, and the commands that tell of it afterwards."""

import json
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sweeps import LOSSES, Sweeps, mlflow_of, runs_of, tasks_alive, wait_until
from terminals import Screen, Session, in_terminal

from taylorglo.services import layout
from taylorglo.services.memo import RunState
from taylorglo.services.storage import FolderStore
from taylorglo_pipelines.cli import main

COLUMNS = 60
# One training at a time, so that there are screens in the middle of a generation.
SETTINGS = ("training.steps=150", "evaluation.steps=150", "training.workers=1")


@dataclass(frozen=True)
class Watched:
    """A sweep that was run in a terminal.

    Attributes:
        work: its folder of runs.
        session: what the terminal got.
        screens: different screens that a person saw, in their order.
    """

    work: Path
    session: Session
    screens: list[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    work = tmp_path_factory.mktemp("watched")
    screens: list[str] = []

    def see(screen: Screen, _: "subprocess.Popen[bytes]", __: Callable[[int], None]) -> None:
        if not screens or screens[-1] != screen.text:
            screens.append(screen.text)

    environment = {"TAYLORGLO_STUDY_URL": "", "TAYLORGLO_STORE_URI": ""}
    command = Sweeps(work, SETTINGS).command()
    return Watched(work, in_terminal(command, COLUMNS, environment, see), screens)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a command prints."""
    assert main(words) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line with which a command refuses its input."""
    assert main(words) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("taylorglo: error: ")
    assert output.out == ""
    return line


def test_the_last_screen_has_the_plain_lines_alone(watched: Watched) -> None:
    session = watched.session
    assert session.status == 0, session.written
    # A line that is wider than the terminal is in several rows.
    text = session.screen.text.replace("\n", "")
    plain = re.sub(r"\r|\x1b\[\d*[AJm]", "", session.written)
    assert text.startswith("taylorglo 0.")
    assert "No significant difference" in text or "The champion" in text
    assert "runs      " in text
    for of_the_view in ("█", "░", "searching", "of 16"):
        assert of_the_view not in text
        assert of_the_view in plain


def test_the_view_tells_of_each_training_within_a_generation(watched: Watched) -> None:
    seen = "\n".join(watched.screens)
    of = {int(done) for done in re.findall(r"^generation 1/2 .* (\d+) of 16\b", seen, re.M)}
    assert len(of) > 3
    assert re.search(r"^generation 2/2 .* of 16  best +\d\d\.\d\d%", seen, re.M)
    for words in (
        "preparing the data",
        "tuning the baselines",
        "choosing the champion",
        "training in full",
        "attacking the networks",
        "writing the report",
    ):
        assert words in seen, words
    views = re.findall(r"^generation \d/2.* of 16.*$", seen, re.M)
    assert max(map(len, views)) < COLUMNS


def test_messages_of_progress_are_in_no_log(watched: Watched) -> None:
    log = (watched.work / "logs" / "digits.log").read_text()
    assert "taylorglo-progress" not in log
    assert "Executing task 'report'" in log


def test_list_and_status_tell_of_a_finished_sweep(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    head, row = said(capsys, "list", str(watched.work)).splitlines()
    assert head.split() == [
        "SWEEP",
        "STATE",
        "GENERATION",
        "LAST",
        "(UTC)",
        "CHAMPION",
        "VERDICT",
    ]
    assert row.startswith("digits  finished  2 of 2      20")
    (listed,) = json.loads(said(capsys, "list", str(watched.work), "--json"))
    status = json.loads(said(capsys, "status", "--folder", str(watched.work), "--json"))
    assert listed == status
    assert (status["state"], status["generation"], status["generations"]) == ("finished", 2, 2)
    assert len(status["champion_scores"]) == 2
    assert f"{100 * status['champion_score']:.2f} ± " in row
    assert row.endswith(status["verdict"])
    text = said(capsys, "status", "digits", "--folder", str(watched.work))
    assert text.startswith("sweep       digits: finished\n")
    assert "generation  2 of 2: 4 of 4 candidates finished" in text


def test_a_sweep_compared_with_itself_has_no_difference(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("compare", "digits", "digits", "--folder", str(watched.work))
    text = said(capsys, *words)
    assert "Same data and same 2 seeds: p is that of the paired t-test" in text
    document = json.loads(said(capsys, *words, "--json"))
    assert document["test"] == "paired"
    assert [row["loss"] for row in document["losses"]] == LOSSES
    assert {row["difference"] for row in document["losses"]} == {0.0}
    assert {row["p_value"] for row in document["losses"]} == {1.0}


def test_an_attack_as_a_json_document(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    champion = watched.work / "store" / "digits" / "champion"
    settings = ("epsilons=[0.1]", "images=50", "pgd_steps=1", "pgd_restarts=1")
    words = [word for setting in settings for word in ("--set", setting)]
    document = json.loads(said(capsys, "attack", str(champion), *words, "--json"))
    assert {"fgsm", "worst"} < set(document["accuracies"])
    assert all(set(row) == {"0.0", "0.1"} for row in document["accuracies"].values())
    assert document["epsilon_unit"] == "L∞, pixels in [0, 1]"
    assert document["suspicions"] == []
    assert list(document["corruptions"]) == ["noise", "blur", "contrast"]
    assert all(len(accuracies) == 5 for accuracies in document["corruptions"].values())


def test_bad_input_is_one_line(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--folder", str(watched.work))
    assert "there is no sweep 'digit'" in refused(capsys, "status", "digit", *at)
    assert "there are: digits" in refused(capsys, "compare", "digits", "other", *at)
    for words in (
        ("list", str(tmp_path)),
        ("status", "--folder", str(tmp_path)),
        ("compare", "a", "b", "--folder", str(tmp_path / "none")),
    ):
        assert "is no folder of runs: there is no " in refused(capsys, *words)
    (tmp_path / "study.db").write_text("no database")
    assert "file is not a database" in refused(capsys, "list", str(tmp_path))


def test_the_results_of_a_damaged_file_are_refused_in_one_line(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    path = watched.work / "store" / layout.result("digits")
    content = path.read_bytes()
    try:
        path.write_bytes(content[:100])
        for words in (
            ("list", str(watched.work)),
            ("status", "digits", "--folder", str(watched.work)),
            ("compare", "digits", "digits", "--folder", str(watched.work)),
        ):
            assert "digits/result.json: is damaged" in refused(capsys, *words)
    finally:
        path.write_bytes(content)


def test_ctrl_c_leaves_the_terminal_sane_and_the_sweep_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "runs of mine"
    interrupted = threading.Event()

    def interrupt(
        screen: Screen, process: "subprocess.Popen[bytes]", _: Callable[[int], None]
    ) -> None:
        # A second signal would end it at once.
        is_due = re.search(r"^generation 1/2 .* [2-9] of 16", screen.text, re.M)
        if is_due and not interrupted.is_set():
            interrupted.set()
            text = said(capsys, "status", "--folder", str(work))
            assert text.startswith("sweep       digits: running\n")
            process.send_signal(signal.SIGINT)

    session = in_terminal(Sweeps(work, SETTINGS).command(), 80, {}, interrupt)
    assert session.status == 130, session.written
    wait_until(lambda: not tasks_alive(work), 4, "no task that trains on without its runner")
    text = session.screen.text
    assert "taylorglo: interrupted; what is finished is kept" in text
    assert "█" not in text
    assert "searching" not in text
    assert "digits: interrupted" in said(capsys, "status", "--folder", str(work))
    line = refused(capsys, "compare", "digits", "digits", "--folder", str(work))
    assert "sweep 'digits' is interrupted and has no result yet" in line
    (run,), _ = runs_of(mlflow_of(work))
    assert run.info.status == "KILLED"
    assert RunState.read(FolderStore(work / "store"), "digits").unfinished == run.info.run_id
