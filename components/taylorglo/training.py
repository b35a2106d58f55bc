"""Training one network with one loss: the short training that gives a candidate its fitness, and the full one."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from taylorglo.data import Dataset, Split
from taylorglo.errors import InputError
from taylorglo.loss import Loss, TaylorLoss
from taylorglo.models import build
from taylorglo.settings import SweepSettings, TrainingSettings
from taylorglo.statistics import mean_curve

_EVALUATION_BATCH = 1000
_CURVE_POINTS = 10

Status = Literal["ok", "diverged", "failed"]


@dataclass(frozen=True)
class Training:
    """What came of one training.

    ``curve`` holds (step, validation accuracy in [0, 1], validation cross-entropy in nats); ``started`` and ``ended``
    are seconds since the epoch. ``diverged`` stands for numbers that ran off (accuracy 0), or for no learning by the
    step given.
    """

    status: Status
    accuracy: float
    curve: list[tuple[int, float, float]]
    started: float
    ended: float
    reason: str = ""


@dataclass(frozen=True)
class Evaluation:
    """A candidate's result: fitness is the validation accuracy averaged over the attempts, in [0, 1].

    An attempt that diverges is the last one; a candidate whose training failed twice has fitness 0.
    """

    status: Status
    fitness: float
    accuracies: list[float]
    curve: list[tuple[int, float, float]]
    started: float
    ended: float
    seconds: float
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


def derived_seed(seed: int, *path: int) -> int:
    """A seed of its own for each path of whole numbers below the sweep's seed, in [0, 2^31)."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0]) >> 1


def device_of(settings: TrainingSettings) -> torch.device:
    """The device to train on; ``auto`` is the GPU if there is one.

    Raises:
        InputError: cuda is asked for and not there.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise InputError("training.device is cuda, and there is no CUDA device here; use auto or cpu")
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


def resident(dataset: Dataset, device: torch.device) -> Dataset:
    """The data set with its uint8 images and its labels on the device, where they stay."""
    return replace(
        dataset,
        train=dataset.train.to(device),
        validation=dataset.validation.to(device),
        test=dataset.test.to(device) if dataset.test else None,
    )


def train(
    network: nn.Module,
    loss: Loss,
    dataset: Dataset,
    settings: TrainingSettings,
    *,
    steps: int,
    horizon: int,
    learning_rate: float,
    seed: int,
    give_up: tuple[int, float] | None = None,
) -> Training:
    """Train a network in place, with SGD, on the data set's device.

    Args:
        network: images in [0, 1], shape (N, C, H, W), to logits (N, n).
        loss: what is minimised.
        dataset: resident on the device to train on.
        settings: optimizer, schedule and batch size.
        steps: how many steps are done.
        horizon: over how many steps the schedule runs; more than ``steps`` for a training that is cut short.
        learning_rate: the (highest) learning rate.
        seed: decides the order of the samples and the dropout, and nothing else.
        give_up: (step, accuracy): stop there if validation accuracy is not above this.
    """
    started = time.time()
    device = dataset.train.images.device
    torch.set_num_threads(settings.threads)
    network.to(device)
    loss.to(device)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = _schedule(optimizer, settings, horizon, learning_rate)
    order = torch.Generator().manual_seed(seed)
    batches = iter(())
    curve: list[tuple[int, float, float]] = []
    check_at = {round(steps * point / _CURVE_POINTS) for point in range(1, _CURVE_POINTS + 1)}
    if give_up:
        check_at.add(give_up[0])

    def ended(status: Status, accuracy: float, reason: str = "") -> Training:
        return Training(status, accuracy, curve, started, time.time(), reason)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network.train()
        for step in range(1, steps + 1):
            batch = next(batches, None)
            if batch is None:
                batches = _epoch(len(dataset.train), settings.batch_size, order, device)
                batch = next(batches)
            optimizer.zero_grad()
            images, labels = scaled(dataset.train.images[batch]), dataset.train.labels[batch]
            loss(network(images), labels).backward()
            optimizer.step()
            schedule.step()
            if step in check_at:
                accuracy, cross_entropy = validate(network, dataset.validation)
                network.train()
                if not math.isfinite(cross_entropy):
                    return ended("diverged", 0.0, f"numbers are no longer finite at step {step}")
                curve.append((step, accuracy, cross_entropy))
                if give_up and step == give_up[0] and accuracy <= give_up[1]:
                    return ended("diverged", accuracy, f"accuracy {accuracy:.3f} at step {step}: no learning")
    network.eval()
    return ended("ok", curve[-1][1])


@torch.no_grad()
def validate(network: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross-entropy in nats of a network on a split; leaves it in evaluation mode."""
    network.eval()
    correct, total = torch.zeros((), device=split.images.device), torch.zeros((), device=split.images.device)
    for images, labels in zip(
        torch.split(split.images, _EVALUATION_BATCH), torch.split(split.labels, _EVALUATION_BATCH), strict=True
    ):
        logits = network(scaled(images)).float()
        correct += (logits.argmax(dim=1) == labels).sum()
        total += functional.cross_entropy(logits, labels, reduction="sum")
    return (correct / len(split)).item(), (total / len(split)).item()


