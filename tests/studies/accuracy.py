"""Is the loss that a search finds more accurate than tuned baselines (`make study-accuracy`)?

Each cell is a whole sweep: a search, the choice of the champion among the finalists, the tuning of
the baselines, and a comparison of all from the same fresh seeds on the test split. The tuning has
at least as many trainings as search and finalists together. N labelled images are four fifths for
training and one fifth for validation. Labels are wrong in both parts, and right in the test split.

In one setting (oracle), search, champion and tuning see the accuracy on the test images themselves.
It tells how far ahead the champion could be if only the fitness were perfect.

FOLDER/losses has the champion of each sweep, in the form of the zoo's files.
"""

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch
from studies import Cell, Row, Study, command

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.data.splits import digest_of
from taylorglo.evaluation.comparison import (
    NAMES,
    best_contender,
    compare,
    restore_network,
    train_finalists,
    tune_baselines,
    tuned_member,
)
from taylorglo.evaluation.fitness import Assignment, evaluate
from taylorglo.loss.functions import TaylorLoss
from taylorglo.results import Contender, Curve, FullTraining, mean_curve
from taylorglo.search.study import Search
from taylorglo.services.memo import FullTrainings, ShortTrainings
from taylorglo.services.storage import open_store
from taylorglo.settings import SweepSettings
from taylorglo.stats import holm, welch
from taylorglo.tasks.context import software
from taylorglo.training.engine import Engine
from taylorglo.training.loop import evaluation_batches
from taylorglo.training.scores import BINS, calibration_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHAMPION = "champion"
RATE = 0.03  # the learning rate of candidates and champion
ALPHAS = (0.05, 0.1, 0.2, 0.4)  # that label smoothing is tuned over
LEVEL = 0.05  # of the tests
SECONDS = {"mlp": 0.8, "cnn": 13.0}  # of 1 500 steps on one core, for the estimate of the time

PLAIN = ("cross-entropy", "label-smoothing", "squared-error")
ROBUST = ("generalised-cross-entropy", "symmetric-cross-entropy", "mean-absolute-error")

ROOT = "/usr/share/datasets/fashion-mnist"  # Debian's package dataset-fashion-mnist
_FASHION_IMAGES = 60_000  # for training, in the source


def fashion(images: int = _FASHION_IMAGES, **flaws: Any) -> dict[str, Any]:
    """Return the settings of a part of Fashion-MNIST; a fifth of it is the validation split.

    Args:
        images: number of labelled images, a multiple of 5.
        flaws: other settings of the section ``data``.
    """
    validation = images // 5
    return {
        "name": "fashion-mnist",
        "root": ROOT,
        "validation_fraction": validation / _FASHION_IMAGES,
        "train_fraction": (images - validation) / (_FASHION_IMAGES - validation),
        **flaws,
    }


@dataclass(frozen=True)
class Setting:
    """The data of a sweep, and what depends on them.

    Attributes:
        title: for the tables.
        data: the settings of the data.
        losses: the baselines.
        score: what is measured, as in the settings.
        steps: of every training, in units of the effort's.
        oracle: whether everything is chosen on the test images, which the search then sees: what a
            perfect fitness would give at most.
    """

    title: str
    data: Mapping[str, Any]
    losses: tuple[str, ...] = PLAIN
    score: str = "accuracy"
    steps: int = 1
    oracle: bool = False


def _noisy(rate: float, kind: str = "symmetric", oracle: bool = False) -> Setting:
    how = "next class" if kind == "pair-flip" else "symmetric"
    title = f"6 000 images, {100 * rate:.0f} % wrong labels ({how})"
    if oracle:
        title += ", all chosen on the test images"
    data = fashion(6_000, label_noise=rate, label_noise_kind=kind)
    return Setting(title, data, PLAIN + ROBUST, oracle=oracle)


SETTINGS = {
    "noise-40": _noisy(0.4),
    "images-250": Setting("250 images", fashion(250)),
    "images-1000": Setting("1 000 images", fashion(1_000)),
    "pair-flip-40": _noisy(0.4, "pair-flip"),
    "noise-20": _noisy(0.2),
    "noise-60": _noisy(0.6),
    "long-tail": Setting(
        "long-tailed classes (50 to 1)",
        {**fashion(), "imbalance": 50},
        score="balanced-accuracy",
    ),
    "noise-40-oracle": _noisy(0.4, oracle=True),
    "images-5000": Setting("5 000 images", fashion(5_000)),
    "images-60000": Setting("60 000 images", fashion(), steps=4),
}
# The number of sweeps of each setting at the default size, all with the network mlp. The full size
# has all settings, both networks, and the largest of these numbers for all.
SWEEPS = {
    "noise-40": 3,
    "images-250": 3,
    "images-1000": 3,
    "pair-flip-40": 3,
    "noise-20": 1,
    "noise-60": 1,
    "noise-40-oracle": 1,
    "long-tail": 1,
    "images-5000": 1,
}


