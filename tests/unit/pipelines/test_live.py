"""The live view of a local run, on real pseudo-terminals."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache

import pytest
from terminals import Screen, Session, in_terminal

from taylorglo.tasks.console import Progress, parse_progress
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.local.live import Estimate, planned_steps, task_of

# A run as its output is, without tasks: lines for a person, lines of kfp, and messages of progress.
RUN = """
import sys, time
from pathlib import Path
from taylorglo.tasks import console
from taylorglo_pipelines.cli import main
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.local.runner import _log, _TaskOutput, _live_view, _writer

main(["inspect", "--help-me"])  # it sets the streams up
def message(*words):
    return f"{console.PROGRESS} {console.json.dumps(words)}\\n"

with _live_view(Config(), sys.stdout) as live, _log(Path("/dev/null")) as log:
    output = _TaskOutput(log, live.write if live else _writer(sys.stdout), live)
    output.write("12:00:00 - INFO - Executing task 'search-candidates'\\n")
    output.write("taylorglo: data: digits \\u00b1 1\\n")
    for done in range(9):
        output.write(message("generation 1/2", done, 8, 0, "search", 0, 0.5, "99.63%", "98.15%"))
        if __STEP__:
            sys.stdin.readline()
    output.write("taylorglo: generation 1/2  best 99.63%\\n")
print("the end")
"""
PLAIN = "data: digits ± 1\ngeneration 1/2  best 99.63%\nthe end\n"
Resize = Callable[[int], None]


def lines_of(session: Session) -> str:
    """Return the last screen without the error that set the streams up."""
    assert session.status == 0, session.written
    first, _, rest = session.screen.text.replace("\r", "").partition("--help)\n")
    assert "no such option" in first.replace("\n", "")
    return rest


@cache
def run(columns: int, **environment: str) -> Session:
    code = RUN.replace("__STEP__", "False")
    return in_terminal([sys.executable, "-c", code], columns, environment)


@pytest.mark.parametrize("columns", [200, 80, 60, 20, 2])
def test_the_view_vanishes_and_leaves_the_plain_lines_alone(columns: int) -> None:
    session = run(columns)
    assert "█" in session.written or columns < 40
    assert "\x1b[J" in session.written
    rest = session.screen.text.replace("\n", "").partition("--help)")[2]
    assert rest.replace(" ", "") == PLAIN.replace("\n", "").replace(" ", "")


def test_the_view_tells_what_runs_and_how_far_it_is() -> None:
    frames = run(80).written.split("\x1b[J")
    (frame,) = [frame for frame in frames if "4 of 8" in frame][:1]
    first, second = frame.replace("\r", "").split("\n")[-2:]
    for part in ("generation 1/2", "█", "░", "best 99.63%", "median 98.15%"):
        assert part in first
    assert second.startswith("searching, ")


def test_no_line_of_the_view_is_as_wide_as_a_narrow_terminal() -> None:
    frames = run(60, NO_COLOR="1").written.split("\x1b[J")
    views = [line for frame in frames for line in frame.split("\r\n") if " of 8" in line]
    assert views
    assert max(map(len, (view.partition("\r")[0] for view in views))) < 60


def test_no_color_is_honoured() -> None:
    assert run(80).screen.colours > 0
    plain = run(80, NO_COLOR="1")
    assert plain.screen.colours == 0
    assert "█" in plain.written
    # An empty value does not count, as https://no-color.org has it.
    assert run(80, NO_COLOR="").screen.colours > 0


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}, {"CI": "true"}])
def test_a_dumb_terminal_and_a_ci_system_get_plain_lines(environment: dict[str, str]) -> None:
    session = run(80, **environment)
    assert "\x1b" not in session.written
    assert lines_of(session) == PLAIN


def test_a_pipe_gets_plain_lines() -> None:
    code = RUN.replace("__STEP__", "False")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == PLAIN


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_has_other_characters(encoding: str) -> None:
    session = run(80, PYTHONIOENCODING=encoding, PYTHONUTF8="0", LC_ALL="C")
    assert "#" in session.written
    assert "█" not in session.written
    expected = PLAIN if encoding == "latin-1" else PLAIN.replace("±", "+-")
    assert lines_of(session) == expected


def test_a_terminal_that_is_resized_keeps_no_remains() -> None:
    widths = iter([70, 40, 25, 90, 30, 80, 120])

    def resize_and_go_on(
        screen: Screen, process: "subprocess.Popen[bytes]", resize: Resize
    ) -> None:
        # The view waits for a line after each message, and the echo of it is a new line.
        if "of 8" in screen.text and (width := next(widths, None)):
            resize(width)

    code = RUN.replace("if __STEP__:\n            sys.stdin.readline()", "time.sleep(0.6)")
    session = in_terminal([sys.executable, "-c", code], 100, {}, resize_and_go_on)
    assert next(widths, None) is None
    text = session.screen.text.replace("\n", "").partition("--help)")[2]
    assert text.replace(" ", "") == PLAIN.replace("\n", "").replace(" ", "")


class TestEstimate:
    def test_it_is_the_speed_of_the_trainings_so_far(self) -> None:
        estimate = Estimate({"baselines": 100, "search": 300})
        assert estimate.seconds() is None
        estimate.note(Progress("tuning", 0, 10, part="baselines"), 0)
        estimate.note(Progress("tuning", 10, 10, part="baselines"), 10)
        # 100 steps took 10 s, and there are 300 more.
        assert estimate.seconds() == pytest.approx(30)
        estimate.note(Progress("generation 1/2", 0, 5, part="search", span=0.5), 100)
        assert estimate.seconds() == pytest.approx(30)
        estimate.note(Progress("generation 1/2", 5, 5, part="search", span=0.5), 115)
        assert estimate.seconds() == pytest.approx(15)

    def test_trainings_that_were_known_say_nothing_of_the_speed(self) -> None:
        estimate = Estimate({"search": 100})
        estimate.note(Progress("generation 1/1", 8, 10, 8, part="search"), 0)
        estimate.note(Progress("generation 1/1", 9, 10, 8, part="search"), 5)
        assert estimate.seconds() == pytest.approx(5)

    def test_a_search_of_one_sweep_is_planned_in_training_steps(self) -> None:
        config = Config.model_validate(
            {
                "training": {"steps": 10},
                "evaluation": {"steps": 5, "attempts": 3, "give_up_step": 0},
                "search": {"popsize": 4},
                "baselines": {
                    "losses": ["cross-entropy", "label-smoothing"],
                    "learning_rates": [0.1, 0.2],
                    "label_smoothing": [0.1, 0.2, 0.3],
                    "attempts": 2,
                },
                "champion": {"finalists": 3, "seeds": 7},
                "pipeline": {"generations": 6},
            }
        )
        assert planned_steps(config) == {
            "baselines": (1 + 3) * 2 * 2 * 10,
            "search": 6 * 4 * 3 * 5,
            "finalists": 4 * 2 * 10,
            "champion": 3 * 7 * 10,
        }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("04:45:11.927 - INFO - Executing task 'evaluate-baselines'", "tuning the baselines"),
        ("04:45:11.927 - INFO - Executing task 'evaluate-candidates-12'", "training candidates"),
        ("04:45:20.327 - INFO - Task 'attack' finished with status SUCCESS", ""),
        ("", ""),
    ],
)
def test_kfp_tells_which_task_begins(line: str, words: str) -> None:
    assert task_of(line) == words


@pytest.mark.parametrize("line", ["taylorglo-progress: [", "taylorglo-progress: {}", "other"])
def test_half_a_message_of_progress_is_none(line: str) -> None:
    assert parse_progress(line) is None
