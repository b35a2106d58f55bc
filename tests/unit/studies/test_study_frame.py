"""The frame of the studies: cells that are computed once, whatever happens to the process."""

import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from taylorglo.errors import InputError

sys.path.append(str(Path(__file__).parents[2] / "studies"))

from studies import Cell, Row, Study, command

STUDIES = Path(__file__).parents[2] / "studies"
CELLS: list[Cell] = [{"letter": letter, "number": number} for letter in "ab" for number in (1, 2)]

# A study of which every cell says in the file LOG that it was begun, and waits for the file GO.
SCRIPT = """
import os, sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, {studies!r})
from studies import command

def compute(folder, cell):
    with (folder / "log").open("a") as log:
        log.write(f"{{cell['number']}} {{os.getpid()}}\\n")
    deadline = time.monotonic() + 60
    while cell["number"] > 1 and not (folder / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return [{{"square": cell["number"] ** 2}}]

def main(study, full):
    cells = [{{"number": number}} for number in range(5)]
    rows = study.rows(cells, partial(compute, Path({folder!r})))
    study.table("squares", ["number", "square"], [list(row.values()) for row in rows])

if __name__ == "__main__":
    command("squares", {version}, main)
"""


def compute(log: Path, cell: Cell) -> list[Row]:
    """Return two rows, and note that the cell was computed."""
    with log.open("a") as file:
        file.write(f"{cell['letter']}{cell['number']}\n")
    return [{"product": int(cell["number"]) * factor, "half": factor / 2} for factor in (3, 5)]


def of_all_types(cell: Cell) -> list[Row]:
    """Return a value of each type."""
    return [
        {"text": 'one, "two"', "empty": "", "flag": False, "whole": -3, "real": 1e-7, "one": 1.0},
    ]


def not_a_number(cell: Cell) -> list[Row]:
    """Return numbers that are not finite."""
    return [{"nothing": math.nan, "infinite": -math.inf}]


def ambiguous(cell: Cell) -> list[Row]:
    """Return a text that the file could not tell from a number."""
    return [{"text": "007"}]


def refused(cell: Cell) -> list[Row]:
    """Refuse the input, as the product does."""
    raise InputError("there are no such data")


