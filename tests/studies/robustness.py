"""Do found losses withstand attack, as the paper says of its own (`make study-robustness`)?

On each data set and network there are three searches, whose fitness is the accuracy, the mean of
accuracy and accuracy under attack, and the accuracy with wrong labels. Their champions are compared
with tuned cross-entropy, label smoothing and squared error; with the one of these, and its rate,
that has the best mean of accuracy and accuracy under attack; and with cross-entropy on adversarial
images (Madry et al. 2018, arXiv 1706.06083), which shows what is possible. A champion is always a
candidate of its search.

All are trained with right labels from the same fresh seeds, and attacked by the suite "standard",
with 1 000 queries of Square in place of 5 000, on test images that are drawn anew for each seed.
The networks of a seed have the same initial weights, batches and attacked images, whatever their
loss.

What was decided before the first result: the tests are at epsilon 0.05, the middle of the three
that are usual with both data sets (taylorglo/attacks/radii.py). They are two-sided t-tests, paired
by seed, with Holm's correction over the twelve of a data set and network: three champions against
four baselines. What was decided after it: the baseline that is chosen by robustness has smaller
rates, too, because it had taken the smallest one of the others.

One split and one search stand behind a champion: the intervals speak of training and of the drawn
images, not of the luck of a search. The full size has three splits, each with searches of its own.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accuracy import ROOT, searched
from studies import Cell, Row, Study, command
from torch import Tensor, nn
from torch.nn import functional

from taylorglo.attacks.honesty import suspicions
from taylorglo.attacks.suite import SUITES, WORST, Strength, withstood
from taylorglo.data import dataset as datasets
from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset
from taylorglo.data.folds import fold_of_attempt
from taylorglo.data.seeds import FINAL, TUNING, derived_seed
from taylorglo.evaluation.comparison import baselines, found, loss_of, restore_network
from taylorglo.report.figures import SERIES
from taylorglo.results import Contender
from taylorglo.services.memo import ShortTrainings
from taylorglo.services.storage import open_store
from taylorglo.settings import SweepSettings
from taylorglo.stats import holm, mean_interval, paired
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Objective, Recipe, TrainedNetwork, build_network, train_network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Key = TypeVar("Key", bound=Hashable)

ATTACKS = (*SUITES["quick"], WORST)
TESTED = 0.05  # the epsilon of the tests, and of the attack in the mixed fitness
EPSILONS = (0.0, 0.02, 0.05, 0.1)
WEIGHT = 0.5  # of the accuracy under attack in the mixed fitness
ATTACK_STEPS = 5  # of PGD in the mixed fitness
NOISE = 0.4  # the part of the labels that is wrong in the third search

ACCURACY, ROBUSTNESS, NOISY = CHAMPIONS = (
    "champion by accuracy",
    "champion by robustness",
    "champion by noisy labels",
)
# The names in the settings.
TUNED = {
    "cross-entropy": "cross-entropy",
    "label smoothing": "label-smoothing",
    "squared error": "squared-error",
}
CONTROL = "baseline by robustness"
ADVERSARIAL = "adversarial training"
LOSSES = (*CHAMPIONS, *TUNED, CONTROL, ADVERSARIAL)
OPPONENTS = (*TUNED, CONTROL)
MIXED = (ROBUSTNESS, CONTROL, ADVERSARIAL)  # those that are chosen by the mixed fitness

FASHION = "Fashion-MNIST"
# 2 000 images for training, and 1 000 for validation.
DATA: Mapping[str, Mapping[str, Any]] = {
    FASHION: {
        "name": "fashion-mnist",
        "root": ROOT,
        "validation_fraction": 1_000 / 60_000,
        "train_fraction": 2_000 / 59_000,
    },
    "digits": {"name": "digits"},
}
# The quick ones first.
PLACES = ((FASHION, "mlp"), ("digits", "mlp"), ("digits", "cnn"), (FASHION, "cnn"))
RATES = {FASHION: 0.03, "digits": 0.1}  # of candidates, as in the configurations of the repository
SPLITS = 3  # of the full size


@dataclass(frozen=True)
class Effort:
    """How much is computed for a loss.

    Attributes:
        steps: of every training, by network.
        generations: of a search.
        popsize: number of candidates of a generation.
        finalists: number of losses that a champion is chosen from.
        attempts: number of trainings of each finalist, and of a baseline with each rate.
        rates: that baselines are tuned over.
        small_rates: that baselines are tuned over, too, if robustness counts: it may ask for small
            weights, which the scale of a found loss can give as well.
        alphas: that label smoothing is tuned over, too.
        seeds: number of networks that are attacked.
        images: number of images that each network is attacked on, by network.
        queries: number of queries of Square.
        inner: number of steps of PGD in each step of adversarial training.
    """

    steps: Mapping[str, int] = field(default_factory=lambda: {"mlp": 1500, "cnn": 300})
    generations: int = 6
    popsize: int = 8
    finalists: int = 4
    attempts: int = 2
    rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3)
    small_rates: Sequence[float] = (0.0003, 0.001)
    alphas: Sequence[float] = (0.1, 0.2, 0.4)
    seeds: int = 10
    images: Mapping[str, int] = field(default_factory=lambda: {"mlp": 100, "cnn": 50})
    queries: int = 1000
    inner: int = 7


def cells_of(data: str, model: str, full: bool) -> list[Cell]:
    """Return the cells of a data set and network: one for each loss and split."""
    return [
        {"data": data, "model": model, "split": split, "loss": loss}
        for split in range(SPLITS if full else 1)
        for loss in LOSSES
    ]


def settings_of(cell: Cell, effort: Effort, noise: float = 0.0) -> SweepSettings:
    """Return the settings of a cell, with a part of the labels wrong."""
    data, model, loss = str(cell["data"]), str(cell["model"]), str(cell["loss"])
    steps = effort.steps[model]
    own = {**TUNED, ADVERSARIAL: "cross-entropy"}
    smaller = effort.small_rates if loss == CONTROL else ()
    return SweepSettings.model_validate(
        {
            "name": "robustness",
            "seed": cell["split"],
            "data": {**DATA[data], "label_noise": noise},
            "model": {"name": model},
            "training": {
                "steps": steps,
                "learning_rate": RATES[data],
                "device": "cpu",
                "precision": "float32",
                "workers": 1,
            },
            "evaluation": {
                "steps": steps,
                "give_up_step": 3 * steps // 10,
                "adversarial_weight": WEIGHT if loss in MIXED else 0.0,
                "adversarial_epsilon": TESTED,
                "adversarial_steps": ATTACK_STEPS if loss in MIXED else 1,
            },
            "search": {"popsize": effort.popsize},
            "baselines": {
                "losses": [own[loss]] if loss in own else list(TUNED.values()),
                "learning_rates": [*smaller, *effort.rates],
                "label_smoothing": list(effort.alphas),
                "attempts": effort.attempts,
            },
            "champion": {"seeds": effort.seeds},
            "attack": {"seeds": 1},
        }
    )


def attacked(effort: Effort, cell: Cell) -> list[Row]:
    """Choose a loss, train networks with it and attack them; return a row for each epsilon.

    A network whose training diverged classifies nothing correctly.
    """
    settings = settings_of(cell, effort)
    dataset = datasets.load(settings.data, settings.seed)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data.safetensors"
        contender = chosen(cell, effort, path)
        datasets.save(dataset, path)
        with Engine.open(settings, path) as engine:
            networks = final_networks(contender, engine, inner_steps(cell, effort))
    rows: list[Row] = []
    for number, trained in enumerate(networks):
        left, doubts = {name: dict.fromkeys(EPSILONS, 0.0) for name in ATTACKS}, 0
        if trained.training.status == "ok":
            network = restore_network(trained.weights, settings.model.name, dataset)
            images, labels = drawn(dataset, effort.images[settings.model.name], number)
            strength = Strength("standard", queries=effort.queries, seed=number)
            left = withstood(network, images, labels, EPSILONS, strength=strength).accuracies
            doubts = len(suspicions(network, images, labels, EPSILONS[-1], seed=number))
        rows += [
            {
                "network": number,
                "epsilon": epsilon,
                **{name: left[name][epsilon] for name in ATTACKS},
                "doubts": doubts,
                "test": trained.training.test_accuracy or 0.0,
                "rate": contender.learning_rate,
                "alpha": contender.label_smoothing,
                "base": contender.loss,
                "theta": " ".join(map(repr, contender.theta)),
            }
            for epsilon in EPSILONS
        ]
    return rows


def drawn(dataset: Dataset, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a number of test images, in [0, 1], and their labels."""
    assert dataset.test is not None
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(dataset.test), generator=generator)[:number]
    return scaled(dataset.test.images[index]), dataset.test.labels[index]


