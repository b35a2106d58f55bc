"""Tasks that are forked after their imports are what they are when they are started anew."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pids import is_running

from taylorglo.components import EXECUTOR
from taylorglo.components.warm import LATER_IMPORTS, MOST_BYTES
from taylorglo.variables import STORE_URI
from taylorglo_pipelines.local.warm import Warm, WarmTask

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tasks are forked on Linux alone")

PROGRAM = [sys.executable, "-m", "taylorglo.components"]
# A runner that is killed while a task waits.
RUNNER = """
import os, sys, time
from taylorglo_pipelines.local.warm import Warm

warm = Warm(os.environ)
while not (task := warm.start(sys.argv[1:], os.environ)):
    time.sleep(0.1)
print(task.pid, flush=True)
time.sleep(600)
"""


def started(warm: Warm, words: list[str], environment: dict[str, str]) -> WarmTask:
    """Start a task as soon as the imports are made."""
    deadline = time.monotonic() + 120
    while not (task := warm.start(words, environment)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return task


def waiting(folder: Path) -> list[str]:
    """Return the command of a task that waits for its input until it is killed."""
    os.mkfifo(folder / "comparison")
    artifacts = {
        name: {
            "artifacts": [
                {
                    "name": name,
                    "type": {"schemaTitle": "system.Artifact"},
                    "uri": str(folder / name),
                    "metadata": {},
                }
            ]
        }
        for name in ("comparison", "full_data", "robustness")
    }
    outputs = {"robustness": artifacts.pop("robustness")}
    given = {"inputs": {"artifacts": artifacts}, "outputs": {"artifacts": outputs}}
    words = ["--function_to_execute", "attack", "--executor_input", json.dumps(given)]
    return [*PROGRAM, EXECUTOR, *words]


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    process = Warm({**os.environ, STORE_URI: "of the process that forks"})
    yield process
    process.close()


def test_a_forked_task_prints_and_ends_as_one_that_was_started_anew(warm: Warm) -> None:
    words = [*PROGRAM, EXECUTOR, "--function_to_execute", "no_such_component"]
    anew = subprocess.run(words, capture_output=True, text=True, check=False)
    with started(warm, words, dict(os.environ)) as task:
        assert (task.stdout.read(), task.wait()) == (anew.stdout, anew.returncode)
        # The status is told once, and known from then on.
        assert task.wait() == anew.returncode == 2
    assert "no_such_component" in anew.stdout


def test_a_forked_task_has_the_variables_of_its_own(warm: Warm, tmp_path: Path) -> None:
    given = json.dumps({"inputs": {}, "outputs": {"outputFile": str(tmp_path / "out.json")}})
    words = ["--function_to_execute", "check_inputs", "--executor_input", given]
    without = {name: value for name, value in os.environ.items() if name != STORE_URI}
    with started(warm, [*PROGRAM, EXECUTOR, *words], without) as task:
        printed = task.stdout.read()
        assert task.wait() != 0
    assert "of the process that forks" not in printed


def test_a_forked_task_that_is_killed_says_so_by_its_status(warm: Warm, tmp_path: Path) -> None:
    with started(warm, waiting(tmp_path), dict(os.environ)) as task:
        # It is the leader of a process group, like a task that was started anew.
        os.killpg(task.pid, signal.SIGKILL)
        assert task.wait() == -signal.SIGKILL
        # Another task is served as before.
        words = [*PROGRAM, EXECUTOR, "--function_to_execute", "no_such_component"]
        with started(warm, words, dict(os.environ)) as other:
            assert other.wait() == 2


def test_other_commands_and_long_ones_are_not_forked(warm: Warm) -> None:
    known = [*PROGRAM, EXECUTOR, "--function_to_execute", "no_such_component"]
    started(warm, known, dict(os.environ)).wait()
    assert warm.start([sys.executable, "-c", "pass"], dict(os.environ)) is None
    assert warm.start([*known, "x" * MOST_BYTES], dict(os.environ)) is None


def test_tasks_end_if_their_runner_is_killed(tmp_path: Path) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, *waiting(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert runner.stdout is not None
    with runner:
        task = int(runner.stdout.readline())
        assert is_running(task)
        runner.kill()
    wait_until_gone(task)


def test_after_the_end_of_the_process_nothing_is_forked(warm: Warm) -> None:
    """The last of those that share a process, as its imports take seconds."""
    words = [*PROGRAM, EXECUTOR, "--function_to_execute", "no_such_component"]
    started(warm, words, dict(os.environ)).wait()
    warm._process.kill()
    warm._process.wait()
    assert warm.start(words, dict(os.environ)) is None


@pytest.mark.long
def test_an_import_that_fails_is_left_to_the_task_that_needs_it(tmp_path: Path) -> None:
    (tmp_path / "cmaes.py").write_text("raise RuntimeError('broken')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    process = Warm({**os.environ, "PYTHONPATH": path})
    words = [*PROGRAM, EXECUTOR, "--function_to_execute", "no_such_component"]
    # Between two requests there is one import at most.
    for _ in range(len(LATER_IMPORTS) + 1):
        with started(process, words, dict(os.environ)) as task:
            assert task.wait() == 2
    process.close()
