"""Small trainings for the tests: data sets, settings, a cache, and evaluations of candidates."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from taylorglo.data.dataset import Dataset, Split
from taylorglo.evaluation.fitness import Assignment, Cache, evaluate
from taylorglo.loss.polynomial import from_coefficients
from taylorglo.results import Evaluation, Execution, Training
from taylorglo.settings import SweepSettings
from taylorglo.training.engine import Engine
from taylorglo.training.loop import TrainedNetwork, tallied

GOOD = from_coefficients(4.0, -4.0, -1.0, 0.0)
OTHER = from_coefficients(6.0, -3.0, -2.0, 0.5)
BACKWARDS = from_coefficients(-4.0, 4.0, 1.0, 0.0)
# Numbers become infinite in the first steps.
EXTREME = [2e29 * value for value in GOOD]

Kind = TypeVar("Kind", bound=Execution)


@dataclass
class MemoryCache:
    """A cache of short trainings in memory, as JSON, which is what a store keeps."""

    trainings: dict[str, str] = field(default_factory=dict)

    def recall(self, key: str) -> Training | None:
        content = self.trainings.get(key)
        return None if content is None else Training.model_validate_json(content)

    def record(self, key: str, training: Training) -> None:
        assert key not in self.trainings, "trained twice"
        self.trainings[key] = json.dumps(training.to_json(), allow_nan=False)


def sweep(
    *, model: str = "mlp", training: dict[str, Any] | None = None, seed: int = 0, **evaluation: Any
) -> SweepSettings:
    """Return settings of short trainings, one after another in the process of the test.

    A test can count there what the trainings do. Both attempts have the validation split.
    """
    return SweepSettings.model_validate(
        {
            "seed": seed,
            "model": {"name": model},
            "training": {"steps": 60, "engine": "sequential", "workers": 1, **(training or {})},
            "evaluation": {
                "steps": 20,
                "give_up_step": 0,
                "attempts": 2,
                "folds": 0,
                **evaluation,
            },
        }
    )


def evaluated(
    theta: Sequence[float], generation: int, dataset: Dataset, settings: SweepSettings
) -> Evaluation:
    """Evaluate one candidate, with an empty cache."""
    (evaluation,) = all_evaluated([theta], dataset, settings, generation=generation)
    return evaluation


def all_evaluated(
    thetas: Sequence[Sequence[float]],
    dataset: Dataset,
    settings: SweepSettings,
    *,
    generation: int = 1,
    cache: Cache | None = None,
    attempts: int | None = None,
) -> list[Evaluation]:
    """Evaluate candidates together.

    Args:
        thetas: of the candidates.
        dataset: resident on the device to train on.
        settings: of the sweep.
        generation: number of the generation.
        cache: of short trainings; an empty one if it is not given.
        attempts: number of attempts of each candidate; that of the settings if it is not given.
    """
    number = attempts or settings.evaluation.attempts
    assignments = [Assignment(trial, theta, number) for trial, theta in enumerate(thetas)]
    with Engine(settings, lambda: dataset) as engine:
        evaluations = dict(evaluate(assignments, generation, engine, cache or MemoryCache()))
    return [evaluations[trial] for trial in range(len(thetas))]


def score_and_entropy(
    network: nn.Module, split: Split, batch_size: int, score: str = "accuracy"
) -> tuple[float, float]:
    """Return the score and the mean cross-entropy in nats of a network on a split."""
    tally = tallied(network, split, batch_size, [score])
    return tally.scores(score)[0], tally.cross_entropies[0]


def untimed(result: Kind) -> Kind:
    """Return a result without the fields that differ if the same is computed elsewhere."""
    times = {"started": 0.0, "ended": 0.0, "seconds": 0.0}
    return result.model_copy(update={**times, "engine": "", "precision": "", "device": ""})


def untimed_network(trained: TrainedNetwork) -> TrainedNetwork:
    """Return a trained network without the fields that differ if the same is trained elsewhere."""
    return replace(trained, training=untimed(trained.training))


def synthetic(
    shape: tuple[int, int, int], classes: int = 4, train: int = 64, held_out: int = 32
) -> Dataset:
    """Return images that can be told apart: noise, brighter in the rows that belong to the class.

    Args:
        shape: of an image, (C, H, W).
        classes: number of classes.
        train: number of training images.
        held_out: number of validation images, and of test images.
    """
    generator = torch.Generator().manual_seed(5)

    def split(size: int) -> Split:
        labels = torch.arange(size) % classes
        images = torch.randint(0, 128, (size, *shape), generator=generator, dtype=torch.uint8)
        for label in range(classes):
            rows = slice(label * shape[1] // classes, (label + 1) * shape[1] // classes)
            images[labels == label, :, rows] += 100
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
    """Yield a list that gets learning rate and momentum of every optimizer step in this process."""
    steps: list[tuple[float, float]] = []

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        group = optimizer.param_groups[0]
        steps.append((float(group["lr"]), group["momentum"]))

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield steps
    finally:
        handle.remove()
