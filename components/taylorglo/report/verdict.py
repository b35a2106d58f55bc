"""The verdict of a sweep in a sentence, its comparison as a table, and numbers as text."""

import math
from collections.abc import Sequence

import numpy as np

from taylorglo.report.figures import finite
from taylorglo.report.record import ComparisonRow, StandingRecord, SweepRecord

SIGNIFICANCE = 0.05
NOTHING = "–"


def verdict(record: SweepRecord) -> str:
    """The outcome in one sentence: the champion against the baseline with the highest mean test accuracy.

    A difference counts as one when Welch's p, adjusted by Holm's method over all baselines, is below 0.05.
    """
    if not record.comparison or not finite(record.comparison[0].accuracies).size:
        return "The champion has no test accuracy, so nothing can be said about it."
    champion, best = record.comparison[0], best_baseline(record)
    if best is None:
        return f"The champion reaches {percent(champion.accuracies)} %; there is no baseline to compare it with."
    rival = record.comparison[best]
    ours, theirs = finite(champion.accuracies), finite(rival.accuracies)
    points = 100 * float(ours.mean() - theirs.mean())
    name = f"tuned {rival.loss}" + (", the best baseline," if len(record.comparison) > 2 else "")
    sizes = f"n = {ours.size}" if ours.size == theirs.size else f"n = {ours.size} and {theirs.size}"
    p = _holm(record.comparison)[best]
    if p is None:
        where = _above(points)
        return f"No test was possible: the champion is {where} {name.rstrip(',')} ({sizes})."
    adjusted = (
        "Holm-adjusted p" if sum(_p(row) is not None for row in record.comparison) > 1 else "p"
    )
    evidence = f"({adjusted} {_p_text(p, equals=True)}, {sizes})"
    if p >= SIGNIFICANCE:
        return f"No significant difference: the champion is {_above(points)} {name.rstrip(',')} {evidence}."
    side = "ahead of" if points > 0 else "behind"
    return f"The champion is {side} {name} by {abs(points):.2f} points {evidence}."


def beats_standing(record: SweepRecord) -> bool:
    """Whether the new champion is significantly better than the standing one, by the paired test."""
    return bool(
        record.standing
        and record.standing.p_value < SIGNIFICANCE
        and _gain(record, record.standing) > 0
    )


def standing_verdict(record: SweepRecord) -> str:
    """In one sentence, whether the new champion beats the standing one; empty where there is none to beat."""
    if record.standing is None:
        return ""
    standing, points = record.standing, _gain(record, record.standing)
    outcome = "beats" if beats_standing(record) else "does not beat"
    return (
        f"The new champion {outcome} the standing one (version {standing.version}, of search {standing.study!r}, "
        f"{percent(standing.accuracies)} %): it is {_above(points)} it (paired t-test, "
        f"p {_p_text(standing.p_value, equals=True)}, n = {len(standing.accuracies)} seeds)."
    )


def _gain(record: SweepRecord, standing: StandingRecord) -> float:
    return 100 * float(np.mean(record.comparison[0].accuracies) - np.mean(standing.accuracies))


def table(record: SweepRecord) -> str:
    """The comparison as aligned plain text, for a terminal."""
    header, rows = comparison_cells(record)
    cells = [
        [cell.replace("−", "-").replace(NOTHING, "-") for cell in row] for row in [header, *rows]
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def comparison_cells(record: SweepRecord) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison as text; differences to the champion are in percentage points."""
    header = [
        "loss",
        "learning rate",
        "test accuracy (%)",
        "n",
        "vs champion (points)",
        "p",
        "p (Holm)",
    ]
    rows = []
    for index, (row, adjusted) in enumerate(
        zip(record.comparison, _holm(record.comparison), strict=True)
    ):
        ours, theirs = finite(record.comparison[0].accuracies), finite(row.accuracies)
        points = (
            100 * float(theirs.mean() - ours.mean())
            if index and ours.size and theirs.size
            else None
        )
        rows.append(
            [
                row.loss,
                number(row.learning_rate),
                percent(row.accuracies),
                count(row.accuracies),
                NOTHING if points is None else f"{points:+.2f}".replace("-", "−"),
                _p_text(_p(row)),
                _p_text(adjusted),
            ]
        )
    return header, rows


def best_baseline(record: SweepRecord) -> int | None:
    """The index in ``comparison`` of the baseline with the highest mean test accuracy."""
    means = {
        i: float(finite(row.accuracies).mean())
        for i, row in enumerate(record.comparison)
        if finite(row.accuracies).size
    }
    return max((i for i in means if i), key=lambda i: means[i], default=None)


def _p(row: ComparisonRow) -> float | None:
    return row.p_value if row.p_value is not None and math.isfinite(row.p_value) else None


def _holm(rows: Sequence[ComparisonRow]) -> list[float | None]:
    """p-values adjusted by Holm's step-down method over those rows that have one."""
    ranked = sorted((p, index) for index, row in enumerate(rows) if (p := _p(row)) is not None)
    adjusted: list[float | None] = [None] * len(rows)
    largest = 0.0
    for rank, (p, index) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * p))
        adjusted[index] = largest
    return adjusted


def percent(accuracies: Sequence[float]) -> str:
    """Mean and sample standard deviation of accuracies in [0, 1], in percent; what is not finite is left out."""
    values = 100 * finite(accuracies)
    if not values.size:
        return NOTHING
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if values.size > 1 else "")


def count(accuracies: Sequence[float]) -> str:
    """How many accuracies there are, and of how many where some are not finite."""
    good = finite(accuracies).size
    return str(good) if good == len(accuracies) else f"{good} of {len(accuracies)}"


def _above(points: float) -> str:
    return f"{abs(points):.2f} points {'below' if points < 0 else 'above'}"


def _p_text(p: float | None, equals: bool = False) -> str:
    if p is None:
        return NOTHING
    if p < 0.001:
        return "< 0.001"
    return ("= " if equals else "") + (f"{p:.3f}" if p < 0.1 else f"{p:.2f}")


def number(value: float | None) -> str:
    """A number to four significant digits, or a dash where there is none."""
    return (
        NOTHING if value is None or not math.isfinite(value) else f"{value:.4g}".replace("-", "−")
    )
