"""The server that workers are forked from is started early, where that saves time."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pids import is_running

from taylorglo.training.server import GPUS
from taylorglo.variables import CPUS

EARLY = """
import os, sys
from pathlib import Path
from taylorglo.training import server

server.start()
assert "torch" not in sys.modules
children = Path("/proc/self/task/{}/children".format(os.getpid())).read_text()
print(len(children.split()))
"""

FORKED = """
import taylorglo.training.engine, torch._dynamo
from multiprocessing import forkserver
from taylorglo.training import server

server.start()
worker = server.context().Process(target=print, args=("a worker",), kwargs={"flush": True})
worker.start()
worker.join()
assert worker.exitcode == 0
print(forkserver._forkserver._forkserver_pid)
"""


def children_after_start(cpus: int) -> int:
    """Return how many processes a new process has started after the early start of its server."""
    process = subprocess.run(
        [sys.executable, "-c", EARLY],
        env={**os.environ, CPUS: str(cpus)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return int(process.stdout)


@pytest.mark.skipif(any(Path(file).exists() for file in GPUS), reason="there is a GPU")
def test_the_server_is_started_before_torch_is_imported_if_there_are_cpus_for_it() -> None:
    started = children_after_start(2)
    # The server, and Python's tracker of shared resources.
    assert started == 2
    assert children_after_start(1) == 0


@pytest.mark.skipif(any(Path(file).exists() for file in GPUS), reason="there is a GPU")
def test_the_server_of_a_process_that_has_made_the_imports_is_a_fork_of_it() -> None:
    process = subprocess.run(
        [sys.executable, "-c", FORKED],
        env={**os.environ, CPUS: "2"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    worker, server = process.stdout.split("\n", 1)
    assert worker == "a worker"
    # It ends with the process that it was forked from, which it notices in a moment.
    deadline = time.monotonic() + 60
    while is_running(int(server)):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.02)
