"""The fitness of candidates, by short trainings (TaylorGLO paper, section IV)."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import fmean
from typing import Any, NamedTuple, Protocol

from taylorglo.data.folds import Fold, fold_of_attempt
from taylorglo.data.seeds import derived_seed
from taylorglo.loss.dynamics import learning_drive
from taylorglo.loss.functions import TaylorLoss
from taylorglo.networks.factory import revision
from taylorglo.results import NUMERICS, Evaluation, Training, mean_curve
from taylorglo.scores import worst
from taylorglo.settings import SweepSettings, TrainingSettings
from taylorglo.training import function
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe


class Cache(Protocol):
    """A memory of short trainings, by the digest of all that decides them."""

    def recall(self, key: str) -> Training | None:
        """Return the training that was recorded under the key, or None."""

    def record(self, key: str, training: Training) -> None:
        """Keep a training."""


class Assignment(NamedTuple):
    """A candidate to evaluate: its number, its theta, and how many attempts it should have."""

    number: int
    theta: Sequence[float]
    attempts: int


class _Attempt(NamedTuple):
    """One attempt of a candidate, as the engine's key for it."""

    number: int
    attempt: int
    digest: str


@dataclass
class _Candidate:
    """A candidate whose evaluation has begun, and its trainings by the number of the attempt."""

    attempts: int
    trainings: dict[int, Training] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        """Whether an attempt did not succeed, so that no later one counts."""
        return any(training.status != "ok" for training in self.trainings.values())

    @property
    def complete(self) -> bool:
        return len(self.trainings) == self.attempts


class _Evaluations:
    """The candidates in evaluation.

    The engine pulls the recipes one by one, whenever it has room for another training, and between
    two of them the results that are known are noted here. So :meth:`recipes` knows at each step
    which candidates have stopped.
    """

    def __init__(
        self, assignments: Iterable[Assignment], group: int, engine: Engine, cache: Cache
    ) -> None:
        self._assignments = assignments
        self._group = group
        self._engine = engine
        self._cache = cache
        self._open: dict[int, _Candidate] = {}

    def recipes(self) -> Iterator[tuple[_Attempt, Recipe]]:
        """Yield a recipe for each attempt that is not in the cache."""
        settings, group = self._engine.settings, self._group
        for number, theta, attempts in self._assignments:
            candidate = self._open[number] = _Candidate(attempts)
            for attempt in range(attempts):
                if candidate.stopped:
                    candidate.attempts = attempt
                    break
                seed = derived_seed(settings.seed, group, attempt)
                fold = fold_of_attempt(settings, self._engine.dataset, group, attempt)
                recipe = short_training(theta, seed, self._engine, fold)
                digest = _digest(theta, recipe, self._engine)
                recorded = self._cache.recall(digest)
                if recorded is None:
                    yield _Attempt(number, attempt, digest), recipe
                else:
                    candidate.trainings[attempt] = recorded

    def note(self, attempt: _Attempt, training: Training) -> None:
        """Take a training's result in, and keep it for other sweeps unless it failed."""
        # A failure says nothing of the candidate: another sweep may try again.
        if training.status != "failed":
            self._cache.record(attempt.digest, training)
        self._open[attempt.number].trainings[attempt.attempt] = training

    def pop_complete(self) -> Iterator[tuple[int, Evaluation]]:
        """Yield the evaluations that are complete, and forget them."""
        for number in [n for n, candidate in self._open.items() if candidate.complete]:
            trainings = self._open.pop(number).trainings
            ordered = [trainings[attempt] for attempt in sorted(trainings)]
            yield number, _evaluation(ordered, self._engine.settings)


def evaluate(
    assignments: Iterable[Assignment], group: int, engine: Engine, cache: Cache
) -> Iterator[tuple[int, Evaluation]]:
    """Evaluate candidates; yield each evaluation with its number as soon as it is complete.

    All candidates of a group get the same number of steps, the same initial weights, the same
    batches and the same validation images, attempt by attempt (common random numbers). So they
    differ by their loss alone, and their ranks can be compared.

    With ``evaluation.folds``, each attempt is validated on another fold of the training and
    validation images, and each group has folds of its own. So the error of the validation labels
    becomes smaller with every attempt, and is not that of the other groups.

    Args:
        assignments: what to evaluate; taken one by one, whenever the engine has room.
        group: number of the first generation of the group in the search, from 1 (see
            :meth:`taylorglo.search.study.Search.group`).
        engine: that does the trainings.
        cache: of short trainings; a training that it has is not done again.

    Raises:
        InputError: a theta or the settings are wrong.
    """
    evaluations = _Evaluations(assignments, group, engine, cache)
    for attempt, trained in engine.run(evaluations.recipes()):
        evaluations.note(attempt, trained.training)
        yield from evaluations.pop_complete()
    yield from evaluations.pop_complete()


