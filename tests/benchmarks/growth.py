"""How time and memory grow, and what a worker takes (`make bench-growth`).

Each line is a process of its own, with the workers that it starts. The peak memory is what the
system counted, of the largest process that trains, beside the formula of
``taylorglo.training.memory`` for one. Images are Fashion-MNIST's (Debian's package dataset-fashion-
mnist), resized.
"""

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = "/usr/share/datasets/fashion-mnist"
MIB = 2**20


def made(folder: Path, side: int, channels: int, train: int, validation: int) -> Path:
    """A data set of this size, in the folder."""
    from torch.nn import functional

    from taylorglo.data import dataset as data
    from taylorglo.data.sources import Split, digest_of
    from taylorglo.settings import DataSettings

    path = folder / f"{side}-{channels}-{train}-{validation}.safetensors"
    if not path.exists():
        whole = data.without_test(data.load(DataSettings(name="fashion-mnist", root=ROOT), 0))

        def part(split: Split, number: int) -> Split:
            images = functional.interpolate(
                split.images[:number].float(), (side, side), mode="area"
            ).byte()
            return Split(images.expand(-1, channels, -1, -1).contiguous(), split.labels[:number])

        parts = {
            "train": part(whole.train, train),
            "validation": part(whole.validation, validation),
        }
        statistics = {"mean": whole.mean * channels, "std": whole.std * channels}
        provenance = {**whole.provenance, "fingerprint": digest_of(**parts)}
        data.save(replace(whole, **parts, **statistics, provenance=provenance), path)
    return path


def peak(process: str = "self") -> float:
    """The most memory that a process has had, in MiB."""
    # Not getrusage's, in which a process begins with what its parent had.
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measured(case: dict[str, Any]) -> dict[str, float]:
    """Train a generation, and tell its seconds and, in MiB, the memory of the largest process that
    trained."""
    from taylorglo.loss.functions import TaylorLoss
    from taylorglo.loss.polynomial import from_coefficients
    from taylorglo.networks.factory import skeleton
    from taylorglo.settings import SweepSettings
    from taylorglo.training.engine import Engine
    from taylorglo.training.loop import Recipe, read_resident
    from taylorglo.training.memory import PROCESS, footprint

    steps, training = case["steps"], {"batch_size": case["batch_size"], "engine": case["engine"]}
    settings = SweepSettings.model_validate(
        {
            "model": {"name": case["model"]},
            "training": {
                **training,
                "workers": case["workers"],
                "precision": case["precision"],
                "steps": steps,
            },
            "evaluation": {"steps": steps, "give_up_step": 0},
        }
    )
    with Engine(settings, partial(read_resident, case["path"], settings.training)) as engine:

        def train(population: int, steps: int) -> float:
            thetas = [
                from_coefficients(4.0 + 0.01 * number, -4.0, -1.0, 0.0)
                for number in range(population)
            ]
            recipes = [
                (i, Recipe(TaylorLoss(theta), 0.01, 0, steps, steps, 1))
                for i, theta in enumerate(thetas)
            ]
            started = time.perf_counter()
            assert all(result.training.status == "ok" for _, result in engine.train(recipes))
            return time.perf_counter() - started

        train(
            2 * case["workers"], 2
        )  # what is done once: processes, and the kernels of this network
        seconds = train(case["population"], steps)
        dataset = engine.dataset
        shape, classes = dataset.image_shape, dataset.num_classes
        own = footprint(skeleton(case["model"], shape, classes), shape, case["batch_size"])
        splits = (dataset.train, dataset.validation)
        kept = sum(split.images.nbytes + split.labels.nbytes for split in splits)
        chunk = min(engine.plan.chunk, case["population"])
        workers = [peak(str(child.pid)) for child in multiprocessing.active_children()]
    found = {
        "seconds": seconds,
        "rate": case["population"] * steps / seconds,
        "peak": max(workers, default=peak()),
        "formula": (PROCESS + kept + chunk * own.training) / MIB,
    }
    return {**found, "parent": peak()} if workers else found


def prepared(case: dict[str, Any]) -> dict[str, float]:
    """Prepare a data set in this process, as the pipeline's task does, and tell its memory in
    MiB."""
    from taylorglo.settings import DataSettings
    from taylorglo.tasks.stages import prepare

    with tempfile.TemporaryDirectory() as folder:
        settings = DataSettings(
            name="safetensors", root=case["path"], validation_fraction=0.1, test_fraction=0.1
        )
        prepare(
            settings,
            0,
            case["model"],
            *(str(Path(folder) / name) for name in ("description", "search", "full")),
        )
    return {"peak": peak()}


