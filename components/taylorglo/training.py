"""One training of one network with one loss, and what is measured of the network."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from taylorglo.attacks import fgsm
from taylorglo.batches import Batches, scaled
from taylorglo.data import Dataset, Split, read
from taylorglo.devices import computing, device_of
from taylorglo.loss import Loss
from taylorglo.models import build
from taylorglo.settings import SweepSettings, TrainingSettings

CURVE_POINTS = 10

Status = Literal["ok", "diverged", "failed"]
Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Recipe:
    """One training that is to be done.

    Args:
        loss: what is minimised.
        learning_rate: the (highest) learning rate.
        seed: decides initial weights, order of the samples, augmentation and dropout.
        steps: how many steps are done.
        horizon: over how many steps the schedule runs; more than ``steps`` for a training that is cut short.
        validations: how often, evenly spread, the network is validated; the last time after the last step.
        give_up: (step, accuracy): stop there if validation accuracy is not above this.
        epsilon: radius of an FGSM attack on the validation images after the last step, in [0, 1]; 0: none.
        kept: whether the weights are wanted, and the accuracy on the test split where there is one.
    """

    loss: Loss
    learning_rate: float
    seed: int
    steps: int
    horizon: int
    validations: int = CURVE_POINTS
    give_up: tuple[int, float] | None = None
    epsilon: float = 0.0
    kept: bool = False

    @property
    def validated(self) -> set[int]:
        """The steps after which the network is validated."""
        return _spread(self.steps, self.validations) | ({self.give_up[0]} if self.give_up else set())

    @property
    def checked(self) -> set[int]:
        """The steps after which something is looked at, be it only whether the loss is still a finite number."""
        return _spread(self.steps, CURVE_POINTS) | self.validated


@dataclass(frozen=True)
class Training:
    """What came of one training.

    ``curve`` holds (step, validation accuracy in [0, 1], validation cross-entropy in nats); ``started`` and ``ended``
    are seconds since the epoch, ``seconds`` this training's share of them, where it was one of several at once.
    ``diverged`` stands for numbers that ran off (accuracy 0), or for no learning by the step given; ``failed`` for an
    error. ``robust_accuracy`` is what FGSM left of the accuracy, ``test_accuracy`` that on the test split, if they were
    asked for. ``method`` says how it was trained: engine, precision and device.
    """

    status: Status
    accuracy: float
    curve: list[tuple[int, float, float]]
    started: float
    ended: float
    seconds: float
    reason: str = ""
    robust_accuracy: float | None = None
    test_accuracy: float | None = None
    method: str = ""


@dataclass(frozen=True)
class Result:
    """A training, and the network's weights as safetensors if they were asked for (else empty)."""

    training: Training
    weights: bytes = b""


def resident(dataset: Dataset, device: torch.device) -> Dataset:
    """The data set with its uint8 images and its labels on the device, where they stay."""
    return replace(
        dataset,
        train=dataset.train.to(device),
        validation=dataset.validation.to(device),
        test=dataset.test.to(device) if dataset.test else None,
    )


def read_resident(path: str, settings: TrainingSettings) -> Dataset:
    """A data set that was saved, resident on the device that the settings choose."""
    return resident(read(Path(path)), device_of(settings))


def build_network(settings: SweepSettings, dataset: Dataset, seed: int) -> nn.Module:
    """The configured network for this data set, with initial weights from the seed."""
    return build(settings.model.name, dataset.image_shape, dataset.num_classes, dataset.mean, dataset.std, seed)


def train(
    network: nn.Module,
    recipe: Recipe,
    dataset: Dataset,
    settings: SweepSettings,
    precision: str = "float32",
    objective: Objective | None = None,
) -> Result:
    """Train a network in place, with SGD, on the data set's device; it is left in evaluation mode.

    Nothing in a step waits for the device.

    Args:
        network: images in [0, 1], shape (N, C, H, W), to logits (N, n); with its initial weights.
        recipe: what to do.
        dataset: resident on the device to train on.
        settings: optimizer, schedule, batch size and augmentation.
        precision: of the matrix products and convolutions, as :func:`taylorglo.devices.precision_of` gives it.
        objective: the recipe's loss of (images, targets) through this network, where that is compiled.
    """
    started = time.time()
    device = dataset.train.images.device
    network.to(device).to(memory_format=torch.channels_last)
    loss = recipe.loss.to(device)
    objective = objective or (lambda images, targets: loss(network(images), targets))
    optimizer = sgd(network.parameters(), settings.training, recipe.learning_rate)
    schedule = schedule_of(optimizer, settings.training, recipe.horizon, recipe.learning_rate)
    batches = Batches(dataset, settings, recipe.seed)
    validated, checked = recipe.validated, recipe.checked
    curve: list[tuple[int, float, float]] = []

    def ended(status: Status, accuracy: float, reason: str = "") -> Result:
        network.eval()
        training = Training(status, accuracy, curve, started, time.time(), time.time() - started, reason)
        return finished(training, network, recipe, dataset, settings, precision)

    with seeded(recipe.seed, device), computing(precision, device):
        network.train()
        for step in range(1, recipe.steps + 1):
            images, targets = next(batches)
            optimizer.zero_grad()
            value = objective(images.contiguous(memory_format=torch.channels_last), targets)
            value.backward()
            optimizer.step()
            schedule.step()
            if step not in checked:
                continue
            accuracy, cross_entropy = 0.0, float(value.detach())
            if step in validated and math.isfinite(cross_entropy):
                accuracy, cross_entropy = validate(network, dataset.validation, settings.training.batch_size)
                network.train()
            if not math.isfinite(cross_entropy):
                return ended("diverged", 0.0, ran_off(step))
            if step in validated:
                curve.append((step, accuracy, cross_entropy))
                if recipe.give_up and step == recipe.give_up[0] and accuracy <= recipe.give_up[1]:
                    return ended("diverged", accuracy, not_learned(step, accuracy))
    return ended("ok", curve[-1][1])


