"""How many trainings does a search need (`make study-search`)?

It counts the trainings until the loss that would be recommended truly reaches a target. The true
accuracy of a loss is the mean test accuracy of trainings from fresh seeds, with the network, steps
and rate of the candidates. There are two targets on each task: what label smoothing reaches with a
tuned rate, and 0.2 points below the best that any recommendation of the study reached.

What is recommended after a generation: the mean of CMA-ES's distribution, or the best candidate of
the generation if the filters reject the mean; the candidate of highest fitness so far for random
search, TPE and GP.
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Protocol
from unittest import mock

import cmaes
import optuna
from search_cases import (
    DEFAULT,
    DEFAULT_METHOD,
    FULL,
    GENERATIONS,
    METHODS,
    NO_LEARNING,
    POPULATION,
    SCALES,
    SMOOTHING,
    STARTS,
    TASKS,
    TASKS_OF_STARTS,
    Method,
)
from search_tables import drawing, starts_table, targets_of, write_tables
from studies import Cell, Row, Study, command

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.data.seeds import derived_seed
from taylorglo.errors import InputError
from taylorglo.evaluation.fitness import Assignment, evaluate
from taylorglo.files import replacing
from taylorglo.loss.classic import CrossEntropy
from taylorglo.loss.coordinates import theta_at
from taylorglo.loss.filters import all_of
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.results import Evaluation, Training
from taylorglo.search.space import Space
from taylorglo.search.study import Search
from taylorglo.settings import DataSettings, SearchSettings, SweepSettings
from taylorglo.training.devices import device_of
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, resident
from taylorglo.training.machine import cpus

ATTEMPTS_OF_STARTS = 5  # one for each fold
SOURCES = 3  # searches that warm starts begin with
FRESH = 10  # trainings that measure the true accuracy of a loss
FRESH_SEEDS = 20_000_000  # the seed above theirs; no search has it
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # that label smoothing is tuned over
HALF_WIDTH = 2.0  # of the box of random search, TPE and GP, in widths of the axes


class Nothing:
    """A cache that forgets: everything is trained."""

    def recall(self, key: str) -> Training | None:
        """Return None."""

    def record(self, key: str, training: Training) -> None:
        """Forget the training."""


def search_cells(
    size: Mapping[str, tuple[Sequence[str], int]],
    steps: int | None = None,
    generations: int | None = None,
    fresh: int = FRESH,
) -> list[Cell]:
    """Return a cell for each search.

    Args:
        size: methods and number of searches by task.
        steps: of a training; those of the task if they are not given.
        generations: of a search; those of the method if they are not given.
        fresh: trainings that measure the true accuracy of a loss.
    """
    return [
        {
            "task": task,
            "method": method,
            "seed": seed,
            "steps": steps or TASKS[task].steps,
            "generations": generations or METHODS[method].generations,
            "fresh": fresh,
            "space": space_of(METHODS[method]),
        }
        for task, (methods, seeds) in size.items()
        for method in methods
        for seed in range(seeds)
    ]


def space_of(method: Method) -> str:
    """Return a digest of where a method begins, so that no result of another prior is taken."""
    settings = SearchSettings.model_validate(method.search)
    space = Space.of(settings, 10)
    digest = hashlib.sha256(json.dumps([space.mean, space.starts, space.sigmas]).encode())
    return f"space-{digest.hexdigest()[:8]}"


def trainings_of(cell: Cell) -> int:
    """Return about how many trainings a cell does, those from fresh seeds among them."""
    method = METHODS[str(cell["method"])]
    generations = int(cell["generations"])
    of_a_generation: int = method.search.get("popsize", POPULATION) * method.attempts
    return generations * of_a_generation + (generations + 1) * int(cell["fresh"])


@cache
def dataset_of(name: str) -> Dataset:
    """Return the data of a task; they are the same in all its searches."""
    return datasets.load(DataSettings.model_validate(TASKS[name].data), 0)


def settings_of(cell: Cell, method: Method) -> SweepSettings:
    """Return the settings of a search."""
    task, steps = TASKS[str(cell["task"])], int(cell["steps"])
    return SweepSettings.model_validate(
        {
            "name": "study",
            "seed": int(cell["seed"]),
            "data": task.data,
            "model": {"name": task.model},
            "training": {"steps": steps, "learning_rate": task.rate, "workers": 1},
            # A third of the steps, as in the defaults.
            "evaluation": {
                "steps": steps,
                "attempts": method.attempts,
                "give_up_step": steps // 3,
            },
            "search": {"popsize": POPULATION, **method.search, "renew": method.source},
        }
    )


def engine_of(settings: SweepSettings, dataset: Dataset) -> Engine:
    """Return an engine that trains in this process."""
    return Engine(settings, lambda: resident(dataset, device_of(settings.training)))


class Strategy(Protocol):
    """A search, whatever draws its candidates."""

    def generation(self, number: int, engine: Engine) -> list[Evaluation]:
        """Draw and train a generation, from 1; return the results of what was trained."""

    def recommended(self) -> list[float] | None:
        """Return the theta to recommend now, or None if there is none."""


class Evolution:
    """CMA-ES, as the product searches."""

    def __init__(self, settings: SweepSettings, task: str, database: Path) -> None:
        identity = settings.identity(task)
        classes = dataset_of(task).num_classes
        url = f"sqlite:///{database}"
        self.search = Search.begin(
            url, "study", settings.search, settings.seed, identity, num_classes=classes
        )
        self._generation = 0

    def generation(self, number: int, engine: Engine) -> list[Evaluation]:
        """Draw, screen, train and tell."""
        self.search.propose(number)
        accepted = [c for c in self.search.screen(number) if not c.rejected]
        thetas = {candidate.trial: candidate.theta for candidate in accepted}
        results = trained(thetas, self.search.group(number), engine)
        for trial, result in results.items():
            self.search.tell(trial, result)
        self._generation = number
        return list(results.values())

    def recommended(self) -> list[float] | None:
        """Return the mean of the distribution; if it is rejected, the best of the generation."""
        if (mean := self.search.mean()) is not None:
            return mean
        told = [c for c in self.search.candidates(self._generation) if c.result is not None]
        return max(told, key=lambda c: c.fitness or 0.0).theta if told else None


class Sampled:
    """Random search, TPE or GP in a box of the same coordinates, in batches of a generation.

    A candidate that the filters reject counts with fitness 0 and takes no training, and another one
    is drawn.
    """

    def __init__(self, settings: SweepSettings, task: str, kind: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._settings = settings.search
        self._classes = dataset_of(task).num_classes
        self._space = Space.of(settings.search, self._classes)
        self._box: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(
                mean - HALF_WIDTH * max(sigmas), mean + HALF_WIDTH * max(sigmas)
            )
            for name, mean, *sigmas in zip(
                self._space.names,
                self._space.mean,
                self._space.starts[0].tried,
                self._space.sigmas,
                strict=True,
            )
        }
        sampler = sampler_of(kind, settings.seed, settings.search.popsize)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._thetas: dict[int, list[float]] = {}

    def generation(self, number: int, engine: Engine) -> list[Evaluation]:
        """Draw, screen, train and tell."""
        judge = all_of(self._settings.filters)
        thetas: dict[int, list[float]] = {}
        for _ in range(self._settings.max_draws):
            trial = self._study.ask(self._box)
            theta = self._space.theta(trial.params)
            if judge(theta, self._classes).accepted:
                thetas[trial.number] = theta
            else:
                self._study.tell(trial, 0.0)
            if len(thetas) == self._settings.popsize:
                break
        results = trained(thetas, number, engine)
        for trial_number, result in results.items():
            self._study.tell(trial_number, result.fitness)
        self._thetas |= thetas
        return list(results.values())

    def recommended(self) -> list[float] | None:
        """Return the candidate of highest fitness."""
        return self._thetas[self._study.best_trial.number] if self._thetas else None


def sampler_of(kind: str, seed: int, popsize: int) -> optuna.samplers.BaseSampler:
    """Return a sampler of Optuna; its first generation is drawn at random."""
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if kind == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=popsize)
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=popsize, multivariate=True, constant_liar=True
    )


def trained(
    thetas: Mapping[int, Sequence[float]], group: int, engine: Engine
) -> dict[int, Evaluation]:
    """Return the results of candidates, by their number."""
    attempts = engine.settings.evaluation.attempts
    assignments = [Assignment(number, theta, attempts) for number, theta in thetas.items()]
    return dict(evaluate(assignments, group, engine, Nothing()))


def compute_source(folder: str, cell: Cell) -> list[Row]:
    """Search to the end, and keep the study's database for warm starts."""
    method = METHODS["dynamics"]
    settings = settings_of(cell, method)
    name = str(cell["task"])
    with tempfile.TemporaryDirectory() as temporary:
        database = Path(temporary) / "study.db"
        strategy = Evolution(settings, name, database)
        with engine_of(settings, datasets.without_test(dataset_of(name))) as engine:
            for number in range(1, int(cell["generations"]) + 1):
                strategy.generation(number, engine)
        strategy.search.finish()
        best = strategy.search.best(1)
        with replacing(source_file(folder, cell)) as file:
            file.write(database.read_bytes())
    return [{"fitness": (best[0].fitness or 0.0) if best else 0.0}]


