"""Our end of the process that starts tasks after their slow imports (taylorglo.components.warm)."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self, TextIO

from taylorglo.components.warm import MOST_BYTES, READY

_PROGRAM = "taylorglo.components"


class WarmTask:
    """A task that was forked: what the runner needs of ``subprocess.Popen``.

    Args:
        answers: pipe on which the number of its process and later the exit status are told.
        stdout: pipe of its output.

    Attributes:
        pid: number of its process, which is that of its process group, too; 0 before it has begun.
        stdout: its output.
    """

    def __init__(self, answers: int, stdout: int) -> None:
        self._answers = os.fdopen(answers, encoding="ascii")
        self._status: int | None = None
        self.stdout: TextIO = os.fdopen(stdout, encoding="utf-8", errors="backslashreplace")
        self.pid = 0

    def __enter__(self) -> Self:
        """Return this task, whose pipes are closed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the pipes."""
        self.close()

    def has_begun(self) -> bool:
        """Wait for the number of the process, and return whether it was told."""
        self.pid = int(self._answers.readline() or 0)
        return self.pid > 0

    def wait(self) -> int:
        """Wait for the end; return the exit status, which is negative if a signal ended it.

        If the process that forked it is killed, it counts as killed as well.
        """
        if self._status is None:
            self._status = int(self._answers.readline() or -signal.SIGKILL)
        return self._status

    def close(self) -> None:
        """Close the pipes."""
        self._answers.close()
        self.stdout.close()


class Warm:
    """The process that forks tasks. It is of use when its imports are made, and not before.

    If this process is killed, that one ends with all tasks that it has forked.

    Args:
        environment: variables of that process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ready = False
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{_PROGRAM}.warm", str(other.fileno())],
                stdin=subprocess.DEVNULL,
                # If an import fails, the task that is started without it tells why.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=[other.fileno()],
                # The terminal's signals are for the runner, which ends this process.
                start_new_session=True,
            )

    def close(self) -> None:
        """End the process. The tasks that it has forked have ended before."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> WarmTask | None:
        """Start a task.

        Args:
            words: of its command.
            environment: its variables.

        Returns:
            None if it must be started in another way.
        """
        program = [sys.executable, "-m", _PROGRAM]
        if list(words[: len(program)]) != program or not self._is_ready():
            return None
        request = {"arguments": words[len(program) :], "environment": dict(environment)}
        message = json.dumps(request).encode()
        return self._ask(message) if len(message) <= MOST_BYTES else None

    def _is_ready(self) -> bool:
        if not self._ready and select.select([self._control], [], [], 0)[0]:
            self._ready = self._control.recv(len(READY)) == READY
        return self._ready

    def _ask(self, message: bytes) -> WarmTask | None:
        """Ask for a process; return None if the other end is gone."""
        own_stdout, stdout = os.pipe()
        own_answers, answers = os.pipe()
        task = WarmTask(own_answers, own_stdout)
        with suppress(OSError):
            socket.send_fds(self._control, [message], [stdout, answers])
        # Ours are closed before an answer is waited for, which may never come.
        os.close(stdout)
        os.close(answers)
        if task.has_begun():
            return task
        task.close()
        return None