def apart(what: str, case: dict[str, Any]) -> dict[str, float]:
    """Do it in a process of its own."""
    command = [sys.executable, __file__, "--one", what, json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(title: str, name: str, cases: list[tuple[Any, dict[str, Any]]], repetitions: int) -> None:
    """Print a line per case: the median rate with its range, and the memory."""
    print(f"\n{title}")
    print(
        f"  {name:>12}  {'seconds':>18}  {'candidate steps/s':>22}  {'peak MiB':>8}  {'formula':>8}"
    )
    found: list[list[dict[str, float]]] = [[] for _ in cases]
    for _ in range(
        repetitions
    ):  # in turns, so that what else the machine does falls on all of them
        for number, (_, case) in enumerate(cases):
            found[number].append(apart("measured", case))
    for (label, _), own in zip(cases, found, strict=True):
        seconds, rates = (
            sorted(each["seconds"] for each in own),
            sorted(each["rate"] for each in own),
        )
        middle = len(own) // 2
        spread = f"{seconds[middle]:.2f} ({seconds[0]:.2f}-{seconds[-1]:.2f})"
        rate = f"{short(rates[middle])} ({short(rates[0])}-{short(rates[-1])})"
        memory = f"{max(e['peak'] for e in own):8.0f}  {own[0]['formula']:8.0f}"
        if "parent" in own[0]:
            memory += f"  (their parent: {max(e['parent'] for e in own):.0f})"
        print(f"  {label:>12}  {spread:>18}  {rate:>22}  {memory}", flush=True)


def short(value: float) -> str:
    """A number with the digits that mean something."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, case = arguments.one
        print(json.dumps({"measured": measured, "prepared": prepared}[what](json.loads(case))))
        return
    import torch
    from safetensors.torch import save_file

    from taylorglo.data.dataset import read

    print(
        f"{platform.machine()}, {torch.get_num_threads()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}; median (range) of {arguments.repetitions}"
    )
    with tempfile.TemporaryDirectory() as folder:
        small = str(made(Path(folder), 8, 1, 4_000, 500))
        whole = str(made(Path(folder), 28, 1, 4_000, 500))
        mlp = {
            "model": "mlp",
            "engine": "fused",
            "workers": 1,
            "precision": "float32",
            "batch_size": 64,
            "steps": 200,
        }
        cnn = {
            "model": "cnn",
            "engine": "parallel",
            "workers": 1,
            "precision": "auto",
            "batch_size": 64,
            "steps": 40,
        }
        populations = [(n, {**mlp, "population": n, "path": small}) for n in (8, 16, 32, 64)]
        table(
            "population: mlp, 8x8 images, fused in one process, 200 steps",
            "candidates",
            populations,
            arguments.repetitions,
        )
        populations = [(n, {**cnn, "population": n, "path": whole}) for n in (8, 16, 32, 64)]
        table(
            "population: cnn, 28x28 images, one after another, 40 steps",
            "candidates",
            populations,
            arguments.repetitions,
        )
        cases = [
            (n, {**cnn, "population": 8, "steps": n, "path": whole}) for n in (25, 50, 100, 200)
        ]
        table("steps: cnn, 8 candidates", "steps", cases, arguments.repetitions)
        sizes = [(f"{n}x{n}", str(made(Path(folder), n, 1, 4_000, 500))) for n in (16, 32, 64)]
        cases = [(label, {**cnn, "population": 8, "path": path}) for label, path in sizes]
        table("image size: cnn, 8 candidates", "images", cases, arguments.repetitions)
        cases = [(n, {**cnn, "population": 16, "workers": n, "path": whole}) for n in (1, 2, 4)]
        table(
            "processes: cnn, 16 candidates (memory: the largest that trains)",
            "processes",
            cases,
            arguments.repetitions,
        )

        cifar = str(made(Path(folder), 32, 3, 45_000, 5_000))
        heavy = {
            "model": "allcnn-c",
            "engine": "sequential",
            "workers": 1,
            "batch_size": 128,
            "path": cifar,
        }
        cases = [
            (kind, {**heavy, "precision": kind, "population": 1, "steps": 4})
            for kind in ("float32", "bfloat16")
        ]
        table(
            "All-CNN-C on 45 000 + 5 000 images of CIFAR-10's shape (n = 1)", "precision", cases, 1
        )
        source = str(Path(folder) / "source.safetensors")
        dataset = read(Path(cifar))
        save_file({"images": dataset.train.images, "labels": dataset.train.labels}, source)
        memory = apart("prepared", {"model": "allcnn-c", "path": source})["peak"]
        print(f"  preparing 45 000 such images: peak {memory:.0f} MiB")


if __name__ == "__main__":
    main()