def source_file(folder: str, cell: Cell) -> Path:
    """Return the file of the study that a cell of a source gives."""
    return Path(folder) / f"source-{'-'.join(map(str, cell.values()))}.db"


def source_cell(cell: Cell, steps: int | None = None) -> Cell:
    """Return the cell of the search that a search with a warm start begins with.

    Searches on digits begin with one on Fashion-MNIST, and the others with one on digits. There are
    few sources, because each is a whole search.
    """
    task = "fashion" if TASKS[str(cell["task"])].smoothed == "digits" else "digits"
    return {
        "task": task,
        "seed": int(cell["seed"]) % SOURCES,
        "steps": steps or TASKS[task].steps,
        "generations": min(GENERATIONS, int(cell["generations"])),
        "space": cell["space"],
    }


def compute_search(folder: str, steps: int | None, cell: Cell) -> list[Row]:
    """Search; return a row for each generation, and one (0) for what is known before.

    Args:
        folder: of the study, with the sources of warm starts.
        steps: of a training of a source; those of its task if they are not given.
        cell: of :func:`search_cells`.
    """
    name, method = str(cell["task"]), METHODS[str(cell["method"])]
    settings, dataset = settings_of(cell, method), dataset_of(name)
    limit = 1 / dataset.num_classes + NO_LEARNING
    strategy: Strategy
    rows: list[Row] = []
    recommendations: list[list[float] | None] = []
    trainings = wasted = 0
    with (
        tempfile.TemporaryDirectory() as temporary,
        learning_rate_adaptation(method.adapted),
        engine_of(settings, datasets.without_test(dataset)) as engine,
    ):
        if method.sampler:
            strategy = Sampled(settings, name, method.sampler)
        else:
            database = Path(temporary) / "study.db"
            if method.source:
                shutil.copy(source_file(folder, source_cell(cell, steps)), database)
            strategy = Evolution(settings, name, database)
        for number in range(int(cell["generations"]) + 1):
            results = strategy.generation(number, engine) if number else []
            # A training that failed has no accuracy.
            accuracies = [value for result in results for value in result.accuracies or [0.0]]
            trainings += len(accuracies)
            wasted += sum(value <= limit for value in accuracies)
            best = max((result.fitness for result in results), default=0.0)
            rows.append(
                {
                    "generation": number,
                    "trainings": trainings,
                    "wasted": wasted,
                    "fitness": best,
                }
            )
            recommendations.append(strategy.recommended())
    known = true_accuracies(recommendations, settings, dataset, int(cell["fresh"]))
    return [
        {**row, **accuracy, "theta": json.dumps(theta)}
        for row, theta, accuracy in zip(rows, recommendations, known, strict=True)
    ]


