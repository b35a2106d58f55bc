"""Does a fitness rank losses as the truth does? (`make study-fitness`)

A fixed set of losses with learning rates is trained on parts of Fashion-MNIST: 500 and 5 000
images, a fifth of them for validation, with right labels and with 40 % wrong ones. A repetition has
images of its own. The truth of a loss is its mean accuracy on the 10 000 test images over 10
trainings on the training split. A fitness is the mean over 2, 5 or 10 other trainings of equal
length, of a score on the images that each is validated on: always the validation split; the folds
of a partition (evaluation.folds: 5; 10 trainings take two partitions); or a random fifth for each
training (repeated subsampling). The score is the accuracy, the cross-entropy, or the mean accuracy
of the last two points of the curve.

The same trainings tell how often finalists have to be trained, until the right one is chosen.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pools import dataset_of, first_generation, pool, trained
from scipy.stats import spearmanr
from studies import Cell, Row, Study, command

from taylorglo.data.folds import Fold, fold_of_attempt
from taylorglo.data.seeds import derived_seed
from taylorglo.loss.classic import (
    CrossEntropy,
    GeneralisedCrossEntropy,
    SquaredError,
    SymmetricCrossEntropy,
)
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.results import Training
from taylorglo.settings import SearchSettings, SweepSettings
from taylorglo.stats import mean_interval
from taylorglo.training.loop import CURVE_POINTS, Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = NDArray[np.float64]

VERSION = 1
MINUTES = 18  # of the default size, on 2 quiet cores


@dataclass(frozen=True)
class Size:
    """How much the study does.

    Attributes:
        repetitions: number of parts of Fashion-MNIST, for each number of images and noise.
        images: numbers of images.
        steps: of a training.
        candidates: number of candidates of the search among the losses.
    """

    repetitions: int
    images: tuple[int, ...]
    steps: int
    candidates: int


DEFAULT = Size(repetitions=4, images=(500, 5000), steps=150, candidates=12)
FULL = Size(repetitions=12, images=(500, 5000), steps=1000, candidates=12)
NOISE = (0.0, 0.4)
TESTED = 10_000  # test images
TRAININGS = 10  # of each loss on each kind of validation images, and for the truth
FOLDS = 5
RATE = 0.1  # of the candidates
FINALISTS = (4, 8)

# The trainings of a fitness, by the number of them: each group gives a fitness. A group of two has
# two folds of one partition, and so has every partition two groups.
GROUPS: dict[int, Sequence[Sequence[int]]] = {
    1: [(index,) for index in range(TRAININGS)],
    2: [(0, 1), (2, 3), (5, 6), (7, 8)],
    5: [tuple(range(5)), tuple(range(5, 10))],
    10: [tuple(range(10))],
}
COSTS = (2, 5, 10)

TRUTH = "truth"
WAYS = ("validation split", "folds", "subsampling")
SCORES = {"accuracy": "accuracy", "cross-entropy": "cross_entropy", "last two points": "late"}
# Paths of seeds below that of the repetition. A choice between finalists and the choice of the
# finalists have no seed in common.
_SEEDS = {TRUTH: 1, "validation split": 2, "folds": 2, "subsampling": 3}


class Contender(NamedTuple):
    """A loss with a learning rate, and its name in the tables."""

    name: str
    loss: Loss
    rate: float


def contenders(candidates: int) -> list[Contender]:
    """Return the losses of the study: classic ones, and a first generation of the search."""
    classic: dict[str, tuple[Loss, tuple[float, ...]]] = {
        "cross-entropy": (CrossEntropy(), (0.01, 0.03, 0.1)),
        "label smoothing 0.1": (CrossEntropy(0.1), (0.03, 0.1)),
        "squared error": (SquaredError(), (0.1, 0.3, 1.0)),
        "symmetric cross-entropy": (SymmetricCrossEntropy(), (0.03, 0.1)),
        "generalised cross-entropy": (GeneralisedCrossEntropy(), (0.1, 0.3)),
    }
    found = [
        Contender(f"{name} at {rate:g}", loss, rate)
        for name, (loss, rates) in classic.items()
        for rate in rates
    ]
    search = SearchSettings(coordinates="dynamics", family="taylor-log", popsize=candidates)
    for number, theta in enumerate(first_generation(search, 10, 0), 1):
        found.append(Contender(f"candidate {number}", TaylorLoss(theta, search.order), RATE))
    return found


def cells(size: Size) -> list[Cell]:
    """Return a cell for each repetition; small and large ones take turns."""
    return [
        {
            "repetition": repetition,
            "images": images,
            "noise": noise,
            "steps": size.steps,
            "candidates": size.candidates,
        }
        for repetition, images, noise in itertools.product(
            range(size.repetitions), size.images, NOISE
        )
    ]


def compute(cell: Cell) -> list[Row]:
    """Do the trainings of a repetition; return a row for each."""
    repetition, images = int(cell["repetition"]), int(cell["images"])
    settings = _settings(int(cell["steps"]), repetition)
    dataset = dataset_of(
        pool(images, repetition), TESTED, repetition, label_noise=float(cell["noise"])
    )
    losses = contenders(int(cell["candidates"]))
    plans = [
        (way, contender, attempt)
        for way, attempt, contender in itertools.product((TRUTH, *WAYS), range(TRAININGS), losses)
    ]

    def recipe(way: str, contender: Contender, attempt: int) -> Recipe:
        fold: Fold | None = None
        if way == "folds":
            fold = fold_of_attempt(settings, dataset, 1, attempt)
        elif way == "subsampling":
            fold = fold_of_attempt(settings, dataset, 2 + attempt, 0)
        return Recipe(
            contender.loss,
            contender.rate,
            derived_seed(repetition, _SEEDS[way], attempt),
            settings.training.steps,
            settings.training.steps,
            validations=1 if way == TRUTH else CURVE_POINTS,
            kept=way == TRUTH,
            fold=fold,
        )

    trainings = trained(settings, dataset, (recipe(*plan) for plan in plans))
    return [
        {"way": way, "loss": contender.name, "attempt": attempt, **_measured(training)}
        for (way, contender, attempt), training in zip(plans, trainings, strict=True)
    ]


def _settings(steps: int, seed: int) -> SweepSettings:
    values: dict[str, Any] = {
        "seed": seed,
        "training": {"steps": steps, "device": "cpu", "workers": 1},
        "evaluation": {
            "steps": steps,
            "give_up_step": 0,
            "folds": FOLDS,
            "attempts": TRAININGS,
        },
    }
    return SweepSettings.model_validate(values)


def _measured(training: Training) -> Row:
    """Return the scores of a training; those of one that diverged are the worst there are."""
    diverged = training.status != "ok"
    last = training.curve[-2:]
    entropy = math.inf if diverged else last[-1][2]
    assert entropy is not None  # the built-in training measures it
    return {
        "accuracy": training.accuracy,
        "cross_entropy": entropy,
        "late": 0.0 if diverged else fmean(accuracy for _, accuracy, _ in last),
        "test": math.nan if training.test_accuracy is None else training.test_accuracy,
    }


class Repetition(NamedTuple):
    """What is known of the losses in one repetition.

    Attributes:
        truth: of each loss, in [0, 1].
        scores: by kind of validation images and score, (losses, trainings); the higher the better.
    """

    truth: Numbers
    scores: dict[tuple[str, str], Numbers]

    @classmethod
    def of(cls, rows: Sequence[Row], losses: int) -> "Repetition":
        """Return a repetition from its rows, which are ordered by way, attempt and loss."""

        def table(way: str, column: str) -> Numbers:
            values = [float(row[column]) for row in rows if row["way"] == way]
            return np.array(values).reshape(-1, losses).T

        scores = {
            (way, score): table(way, column) * (-1 if score == "cross-entropy" else 1)
            for way, (score, column) in itertools.product(WAYS, SCORES.items())
        }
        return cls(table(TRUTH, "test").mean(axis=1), scores)

    def correlation(self, way: str, score: str, cost: int) -> float:
        """Return Spearman's rank correlation of a fitness with the truth, mean over the groups."""
        return fmean(
            float(spearmanr(fitness, self.truth).statistic)
            for fitness in self._fitnesses(way, score, cost)
        )

    def regret(self, way: str, score: str, cost: int) -> float:
        """Return how far the loss of highest fitness is below the best one, mean over the groups.

        The unit is the percentage point. Of several losses of highest fitness, each is as likely.
        """
        fitnesses = self._fitnesses(way, score, cost)
        return fmean(chosen_regret(fitness, self.truth) for fitness in fitnesses)

    def _fitnesses(self, way: str, score: str, cost: int) -> Iterator[Numbers]:
        for group in GROUPS[cost]:
            yield self.scores[way, score][:, group].mean(axis=1)

    def finalists(self, way: str, number: int, cost: int) -> tuple[float, float]:
        """Choose among finalists; return the regret in points, and how often the best was chosen.

        The finalists lead by the accuracy of two trainings on random fifths of the images, and are
        trained ``cost`` times more to choose among them; 0: the leader is chosen.
        """
        results = []
        for leading in self._fitnesses("subsampling", "accuracy", 2):
            finalists = np.argsort(-leading, kind="stable")[:number]
            truth = self.truth[finalists]
            choices = [leading] if cost == 0 else self._fitnesses(way, "accuracy", cost)
            for fitness in choices:
                best = fitness[finalists] == fitness[finalists].max()
                right = float((truth[best] == truth.max()).mean())
                results.append((chosen_regret(fitness[finalists], truth), right))
        return fmean(regret for regret, _ in results), fmean(right for _, right in results)


