"""The training of one network with one loss, and what is measured of the network."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from taylorglo.attacks import fgsm
from taylorglo.data.batches import Batches, scaled
from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.folds import Fold, fold_of
from taylorglo.loss.functions import Loss
from taylorglo.networks.factory import build
from taylorglo.results import Curve, Status, Training
from taylorglo.settings import SweepSettings, TrainingSettings
from taylorglo.training.devices import computing

CURVE_POINTS = 10

Objective = Callable[[Tensor, Tensor], Tensor]
# Returns the images of a fold, as :func:`taylorglo.data.folds.fold_of` does.
View = Callable[[Dataset, Fold | None], Dataset]


@dataclass(frozen=True, eq=False)
class Recipe:
    """One training to do.

    Args:
        loss: the loss to minimise.
        learning_rate: the (highest) learning rate.
        seed: decides initial weights, order of the samples, augmentation and dropout.
        steps: number of steps.
        horizon: number of steps of the learning-rate schedule; more than ``steps`` for a training
            that is cut short.
        validations: number of validations, evenly spread; the last one follows the last step.
        give_up: (step, score): stop at this step if the score on the validation images is not above
            this.
        epsilon: radius in [0, 1] of an FGSM attack on the validation images after the last step;
            0 for no attack.
        kept: whether to return the weights, and to measure the score on the test split if the data
            set has one.
        fold: the fold to validate on, while the others are trained on; None: the splits of the data
            set.
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
    fold: Fold | None = None

    @property
    def validated(self) -> set[int]:
        """The steps after which the network is validated."""
        early = {self.give_up[0]} if self.give_up else set()
        return _spread(self.steps, self.validations) | early

    @property
    def checked(self) -> set[int]:
        """The steps after which the loss is checked for being a finite number."""
        return _spread(self.steps, CURVE_POINTS) | self.validated


@dataclass(frozen=True)
class TrainedNetwork:
    """The result of a training, and the network's weights as safetensors if the recipe keeps them.

    ``weights`` is empty otherwise.
    """

    training: Training
    weights: bytes = b""


def resident(dataset: Dataset, device: torch.device) -> Dataset:
    """Return the data set with its uint8 images and its labels on the device, where they stay."""
    return replace(
        dataset,
        train=dataset.train.to(device),
        validation=dataset.validation.to(device),
        test=dataset.test.to(device) if dataset.test else None,
    )


def build_network(settings: SweepSettings, dataset: Dataset, seed: int) -> nn.Module:
    """Return the configured network for this data set, with initial weights from the seed."""
    name, shape, classes = settings.model.name, dataset.image_shape, dataset.num_classes
    return build(name, shape, classes, mean=dataset.mean, std=dataset.std, seed=seed)


def train_network(
    network: nn.Module,
    recipe: Recipe,
    dataset: Dataset,
    settings: SweepSettings,
    *,
    precision: str = "float32",
    objective: Objective | None = None,
    view: View = fold_of,
) -> TrainedNetwork:
    """Train a network in place with SGD, on the data set's device; leave it in evaluation mode.

    Nothing in a step waits for the device.

    Args:
        network: from images in [0, 1], shape (N, C, H, W), to logits (N, n); with initial weights.
        recipe: the training to do.
        dataset: resident on the device to train on.
        settings: optimizer, schedule, batch size, augmentation and score.
        precision: of matrix products and convolutions, as
            :func:`taylorglo.training.devices.precision_of` returns it.
        objective: the recipe's loss of (images, targets) through this network, if it is compiled.
        view: returns the images of the recipe's fold; it may remember them.
    """
    started = time.time()
    dataset = view(dataset, recipe.fold)
    device = dataset.train.images.device
    network.to(device).to(memory_format=torch.channels_last)
    loss = recipe.loss.to(device)
    objective = objective or (lambda images, targets: loss(network(images), targets))
    checks = Checks(recipe)
    with seeded(recipe.seed, device), computing(precision, device):
        _descend(network, objective, checks, recipe, dataset, settings)
    network.eval()
    now = time.time()
    training = checks.training(started, now, now - started)
    return measured(training, network, recipe, dataset, settings, precision)


