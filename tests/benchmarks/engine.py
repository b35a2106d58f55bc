"""How many candidate steps a second: the engine beside the loop that a researcher writes, in one
run (`make bench`).

Both train the same generation of candidates on Fashion-MNIST (Debian's package dataset-fashion-
mnist), in turns, with the same networks, batches, optimizer and schedule, and both validate each
candidate once, at the end. The reference is PyTorch's usual: torchvision's data set and transforms,
a DataLoader with the number of workers that is fastest here, one candidate after another on all
cores, the loss as an expression in Python.
"""

import argparse
import gzip
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

from taylorglo.data import dataset as data
from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset
from taylorglo.data.sources import Split, digest_of
from taylorglo.loss.functions import TaylorLoss
from taylorglo.loss.polynomial import from_coefficients
from taylorglo.settings import DataSettings, SweepSettings
from taylorglo.training.engine import Engine, Plan
from taylorglo.training.loop import Recipe, build_network, read_resident, train
from taylorglo.training.stacked import train_together

ROOT = Path("/usr/share/datasets/fashion-mnist")
VALIDATED, RATE = 256, 0.01


@dataclass(frozen=True)
class Case:
    """A network, its batch size, and of how many candidates each is trained for how many steps."""

    model: str
    batch_size: int
    candidates: int
    steps: int
    precision: str = "auto"

    def settings(self, **training: Any) -> SweepSettings:
        """The settings of its sweep."""
        own = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rate": RATE,
            "precision": self.precision,
        }
        values = {**own, **training}
        return SweepSettings.model_validate(
            {
                "model": {"name": self.model},
                "training": values,
                "evaluation": {"steps": self.steps, "give_up_step": 0},
            }
        )


# 20 candidates are the population of the published search on CIFAR-10. All-CNN-C has fewer for the
# sake of time: its steps cost the same however many candidates there are.
CASES = (
    Case("mlp", 64, 20, 200),
    Case("cnn", 64, 20, 60),
    Case("mnist-cnn", 100, 20, 24),
    Case("allcnn-c", 128, 8, 8, "bfloat16"),
)


def thetas(number: int) -> list[list[float]]:
    """A generation of candidates near cross-entropy, all of which learn."""
    return [from_coefficients(4.0 + 0.8 * each / number, -4.0, -1.0, 0.0) for each in range(number)]


class Reference:
    """The usual loop."""

    def __init__(self, folder: Path, case: Case, dataset: Dataset) -> None:
        self.case, self.dataset = case, dataset
        normalise = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
        )
        self.images = datasets.FashionMNIST(folder, train=True, transform=normalise)
        images = (scaled(dataset.validation.images) - dataset.mean[0]) / dataset.std[0]
        self.validation = TensorDataset(images, dataset.validation.labels)
        self.workers = 0
        self.waited = 0.0

    def tune(self) -> None:
        """Choose the number of workers that is fastest, of two trainings each."""
        seconds = []
        for self.workers in (0, 1, 2) * 2:
            started = time.perf_counter()
            self.train(thetas(1)[0])
            seconds.append((time.perf_counter() - started, self.workers))
        self.workers = min(seconds)[1]

    def run(self) -> tuple[float, float]:
        """Train the generation; returns candidate steps per second, and the mean accuracy."""
        started = time.perf_counter()
        accuracy = statistics.mean(self.train(theta) for theta in thetas(self.case.candidates))
        return self.case.candidates * self.case.steps / (time.perf_counter() - started), accuracy

    def train(self, theta: list[float]) -> float:
        """Train one candidate; returns its accuracy."""
        network = build_network(
            self.case.settings(), replace_statistics(self.dataset), 0
        ).get_submodule("network")
        settings = self.case.settings().training
        loader = DataLoader(
            self.images, settings.batch_size, shuffle=True, drop_last=True, num_workers=self.workers
        )
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=RATE,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.case.steps)
        network.train()
        batches = self._timed(loader)
        for _ in range(self.case.steps):
            images, labels = next(batches)
            optimizer.zero_grad()
            h, t = network(images).softmax(dim=1), nn.functional.one_hot(labels, 10).float()
            u, v = h - theta[1], t - theta[0]
            f = theta[2] * u + theta[3] * u**2 + theta[4] * u**3
            f = f + theta[5] * v * u + theta[6] * v * u**2 + theta[7] * v**2 * u
            (-f.sum(dim=1).mean()).backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            correct = sum(
                int((network(x).argmax(1) == y).sum())
                for x, y in DataLoader(self.validation, VALIDATED)
            )
        return correct / VALIDATED

    def _timed(self, loader: DataLoader[Any]) -> Iterator[Any]:
        started = time.perf_counter()
        batches = iter(loader)
        while True:
            batch = next(batches)
            self.waited += time.perf_counter() - started
            yield batch
            started = time.perf_counter()


def replace_statistics(dataset: Dataset) -> Dataset:
    """The data set with a normalisation that changes nothing: the reference's transforms do it."""
    return replace(dataset, mean=(0.0,), std=(1.0,))


