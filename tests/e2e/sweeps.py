"""Small sweeps by the real command, and how to look at their results."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from taylorglo.results import Candidate
from taylorglo.search.study import Search
from taylorglo.settings import SearchSettings

CONFIG = Path(__file__).parents[2] / "pipelines" / "configs" / "digits.yaml"
GENERATIONS, POPSIZE = 2, 4
SMALL = (
    "training.steps=60",
    # Stacked trainings may round otherwise, depending on which of them are in one stack.
    "training.engine=sequential",
    "evaluation.steps=60",
    "evaluation.attempts=4",
    "evaluation.give_up_step=0",
    f"search.popsize={POPSIZE}",
    f"pipeline.generations={GENERATIONS}",
    "pipeline.shards=1",
    "baselines.learning_rates=[0.1,0.3]",
    "baselines.label_smoothing=[0.1]",
    "baselines.attempts=1",
    "champion.finalists=2",
    "champion.seeds=2",
    "attack.epsilons=[0.05]",
    "attack.images=50",
    "attack.pgd_steps=3",
    "attack.pgd_restarts=1",
    "attack.seeds=1",
)
# Of docs/examples/own_training.yaml.
SMALL_OF_OWN_TRAINING = (
    "pipeline.generations=1",
    "search.popsize=2",
    "training.steps=20",
    "evaluation.steps=20",
    "baselines.learning_rates=[0.003]",
    "champion.finalists=1",
    "champion.seeds=2",
    "attack.seeds=2",
)
LOSSES = ["champion", "cross-entropy", "label-smoothed cross-entropy", "squared error"]
TIMEOUT = 240  # seconds, for a sweep that takes 40 on an idle machine


def merged(*settings: str) -> list[str]:
    """Return settings of which a later one takes the place of an earlier one of the same key."""
    return list({setting.partition("=")[0]: setting for setting in settings}.values())


@dataclass(frozen=True)
class Sweeps:
    """The command ``taylorglo run``, with its work in one folder.

    Attributes:
        work: the folder.
        overrides: settings in place of those of ``SMALL``.
        env: variables of the command's environment besides those of the test.
        words: further words of the command line.
    """

    work: Path
    overrides: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def command(self, *overrides: str) -> list[str]:
        """Return the words of the command."""
        work = f"services.work_dir={self.work}"
        settings = merged(work, *SMALL, *self.overrides, *overrides)
        command = [sys.executable, "-m", "taylorglo_pipelines.cli", "run", str(CONFIG), *self.words]
        return command + [word for setting in settings for word in ("--set", setting)]

    @contextlib.contextmanager
    def started(self, *overrides: str) -> Iterator[subprocess.Popen[str]]:
        """Start the command in a process group of its own; it is killed at the end of the block."""
        ours = ("TAYLORGLO_", "MLFLOW_", "AWS_", "PG")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        process = subprocess.Popen(
            self.command(*overrides),
            env={**inherited, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()

    def run(self, *overrides: str, seconds: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        with self.started(*overrides) as process:
            stdout, stderr = process.communicate(timeout=seconds)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def search_of(work: Path, **search: Any) -> Search:
    """Return the search of the sweep ``digits`` in a work folder.

    Args:
        work: the folder.
        search: settings of the search that are not the default ones.
    """
    url, settings = f"sqlite:///{work / 'study.db'}", SearchSettings(popsize=POPSIZE, **search)
    return Search(url, "digits", settings, 0, num_classes=10)


def study_of(work: Path, **search: Any) -> list[Candidate]:
    """Return the candidates of the sweep ``digits`` in a work folder; as ``search_of``."""
    return search_of(work, **search).candidates()


def trained(work: Path, **search: Any) -> dict[int, Candidate]:
    """Return the candidates that the study has a final result of, by trial; as ``search_of``."""
    return {c.trial: c for c in study_of(work, **search) if c.result is not None and c.finished}


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time of change and content of each file in a folder, by its name."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mlflow_of(work: Path) -> MlflowClient:
    """Return a client of the MLflow in a work folder."""
    return MlflowClient(tracking_uri=f"sqlite:///{work / 'mlruns.db'}")


def runs_of(client: MlflowClient, experiment: str = "digits") -> tuple[list[Run], list[Run]]:
    """Return the parent runs and the nested runs of an experiment, the latest first."""
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return parents, [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def artifacts_of(client: MlflowClient, run: Run) -> list[str]:
    """Return the names of a run's artifacts."""
    return sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id))


def tasks_alive(work: Path) -> list[int]:
    """Return the processes with the store of a run in their arguments or variables, as tasks have.

    A task that was forked has the arguments of the process that forked it.
    """
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = [(folder / name).read_bytes() for name in ("cmdline", "environ")]
            if any(str(work / "store").encode() in text for text in told):
                processes.append(int(folder.name))
    return processes


def final_table(output: str) -> list[str]:
    """Return the lines from the head of the final table to the verdict."""
    lines = output.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("loss "))
    return lines[start : start + 9]


def wait_until(condition: Callable[[], Any], seconds: float, event: str) -> Any:
    """Wait until the condition returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {event}"
        time.sleep(0.02)
    return result
