"""The server process that a task's worker processes are forked from, after its slow imports.

A task itself is not forked: it has threads, locks of the study, and perhaps a GPU. This module does
not import PyTorch, so that the server can begin before it.
"""

import contextlib
import multiprocessing
import os
import threading
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from taylorglo.training.machine import cpus, free_host_memory

# PyTorch's optimizers import torch._dynamo at their first step, which takes seconds.
_IMPORTS = ["taylorglo.training.engine", "torch._dynamo"]
_LEAST_MEMORY = 3 * 2**30  # bytes; with less, a task hardly has room for workers
GPUS = ("/dev/nvidiactl", "/dev/kfd")  # the files of NVIDIA's and AMD's drivers


def context() -> ForkServerContext:
    """Return what starts workers; the first of them starts the server, if it does not run yet."""
    forkserver.set_forkserver_preload(_IMPORTS)
    return multiprocessing.get_context("forkserver")


def start() -> None:
    """Start the server if this task probably trains in workers.

    Its imports then take place beside those of the task, and not after them. On one CPU this would
    save nothing, on a GPU most tasks train in their own process, and with little memory the room
    for PyTorch's code in another process is better left to a training.
    """
    has_gpu = any(Path(file).exists() for file in GPUS)
    if cpus() > 1 and free_host_memory() >= _LEAST_MEMORY and not has_gpu:
        context()
        forkserver.ensure_running()


def end_with(lifeline: Connection) -> None:
    """Let this worker end with the process that holds the other end of a pipe.

    Nothing is sent through the pipe. Its other end is closed by that process, or by the system when
    that process ends, in whatever way it does.
    """

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