def recipes(case: Case) -> Iterator[tuple[int, Recipe]]:
    """The same generation, for the engine."""
    for number, theta in enumerate(thetas(case.candidates)):
        yield number, Recipe(TaylorLoss(theta), RATE, 0, case.steps, case.steps, validations=1)


def run(engine: Engine, case: Case) -> tuple[float, float]:
    """Train the generation; returns candidate steps per second, and the mean accuracy."""
    started = time.perf_counter()
    trained = [result.training for _, result in engine.train(recipes(case))]
    seconds = time.perf_counter() - started
    assert all(training.status == "ok" for training in trained)
    return case.candidates * case.steps / seconds, statistics.mean(
        training.accuracy for training in trained
    )


def matmul_rate(dtype: torch.dtype, size: int = 1536, seconds: float = 1.0) -> float:
    """Floating-point operations a second of square matrix products on all cores."""
    a = torch.randn(size, size).to(dtype)
    for _ in range(3):
        a @ a
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        a @ a
        done += 1
    return 2 * size**3 * done / (time.perf_counter() - started)


def flops(case: Case, dataset: Dataset) -> int:
    """Floating-point operations of one step of one candidate, forward and backward."""
    network = build_network(case.settings(), dataset, 0)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(case.batch_size, *dataset.image_shape)).sum().backward()
    return int(counter.get_total_flops())


KINDS = {
    "convolution": ("conv",),
    "matrix product": ("mm", "addmm", "bmm", "linear"),
    "pooling": ("pool",),
    "optimizer": ("sgd", "optimizer", "_foreach"),
    "dropout": ("bernoulli", "dropout", "random_"),
    "copies and casts": ("copy_", "index", "_to_copy", "contiguous", "cat", "stack"),
}


def shares(events: Any) -> dict[str, float]:
    """Where the time of a profile went, by kind of operation, as shares of it; but for the wait for
    a loader."""
    found: dict[str, float] = {}
    for event in events:
        name = event.key.lower()
        if "dataloader" in name:
            continue
        kind = next(
            (k for k, parts in KINDS.items() if any(part in name for part in parts)), "the rest"
        )
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(found.values())
    return {kind: value / total for kind, value in found.items()}


def profiled(case: Case, reference: Reference, dataset: Dataset, plan: Plan) -> None:
    """Print where the time of one candidate goes, in one thread: before, and after."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    short = replace(case, steps=max(3, case.steps // 4))
    before = Reference(Path(reference.images.root), short, dataset)
    before.workers = max(
        1, reference.workers
    )  # the transforms are another process's, and not in the profile
    with profile(activities=[ProfilerActivity.CPU]) as old:
        started = time.perf_counter()
        before.train(thetas(1)[0])
        seconds = time.perf_counter() - started
    print(
        f"  reference, the loader (workers: {before.workers}) {before.waited / seconds:.0%} of the time; "
        f"the rest of it: {listed(old)}"
    )
    with profile(activities=[ProfilerActivity.CPU]) as new:
        if plan.engine == "fused":
            train_together(
                [r for _, r in recipes(short)], dataset, short.settings(), plan.precision
            )
        else:
            train(
                build_network(short.settings(), dataset, 0),
                next(recipes(short))[1],
                dataset,
                short.settings(),
                plan.precision,
            )
    print(f"  engine: {listed(new)}")
    torch.set_num_threads(threads)


def listed(profiler: Any) -> str:
    """The shares of a profile, the largest first."""
    found = sorted(shares(profiler.key_averages()).items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {share:.0%}" for kind, share in found if share >= 0.01)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def prepared(folder: Path) -> tuple[Path, Path, Dataset]:
    """Fashion-MNIST for both: torchvision's folder, the engine's file, and the data set."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in ROOT.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    dataset = data.without_test(data.load(DataSettings(name="fashion-mnist", root=str(ROOT)), 0))
    validation = Split(dataset.validation.images[:VALIDATED], dataset.validation.labels[:VALIDATED])
    fingerprint = digest_of(train=dataset.train, validation=validation)
    dataset = replace(
        dataset,
        validation=validation,
        provenance={**dataset.provenance, "fingerprint": fingerprint},
    )
    path = folder / "fashion-mnist.safetensors"
    data.save(dataset, path)
    return folder, path, dataset


def opened(case: Case, path: Path, **training: Any) -> Engine:
    """An engine for a case, on the engine's file."""
    settings = case.settings(**training)
    return Engine(settings, partial(read_resident, str(path), settings.training))


