"""The processes of a local run's tasks: how each is started, named if it is killed, and ended.

kfp's own way to start a task tells nobody what killed it, and ends nothing. It also puts the path
of Python in place of every ``python3``, even in the name of a folder.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

from kfp.local import subprocess_task_handler

from taylorglo.tasks import console
from taylorglo.training.server import is_worthwhile
from taylorglo_pipelines.local.warm import Warm, WarmTask

# A locale without the signs of our texts is that of the terminal, and not of a task.
_OF_A_TASK = {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}

_Process = subprocess.Popen[str] | WarmTask


class Processes:
    """The task processes of this process that are running."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[_Process] = set()
        self._ended = False
        self._warm: Warm | None = None

    def warm_up(self) -> None:
        """Make the imports of tasks in a process that later tasks are forked from, if that helps.

        It is for Linux alone: other systems' libraries do not bear that they are forked.
        """
        if sys.platform == "linux" and is_worthwhile():
            self._warm = Warm({**os.environ, **_OF_A_TASK})

    def run(self, full_command: Sequence[str], env_vars: Mapping[str, str] | None = None) -> int:
        """Run a task to its end, print its output, and return its exit status.

        If it ends without having said why, a line with the reason is printed.

        Args:
            full_command: words of the command; kfp names this argument.
            env_vars: variables of the task besides those of this process; kfp names it so.
        """
        # The user's own random.py or statistics.py in the current folder is not Python's.
        environment = {**os.environ, **(env_vars or {}), **_OF_A_TASK}
        with self._start(full_command, environment) as process:
            with self._lock:
                self._running.add(process)
                if self._ended:
                    _kill(process)
            # Workers that outlive the task would keep its output open for seconds, or for good.
            ending = threading.Thread(target=_end_workers, args=(process,), daemon=True)
            ending.start()
            said, last = False, ""
            for line in process.stdout or ():
                print(line, end="")
                message = console.parse(line.strip())
                said |= message is not None and message.is_error
                last = line.strip() or last
            ending.join()
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        if status and not said and not self._ended:
            name = _option(full_command, "--function_to_execute")
            reason = _reason(name, status, last)
            print(f"{console.PREFIX} {console.ERROR} {console.UNEXPECTED} end: {reason}")
        return status

    def _start(self, words: Sequence[str], environment: Mapping[str, str]) -> _Process:
        """Start a task: forked, if it can be."""
        if self._warm and (task := self._warm.start(words, environment)):
            return task
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
            bufsize=1,
            env=environment,
            # A task has a process group of its own, so that its workers can be ended with it.
            start_new_session=True,
        )

    def end(self) -> None:
        """Kill every task with its workers; none is started any more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                _kill(process)
            if self._warm:
                self._warm.close()
                self._warm = None


@contextlib.contextmanager
def started_by(processes: Processes) -> Iterator[None]:
    """Let kfp's runner start tasks by :class:`Processes` for the block."""
    names = ("run_local_subprocess", "replace_python_executable")
    originals = {name: getattr(subprocess_task_handler, name) for name in names}
    try:
        subprocess_task_handler.run_local_subprocess = processes.run
        subprocess_task_handler.replace_python_executable = _with_executable
        yield
    finally:
        for name, original in originals.items():
            setattr(subprocess_task_handler, name, original)


def _with_executable(full_command: Sequence[str], new_executable: str) -> list[str]:
    """Return a command that begins with another Python; the arguments stay as they are."""
    return [new_executable, *full_command[1:]]


def _kill(process: _Process) -> None:
    """Kill a task and its workers, if there are any."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end_workers(process: _Process) -> None:
    """Wait for the end of a task, then kill those of its workers that are left."""
    process.wait()
    _kill(process)


def _option(command: Sequence[str], name: str) -> str:
    """Return the value of an option of a command."""
    return dict(itertools.pairwise(command)).get(name, "")


def _reason(task: str, status: int, last: str) -> str:
    """Return why a task ended that did not say it.

    Args:
        task: its name.
        status: its exit status; the negative number of a signal if one killed it.
        last: the last line that it printed.
    """
    if status == -signal.SIGKILL:
        return (
            f"the task {task} was killed by SIGKILL, probably because memory ran out; lower "
            "training.workers or training.batch_size, or free memory, and run the same command "
            "again: it goes on from here"
        )
    if status < 0:
        return f"the task {task} was killed by {signal.Signals(-status).name}"
    said = f"; the last that it printed is: {last}" if last else " and printed nothing"
    return f"the task {task} ended with exit status {status}{said}"
