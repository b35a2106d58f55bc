"""The live view of a local run: what runs now and how far it is, below the lines for a person.

It is written here, because it is two lines of text: no library that is installed with the command
line has such a view, click's progress bar is one line that does not know of other output, and a
resized terminal is easier to keep clean by one's own escape sequences.
"""

import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

from taylorglo.errors import printable
from taylorglo.report.text import duration
from taylorglo.tasks.console import Progress
from taylorglo_pipelines.config import Config

# What each task of the pipeline does, by the name that kfp prints.
TASKS: Mapping[str, str] = {
    "check-inputs": "checking the settings",
    "prepare-dataset": "preparing the data",
    "open-sweep": "opening the study",
    "evaluate-baselines": "tuning the baselines",
    "search-candidates": "searching",
    "propose-candidates": "drawing candidates",
    "filter-candidates": "filtering candidates",
    "evaluate-candidates": "training candidates",
    "train-champion": "training the champion and the baselines",
    "attack": "attacking the networks",
    "report": "writing the report",
}
# kfp numbers tasks of the same component: evaluate-candidates-3.
_EXECUTING = re.compile(r"Executing task '([a-z-]+?)(?:-\d+)?'")
_TICK = 0.5  # seconds between two looks at the clock
_COLUMNS = 80  # of a terminal that does not say
_BAR = 24  # columns at most
_LEAST_BAR = 6
_LEAST_SECONDS = 2.0  # of training, before the time that is left is estimated