def chosen(cell: Cell, effort: Effort, path: Path) -> Contender:
    """Return the loss of a cell with its rate, by its fitness.

    Args:
        cell: with the name of the loss.
        effort: of search and tuning.
        path: of a file for the data without test images, in a folder for what else is written.
    """
    champion: Contender | None = None
    if cell["loss"] in CHAMPIONS:
        noise = NOISE if cell["loss"] == NOISY else 0.0
        with _searching(settings_of(cell, effort, noise), path) as engine:
            champion = champion_of(engine, effort, path.parent)
        if not noise:
            return champion
    settings = settings_of(cell, effort)
    rates = settings.baselines.learning_rates
    with _searching(settings, path) as engine:
        if champion:
            # It was found with other labels than it is trained with, so its rate is tuned, too.
            contenders = [champion.model_copy(update={"learning_rate": rate}) for rate in rates]
        else:
            contenders = [c for rate in rates for c in baselines(settings, rate)]
        return best_of(contenders, engine, inner_steps(cell, effort))


def _searching(settings: SweepSettings, path: Path) -> Engine:
    """Return an engine on the data of the settings without their test split."""
    datasets.save(datasets.without_test(datasets.load(settings.data, settings.seed)), path)
    return Engine.open(settings, path)


def inner_steps(cell: Cell, effort: Effort) -> int:
    """Return the number of steps of PGD in each step of a training; 0: it has clean images."""
    return effort.inner if cell["loss"] == ADVERSARIAL else 0


