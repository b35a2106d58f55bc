"""Tasks as processes: they are named if they are killed, and leave nothing behind."""

import io
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pids import is_running

from taylorglo.errors import InputError
from taylorglo_pipelines.local.processes import Processes, started_by
from taylorglo_pipelines.local.runner import _explained_failure, _log, _TaskOutput


def wait_until_gone(pid: int) -> None:
    """Wait for a process that was killed, which the system may take a moment for."""
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.02)


def run(code: str, *arguments: str) -> int:
    """Run a task with this code to its end."""
    name = ("--function_to_execute", "train_champion")
    return Processes().run([sys.executable, "-c", code, *name, *arguments])


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            -signal.SIGKILL,
            "the task train_champion was killed by SIGKILL, probably because memory ran out; lower "
            "training.workers or training.batch_size, or free memory, and run the same command "
            "again: it goes on from here",
        ),
        (
            "import os; os.abort()",
            -signal.SIGABRT,
            "the task train_champion was killed by SIGABRT",
        ),
        (
            "import os; print('half', flush=True); os._exit(3)",
            3,
            "the task train_champion ended with exit status 3; the last that it printed is: half",
        ),
        (
            "import os; os._exit(1)",
            1,
            "the task train_champion ended with exit status 1 and printed nothing",
        ),
    ],
)
def test_a_task_that_does_not_say_why_it_ended_is_named(
    code: str, status: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(code) == status
    assert capsys.readouterr().out.splitlines()[-1] == f"taylorglo: error: unexpected end: {reason}"


def test_a_task_that_says_why_is_not_spoken_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("print('taylorglo: error: no such data'); raise SystemExit(2)") == 2
    assert capsys.readouterr().out == "taylorglo: error: no such data\n"


def test_a_file_of_the_user_is_not_taken_for_a_module_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random.py").write_text("raise RuntimeError('not this one')\n")
    assert run("import random; print(random.__name__)") == 0
    assert capsys.readouterr().out == "random\n"


def test_output_that_is_not_text_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import os; os.write(1, b'\\xff\\xfe\\n')") == 0
    assert capsys.readouterr().out == "\\xff\\xfe\n"


def test_python3_in_an_argument_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from kfp.local import subprocess_task_handler

    processes = Processes()
    with started_by(processes):
        command = subprocess_task_handler.replace_python_executable(
            ["python3", "-c", "import sys; print(sys.argv[1])", "/home/me/python3/runs"],
            sys.executable,
        )
        assert subprocess_task_handler.run_local_subprocess(full_command=command) == 0
    assert capsys.readouterr().out == "/home/me/python3/runs\n"
    assert subprocess_task_handler.run_local_subprocess != processes.run


def test_the_end_is_that_of_every_task_and_its_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import os, subprocess, sys, time; "
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{worker.pid}}\\n'); "
        "print('ready', flush=True); time.sleep(600)"
    )
    processes = Processes()
    statuses: list[int] = []
    thread = threading.Thread(
        target=lambda: statuses.append(processes.run([sys.executable, "-c", code]))
    )
    thread.start()
    pids = tmp_path / "pids"
    while not (pids.exists() and pids.read_text().endswith("\n")):
        assert thread.is_alive()
    processes.end()
    thread.join(60)
    assert statuses == [-signal.SIGKILL]
    for pid in map(int, pids.read_text().split()):
        wait_until_gone(pid)
    # It was this process that killed the task, so nobody has to be told.
    assert "error" not in capsys.readouterr().out
    # None is started any more.
    assert processes.run([sys.executable, "-c", "import time; time.sleep(600)"]) == -signal.SIGKILL


def test_workers_that_outlive_their_task_are_not_waited_for(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; "
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(worker.pid))"
    )
    assert run(code) == 0
    wait_until_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_on_a_full_disk_hides_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    def run_task() -> None:
        with _log(Path("/dev/full")) as log:
            output = _TaskOutput(log, print)
            output.write("taylorglo: half of it\n" + "other output\n" * 10_000)
            output.flush()
            raise InputError("the error of the task")

    with pytest.raises(InputError, match="the error of the task"):
        run_task()
    assert capsys.readouterr().out == "half of it\n"


@pytest.mark.parametrize("lines", [3, 100])
def test_the_last_lines_of_the_log_are_shown_with_an_error_that_nobody_expected(
    lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = _TaskOutput(io.StringIO(), print)
    for number in range(lines):
        output.write(f"\x1b[31mline\x1b[0m {number}\n\n")
    output.write("taylorglo: error: unexpected KeyError: 1\n")
    error = _explained_failure(RuntimeError("kfp's"), output, tmp_path / "log")
    assert str(error) == f"unexpected KeyError: 1; what the tasks printed is in {tmp_path / 'log'}"
    shown = capsys.readouterr().err.splitlines()
    assert shown == [f"  | line {number}" for number in range(lines)][-12:]


def test_an_error_that_a_task_explains_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = _TaskOutput(io.StringIO(), print)
    output.write("noise\ntaylorglo: error: no such data\n")
    error = _explained_failure(RuntimeError("kfp's"), output, tmp_path / "log")
    assert (str(error), capsys.readouterr().err) == ("no such data", "")


COMMAND = """
import signal, sys
from pathlib import Path
from kfp.local import subprocess_task_handler
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.local.runner import _processes

# The tests may run under nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
task = "import os, time; print('task', os.getpid(), flush=True); time.sleep(600)"
with _processes(Config(), Path("log")):
    command = [sys.executable, "-c", task]
    subprocess_task_handler.run_local_subprocess(full_command=command)
"""


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_a_signal_to_the_command_alone_ends_its_tasks_at_once(name: str, tmp_path: Path) -> None:
    number = signal.Signals[name]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        pid = int(next(line for line in command.stdout if line.startswith("task")).split()[1])
        command.send_signal(number)
        try:
            _, errors = command.communicate(timeout=60)
        finally:
            command.kill()
    assert command.returncode == 128 + number
    assert errors.strip() == (
        "taylorglo: interrupted; what is finished is kept, the same command goes on from there "
        "(log)"
    )
    wait_until_gone(pid)