def is_live(terminal: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a stream is a terminal that shows a live view, and no CI system's."""
    dumb = environment.get("TERM", "") in ("", "dumb")
    return not dumb and not environment.get("CI") and terminal.isatty()


def task_of(line: str) -> str:
    """Return what a task does, if a line is kfp's message that it begins, else an empty text."""
    match = _EXECUTING.search(line)
    return TASKS.get(match[1], match[1]) if match else ""


def planned_steps(config: Config) -> dict[str, int]:
    """Return the training steps of each part of a sweep, by its name in messages of progress."""
    baselines, seeds = config.baselines, config.champion.seeds
    contenders = len(baselines.losses)
    if "label-smoothing" in baselines.losses:
        contenders += len(baselines.label_smoothing) - 1
    short = config.evaluation.steps * config.evaluation.attempts
    attempts = config.training.steps * baselines.attempts
    finalists = config.champion.finalists
    return {
        "baselines": contenders * len(baselines.learning_rates) * attempts,
        "search": config.pipeline.generations * config.search.popsize * short,
        "finalists": (finalists + 1 if finalists > 1 else 0) * attempts,
        "champion": (len(baselines.losses) + 1) * seeds * config.training.steps,
    }


class Estimate:
    """The time that the trainings of a sweep still take, by the speed of those so far.

    Trainings that were known from an earlier run say nothing of the speed.

    Args:
        steps: training steps of each part of the sweep.
    """

    def __init__(self, steps: Mapping[str, int]) -> None:
        self._steps = dict(steps)
        self._shares = dict.fromkeys(steps, 0.0)
        self._stage = ""
        self._began = 0.0
        self._past = (0.0, 0.0)
        self._now = (0.0, 0.0)

    def note(self, progress: Progress, now: float) -> None:
        """Note how far a stage is.

        Args:
            progress: the message of a task.
            now: the time in seconds, of a clock that never goes back.
        """
        steps = self._steps.get(progress.part)
        if steps is None or not progress.total:
            return
        if progress.stage != self._stage:
            self._past = (self._past[0] + self._now[0], self._past[1] + self._now[1])
            self._now = (0.0, 0.0)
            self._stage, self._began = progress.stage, now
        done = progress.span / progress.total
        self._shares[progress.part] = progress.start + done * progress.done
        self._now = (done * (progress.done - progress.known) * steps, now - self._began)
        # What came before in the pipeline is finished, even if it was shorter than planned.
        for part in self._steps:
            if part == progress.part:
                break
            self._shares[part] = 1.0

    def seconds(self) -> float | None:
        """Return the seconds that are left; None if nobody can know, or after the last training."""
        steps, seconds = (past + now for past, now in zip(self._past, self._now, strict=True))
        if steps <= 0 or seconds < _LEAST_SECONDS:
            return None
        left = sum(total * (1 - self._shares[part]) for part, total in self._steps.items())
        return left * seconds / steps if left > 0 else None


class Live:
    """Lines for a person on a terminal, and below them the live view, which vanishes at the end.

    Every method may be called from any thread, and by a signal's handler.

    Args:
        terminal: where lines go.
        estimate: of the time that is left.
        colour: whether the bar has a colour.
    """

    def __init__(self, terminal: TextIO, estimate: Estimate, *, colour: bool) -> None:
        self._terminal = terminal
        self._estimate = estimate
        self._colour = colour
        self._full, self._empty = _blocks(terminal.encoding)
        self._started = time.monotonic()
        self._task = ""
        self._progress: Progress | None = None
        self._drawn: list[int] = []  # the lengths of the lines on the terminal
        # A signal's handler may end the view while its thread holds the lock.
        self._lock = threading.RLock()
        self._ended = threading.Event()
        threading.Thread(target=self._tick, daemon=True).start()

    def write(self, line: str) -> None:
        """Print a line for a person above the view."""
        with self._lock:
            self._draw(line + "\n")

    def begin_task(self, words: str) -> None:
        """Show which task runs now."""
        with self._lock:
            self._task, self._progress = words, None
            self._draw()

    def show(self, progress: Progress) -> None:
        """Show how far the task is."""
        with self._lock:
            self._progress = progress
            self._estimate.note(progress, time.monotonic())
            self._draw()

    def end(self) -> None:
        """Remove the view. Lines are still printed, without one."""
        with self._lock:
            self._ended.set()
            self._draw()

    def _tick(self) -> None:
        """Draw anew from time to time, because time passes and the terminal may be resized."""
        # The terminal may be gone.
        with suppress(OSError):
            while not self._ended.wait(_TICK):
                with self._lock:
                    self._draw()

    def _draw(self, above: str = "") -> None:
        """Draw the view anew, below a line for a person if there is one."""
        columns = self._columns()
        lines = []
        if not self._ended.is_set():
            lines = [line[:columns] for line in self._lines(columns)]
        erase = self._erasing(columns + 1)
        self._drawn = list(map(len, lines))
        view = "\n".join(map(self._coloured, lines))
        # One write, so that the terminal never shows half of it.
        self._terminal.write(f"{erase}{above}{view}")
        self._terminal.flush()

    def _columns(self) -> int:
        """Return how long a line may be: the last column stays free, where terminals differ."""
        try:
            columns = os.get_terminal_size(self._terminal.fileno()).columns
        except OSError:
            columns = 0
        return max(2, columns or _COLUMNS) - 1

    def _erasing(self, columns: int) -> str:
        """Return what removes the view: a terminal that became narrower shows it in more rows."""
        if not self._drawn:
            return ""
        rows = sum(max(1, -(-length // columns)) for length in self._drawn)
        up = f"\x1b[{rows - 1}A" if rows > 1 else ""
        return f"\r{up}\x1b[J"

    def _lines(self, columns: int) -> list[str]:
        """Return the lines of the view, at most so many columns wide if that can be."""
        times = [duration(round(time.monotonic() - self._started)).replace(".0 s", " s")]
        left = self._estimate.seconds()
        if left is not None:
            times.append(_about(left))
        last = ", ".join(filter(None, [self._task, *times]))
        progress = self._progress
        if progress is None:
            return [last]
        stage = printable(progress.stage)
        words = [stage]
        if progress.total:
            words.append(f"{progress.done} of {progress.total}")
        if progress.best:
            words += [f"best {printable(progress.best)}", f"median {printable(progress.median)}"]
        while len("  ".join(words)) > columns and len(words) > 2:
            words.pop()
        room = min(_BAR, columns - len("  ".join(words)) - 2)
        if progress.total and room >= _LEAST_BAR:
            words.insert(1, self._bar(progress.done / progress.total, room))
        return ["  ".join(words), last]

    def _bar(self, share: float, columns: int) -> str:
        full = round(share * columns)
        return self._full * full + self._empty * (columns - full)

    def _coloured(self, line: str) -> str:
        if not self._colour:
            return line
        return re.sub(f"({re.escape(self._full)}+)", "\x1b[36m\\1\x1b[0m", line, count=1)


def _blocks(encoding: str) -> tuple[str, str]:
    """Return the characters of the full and of the empty part of a bar."""
    try:
        "█░".encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return "#", "."
    return "█", "░"


def _about(seconds: float) -> str:
    """Return the time that is left in words, no more exact than it is known."""
    if seconds < 60:
        return "less than a minute left"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"about {minutes} min left"
    return f"about {round(minutes / 60)} h left"