def champion_of(engine: Engine, effort: Effort, work: Path) -> Contender:
    """Return the best of the finalists of a search, all by the fitness of the settings.

    The finalists are the mean of the last distribution and the best of the last generations.
    """
    settings = engine.settings
    store = open_store(str(work / "store"))
    search = searched(engine, effort.generations, work, ShortTrainings(store))
    search.check_trained()
    mean = search.mean()
    thetas = [] if mean is None else [mean]
    thetas += [best.theta for best in search.leaders(effort.finalists - len(thetas))]
    classes = engine.dataset.num_classes
    finalists = [found("champion", theta, settings.training, classes) for theta in thetas]
    return best_of(finalists, engine)


def best_of(contenders: Sequence[Contender], engine: Engine, inner: int = 0) -> Contender:
    """Return the contender of highest mean fitness; of equals, the first.

    All are trained from the same seeds, and validated on the same folds.

    Args:
        contenders: losses with their rates.
        engine: its settings have the fitness, and the number of attempts of each contender.
        inner: number of steps of PGD in each step of the training.
    """
    weight = engine.settings.evaluation.adversarial_weight
    recipes = [
        ((number, attempt), tuning_recipe(contender, attempt, engine))
        for number, contender in enumerate(contenders)
        for attempt in range(engine.settings.baselines.attempts)
    ]
    fitness = [0.0] * len(contenders)
    for (number, _), trained in trainings(recipes, engine, inner):
        robust = trained.training.robust_accuracy or 0.0
        fitness[number] += (1 - weight) * trained.training.accuracy + weight * robust
    return contenders[fitness.index(max(fitness))]


def tuning_recipe(contender: Contender, attempt: int, engine: Engine) -> Recipe:
    """Return the recipe of an attempt, the same for all contenders but for loss and rate."""
    settings = engine.settings
    short, steps = settings.evaluation, settings.training.steps
    return Recipe(
        loss_of(contender),
        contender.learning_rate,
        derived_seed(settings.seed, TUNING, attempt),
        steps=steps,
        horizon=steps,
        validations=1,
        epsilon=short.adversarial_epsilon if short.adversarial_weight else 0.0,
        attack_steps=short.adversarial_steps,
        fold=fold_of_attempt(settings, engine.dataset, TUNING, attempt),
    )


