"""The training of one network with one loss, and what is measured of the network."""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from taylorglo.attacks.gradient import fgsm, fgsm_and_pgd
from taylorglo.data.batches import Batches, laid_out, scaled
from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.folds import Fold, fold_of
from taylorglo.loss.functions import Loss
from taylorglo.networks.factory import build
from taylorglo.networks.weights import Origin, weights_of
from taylorglo.results import Counts, Curve, Status, Training
from taylorglo.scores import BESIDE_ACCURACY
from taylorglo.settings import SweepSettings
from taylorglo.training.devices import computing
from taylorglo.training.scores import Tally
from taylorglo.training.updates import Average, by_decay, clip, optimizer_of, schedule_of

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
        epsilon: radius in [0, 1] of an attack on the validation images after the last step, in the
            unit of the data; 0 for no attack.
        attack_steps: number of steps of this attack; 1 for FGSM.
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
    attack_steps: int = 1
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
    """Train a network in place, on the data set's device; leave it in evaluation mode.

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
    objective = objective or (lambda images, targets: mean_loss(loss, network(images), targets))
    checks = Checks(recipe)
    with seeded(recipe.seed, device), computing(precision, device):
        _descend(network, objective, checks, recipe, dataset, settings)
    network.eval()
    now = time.time()
    training = checks.training(started, now, now - started)
    return measured(training, network, recipe, dataset, settings, precision)


def mean_loss(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """Return what a training minimises: the mean of the losses as their formula is.

    The closed form that a Taylor loss has for class indices rounds differently.
    """
    return loss.per_sample(logits, targets).mean()


def _descend(
    network: nn.Module,
    objective: Objective,
    checks: "Checks",
    recipe: Recipe,
    dataset: Dataset,
    settings: SweepSettings,
) -> None:
    """Do the steps of a training, until the last one or until a check ends it."""
    training = settings.training
    groups = by_decay(network.parameters(), training)
    optimizer = optimizer_of(groups, training, recipe.learning_rate)
    schedule = schedule_of(optimizer, training, recipe.horizon)
    average = Average.of(network, training.ema) if training.ema else None
    batches = Batches(dataset, settings, recipe.seed)
    network.train()
    for step in range(1, recipe.steps + 1):
        images, targets = next(batches)
        optimizer.zero_grad()
        value = objective(laid_out(images), targets)
        value.backward()  # type: ignore[no-untyped-call]
        clip(network.parameters(), training)
        optimizer.step()
        schedule.step()
        if average:
            average.update()
        if step not in checks.steps:
            continue
        measured_loss = float(value.detach())
        look = None
        if step in checks.validated and math.isfinite(measured_loss):
            with average.shown() if average else nullcontext():
                look = _look(network, dataset.validation, settings)
            network.train()
        if checks.stop(step, measured_loss, look):
            break
    if average:
        average.swap()


def _look(network: nn.Module, split: Split, settings: SweepSettings) -> "Look":
    score = settings.evaluation.score
    tally = tallied(network, split, settings.training.batch_size, [score])
    return looks(tally, score)[0]


class Look(NamedTuple):
    """What a validation sees of a network.

    Attributes:
        score: in [0, 1].
        cross_entropy: mean, in nats.
        learned: what tells whether the network has learned: the score, or else the accuracy.
    """

    score: float
    cross_entropy: float
    learned: float


def looks(tally: Tally, score: str) -> list[Look]:
    """Return what a validation sees of each network."""
    values = tally.scores(score)
    learned = tally.scores("accuracy") if score in BESIDE_ACCURACY else values
    return [Look(*row) for row in zip(values, tally.cross_entropies, learned, strict=True)]


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

    def stop(self, step: int, loss: float, look: Look | None) -> bool:
        """Take a check in; return whether the training has to stop.

        Args:
            step: the step that was just done.
            loss: the mean loss of its batch.
            look: what was seen on the validation images, if the network was validated.
        """
        if not math.isfinite(loss) or (look is not None and not math.isfinite(look.cross_entropy)):
            return self._diverged(0.0, f"numbers are no longer finite at step {step}")
        if look is None:
            return False
        self._accuracy = look.score
        self.curve.append((step, look.score, look.cross_entropy))
        if self._give_up and step == self._give_up[0] and look.learned <= self._give_up[1]:
            reason = f"accuracy {look.learned:.3f} at step {step}: no learning"
            # A score beside the accuracy may be high all the same.
            return self._diverged(min(look.score, look.learned), reason)
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
    measures: dict[str, float] = {}
    counts: Counts | None = None
    if recipe.epsilon:
        robust = 0.0
        if training.accuracy:
            robust = score_under_attack(
                network,
                dataset.validation,
                recipe.epsilon,
                size,
                steps=recipe.attack_steps,
                score=score,
                unit=dataset.unit,
            )
    if recipe.kept and dataset.test:
        with computing(precision, dataset.test.images.device):
            tally = tallied(network, dataset.test, size, {score, "ece", "counts"})
        test = tally.scores(score)[0]
        counts = tally.counts()[0]
        measures = {
            "accuracy": tally.scores("accuracy")[0],
            "calibration_error": tally.calibration_errors[0],
            "cross_entropy": tally.cross_entropies[0],
        }
    whole = training.model_copy(
        update={
            "robust_accuracy": robust,
            "test_accuracy": test,
            # A record has finite numbers only.
            "test_measures": {k: v for k, v in measures.items() if math.isfinite(v)},
            "test_counts": counts,
            "ended": time.time(),
        }
    )
    origin = Origin(settings.model.name, dataset.image_shape, dataset.num_classes)
    return TrainedNetwork(whole, weights_of(network, origin) if recipe.kept else b"")


@torch.no_grad()
def tallied(network: nn.Module, split: Split, batch_size: int, wanted: Collection[str]) -> Tally:
    """Return what a network answers to a split; it is left in evaluation mode.

    Args:
        network: from images in [0, 1], or features, to logits (B, n).
        split: on the network's device.
        batch_size: of the evaluation.
        wanted: the scores that will be asked for.
    """
    network.eval()
    tally = Tally(split, 1, wanted)
    for images, labels in evaluation_batches(split, batch_size):
        logits = network(images).float()
        entropy = functional.cross_entropy(logits, labels, reduction="sum")
        tally.add(logits[None], labels, entropy)
    return tally


def score_under_attack(
    network: nn.Module,
    split: Split,
    epsilon: float,
    batch_size: int,
    *,
    steps: int = 1,
    score: str = "accuracy",
    unit: Tensor | None = None,
) -> float:
    """Return the score in [0, 1] that an attack of radius ``epsilon`` leaves, in float32.

    Args:
        network: from images in [0, 1], or features, to logits (B, n).
        split: on the network's device.
        epsilon: radius of the attack.
        batch_size: of the evaluation.
        steps: of the attack: 1 for :func:`taylorglo.attacks.fgsm`, more for
            :func:`taylorglo.attacks.gradient.fgsm_and_pgd`.
        score: what is measured.
        unit: of epsilon for data without pixels, as :func:`taylorglo.attacks.fgsm` takes it.
    """
    attack = fgsm if steps == 1 else partial(fgsm_and_pgd, steps=steps)
    tally = Tally(split, 1, [score])
    # Rounding would hide gradients from the attack.
    with computing("float32", split.images.device):
        for images, labels in evaluation_batches(split, batch_size):
            attacked = attack(network, images, labels, epsilon, unit=unit)
            with torch.no_grad():
                logits = network(attacked)
                entropy = functional.cross_entropy(logits, labels, reduction="sum")
            tally.add(logits[None], labels, entropy)
    return tally.scores(score)[0]


def evaluation_batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a split in its order: float32 samples, (B, C, H, W) or (B, F), and labels (B,).

    Batches are no larger than in a training, so that an evaluation takes no more memory.
    """
    images, labels = torch.split(split.images, batch_size), torch.split(split.labels, batch_size)
    for batch, targets in zip(images, labels, strict=True):
        yield laid_out(scaled(batch)), targets


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generators, from which dropout draws; restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _spread(steps: int, points: int) -> set[int]:
    return {round(steps * point / points) for point in range(1, points + 1)} - {0}
