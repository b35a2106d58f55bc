"""The report of a sweep as one HTML page.

The page is a single file that loads nothing: style sheet and figures (SVG) are inside. The same
record gives the same bytes. This module computes the numbers; the template has the words.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from taylorglo.loss.dynamics import coefficients, dynamics
from taylorglo.loss.polynomial import checked_theta, has_log
from taylorglo.report import text
from taylorglo.report.figures import (
    attack_figure,
    bands_figure,
    calibration_figure,
    confusion_figure,
    loss_figure,
    plane_figure,
    roc_figure,
    search_figure,
    seeds_figure,
    svg,
    trade_off_figure,
)
from taylorglo.report.formula import centred, expanded
from taylorglo.report.record import GenerationRecord, SweepRecord, TradeOff
from taylorglo.report.verdict import (
    MOST_FREQUENT,
    SIGNIFICANCE,
    best_baseline,
    comparison_cells,
    standing_verdict,
    verdict,
)
from taylorglo.results import epsilon_text
from taylorglo.stats import finite

_ATTACKS = {
    "fgsm": "FGSM",
    "pgd-ce": "PGD, cross-entropy",
    "pgd-dlr": "PGD, DLR",
    "apgd-ce": "APGD, cross-entropy",
    "apgd-t": "APGD, targeted DLR",
    "fab-t": "FAB, targeted",
    "square": "Square",
    "worst": "worst of all",
}


def render(record: SweepRecord) -> str:
    """Return the report as one HTML page that loads nothing from elsewhere.

    Raises:
        InputError: the champion's theta or the number of classes is not valid.
    """
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            record=record,
            # The data may be a table, too.
            provenance={
                name.replace("_images", "_samples"): value
                for name, value in record.provenance.items()
            },
            verdict=verdict(record),
            standing_verdict=standing_verdict(record),
            comparison=_comparison(record),
            champion=_champion(record),
            search=_search(record),
            attacks=_attacks(record),
            corruptions=_corruptions(record),
            flow=_flow(record),
            plane=_plane(record),
            trade_off=_trade_off(record),
            calibration=_calibration(record),
            confusion=_confusion(record),
            roc=_roc(record),
            tuning=_tuning(record),
            stages=_stages(record),
            significance=SIGNIFICANCE,
            most_frequent=MOST_FREQUENT,
            nothing=text.NOTHING,
        )
    )


@cache
def _environment() -> Environment:
    """Return jinja's environment: it escapes every value, and refuses names without a value."""
    environment = Environment(
        loader=PackageLoader("taylorglo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": text.duration,
        "mean_and_deviation": text.mean_and_deviation,
        "number": text.number,
        "score": text.score,
        "origin": text.origin,
        "expectation": text.expectation,
        "sample_size": text.sample_size,
        "seconds": text.seconds,
        "share": text.share,
        "taken_for": text.taken_for,
    }
    return environment


def _comparison(record: SweepRecord) -> dict[str, object] | None:
    """Return the table and the figure of the comparison; None if no loss was trained in full."""
    if not record.comparison:
        return None
    header, rows = comparison_cells(record)
    best = best_baseline(record)
    seeds = [(row.loss, row.accuracies, row.curve) for row in record.comparison]
    figure = seeds_figure(seeds, record.score, record.share)
    return {
        "champion": record.comparison[0],
        "best_baseline": None if best is None else record.comparison[best],
        "header": header,
        "rows": rows,
        "with_curves": any(row.curve for row in record.comparison),
        "figure": svg(figure, "seeds", _seeds_label(record)),
    }


def _seeds_label(record: SweepRecord) -> str:
    """Describe the test scores for a reader who does not see their figure."""
    unit = " %" if record.share else ""
    means = [
        f"{row.loss} {text.mean_and_deviation(row.accuracies, record.share)}{unit}"
        for row in record.comparison
    ]
    return f"Test {record.score} by seed: {'; '.join(means)}"


class _Step(NamedTuple):
    """A step of the flow of candidates: how many came so far, and who left before the next."""

    name: str
    number: int
    percentage: float
    left: str


def _flow(record: SweepRecord) -> list[_Step]:
    """Return how many candidates were drawn, accepted, trained to the end, and chosen."""
    fates = [candidate.fate for candidate in record.candidates]
    if not fates:
        return []

    def left(*names: str) -> str:
        return ", ".join(f"{fates.count(name)} {name}" for name in names if name in fates)

    finalists = fates.count("finalist") + fates.count("champion")
    ended = fates.count("trained") + finalists
    others = f"{ended - finalists} not among the best" if ended > finalists else ""
    steps = [
        ("proposed", len(fates), left("rejected")),
        (
            "accepted by the filters",
            len(fates) - fates.count("rejected"),
            left("failed", "diverged", "stopped"),
        ),
        ("trained to the end", ended, others),
        ("finalists", finalists, ""),
    ]
    # A champion that is no candidate is named in a sentence below the flow.
    if "champion" in fates:
        steps.append(("champion", 1, ""))
    return [_Step(name, n, 100 * n / len(fates), gone) for name, n, gone in steps]


def _plane(record: SweepRecord) -> Markup | None:
    """Return the figure of the candidates by their dynamics; None if there is none."""
    points = [
        (c.drive, c.collapse, c.fate)
        for c in record.candidates
        if math.isfinite(c.drive) and math.isfinite(c.collapse)
    ]
    if not points:
        return None
    ends = ", ".join(f"{step.number} {step.name}" for step in _flow(record))
    label = f"Learning drive and collapse rate of each candidate, by fate: {ends}"
    return svg(plane_figure(points), "plane", label)


def _trade_off(record: SweepRecord) -> Markup | None:
    """Return the figure of the candidates by both scores; None if none was attacked."""
    front = record.front
    if not front:
        return None
    places = "; ".join(_pair(one, record) for one in front)
    label = (
        f"Validation {record.score} and the same under attack of {len(record.trade_offs)} "
        f"candidates. On the Pareto front: {places}"
    )
    if record.chosen is not None:
        label += f". The champion: {_pair(record.chosen, record)}"
    figure = trade_off_figure(
        [one.scores for one in record.trade_offs if not one.on_front],
        [one.scores for one in front],
        record.chosen.scores if record.chosen else None,
        record.score,
        record.share,
    )
    return svg(figure, "trade-off", label)


def _pair(candidate: TradeOff, record: SweepRecord) -> str:
    clean, robust = (text.amount(score, record.share) for score in candidate.scores)
    return f"{clean} and {robust}"


def _calibration(record: SweepRecord) -> Markup | None:
    """Return the figure of the calibration; None if it was not measured."""
    rows = [
        (row.loss, row.counts.reliability if row.counts else [], errors)
        for row in record.comparison
        if finite(errors := row.measures.get("calibration_error", [])).size
    ]
    if not rows:
        return None
    means = [f"{loss} {text.mean_and_deviation(errors)} %" for loss, _, errors in rows]
    label = f"Expected calibration error: {'; '.join(means)}"
    return svg(calibration_figure(rows), "calibration", label)


def _confusion(record: SweepRecord) -> Markup | None:
    """Return the confusion matrices of champion and cross-entropy; None if they are not known."""
    tables = {
        row.loss: row.counts.confusion
        for row in record.comparison
        if row.loss in ("champion", "cross-entropy") and row.counts and row.counts.confusion
    }
    if not tables:
        return None
    label = f"Confusion matrices on the test split: {', '.join(tables)}"
    return svg(confusion_figure(tables, record.classes), "confusion", label)


def _roc(record: SweepRecord) -> Markup | None:
    """Return the ROC curves of all losses; None if none is known."""
    curves, areas = {}, []
    for row in record.comparison:
        if row.counts is not None:
            false, true, _ = row.counts.roc()
            curves[row.loss] = (false, true)
            areas.append(f"{row.loss} {row.counts.area():.4f}")
    if not curves:
        return None
    label = f"ROC over all classes (micro-average); area under the curve: {', '.join(areas)}"
    return svg(roc_figure(curves), "roc", label)


def _champion(record: SweepRecord) -> dict[str, object]:
    """Return the champion's formula, its coefficients, its dynamics and its figure."""
    theta, order = checked_theta(record.champion.theta, record.champion.order)
    num_classes = record.num_classes
    drive, collapse, confidence = dynamics(theta, num_classes)
    smoothing = None
    if confidence is not None:
        smoothing = (1 - confidence) * num_classes / (num_classes - 1)
    figure = loss_figure({"champion": theta}, num_classes)
    return {
        "theta": theta,
        "centred": centred(theta, order),
        "expanded": expanded(theta, order),
        "has_log": has_log(theta),
        "decisive": _decisive(theta) if order <= 3 else None,
        "drive": drive,
        "collapse": collapse,
        "confidence": confidence,
        "smoothing": smoothing,
        "figure": svg(
            figure,
            "loss",
            "Loss and net pull of the champion by probability of the target, beside cross-entropy",
        ),
    }


def _decisive(theta: Sequence[float]) -> list[float]:
    """Return the four numbers that decide a training with one-hot targets: c_y', c_hy, c_h, c_hh.

    Targets of 0 and 1 equal their squares, so c_y' is the sum of c_y and c_yy. The weight w of the
    logarithm is a fifth number, if theta has it.
    """
    c = coefficients(theta)
    return [c.cy + c.cyy, c.chy, c.ch, c.chh, *([c.log_weight] if has_log(theta) else [])]


def _search(record: SweepRecord) -> dict[str, object]:
    """Return the sum over the generations, and the figure if any fitness is finite."""
    generations = record.generations
    total = GenerationRecord(
        number=0,
        fitnesses=[fitness for g in generations for fitness in g.fitnesses],
        drawn=sum(g.drawn for g in generations),
        rejected=sum(g.rejected for g in generations),
        diverged=sum(g.diverged for g in generations),
        failed=sum(g.failed for g in generations),
        trained=sum(g.trained for g in generations),
        seconds=math.fsum(finite(g.seconds for g in generations)),
    )
    if total.best is None:
        return {"total": total, "figure": None}
    fitnesses = [(g.number, g.fitnesses) for g in generations]
    # What chance reaches on data of a user is not known, and a network that guesses may be well
    # calibrated.
    unknown = record.by_function or record.settings.get("evaluation_score") == "ece"
    classes = None if unknown else record.num_classes
    figure = search_figure(fitnesses, classes, record.score, record.share)
    return {
        "total": total,
        "figure": svg(
            figure,
            "search",
            f"Fitness by generation; the best is {text.score(total.best, record.share)}",
        ),
    }


def _attacks(record: SweepRecord) -> dict[str, object] | None:
    """Return accuracies by attack, loss and epsilon, and their figure; None without attacks."""
    if not record.robustness:
        return None
    by_attack: dict[str, dict[str, dict[float, list[float]]]] = {}
    for row in record.robustness:
        by_loss = by_attack.setdefault(_ATTACKS.get(row.attack, row.attack), {})
        by_loss.setdefault(row.loss, {})[row.epsilon] = row.accuracies
    points = {
        attack: {loss: list(by_epsilon.items()) for loss, by_epsilon in by_loss.items()}
        for attack, by_loss in by_attack.items()
    }
    figure = attack_figure(points, record.losses, record.epsilon_unit)
    epsilons = sorted({row.epsilon for row in record.robustness})
    return {
        "header": ["attack", "loss", *(f"ε = {epsilon_text(epsilon)}" for epsilon in epsilons)],
        "epsilons": epsilons,
        "by_attack": by_attack,
        "sizes": sorted({len(row.accuracies) for row in record.robustness}),
        "worst": _worst(record),
        "figure": svg(figure, "attacks", "Accuracy under attack"),
    }


def _worst(record: SweepRecord) -> Markup | None:
    """Return the figure of what the worst of all attacks left; None if it is not known."""
    points = record.worst()
    if not points:
        return None
    label = f"Accuracy under the worst of all attacks by ε: {_ranges(points)}"
    across = f"perturbation ε ({record.epsilon_unit})"
    return svg(bands_figure({_ATTACKS["worst"]: points}, record.losses, across), "worst", label)


def _ranges(points: Mapping[str, Sequence[tuple[float, Sequence[float]]]]) -> str:
    """Describe curves at their last point, for a reader who does not see their figure."""
    parts = []
    for loss, by_x in points.items():
        x, values = max(by_x, key=lambda point: point[0])
        if (known := 100 * finite(values)).size:
            span = f"{known.min():.1f} to {known.max():.1f}"
            parts.append(
                f"{loss} {known.mean():.1f} % at {epsilon_text(x)} ({span}, n = {known.size})"
            )
    return "; ".join(parts)


def _corruptions(record: SweepRecord) -> dict[str, object] | None:
    """Return mean accuracies with corruptions by loss, and their figure; None without any."""
    panels = record.corrupted()
    if not panels:
        return None
    rows = []
    for loss in next(iter(panels.values())):
        means = [_means(panels[name][loss]) for name in panels]
        clean = dict(panels[next(iter(panels))][loss]).get(0.0, [])
        every = [fmean(values) for values in zip(*means, strict=True)]
        rows.append((loss, [clean, *means, every]))
    label = "; ".join(f"{name} {_ranges(points)}" for name, points in panels.items())
    figure = bands_figure(panels, record.losses, "strength")
    return {
        "names": list(panels),
        "header": ["loss", "clean", *panels, "mean"],
        "rows": rows,
        "figure": svg(figure, "corruptions", f"Accuracy by strength of a corruption: {label}"),
    }


def _means(by_strength: Sequence[tuple[float, Sequence[float]]]) -> list[float]:
    """Return the mean over the strengths above 0, for each network."""
    columns = zip(*(values for strength, values in by_strength if strength), strict=True)
    return [fmean(values) for values in columns]


class _Tuned(NamedTuple):
    """A baseline: its accuracies by learning rate, and the rate chosen, if there is one.

    A baseline that was tuned over several label smoothings has a row for each, with its ``alpha``,
    and a rate chosen in one of them. Other baselines have no ``alpha``.
    """

    loss: str
    alpha: float | None
    accuracies: dict[float, list[float]]
    chosen: float | None


def _tuning(record: SweepRecord) -> dict[str, object]:
    """Return the grid of learning rates, and a row for each baseline and label smoothing."""
    compared = {row.loss: (row.learning_rate, row.label_smoothing) for row in record.comparison[1:]}
    rows = []
    for loss in dict.fromkeys(row.loss for row in record.tuning):
        tried = [row for row in record.tuning if row.loss == loss]
        means = {
            (row.learning_rate, row.label_smoothing): float(finite(row.accuracies).mean())
            for row in tried
            if finite(row.accuracies).size
        }
        best = max(means, key=means.__getitem__, default=(None, None))
        rate, smoothing = compared.get(loss, best)
        alphas = list(dict.fromkeys(row.label_smoothing for row in tried))
        for alpha in alphas:
            accuracies = {
                row.learning_rate: row.accuracies for row in tried if row.label_smoothing == alpha
            }
            shown = alpha if len(alphas) > 1 else None
            rows.append(_Tuned(loss, shown, accuracies, rate if alpha == smoothing else None))
    return {"rates": sorted({row.learning_rate for row in record.tuning}), "rows": rows}


class _Stage(NamedTuple):
    """A stage of the sweep: its seconds of wall time, and their percentage of the whole."""

    name: str
    seconds: float
    percentage: float


def _stages(record: SweepRecord) -> list[_Stage]:
    """Return the stages of a sweep, or none if its wall time is not known."""
    # The whole is the wall time, because the stages overlap on a cluster.
    total = record.wall_seconds
    if not total > 0:
        return []
    return [
        _Stage(name, seconds, 100 * seconds / total if math.isfinite(seconds) else 0.0)
        for name, seconds in record.seconds.items()
    ]
