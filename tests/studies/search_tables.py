"""The tables and the figure of the study of the search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from search_cases import BASE, METHODS, NO_LEARNING, SMOOTHING, TASKS
from studies import Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN = 0.002  # below the best known accuracy
RESAMPLES = 2000  # of the bootstrap


class Target(NamedTuple):
    """The two accuracies to reach on a task, in [0, 1], and where they come from."""

    smoothing: float
    deviation: float
    rate: float
    best: float
    method: str

    @property
    def values(self) -> tuple[float, float]:
        """Label smoothing's accuracy, and the best known one less the margin."""
        return self.smoothing, self.best - MARGIN


@dataclass(frozen=True)
class Reached:
    """After how many trainings a search reached a target.

    Attributes:
        trainings: infinite if the search did not.
        last: how many it did in all.
    """

    trainings: float
    last: int


def targets_of(searches: Sequence[Row], smoothing: Sequence[Row]) -> dict[str, Target]:
    """Return the targets by task."""
    tuned: dict[str, Row] = {}
    for row in smoothing:
        former = tuned.get(str(row["task"]))
        if former is None or float(row["validation"]) > float(former["validation"]):
            tuned[str(row["task"])] = row
    targets: dict[str, Target] = {}
    for task in dict.fromkeys(str(row["task"]) for row in searches):
        known = [r for r in searches if r["task"] == task and not math.isnan(float(r["accuracy"]))]
        best = max(known, key=lambda row: float(row["accuracy"]))
        row = tuned[TASKS[task].smoothed]
        targets[task] = Target(
            float(row["accuracy"]),
            float(row["deviation"]),
            float(row["rate"]),
            float(best["accuracy"]),
            str(best["method"]),
        )
    return targets


def reached(search: Sequence[Row], target: float) -> Reached:
    """Return when a search reached a target: the first generation whose recommendation did.

    Args:
        search: the rows of one search, in the order of the generations.
        target: accuracy in [0, 1].
    """
    done = [row for row in search if int(row["generation"]) > 0]
    first = next((row for row in done if float(row["accuracy"]) >= target), None)
    trainings = math.inf if first is None else int(first["trainings"])
    return Reached(trainings, int(done[-1]["trainings"]))


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval of the median by order statistics, of at least 95 %.

    For fewer than 6 values there is none, and it is their range.
    """
    from scipy.stats import binom

    ranked = sorted(values)
    rank = max(1, int(binom.ppf(0.025, len(ranked), 0.5)))
    return ranked[rank - 1], ranked[-rank]


def shown_number(value: float, last: float) -> str:
    """Return a number of trainings; of a search that did not reach the target, its last one."""
    return f"> {last:.0f}" if math.isinf(value) else f"{value:.0f}"


def shown_median(group: Sequence[Reached]) -> str:
    """Return the median of trainings with its interval, in words."""
    values = [item.trainings for item in group]
    last = median(item.last for item in group)
    low, high = (shown_number(value, last) for value in interval_of_median(values))
    return f"{shown_number(median(values), last)} ({low} to {high})"


def by_search(rows: Sequence[Row]) -> dict[tuple[str, str], list[list[Row]]]:
    """Return the searches by task and method, each as its rows."""
    groups: dict[tuple[str, str], list[list[Row]]] = {}
    for (task, method, _), search in groupby(
        rows, key=lambda row: (str(row["task"]), str(row["method"]), int(row["seed"]))
    ):
        groups.setdefault((task, method), []).append(list(search))
    return groups


class Ratio(NamedTuple):
    """The trainings of a method relative to those of the published search.

    Attributes:
        value: geometric mean over the tasks.
        sign: what the value is: empty, or a bound: ``<=`` if the published search did not reach the
            target on a task, ``>=`` if the method did not, ``~`` if each did not on another one.
        tasks: number of the tasks; those on which neither reached the target are left out.
    """

    value: float
    sign: str
    tasks: int


def relative(
    counts: Mapping[str, Sequence[Reached]], base: Mapping[str, Sequence[Reached]]
) -> Ratio | None:
    """Return the ratio of median trainings by task, or None if no task tells it.

    A median that is above the last number of the searches counts as this number.

    Args:
        counts: of the searches of a method, by task.
        base: those of the published search.
    """
    logs = []
    signs = set()
    for task in sorted(counts.keys() & base.keys()):
        own, other = (median(item.trainings for item in group[task]) for group in (counts, base))
        if math.isinf(own) and math.isinf(other):
            continue
        if math.isinf(own):
            signs.add(">=")
            own = median(item.last for item in counts[task])
        elif math.isinf(other):
            signs.add("<=")
            other = median(item.last for item in base[task])
        logs.append(math.log(own / other))
    if not logs:
        return None
    return Ratio(math.exp(fmean(logs)), "~" if len(signs) > 1 else "".join(signs), len(logs))


def resampled(
    counts: Mapping[str, Sequence[Reached]], base: Mapping[str, Sequence[Reached]]
) -> tuple[float, float]:
    """Return the 95 % interval of :func:`relative` by bootstrap over the searches of each task.

    The counts are such that the ratio is known. A resample that does not tell it is left out.
    """
    generator = np.random.default_rng(0)

    def drawn(groups: Mapping[str, Sequence[Reached]]) -> dict[str, list[Reached]]:
        return {
            task: [group[index] for index in generator.integers(len(group), size=len(group))]
            for task, group in groups.items()
        }

    ratios = [relative(drawn(counts), drawn(base)) for _ in range(RESAMPLES)]
    low, high = np.quantile([ratio.value for ratio in ratios if ratio], [0.025, 0.975])
    return float(low), float(high)


def shown_share(searches: Sequence[Sequence[Row]]) -> str:
    """Return the share of trainings that did not learn, with Wilson's interval, in %."""
    from scipy.stats import binomtest

    wasted = sum(int(search[-1]["wasted"]) for search in searches)
    trainings = sum(int(search[-1]["trainings"]) for search in searches)
    if not trainings:
        return "no training"
    interval = binomtest(wasted, trainings).proportion_ci(method="wilson")
    share = 100 * wasted / trainings
    return f"{share:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def shown_accuracy(searches: Sequence[Sequence[Row]], index: int) -> str:
    """Return the median over searches of the true accuracy of a recommendation, in %."""
    values = [float(search[index]["accuracy"]) for search in searches]
    known = [value for value in values if not math.isnan(value)]
    return f"{100 * median(known):.2f}" if known else "none"


