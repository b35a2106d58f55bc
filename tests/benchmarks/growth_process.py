"""One measurement of growth.py, in a process of its own: `growth_process.py WHAT CASE`.

WHAT is `training` or `preparation`, and CASE its arguments as JSON. The last line of the output is
the measurement as JSON.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taylorglo.loss.functions import TaylorLoss
from taylorglo.loss.polynomial import from_coefficients
from taylorglo.networks.factory import skeleton
from taylorglo.settings import SweepSettings
from taylorglo.tasks import prepare
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe
from taylorglo.training.memory import PROCESS, footprint

MIB = 2**20

Measurement = dict[str, float]


def peak(process: int | str = "self") -> float:
    """Return the most memory that a process has had, in MiB."""
    # Not getrusage's: there a process begins with what its parent had.
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def training(case: dict[str, Any]) -> Measurement:
    """Train a generation.

    Returns:
        Its seconds and candidate steps per second, and in MiB the memory of the largest process
        that trained, and that of the formula.
    """
    steps, population, workers = case["steps"], case["population"], case["workers"]
    keys = ("batch_size", "engine", "workers", "precision", "steps")
    settings = SweepSettings.model_validate(
        {
            "model": {"name": case["model"]},
            "training": {key: case[key] for key in keys},
            "evaluation": {"steps": steps, "give_up_step": 0},
        }
    )
    with Engine.open(settings, case["path"]) as engine:
        # Processes are started once, and kernels of this network are chosen once.
        train(engine, 2 * workers, 2)
        seconds = train(engine, population, steps)
        formula = expected_memory(engine, case)
        others = [peak(child.pid or 0) for child in multiprocessing.active_children()]
    measurement = {
        "seconds": seconds,
        "rate": population * steps / seconds,
        "peak": max(others, default=peak()),
        "formula": formula,
    }
    return {**measurement, "parent": peak()} if others else measurement


def train(engine: Engine, population: int, steps: int) -> float:
    """Train candidates near cross-entropy; return the seconds that it took."""
    thetas = [from_coefficients(4.0 + 0.01 * n, -4.0, -1.0, 0.0) for n in range(population)]
    recipes = [Recipe(TaylorLoss(theta), 0.01, 0, steps, steps, validations=1) for theta in thetas]
    started = time.perf_counter()
    results = list(engine.run(enumerate(recipes)))
    assert all(result.training.status == "ok" for _, result in results)
    return time.perf_counter() - started


def expected_memory(engine: Engine, case: dict[str, Any]) -> float:
    """Return the memory of one process by the formula of ``taylorglo.training.memory``, in MiB."""
    dataset = engine.dataset
    shape = dataset.image_shape
    network = skeleton(case["model"], shape, dataset.num_classes)
    splits = (dataset.train, dataset.validation)
    data = sum(split.images.nbytes + split.labels.nbytes for split in splits)
    chunk = min(engine.plan.chunk, case["population"])
    training = footprint(network, shape, case["batch_size"]).training
    return float(PROCESS + data + chunk * training) / MIB


def preparation(case: dict[str, Any]) -> Measurement:
    """Prepare a data set as the pipeline's task does; return the memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        prepare.run(
            data={
                "name": "safetensors",
                "root": case["path"],
                "validation_fraction": 0.1,
                "test_fraction": 0.1,
            },
            model={"name": case["model"]},
            seed=0,
            description_path=f"{folder}/description",
            search_data_path=f"{folder}/search",
            full_data_path=f"{folder}/full",
        )
    return {"peak": peak()}


MEASUREMENTS: dict[str, Callable[[dict[str, Any]], Measurement]] = {
    "training": training,
    "preparation": preparation,
}


def main() -> None:
    """Print a measurement."""
    what, case = sys.argv[1:]
    print(json.dumps(MEASUREMENTS[what](json.loads(case))))


if __name__ == "__main__":
    main()