def scaled(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float().div_(255)


def evaluate_candidate(
    theta: Sequence[float], generation: int, dataset: Dataset, settings: SweepSettings
) -> Evaluation:
    """The fitness of a candidate by short trainings (TaylorGLO paper, section IV).

    All candidates of a generation are given the same initial weights and batches, attempt by attempt (common random
    numbers), so that they differ by their loss alone. An error of the machine (such as a full GPU) is tried once more.
    """
    started = time.time()
    for last_try in (False, True):
        try:
            return _evaluate(theta, generation, dataset, settings, started)
        except InputError:
            raise
        except (
            Exception
        ) as error:  # of a network of the user's own, of the GPU, ...: one candidate fails, not the search
            if last_try:
                reason = str(error).strip().split("\n")[0][:200]
                return Evaluation("failed", 0.0, [], [], started, time.time(), time.time() - started, reason)
    raise AssertionError("unreachable")


def _evaluate(
    theta: Sequence[float], generation: int, dataset: Dataset, settings: SweepSettings, started: float
) -> Evaluation:
    short, full = settings.evaluation, settings.training
    gives_up = 0 < short.give_up_step <= short.steps
    accuracies: list[float] = []
    curves: list[list[tuple[int, float, float]]] = []
    for attempt in range(short.attempts):
        seed = derived_seed(settings.seed, generation, attempt)
        training = train(
            build_network(settings, dataset, seed),
            TaylorLoss(theta, settings.search.order),
            dataset,
            full,
            steps=short.steps,
            horizon=short.steps if short.anneal else full.steps,
            learning_rate=full.learning_rate,
            seed=seed,
            give_up=(short.give_up_step, 1 / dataset.num_classes + short.give_up_gain) if gives_up else None,
        )
        accuracies.append(training.accuracy)
        curves.append(training.curve)
        if training.status != "ok":
            break
    return Evaluation(
        status=training.status,
        fitness=sum(accuracies) / len(accuracies),
        accuracies=accuracies,
        curve=mean_curve(curves),
        started=started,
        ended=time.time(),
        seconds=time.time() - started,
        reason=training.reason,
    )


def build_network(settings: SweepSettings, dataset: Dataset, seed: int) -> nn.Module:
    """The configured network for this data set, with initial weights from the seed."""
    return build(settings.model.name, dataset.image_shape, dataset.num_classes, dataset.mean, dataset.std, seed)


def _epoch(size: int, batch_size: int, order: torch.Generator, device: torch.device) -> Any:
    """Batches of indices, shuffled on the CPU so that the order is the same on every device; a short rest is left."""
    batch_size = min(batch_size, size)
    shuffled = torch.randperm(size, generator=order).to(device)
    return iter(torch.split(shuffled[: size - size % batch_size], batch_size))


def _schedule(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, horizon: int, learning_rate: float
) -> lr_scheduler.LRScheduler:
    if settings.schedule == "step":
        milestones = [round(fraction * horizon) for fraction in settings.milestones]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=settings.decay)
    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, horizon)
    if settings.schedule == "one-cycle":
        return lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=horizon + 1, cycle_momentum=False)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