def chosen_regret(fitness: Numbers, truth: Numbers) -> float:
    """Return by how many points the truth of the highest fitness is below the highest truth."""
    return float(100 * (truth.max() - truth[fitness == fitness.max()].mean()))


Condition = tuple[int, float]  # number of images, part of the labels that is wrong


def by_condition(rows: Sequence[Row], size: Size) -> dict[Condition, list[Repetition]]:
    """Return the repetitions of each condition, in their order."""
    losses = len(contenders(size.candidates))
    grouped: dict[tuple[int, float, int], list[Row]] = {}
    for row in rows:
        key = int(row["images"]), float(row["noise"]), int(row["repetition"])
        grouped.setdefault(key, []).append(row)
    found: dict[Condition, list[Repetition]] = {}
    for (images, noise, _), own in sorted(grouped.items(), key=lambda item: item[0]):
        found.setdefault((images, noise), []).append(Repetition.of(own, losses))
    return found


def with_interval(values: Sequence[float]) -> str:
    """Return a mean in words, with its 95 % interval by Student's t."""
    interval = mean_interval(values)
    ends = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    return f"{fmean(values):.2f}{ends}"


def fitness_tables(study: Study, known: dict[Condition, list[Repetition]], caption: str) -> None:
    """Write rank correlation and regret by fitness, of each condition and over all of them."""
    measures = {"rank correlation": Repetition.correlation, "regret": Repetition.regret}
    titles = [f"{name}, {cost} trainings" for name in measures for cost in COSTS]
    lines, summary = [], []
    for way, score in itertools.product(WAYS, SCORES):
        # By measure and cost, condition and repetition.
        values = [
            [[measure(r, way, score, cost) for r in repetitions] for repetitions in known.values()]
            for measure in measures.values()
            for cost in COSTS
        ]
        for index, (images, noise) in enumerate(known):
            own = [with_interval(conditions[index]) for conditions in values]
            lines.append([images, f"{noise:.0%}", way, score, *own])
        # Repetitions are independent, but the conditions of one repetition are not.
        means = [[fmean(r) for r in zip(*conditions, strict=True)] for conditions in values]
        summary.append([way, score, *map(with_interval, means)])
    lines.sort(key=lambda line: (line[0], line[1]))
    meaning = (
        "Rank correlation: Spearman's, of fitness and truth. Regret: truth of the best loss minus "
        "that of the loss of highest fitness, in points of test accuracy. Averaged weights were "
        f"left out, because the product does not train them. {caption}"
    )
    study.table("fitness", ["images", "noise", "validated on", "score", *titles], lines, meaning)
    study.table(
        "summary",
        ["validated on", "score", *titles],
        summary,
        f"The means over {len(known)} conditions of the table `fitness`",
    )


