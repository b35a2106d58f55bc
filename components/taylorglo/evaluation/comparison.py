"""A fair comparison: tuned baselines, and trainings in full of champion and baselines over seeds.

Every training is known by a digest of all that decides it, so that a memory of finished trainings
can stand in for it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from taylorglo.attacks import robust_accuracy
from taylorglo.data.batches import derived_seed, scaled
from taylorglo.data.dataset import Dataset
from taylorglo.data.splits import digest_of
from taylorglo.errors import InputError, TaylorgloError, one_line
from taylorglo.loss.functions import Loss, TaylorLoss, classic
from taylorglo.loss.polynomial import checked_theta
from taylorglo.networks.factory import build, revision, skeleton
from taylorglo.results import NUMERICS, Contender, FullTraining, by_contender
from taylorglo.settings import AttackSettings, SweepSettings
from taylorglo.training.devices import computing
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe

# Paths below the sweep's seed; the candidates have (generation >= 1, attempt).
_TUNING, _FINAL = 0, 1_000_000


class Memo(Protocol):
    """A memory of finished trainings in full."""

    def recall(self, key: str) -> FullTraining | None:
        """Return the training that was recorded under the key, or None."""

    def weights(self, key: str) -> bytes:
        """Return the trained network that was recorded under the key, as safetensors."""

    def record(self, training: FullTraining, weights: bytes) -> None:
        """Keep a training and the weights of its network (safetensors)."""


def loss_of(contender: Contender) -> Loss:
    """Return the loss of a contender."""
    if contender.theta:
        return TaylorLoss(contender.theta, checked_theta(contender.theta)[1])
    return classic(contender.loss, contender.label_smoothing)


def baselines(settings: SweepSettings, learning_rate: float) -> list[Contender]:
    """Return the losses to beat, at one learning rate."""
    return [
        Contender(name="cross-entropy", loss="cross-entropy", learning_rate=learning_rate),
        Contender(
            name="label-smoothed cross-entropy",
            loss="cross-entropy",
            learning_rate=learning_rate,
            label_smoothing=settings.baselines.label_smoothing,
        ),
        Contender(name="squared error", loss="squared-error", learning_rate=learning_rate),
    ]


def tune_baselines(engine: Engine, memo: Memo) -> list[FullTraining]:
    """Train every baseline with every learning rate, ``baselines.attempts`` times each."""
    settings = engine.settings
    rates = settings.baselines.learning_rates
    grid = [contender for rate in rates for contender in baselines(settings, rate)]
    return train_in_full(_with_tuning_seeds(grid, settings), engine, memo)


def train_finalists(
    thetas: Sequence[Sequence[float]], engine: Engine, memo: Memo
) -> list[FullTraining]:
    """Train the best candidates in full, from the seeds of the baselines' tuning."""
    rate = engine.settings.training.learning_rate
    contenders = [
        Contender(name="finalist", loss="taylor", learning_rate=rate, theta=list(theta))
        for theta in thetas
    ]
    return train_in_full(_with_tuning_seeds(contenders, engine.settings), engine, memo)


def _with_tuning_seeds(
    contenders: Sequence[Contender], settings: SweepSettings
) -> list[tuple[Contender, int]]:
    attempts = range(settings.baselines.attempts)
    seeds = [derived_seed(settings.seed, _TUNING, attempt) for attempt in attempts]
    return [(contender, seed) for contender in contenders for seed in seeds]


def best_contender(trainings: Sequence[FullTraining]) -> Contender:
    """Return the contender of highest mean validation accuracy; of equals, the first."""

    def mean_accuracy(group: Sequence[FullTraining]) -> float:
        return sum(full.training.accuracy for full in group) / len(group)

    return max(by_contender(trainings), key=mean_accuracy)[0].contender


def compare(contender: Contender, engine: Engine, memo: Memo) -> list[FullTraining]:
    """Train a contender in full from ``champion.seeds`` seeds, the same for all, and test it.

    The engine's data set has its test split here, and nowhere else.
    """
    settings = engine.settings
    indices = range(settings.champion.seeds)
    seeds = [derived_seed(settings.seed, _FINAL, index) for index in indices]
    return train_in_full([(contender, seed) for seed in seeds], engine, memo)


