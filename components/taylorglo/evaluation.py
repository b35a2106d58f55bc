"""The fitness of candidates, by short trainings (TaylorGLO paper, section IV)."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import fmean
from typing import Any, Protocol

from taylorglo.batches import derived_seed
from taylorglo.engine import Engine
from taylorglo.loss import TaylorLoss
from taylorglo.models import revision
from taylorglo.settings import SweepSettings
from taylorglo.statistics import mean_curve
from taylorglo.training import Recipe, Status, Training


class Cache(Protocol):
    """Where short trainings are kept, by what decides them."""

    def recall(self, key: str) -> Mapping[str, Any] | None:
        """What was recorded under the key, or None."""

    def record(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a result (JSON values)."""


@dataclass(frozen=True)
class Evaluation:
    """A candidate's result.

    ``fitness`` is the validation accuracy averaged over the attempts, in [0, 1], or with ``adversarial_weight`` w,
    (1 - w) times that and w times the accuracy under FGSM; ``accuracies`` and ``robust_accuracies`` are the attempts'.
    An attempt that diverges is the last one; a candidate whose training failed twice has fitness 0. ``seconds`` is its
    share of the time of the processes that trained it, ``method`` how they did.
    """

    status: Status
    fitness: float
    accuracies: list[float]
    robust_accuracies: list[float]
    curve: list[tuple[int, float, float]]
    started: float
    ended: float
    seconds: float
    reason: str = ""
    method: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


def evaluate(
    candidates: Iterable[tuple[int, Sequence[float], int]], generation: int, engine: Engine, cache: Cache
) -> Iterator[tuple[int, Evaluation]]:
    """Evaluate candidates; the evaluations come as they are known.

    All candidates of a generation are given the same number of steps, the same initial weights and the same batches,
    attempt by attempt (common random numbers), so that they differ by their loss alone and their ranks can be compared.

    Args:
        candidates: numbers, thetas, and numbers of attempts; taken one by one when there is room for them.
        generation: of the search, from 1.
        engine: that trains them.
        cache: of short trainings; what is in it is not trained again.

    Raises:
        InputError: a theta or the settings are wrong.
    """
    settings = engine.settings
    known: dict[int, dict[int, Training]] = {}
    wanted: dict[int, int] = {}
    complete: deque[int] = deque()
    keys: dict[tuple[int, int], str] = {}

    def note(number: int, attempt: int, training: Training) -> None:
        known[number][attempt] = training
        close(number)

    def close(number: int) -> None:
        if len(known[number]) == wanted[number]:
            complete.append(number)

    def recipes() -> Iterator[tuple[tuple[int, int], Recipe]]:
        for number, theta, attempts in candidates:
            known[number], wanted[number] = {}, attempts
            for attempt in range(attempts):
                if any(training.status != "ok" for training in known[number].values()):
                    wanted[number] = attempt  # what would come after it does not count
                    close(number)
                    break
                recipe = short_training(theta, derived_seed(settings.seed, generation, attempt), engine)
                key = keys[number, attempt] = _key(theta, recipe, engine)
                recorded = cache.recall(key)
                if recorded is None:
                    yield (number, attempt), recipe
                else:
                    curve = [(step, accuracy, loss) for step, accuracy, loss in recorded["curve"]]
                    note(number, attempt, Training(**{**recorded, "curve": curve}))

    def evaluated() -> Iterator[tuple[int, Evaluation]]:
        while complete:
            number = complete.popleft()
            trainings = known.pop(number)
            yield number, _evaluation([trainings[attempt] for attempt in sorted(trainings)], settings)

    for (number, attempt), result in engine.train(recipes()):
        if result.training.status != "failed":  # by which nothing is known of it: another sweep may try again
            cache.record(keys[number, attempt], asdict(result.training))
        note(number, attempt, result.training)
        yield from evaluated()
    yield from evaluated()


def short_training(theta: Sequence[float], seed: int, engine: Engine) -> Recipe:
    """The short training of a candidate."""
    short, full = engine.settings.evaluation, engine.settings.training
    least = 1 / engine.dataset.num_classes + short.give_up_gain
    return Recipe(
        TaylorLoss(theta, engine.settings.search.order),
        full.learning_rate,
        seed,
        steps=short.steps,
        horizon=short.steps if short.anneal else full.steps,
        validations=1,
        give_up=(short.give_up_step, least) if short.give_up_step else None,
        epsilon=short.adversarial_epsilon if short.adversarial_weight else 0.0,
    )


