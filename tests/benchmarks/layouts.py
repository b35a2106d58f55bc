"""The two layouts of the search side by side, by the real command: ``make bench-layouts``.

Each run is a small sweep of digits. The layouts take turns, so that both see the same machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from taylorglo.search.study import Search
from taylorglo.settings import SearchSettings

CONFIG = Path(__file__).parents[2] / "pipelines" / "configs" / "digits.yaml"
LAYOUTS = ("workers", "generations")
POPSIZE = 12
SETTINGS = (
    "training.steps=200",
    "evaluation.steps=200",
    "evaluation.attempts=1",
    "evaluation.give_up_step=0",
    f"search.popsize={POPSIZE}",
    "pipeline.generations=5",
    "baselines.learning_rates=[0.3]",
    "baselines.attempts=1",
    "champion.finalists=1",
    "champion.seeds=2",
    "attack.seeds=1",
)


def run(layout: str, work: Path) -> float:
    """Run a sweep to its end; return its seconds."""
    settings = (f"services.work_dir={work}", f"pipeline.layout={layout}", *SETTINGS)
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "taylorglo_pipelines.cli", "run", str(CONFIG), *words]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def gaps(work: Path) -> list[float]:
    """Return the seconds from the last result of a generation to the next one's first training."""
    search = Search(
        f"sqlite:///{work}/study.db", "digits", SearchSettings(popsize=POPSIZE), 0, num_classes=10
    )
    times = defaultdict(list)
    for candidate in search.candidates():
        if candidate.result:
            result = candidate.result
            times[candidate.generation].append((result.started, result.ended))
    return [
        min(started for started, _ in times[number + 1]) - max(ended for _, ended in times[number])
        for number in sorted(times)[:-1]
    ]


def main() -> None:
    """Print a table of both layouts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    repetitions = parser.parse_args().repetitions
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    between: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for number in range(repetitions):
        for layout in LAYOUTS:
            with tempfile.TemporaryDirectory() as folder:
                seconds[layout].append(run(layout, Path(folder)))
                between[layout] += gaps(Path(folder))
            print(f"{number + 1}/{repetitions}  {layout}: {seconds[layout][-1]:.0f} s", flush=True)
    print(f"{'layout':<12}  n  seconds of the sweep  seconds between two generations")
    for layout in LAYOUTS:
        print(
            f"{layout:<12}  {repetitions}  {described(seconds[layout]):<20}  "
            f"{described(between[layout])}"
        )


def described(values: list[float]) -> str:
    """Return mean and range."""
    return f"{fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