def finalists_table(study: Study, known: dict[Condition, list[Repetition]], caption: str) -> None:
    """Write what more trainings of the finalists gain."""
    costs = (0, *GROUPS)
    lines = []
    for (images, noise), repetitions in known.items():
        for number, way in itertools.product(FINALISTS, WAYS[:2]):
            values = []
            for cost in costs:
                results = [repetition.finalists(way, number, cost) for repetition in repetitions]
                right = fmean(right for _, right in results)
                values.append(f"{with_interval([regret for regret, _ in results])}; {right:.0%}")
            lines.append([images, f"{noise:.0%}", number, way, *values])
    study.table(
        "finalists",
        [
            "images",
            "noise",
            "finalists",
            "validated on",
            *(f"{cost or 'no'} trainings" for cost in costs),
        ],
        lines,
        "Regret among the finalists in points of test accuracy; how often the best of them was "
        "chosen. The finalists lead by two trainings on random fifths; each is trained so many "
        f"times more to choose among them. {caption}",
    )


def truth_table(study: Study, known: dict[Condition, list[Repetition]], names: list[str]) -> None:
    """Write the truth of each loss."""
    lines = []
    for index, name in enumerate(names):
        truths = [
            [100 * repetition.truth[index] for repetition in repetitions]
            for repetitions in known.values()
        ]
        lines.append(
            [name, *(f"{np.mean(values):.1f} ± {np.std(values):.1f}" for values in truths)]
        )
    header = ["loss", *(f"{images} images, {noise:.0%} noise" for images, noise in known)]
    study.table(
        "truth",
        header,
        lines,
        f"Test accuracy in %, mean and standard deviation over the repetitions, of which each is "
        f"the mean of {TRAININGS} trainings",
    )