@contextmanager
def learning_rate_adaptation(wanted: bool) -> Iterator[None]:
    """Let CMA-ES adapt its learning rate in the block, if wanted.

    This is cmaes's ``lr_adapt`` (Nomura et al., arXiv 2304.03473), which the product does not use.
    """
    plain = cmaes.CMA.__init__

    def adapted(optimizer: cmaes.CMA, **options: Any) -> None:
        plain(optimizer, **options, lr_adapt=True)

    if not wanted:
        yield
        return
    with mock.patch.object(cmaes.CMA, "__init__", adapted):
        yield


def true_accuracies(
    thetas: Sequence[list[float] | None], settings: SweepSettings, dataset: Dataset, fresh: int
) -> list[Row]:
    """Return mean and deviation of the test accuracy of losses; NaN if there is no loss."""
    distinct = {json.dumps(theta): theta for theta in thetas if theta is not None}
    losses = {key: TaylorLoss(theta, settings.search.order) for key, theta in distinct.items()}
    rate = settings.training.learning_rate
    groups = tested({key: (loss, rate) for key, loss in losses.items()}, settings, dataset, fresh)
    nothing: Row = {"accuracy": math.nan, "deviation": math.nan}
    return [
        nothing
        if theta is None
        else {
            "accuracy": fmean(full.test_accuracy or 0.0 for full in groups[json.dumps(theta)]),
            "deviation": stdev(full.test_accuracy or 0.0 for full in groups[json.dumps(theta)]),
        }
        for theta in thetas
    ]