def final_networks(contender: Contender, engine: Engine, inner: int = 0) -> list[TrainedNetwork]:
    """Return networks from the fresh seeds, with their weights."""
    settings = engine.settings
    steps = settings.training.steps
    recipes = [
        (
            number,
            Recipe(
                loss_of(contender),
                contender.learning_rate,
                derived_seed(settings.seed, FINAL, number),
                steps=steps,
                horizon=steps,
                kept=True,
            ),
        )
        for number in range(settings.champion.seeds)
    ]
    networks = dict(trainings(recipes, engine, inner))
    return [networks[number] for number, _ in recipes]


def trainings(
    recipes: Iterable[tuple[Key, Recipe]], engine: Engine, inner: int
) -> Iterator[tuple[Key, TrainedNetwork]]:
    """Do every training, on images as they are or on adversarial ones."""
    if not inner:
        yield from engine.run(recipes)
        return
    settings = engine.settings
    for key, recipe in recipes:
        network = build_network(settings, engine.dataset, recipe.seed)
        objective = hardening(network, EPSILONS[-1], inner)
        yield key, train_network(network, recipe, engine.dataset, settings, objective=objective)


def hardening(network: nn.Module, epsilon: float, inner: int) -> Objective:
    """Return cross-entropy on images that PGD finds within epsilon (Madry et al. 2018).

    PGD starts at a random point of the ball, and goes on after an image is misclassified, because
    the point of highest loss is wanted.
    """

    def objective(images: Tensor, targets: Tensor) -> Tensor:
        size = 2.5 * epsilon / inner
        change = torch.empty_like(images).uniform_(-epsilon, epsilon)
        for _ in range(inner):
            point = (images + change).clamp(0, 1).requires_grad_()
            loss = functional.cross_entropy(network(point), targets)
            (gradient,) = torch.autograd.grad(loss, point)
            step = point.detach() + size * gradient.sign() - images
            change = step.clamp(-epsilon, epsilon)
        return functional.cross_entropy(network((images + change).clamp(0, 1)), targets)

    return objective


Place = tuple[str, str, int]  # data, network, split


def by_place(rows: Iterable[Row]) -> dict[Place, dict[str, list[Row]]]:
    """Group rows by data, network and split, then by loss."""
    groups: dict[Place, dict[str, list[Row]]] = {}
    for row in rows:
        place = str(row["data"]), str(row["model"]), int(row["split"])
        groups.setdefault(place, {}).setdefault(str(row["loss"]), []).append(row)
    return groups


def left_at(rows: Sequence[Row], epsilon: float, attack: str = WORST) -> list[float]:
    """Return what an attack and those before it left at an epsilon in %, by network."""
    return [100 * float(row[attack]) for row in rows if row["epsilon"] == epsilon]


def shown(values: Sequence[float], sign: str = "") -> str:
    """Return the mean, and the half of its 95 % interval."""
    interval, mean = mean_interval(values), fmean(values)
    text = f"{mean:{sign}.1f}"
    return text if interval is None else f"{text} ± {interval[1] - mean:.1f}"


def compared(known: Mapping[str, Sequence[Row]]) -> dict[tuple[str, str], tuple[str, float]]:
    """Return, by champion and opponent, the difference in points and its adjusted p value."""
    samples = {loss: left_at(rows, TESTED) for loss, rows in known.items()}
    pairs = [(own, other) for own in CHAMPIONS for other in OPPONENTS]
    adjusted = holm([paired(samples[own], samples[other]) for own, other in pairs])
    result = {}
    for (own, other), p in zip(pairs, adjusted, strict=True):
        gaps = [a - b for a, b in zip(samples[own], samples[other], strict=True)]
        result[own, other] = shown(gaps, sign="+"), 1.0 if p is None else p
    return result


def lines_of(place: Place, known: Mapping[str, Sequence[Row]]) -> list[list[str]]:
    """Return a line for each loss: its rate, its accuracy, and what the attacks left."""
    lines = []
    for loss, rows in known.items():
        clean = [row for row in rows if row["epsilon"] == 0]
        suspect = sum(bool(row["doubts"]) for row in clean)
        lines.append(
            [
                *map(str, place),
                titled(loss, rows),
                f"{float(rows[0]['rate']):g}",
                shown([100 * float(row["test"]) for row in clean]),
                *(shown(left_at(rows, epsilon)) for epsilon in EPSILONS if epsilon),
                shown(left_at(rows, TESTED, "fgsm")),
                f"{suspect} of {len(clean)}",
            ]
        )
    return lines