def starts_table(study: Study, rows: Sequence[Row]) -> None:
    """Write the validation accuracy of each place where a search might start.

    Args:
        study: the frame.
        rows: a row for each task, place and scale.
    """
    axes = ("end", "bend", "collapse", "log_share")
    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    best: dict[tuple[float, ...], dict[str, Row]] = {}
    for row in rows:
        known = best.setdefault(tuple(float(row[axis]) for axis in axes), {})
        former = known.get(str(row["task"]))
        if former is None or float(row["validation"]) > float(former["validation"]):
            known[str(row["task"])] = row
    study.table(
        "starts",
        [*axes, *(f"{TASKS[task].title}, %" for task in tasks)],
        [
            [
                *(f"{value:g}" for value in place),
                *(
                    f"{100 * float(known[task]['validation']):.2f} at {known[task]['scale']:g}"
                    for task in tasks
                ),
            ]
            for place, known in best.items()
        ],
        caption=f"Validation accuracy at the best scale, mean of {rows[0]['attempts']} trainings, "
        "each validated on another fold; the test images have no part in it",
    )


def write_tables(study: Study, rows: Sequence[Row], smoothing: Sequence[Row]) -> None:
    """Write and print the tables of the study."""
    targets = targets_of(rows, smoothing)
    groups = by_search(rows)
    fresh = rows[0]["fresh"]
    study.table(
        "targets",
        ["task", "rate of the candidates", "label smoothing, %", "its rate", "best known, %", "by"],
        [
            [
                TASKS[task].title,
                f"{TASKS[task].rate:g}",
                f"{100 * target.smoothing:.2f} ± {100 * target.deviation:.2f}",
                f"{target.rate:g}",
                f"{100 * target.best:.2f}",
                METHODS[target.method].title,
            ]
            for task, target in targets.items()
        ],
        caption=f"Mean test accuracy ± standard deviation, n = {fresh} trainings from seeds that "
        f"no search had. Alpha of label smoothing {SMOOTHING}, its rate chosen on the validation "
        "split",
    )
    study.table(
        "trainings",
        [
            "task",
            "method",
            "n",
            "trainings to label smoothing",
            f"to the best known - {100 * MARGIN:.1f}",
            "accuracy before, %",
            "after, %",
            "do not learn, %",
        ],
        [
            [
                TASKS[task].title,
                METHODS[method].title,
                len(searches),
                *(
                    shown_median([reached(search, value) for search in searches])
                    for value in targets[task].values
                ),
                shown_accuracy(searches, 0),
                shown_accuracy(searches, -1),
                shown_share(searches),
            ]
            for (task, method), searches in groups.items()
        ],
        caption="Trainings of candidates until the recommended loss truly reaches the target; "
        "median of n searches (interval of 95 % by order statistics, the range for n < 6). True "
        f"accuracies of the recommendation before and after the search: means of {fresh} "
        "trainings, medians of n. Share of the trainings that stay within "
        f"{100 * NO_LEARNING:.0f} points of chance, with Wilson's interval",
    )
    study.table(
        "methods",
        [
            "method",
            "tasks",
            "trainings to label smoothing, relative",
            f"to the best known - {100 * MARGIN:.1f}, relative",
            "do not learn, %",
        ],
        [method_line(method, groups, targets) for method in dict.fromkeys(m for _, m in groups)],
        caption="Geometric mean over the tasks of the median trainings, relative to the published "
        f"search; below 1: fewer (95 % by bootstrap over searches, {RESAMPLES} resamples; number "
        "of tasks on which one of the two reached the target). <=: the published search did not "
        "reach it on a task, and counts with its last number; >=: the method did not; ~: each on "
        "another task. Share of all its trainings that do not learn, with Wilson's interval",
    )


