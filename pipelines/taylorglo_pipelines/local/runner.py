"""The pipeline on this machine, by kfp's local runner: a process or a container for each task."""

import builtins
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TextIO

from kfp import local

from taylorglo.addresses import expanded
from taylorglo.errors import InputError, TaylorgloError, explained, one_line, printable
from taylorglo.services.memo import RunState
from taylorglo.services.mlflow import redacted
from taylorglo.services.storage import open_store
from taylorglo.services.tracking import Tracker
from taylorglo.tasks import console
from taylorglo.variables import (
    LOCAL_RUN,
    REVISION,
    STARTED,
    STORE_URI,
    TRACKING_URI,
    WATCHED,
    required,
)
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.local.claim import only_run, opened
from taylorglo_pipelines.local.live import Estimate, Live, is_live, planned_steps, task_of
from taylorglo_pipelines.local.processes import Processes, started_by
from taylorglo_pipelines.pipeline.sweep import sweep_pipeline

Runner = Literal["subprocess", "docker"]

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FAREWELL = 10.0  # seconds that MLflow has to note the end of a run
_COLOUR = re.compile(r"\x1b\[\d*m")
# Lines of kfp's own: its messages, and the input of a task as JSON.
_OF_KFP = re.compile(
    r"\d\d:\d\d:\d\d\.\d+ - |-+$|\[KFP Executor|[][{}\"]|(-?\d[\d.e+-]*|true|false|null),?$"
)
_LAST_LINES = 12  # of the tasks' output in the log, which are shown if a task fails unexpectedly


@dataclass(frozen=True)
class Places:
    """The places of a run's results: URI of the store, URI of MLflow, and path of the log."""

    store: str
    tracking: str
    log: Path


def run(config: Config, runner: Runner = "subprocess", terminal: TextIO | None = None) -> Places:
    """Run the sweep to its end, or go on with a run of it that was interrupted.

    Args:
        config: the sweep.
        runner: whether a task is a process of this installation, or a container of the image
            (``docker``).
        terminal: where the lines for a person go, with a live view below them if it is a terminal;
            None: nowhere.

    Raises:
        InputError: another run of the sweep is going on, or a task found bad input.
        TaylorgloError: a task failed.
    """
    work = _folder(config.services.folder)
    variables = _variables(config)
    if config.data.root and "://" not in config.data.root:
        # A task in a container has another home.
        data = config.data.model_copy(update={"root": str(expanded(config.data.root))})
        config = config.model_copy(update={"data": data})
    places = Places(
        variables[STORE_URI],
        redacted(variables[TRACKING_URI]),
        _folder(work / "logs") / f"{config.name}.log",
    )
    with (
        only_run(work, config.name),
        _log(places.log) as log,
        _live_view(config, terminal) as live,
        _environment({**variables, **({WATCHED: "1"} if live else {})}),
        _kfp_runner(runner, config, work) as (kfp_runner, prepared),
        _processes(config, places.log, live) as processes,
    ):
        output = _TaskOutput(log, live.write if live else _writer(terminal), live)
        if runner == "subprocess":
            processes.warm_up()
        try:
            _run_pipeline(prepared, kfp_runner, work / "pipeline" / config.name, output)
        except Exception as error:
            if live:
                live.end()
            _end_tracking(config, "FAILED")
            raise _explained_failure(error, output, places.log) from None
    return places


def _explained_failure(error: Exception, output: "_TaskOutput", log: Path) -> TaylorgloError:
    """Return the error of a run for a person; show the end of the log if it does not tell all.

    Args:
        error: of kfp.
        output: what the tasks said.
        log: path of the log.
    """
    # Several shards may find the same problem.
    lines = list(dict.fromkeys(output.errors))
    if lines and not any(line.startswith(console.UNEXPECTED) for line in lines):
        return InputError("\n".join(lines))
    for line in output.last_lines:
        print(f"  | {line}", file=sys.stderr)
    if lines:
        lines[-1] += f"; what the tasks printed is in {log}"
        return InputError("\n".join(lines))
    text = explained(error) if isinstance(error, OSError | MemoryError) else one_line(error)
    reason = _COLOUR.sub("", text).rstrip(".")
    return TaylorgloError(f"a task failed: {reason}; what it printed is in {log}")


@contextlib.contextmanager
def _live_view(config: Config, terminal: TextIO | None) -> Iterator[Live | None]:
    """Show a live view for a while; None if nobody can see one."""
    if terminal is None or not is_live(terminal):
        yield None
        return
    live = Live(terminal, Estimate(planned_steps(config)), colour=not os.environ.get("NO_COLOR"))
    try:
        yield live
    finally:
        live.end()


def _writer(terminal: TextIO | None) -> Callable[[str], None]:
    """Return a function that prints a line at once."""

    def write(line: str) -> None:
        if terminal is not None:
            terminal.write(line + "\n")
            terminal.flush()

    return write


def _variables(config: Config) -> dict[str, str]:
    """Return the environment variables of the tasks."""
    revision = os.environ.get(REVISION) or _revision()
    return {
        **config.services.variables(),
        LOCAL_RUN: "1",
        STARTED: str(time.time()),
        **({REVISION: revision} if revision else {}),
    }


def _revision() -> str:
    """Return the git revision of this package, or nothing if it is not in a repository."""
    folder, file = Path(__file__).parent, Path(__file__).name
    git = ["git", "-C", str(folder)]
    try:
        # A virtual environment inside the repository of another project has that one's revision.
        subprocess.run([*git, "ls-files", "--error-unmatch", file], capture_output=True, check=True)
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip()


