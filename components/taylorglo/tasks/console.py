"""How a task talks to the terminal: lines with a prefix, which the local runner passes on."""

import functools
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

from taylorglo.errors import TaylorgloError, explained, printable
from taylorglo.variables import LOCAL_RUN, WATCHED

PREFIX = "taylorglo:"
ERROR = "error:"
PROGRESS = "taylorglo-progress:"
# How the line of an error begins that no code of ours expected: the log has its traceback.
UNEXPECTED = "unexpected"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Line(NamedTuple):
    """A line that a task printed for a person."""

    text: str
    is_error: bool


class Progress(NamedTuple):
    """How far a task is, for a person who watches the run.

    Attributes:
        stage: what is done now, in words, such as ``generation 2/8``.
        done: number of trainings that are finished, of ``total``.
        total: number of trainings of the stage; 0 if it has none.
        known: how many of those that are done were known before the stage began.
        part: the part of the sweep that the stage belongs to, by which its time is estimated;
            empty if it has no trainings.
        start: the share of the part that came before the stage, in [0, 1].
        span: the share of the part that the stage is.
        best: the best fitness so far as text; empty if there is none.
        median: the median of the fitnesses so far as text.
    """

    stage: str
    done: int = 0
    total: int = 0
    known: int = 0
    part: str = ""
    start: float = 0.0
    span: float = 1.0
    best: str = ""
    median: str = ""


class _Valve:
    """Lets through each new stage, its last message, and five messages a second at most."""

    SECONDS = 0.2

    def __init__(self) -> None:
        self._stage = ""
        self._next = 0.0

    def passes(self, progress: Progress) -> bool:
        """Return whether a message is to be printed."""
        now = time.monotonic()
        is_news = progress.stage != self._stage or progress.done >= progress.total
        if not is_news and now < self._next:
            return False
        self._stage, self._next = progress.stage, now + self.SECONDS
        return True


_valve = _Valve()


def is_watched() -> bool:
    """Return whether somebody watches the run."""
    return bool(os.environ.get(WATCHED))


def show(progress: Progress) -> None:
    """Print how far the task is, if somebody watches the run; the line is in no log."""
    if is_watched() and _valve.passes(progress):
        print(f"{PROGRESS} {json.dumps(progress)}", flush=True)


def parse_progress(line: str) -> Progress | None:
    """Return what :func:`show` printed, or None if a line is something else."""
    if not line.startswith(PROGRESS):
        return None
    try:
        return Progress(*json.loads(line.removeprefix(PROGRESS)))
    except (TypeError, ValueError):
        # Two tasks may have printed at a time.
        return None


def say(text: str) -> None:
    """Print lines of progress."""
    for line in text.splitlines():
        print(f"{PREFIX} {printable(line)}", flush=True)


class _Speaker(logging.Handler):
    """Prints log records as lines of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def say_warnings() -> None:
    """Let a person see the warnings of this package, such as that a service is waited for."""
    logger = logging.getLogger("taylorglo")
    logger.handlers = [_Speaker(logging.WARNING)]
    logger.propagate = False


def parse(line: str) -> Line | None:
    """Return what a line of a task's output says to a person, or None if it is other output."""
    if not line.startswith(PREFIX):
        return None
    text = line.removeprefix(PREFIX).removeprefix(" ")
    if text.startswith(ERROR):
        return Line(text.removeprefix(ERROR).lstrip(), is_error=True)
    return Line(text, is_error=False)


def task(body: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function the body of a task: an error ends it with status 2, in one line for a person.

    The traceback of an error that is not for users goes to the log.
    """

    @functools.wraps(body)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return body(*args, **kwargs)
        except TaylorgloError as error:
            message = str(error)
        except Exception as error:
            traceback.print_exc()
            message = f"{UNEXPECTED} {explained(error)}"
        for line in message.splitlines():
            say(f"{ERROR} {line}")
        sys.exit(2)

    return run


def end_with_runner() -> None:
    """Let this process end when the local runner ends: a killed run must not train on unseen."""
    if not os.environ.get(LOCAL_RUN):
        return
    output = select.poll()
    # The runner reads what a task prints. The system closes that pipe when the runner ends, in
    # whatever way, and wakes this thread at once. The runner's process id would be no help: it may
    # belong to a zombie, or to another process.
    output.register(sys.stdout.fileno(), 0)

    def watch() -> None:
        output.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
