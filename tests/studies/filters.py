"""What the filters accept and reject, against what candidates learn (`make study-filters`).

Candidates of the published first distribution (theta, sigma 1.2 around 0) are trained without any
filter: by several networks, for 2 to 10 classes of Fashion-MNIST, at two learning rates a factor
ten apart, with hard targets and with soft ones (CutMix for every batch). A candidate has learned if
its validation accuracy is above chance by a tenth of the way from chance to 1.

The tables of the networks have precision and recall of each filter; `settings` those of the shipped
filters by rate and targets; `kappa` the bound of the filter stable that fits each network best;
`bound` how well one bound does for all of them; `bounds` what still fails among the accepted. Each
setting has candidates of its own, so that all trainings of one network are independent. All
networks have the same candidates.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pools import dataset_of, first_generation, pool, trained
from scipy.optimize import isotonic_regression
from scipy.stats import binomtest, mannwhitneyu
from studies import Cell, Row, Study, command

from taylorglo.data.seeds import derived_seed
from taylorglo.loss.dynamics import dynamics
from taylorglo.loss.filters import all_of
from taylorglo.loss.functions import TaylorLoss
from taylorglo.settings import SweepSettings
from taylorglo.training.loop import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = NDArray[np.float64]
Truths = NDArray[np.bool_]

VERSION = 1
MINUTES = 17  # of the default size, on 2 quiet cores

# Number of candidates in each setting, and number of steps of a training, by network.
DEFAULT = {"mlp": (100, 200), "cnn": (50, 120), "mnist-cnn": (25, 60)}
FULL = {"mlp": (400, 300), "cnn": (200, 300), "mnist-cnn": (200, 150)}
CLASSES = (2, 3, 5, 10)
RATES = (0.01, 0.1)
TARGETS = {"hard": 0.0, "soft": 1.0}  # the probability of CutMix
IMAGES, TESTED = 5000, 100  # a fifth of the images is for validation; the test has no use here
LEARNED = 0.1  # part of the way from chance to an accuracy of 1
MOMENTUM = 0.9
FILTERS = {
    "none": ["none"],
    "published": ["published"],
    "learnable": ["learnable"],
    "stable": ["stable"],
    "learnable, stable": ["learnable", "stable"],
}
SHIPPED = "learnable, stable"
KAPPAS = (0.0, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # bounds to compare
RESAMPLES = 1000


def cells(sizes: dict[str, tuple[int, int]]) -> list[Cell]:
    """Return a cell for each setting; cells of long and of short trainings take turns."""
    return [
        {
            "classes": classes,
            "rate": rate,
            "targets": targets,
            "model": model,
            "candidates": sizes[model][0],
            "steps": sizes[model][1],
        }
        for classes, rate, targets, model in itertools.product(CLASSES, RATES, TARGETS, sizes)
    ]


def compute(cell: Cell) -> list[Row]:
    """Draw the candidates of a cell and train each once, from one seed; return a row for each."""
    classes, rate, targets = int(cell["classes"]), float(cell["rate"]), str(cell["targets"])
    place = derived_seed(0, classes, RATES.index(rate), [*TARGETS].index(targets))
    settings = _settings(cell)
    thetas = first_generation(settings.search, classes, place)
    steps = settings.training.steps
    losses = [TaylorLoss(theta, settings.search.order) for theta in thetas]
    recipes = [Recipe(loss, rate, place, steps, steps, validations=1) for loss in losses]
    dataset = dataset_of(pool(IMAGES, 0, classes), TESTED, seed=0)
    rows: list[Row] = []
    for theta, training in zip(thetas, trained(settings, dataset, recipes), strict=True):
        numbers = dynamics(theta, classes)
        # Without an equilibrium, the pull goes on up to a confidence of 1.
        confidence = numbers.equilibrium_confidence
        rows.append(
            {
                "theta": " ".join(map(repr, theta)),
                "A": numbers.learning_drive,
                "B": numbers.collapse_rate,
                "A_rate": numbers.learning_drive * rate,
                "p_star": 1.0 if confidence is None else confidence,
                "status": training.status,
                "accuracy": training.accuracy,
            }
        )
    return rows


def _settings(cell: Cell) -> SweepSettings:
    steps = int(cell["steps"])
    values: dict[str, Any] = {
        "model": {"name": cell["model"]},
        "training": {
            "steps": steps,
            "learning_rate": cell["rate"],
            "momentum": MOMENTUM,
            "device": "cpu",
            "workers": 1,
        },
        "augmentation": {"cutmix": TARGETS[str(cell["targets"])]},
        "evaluation": {"steps": steps, "give_up_step": 0},
        "search": {
            "family": "taylor",
            "coordinates": "theta",
            "sigma": 1.2,
            "popsize": cell["candidates"],
            "filters": ["none"],
        },
    }
    return SweepSettings.model_validate(values)


@dataclass(frozen=True)
class Trained:
    """Trained candidates, an entry of each array for each of them.

    Attributes:
        rows: of the study.
        accuracy: on the validation images.
        learned: whether that is above chance by far enough.
        accepted: by each of ``FILTERS``.
        ratio: B / A.
        confidence: p*.
        speed: A rate / (1 - momentum), the drive of a step in the long run.
    """

    rows: Sequence[Row]
    accuracy: Numbers
    learned: Truths
    accepted: dict[str, Truths]
    ratio: Numbers
    confidence: Numbers
    speed: Numbers

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Trained":
        """Return the candidates of rows of the study."""

        def column(name: str) -> Numbers:
            return np.array([float(row[name]) for row in rows])

        chance = 1 / column("classes")
        thetas = [[float(number) for number in str(row["theta"]).split()] for row in rows]
        accepted = {
            name: np.array(
                [
                    all_of(names)(theta, int(row["classes"])).accepted
                    for theta, row in zip(thetas, rows, strict=True)
                ],
                dtype=bool,
            )
            for name, names in FILTERS.items()
        }
        with np.errstate(divide="ignore"):
            ratio = column("B") / column("A")
        return cls(
            rows,
            column("accuracy"),
            column("accuracy") > chance + LEARNED * (1 - chance),
            accepted,
            ratio,
            column("p_star"),
            column("A_rate") / (1 - MOMENTUM),
        )

    def where(self, chosen: Truths) -> "Trained":
        """Return some of the candidates."""
        return Trained(
            list(itertools.compress(self.rows, chosen)),
            self.accuracy[chosen],
            self.learned[chosen],
            {name: values[chosen] for name, values in self.accepted.items()},
            self.ratio[chosen],
            self.confidence[chosen],
            self.speed[chosen],
        )

    def having(self, **values: object) -> "Trained":
        """Return the candidates with these values in their rows."""
        chosen = [all(row[key] == value for key, value in values.items()) for row in self.rows]
        return self.where(np.array(chosen, dtype=bool))


def shares(accepted: Truths, learned: Truths) -> list[str]:
    """Return in words: precision, recall, and how many of the rejected would have learned."""
    return [
        share(int((accepted & learned).sum()), int(accepted.sum())),
        share(int((accepted & learned).sum()), int(learned.sum())),
        share(int((~accepted & learned).sum()), int((~accepted).sum())),
    ]


def share(part: int, whole: int) -> str:
    """Return a proportion in %, with its 95 % interval by Wilson."""
    if not whole:
        return "–"
    interval = binomtest(part, whole).proportion_ci(method="wilson")
    return f"{part / whole:.0%} ({interval.low:.0%} to {interval.high:.0%}) of {whole}"


def best_bound(ratios: Numbers, learned: Truths) -> float:
    """Return the kappa of highest balanced accuracy, for the rule that B/A is at most kappa.

    Balanced accuracy is the mean of the share of the learners that are accepted and the share of
    the others that are rejected. Kappa is half way between two ratios, or infinite if the rule
    should accept all; NaN if all learned, or none.
    """
    if learned.all() or not learned.any():
        return math.nan
    order = np.argsort(ratios)
    gain = np.where(learned[order], 1 / learned.sum(), -1 / (~learned).sum()).cumsum()
    last = int(np.flatnonzero(gain > gain.max() - 1e-12)[-1])
    return _between(ratios[order], last)


def even_bound(ratios: Numbers, learned: Truths) -> float:
    """Return the largest kappa below which more than half of the candidates learn.

    The share that learns is fitted as a function of B/A that never rises (isotonic regression).
    Kappa is half way between two ratios, or infinite if more than half learn everywhere; NaN if
    nowhere more than half do.
    """
    if not len(ratios):
        return math.nan
    order = np.argsort(ratios)
    fitted = isotonic_regression(learned[order].astype(float), increasing=False).x
    above = np.flatnonzero(fitted > 0.5)
    return _between(ratios[order], int(above[-1])) if len(above) else math.nan


def _between(ascending: Numbers, index: int) -> float:
    """Return what is half way from a value to the next one; infinity after the last one."""
    return float((ascending[index] + np.append(ascending, math.inf)[index + 1]) / 2)


def balanced_accuracy(accepted: Truths, learned: Truths) -> float:
    """Return the mean of the accepted share of the learners and the rejected share of the rest."""
    if learned.all() or not learned.any():
        return math.nan
    return float((accepted[learned].mean() + (~accepted[~learned]).mean()) / 2)


def best_interval(values: Numbers, learned: Truths) -> tuple[float, float]:
    """Return the interval of highest balanced accuracy, for the rule that values inside it learn.

    An end is infinite if the interval contains the outermost value on that side. Both are NaN if
    all learned, or none.
    """
    if learned.all() or not learned.any():
        return math.nan, math.nan
    order = np.argsort(values)
    gain = np.where(learned[order], 1 / learned.sum(), -1 / (~learned).sum()).cumsum()
    # The sum over an interval is the difference of two cumulative sums: the lowest one before it
    # is kept while the end of the interval moves on.
    before = np.concatenate([[0.0], gain[:-1]])
    lowest = np.minimum.accumulate(before)
    end = int(np.argmax(gain - lowest))
    start = int(np.argmin(before[: end + 1]))
    ordered = values[order]
    return -math.inf if start == 0 else _between(ordered, start - 1), _between(ordered, end)


def separation(values: Numbers, learned: Truths) -> float:
    """Return the probability that a value of a failure is above that of a learner (AUC)."""
    if learned.all() or not learned.any():
        return math.nan
    failures, learners = values[~learned], values[learned]
    return float(mannwhitneyu(failures, learners).statistic / (len(failures) * len(learners)))


def with_interval(
    estimate: Callable[[Numbers, Truths], float], values: Numbers, learned: Truths
) -> str:
    """Return an estimate in words, with its 95 % interval by the bootstrap over candidates."""
    found = estimate(values, learned)
    if math.isnan(found):
        return "–"
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    resampled = [estimate(values[rows], learned[rows]) for rows in draws]
    known = np.array([value for value in resampled if not math.isnan(value)])
    # Ends may be infinite, between which nothing can be interpolated.
    low, high = np.quantile(known, (0.025, 0.975), method="nearest")
    return f"{_number(found)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return "none" if math.isinf(value) else f"{value:.2f}"


def percentage(value: float) -> str:
    """Return a share in %; a dash if it is not known."""
    return "–" if math.isnan(value) else f"{value:.1%}"


def filter_table(study: Study, model: str, trained: Trained) -> None:
    """Write what each filter does to the candidates of a network, by the number of classes."""
    lines = []
    for classes in CLASSES:
        own = trained.having(classes=classes)
        for name, accepted in own.accepted.items():
            lost, kept = own.accuracy[~accepted], own.accuracy[accepted]
            lines.append(
                [
                    classes,
                    name,
                    *shares(accepted, own.learned),
                    percentage(kept.max() if len(kept) else math.nan),
                    percentage(lost.max() if len(lost) else math.nan),
                ]
            )
    header = [
        "classes",
        "filters",
        "precision: learned, of the accepted",
        "recall: accepted, of those that learn",
        "false rejections: would learn, of the rejected",
        "best kept",
        "best lost",
    ]
    first = trained.rows[0]
    study.table(
        model,
        header,
        lines,
        f"{model}, {first['steps']} steps, {len(RATES) * len(TARGETS)} settings of "
        f"{first['candidates']} candidates for each number of classes (learning rates "
        f"{', '.join(f'{rate:g}' for rate in RATES)}; hard and soft targets); one training each. "
        "In brackets: 95 % intervals (Wilson). Best: validation accuracy",
    )


def settings_table(study: Study, trained: Trained, models: Sequence[str]) -> None:
    """Write what the shipped filters do, by network, learning rate and targets."""
    lines = []
    for model, rate, targets in itertools.product(models, RATES, TARGETS):
        own = trained.having(model=model, rate=rate, targets=targets)
        lines.append([model, rate, targets, *shares(own.accepted[SHIPPED], own.learned)])
    study.table(
        "settings",
        ["network", "learning rate", "targets", "precision", "recall", "false rejections"],
        lines,
        f"Filters {SHIPPED}, over {', '.join(map(str, CLASSES))} classes. In brackets: 95 % "
        "intervals (Wilson)",
    )


def kappa_table(study: Study, trained: Trained, models: Sequence[str]) -> None:
    """Write the bound of B/A that fits best, by the number of classes and by network."""
    lines = []
    for classes, model in itertools.product(CLASSES, models):
        whole = trained.having(classes=classes, model=model)
        own = whole.where(whole.accepted["learnable"])
        fitted = best_bound(own.ratio, own.learned)
        lines.append(
            [
                classes,
                model,
                share(int(own.learned.sum()), len(own.learned)),
                percentage(balanced_accuracy(own.accepted["stable"], own.learned)),
                with_interval(best_bound, own.ratio, own.learned),
                percentage(balanced_accuracy(own.ratio <= fitted, own.learned)),
                with_interval(even_bound, own.ratio, own.learned),
            ]
        )
    header = [
        "classes",
        "network",
        "learned",
        "balanced accuracy of stable",
        "best kappa",
        "its balanced accuracy",
        "even kappa",
    ]
    study.table(
        "kappa",
        header,
        lines,
        "Of the candidates that learnable accepts. Best: of highest balanced accuracy for B/A at "
        "most kappa; even: the largest below which more than half learn (isotonic regression). In "
        f"brackets: 95 % intervals (Wilson; bootstrap over candidates, {RESAMPLES} resamples)",
    )


def bound_table(study: Study, trained: Trained, models: Sequence[str]) -> None:
    """Write how well several bounds of B/A do, by the number of classes: means over the networks.

    A bound that is shipped should do well with every network.
    """
    lines = []
    for classes in CLASSES:
        groups = [trained.having(classes=classes, model=model) for model in models]
        groups = [group.where(group.accepted["learnable"]) for group in groups]
        means = [
            np.mean([balanced_accuracy(group.ratio <= kappa, group.learned) for group in groups])
            for kappa in KAPPAS
        ]
        lines.append([classes, *(percentage(float(mean)) for mean in means)])
    study.table(
        "bound",
        ["classes", *(f"kappa {kappa:g}" for kappa in KAPPAS)],
        lines,
        "Balanced accuracy of the rule that B/A is at most kappa, of the candidates that learnable "
        f"accepts: mean over {', '.join(models)}",
    )


def bounds_table(study: Study, trained: Trained, models: Sequence[str]) -> None:
    """Write what tells the failures from the learners among the accepted, by network."""
    lines = []
    for model in models:
        whole = trained.having(model=model)
        own = whole.where(whole.accepted[SHIPPED])
        low, high = best_interval(own.speed, own.learned)
        failed = ~own.learned
        inside = (own.speed >= low) & (own.speed <= high)
        lines.append(
            [
                model,
                share(int(failed.sum()), len(failed)),
                with_interval(separation, own.speed, own.learned),
                with_interval(separation, own.ratio, own.learned),
                with_interval(separation, own.confidence, own.learned),
                with_interval(_lower_end, own.speed, own.learned),
                with_interval(_upper_end, own.speed, own.learned),
                int((failed & (own.speed < low)).sum()),
                int((failed & (own.speed > high)).sum()),
                *shares(inside, own.learned)[:2],
            ]
        )
    header = [
        "network",
        "failed",
        "AUC of A·rate",
        "AUC of B/A",
        "AUC of p*",
        "lower bound",
        "upper bound",
        "failed below",
        "failed above",
        "precision inside",
        "recall inside",
    ]
    study.table(
        "bounds",
        header,
        lines,
        f"Of the candidates that {SHIPPED} accept. A·rate stands for A times the learning rate "
        "over (1 - momentum), and the bounds are the interval of it of highest balanced accuracy. "
        "AUC: probability that a failure has the larger value, 0.50 if it tells nothing. In "
        "brackets: 95 % intervals (Wilson; bootstrap over candidates)",
    )


def _lower_end(values: Numbers, learned: Truths) -> float:
    return best_interval(values, learned)[0]


def _upper_end(values: Numbers, learned: Truths) -> float:
    return best_interval(values, learned)[1]


def draw(study: Study, trained: Trained, models: Sequence[str]) -> None:
    """Draw which share learns against B/A, and of the accepted against A rate / (1 - momentum)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    panels = figure.subplots(2, len(CLASSES), sharey=True, squeeze=False)
    for (above, below), classes in zip(panels.T, CLASSES, strict=True):
        for model in models:
            own = trained.having(classes=classes, model=model)
            learnable = own.where(own.accepted["learnable"])
            accepted = own.where(own.accepted[SHIPPED])
            # Most candidates are within these ranges.
            ratios, speeds = np.linspace(-3, 3, 13), np.logspace(-3, 2, 11)
            _draw_shares(above, learnable.ratio, learnable.learned, ratios, model)
            _draw_shares(below, accepted.speed, accepted.learned, speeds, model)
        above.set_title(f"{classes} classes")
        above.set_xlim(-3, 3)
        above.set_xlabel("B/A")
        below.set_xscale("log")
        below.set_xlim(1e-3, 1e2)
        below.set_xlabel("A·rate/(1 - momentum)")
    panels[0][0].set_ylabel("learned, of learnable")
    panels[1][0].set_ylabel("learned, of accepted")
    panels[0][-1].legend()
    study.figure("filters", figure)


