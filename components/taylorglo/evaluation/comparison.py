"""A fair comparison: tuned baselines, and trainings in full of champion and baselines over seeds.

Every training is known by a digest of all that decides it, so that a memory of finished trainings
can stand in for it.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple, Protocol

from torch import nn

from taylorglo.data.dataset import Dataset
from taylorglo.data.folds import Fold, fold_of_attempt
from taylorglo.data.seeds import FINAL, TUNING, derived_seed
from taylorglo.data.splits import digest_of
from taylorglo.errors import InputError, TaylorgloError
from taylorglo.evaluation.fitness import attack_of, candidate_rate, measure, mixed
from taylorglo.loss.classic import classic
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.loss.members import MEMBERS, member
from taylorglo.loss.polynomial import checked_theta, length
from taylorglo.networks.factory import revision
from taylorglo.networks.weights import restored
from taylorglo.results import NUMERICS, Contender, FullTraining, by_contender
from taylorglo.settings import SweepSettings, TrainingSettings
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe

# The baselines' names for a reader, by their names in the settings.
NAMES = {
    "cross-entropy": "cross-entropy",
    "label-smoothing": "label-smoothed cross-entropy",
    "squared-error": "squared error",
    "baikal": "Baikal",
    "generalised-cross-entropy": "generalised cross-entropy",
    "symmetric-cross-entropy": "symmetric cross-entropy",
    "mean-absolute-error": "mean absolute error",
}


_ORDER_OF_MEMBERS = 3


class Entry(NamedTuple):
    """A contender to train in full: from which seed, and which fold it is validated on.

    Without a fold it is validated on the validation split. One that is ``attacked`` is measured
    there as the fitness is.
    """

    contender: Contender
    seed: int
    fold: Fold | None = None
    attacked: bool = False


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


def found(
    name: str, theta: Sequence[float], settings: TrainingSettings, num_classes: int
) -> Contender:
    """Return a loss that the search found as a contender, at its learning rate."""
    rate = candidate_rate(theta, settings, num_classes)
    return Contender(name=name, loss="taylor", learning_rate=rate, theta=list(theta))


def baselines(settings: SweepSettings, learning_rate: float) -> list[Contender]:
    """Return the losses to beat, at one learning rate, in the order of ``baselines.losses``.

    Label smoothing has a contender for each alpha, all of one name: of the contenders of a name,
    the tuning chooses the best.
    """
    return [
        contender
        for loss in settings.baselines.losses
        for contender in _contenders(loss, settings, learning_rate)
    ]


def _contenders(loss: str, settings: SweepSettings, learning_rate: float) -> list[Contender]:
    """Return the contenders of one of ``baselines.losses``."""
    name = NAMES[loss]
    if loss != "label-smoothing":
        return [Contender(name=name, loss=loss, learning_rate=learning_rate)]
    return [
        Contender(
            name=name, loss="cross-entropy", learning_rate=learning_rate, label_smoothing=alpha
        )
        for alpha in settings.baselines.label_smoothing
    ]


def tune_baselines(engine: Engine, memo: Memo) -> list[FullTraining]:
    """Train every baseline with every learning rate, ``baselines.attempts`` times each.

    Label smoothing is trained with every alpha at every learning rate.
    """
    settings = engine.settings
    rates = settings.baselines.learning_rates
    grid = [contender for rate in rates for contender in baselines(settings, rate)]
    return train_in_full(_tuning_entries(grid, engine), engine, memo)


def train_finalists(
    thetas: Sequence[Sequence[float]], engine: Engine, memo: Memo
) -> list[FullTraining]:
    """Train the best candidates in full, from the seeds and on the folds of the tuning.

    They are measured as the candidates of the search are: with ``evaluation.adversarial_weight``,
    under attack, too.
    """
    settings, num_classes = engine.settings.training, engine.dataset.num_classes
    contenders = [found("finalist", theta, settings, num_classes) for theta in thetas]
    attacked = engine.settings.evaluation.adversarial_weight > 0
    entries = [entry._replace(attacked=attacked) for entry in _tuning_entries(contenders, engine)]
    return train_in_full(entries, engine, memo)


def _tuning_entries(contenders: Sequence[Contender], engine: Engine) -> list[Entry]:
    """Return the attempts of every contender: the same seeds and the same folds for all."""
    settings = engine.settings
    attempts = [
        (
            derived_seed(settings.seed, TUNING, attempt),
            fold_of_attempt(settings, engine.dataset, TUNING, attempt),
        )
        for attempt in range(settings.baselines.attempts)
    ]
    return [Entry(contender, seed, fold) for contender in contenders for seed, fold in attempts]


def tuned_member(
    tuning: Sequence[FullTraining], settings: SweepSettings, num_classes: int
) -> tuple[str, list[float]] | None:
    """Return the best tuned baseline that the search could have found, as a loss of its family.

    Its scale stands for the learning rate that was tuned, so that it is trained as a candidate is.

    Args:
        tuning: the trainings that tuned the baselines.
        settings: of the sweep.
        num_classes: n.

    Returns:
        Its name and its theta; None if no baseline is in the family, or the training is a function
        of a user, which knows alone what becomes of a scale.
    """
    search, training = settings.search, settings.training
    own = [t for t in tuning if _is_member(t.contender, search.family)]
    if not own or search.order != _ORDER_OF_MEMBERS or training.function:
        return None
    best = best_contender(own)
    theta = member(best.loss)
    if search.family == "taylor-log" and len(theta) == length(_ORDER_OF_MEMBERS):
        theta.append(0.0)
    # The rate of this theta itself.
    rate = candidate_rate(theta, training, num_classes)
    return best.name, [value * best.learning_rate / rate for value in theta]


def _is_member(contender: Contender, family: str) -> bool:
    """Return whether a baseline is a loss of a family of the search."""
    if contender.label_smoothing or contender.loss not in MEMBERS:
        return False
    return family == "taylor-log" or len(member(contender.loss)) == length(_ORDER_OF_MEMBERS)


def best_contender(trainings: Sequence[FullTraining], adversarial_weight: float = 0.0) -> Contender:
    """Return the contender of highest mean validation accuracy; of equals, the first.

    With ``adversarial_weight``, it is that of highest mean fitness.
    """

    def mean_fitness(group: Sequence[FullTraining]) -> float:
        return sum(fitnesses(group, adversarial_weight)) / len(group)

    return max(by_contender(trainings), key=mean_fitness)[0].contender


def fitnesses(trainings: Sequence[FullTraining], adversarial_weight: float) -> list[float]:
    """Return the fitness of each training in full."""
    results = [full.training for full in trainings]
    return [mixed(t.accuracy, t.robust_accuracy, adversarial_weight) for t in results]


def compare(contender: Contender, engine: Engine, memo: Memo) -> list[FullTraining]:
    """Train a contender in full from ``champion.seeds`` seeds, the same for all, and test it.

    The engine's data set has its test split here, and nowhere else. Everything is trained on the
    training split, with folds or without.
    """
    settings = engine.settings
    indices = range(settings.champion.seeds)
    seeds = [derived_seed(settings.seed, FINAL, index) for index in indices]
    return train_in_full([Entry(contender, seed) for seed in seeds], engine, memo)


def train_in_full(entries: Sequence[Entry], engine: Engine, memo: Memo) -> list[FullTraining]:
    """Train contenders in full from seeds, each once, or recall what is known.

    The test accuracy is measured if the data set has its test split.

    Args:
        entries: contenders with their seeds and folds.
        engine: that does the trainings.
        memo: of finished trainings.

    Returns:
        A result for each entry, in their order.

    Raises:
        TaylorgloError: a training failed, also when it was tried again.
    """
    keys = [_digest(entry, engine) for entry in entries]
    known: dict[str, FullTraining] = {}
    missing: dict[str, Entry] = {}
    for key, entry in zip(keys, entries, strict=True):
        recorded = memo.recall(key)
        if recorded is None:
            missing.setdefault(key, entry)
        else:
            known[key] = recorded
    recipes = ((key, _recipe(entry, engine.settings)) for key, entry in missing.items())
    for key, trained in engine.run(recipes):
        entry = missing[key]
        if trained.training.status == "failed":
            raise TaylorgloError(
                f"a training in full of {entry.contender.name} failed: {trained.training.reason}"
            )
        full = FullTraining(
            contender=entry.contender, seed=entry.seed, key=key, training=trained.training
        )
        memo.record(full, trained.weights)
        known[key] = full
    # The same loss may be in a memory under another name: a finalist that became the champion.
    return [
        known[key].model_copy(update={"contender": entry.contender})
        for key, entry in zip(keys, entries, strict=True)
    ]


def _recipe(entry: Entry, settings: SweepSettings) -> Recipe:
    """Return the recipe of a training in full."""
    contender, steps = entry.contender, settings.training.steps
    return Recipe(
        loss_of(contender),
        contender.learning_rate,
        entry.seed,
        steps=steps,
        horizon=steps,
        **(attack_of(settings) if entry.attacked else {}),
        kept=True,
        fold=entry.fold,
    )


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
    try:
        return restored(
            weights,
            model_name,
            dataset.image_shape,
            dataset.num_classes,
            normalisation=(dataset.mean, dataset.std) if dataset.mean else None,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"these weights do not fit model {model_name!r} and data set {dataset.name!r}: {error}"
        ) from None


def _digest(entry: Entry, engine: Engine) -> str:
    """Return a digest of all that decides a training in full."""
    dataset, settings = engine.dataset, engine.settings
    decisive = {
        "loss": entry.contender.model_dump(exclude={"name"}),
        "seed": entry.seed,
        "data": dataset.fingerprint,
        "test": digest_of(test=dataset.test),
        "model": [settings.model.name, revision(settings.model.name)],
        "training": settings.training.decisive(),
        "augmentation": settings.augmentation.model_dump(),
        "precision": engine.plan.precision,
        "software": [NUMERICS, version("torch")],
        **measure(entry.fold, settings),
        **(attack_of(settings) if entry.attacked else {}),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
