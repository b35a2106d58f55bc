"""The server that workers are forked from is started early, where that saves time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