def engines(cases: list[Case], path: Path, repetitions: int) -> None:
    """Print candidate steps per second by engine, all in turns."""
    variants: dict[str, dict[str, Any]] = {
        "one after another, in one process with 2 threads": {"engine": "sequential", "threads": 2},
        "parallel, 2 processes of 1 thread": {"engine": "parallel", "workers": 2},
        "parallel, float32": {"engine": "parallel", "workers": 2, "precision": "float32"},
        "parallel, compiled": {"engine": "parallel", "workers": 2, "compile": True},
        "fused, 2 processes of 1 thread": {"engine": "fused", "workers": 2},
    }
    for case in cases:
        print(
            f"\n{case.model}: batches of {case.batch_size}, {case.candidates} candidates of {case.steps} steps"
        )
        found: dict[str, list[float]] = {name: [] for name in variants}
        started: dict[str, float] = {}
        with ExitStack() as stack:
            entered = {}
            for name, training in variants.items():
                entered[name] = stack.enter_context(opened(case, path, **training))
                begun = time.perf_counter()
                run(entered[name], replace(case, steps=2))
                started[name] = time.perf_counter() - begun
            for _ in range(repetitions):
                for name, engine in entered.items():
                    found[name].append(run(engine, case)[0])
        for name, rates in found.items():
            precision = entered[name].plan.precision
            print(
                f"  {name:<49} {precision:<9} {spread(rates)} steps/s, started in {started[name]:.1f} s",
                flush=True,
            )


def benched(
    case: Case, root: Path, path: Path, dataset: Dataset, repetitions: int
) -> tuple[float, float]:
    """Print the table of a case; returns the median ratio of its engine, and that of an engine with
    precision auto."""
    reference = Reference(root, case, dataset)
    reference.tune()
    with ExitStack() as stack:
        engine = stack.enter_context(opened(case, path))
        started = time.perf_counter()
        run(engine, replace(case, steps=2))
        start = time.perf_counter() - started
        runs: dict[str, Callable[[], tuple[float, float]]] = {
            "reference": reference.run,
            "engine": partial(run, engine, case),
        }
        auto = stack.enter_context(opened(case, path, precision="auto"))
        if auto.plan.precision != engine.plan.precision:
            run(auto, replace(case, steps=2))
            runs["auto"] = partial(run, auto, case)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        learned: dict[str, list[float]] = {name: [] for name in runs}
        peaks = []
        for _ in range(repetitions):
            for name, generation in runs.items():
                rate, accuracy = generation()
                rates[name].append(rate)
                learned[name].append(100 * accuracy)
            peaks.append((matmul_rate(torch.float32), matmul_rate(torch.bfloat16)))
    ratios = {
        name: [new / old for new, old in zip(rates[name], rates["reference"], strict=True)]
        for name in runs
    }
    print(
        f"\n{case.model}: batches of {case.batch_size}, {case.candidates} candidates of {case.steps} steps"
    )
    print(f"  {engine.plan}; started in {start:.1f} s, once")
    print(
        f"  candidate steps/s: reference {spread(rates['reference'])} with {reference.workers} loader workers"
    )
    print(f"  candidate steps/s: engine    {spread(rates['engine'])}")
    print(f"  ratio:             {spread(ratios['engine'])}")
    print(
        f"  accuracy (%) then: reference {spread(learned['reference'])}, engine {spread(learned['engine'])}"
    )
    if "auto" in runs:
        print(
            f"  with auto, {auto.plan.precision}: {spread(rates['auto'])} steps/s, ratio {spread(ratios['auto'])}"
        )
    work = flops(case, dataset)
    own = [
        work * steps / peak[engine.plan.precision == "bfloat16"]
        for steps, peak in zip(rates["engine"], peaks, strict=True)
    ]
    old = [work * steps / peak[0] for steps, peak in zip(rates["reference"], peaks, strict=True)]
    single, half = (statistics.median(column) / 1e9 for column in zip(*peaks, strict=True))
    print(
        f"  of the rate of matrix products (float32 {single:.0f}, bfloat16 {half:.0f} GFLOP/s): reference "
        f"{statistics.median(old):.0%} of float32, engine {statistics.median(own):.0%} of {engine.plan.precision}"
    )
    profiled(case, reference, dataset, engine.plan)
    return statistics.median(ratios["engine"]), statistics.median(
        ratios.get("auto", ratios["engine"])
    )


def main() -> None:
    """Print a table, a line per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    models = [case.model for case in CASES]
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument(
        "--engines", action="store_true", help="compare the engines with each other instead"
    )
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(
        f"{machine}; Python {platform.python_version()}, torch {torch.__version__}; {arguments.repetitions} repetitions"
    )
    with tempfile.TemporaryDirectory() as folder:
        root, path, dataset = prepared(Path(folder))
        cases = [case for case in CASES if case.model in arguments.models]
        if arguments.engines:
            engines(cases, path, arguments.repetitions)
            return
        ratios = [benched(case, root, path, dataset, arguments.repetitions) for case in cases]
    print("\ngeometric mean of the ratios:")
    for name, medians in zip(
        ("as benched", "with auto everywhere"), zip(*ratios, strict=True), strict=True
    ):
        print(
            f"  {name:<20} {statistics.geometric_mean(medians):.2f}; the smallest: {min(medians):.2f}"
        )


if __name__ == "__main__":
    main()