def tested(
    losses: Mapping[str, tuple[Loss, float]], settings: SweepSettings, dataset: Dataset, fresh: int
) -> dict[str, list[Training]]:
    """Train losses with their rates from fresh seeds, the same for all, and test the networks.

    Raises:
        InputError: a training failed.
    """
    steps = settings.training.steps
    recipes = [
        (
            (key, index),
            Recipe(
                loss,
                rate,
                derived_seed(FRESH_SEEDS, index),
                steps=steps,
                horizon=steps,
                validations=1,
                # The score on the test split is measured only of what is kept.
                kept=True,
            ),
        )
        for key, (loss, rate) in losses.items()
        for index in range(fresh)
    ]
    groups: dict[str, list[Training]] = {key: [] for key in losses}
    with engine_of(settings, dataset) as engine:
        results = {key: result.training for key, result in engine.run(recipes)}
    for (key, index), _ in recipes:
        training = results[key, index]
        if training.status == "failed":
            raise InputError(f"a training failed twice: {training.reason}")
        groups[key].append(training)
    return groups


def compute_smoothing(cell: Cell) -> list[Row]:
    """Return the accuracies of label smoothing on a task, a row for each rate."""
    name = str(cell["task"])
    settings = settings_of({**cell, "seed": 0}, METHODS["dynamics"])
    losses: dict[str, tuple[Loss, float]] = {
        str(rate): (CrossEntropy(SMOOTHING), rate) for rate in RATES
    }
    groups = tested(losses, settings, dataset_of(name), int(cell["fresh"]))
    return [
        {
            "rate": rate,
            "validation": fmean(training.accuracy for training in groups[str(rate)]),
            "accuracy": fmean(training.test_accuracy or 0.0 for training in groups[str(rate)]),
            "deviation": stdev(training.test_accuracy or 0.0 for training in groups[str(rate)]),
        }
        for rate in RATES
    ]