def attempts_wanted(results: Mapping[int, Mapping[str, Any]], settings: SweepSettings) -> dict[int, int]:
    """Which candidates of a generation are to be trained more often, and how often in all.

    Those of the leading half, which CMA-ES moves to, as long as their order is more noise than not: where, in the
    two-way analysis of variance of their fitness by candidate and attempt, the mean square between candidates is below
    that of the residual (F < 1). The attempts' own mean does not count, for they share their seeds. As in UH-CMA-ES
    (Hansen et al. 2009), the uncertainty is measured, and more is spent only where it matters.

    Args:
        results: of all trained candidates, by number: evaluations as JSON values.
        settings: of the sweep.
    """
    short = settings.evaluation
    if not short.max_attempts:
        return {}
    ranked = sorted(results, key=lambda number: -results[number]["fitness"])
    leaders = [number for number in ranked[: settings.search.popsize // 2] if results[number]["status"] == "ok"]
    rows = [_fitnesses(results[number], settings) for number in leaders]
    attempts = min(map(len, rows), default=0)
    if len(rows) < 2 or attempts >= short.max_attempts or not _noisy([row[:attempts] for row in rows]):
        return {}
    more = min(short.max_attempts, attempts + short.attempts)
    return {number: more for number, row in zip(leaders, rows, strict=True) if len(row) < more}


def _noisy(rows: Sequence[Sequence[float]]) -> bool:
    """Whether F < 1 in the two-way analysis of variance without replication of rows and columns."""
    number, attempts = len(rows), len(rows[0])
    means, columns = [fmean(row) for row in rows], [fmean(column) for column in zip(*rows, strict=True)]
    grand = fmean(means)
    between = attempts * sum((mean - grand) ** 2 for mean in means) / (number - 1)
    residual = sum(
        (value - mean - column + grand) ** 2
        for row, mean in zip(rows, means, strict=True)
        for value, column in zip(row, columns, strict=True)
    ) / ((number - 1) * (attempts - 1))
    return between < residual


def _fitnesses(result: Mapping[str, Any], settings: SweepSettings) -> list[float]:
    """The fitness of each attempt."""
    weight = settings.evaluation.adversarial_weight
    if not weight:
        return list(result["accuracies"])
    pairs = zip(result["accuracies"], result["robust_accuracies"], strict=True)
    return [(1 - weight) * accuracy + weight * robust for accuracy, robust in pairs]


def _evaluation(trainings: Sequence[Training], settings: SweepSettings) -> Evaluation:
    started, ended = min(t.started for t in trainings), max(t.ended for t in trainings)
    seconds = sum(t.seconds for t in trainings)
    bad = next((index for index, t in enumerate(trainings) if t.status != "ok"), len(trainings) - 1)
    counted, last = trainings[: bad + 1], trainings[bad]
    if last.status == "failed":
        return Evaluation("failed", 0.0, [], [], [], started, ended, seconds, last.reason, last.method)
    accuracies = [t.accuracy for t in counted]
    robust = [t.robust_accuracy for t in counted if t.robust_accuracy is not None]
    fitness = fmean(_fitnesses({"accuracies": accuracies, "robust_accuracies": robust}, settings))
    curve = mean_curve([t.curve for t in counted])
    return Evaluation(
        last.status, fitness, accuracies, robust, curve, started, ended, seconds, last.reason, last.method
    )


def _key(theta: Sequence[float], recipe: Recipe, engine: Engine) -> str:
    """Of all that decides a short training: theta, data, network, schedule and seed, and what computes them."""
    settings = engine.settings
    decisive = {
        "theta": list(theta),
        "order": settings.search.order,
        "seed": recipe.seed,
        "data": engine.dataset.fingerprint,
        "model": [settings.model.name, revision(settings.model.name)],
        "training": settings.training.decisive(),
        "augmentation": settings.augmentation.model_dump(),
        "recipe": [recipe.steps, recipe.horizon, recipe.give_up, recipe.epsilon],
        "method": engine.plan.precision,
        "software": [version("taylorglo"), version("torch")],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
