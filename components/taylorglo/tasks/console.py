"""How a task talks to the terminal: lines with a prefix, which the local runner passes on."""

import functools
import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

from taylorglo.errors import TaylorgloError, explained, printable
from taylorglo.variables import LOCAL_RUN

PREFIX = "taylorglo:"
ERROR = "error:"
# How the line of an error begins that no code of ours expected: the log has its traceback.
UNEXPECTED = "unexpected"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Line(NamedTuple):
    """A line that a task printed for a person."""

    text: str
    is_error: bool


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
