"""Candidate steps per second: the engine beside the loop that a researcher writes (`make bench`).

Both train the same generation of candidates on Fashion-MNIST (Debian's package
dataset-fashion-mnist), in turns, with the same networks, batches, optimizer and schedule, and both
validate each candidate once, at the end. The reference is PyTorch's usual: torchvision's data set
and transforms, a DataLoader with the number of workers that is fastest here, one candidate after
another on all cores, and the loss as an expression in Python.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import CASES, Case
from fashion import fashion_mnist
from profiles import print_profiles
from reference import Reference, unpack
from torch.utils.flop_counter import FlopCounterMode

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.training.engine import Engine
from taylorglo.training.loop import build_network

VALIDATED = 256

# The engines that are compared with each other: their settings of the section ``training``.
ENGINES: Mapping[str, Mapping[str, Any]] = {
    "one after another, in one process with 2 threads": {"engine": "sequential", "threads": 2},
    "parallel, 2 processes of 1 thread": {"engine": "parallel", "workers": 2},
    "parallel, float32": {"engine": "parallel", "workers": 2, "precision": "float32"},
    "parallel, compiled": {"engine": "parallel", "workers": 2, "compile": True},
    "fused, 2 processes of 1 thread": {"engine": "fused", "workers": 2},
}

Run = Callable[[], tuple[float, float]]


class Data(NamedTuple):
    """Fashion-MNIST: torchvision's folder, the engine's file, and the data set."""

    folder: Path
    path: Path
    dataset: Dataset


class Ratios(NamedTuple):
    """Median ratios of the rates of the engine and the reference, by the engine's precision."""

    as_benched: float
    automatic: float


class Peak(NamedTuple):
    """Floating-point operations per second of matrix products."""

    float32: float
    bfloat16: float


@dataclass
class Measurements:
    """Candidate steps per second and accuracies (%) of each program, by repetition."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    peaks: list[Peak] = field(default_factory=list)

    def add(self, program: str, run: Run) -> None:
        """Run a program once."""
        rate, accuracy = run()
        self.rates.setdefault(program, []).append(rate)
        self.accuracies.setdefault(program, []).append(100 * accuracy)

    def ratios(self, program: str) -> list[float]:
        """Return the rates of a program over those of the reference."""
        pairs = zip(self.rates[program], self.rates["reference"], strict=True)
        return [rate / reference for rate, reference in pairs]


def prepared(folder: Path) -> Data:
    """Write Fashion-MNIST for both programs, with few validation images."""
    unpack(folder)
    dataset = fashion_mnist(validation=VALIDATED)
    path = folder / "fashion-mnist.safetensors"
    datasets.save(dataset, path)
    return Data(folder, path, dataset)


def run_engine(engine: Engine, case: Case) -> tuple[float, float]:
    """Train the generation; return candidate steps per second, and the mean accuracy."""
    started = time.perf_counter()
    trained = [result.training for _, result in engine.run(case.recipes())]
    seconds = time.perf_counter() - started
    assert all(training.status == "ok" for training in trained)
    accuracy = statistics.mean(training.accuracy for training in trained)
    return case.candidates * case.steps / seconds, accuracy


def started_engine(
    stack: ExitStack, case: Case, path: Path, **training: Any
) -> tuple[Engine, float]:
    """Start an engine, which ends with the stack; return it, and the seconds that it took."""
    engine = stack.enter_context(Engine.open(case.settings(**training), path))
    started = time.perf_counter()
    run_engine(engine, replace(case, steps=2))
    return engine, time.perf_counter() - started


def spread(values: Sequence[float]) -> str:
    """Return median and range in words."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare_engines(cases: Sequence[Case], path: Path, repetitions: int) -> None:
    """Print candidate steps per second by engine, all in turns."""
    for case in cases:
        print(f"\n{case.title}")
        rates: dict[str, list[float]] = {name: [] for name in ENGINES}
        with ExitStack() as stack:
            engines = {
                name: started_engine(stack, case, path, **training)
                for name, training in ENGINES.items()
            }
            for _ in range(repetitions):
                for name, (engine, _) in engines.items():
                    rates[name].append(run_engine(engine, case)[0])
        for name, (engine, seconds) in engines.items():
            print(
                f"  {name:<49} {engine.plan.precision:<9} {spread(rates[name])} steps/s, "
                f"started in {seconds:.1f} s",
                flush=True,
            )