@dataclass(frozen=True)
class Effort:
    """How much is computed in a sweep.

    Attributes:
        steps: of a training, of candidates and in full.
        generations: of the search.
        popsize: number of candidates of a generation.
        attempts: number of trainings of a candidate.
        folds: as in the settings.
        finalists: number of losses that the champion is chosen from.
        rates: that the baselines are tuned over.
        alphas: that label smoothing is tuned over.
        seeds: number of networks of each loss in the comparison.
    """

    steps: int = 1500
    generations: int = 6
    popsize: int = 12
    attempts: int = 2
    folds: int = 5
    finalists: int = 4
    rates: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    alphas: Sequence[float] = field(default=ALPHAS)
    seeds: int = 20

    def tuning_attempts(self, losses: Sequence[str]) -> int:
        """Return the attempts with which the tuning has as many trainings as the search, or more.

        Finalists, which have the same number of attempts, count as trainings of the search. A
        tuned baseline is one of them.
        """
        contenders = len(losses) + (len(self.alphas) - 1) * ("label-smoothing" in losses)
        grid = contenders * len(self.rates)
        searched = self.generations * self.popsize * self.attempts
        return math.ceil(searched / (grid - self.finalists - 1))

    def trainings(self, losses: Sequence[str]) -> int:
        """Return the number of trainings of a sweep, about."""
        searched = self.generations * self.popsize * self.attempts
        return 2 * searched + self.seeds * (1 + len(losses))


def sweep_settings(cell: Cell, setting: Setting, effort: Effort) -> SweepSettings:
    """Return the settings of the sweep of a cell."""
    steps = setting.steps * effort.steps
    return SweepSettings.model_validate(
        {
            "name": f"{cell['setting']}-{cell['model']}-{cell['seed']}",
            "seed": cell["seed"],
            "data": setting.data,
            "model": {"name": cell["model"]},
            "training": {
                "steps": steps,
                "learning_rate": RATE,
                "device": "cpu",
                "precision": "float32",
                "workers": 1,
            },
            "evaluation": {
                "steps": steps,
                "attempts": effort.attempts,
                "folds": 0 if setting.oracle else effort.folds,
                "give_up_step": 3 * steps // 10,
                "score": setting.score,
            },
            "search": {"popsize": effort.popsize},
            "baselines": {
                "losses": list(setting.losses),
                "learning_rates": list(effort.rates),
                "label_smoothing": list(effort.alphas),
                "attempts": effort.tuning_attempts(setting.losses),
            },
            "champion": {"finalists": effort.finalists, "seeds": effort.seeds},
            "attack": {"seeds": 1},
        }
    )


def compared(folder: Path, known: Mapping[str, Setting], effort: Effort, cell: Cell) -> list[Row]:
    """Do a sweep; return a row for the champion and for each baseline.

    A sweep that was killed goes on where it was, from FOLDER/work.
    """
    setting = known[str(cell["setting"])]
    settings = sweep_settings(cell, setting, effort)
    work = folder / "work" / settings.name
    work.mkdir(parents=True, exist_ok=True)
    dataset = datasets.load(settings.data, settings.seed)
    if setting.oracle:
        dataset = validated_on_test(dataset)
    whole, without_test = work / "whole.safetensors", work / "search.safetensors"
    datasets.save(dataset, whole)
    datasets.save(datasets.without_test(dataset), without_test)
    store = open_store(str(work / "store"))
    memo = FullTrainings(store, settings.name)
    with Engine.open(settings, without_test) as engine:
        search = searched(engine, effort.generations, work, ShortTrainings(store))
        tuning = tune_baselines(engine, memo)
        champion, finalists = chosen(search, engine, memo, tuning)
    by_name = {
        name: [full for full in tuning if full.contender.name == name]
        for name in (NAMES[loss] for loss in settings.baselines.losses)
    }
    contenders = [champion, *map(best_contender, by_name.values())]
    with Engine.open(settings, whole) as engine:
        groups = [compare(contender, engine, memo) for contender in contenders]
    errors = [fmean(calibration_of(group, memo, settings, dataset)) for group in groups]
    candidates = [c.result for c in search.candidates() if c.result is not None]
    spent = sum(max(1, len(result.accuracies)) for result in candidates) + len(finalists)
    rows = rows_of(groups, errors, spent, len(tuning))
    save_loss(folder / "losses", champion, finalists, best_contender(tuning), settings, dataset)
    shutil.rmtree(work)
    return rows


