"""What logging to MLflow costs a search, against a real tracking server: ``make bench-tracking``.

Generations of candidates are logged as a task of the search logs them. The share of the wall time
is against a given time of a candidate's training, which depends on the network and the machine.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).parents[1]))

from servers import mlflow_server  # type: ignore[import-not-found]

from taylorglo.results import Candidate, Evaluation
from taylorglo.services.tracking import Tracker

POINTS = 10  # of a learning curve


def generation(number: int, popsize: int) -> list[Candidate]:
    """Return the candidates of a generation, each with a learning curve."""
    return [
        Candidate(
            trial=number * popsize + index,
            generation=number,
            theta=[0.1] * 8,
            result=Evaluation(
                status="ok",
                curve=[(100 * point, 0.9, 0.3) for point in range(POINTS)],
                started=1.7e9,
                ended=1.7e9 + 1,
                seconds=1.0,
                fitness=0.9,
                accuracies=[0.9],
                robust_accuracies=[],
            ),
            fitness=0.9,
            finished=True,
        )
        for index in range(popsize)
    ]


def measure(uri: str, generations: int, popsize: int) -> list[float]:
    """Log generations to a server; return the seconds of each."""
    tracker = Tracker.open(uri, "benchmark", run_name="benchmark")
    seconds = []
    for number in range(1, generations + 1):
        candidates = generation(number, popsize)
        numbers = {candidate.trial: {"A": 1.0, "B": 1.0} for candidate in candidates}
        begun = time.perf_counter()
        tracker.log_candidates(number, candidates, numbers)
        tracker.log_curves({"generation/best": [(number, 0.9)]}, 1.7e9)
        seconds.append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    """Measure, and print the seconds per generation and the share of a sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--popsize", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4, help="processes of the server")
    parser.add_argument("--training", type=float, default=10.0, help="seconds of a candidate")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="taylorglo-") as name:
        folder = Path(name)
        database = f"sqlite:///{folder / 'mlflow.db'}"
        options = [f"--workers={arguments.workers}"]
        with mlflow_server(
            database, str(folder / "files"), folder / "log", options=options
        ) as server:
            seconds = measure(server.uri, arguments.generations, arguments.popsize)
    spread = stdev(seconds) if len(seconds) > 1 else 0.0
    mean = fmean(seconds)
    training = arguments.popsize * arguments.training / (os.cpu_count() or 1)
    print(
        f"{mean:.2f} ± {spread:.2f} s to log a generation of {arguments.popsize} candidates "
        f"(n = {len(seconds)}), {1000 * mean / arguments.popsize:.0f} ms a candidate; "
        f"{mean / (mean + training):.1%} of a generation whose candidates train for "
        f"{arguments.training:g} s on {os.cpu_count()} CPUs"
    )


if __name__ == "__main__":
    main()