def method_line(
    method: str,
    groups: Mapping[tuple[str, str], Sequence[Sequence[Row]]],
    targets: Mapping[str, Target],
) -> list[object]:
    """Return a line of the table of methods."""
    own = {task: searches for (task, name), searches in groups.items() if name == method}
    base = {task: s for (task, name), s in groups.items() if name == BASE and task in own}
    ratios: list[str] = []
    for number in range(2):
        counts, published = (
            {t: [reached(s, targets[t].values[number]) for s in group[t]] for t in base}
            for group in (own, base)
        )
        ratio = relative(counts, published)
        if ratio is None:
            ratios.append("not known")
            continue
        low, high = resampled(counts, published)
        shown = f"{ratio.sign} {ratio.value:.2f} ({low:.2f} to {high:.2f}; {ratio.tasks})"
        ratios.append(shown.strip())
    everything = [search for searches in own.values() for search in searches]
    return [METHODS[method].title, len(own), *ratios, shown_share(everything)]


def medians_of(searches: Sequence[Sequence[Row]]) -> tuple[list[float], list[float]]:
    """Return by generation the medians of the trainings, and of the true accuracies in %."""
    trainings, accuracies = [], []
    for generation in list(zip(*searches, strict=True))[1:]:
        trainings.append(median(int(row["trainings"]) for row in generation))
        known = [100 * float(row["accuracy"]) for row in generation]
        accuracies.append(median([value for value in known if not math.isnan(value)] or [math.nan]))
    return trainings, accuracies


def drawing(rows: Sequence[Row], targets: Mapping[str, Target]) -> "Figure":
    """Return a figure of the true accuracy of the recommendation by trainings, task by task."""
    from matplotlib.figure import Figure

    columns = 2
    figure = Figure(figsize=(9, 3.2 * math.ceil(len(targets) / columns)), layout="constrained")
    groups = by_search(rows)
    for place, (task, target) in enumerate(targets.items(), 1):
        axes = figure.add_subplot(math.ceil(len(targets) / columns), columns, place)
        for number, method in enumerate(METHODS):
            searches = groups.get((task, method))
            if searches is None:
                continue
            trainings, accuracies = medians_of(searches)
            axes.plot(
                trainings,
                accuracies,
                color=f"C{number % 10}",
                linestyle="-" if number < 10 else "--",
                marker=".",
                label=METHODS[method].title,
            )
        for value in target.values:
            axes.axhline(100 * value, color="black", linewidth=0.8, linestyle=":")
        # What has not learned yet would hide the differences among the others.
        axes.set_ylim(100 * min(target.values) - 5, 100 * target.best + 0.5)
        axes.set_title(TASKS[task].title)
        axes.set_xlabel("trainings of candidates")
        axes.set_ylabel("true accuracy, %")
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return figure