def titled(loss: str, rows: Sequence[Row]) -> str:
    """Return the name of a loss, with what the tuning chose."""
    alpha = float(rows[0]["alpha"])
    base = str(rows[0]["base"])
    if loss == CONTROL:
        words = "label smoothing" if alpha else base.replace("-", " ")
        words = "cross-entropy" if words == "cross entropy" else words
        loss = f"{loss}: {words}"
    return f"{loss} ({alpha:g})" if alpha else loss


def attacked_images() -> str:
    """Return how many images a network is attacked on."""
    return ", ".join(f"{number} ({model})" for model, number in Effort().images.items())


def report(study: Study, rows: Sequence[Row]) -> None:
    """Write the tables and the figure."""
    groups = by_place(rows)
    n = min(len(left_at(own, 0.0)) for known in groups.values() for own in known.values())
    data = ["data", "network", "split"]
    study.table(
        "robustness",
        [
            *data,
            "loss",
            "rate",
            "test accuracy",
            *(f"worst, {epsilon:g}" for epsilon in EPSILONS if epsilon),
            f"FGSM, {TESTED:g}",
            "suspect",
        ],
        [line for place, known in groups.items() for line in lines_of(place, known)],
        f"In %: mean of n = {n} networks with the half of its 95 % interval (Student's t). Worst: "
        f"what the suite leaves at an epsilon, of {attacked_images()} images that are drawn for "
        "each network; FGSM: what FGSM alone leaves. Test accuracy: on all test images. Suspect: "
        "networks that a check of the attacks doubts. In brackets: alpha of label smoothing",
    )
    lines = []
    for place, known in groups.items():
        tests = compared(known)
        for own in CHAMPIONS:
            cells = [tests[own, other] for other in OPPONENTS]
            lines.append([*map(str, place), own, *(f"{gap} (p = {p:.2g})" for gap, p in cells)])
    study.table(
        "claim",
        [*data, "champion", *OPPONENTS],
        lines,
        f"What the suite leaves at epsilon {TESTED:g}: the champion's minus the baseline's, in "
        f"points, mean of n = {n} pairs of networks of one seed with the half of its 95 % "
        "interval, and p of the paired t-test after Holm's correction over the twelve tests of a "
        "data set and network",
    )
    study.figure("robustness", curves(groups))


def curves(groups: Mapping[Place, Mapping[str, Sequence[Row]]]) -> "Figure":
    """Return a figure: for each place the curves over epsilon, with the intervals as bands."""
    from matplotlib.figure import Figure

    high = -(-len(groups) // 2)
    figure = Figure(figsize=(9, 0.6 + 3.2 * high), layout="constrained")
    for number, (place, known) in enumerate(groups.items()):
        axes = figure.add_subplot(high, 2, number + 1)
        for (loss, rows), color in zip(known.items(), SERIES, strict=True):
            samples = [left_at(rows, epsilon) for epsilon in EPSILONS]
            style = "-" if loss in CHAMPIONS else "--"
            axes.plot(EPSILONS, list(map(fmean, samples)), style, label=loss, color=color)
            bands = [mean_interval(values) or (fmean(values),) * 2 for values in samples]
            low, top = zip(*bands, strict=True)
            axes.fill_between(EPSILONS, low, top, color=color, alpha=0.15)
        axes.set_title(", ".join(map(str, place[:2])), fontsize=9)
        axes.set_xlabel("epsilon", fontsize=8)
        axes.set_ylabel("accuracy under the worst attack (%)", fontsize=8)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def main(study: Study, full: bool) -> None:
    """Do the study, a data set and network at a time, so that what is done of it is whole."""
    rows: list[Row] = []
    for data, model in PLACES:
        rows += study.rows(cells_of(data, model, full), partial(attacked, Effort()))
        report(study, rows)


if __name__ == "__main__":
    command("robustness", 1, main)