def killed(cell: Cell) -> list[Row]:
    """Die, as if the machine had no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def computed(log: Path) -> Counter[str]:
    """Return how often each cell was computed."""
    return Counter(log.read_text().split())


def once(study: Path, log: Path) -> list[Row]:
    """Do the study of ``CELLS``, as a new process would."""
    return Study("once", 1, study).rows(CELLS, partial(compute, log))


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    """Write the study of the squares in a version."""

    def write(version: int = 1) -> Path:
        path = tmp_path / f"squares{version}.py"
        text = SCRIPT.format(studies=str(STUDIES), folder=str(tmp_path), version=version)
        path.write_text(text)
        return path

    return write


def run(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the study of the squares to its end."""
    arguments = [sys.executable, str(script), "--folder", str(folder)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Return whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_cell_is_computed_once(tmp_path: Path) -> None:
    log, study = tmp_path / "log", tmp_path / "study"
    first = once(study, log)
    assert once(study, log) == first
    assert computed(log) == dict.fromkeys(["a1", "a2", "b1", "b2"], 1)
    # In the order of the cells, whichever was ready first.
    assert [(row["letter"], row["number"], row["product"]) for row in first] == [
        (cell["letter"], cell["number"], int(cell["number"]) * factor)
        for cell in CELLS
        for factor in (3, 5)
    ]


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A folder with the study of ``CELLS`` and its log, and the rows of the study."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, once(folder / "study", folder / "log")


@pytest.mark.parametrize("lost", [1, 25, 70])
def test_half_a_cell_is_computed_again(
    whole_study: tuple[Path, list[Row]], tmp_path: Path, lost: int
) -> None:
    folder, first = whole_study
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    log, study = tmp_path / "log", tmp_path / "study"
    path = study / "rows.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    assert once(study, log) == first
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    kept = whole[:-lost].count(b",True\n")
    assert kept < 4
    assert sum(computed(log).values()) == 4 + 4 - kept


def test_values_keep_their_types(tmp_path: Path) -> None:
    cells: list[Cell] = [{"name": "x", "flag": True}]
    for _ in range(2):
        (row,) = Study("types", 1, tmp_path / "study").rows(cells, of_all_types)
        expected = {"name": "x", "flag": True, **of_all_types({})[0]}
        assert row == expected
        assert {key: type(value) for key, value in row.items()} == {
            key: type(value) for key, value in expected.items()
        }
    for _ in range(2):
        (row,) = Study("nan", 1, tmp_path / "nan").rows(cells, not_a_number)
        assert math.isnan(float(row["nothing"]))
        assert row["infinite"] == -math.inf


def test_a_text_that_looks_like_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'007' would be read as something else"):
        Study("text", 1, tmp_path).rows([{"cell": 1}], ambiguous)


def test_new_cells_join_the_old_ones(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "study"
    Study("once", 1, folder).rows(CELLS[:2], partial(compute, log))
    rows = Study("once", 1, folder).rows(CELLS[1:], partial(compute, log))
    assert [row["product"] for row in rows] == [6, 10, 3, 5, 6, 10]
    assert set(computed(log).values()) == {1}


def test_a_killed_study_goes_on(tmp_path: Path, script: Callable[..., Path]) -> None:
    folder, log = tmp_path / "study", tmp_path / "log"
    rows = folder / "rows.csv"
    process = subprocess.Popen(
        [sys.executable, str(script()), "--folder", str(folder)], stdout=subprocess.DEVNULL
    )
    try:
        # The header, and the two cells that do not wait.
        wait_for(lambda: rows.exists() and len(rows.read_text().splitlines()) == 3)
        wait_for(lambda: len(log.read_text().splitlines()) >= 3)
    finally:
        process.kill()
        process.wait()
    workers = {int(line.split()[1]) for line in log.read_text().splitlines()}
    wait_for(lambda: not any(map(alive, workers)))
    (tmp_path / "go").touch()
    result = run(script(), folder)
    assert result.returncode == 0, result.stderr
    begun = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert begun["0"] == begun["1"] == 1
    assert (folder / "squares.md").read_text().splitlines()[2:7] == [
        f"| {number} | {number**2} |" for number in range(5)
    ]
    assert "5 cells, 3 to compute" in result.stdout


def test_ctrl_c_ends_it_at_once(tmp_path: Path, script: Callable[..., Path]) -> None:
    folder, log = tmp_path / "study", tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, str(script()), "--folder", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # It is ignored if the tests run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 3)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "study-squares: stopped; the same command goes on from here\n"


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path,
    script: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "go").touch()
    folder, foreign, damaged = tmp_path / "study", tmp_path / "foreign", tmp_path / "damaged"
    assert run(script(), folder).returncode == 0
    foreign.mkdir()
    (foreign / "letter.txt").write_text("to a friend")
    shutil.copytree(folder, damaged)
    (damaged / "rows.csv").write_text("name,price,last\napple,3,True\n")
    for path, version, message in (
        (folder, 2, "has study 'squares' of version 1, and this is 'squares' of version 2"),
        (foreign, 1, "has files, but no meta.json of a study"),
        (damaged, 1, "has columns of something else (name, price, last)"),
    ):
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        monkeypatch.setattr(sys, "argv", ["squares", "--folder", str(path)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(script(version)), run_name="__main__")
        assert stopped.value.code == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert len(errors.splitlines()) == 1
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    study = Study("one", 1, tmp_path)
    with pytest.raises(InputError, match="another process is doing a study"):
        Study("one", 1, tmp_path)
    assert study.folder == tmp_path


def test_an_error_of_a_cell_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data"):
        Study("refused", 1, tmp_path).rows([{"cell": 1}], refused)
    assert not (tmp_path / "rows.csv").exists()


def test_a_killed_worker_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(study: Study, full: bool) -> None:
        study.rows([{"cell": 1}], killed)

    monkeypatch.setattr(sys, "argv", ["killed", "--folder", str(tmp_path / "study")])
    with pytest.raises(SystemExit) as stopped:
        command("killed", 1, main)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("study-killed: error: the system killed a process")


def test_a_table_names_its_command_and_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Study("widths", 1, tmp_path).table(
        "short", ["name", "width"], [["a longer name", 1.5], ["b", "2"]], caption="Medians, n = 3."
    )
    header, rule, first, second, _, *caption = (tmp_path / "short.md").read_text().splitlines()
    assert header == "| name | width |"
    assert rule == "| --- | --- |"
    assert (first, second) == ("| a longer name | 1.5 |", "| b | 2 |")
    text = " ".join(caption)
    assert text.startswith("(Medians, n = 3. `make study-widths`; ")
    assert " cores of " in text
    assert "torch 2." in text
    assert max(map(len, caption)) <= 120
    printed = capsys.readouterr().out.splitlines()
    assert printed[2:5] == ["  name           width", "  a longer name  1.5", "  b              2"]


def test_a_figure_is_written(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    Study("drawn", 1, tmp_path).figure("line", figure)
    assert "<svg" in (tmp_path / "line.svg").read_text()
