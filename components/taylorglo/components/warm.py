"""Starts the tasks of a local run from a process that has made their slow imports.

``python3 -m taylorglo.components.warm DESCRIPTOR`` imports what the task ``open`` needs, says that
it is ready, and forks a process for each request that comes through the socket of that descriptor.
Such a process becomes the task, as if ``python3 -m taylorglo.components`` had been started for it.
What later tasks need is imported meanwhile; a request waits for the import that is being made.

This process itself must never have a thread of Python's, a connection or a GPU: no operation of
PyTorch is run here, and no service is called. It ends, and every task with it, when the other end
of the socket is closed.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections import deque
from importlib import import_module
from typing import NamedTuple

# What the task ``open`` imports before it begins, and what it imports at its first use.
_FIRST_IMPORTS = (
    # The program itself comes first, because what is registered first is called last at the end.
    "taylorglo.components.__main__",
    "kfp.dsl.executor",
    "taylorglo.tasks.open",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
)
# What the tasks after it import, in their order.
LATER_IMPORTS = (
    "taylorglo.tasks.search",
    "taylorglo.tasks.baselines",
    "torch._dynamo",
    # Networks on the device ``meta`` need it.
    "torch._meta_registrations",
    "cmaes",
    "scipy.stats",
    "taylorglo.tasks.champion",
    "taylorglo.tasks.attack",
    "taylorglo.tasks.report",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
)
READY = b"ready"
MOST_BYTES = 100_000  # of a request: one message of a socket


class _Task(NamedTuple):
    """A request: the words after the program, variables, and where output and status go."""

    arguments: list[str]
    environment: dict[str, str]
    output: int
    answers: int


def main() -> None:
    """Serve requests; in a process that was forked for one, run its task."""
    control = socket.socket(fileno=int(sys.argv[1]))
    before = dict(os.environ)
    # kfp imports the part of itself that tasks need.
    os.environ["_KFP_RUNTIME"] = "true"
    task = _serve(control)
    if task is not None:
        # What the imported libraries have set belongs to every task.
        added = {name: value for name, value in os.environ.items() if before.get(name) != value}
        _become(task, added)
        import_module(_FIRST_IMPORTS[0]).run()


def _serve(control: socket.socket) -> _Task | None:
    """Import what tasks need, fork a process for each request, and tell how it ended.

    Of each process, its number is told, and later its exit status.

    Returns:
        In such a process, its task; None in this one, when the other end is closed.
    """
    for module in _FIRST_IMPORTS:
        import_module(module)
    awake, wake = os.pipe()
    os.set_blocking(awake, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    control.send(READY)
    to_import = deque(LATER_IMPORTS)
    answers: dict[int, int] = {}
    while True:
        patience = 0 if to_import else None
        readable, _, _ = select.select([control.fileno(), awake], [], [], patience)
        if awake in readable:
            os.read(awake, MOST_BYTES)
            _report_ends(answers)
        if control.fileno() in readable:
            message, descriptors, _, _ = socket.recv_fds(control, MOST_BYTES, 2)
            if not message:
                _end_all(answers)
                return None
            task = _Task(**json.loads(message), output=descriptors[0], answers=descriptors[1])
            process = os.fork()
            if not process:
                _leave(control, awake, wake, task.answers, *answers.values())
                return task
            # The task has a process group of its own, so that its workers can be ended with it.
            os.setpgid(process, process)
            os.close(task.output)
            answers[process] = task.answers
            _tell(task.answers, process)
        if to_import:
            # If it fails, the task that needs it tells why.
            with contextlib.suppress(Exception):
                import_module(to_import.popleft())


def _leave(control: socket.socket, *descriptors: int) -> None:
    """Give up, in a process that was forked, what belongs to the one that forks."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in descriptors:
        os.close(descriptor)
    control.close()


def _report_ends(answers: dict[int, int]) -> None:
    """Tell the exit statuses of the processes that have ended."""
    with contextlib.suppress(ChildProcessError):
        while answers:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            answer = answers.pop(process)
            _tell(answer, os.waitstatus_to_exitcode(status))
            os.close(answer)


def _tell(answer: int, number: int) -> None:
    # Whoever asked may be gone.
    with contextlib.suppress(BrokenPipeError):
        os.write(answer, f"{number}\n".encode())


def _end_all(answers: dict[int, int]) -> None:
    """Kill the tasks that are running, with their workers."""
    for process in answers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)


def _become(task: _Task, added: dict[str, str]) -> None:
    """Make this process what it would be if it had been started for the task."""
    for descriptor in (1, 2):
        os.dup2(task.output, descriptor)
    os.close(task.output)
    os.environ.clear()
    os.environ.update({**added, **task.environment})
    sys.argv = ["taylorglo.components", *task.arguments]


if __name__ == "__main__":
    main()