def _draw_shares(
    axes: "Axes", values: Numbers, learned: Truths, edges: Numbers, label: str
) -> None:
    """Draw the share of the learners by bin, if the bin has at least 5 candidates."""
    bins = np.digitize(values, edges)
    sizes = {index: int((bins == index).sum()) for index in range(1, len(edges))}
    full = [index for index, size in sizes.items() if size >= 5]
    centres = [edges[index - 1 : index + 1].mean() for index in full]
    axes.plot(centres, [learned[bins == index].mean() for index in full], "o-", label=label)
    axes.set_ylim(-0.03, 1.03)


def run(study: Study, sizes: dict[str, tuple[int, int]]) -> None:
    """Do the study with so many candidates of so many steps, by network."""
    trained = Trained.of(study.rows(cells(sizes), compute))
    for model in sizes:
        filter_table(study, model, trained.having(model=model))
    settings_table(study, trained, [*sizes])
    kappa_table(study, trained, [*sizes])
    bound_table(study, trained, [*sizes])
    bounds_table(study, trained, [*sizes])
    draw(study, trained, [*sizes])


def main(study: Study, full: bool) -> None:
    """Do the study in its default or its full size."""
    if not full:
        print(f"about {MINUTES} minutes on 2 quiet cores")
    run(study, FULL if full else DEFAULT)


if __name__ == "__main__":
    command("filters", VERSION, main)
