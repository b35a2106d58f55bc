"""Which fitness finds losses that withstand attack? (`make study-robust-fitness`)

First: which short attack ranks networks as the suite "standard" does? Networks of classic losses
and of first candidates of a search are attacked by FGSM, by PGD of a few steps on cross-entropy, on
DLR, and on both in turn (evaluation.adversarial_steps), and by the suite.

Then: searches of equal numbers of trainings, whose fitness is the accuracy; the accuracy mixed with
that under FGSM, or under PGD; and one with the two objectives accuracy and accuracy under PGD
(search.objectives). The finalists are chosen by the same fitness, and of the search with two
objectives by the mixture with PGD. Networks of the champions are attacked by the suite.

A repetition has images of Fashion-MNIST of its own, and another search.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from accuracy import searched
from pools import dataset_of, first_generation, pool
from scipy.stats import spearmanr
from studies import Cell, Row, Study, command
from torch import Tensor, nn

from taylorglo.attacks import Strength, fgsm, pgd, squares, withstood
from taylorglo.attacks.contract import fooled
from taylorglo.attacks.gradient import fgsm_and_pgd
from taylorglo.attacks.suite import WORST
from taylorglo.data import dataset as datasets
from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset, Split
from taylorglo.evaluation.comparison import (
    best_contender,
    compare,
    restore_network,
    train_finalists,
)
from taylorglo.loss.classic import (
    CrossEntropy,
    GeneralisedCrossEntropy,
    SquaredError,
    SymmetricCrossEntropy,
)
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.results import Contender, FullTraining
from taylorglo.search.study import Search
from taylorglo.services.memo import FullTrainings, ShortTrainings
from taylorglo.services.storage import open_store
from taylorglo.settings import SearchSettings, SweepSettings
from taylorglo.stats import mean_interval
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, build_network, train_network

VERSION = 1
MINUTES = 14  # of the default size, on 2 cores beside other work

TESTED = 2000  # test images, of which the first ones are attacked
EPSILONS = (0.02, 0.05)
AIM = 0.05  # the epsilon of the fitness, and of the short attacks
STEPS = 5  # of PGD in the fitness
RATE = 0.1

_ATTACKED = {"adversarial_weight": 0.5, "adversarial_epsilon": AIM}
_PGD = {**_ATTACKED, "adversarial_steps": STEPS}
FITNESSES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "accuracy": {},
    "accuracy and FGSM": {"evaluation": _ATTACKED},
    "accuracy and PGD": {"evaluation": _PGD},
    "two objectives": {
        "evaluation": _PGD,
        "search": {"objectives": "accuracy-and-robustness"},
    },
}

_Attack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
SHORT: Mapping[str, _Attack] = {
    "FGSM": fgsm,
    **{
        f"PGD on {name}, {steps} steps": partial(attack, steps=steps)
        for steps in (STEPS, 2 * STEPS)
        for name, attack in (
            ("cross-entropy", pgd),
            ("DLR", partial(pgd, objective="dlr")),
            ("both, after FGSM", fgsm_and_pgd),
        )
    },
}


@dataclass(frozen=True)
class Size:
    """How much the study does.

    Attributes:
        repetitions: number of searches for each fitness.
        images: number of images for training and validation.
        steps: of a training.
        generations: of a search.
        popsize: number of candidates of a generation.
        candidates: number of first candidates that the short attacks are tried on.
        seeds: number of networks of a champion that are attacked.
        attacked: number of test images to attack.
        iterations: number of steps of APGD and of FAB in the suite, for each target.
        queries: of Square in the suite.
    """

    repetitions: int = 3
    images: int = 4000
    steps: int = 300
    generations: int = 5
    popsize: int = 8
    candidates: int = 12
    seeds: int = 3
    attacked: int = 200
    iterations: int = 50
    queries: int = 500


FULL = Size(
    repetitions=10, generations=10, seeds=10, attacked=500, iterations=100, queries=squares.QUERIES
)


def settings_of(
    size: Size, repetition: int, sections: Mapping[str, Mapping[str, Any]]
) -> SweepSettings:
    """Return the settings of a search, with those of its fitness by section."""
    values: dict[str, Any] = {
        "seed": repetition,
        "training": {
            "steps": size.steps,
            "learning_rate": RATE,
            "device": "cpu",
            "precision": "float32",
            "workers": 1,
        },
        "evaluation": {
            "steps": size.steps,
            "give_up_step": size.steps // 3,
            **sections.get("evaluation", {}),
        },
        "search": {"popsize": size.popsize, **sections.get("search", {})},
        "baselines": {"attempts": 2},
        "champion": {"seeds": size.seeds},
        "attack": {"seeds": 1},
    }
    return SweepSettings.model_validate(values)


def shown_to_attacks(dataset: Dataset, size: Size) -> Split:
    """Return the test images that are attacked."""
    assert dataset.test is not None
    return Split(dataset.test.images[: size.attacked], dataset.test.labels[: size.attacked])


def left_by_suite(network: nn.Module, split: Split, seed: int, size: Size) -> dict[float, float]:
    """Return the accuracy that the suite leaves, by epsilon."""
    strength = Strength(
        "standard",
        seed=seed,
        apgd_steps=size.iterations,
        fab_steps=size.iterations,
        queries=size.queries,
    )
    images = scaled(split.images)
    return withstood(network, images, split.labels, EPSILONS, strength=strength).accuracies[WORST]


def compared_attacks(size: Size, cell: Cell) -> list[Row]:
    """Attack networks of different losses; return a row for each that learned."""
    repetition = int(cell["repetition"])
    dataset = dataset_of(pool(size.images, repetition), TESTED, repetition)
    settings = settings_of(size, repetition, {})
    shown = shown_to_attacks(dataset, size)
    images, labels = scaled(shown.images), shown.labels
    rows: list[Row] = []
    for name, loss, rate in losses(size.candidates, repetition):
        network = build_network(settings, dataset, repetition)
        recipe = Recipe(loss, rate, repetition, steps=size.steps, horizon=size.steps)
        training = train_network(network, recipe, dataset, settings).training
        if training.status != "ok":
            continue
        left = {
            attack: 1 - _broken(network, run(network, images, labels, AIM), labels)
            for attack, run in SHORT.items()
        }
        suite = left_by_suite(network, shown, repetition, size)[AIM]
        rows.append({"loss": name, "accuracy": training.accuracy, **left, "suite": suite})
    return rows


def _broken(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return fooled(network(images), labels).float().mean().item()


def losses(candidates: int, seed: int) -> list[tuple[str, Loss, float]]:
    """Return classic losses and first candidates of a search, with their learning rates."""
    classic: list[tuple[str, Loss, float]] = [
        ("cross-entropy", CrossEntropy(), 0.1),
        ("label smoothing 0.1", CrossEntropy(0.1), 0.1),
        ("label smoothing 0.3", CrossEntropy(0.3), 0.1),
        ("squared error", SquaredError(), 0.3),
        ("generalised cross-entropy", GeneralisedCrossEntropy(), 0.2),
        ("symmetric cross-entropy", SymmetricCrossEntropy(), 0.05),
    ]
    settings = SearchSettings(popsize=candidates)
    thetas = first_generation(settings, 10, seed)
    return [
        *classic,
        *((f"candidate {n}", TaylorLoss(theta), RATE) for n, theta in enumerate(thetas, 1)),
    ]


def champions(size: Size, cell: Cell) -> list[Row]:
    """Search with a fitness; return a row for each network of the champion."""
    repetition = int(cell["repetition"])
    settings = settings_of(size, repetition, FITNESSES[str(cell["fitness"])])
    dataset = dataset_of(pool(size.images, repetition), TESTED, repetition)
    shown = shown_to_attacks(dataset, size)
    with TemporaryDirectory() as name:
        folder = Path(name)
        memo, trainings = _searched_and_trained(settings, dataset, size.generations, folder)
        networks = [
            restore_network(memo.weights(full.key), settings.model.name, dataset)
            for full in trainings
        ]
    rows: list[Row] = []
    for number, (full, network) in enumerate(zip(trainings, networks, strict=True)):
        left = left_by_suite(network, shown, number, size)
        rows.append(
            {
                "network": number,
                "test": full.test_accuracy,
                **{f"{epsilon:g}": left[epsilon] for epsilon in EPSILONS},
                "theta": " ".join(map(repr, full.contender.theta)),
            }
        )
    return rows


def _searched_and_trained(
    settings: SweepSettings, dataset: Dataset, generations: int, folder: Path
) -> tuple[FullTrainings, list[FullTraining]]:
    """Return the trainings of the champion of a search, and the memory that has their networks."""
    whole, without_test = folder / "whole.safetensors", folder / "search.safetensors"
    datasets.save(dataset, whole)
    datasets.save(datasets.without_test(dataset), without_test)
    store = open_store(str(folder / "store"))
    memo = FullTrainings(store, settings.name)
    with Engine.open(settings, without_test) as engine:
        search = searched(engine, generations, folder, ShortTrainings(store))
        champion = chosen(search, engine, memo)
    with Engine.open(settings, whole) as engine:
        return memo, compare(champion, engine, memo)


def chosen(search: Search, engine: Engine, memo: FullTrainings) -> Contender:
    """Return the champion among the mean of the search and its leaders, as the product does."""
    search.check_trained()
    number, mean = engine.settings.champion.finalists, search.mean()
    thetas = [] if mean is None else [mean]
    thetas += [candidate.theta for candidate in search.leaders(number - len(thetas))]
    finalists = train_finalists(thetas, engine, memo)
    return best_contender(finalists, engine.settings.evaluation.adversarial_weight)


def attacks_table(study: Study, rows: Sequence[Row], size: Size) -> None:
    """Write how each short attack ranks networks, and by how much it overstates them."""
    repetitions = sorted({int(row["repetition"]) for row in rows})
    lines = []
    for attack in ("accuracy", *SHORT):
        ranked, over = [], []
        for repetition in repetitions:
            own = [row for row in rows if row["repetition"] == repetition]
            short = [float(row[attack]) for row in own]
            suite = [float(row["suite"]) for row in own]
            ranked.append(float(spearmanr(short, suite).statistic))
            over += [100 * (a - b) for a, b in zip(short, suite, strict=True)]
        worst, mean = f"{max(over):.1f}", f"{fmean(over):.1f}"
        name = "none: validation accuracy" if attack == "accuracy" else attack
        rho = ", ".join(f"{value:.2f}" for value in ranked)
        lines.append([name, rho, *(("", "") if attack == "accuracy" else (mean, worst))])
    study.table(
        "attacks",
        ["attack", "rank correlation", "overstates by", "at most by"],
        lines,
        f"mlp, Fashion-MNIST, {len(rows)} networks of different losses in {len(repetitions)} "
        f"repetitions, epsilon {AIM:g}. Rank correlation: Spearman's, of what the attack and what "
        "the suite standard leave, by repetition. Overstates: by how many points of accuracy the "
        f"attack leaves more than the suite. {of_suite(size)}",
    )


def champions_table(study: Study, rows: Sequence[Row], size: Size) -> None:
    """Write what the champion of each fitness reaches."""
    columns = ("test", *(f"{epsilon:g}" for epsilon in EPSILONS))
    means: dict[tuple[str, str], list[float]] = {}
    for fitness in FITNESSES:
        for column in columns:
            means[fitness, column] = [
                fmean(
                    100 * float(row[column])
                    for row in rows
                    if (row["fitness"], row["repetition"]) == (fitness, repetition)
                )
                for repetition in range(size.repetitions)
            ]
    lines = []
    for fitness in FITNESSES:
        gains = [
            with_interval(
                [a - b for a, b in zip(means[fitness, c], means["accuracy", c], strict=True)]
            )
            for c in (columns if fitness != "accuracy" else ())
        ]
        lines.append(
            [
                fitness,
                *(f"{fmean(means[fitness, column]):.1f}" for column in columns),
                *(gains or [""] * len(columns)),
            ]
        )
    under = [f"at {epsilon:g}" for epsilon in EPSILONS]
    study.table(
        "champions",
        ["fitness", "test", *under, "gain, test", *(f"gain, {name}" for name in under)],
        lines,
        f"mlp, Fashion-MNIST, {size.images} images, {size.steps} steps; "
        f"{size.generations * size.popsize} trainings of a search. Accuracy in %: on {TESTED} test "
        f"images, and under the suite standard on {size.attacked} of them, mean over "
        f"{size.repetitions} searches with {size.seeds} networks each. Gain: over the fitness "
        "accuracy in the same repetition, in points; in brackets 95 % intervals over the "
        f"repetitions (Student's t). {of_suite(size)}",
    )


def of_suite(size: Size) -> str:
    """Return how hard the suite attacks, in a sentence."""
    return f"The suite: {size.iterations} steps of APGD and FAB, {size.queries} queries of Square"


def with_interval(values: Sequence[float]) -> str:
    """Return a mean difference in words, with its 95 % interval by Student's t."""
    interval = mean_interval(values)
    ends = f" ({interval[0]:+.1f} to {interval[1]:+.1f})" if interval else ""
    return f"{fmean(values):+.1f}{ends}"


def run(study: Study, size: Size) -> None:
    """Do the study in a size."""
    repetitions: list[Cell] = [{"repetition": number} for number in range(size.repetitions)]
    rows = study.rows(repetitions[:2], partial(compared_attacks, size), "attacks")
    attacks_table(study, rows, size)
    cells: list[Cell] = [
        {"repetition": cell["repetition"], "fitness": fitness}
        for cell in repetitions
        for fitness in FITNESSES
    ]
    champions_table(study, study.rows(cells, partial(champions, size), "champions"), size)


def main(study: Study, full: bool) -> None:
    """Do the study in its default or its full size."""
    if not full:
        print(f"about {MINUTES} minutes on 2 cores, and fewer if they are quiet")
    run(study, FULL if full else Size())


if __name__ == "__main__":
    command("robust-fitness", VERSION, main)
