"""Calls of ``taylorglo`` from several threads, each bounded in time, which all can be ended."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from error_lines import PREFIX

# They would put the runs into an experiment of other people, which must not be removed.
FOREIGN = ("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", "KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME")

See = Callable[[str], object]


class StoppedError(Exception):
    """The tests end: nothing is started or waited for any more."""


def say(text: str) -> None:
    """Print a line of progress; every thread may do so."""
    print(f"{datetime.now(UTC):%H:%M:%S}  {text}", file=sys.__stdout__, flush=True)


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        status: its exit status.
        lines: what it printed.
        errors: its standard error.
    """

    status: int
    lines: list[str]
    errors: str

    @property
    def output(self) -> str:
        """What it printed, as a text."""
        return "\n".join(self.lines)

    def failed(self) -> str:
        """Return the line with which a run ended that did not succeed."""
        assert self.status == 1, f"exit status {self.status}: {self.errors or self.output}"
        # Other libraries may have warned.
        assert "Traceback" not in self.errors, self.errors
        lines = [line for line in self.errors.splitlines() if line.startswith(PREFIX)]
        assert len(lines) == 1, f"should be one line of error: {self.errors or 'nothing'}"
        return lines[0].removeprefix(PREFIX)

    def succeeded(self) -> "Ended":
        """Return this command, which has to have succeeded."""
        assert self.status == 0, f"exit status {self.status}: {self.errors or self.output}"
        return self


class Commands:
    """Calls of ``taylorglo``, each a process that is killed when its time is up, or at the end.

    Attributes:
        ending: set at the end.
    """

    def __init__(self) -> None:
        self.ending = threading.Event()
        self._processes: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run(
        self,
        *words: str,
        seconds: float,
        see: See = lambda line: None,
        without: Iterable[str] = (),
    ) -> Ended:
        """Run a command to its end.

        Args:
            words: of the command line.
            seconds: that it may take.
            see: called with each line as soon as it is printed.
            without: variables of the environment that the command does not get.

        Raises:
            AssertionError: the time was up.
            StoppedError: the tests end.
        """
        env = {k: v for k, v in os.environ.items() if k not in (*FOREIGN, *without)}
        late = threading.Event()
        lines = []
        with tempfile.TemporaryFile("w+") as errors:
            with self.tracked(lambda: _started(words, env, errors)) as process:

                def kill() -> None:
                    late.set()
                    process.kill()

                timer = threading.Timer(seconds, kill)
                timer.start()
                try:
                    assert process.stdout is not None
                    for line in process.stdout:
                        lines.append(line.rstrip("\n"))
                        see(lines[-1])
                    status = process.wait()
                finally:
                    timer.cancel()
            errors.seek(0)
            ended = Ended(status, lines, errors.read())
        if self.ending.is_set():
            raise StoppedError
        last = lines[-1] if lines else "nothing"
        assert not late.is_set(), (
            f"taylorglo {words[0]}: has not ended after {seconds:.0f} s; its last line: {last}"
        )
        return ended

    @contextmanager
    def tracked(
        self, start: Callable[[], subprocess.Popen[str]]
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a process, which is killed at the end of the block, or of the tests."""
        with self._lock:
            if self.ending.is_set():
                raise StoppedError
            process = start()
            self._processes.add(process)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._processes.discard(process)

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            StoppedError: the tests end.
        """
        if self.ending.wait(seconds):
            raise StoppedError

    def end(self) -> None:
        """Kill every process, and let no other start."""
        with self._lock:
            self.ending.set()
            for process in self._processes:
                process.kill()


def _started(words: Iterable[str], env: Mapping[str, str], errors: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "taylorglo_pipelines.cli", *words],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        # Ctrl-C in the terminal is for the tests, which then kill the process.
        start_new_session=True,
    )