def finished(
    training: Training, network: nn.Module, recipe: Recipe, dataset: Dataset, settings: SweepSettings, precision: str
) -> Result:
    """What is measured of a network after its training, and its weights, as far as they are asked for."""
    robust, test, size = None, None, settings.training.batch_size
    if recipe.epsilon:
        robust = robust_accuracy(network, dataset.validation, recipe.epsilon, size) if training.accuracy else 0.0
    if recipe.kept and dataset.test:
        with computing(precision, dataset.test.images.device):
            test = validate(network, dataset.test, size)[0]
    measured = replace(training, robust_accuracy=robust, test_accuracy=test, ended=time.time())
    return Result(measured, weights_of(network, dataset, settings) if recipe.kept else b"")


@torch.no_grad()
def validate(network: nn.Module, split: Split, batch_size: int) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross-entropy in nats of a network on a split; leaves it in evaluation mode."""
    network.eval()
    correct, total = torch.zeros((), device=split.images.device), torch.zeros((), device=split.images.device)
    for images, labels in evaluation_batches(split, batch_size):
        logits = network(images).float()
        correct += (logits.argmax(dim=1) == labels).sum()
        total += functional.cross_entropy(logits, labels, reduction="sum")
    return (correct / len(split)).item(), (total / len(split)).item()


def robust_accuracy(network: nn.Module, split: Split, epsilon: float, batch_size: int) -> float:
    """The accuracy in [0, 1] that FGSM of radius ``epsilon`` leaves, computed in float32."""
    correct = torch.zeros((), device=split.images.device)
    with computing("float32", split.images.device):  # rounding would hide gradients from the attack
        for images, labels in evaluation_batches(split, batch_size):
            attacked = fgsm(network, images, labels, epsilon)
            with torch.no_grad():
                correct += (network(attacked).argmax(dim=1) == labels).sum()
    return (correct / len(split)).item()


def evaluation_batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in its order: images (N, C, H, W), floats in [0, 1], and labels (N,).

    Batches are no larger than those of a training, so that an evaluation takes no more memory than that.
    """
    batches = zip(torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True)
    for images, labels in batches:
        yield scaled(images).contiguous(memory_format=torch.channels_last), labels


def weights_of(network: nn.Module, dataset: Dataset, settings: SweepSettings) -> bytes:
    """The network's state as safetensors; the same weights are the same bytes."""
    # One entry, for safetensors writes several in an arbitrary order.
    metadata = {"taylorglo": json.dumps({"model": settings.model.name, "image_shape": dataset.image_shape})}
    # A copy of each, for it refuses tensors that share memory, such as tied weights.
    state = {n: value.cpu().clone(memory_format=torch.contiguous_format) for n, value in network.state_dict().items()}
    return save(state, metadata)


def sgd(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], settings: TrainingSettings, learning_rate: float
) -> torch.optim.SGD:
    """The optimizer of every training, of parameters or groups of them: PyTorch's fused one."""
    return torch.optim.SGD(
        parameters,
        lr=learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def schedule_of(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, horizon: int, learning_rate: float
) -> lr_scheduler.LRScheduler:
    """The schedule of the learning rate over ``horizon`` steps."""
    if settings.schedule == "step":
        milestones = [round(fraction * horizon) for fraction in settings.milestones]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=settings.decay)
    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, horizon)
    if settings.schedule == "one-cycle":
        return lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=horizon + 1, cycle_momentum=False)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generators, which dropout draws from; afterwards they are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def ran_off(step: int) -> str:
    """Why a training ended whose numbers became infinite or NaN."""
    return f"numbers are no longer finite at step {step}"


def not_learned(step: int, accuracy: float) -> str:
    """Why a training was given up."""
    return f"accuracy {accuracy:.3f} at step {step}: no learning"


def _spread(steps: int, points: int) -> set[int]:
    return {round(steps * point / points) for point in range(1, points + 1)} - {0}
