"""What logging to MLflow costs a sweep, against a real tracking server: ``make bench-tracking``.

First, generations of candidates are logged as a task of the search logs them. Then a whole sweep is
run whose requests go through a proxy, which notes when any of them is open. The time in which one
is open is the time that the sweep spends on logging, at most: tasks wait for the answers.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlflow import MlflowClient
from servers import mlflow_server  # type: ignore[import-not-found]

from taylorglo.results import Candidate, Evaluation
from taylorglo.services.tracking import Tracker
from taylorglo.stats import covered

CONFIG = Path(__file__).parents[2] / "pipelines/configs/digits.yaml"
POINTS = 10  # of a learning curve
HOP_BY_HOP = ("connection", "content-length", "host", "transfer-encoding")


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


@contextmanager
def proxy(port: int) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Yield the address of a proxy before a server, and when its requests were open."""
    intervals: list[tuple[float, float]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def forward(self) -> None:
            begun = time.time()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            connection = HTTPConnection("127.0.0.1", port)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            intervals.append((begun, time.time()))
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", intervals
    finally:
        server.shutdown()


def sweep(port: int, settings: list[str], folder: Path) -> tuple[float, float, int]:
    """Run a sweep of digits; return its seconds, those with a request, and their number."""
    with proxy(port) as (address, intervals):
        own = [f"services.work_dir={folder}", f"services.tracking_uri={address}", *settings]
        options = [part for setting in own for part in ("--set", setting)]
        command = [sys.executable, "-m", "taylorglo_pipelines.cli", "run", str(CONFIG), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        client = MlflowClient(address)
        (experiment,) = client.search_experiments(filter_string="name = 'digits'")
        query = "tags.`taylorglo.stage` = 'sweep'"
        (run, *_) = client.search_runs([experiment.experiment_id], query)
    return run.data.metrics["seconds"], covered(intervals), len(intervals)


def main() -> None:
    """Measure, and print the seconds per generation and the share of a sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--popsize", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4, help="processes of the server")
    parser.add_argument("--sweeps", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="a setting of the sweep")
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
            print(
                f"{fmean(seconds):.2f} ± {spread:.2f} s to log a generation of "
                f"{arguments.popsize} candidates (n = {len(seconds)})",
                flush=True,
            )
            settings = [f"search.popsize={arguments.popsize}", *arguments.set]
            for number in range(arguments.sweeps):
                whole, logging, requests = sweep(server.port, settings, folder / f"runs-{number}")
                print(
                    f"{logging:.1f} s with an open request, of {whole:.0f} s of a sweep "
                    f"({logging / whole:.1%}, {requests} requests)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