def _descend(
    network: nn.Module,
    objective: Objective,
    checks: "Checks",
    recipe: Recipe,
    dataset: Dataset,
    settings: SweepSettings,
) -> None:
    """Do the steps of a training, until the last one or until a check ends it."""
    optimizer = sgd(network.parameters(), settings.training, recipe.learning_rate)
    schedule = schedule_of(optimizer, settings.training, recipe.horizon, recipe.learning_rate)
    batches = Batches(dataset, settings, recipe.seed)
    network.train()
    for step in range(1, recipe.steps + 1):
        images, targets = next(batches)
        optimizer.zero_grad()
        value = objective(images.contiguous(memory_format=torch.channels_last), targets)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step not in checks.steps:
            continue
        mean_loss = float(value.detach())
        score = None
        if step in checks.validated and math.isfinite(mean_loss):
            score = validate(
                network,
                dataset.validation,
                settings.training.batch_size,
                settings.evaluation.score,
            )
            network.train()
        if checks.stop(step, mean_loss, score):
            break


class Checks:
    """The looks at a network in training: its curve, and whether the training has to stop.

    Attributes:
        steps: the steps after which there is a check.
        validated: the steps among them after which the network is validated.
        curve: (step, score, cross-entropy) on the validation images so far.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.steps = recipe.checked
        self.validated = recipe.validated
        self.curve: Curve = []
        self._give_up = recipe.give_up
        self._status: Status = "ok"
        self._accuracy = 0.0
        self._reason = ""

    def stop(self, step: int, loss: float, score: tuple[float, float] | None) -> bool:
        """Take a check in; return whether the training has to stop.

        Args:
            step: the step that was just done.
            loss: the mean loss of its batch.
            score: score and cross-entropy on the validation images, if they were measured.
        """
        if not math.isfinite(loss) or (score is not None and not math.isfinite(score[1])):
            return self._diverged(0.0, f"numbers are no longer finite at step {step}")
        if score is None:
            return False
        self._accuracy = score[0]
        self.curve.append((step, *score))
        if self._give_up and step == self._give_up[0] and self._accuracy <= self._give_up[1]:
            reason = f"accuracy {self._accuracy:.3f} at step {step}: no learning"
            return self._diverged(self._accuracy, reason)
        return False

    def _diverged(self, accuracy: float, reason: str) -> bool:
        self._status, self._accuracy, self._reason = "diverged", accuracy, reason
        return True

    def training(self, started: float, ended: float, seconds: float) -> Training:
        """Return the result of the training."""
        return Training(
            status=self._status,
            accuracy=self._accuracy,
            curve=self.curve,
            started=started,
            ended=ended,
            seconds=seconds,
            reason=self._reason,
        )


def measured(
    training: Training,
    network: nn.Module,
    recipe: Recipe,
    dataset: Dataset,
    settings: SweepSettings,
    precision: str,
) -> TrainedNetwork:
    """Measure a trained network as far as its recipe asks for it, and return its weights.

    The validation split of ``dataset`` is the one of the recipe's fold.
    """
    robust, test, size = None, None, settings.training.batch_size
    score = settings.evaluation.score
    if recipe.epsilon:
        robust = 0.0
        if training.accuracy:
            robust = accuracy_under_fgsm(network, dataset.validation, recipe.epsilon, size, score)
    if recipe.kept and dataset.test:
        with computing(precision, dataset.test.images.device):
            test = validate(network, dataset.test, size, score)[0]
    whole = training.model_copy(
        update={"robust_accuracy": robust, "test_accuracy": test, "ended": time.time()}
    )
    return TrainedNetwork(whole, weights_of(network, dataset, settings) if recipe.kept else b"")


@torch.no_grad()
def validate(
    network: nn.Module, split: Split, batch_size: int, score: str = "accuracy"
) -> tuple[float, float]:
    """Return the score in [0, 1] and the mean cross-entropy in nats of a network on a split.

    The network is left in evaluation mode.
    """
    network.eval()
    sizes = class_sizes(split)
    correct, total = torch.zeros_like(sizes), torch.zeros((), device=sizes.device)
    for images, labels in evaluation_batches(split, batch_size):
        logits = network(images).float()
        correct.index_add_(0, labels, (logits.argmax(dim=1) == labels).float())
        total += functional.cross_entropy(logits, labels, reduction="sum")
    return scores(correct[None], sizes, score)[0], (total / len(split)).item()


def accuracy_under_fgsm(
    network: nn.Module, split: Split, epsilon: float, batch_size: int, score: str = "accuracy"
) -> float:
    """Return the score in [0, 1] that FGSM of radius ``epsilon`` leaves, in float32."""
    sizes = class_sizes(split)
    correct = torch.zeros_like(sizes)
    # Rounding would hide gradients from the attack.
    with computing("float32", split.images.device):
        for images, labels in evaluation_batches(split, batch_size):
            attacked = fgsm(network, images, labels, epsilon)
            with torch.no_grad():
                right = network(attacked).argmax(dim=1) == labels
                correct.index_add_(0, labels, right.float())
    return scores(correct[None], sizes, score)[0]


def class_sizes(split: Split) -> Tensor:
    """Return the number of images by class, as floats, up to the last class that has any."""
    return torch.bincount(split.labels).float()


def scores(correct: Tensor, sizes: Tensor, score: str) -> list[float]:
    """Return the score in [0, 1] of each of M networks.

    ``accuracy`` is the part of the images that are classified correctly. ``balanced-accuracy`` is
    the mean of this part over the classes that have images (Brodersen et al. 2010, ICPR, "The
    balanced accuracy and its posterior distribution").

    Args:
        correct: number of images that are classified correctly, by network and class, (M, n).
        sizes: number of images by class, (n,).
        score: what to compute.
    """
    if score == "accuracy":
        accuracies: list[float] = (correct.sum(dim=1) / int(sizes.sum())).tolist()
        return accuracies
    present = sizes > 0
    by_class = correct[:, present].double() / sizes[present]
    # Means that do not depend on the number of networks to the last bit.
    return [fmean(row) for row in by_class.tolist()]


def evaluation_batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a split in its order: images (N, C, H, W), floats in [0, 1], and labels (N,).

    Batches are no larger than in a training, so that an evaluation takes no more memory.
    """
    images, labels = torch.split(split.images, batch_size), torch.split(split.labels, batch_size)
    for batch, targets in zip(images, labels, strict=True):
        yield scaled(batch).contiguous(memory_format=torch.channels_last), targets


def weights_of(network: nn.Module, dataset: Dataset, settings: SweepSettings) -> bytes:
    """Return the network's state as safetensors; the same weights are the same bytes."""
    # One entry only: safetensors writes several in an arbitrary order.
    content = {"model": settings.model.name, "image_shape": dataset.image_shape}
    metadata = {"taylorglo": json.dumps(content)}
    # Copies, because safetensors refuses tensors that share memory, such as tied weights.
    state = {
        name: value.cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    return save(state, metadata)


def sgd(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    settings: TrainingSettings,
    learning_rate: float,
) -> torch.optim.SGD:
    """Return the optimizer of every training: PyTorch's fused SGD."""
    return torch.optim.SGD(
        parameters,
        lr=learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def schedule_of(
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    horizon: int,
    learning_rate: float,
) -> lr_scheduler.LRScheduler:
    """Return the schedule of the learning rate over ``horizon`` steps."""
    if settings.schedule == "step":
        milestones = [round(fraction * horizon) for fraction in settings.milestones]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=settings.decay)
    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, horizon)
    if settings.schedule == "one-cycle":
        return lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=horizon + 1, cycle_momentum=False
        )
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generators, from which dropout draws; restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _spread(steps: int, points: int) -> set[int]:
    return {round(steps * point / points) for point in range(1, points + 1)} - {0}
