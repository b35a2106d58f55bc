"""The pipeline on this machine: kfp's local runner, a process or a container per task, and no server to start."""

import builtins
import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TextIO

from taylorglo.errors import InputError, TaylorgloError
from taylorglo.services.memo import RunState
from taylorglo.services.mlflow import redacted
from taylorglo.services.storage import open_store
from taylorglo.services.variables import CPUS, LOCAL_RUN, STARTED, STORE_URI, TRACKING_URI, required
from taylorglo.tasks import console
from taylorglo.training.machine import cpus
from taylorglo_pipelines.config import Config

Runner = Literal["subprocess", "docker"]

_TASKS_AT_ONCE = 2  # of a loop, whatever is asked of kfp
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_COLOUR = re.compile(r"\x1b\[\d*m")


@dataclass(frozen=True)
class Places:
    """Where a finished run left things."""

    store: str
    tracking: str
    log: Path


def run(config: Config, runner: Runner = "subprocess") -> Places:
    """Run the sweep to its end; after an interruption, the same call goes on where it was.

    Args:
        config: the sweep.
        runner: what a task is: a process of this installation, or a container of the image (``docker``).

    Raises:
        InputError: another run of the sweep is going on, or a task found bad input.
        TaylorgloError: a task failed.
    """
    work = _folder(Path(config.services.work_dir).absolute())
    variables = {
        **config.services.variables(),
        LOCAL_RUN: "1",
        STARTED: str(time.time()),
        CPUS: str(max(1, cpus() // min(_TASKS_AT_ONCE, config.pipeline.shards))),
    }
    places = Places(
        variables[STORE_URI],
        redacted(variables[TRACKING_URI]),
        _folder(work / "logs") / f"{config.name}.log",
    )
    root = work / "pipeline" / config.name
    with (
        _only_run(work, config.name),
        _environment(variables),
        _opened(places.log, "a") as log,
        _prepared(runner, config, work) as (kfp_runner, prepared),
    ):
        output = _TaskOutput(log, sys.stdout)
        with _interruptible(config, places):
            try:
                with (
                    contextlib.redirect_stdout(output),
                    contextlib.redirect_stderr(output),
                    warnings.catch_warnings(),
                ):
                    warnings.simplefilter("ignore")
                    _run_pipeline(prepared, kfp_runner, root)
                    # kfp takes a container that is gone before its exit status is asked for as
                    # successful.
                    if output.errors or not any(root.glob("*/report/page")):
                        raise RuntimeError("there is no report")
            except Exception as error:
                _end_tracking(config, "FAILED")
                if output.errors:
                    raise InputError(
                        "\n".join(dict.fromkeys(output.errors))
                    ) from None  # shards may find the same
                reason = _COLOUR.sub("", " ".join(str(error).split())).rstrip(".")
                raise TaylorgloError(
                    f"a task failed: {reason}; what it printed is in {places.log}"
                ) from None
    return places


@contextlib.contextmanager
def _prepared(runner: Runner, config: Config, work: Path) -> Iterator[tuple[Any, Config]]:
    """The runner for kfp, and the configuration with the image as that runner knows it."""
    if runner == "docker":
        from taylorglo_pipelines.local.containers import containers

        with containers(config, work) as prepared:
            yield prepared
    else:
        from kfp.local import SubprocessRunner

        yield SubprocessRunner(use_venv=False), config


def _run_pipeline(config: Config, runner: Any, root: Path) -> None:
    from kfp import local

    from taylorglo_pipelines.pipeline.sweep import sweep_pipeline

    shutil.rmtree(
        root, ignore_errors=True
    )  # what passed between the tasks of an earlier run, data and all
    _folder(root)  # which a container engine would make as root's
    local.init(runner, pipeline_root=str(root))
    # Bad input should be told at once, and whoever waits at a terminal tries again by hand.
    at_once = config.model_copy(
        update={"pipeline": config.pipeline.model_copy(update={"retries": 0})}
    )
    printer = builtins.print
    try:
        sweep_pipeline(at_once)()
    finally:
        builtins.print = (
            printer  # kfp replaces it while a task runs; of two tasks side by side, one forgets
        )


class _TaskOutput:
    """The text stream of all tasks: everything goes to the log, what is meant for a person to the terminal too.

    kfp indents what tasks print, further and further where they run side by side; lines are kept without that.
    """

    def __init__(self, log: TextIO, terminal: TextIO) -> None:
        self._log, self._terminal, self._rest = log, terminal, ""
        self._lock = (
            threading.RLock()
        )  # tasks side by side are threads here, and a signal may come in between
        self.errors: list[str] = []

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._pass_on(_COLOUR.sub("", line).strip())
        return len(text)

    def _pass_on(self, line: str) -> None:
        self._log.write(line + "\n")
        said = console.parse(line)
        if said is None:
            return
        if said.is_error:
            self.errors.append(said.text)
            return
        self._terminal.write(said.text + "\n")
        self._terminal.flush()

    def flush(self) -> None:
        self._log.flush()


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from None
    return path


def _opened(path: Path, mode: Literal["a", "w"]) -> TextIO:
    try:
        return path.open(mode)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _only_run(work: Path, name: str) -> Iterator[None]:
    """A lock that the system takes back when the process ends, however it ends."""
    with _opened(work / f".{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another run of sweep {name!r} is going on in {work}") from None
        yield


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interruptible(config: Config, places: Places) -> Iterator[None]:
    """On Ctrl-C or a polite kill, close the MLflow run and leave at once: the tasks see it and end by themselves."""

    def leave(number: int, _: FrameType | None) -> None:
        for interrupt in _INTERRUPTS:
            signal.signal(interrupt, signal.SIG_DFL)  # a second one does not wait for MLflow
        print(
            f"\ntaylorglo: interrupted; what is finished is kept, the same command goes on from there ({places.log})",
            file=sys.__stderr__,
            flush=True,
        )
        try:
            _end_tracking(config, "KILLED")
        finally:
            os._exit(128 + number)

    former = {interrupt: signal.signal(interrupt, leave) for interrupt in _INTERRUPTS}
    try:
        yield
    finally:
        for interrupt, handler in former.items():
            signal.signal(interrupt, handler)


def _end_tracking(config: Config, status: Literal["FAILED", "KILLED"]) -> None:
    """End the MLflow run of a pipeline run that did not come to its end."""
    from taylorglo.services.tracking import Tracker

    # The user is told what ended the run, and not that MLflow is away too.
    with contextlib.suppress(TaylorgloError):
        state = RunState.read(open_store(required(STORE_URI)), config.name)
        if state.unfinished:
            Tracker.attach(required(TRACKING_URI), state.unfinished).finish(status)