def validated_on_test(dataset: Dataset) -> Dataset:
    """Return the data set with its test split as its validation split, too."""
    assert dataset.test is not None
    # A copy: a file of tensors holds each of them by itself.
    validation = deepcopy(dataset.test)
    fingerprint = digest_of(train=dataset.train, validation=validation)
    provenance = {**dataset.provenance, "fingerprint": fingerprint}
    return replace(dataset, validation=validation, provenance=provenance)


def searched(engine: Engine, generations: int, work: Path, cache: ShortTrainings) -> Search:
    """Do the search of a sweep, and return it.

    Args:
        engine: on the data without the test split.
        generations: number of them.
        work: folder of the study.
        cache: of short trainings.
    """
    settings = engine.settings
    search = Search(
        f"sqlite:///{work / 'study.db'}",
        settings.name,
        settings.search,
        settings.seed,
        settings.identity(engine.dataset.fingerprint),
        num_classes=engine.dataset.num_classes,
    )
    for generation in range(1, generations + 1):
        search.propose(generation)
        assignments = [
            Assignment(candidate.trial, candidate.theta, settings.evaluation.attempts)
            for candidate in search.screen(generation)
            if not candidate.finished
        ]
        for trial, evaluation in evaluate(assignments, search.group(generation), engine, cache):
            search.tell(trial, evaluation)
    return search


def chosen(
    search: Search, engine: Engine, memo: FullTrainings, tuning: Sequence[FullTraining]
) -> tuple[Contender, list[FullTraining]]:
    """Return the champion, and the trainings of all finalists, as the task ``champion`` does.

    The finalists are the mean of the last distribution, the best of the last generations, and the
    best tuned baseline that is in the family of the search.
    """
    search.check_trained()
    number, mean = engine.settings.champion.finalists, search.mean()
    leaders = search.leaders(number if mean is None else number - 1)
    thetas = [] if mean is None else [mean]
    thetas += [candidate.theta for candidate in leaders]
    member = tuned_member(tuning, engine.settings, engine.dataset.num_classes)
    thetas += [] if member is None else [member[1]]
    finalists = train_finalists(thetas, engine, memo)
    best = best_contender(finalists)
    return best.model_copy(update={"name": CHAMPION}), finalists


def calibration_of(
    group: Sequence[FullTraining], memo: FullTrainings, settings: SweepSettings, dataset: Dataset
) -> list[float]:
    """Return the calibration error of each trained network on the test split."""
    assert dataset.test is not None
    errors = []
    for full in group:
        network = restore_network(memo.weights(full.key), settings.model.name, dataset)
        with torch.no_grad():
            batches = evaluation_batches(dataset.test, 500)
            logits = torch.cat([network(images) for images, _ in batches])
        errors.append(calibration_error(logits.softmax(dim=1), dataset.test.labels))
    return errors