def start_cells(steps: int | None = None, attempts: int = ATTEMPTS_OF_STARTS) -> list[Cell]:
    """Return a cell for each task and each place where a search might start.

    Args:
        steps: of a training; those of the task if they are not given.
        attempts: trainings of each place with each scale.
    """
    names = ("end", "bend", "collapse", "log_share")
    return [
        {
            "task": task,
            **dict(zip(names, start, strict=True)),
            "steps": steps or TASKS[task].steps,
            "attempts": attempts,
        }
        for task in TASKS_OF_STARTS
        for start in STARTS
    ]


def compute_start(cell: Cell) -> list[Row]:
    """Train the loss at a place where a search might start; return a row for each scale.

    The accuracies are those of a search: each training is validated on a fold of its own. The test
    images have no part in it.
    """
    name = str(cell["task"])
    method = Method("start", METHODS[DEFAULT_METHOD].search, attempts=int(cell["attempts"]))
    settings, dataset = settings_of({**cell, "seed": 0}, method), dataset_of(name)
    point = {key: float(cell[key]) for key in ("end", "bend", "collapse", "log_share")}
    thetas = {
        number: theta_at({"scale": scale, **point}, dataset.num_classes)
        for number, scale in enumerate(SCALES)
    }
    with engine_of(settings, datasets.without_test(dataset)) as engine:
        results = trained(thetas, 1, engine)
    return [
        {"scale": scale, "validation": fmean(results[number].accuracies or [0.0])}
        for number, scale in enumerate(SCALES)
    ]


def do(
    study: Study,
    size: Mapping[str, tuple[Sequence[str], int]],
    *,
    steps: int | None = None,
    generations: int | None = None,
    fresh: int = FRESH,
    starting: int = ATTEMPTS_OF_STARTS,
) -> None:
    """Do the searches and all that they need; write the tables and the figure.

    Args:
        study: the frame.
        size: as for :func:`search_cells`, like the other arguments.
        steps: of every training.
        generations: of every search.
        fresh: trainings that measure a true accuracy.
        starting: trainings of each place where a search might start, with each scale.
    """
    cells = search_cells(size, steps, generations, fresh)
    folder = str(study.folder.resolve())
    smoothed: list[Cell] = [
        {"task": task, "steps": steps or TASKS[task].steps, "fresh": fresh}
        for task in dict.fromkeys(TASKS[str(cell["task"])].smoothed for cell in cells)
    ]
    sources: list[Cell] = []
    for cell in cells:
        source = source_cell(cell, steps)
        if METHODS[str(cell["method"])].source and source not in sources:
            sources.append(source)
    starts = study.rows(start_cells(steps, starting), compute_start, part="starts")
    smoothing = study.rows(smoothed, compute_smoothing, part="smoothing")
    study.rows(sources, partial(compute_source, folder), part="sources")
    lost = [path for path in (source_file(folder, cell) for cell in sources) if not path.exists()]
    if lost:
        raise InputError(f"{lost[0]} is missing; remove sources.csv beside it to make it again")
    rows = study.rows(cells, partial(compute_search, folder, steps))
    starts_table(study, starts)
    write_tables(study, rows, smoothing)
    study.figure("search", drawing(rows, targets_of(rows, smoothing)))


def seconds_of(cell: Cell) -> float:
    """Return about how long a search takes on one core."""
    method, task = METHODS[str(cell["method"])], TASKS[str(cell["task"])]
    drawing = int(cell["generations"]) * (3.0 if method.sampler == "gp" else 0.3)
    return drawing + trainings_of(cell) * task.seconds


def main(study: Study, full: bool) -> None:
    """Do the study at its default size, or in full."""
    size = FULL if full else DEFAULT
    cells = search_cells(size)
    starting = sum(
        len(SCALES) * int(cell["attempts"]) * TASKS[str(cell["task"])].seconds
        for cell in start_cells()
    )
    seconds = starting + sum(map(seconds_of, cells))
    print(
        f"search: {len(cells)} searches, about {seconds / cpus() / 60:.0f} min in all on {cpus()} "
        "quiet cores",
        flush=True,
    )
    do(study, size)


if __name__ == "__main__":
    command("search", 1, main)
