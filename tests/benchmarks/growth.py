"""How time and memory grow, and what a worker takes (`make bench-growth`).

Each line is a process of its own, with the workers that it starts. The peak memory is what the
system counted, of the largest process that trains, beside the formula of
``taylorglo.training.memory`` for one. Images are Fashion-MNIST's (Debian's package
dataset-fashion-mnist), resized.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from fashion import fashion_mnist
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from taylorglo.data import dataset as datasets

PROGRAM = Path(__file__).with_name("growth_process.py")

Case = dict[str, Any]
Measurement = dict[str, float]

MLP: Case = {
    "model": "mlp",
    "engine": "fused",
    "workers": 1,
    "precision": "float32",
    "batch_size": 64,
    "steps": 200,
}
CNN: Case = {
    "model": "cnn",
    "engine": "parallel",
    "workers": 1,
    "precision": "auto",
    "batch_size": 64,
    "steps": 40,
}
ALL_CNN: Case = {
    "model": "allcnn-c",
    "engine": "sequential",
    "workers": 1,
    "batch_size": 128,
    "population": 1,
    "steps": 4,
}


class Growth:
    """The tables, and a folder with their data sets."""

    def __init__(self, folder: Path, repetitions: int) -> None:
        self._folder = folder
        self._repetitions = repetitions

    def print_tables(self) -> None:
        """Print all tables."""
        small, whole = self._data(side=8), self._data(side=28)
        populations = (8, 16, 32, 64)
        self._table(
            "population: mlp, 8x8 images, fused in one process, 200 steps",
            "candidates",
            [(n, {**MLP, "population": n, "path": small}) for n in populations],
        )
        self._table(
            "population: cnn, 28x28 images, one after another, 40 steps",
            "candidates",
            [(n, {**CNN, "population": n, "path": whole}) for n in populations],
        )
        self._table(
            "steps: cnn, 8 candidates",
            "steps",
            [(n, {**CNN, "population": 8, "steps": n, "path": whole}) for n in (25, 50, 100, 200)],
        )
        sizes = [(f"{side}x{side}", self._data(side=side)) for side in (16, 32, 64)]
        self._table(
            "image size: cnn, 8 candidates",
            "images",
            [(label, {**CNN, "population": 8, "path": path}) for label, path in sizes],
        )
        self._table(
            "processes: cnn, 16 candidates (memory: the largest that trains)",
            "processes",
            [(n, {**CNN, "population": 16, "workers": n, "path": whole}) for n in (1, 2, 4)],
        )
        self._large()

    def _large(self) -> None:
        """Print the time and the memory of a network and a data set of the published search."""
        cifar = self._data(side=32, channels=3, train=45_000, validation=5_000)
        precisions = ("float32", "bfloat16")
        self._table(
            "All-CNN-C on 45 000 + 5 000 images of CIFAR-10's shape (n = 1)",
            "precision",
            [(kind, {**ALL_CNN, "precision": kind, "path": cifar}) for kind in precisions],
            repetitions=1,
        )
        source = str(self._folder / "source.safetensors")
        split = datasets.read(Path(cifar)).train
        save_file({"images": split.images, "labels": split.labels}, source)
        memory = measured("preparation", {"model": "allcnn-c", "path": source})["peak"]
        print(f"  preparing 45 000 such images: peak {memory:.0f} MiB")

    def _data(
        self, *, side: int, channels: int = 1, train: int = 4_000, validation: int = 500
    ) -> str:
        """Return the path of a data set of this size, which is made if need be."""
        path = self._folder / f"{side}-{channels}-{train}-{validation}.safetensors"

        def resized(images: Tensor) -> Tensor:
            scaled = functional.interpolate(images.float(), (side, side), mode="area").byte()
            return scaled.expand(-1, channels, -1, -1).contiguous()

        if not path.exists():
            datasets.save(fashion_mnist(train, validation, resized), path)
        return str(path)

    def _table(
        self,
        title: str,
        name: str,
        cases: Sequence[tuple[Any, Case]],
        *,
        repetitions: int | None = None,
    ) -> None:
        """Print a line for each case: the median rate with its range, and the memory."""
        print(f"\n{title}")
        print(
            f"  {name:>12}  {'seconds':>18}  {'candidate steps/s':>22}  {'peak MiB':>8}  "
            f"{'formula':>8}"
        )
        measurements: list[list[Measurement]] = [[] for _ in cases]
        # In turns, so that other work of the machine falls on all cases.
        for _ in range(repetitions or self._repetitions):
            for number, (_, case) in enumerate(cases):
                measurements[number].append(measured("training", case))
        for (label, _), repeated in zip(cases, measurements, strict=True):
            print(f"  {label:>12}  {described(repeated)}", flush=True)


def measured(what: str, case: Case) -> Measurement:
    """Measure in a process of its own."""
    command = [sys.executable, str(PROGRAM), what, json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    measurement: Measurement = json.loads(done.stdout.splitlines()[-1])
    return measurement


def described(measurements: Sequence[Measurement]) -> str:
    """Return the repeated measurements of a case as the columns of a line."""
    seconds = sorted(measurement["seconds"] for measurement in measurements)
    rates = sorted(measurement["rate"] for measurement in measurements)
    peak = max(measurement["peak"] for measurement in measurements)
    time = f"{median(seconds):.2f} ({seconds[0]:.2f}-{seconds[-1]:.2f})"
    rate = f"{short(median(rates))} ({short(rates[0])}-{short(rates[-1])})"
    line = f"{time:>18}  {rate:>22}  {peak:8.0f}  {measurements[0]['formula']:8.0f}"
    if "parent" not in measurements[0]:
        return line
    parent = max(measurement["parent"] for measurement in measurements)
    return f"{line}  (their parent: {parent:.0f})"


def short(value: float) -> str:
    """Return a number with the digits that mean something."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    repetitions = parser.parse_args().repetitions
    print(
        f"{platform.machine()}, {torch.get_num_threads()} cores; "
        f"Python {platform.python_version()}, torch {torch.__version__}; "
        f"median (range) of {repetitions}"
    )
    with tempfile.TemporaryDirectory() as folder:
        Growth(Path(folder), repetitions).print_tables()


if __name__ == "__main__":
    main()
