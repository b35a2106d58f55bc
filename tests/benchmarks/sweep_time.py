"""Whole sweeps of this revision beside those of another one, by the command: ``make bench-sweep``.

The revisions take turns, so that both see the same machine. Both run the configuration of this
revision with this revision's Python and packages.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SHARE = re.compile(r"(\d+)% of (\d+) s were spent inside trainings")
TABLE = re.compile(r"^loss .*?\n\n", re.MULTILINE | re.DOTALL)


class Sweep(NamedTuple):
    """A sweep that was run: seconds of the command, percentage inside trainings, table."""

    seconds: float
    share: int
    table: str


def run(tree: Path, config: Path, settings: list[str]) -> Sweep:
    """Run a sweep with the source of a folder to its end, in a new folder of runs."""
    path = os.pathsep.join(str(tree / package) for package in ("components", "pipelines"))
    with tempfile.TemporaryDirectory() as work:
        words = [word for s in [*settings, f"services.work_dir={work}"] for word in ("--set", s)]
        command = [sys.executable, "-m", "taylorglo_pipelines.cli", "run", str(config), *words]
        started = time.monotonic()
        process = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seconds = time.monotonic() - started
    share, table = SHARE.search(process.stdout), TABLE.search(process.stdout)
    assert share is not None
    assert table is not None
    # The sweep itself knows neither the start of the command nor the end of its last task.
    return Sweep(seconds, round(int(share[1]) * int(share[2]) / seconds), table[0])


def main() -> None:
    """Print each pair of sweeps, and the ratio of their times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", default="HEAD~1", help="revision to compare with")
    parser.add_argument("--config", type=Path, default=ROOT / "pipelines/configs/digits.yaml")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", other, arguments.against], check=True)
        try:
            for number in range(arguments.pairs):
                before, after = (
                    run(tree, arguments.config.resolve(), arguments.settings)
                    for tree in (other, ROOT)
                )
                ratios.append(after.seconds / before.seconds)
                same = "the same table" if before.table == after.table else "ANOTHER TABLE"
                print(
                    f"{number + 1}/{arguments.pairs}  {arguments.against}: {before.seconds:.0f} s, "
                    f"{before.share} % inside trainings; this: {after.seconds:.0f} s, "
                    f"{after.share} %; ratio {ratios[-1]:.2f}; {same}",
                    flush=True,
                )
        finally:
            subprocess.run([*git, "remove", "--force", other], check=True)
    print(
        f"time of this revision over {arguments.against}: {geometric_mean(ratios):.2f} "
        f"(geometric mean of {len(ratios)} pairs, {min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