def short_training(
    theta: Sequence[float], seed: int, engine: Engine, fold: Fold | None = None
) -> Recipe:
    """Return the recipe of the short training of a candidate.

    Args:
        theta: of the candidate.
        seed: decides all that is random in the training.
        engine: that will do it.
        fold: as for :class:`taylorglo.training.loop.Recipe`.
    """
    short, full = engine.settings.evaluation, engine.settings.training
    least = 1 / engine.dataset.num_classes + short.give_up_gain
    return Recipe(
        TaylorLoss(theta, engine.settings.search.order),
        candidate_rate(theta, full, engine.dataset.num_classes),
        seed,
        steps=short.steps,
        horizon=short.steps if short.anneal else full.steps,
        validations=1,
        give_up=(short.give_up_step, least) if short.give_up_step else None,
        epsilon=short.adversarial_epsilon if short.adversarial_weight else 0.0,
        attack_steps=short.adversarial_steps,
        fold=fold,
    )


def candidate_rate(theta: Sequence[float], settings: TrainingSettings, num_classes: int) -> float:
    """Return the learning rate of a loss that the search found: of a candidate, or the champion.

    SGD has one rate for all: there the scale of a loss multiplies the gradient, and so the step. An
    adaptive optimizer undoes the scale of the gradient, so the scale multiplies the rate instead.
    It is |A|/n, the pull at the null epoch beside cross-entropy's.

    Args:
        theta: of the loss.
        settings: optimizer and learning rate.
        num_classes: n.
    """
    if not settings.adaptive:
        return settings.learning_rate
    return settings.learning_rate * abs(learning_drive(theta, num_classes)) / num_classes


def attempts_wanted(results: Mapping[int, Evaluation], settings: SweepSettings) -> dict[int, int]:
    """Return which candidates of a generation should be trained more often, and how often in all.

    These are candidates of the leading half, which CMA-ES moves to, as long as their order is more
    noise than not: in the two-way analysis of variance of their fitness by candidate and attempt,
    the mean square between candidates is below the mean square of the residual (F < 1). The
    attempts' own mean does not count, because the candidates share the seeds of their attempts. As
    in UH-CMA-ES (Hansen et al. 2009), the uncertainty is measured, and more trainings are spent
    only where the uncertainty matters.

    The rounds so far are gone through again, each with the attempts that it knew. So the answer
    does not depend on who asks, nor on how many trainings of the last round are there already.

    Args:
        results: the results of all trained candidates, by trial.
        settings: of the sweep.
    """
    known = {
        t: _first_attempts(result, settings.evaluation.attempts, settings)
        for t, result in results.items()
    }
    while more := _next_round(known, settings):
        lacking = {t: attempts for t, attempts in more.items() if _lacks(results[t], attempts)}
        if lacking:
            return lacking
        for trial, attempts in more.items():
            known[trial] = _first_attempts(results[trial], attempts, settings)
    return {}


def _lacks(result: Evaluation, attempts: int) -> bool:
    """Return whether a candidate has fewer attempts, and could be trained again."""
    return result.status == "ok" and len(result.accuracies) < attempts


def _first_attempts(result: Evaluation, attempts: int, settings: SweepSettings) -> Evaluation:
    """Return the result as it was after its first attempts."""
    if len(result.accuracies) <= attempts:
        return result
    first = result.model_copy(
        update={
            "status": "ok",
            "accuracies": result.accuracies[:attempts],
            "robust_accuracies": result.robust_accuracies[:attempts],
        }
    )
    fitness = fmean(_fitnesses(first, settings.evaluation.adversarial_weight))
    return first.model_copy(update={"fitness": fitness})


