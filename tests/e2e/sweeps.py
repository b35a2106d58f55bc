"""Sweeps by the real command, small enough to wait for."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "pipelines" / "configs" / "digits.yaml"
SMALL = (
    "training.steps=60",
    "evaluation.steps=60",
    "evaluation.attempts=4",
    "evaluation.give_up_step=0",
    "search.popsize=4",
    "pipeline.generations=2",
    "pipeline.shards=2",
    "baselines.learning_rates=[0.1,0.3]",
    "baselines.attempts=1",
    "champion.finalists=2",
    "champion.seeds=2",
    "attack.epsilons=[0.05]",
    "attack.images=50",
    "attack.pgd_steps=3",
    "attack.pgd_restarts=1",
    "attack.seeds=1",
)
TIMEOUT = 240  # seconds, for what takes 40 on an idle machine


@dataclass(frozen=True)
class Sweeps:
    """The command, with its work in one folder."""

    work: Path
    overrides: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        """``taylorglo run`` in a process group of its own."""
        settings = [f"services.work_dir={self.work}", *SMALL, *self.overrides, *overrides]
        command = [sys.executable, "-m", "taylorglo_pipelines.cli", "run", str(CONFIG), *self.words]
        command += [word for setting in settings for word in ("--set", setting)]
        inherited = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("TAYLORGLO_", "MLFLOW_", "AWS_", "PG"))
        }
        return subprocess.Popen(
            command,
            env={**inherited, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        process = self.start(*overrides)
        try:
            stdout, stderr = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