def hedges(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Hedges' g: the difference of the means in units of the pooled standard deviation.

    It has the usual correction for small samples (Hedges 1981, in its approximate form). It is
    infinite if both samples are constant and differ.
    """
    freedom = len(first) + len(second) - 2
    squares = (len(first) - 1) * stdev(first) ** 2 + (len(second) - 1) * stdev(second) ** 2
    spread = math.sqrt(squares / freedom)
    difference = fmean(first) - fmean(second)
    if spread == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / spread * (1 - 3 / (4 * freedom - 1))


def steps_to(curve: Curve, accuracy: float) -> int:
    """Return the first step of a curve that has an accuracy, or 0 if none has."""
    return next((step for step, reached, _ in curve if reached >= accuracy), 0)


def rows_of(
    groups: Sequence[Sequence[FullTraining]],
    errors: Sequence[float],
    spent: int,
    tuned: int,
) -> list[Row]:
    """Return a row for each loss.

    Args:
        groups: the trainings of each loss: the champion's first, and cross-entropy's second.
        errors: the calibration error of each loss.
        spent: number of trainings of search and finalists.
        tuned: number of trainings of the tuning.
    """
    scores = [[full.test_accuracy for full in group] for group in groups]
    curves = [mean_curve([full.training.curve for full in group]) for group in groups]
    adjusted = holm([welch(scores[0], other) for other in scores[1:]])
    rows: list[Row] = []
    for group, own, curve, error, p in zip(
        groups, scores, curves, errors, [1.0, *adjusted], strict=True
    ):
        contender = group[0].contender
        row: Row = {
            "loss": contender.name,
            "rate": contender.learning_rate,
            "alpha": contender.label_smoothing,
            "n": len(own),
            "mean": fmean(own),
            "sd": stdev(own),
            "p": p if p is not None else 1.0,
            "g": hedges(scores[0], own),
            "ece": error,
            "steps": steps_to(curve, curves[1][-1][1]),
            "searched": spent,
            "tuned": tuned,
        }
        rows.append(row)
    return rows


def save_loss(
    folder: Path,
    champion: Contender,
    finalists: Sequence[FullTraining],
    baseline: Contender,
    settings: SweepSettings,
    dataset: Dataset,
) -> None:
    """Write the champion's loss with its provenance.

    Args:
        folder: where to write it, under the name of the sweep.
        champion: the champion.
        finalists: trainings that chose it; the champion's own give its fitness.
        baseline: the baseline of highest validation accuracy.
        settings: of the sweep.
        dataset: its data.
    """
    theta = champion.theta
    own = [full.training.accuracy for full in finalists if full.contender.theta == theta]
    names = {name: loss for loss, name in NAMES.items()}
    provenance = {
        "sweep": f"study-accuracy, {settings.name}",
        "seed": settings.seed,
        "data": settings.data.name,
        "label_noise": settings.data.label_noise,
        "label_noise_kind": settings.data.label_noise_kind,
        "imbalance": settings.data.imbalance,
        "images": len(dataset.train) + len(dataset.validation),
        "fingerprint": dataset.fingerprint,
        "model": settings.model.name,
        "steps": settings.training.steps,
        "learning_rate": settings.training.learning_rate,
        "fitness": fmean(own),
        "best_baseline": names[baseline.name],
        **software(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    loss = TaylorLoss(
        theta, settings.search.order, classes=dataset.num_classes, provenance=provenance
    )
    loss.save(folder / f"{settings.name}.json")


def by_setting(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, list[Row]]]:
    """Group rows by setting and network, then by loss; each list has a row for each sweep."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        group = groups.setdefault((str(row["setting"]), str(row["model"])), {})
        group.setdefault(str(row["loss"]), []).append(row)
    return groups


def mean_of(rows: Sequence[Row], column: str) -> float:
    """Return the mean of a column."""
    return fmean(float(row[column]) for row in rows)


def shown(rows: Sequence[Row]) -> str:
    """Return the mean accuracy in %, and the standard deviation within a sweep."""
    spread = math.sqrt(fmean(float(row["sd"]) ** 2 for row in rows))
    return f"{100 * mean_of(rows, 'mean'):.2f} ± {100 * spread:.2f}"


def differences(champion: Sequence[Row], other: Sequence[Row]) -> list[float]:
    """Return the champion's accuracy minus another loss's, in points, by sweep."""
    return [
        100 * (float(own["mean"]) - float(row["mean"]))
        for own, row in zip(champion, other, strict=True)
    ]


def versus(champion: Sequence[Row], other: Sequence[Row]) -> list[str]:
    """Return what tells champion and another loss apart: a value for each column."""
    gaps = differences(champion, other)
    certain = [gap for gap, row in zip(gaps, other, strict=True) if float(row["p"]) < LEVEL]
    interval = f" ({min(gaps):+.2f} to {max(gaps):+.2f})" if len(gaps) > 1 else ""
    better = sum(gap > 0 for gap in certain)
    return [
        shown(other),
        f"{fmean(gaps):+.2f}{interval}",
        f"{better} : {len(certain) - better} of {len(gaps)}",
        f"{mean_of(other, 'g'):+.1f}",
        f"{mean_of(champion, 'ece'):.3f} / {mean_of(other, 'ece'):.3f}",
        f"{steps_shown(champion)} / {steps_shown(other)}",
    ]


def steps_shown(rows: Sequence[Row]) -> str:
    """Return the mean of the steps, or a dash if a sweep never got there."""
    return f"{mean_of(rows, 'steps'):.0f}" if all(row["steps"] for row in rows) else "-"


_VERSUS = ("its accuracy", "difference", "better : worse", "g", "ECE", "steps")


def report(study: Study, known: Mapping[str, Setting], rows: Sequence[Row]) -> None:
    """Write the tables and the figure."""
    summary, every = [], []
    groups = by_setting(rows)
    for (name, model), losses in groups.items():
        champion = losses[CHAMPION]
        others = {loss: own for loss, own in losses.items() if loss != CHAMPION}
        head = [known[name].title, model]
        strongest = max(others, key=lambda loss: mean_of(others[loss], "mean"))
        trainings = f"{mean_of(champion, 'searched'):.0f} / {mean_of(champion, 'tuned'):.0f}"
        accuracy = shown(champion)
        summary.append(
            [*head, accuracy, strongest, *versus(champion, others[strongest]), trainings]
        )
        every += [[*head, accuracy, loss, *versus(champion, own)] for loss, own in others.items()]
    n = min((int(row["n"]) for row in rows), default=0)
    caption = (
        f"Test accuracy in %: mean of all sweeps ± standard deviation of the n >= {n} networks of "
        "a sweep. Difference: champion minus baseline in points, mean and range of the sweeps. "
        "Better : worse: sweeps in which the champion is, by Welch's two-sided test with Holm's "
        f"correction over the baselines, p < {LEVEL}. g: Hedges' effect size. ECE: expected "
        f"calibration error in {BINS} bins, of champion and baseline. Steps: until the mean curve "
        "on the validation images has cross-entropy's final accuracy, of champion and baseline"
    )
    study.table(
        "accuracy",
        ["data", "network", CHAMPION, "strongest baseline", *_VERSUS, "trainings"],
        summary,
        f"{caption}. The strongest baseline is that of highest test accuracy. Trainings: of search "
        "and finalists, and of the baselines' tuning",
    )
    study.table("losses", ["data", "network", CHAMPION, "baseline", *_VERSUS], every, caption)
    study.figure("accuracy", drawn(known, groups))


def drawn(
    known: Mapping[str, Setting], groups: Mapping[tuple[str, str], Mapping[str, Sequence[Row]]]
) -> "Figure":
    """Return a figure of the differences: a mark for each sweep and baseline."""
    from matplotlib.figure import Figure

    losses = list(
        dict.fromkeys(loss for own in groups.values() for loss in own if loss != CHAMPION)
    )
    figure = Figure(figsize=(7.4, 1.2 + 0.45 * len(groups)))
    axes = figure.add_subplot()
    for number, loss in enumerate(losses):
        points = [
            (gap, row + 0.6 * (number / max(1, len(losses) - 1) - 0.5))
            for row, own in enumerate(groups.values())
            if loss in own
            for gap in differences(own[CHAMPION], own[loss])
        ]
        axes.plot(*zip(*points, strict=True), "o", markersize=4, label=loss)
    axes.axvline(0, color="black", linewidth=0.8)
    titles = [f"{known[name].title}, {model}" for name, model in groups]
    axes.set_yticks(range(len(groups)), titles)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy of the champion minus that of the baseline (points), by sweep")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def cells_of(full: bool) -> list[Cell]:
    """Return the cells, the most important ones first."""
    most = max(SWEEPS.values())
    models = ("mlp", "cnn") if full else ("mlp",)
    return [
        {"setting": name, "model": model, "seed": seed}
        for model in models
        for name in (SETTINGS if full else SWEEPS)
        for seed in range(most if full else SWEEPS[name])
    ]


def minutes(cells: Sequence[Cell], effort: Effort, cores: int = 2) -> float:
    """Return about how many minutes the cells take."""
    seconds = 0.0
    for cell in cells:
        setting = SETTINGS[str(cell["setting"])]
        parts = setting.steps * effort.steps / 1500
        seconds += effort.trainings(setting.losses) * parts * SECONDS[str(cell["model"])]
    return seconds / cores / 60


def main(study: Study, full: bool) -> None:
    """Do the study."""
    effort, cells = Effort(), cells_of(full)
    print(f"{len(cells)} sweeps, about {minutes(cells, effort):.0f} minutes on 2 quiet cores")
    rows = study.rows(cells, partial(compared, study.folder, SETTINGS, effort))
    report(study, SETTINGS, rows)


if __name__ == "__main__":
    command("accuracy", 2, main)
