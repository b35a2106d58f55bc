"""The server process that a task's worker processes are forked from, after its slow imports.

A task itself is not forked: it has threads, locks of the study, and perhaps a GPU. This module does
not import PyTorch, so that the server can begin before it.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from taylorglo.training.machine import cpus, free_host_memory

# PyTorch's optimizers import torch._dynamo at their first step, which takes seconds.
_IMPORTS = ["taylorglo.training.engine", "torch._dynamo"]
_LEAST_MEMORY = 3 * 2**30  # bytes; with less, a task hardly has room for workers
GPUS = ("/dev/nvidiactl", "/dev/kfd")  # the files of NVIDIA's and AMD's drivers


def context() -> ForkServerContext:
    """Return what starts workers; the first of them starts the server, if it does not run yet."""
    forkserver.set_forkserver_preload(_IMPORTS)
    return multiprocessing.get_context("forkserver")


def is_worthwhile() -> bool:
    """Return whether imports in another process save time.

    On one CPU they would save nothing, and with little memory the room for PyTorch's code in
    another process is better left to a training.
    """
    return cpus() > 1 and free_host_memory() >= _LEAST_MEMORY


def start() -> None:
    """Start the server if this task probably trains in workers.

    Its imports then take place beside those of the task, and not after them. If this process has
    made the imports already, the server is a fork of it, and there is nothing to wait for. On a GPU
    most tasks train in their own process.
    """
    if not is_worthwhile() or any(Path(file).exists() for file in GPUS):
        return
    context()
    if all(module in sys.modules for module in _IMPORTS):
        # A tracker of shared memory needs none of the imports.
        resource_tracker.ensure_running()
        with _forked():
            forkserver.ensure_running()
    else:
        forkserver.ensure_running()


def end_with(lifeline: Connection) -> None:
    """Let this worker end with the process that holds the other end of a pipe.

    Nothing is sent through the pipe. Its other end is closed by that process, or by the system when
    that process ends, in whatever way it does.
    """

    def watch() -> None:
        with suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _forked() -> Iterator[None]:
    """Let Python's library fork this process for a while, instead of starting a new Python.

    This is for a process without threads: :mod:`taylorglo.components.warm` has just forked it.
    """
    original = util.spawnv_passfds

    def fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        process = os.fork()
        if process:
            return process
        try:
            for name in os.listdir("/proc/self/fd"):
                # The folder itself was open, too.
                with suppress(OSError):
                    if int(name) > 2 and int(name) not in passfds:
                        os.close(int(name))
            # The program of the server, which Python's library would have started with -c.
            exec(args[-1], {})  # noqa: S102
        finally:
            os._exit(0)

    util.spawnv_passfds = fork
    try:
        yield
    finally:
        util.spawnv_passfds = original
