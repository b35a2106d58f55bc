"""Small trainings for the tests: data sets, settings, caches, and candidates evaluated by an engine
of their own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from taylorglo.data.dataset import Dataset, Split
from taylorglo.evaluation.fitness import Evaluation, evaluate
from taylorglo.loss.polynomial import from_coefficients
from taylorglo.settings import SweepSettings
from taylorglo.training.engine import Engine

GOOD = from_coefficients(4.0, -4.0, -1.0, 0.0)
OTHER = from_coefficients(6.0, -3.0, -2.0, 0.5)
BACKWARDS = from_coefficients(-4.0, 4.0, 1.0, 0.0)


@dataclass
class Notes:
    """A cache in memory, of JSON as in a store."""

    results: dict[str, str] = field(default_factory=dict)

    def recall(self, key: str) -> Mapping[str, Any] | None:
        return json.loads(self.results[key]) if key in self.results else None

    def record(self, key: str, result: Mapping[str, Any]) -> None:
        assert key not in self.results, "trained twice"
        self.results[key] = json.dumps(result, allow_nan=False)


def sweep(
    *, model: str = "mlp", training: dict[str, Any] | None = None, seed: int = 0, **evaluation: Any
) -> SweepSettings:
    """Short trainings, one after another in this process, where a test can count what they do."""
    return SweepSettings.model_validate(
        {
            "seed": seed,
            "model": {"name": model},
            "training": {"steps": 60, "engine": "sequential", "workers": 1, **(training or {})},
            "evaluation": {"steps": 20, "give_up_step": 0, **evaluation},
        }
    )


def evaluated(
    theta: Sequence[float], generation: int, dataset: Dataset, settings: SweepSettings
) -> Evaluation:
    """One candidate, evaluated alone, with nothing known before."""
    (evaluation,) = all_evaluated([theta], generation, dataset, settings)
    return evaluation


def all_evaluated(
    thetas: Sequence[Sequence[float]], generation: int, dataset: Dataset, settings: SweepSettings
) -> list[Evaluation]:
    """Candidates that are evaluated together, with nothing known before."""
    candidates = [
        (number, theta, settings.evaluation.attempts) for number, theta in enumerate(thetas)
    ]
    with Engine(settings, lambda: dataset) as engine:
        found = dict(evaluate(candidates, generation, engine, Notes()))
    return [found[number] for number in range(len(thetas))]


def untimed(evaluation: Evaluation) -> Evaluation:
    """Without what differs where the same is computed elsewhere."""
    return replace(evaluation, started=0.0, ended=0.0, seconds=0.0, method="")


def synthetic(
    shape: tuple[int, int, int], classes: int = 4, train: int = 64, held_out: int = 32
) -> Dataset:
    """Images that can be told apart: noise, brighter in the rows that belong to the class."""
    generator = torch.Generator().manual_seed(5)

    def split(size: int) -> Split:
        labels = torch.arange(size) % classes
        images = torch.randint(0, 128, (size, *shape), generator=generator, dtype=torch.uint8)
        for label in range(classes):
            images[
                labels == label, :, label * shape[1] // classes : (label + 1) * shape[1] // classes
            ] += 100
        return Split(images, labels)

    return Dataset(
        name="synthetic",
        num_classes=classes,
        train=split(train),
        validation=split(held_out),
        test=split(held_out),
        mean=(0.35,) * shape[0],
        std=(0.2,) * shape[0],
        provenance={"fingerprint": "synthetic"},
    )


@contextmanager
def steps_counted() -> Iterator[list[tuple[float, float]]]:
    """The learning rate and momentum of every optimizer step in this process, as they are done."""
    seen: list[tuple[float, float]] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append(
            (float(optimizer.param_groups[0]["lr"]), optimizer.param_groups[0]["momentum"])
        )
    )
    try:
        yield seen
    finally:
        handle.remove()
