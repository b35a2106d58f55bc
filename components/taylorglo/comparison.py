"""A fair comparison: baselines tuned on the validation split, champion and baselines trained in full over seeds.

Every training is known by a key made of all that decides it, so that a memo of finished ones can stand in for it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from taylorglo.data import Dataset
from taylorglo.errors import InputError
from taylorglo.loss import Loss, TaylorLoss, classic
from taylorglo.models import build
from taylorglo.polynomial import checked_theta
from taylorglo.settings import SweepSettings
from taylorglo.sources import digest_of
from taylorglo.training import build_network, derived_seed, train, validate

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


def tune_baselines(dataset: Dataset, settings: SweepSettings, memo: Memo) -> list[Trained]:
    """Train every baseline with every learning rate of the grid, ``baselines.attempts`` times each."""
    grid = [c for rate in settings.baselines.learning_rates for c in baselines(settings, rate)]
    return [
        train_in_full(contender, derived_seed(settings.seed, _TUNING, attempt), dataset, settings, memo)
        for contender in grid
        for attempt in range(settings.baselines.attempts)
    ]


def train_finalists(
    thetas: Sequence[Sequence[float]], dataset: Dataset, settings: SweepSettings, memo: Memo
) -> list[Trained]:
    """Train the best candidates in full, from the seeds of the baselines' tuning."""
    rate = settings.training.learning_rate
    contenders = [Contender("finalist", "taylor", rate, theta=list(theta)) for theta in thetas]
    return [
        train_in_full(contender, derived_seed(settings.seed, _TUNING, attempt), dataset, settings, memo)
        for contender in contenders
        for attempt in range(settings.baselines.attempts)
    ]


def best_contender(trainings: Sequence[Trained]) -> Contender:
    """The contender of highest mean validation accuracy; of equals, the first."""
    accuracies: dict[str, list[float]] = {}
    by_key = {repr(t.contender): t.contender for t in trainings}
    for training in trainings:
        accuracies.setdefault(repr(training.contender), []).append(training.accuracy)
    return by_key[max(accuracies, key=lambda key: sum(accuracies[key]) / len(accuracies[key]))]


def compare(contender: Contender, dataset: Dataset, settings: SweepSettings, memo: Memo) -> list[Trained]:
    """Train a contender in full from ``champion.seeds`` seeds, the same for every contender, and test it.

    ``dataset`` has its test split here, and here alone.
    """
    return [
        train_in_full(contender, derived_seed(settings.seed, _FINAL, index), dataset, settings, memo)
        for index in range(settings.champion.seeds)
    ]


def train_in_full(contender: Contender, seed: int, dataset: Dataset, settings: SweepSettings, memo: Memo) -> Trained:
    """One training in full, or the memory of it. The test accuracy is taken if the data set has its test split."""
    key = _key(contender, seed, dataset, settings)
    known = memo.recall(key)
    if known is not None:
        return Trained.from_dict({**known, "contender": asdict(contender)})
    network = build_network(settings, dataset, seed)
    training = train(
        network,
        contender.build(),
        dataset,
        settings.training,
        steps=settings.training.steps,
        horizon=settings.training.steps,
        learning_rate=contender.learning_rate,
        seed=seed,
    )
    test_accuracy = validate(network, dataset.test)[0] if dataset.test else None
    result = Trained(
        contender,
        seed,
        training.status,
        training.accuracy,
        test_accuracy,
        training.curve,
        training.started,
        training.ended,
        key,
    )
    memo.record(key, result.as_dict(), _weights(network, dataset, settings))
    return result


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


def _weights(network: nn.Module, dataset: Dataset, settings: SweepSettings) -> bytes:
    # One entry, for safetensors writes several in an arbitrary order, and the same weights should be the same bytes.
    metadata = {"taylorglo": json.dumps({"model": settings.model.name, "image_shape": dataset.image_shape})}
    # A copy of each, for it refuses tensors that share memory, such as tied weights.
    state = {n: value.cpu().clone(memory_format=torch.contiguous_format) for n, value in network.state_dict().items()}
    return save(state, metadata)


def _key(contender: Contender, seed: int, dataset: Dataset, settings: SweepSettings) -> str:
    decisive = {
        "loss": {k: v for k, v in asdict(contender).items() if k != "name"},
        "seed": seed,
        "data": dataset.fingerprint,
        "test": digest_of(test=dataset.test),
        "model": settings.model.name,
        "training": settings.training.model_dump(),
        "augmentation": settings.augmentation.model_dump(),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