def draw(study: Study, known: dict[Condition, list[Repetition]]) -> None:
    """Draw the regret against the number of trainings, by condition."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(known), 3), layout="constrained")
    panels: NDArray[Any] = figure.subplots(1, len(known), squeeze=False)
    for axes, ((images, noise), repetitions) in zip(panels[0], known.items(), strict=True):
        _draw_regrets(axes, repetitions)
        axes.set_title(f"{images} images, {noise:.0%} noise")
        axes.set_xlabel("trainings of a loss")
    panels[0][0].set_ylabel("regret in points")
    panels[0][-1].legend()
    study.figure("fitness", figure)


def _draw_regrets(axes: "Axes", repetitions: Sequence[Repetition]) -> None:
    for way in WAYS:
        regrets = [[r.regret(way, "accuracy", cost) for r in repetitions] for cost in COSTS]
        axes.plot(COSTS, [fmean(values) for values in regrets], "o-", label=way)
    axes.set_xticks(COSTS)
    axes.set_ylim(bottom=0)


def run(study: Study, size: Size) -> None:
    """Do the study in a size."""
    known = by_condition(study.rows(cells(size), compute), size)
    names = [contender.name for contender in contenders(size.candidates)]
    caption = (
        f"mlp, {size.steps} steps, {len(names)} losses; means over {size.repetitions} "
        "repetitions with images of their own; in brackets: 95 % intervals (Student's t)"
    )
    truth_table(study, known, names)
    fitness_tables(study, known, caption)
    finalists_table(study, known, caption)
    draw(study, known)


def main(study: Study, full: bool) -> None:
    """Do the study in its default or its full size."""
    if not full:
        print(f"about {MINUTES} minutes on 2 quiet cores")
    run(study, FULL if full else DEFAULT)


if __name__ == "__main__":
    command("fitness", VERSION, main)
