"""A fair comparison: baselines tuned on the validation split, champion and baselines trained in full over seeds.

Every training is known by a key made of all that decides it, so that a memo of finished ones can stand in for it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from taylorglo.batches import derived_seed
from taylorglo.data import Dataset
from taylorglo.engine import Engine
from taylorglo.errors import InputError, TaylorgloError
from taylorglo.loss import Loss, TaylorLoss, classic
from taylorglo.models import build, revision
from taylorglo.polynomial import checked_theta
from taylorglo.settings import SweepSettings
from taylorglo.sources import digest_of
from taylorglo.training import Recipe

# Paths below the sweep's seed; those of the candidates are (generation >= 1, attempt).
_TUNING, _FINAL = 0, 1_000_000


class Memo(Protocol):
    """Where finished trainings are kept."""

    def recall(self, key: str) -> Mapping[str, Any] | None:
        """What was recorded under the key, or None."""

    def weights(self, key: str) -> bytes:
        """The trained network that was recorded under the key, as safetensors."""

    def record(self, key: str, result: Mapping[str, Any], weights: bytes) -> None:
        """Keep a result (JSON values) and a network's weights (safetensors)."""


@dataclass(frozen=True)
class Contender:
    """A loss with the learning rate it is trained with: the champion (theta is given) or a classic loss."""

    name: str
    loss: str
    learning_rate: float
    theta: list[float] = field(default_factory=list)
    label_smoothing: float = 0.0

    def build(self) -> Loss:
        """The loss itself."""
        if self.theta:
            return TaylorLoss(self.theta, checked_theta(self.theta)[1])
        return classic(self.loss, self.label_smoothing)


@dataclass(frozen=True)
class Trained:
    """One training in full. ``accuracy`` is on the validation split, ``test_accuracy`` on the test split if seen."""

    contender: Contender
    seed: int
    status: str
    accuracy: float
    test_accuracy: float | None
    curve: list[tuple[int, float, float]]
    started: float
    ended: float
    key: str
    method: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The training as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Trained":
        """The inverse of :meth:`as_dict`."""
        curve = [(step, accuracy, loss) for step, accuracy, loss in values["curve"]]
        return cls(**{**values, "contender": Contender(**values["contender"]), "curve": curve})


def baselines(settings: SweepSettings, learning_rate: float) -> list[Contender]:
    """The losses to beat, at one learning rate."""
    return [
        Contender("cross-entropy", "cross-entropy", learning_rate),
        Contender(
            "label-smoothed cross-entropy",
            "cross-entropy",
            learning_rate,
            label_smoothing=settings.baselines.label_smoothing,
        ),
        Contender("squared error", "squared-error", learning_rate),
    ]


def tune_baselines(engine: Engine, memo: Memo) -> list[Trained]:
    """Train every baseline with every learning rate of the grid, ``baselines.attempts`` times each."""
    settings = engine.settings
    grid = [c for rate in settings.baselines.learning_rates for c in baselines(settings, rate)]
    return train_in_full(_tuned(grid, settings), engine, memo)


def train_finalists(thetas: Sequence[Sequence[float]], engine: Engine, memo: Memo) -> list[Trained]:
    """Train the best candidates in full, from the seeds of the baselines' tuning."""
    rate = engine.settings.training.learning_rate
    contenders = [Contender("finalist", "taylor", rate, theta=list(theta)) for theta in thetas]
    return train_in_full(_tuned(contenders, engine.settings), engine, memo)


def _tuned(contenders: Sequence[Contender], settings: SweepSettings) -> list[tuple[Contender, int]]:
    seeds = [derived_seed(settings.seed, _TUNING, attempt) for attempt in range(settings.baselines.attempts)]
    return [(contender, seed) for contender in contenders for seed in seeds]


def best_contender(trainings: Sequence[Trained]) -> Contender:
    """The contender of highest mean validation accuracy; of equals, the first."""
    accuracies: dict[str, list[float]] = {}
    by_key = {repr(t.contender): t.contender for t in trainings}
    for training in trainings:
        accuracies.setdefault(repr(training.contender), []).append(training.accuracy)
    return by_key[max(accuracies, key=lambda key: sum(accuracies[key]) / len(accuracies[key]))]


def compare(contender: Contender, engine: Engine, memo: Memo) -> list[Trained]:
    """Train a contender in full from ``champion.seeds`` seeds, the same for every contender, and test it.

    The engine's data set has its test split here, and here alone.
    """
    settings = engine.settings
    seeds = [derived_seed(settings.seed, _FINAL, index) for index in range(settings.champion.seeds)]
    return train_in_full([(contender, seed) for seed in seeds], engine, memo)


def train_in_full(trainings: Sequence[tuple[Contender, int]], engine: Engine, memo: Memo) -> list[Trained]:
    """Trainings in full of contenders from seeds, or the memory of them, each once.

    The test accuracy is taken if the data set has its test split.

    Raises:
        TaylorgloError: a training failed twice.
    """
    settings = engine.settings
    keys = [_key(contender, seed, engine) for contender, seed in trainings]
    found: dict[str, Trained] = {}
    missing: dict[str, tuple[Contender, int]] = {}
    for key, (contender, seed) in zip(keys, trainings, strict=True):
        recorded = memo.recall(key)
        if recorded is None:
            missing.setdefault(key, (contender, seed))
        else:
            found[key] = Trained.from_dict({**recorded, "contender": asdict(contender)})

    def recipe(contender: Contender, seed: int) -> Recipe:
        steps = settings.training.steps
        return Recipe(contender.build(), contender.learning_rate, seed, steps=steps, horizon=steps, kept=True)

    for key, result in engine.train((key, recipe(*missing[key])) for key in missing):
        (contender, seed), training = missing[key], result.training
        if training.status == "failed":
            raise TaylorgloError(f"a training in full of {contender.name} failed twice: {training.reason}")
        trained = Trained(
            contender,
            seed,
            training.status,
            training.accuracy,
            training.test_accuracy,
            training.curve,
            training.started,
            training.ended,
            key,
            training.method,
        )
        memo.record(key, trained.as_dict(), result.weights)
        found[key] = trained
    return [replace(found[key], contender=contender) for key, (contender, _) in zip(keys, trainings, strict=True)]


def restore_network(weights: bytes, model_name: str, dataset: Dataset) -> nn.Module:
    """A trained network from its safetensors, in evaluation mode, on the CPU.

    Args:
        weights: of the network with its normalisation, as a sweep keeps them, or of the bare network alone; that one
            is given the normalisation of the data set.
        model_name: the network that they belong to, as in the settings.
        dataset: what it was trained on.

    Raises:
        InputError: the weights are damaged, or belong to another network.
    """
    network = build(model_name, dataset.image_shape, dataset.num_classes, dataset.mean, dataset.std, seed=0)
    try:
        state = load(weights)
        whole = any(name.startswith("normalize.") for name in state)
        (network if whole else network.get_submodule("network")).load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"these weights do not fit model {model_name!r} and data set {dataset.name!r}: {reason}"
        ) from None
    return network.eval()


def _key(contender: Contender, seed: int, engine: Engine) -> str:
    dataset, settings = engine.dataset, engine.settings
    decisive = {
        "loss": {k: v for k, v in asdict(contender).items() if k != "name"},
        "seed": seed,
        "data": dataset.fingerprint,
        "test": digest_of(test=dataset.test),
        "model": [settings.model.name, revision(settings.model.name)],
        "training": settings.training.decisive(),
        "augmentation": settings.augmentation.model_dump(),
        "precision": engine.plan.precision,
        "software": [version("taylorglo"), version("torch")],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