def compare_with_reference(case: Case, data: Data, repetitions: int) -> Ratios:
    """Print the table of a case; return its ratios."""
    reference = Reference(data.folder, case, data.dataset)
    reference.tune()
    measurements = Measurements()
    with ExitStack() as stack:
        engine, start = started_engine(stack, case, data.path)
        runs: dict[str, Run] = {
            "reference": reference.run,
            "engine": partial(run_engine, engine, case),
        }
        automatic = stack.enter_context(Engine.open(case.settings(precision="auto"), data.path))
        if automatic.plan.precision != engine.plan.precision:
            run_engine(automatic, replace(case, steps=2))
            runs["auto"] = partial(run_engine, automatic, case)
        for _ in range(repetitions):
            for program, run in runs.items():
                measurements.add(program, run)
            measurements.peaks.append(peak())
    print(f"\n{case.title}")
    print(f"  {engine.plan}; started in {start:.1f} s, once")
    print_rates(measurements, reference.workers, automatic.plan.precision)
    print_use(measurements, flops(case, data.dataset), engine.plan.precision)
    print_profiles(case, reference, data.dataset, engine.plan)
    as_benched = statistics.median(measurements.ratios("engine"))
    if "auto" not in runs:
        return Ratios(as_benched, as_benched)
    return Ratios(as_benched, statistics.median(measurements.ratios("auto")))


def print_rates(measurements: Measurements, workers: int, automatic: str) -> None:
    """Print rates, ratios and accuracies; ``automatic`` is the precision that the engine chose."""
    rates, accuracies = measurements.rates, measurements.accuracies
    print(
        f"  candidate steps/s: reference {spread(rates['reference'])} with {workers} loader workers"
    )
    print(f"  candidate steps/s: engine    {spread(rates['engine'])}")
    print(f"  ratio:             {spread(measurements.ratios('engine'))}")
    print(
        f"  accuracy (%) then: reference {spread(accuracies['reference'])}, "
        f"engine {spread(accuracies['engine'])}"
    )
    if "auto" in rates:
        print(
            f"  with auto, {automatic}: {spread(rates['auto'])} steps/s, "
            f"ratio {spread(measurements.ratios('auto'))}"
        )


def print_use(measurements: Measurements, work: int, precision: str) -> None:
    """Print which part of the rate of matrix products is reached.

    Args:
        measurements: of the case.
        work: floating-point operations of a step.
        precision: of the engine.
    """

    def use(program: str, is_half: bool) -> float:
        pairs = zip(measurements.rates[program], measurements.peaks, strict=True)
        return statistics.median(
            work * rate / (peak.bfloat16 if is_half else peak.float32) for rate, peak in pairs
        )

    single = statistics.median(peak.float32 for peak in measurements.peaks) / 1e9
    half = statistics.median(peak.bfloat16 for peak in measurements.peaks) / 1e9
    print(
        f"  of the rate of matrix products (float32 {single:.0f}, bfloat16 {half:.0f} GFLOP/s): "
        f"reference {use('reference', False):.0%} of float32, "
        f"engine {use('engine', precision == 'bfloat16'):.0%} of {precision}"
    )


def peak() -> Peak:
    """Measure the rate of matrix products in both precisions."""
    return Peak(matmul_rate(torch.float32), matmul_rate(torch.bfloat16))


def matmul_rate(dtype: torch.dtype, size: int = 1536, seconds: float = 1.0) -> float:
    """Return the floating-point operations per second of square matrix products on all cores."""
    a = torch.randn(size, size).to(dtype)
    for _ in range(3):
        a @ a
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        a @ a
        done += 1
    return 2 * size**3 * done / (time.perf_counter() - started)


def flops(case: Case, dataset: Dataset) -> int:
    """Return the floating-point operations of one step of a candidate, forward and backward."""
    network = build_network(case.settings(), dataset, 0)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(case.batch_size, *dataset.image_shape)).sum().backward()
    return int(counter.get_total_flops())


def print_means(ratios: Sequence[Ratios]) -> None:
    """Print the geometric means of the ratios over the cases."""
    print("\ngeometric mean of the ratios:")
    for name, medians in (
        ("as benched", [ratio.as_benched for ratio in ratios]),
        ("with auto everywhere", [ratio.automatic for ratio in ratios]),
    ):
        mean = statistics.geometric_mean(medians)
        print(f"  {name:<20} {mean:.2f}; the smallest: {min(medians):.2f}")


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    models = [case.model for case in CASES]
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument(
        "--engines", action="store_true", help="compare the engines with each other instead"
    )
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {torch.__version__}; "
        f"{arguments.repetitions} repetitions"
    )
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(Path(folder))
        cases = [case for case in CASES if case.model in arguments.models]
        if arguments.engines:
            compare_engines(cases, data.path, arguments.repetitions)
        else:
            print_means(
                [compare_with_reference(case, data, arguments.repetitions) for case in cases]
            )


if __name__ == "__main__":
    main()