def train_in_full(
    trainings: Sequence[tuple[Contender, int]], engine: Engine, memo: Memo
) -> list[FullTraining]:
    """Train contenders in full from seeds, each once, or recall what is known.

    The test accuracy is measured if the data set has its test split.

    Args:
        trainings: contenders with their seeds.
        engine: that does the trainings.
        memo: of finished trainings.

    Returns:
        A result for each of ``trainings``, in their order.

    Raises:
        TaylorgloError: a training failed twice.
    """
    keys = [_digest(contender, seed, engine) for contender, seed in trainings]
    known: dict[str, FullTraining] = {}
    missing: dict[str, tuple[Contender, int]] = {}
    for key, training in zip(keys, trainings, strict=True):
        recorded = memo.recall(key)
        if recorded is None:
            missing.setdefault(key, training)
        else:
            known[key] = recorded
    steps = engine.settings.training.steps
    recipes = (
        (key, Recipe(loss_of(c), c.learning_rate, seed, steps=steps, horizon=steps, kept=True))
        for key, (c, seed) in missing.items()
    )
    for key, trained in engine.run(recipes):
        contender, seed = missing[key]
        if trained.training.status == "failed":
            raise TaylorgloError(
                f"a training in full of {contender.name} failed twice: {trained.training.reason}"
            )
        full = FullTraining(contender=contender, seed=seed, key=key, training=trained.training)
        memo.record(full, trained.weights)
        known[key] = full
    # The same loss may be in a memory under another name: a finalist that became the champion.
    return [
        known[key].model_copy(update={"contender": contender})
        for key, (contender, _) in zip(keys, trainings, strict=True)
    ]


def restore_network(weights: bytes, model_name: str, dataset: Dataset) -> nn.Module:
    """Return a trained network from its safetensors, in evaluation mode, on the CPU.

    Args:
        weights: of the network with its normalisation, as a sweep keeps them, or of the bare
            network, which then gets the normalisation of the data set.
        model_name: the network that the weights belong to, as in the settings.
        dataset: the data that it was trained on.

    Raises:
        InputError: the weights are damaged, or belong to another network.
    """
    shape, classes = dataset.image_shape, dataset.num_classes
    try:
        state = load(weights)
        part = "" if any(name.startswith("normalize.") for name in state) else "network"
        # Numbers that do not fit are refused before the network takes memory.
        empty = skeleton(model_name, shape, classes)
        empty.get_submodule(part).load_state_dict(state, assign=True)
        network = build(model_name, shape, classes, mean=dataset.mean, std=dataset.std, seed=0)
        network.get_submodule(part).load_state_dict(state)
    except InputError:
        raise
    # PyTorch refuses shapes and types that the header of a damaged file may name.
    except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"these weights do not fit model {model_name!r} and data set {dataset.name!r}: "
            f"{one_line(error)}"
        ) from None
    return network.eval()


def attack_network(
    network: nn.Module, dataset: Dataset, settings: AttackSettings, seed: int
) -> Mapping[str, Mapping[float, float]]:
    """Return the accuracy that is left by attack and epsilon, on test images drawn with the seed.

    Args:
        network: from images in [0, 1] to logits; it is moved to the device of the data.
        dataset: with its test split.
        settings: of the attacks; at most ``settings.images`` images are attacked.
        seed: decides the images and the random starts.
    """
    assert dataset.test is not None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(dataset.test), generator=generator)[: settings.images]
    drawn = drawn.to(dataset.test.labels.device)
    # In float32, because cuDNN's own default for convolutions is TF32.
    with computing("float32", drawn.device):
        return robust_accuracy(
            network.to(drawn.device),
            scaled(dataset.test.images[drawn]),
            dataset.test.labels[drawn],
            epsilons=settings.epsilons,
            pgd_steps=settings.pgd_steps,
            pgd_restarts=settings.pgd_restarts,
            seed=seed,
        )


def _digest(contender: Contender, seed: int, engine: Engine) -> str:
    """Return a digest of all that decides a training in full."""
    dataset, settings = engine.dataset, engine.settings
    decisive = {
        "loss": contender.model_dump(exclude={"name"}),
        "seed": seed,
        "data": dataset.fingerprint,
        "test": digest_of(test=dataset.test),
        "model": [settings.model.name, revision(settings.model.name)],
        "training": settings.training.decisive(),
        "augmentation": settings.augmentation.model_dump(),
        "precision": engine.plan.precision,
        "software": [NUMERICS, version("torch")],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