@contextlib.contextmanager
def _kfp_runner(runner: Runner, config: Config, work: Path) -> Iterator[tuple[Any, Config]]:
    """Yield kfp's runner, and the configuration with the image by the name that it knows."""
    if runner == "docker":
        # Here, so that a run without containers does not need Docker's package.
        from taylorglo_pipelines.local.containers import containers

        with containers(config, work) as prepared:
            yield prepared
    else:
        yield local.SubprocessRunner(use_venv=False), config


def _run_pipeline(config: Config, kfp_runner: Any, root: Path, output: "_TaskOutput") -> None:
    """Run all tasks of the pipeline.

    Args:
        config: the sweep.
        kfp_runner: kfp's runner.
        root: folder for the files that tasks pass to each other. Those of an earlier run go.
        output: stream for everything that tasks and kfp print.

    Raises:
        Exception: a task failed; kfp has no type for this.
    """
    shutil.rmtree(root, ignore_errors=True)
    # A container engine would create the folder for its own user.
    _folder(root)
    # An error should be reported at once, and a person at a terminal can repeat the command.
    layout = config.pipeline.model_copy(update={"retries": 0, "service_timeout": 0})
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        warnings.catch_warnings(),
        _print_restored(),
    ):
        warnings.simplefilter("ignore")
        local.init(kfp_runner, pipeline_root=str(root))
        sweep_pipeline(config.model_copy(update={"pipeline": layout}))()
    # kfp counts a container as successful if it is gone before kfp asks for its exit status.
    if output.errors or not any(root.glob("*/report/page")):
        raise RuntimeError("there is no report")


@contextlib.contextmanager
def _print_restored() -> Iterator[None]:
    """Put back Python's ``print``, which kfp replaces while a task runs.

    kfp does not put it back if two tasks ran at a time.
    """
    original = builtins.print
    try:
        yield
    finally:
        builtins.print = original


class _TaskOutput:
    """The text stream of all tasks: lines for a person go to the terminal, all lines to the log.

    kfp indents the lines of tasks, and further if tasks run at a time; the indentation is removed.

    Args:
        log: of all lines but those that only a live view shows.
        write: prints a line for a person.
        live: the live view, if there is one.

    Attributes:
        errors: the error lines of tasks so far.
        last_lines: the last lines of the task that are not for a person.
    """

    def __init__(self, log: TextIO, write: Callable[[str], None], live: Live | None = None) -> None:
        self.errors: list[str] = []
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._log = log
        self._write = write
        self._live = live
        self._rest = ""
        # Tasks that run at a time are threads of this process. The lock is reentrant, because a
        # signal's handler may print while its thread holds the lock.
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._pass_on(_COLOUR.sub("", line).strip())
        return len(text)

    def _pass_on(self, line: str) -> None:
        if progress := console.parse_progress(line):
            if self._live:
                self._live.show(progress)
            return
        # If the disk is full, a person still reads why on the terminal.
        with contextlib.suppress(OSError):
            self._log.write(line + "\n")
        message = console.parse(line)
        if message is None:
            self._note(line)
        elif message.is_error:
            self.errors.append(message.text)
        else:
            self._write(message.text)

    def _note(self, line: str) -> None:
        """Note a line that is not for a person."""
        if task := task_of(line):
            self.last_lines.clear()
            if self._live:
                self._live.begin_task(task)
        elif line and not _OF_KFP.match(line):
            self.last_lines.append(printable(line))

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._log.flush()


def _folder(path: Path) -> Path:
    """Create a folder, if there is none, and return its path."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from None
    return path


@contextlib.contextmanager
def _log(path: Path) -> Iterator[TextIO]:
    """Open the log, which loses its last lines if the disk is full."""
    log = opened(path, "a")
    try:
        yield log
    finally:
        with contextlib.suppress(OSError):
            log.close()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _processes(config: Config, log: Path, live: Live | None) -> Iterator[Processes]:
    """Let kfp start tasks by a class of ours, and end them all if a signal ends this process.

    On Ctrl-C, on a termination signal, or when the terminal is closed, the MLflow run is closed,
    too. If this process is killed, the tasks end by themselves.
    """
    processes = Processes()

    def leave(number: int, _: FrameType | None) -> None:
        # A second signal does not wait for MLflow.
        for interrupt in _INTERRUPTS:
            signal.signal(interrupt, signal.SIG_DFL)
        try:
            processes.end()
            if live:
                with contextlib.suppress(OSError):
                    live.end()
            # The terminal may be gone.
            with contextlib.suppress(OSError):
                print(
                    "\ntaylorglo: interrupted; what is finished is kept, the same command goes on "
                    f"from there ({log})",
                    file=sys.__stderr__,
                    flush=True,
                )
            _end_tracking(config, "KILLED")
        finally:
            os._exit(128 + number)

    previous = {interrupt: signal.signal(interrupt, leave) for interrupt in _INTERRUPTS}
    # A command that was started with nohup goes on when its terminal is closed.
    if previous[signal.SIGHUP] == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with started_by(processes):
            yield processes
    finally:
        processes.end()
        for interrupt, handler in previous.items():
            signal.signal(interrupt, handler)


def _end_tracking(config: Config, status: Literal["FAILED", "KILLED"]) -> None:
    """End the MLflow run of a pipeline run that did not come to its end, if that is quick."""

    def end() -> None:
        # The user reads what ended the run, and not that MLflow is away too.
        with contextlib.suppress(Exception):
            state = RunState.read(open_store(required(STORE_URI)), config.name)
            if state.unfinished:
                Tracker.attach(required(TRACKING_URI), state.unfinished).finish(status)

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(_FAREWELL)
