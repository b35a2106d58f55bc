"""A sweep in this process: the compiled pipeline, with KFP's executor, but no process per task.

Most of the time of a small sweep is spent on the start of its tasks. So a test that is not about
processes runs its sweep here.
"""

import importlib
import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from compiled import CompiledPipeline, Object, Task
from kfp.dsl.executor import Executor
from servers import mlflow_database
from sweeps import CONFIG, SMALL, merged

from taylorglo.tasks import console
from taylorglo.variables import (
    CPUS,
    LOCAL_RUN,
    STARTED,
    STORE_URI,
    STUDY_URL,
    TRACKING_URI,
)
from taylorglo_pipelines.config import load
from taylorglo_pipelines.pipeline.compile import compile_sweep

OURS = (CPUS, LOCAL_RUN, STARTED, STORE_URI, STUDY_URL, TRACKING_URI, "MLFLOW_RUN_ID")


class InProcess(CompiledPipeline):
    """A compiled pipeline whose tasks are run by KFP's executor in this process.

    Attributes:
        times: how often each task is run, as Argo may run it again.
    """

    times = 1

    def execute(self, task: Task) -> Object:
        return [self._execute(task) for _ in range(self.times)][-1]

    def _execute(self, task: Task) -> Object:
        folder = Path(task.folder)
        folder.mkdir(parents=True, exist_ok=True)
        arguments = self.arguments_of(task)
        function = arguments[arguments.index("--function_to_execute") + 1]
        module = importlib.import_module(f"taylorglo.components.{function}")
        Executor(task.executor_input, getattr(module, function)).execute()
        output = json.loads((folder / "executor_output.json").read_text())
        return {name: output["parameterValues"][name] for name in task.parameters}


class Terminal(io.TextIOBase):
    """Standard output of the tasks: keeps the lines that the command would show.

    Attributes:
        lines: the lines so far.
    """

    def __init__(self, see: Callable[[str], object]) -> None:
        """Make a terminal; ``see`` is called with each line as soon as it is complete."""
        self.lines: list[str] = []
        self._see = see
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(None, map(console.parse, lines)):
            self.lines.append(line.text)
            self._see(line.text)
        return len(text)


def run_sweep(
    work: Path,
    *overrides: str,
    see: Callable[[str], object] = lambda line: None,
    times: int = 1,
    path: Path = CONFIG,
) -> str:
    """Run a small sweep to its end.

    Args:
        work: the folder for all files of the sweep.
        overrides: settings in place of those of ``SMALL``.
        see: called with each line that the command would show, as soon as it is printed.
        times: how often each task is run.
        path: the configuration.

    Returns:
        The lines that the command would show.
    """
    config = load(path, merged(f"services.work_dir={work}", *SMALL, *overrides))
    root = work / "in-process"
    root.mkdir(parents=True)
    tracking = work / "mlruns.db"
    if not tracking.exists():
        tracking.write_bytes(mlflow_database())
    compile_sweep(config, root / "sweep.yaml")
    terminal = Terminal(see)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(terminal):
        for name in OURS:
            patch.delenv(name, raising=False)
        for name, value in config.services.variables().items():
            patch.setenv(name, value)
        pipeline = InProcess(root / "sweep.yaml", str(root))
        pipeline.times = times
        pipeline.run()
    return "\n".join(terminal.lines)