def _next_round(results: Mapping[int, Evaluation], settings: SweepSettings) -> dict[int, int]:
    """Return what :func:`attempts_wanted` does, for results in which every round is complete."""
    short = settings.evaluation
    if not short.max_attempts:
        return {}
    ranked = sorted(results, key=lambda trial: -results[trial].fitness)
    half = ranked[: settings.search.popsize // 2]
    leaders = [trial for trial in half if results[trial].status == "ok"]
    rows = [_fitnesses(results[trial], short.adversarial_weight) for trial in leaders]
    attempts = min(map(len, rows), default=0)
    if len(rows) < 2 or attempts >= short.max_attempts:
        return {}
    if not is_noise([row[:attempts] for row in rows]):
        return {}
    more = min(short.max_attempts, attempts + short.attempts)
    return {trial: more for trial, row in zip(leaders, rows, strict=True) if len(row) < more}


def is_noise(rows: Sequence[Sequence[float]]) -> bool:
    """Return whether F < 1 in the two-way analysis of variance without replication.

    Args:
        rows: fitness by candidate (at least two rows) and attempt (at least two columns).
    """
    number, attempts = len(rows), len(rows[0])
    means = [fmean(row) for row in rows]
    columns = [fmean(column) for column in zip(*rows, strict=True)]
    grand = fmean(means)
    between = attempts * sum((mean - grand) ** 2 for mean in means) / (number - 1)
    squares = sum(
        (value - mean - column + grand) ** 2
        for row, mean in zip(rows, means, strict=True)
        for value, column in zip(row, columns, strict=True)
    )
    return between < squares / ((number - 1) * (attempts - 1))


def _fitnesses(evaluation: Evaluation, adversarial_weight: float) -> list[float]:
    """Return the fitness of each attempt."""
    if not adversarial_weight:
        return list(evaluation.accuracies)
    pairs = zip(evaluation.accuracies, evaluation.robust_accuracies, strict=True)
    return [
        (1 - adversarial_weight) * accuracy + adversarial_weight * robust
        for accuracy, robust in pairs
    ]


def _evaluation(trainings: Sequence[Training], settings: SweepSettings) -> Evaluation:
    """Return the evaluation of a candidate from the trainings of its attempts, in their order."""
    unsuccessful = (index for index, t in enumerate(trainings) if t.status != "ok")
    counted = trainings[: next(unsuccessful, len(trainings) - 1) + 1]
    last = counted[-1]
    failed = last.status == "failed"
    robust = [t.robust_accuracy for t in counted if t.robust_accuracy is not None]
    evaluation = Evaluation(
        status=last.status,
        fitness=worst(settings.evaluation.score),
        accuracies=[] if failed else [t.accuracy for t in counted],
        robust_accuracies=[] if failed else robust,
        curve=[] if failed else mean_curve([t.curve for t in counted]),
        started=min(t.started for t in trainings),
        ended=max(t.ended for t in trainings),
        seconds=sum(t.seconds for t in trainings),
        reason=last.reason,
        engine=last.engine,
        precision=last.precision,
        device=last.device,
    )
    if failed:
        return evaluation
    fitness = fmean(_fitnesses(evaluation, settings.evaluation.adversarial_weight))
    return evaluation.model_copy(update={"fitness": fitness})


def _digest(theta: Sequence[float], recipe: Recipe, engine: Engine) -> str:
    """Return a digest of all that decides a short training.

    That is theta, data, network, schedule and seed, and the software that computes with them; and
    fold, score and steps of the attack, if they are not those that every training had before there
    was a choice.
    """
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
        "software": [NUMERICS, version("torch")],
        **measure(recipe.fold, settings),
    }
    if recipe.epsilon and recipe.attack_steps > 1:
        decisive["attack_steps"] = recipe.attack_steps
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def measure(fold: Fold | None, settings: SweepSettings) -> dict[str, Any]:
    """Return what decides who trains, on which images and by which score it is measured.

    It is empty for the built-in training, the validation split and the accuracy. A key without
    these entries is that of a training before there were others.
    """
    entries: dict[str, Any] = {}
    if settings.training.function:
        entries["function"] = function.revision(settings.training.function)
    if settings.evaluation.score != "accuracy":
        entries["score"] = settings.evaluation.score
    if fold is not None:
        entries["fold"] = [fold.seed, fold.count, fold.index]
    return entries
