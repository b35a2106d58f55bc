"""The verdict of a sweep in a sentence, and its comparison as a table and as numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import stdev

from taylorglo.report.record import ComparisonRow, StandingRecord, SweepRecord
from taylorglo.report.text import (
    NOTHING,
    difference,
    mean_and_deviation,
    number,
    sample_size,
)
from taylorglo.results import Guessing, LossResult
from taylorglo.stats import above_chance, complete_pairs, finite, holm

SIGNIFICANCE = 0.05
MOST_FREQUENT = "always the most frequent class"

# What a table has beside the score: its title, the measure's name in a row, and the values' text.
_Measure = tuple[str, str, Callable[..., str]]


def verdict(record: SweepRecord) -> str:
    """Return the outcome of a sweep in one sentence.

    The champion is compared with the baseline that has the highest mean test accuracy. They differ
    significantly if the p value of Welch's test, adjusted by Holm's method for the number of
    baselines, is below 0.05. A champion that learned nothing is said to have learned nothing first.
    """
    if not record.comparison or not finite(record.comparison[0].accuracies).size:
        return f"The champion has no test {record.score}, so nothing can be said about it."
    if beats_guessing(record) or record.guessing is None:
        return _comparison_verdict(record)
    score = "accuracy" if record.beside_accuracy else record.score
    accuracy = mean_and_deviation(_learned(record))
    guess = "of always naming the most frequent class"
    if record.guessing.highest is not None:
        guess = "that a network can expect which looks at no sample"
    return (
        f"The champion learned nothing: its test {score} of {accuracy} % is not "
        f"significantly above the {100 * record.guessing.to_beat:.2f} % {guess}. "
        f"{_comparison_verdict(record)}"
    )


def _comparison_verdict(record: SweepRecord) -> str:
    """Return in one sentence how the champion compares with the best baseline."""
    champion = record.comparison[0]
    best = best_baseline(record)
    if best is None:
        reached = mean_and_deviation(champion.accuracies, record.share) + _percent(record)
        return f"The champion reaches {reached}; there is no baseline to compare it with."
    baseline = record.comparison[best]
    apposition = ", the best baseline" if len(record.comparison) > 2 else ""
    if is_best_baseline(record):
        itself = f"tuned {baseline.loss} itself{apposition}"
        return f"The champion is {itself}: the search found no better loss."
    name = f"tuned {baseline.loss}{apposition}"
    points = _points(record, baseline.accuracies, champion.accuracies)
    sizes = _sample_sizes(champion, baseline)
    p_value = holm(_p_values(record))[best]
    if p_value is None:
        return f"No test was possible: the champion is {_above(record, points)} {name} ({sizes})."
    tests = sum(p is not None for p in _p_values(record))
    adjusted = "Holm-adjusted p" if tests > 1 else "p"
    evidence = f"({adjusted} {_relation(p_value)}, {sizes})"
    if p_value >= SIGNIFICANCE:
        gap = _above(record, points)
        return f"No significant difference: the champion is {gap} {name} {evidence}."
    side = "ahead of" if points > 0 else "behind"
    comma = "," if apposition else ""
    return f"The champion is {side} {name}{comma} by {_gap(record, points)} {evidence}."


def beats_guessing(record: SweepRecord) -> bool:
    """Return whether the champion is significantly better than a network that looks at no image.

    Such a network always names the most frequent class of the test split, which is at least as
    accurate as drawing a class by chance; or, if the score is the macro F1, draws each class as
    often as it occurs, which is better by this score. The test is the one-sided binomial test of
    the champion's mean test accuracy, at the level 0.05. If it is not known what such a network
    reaches, because a function of the user measures, every champion with a score counts as better.
    """
    accuracies = finite(_learned(record))
    if not accuracies.size:
        return False
    guessing = record.guessing
    if guessing is None:
        return True
    p_value = above_chance(float(accuracies.mean()), guessing.images, guessing.to_beat)
    return p_value < SIGNIFICANCE


def _learned(record: SweepRecord) -> Sequence[float]:
    """Return what tells of each of the champion's networks whether it has learned anything."""
    if not record.comparison:
        return []
    champion = record.comparison[0]
    return champion.measures.get("accuracy", []) if record.beside_accuracy else champion.accuracies


def beats_standing(record: SweepRecord) -> bool:
    """Return whether the new champion is significantly better than the standing one.

    The test is the paired t-test over the seeds.
    """
    if record.standing is None:
        return False
    return record.standing.p_value < SIGNIFICANCE and _gain(record, record.standing) > 0


def standing_verdict(record: SweepRecord) -> str:
    """Return in one sentence whether the new champion beats the standing one.

    The sentence is empty if there is no standing champion.
    """
    standing = record.standing
    if standing is None:
        return ""
    outcome = "beats" if beats_standing(record) else "does not beat"
    which = f"version {standing.version}, of search {standing.study!r}"
    pairs = len(_paired_with(record, standing)[0])
    if not pairs:
        return (
            f"The new champion {outcome} the standing one ({which}): no test was possible, because "
            "from no seed both have a score."
        )
    reached = mean_and_deviation(standing.accuracies, record.share) + _percent(record)
    seeds = len(standing.accuracies)
    size = f"{pairs}" if pairs == seeds else f"{pairs} of {seeds}"
    return (
        f"The new champion {outcome} the standing one ({which}, {reached}): it is "
        f"{_above(record, _gain(record, standing))} it "
        f"(paired t-test, p {_relation(standing.p_value)}, n = {size} seeds)."
    )


def table(record: SweepRecord) -> str:
    """Return the comparison as aligned plain text, for a terminal."""
    header, rows = comparison_cells(record)
    cells = [
        [cell.replace("−", "-").replace(NOTHING, "-") for cell in row] for row in [header, *rows]
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def comparison_cells(record: SweepRecord) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the comparison as text.

    Differences of shares to the champion are in percentage points. The last row is what a network
    reaches that looks at no image, if it is known.
    """
    measures = _shown_measures(record)
    header = [
        "loss",
        "learning rate",
        f"test {record.score} (%)" if record.share else f"test {record.score}",
        *(title for title, _, _ in measures),
        "n",
        "vs champion (points)" if record.share else "vs champion",
        "p",
        "p (Holm)",
    ]
    tested = _p_values(record)
    rows = [
        [
            row.loss,
            number(row.learning_rate),
            mean_and_deviation(row.accuracies, record.share),
            *(shown(row.measures.get(name, [])) for _, name, shown in measures),
            sample_size(row.accuracies),
            _difference(record, row),
            _p_text(p_value),
            _p_text(adjusted),
        ]
        for row, p_value, adjusted in zip(record.comparison, tested, holm(tested), strict=True)
    ]
    if record.guessing is None:
        return header, rows
    return header, [*rows, _reference(record, record.guessing, measures)]


def losses(record: SweepRecord) -> list[LossResult]:
    """Return the rows of the comparison as numbers, the champion first."""
    tested = _p_values(record)
    means = [_mean(row.accuracies) for row in record.comparison]
    results = []
    for place, (row, adjusted) in enumerate(zip(record.comparison, holm(tested), strict=True)):
        known, mean, difference_to_first = finite(row.accuracies).tolist(), means[place], None
        # A baseline that the champion is itself is not compared with it.
        if row.p_value is not None and mean is not None and means[0] is not None:
            difference_to_first = mean - means[0]
        result = LossResult(
            loss=row.loss,
            learning_rate=row.learning_rate,
            label_smoothing=row.label_smoothing,
            scores=[score if math.isfinite(score) else None for score in row.accuracies],
            n=len(known),
            mean=mean,
            standard_deviation=stdev(known) if len(known) > 1 else None,
            difference=difference_to_first,
            p=tested[place],
            p_holm=adjusted,
        )
        results.append(result)
    return results


def _mean(scores: Sequence[float]) -> float | None:
    """Return the mean of the known scores; None if there is none."""
    known = finite(scores)
    return float(known.mean()) if known.size else None


def _reference(record: SweepRecord, guessing: Guessing, measures: Sequence[_Measure]) -> list[str]:
    """Return the row of a network that always names the most frequent class.

    It has an accuracy, and no likelihood and no calibration worth naming.
    """
    guess = [guessing.accuracy]
    score, gap = NOTHING, NOTHING
    if not record.beside_accuracy:
        score = mean_and_deviation(guess)
        if record.comparison and finite(record.comparison[0].accuracies).size:
            points = _points(record, record.comparison[0].accuracies, guess)
            gap = difference(points, record.share, sign=True)
    others = [
        mean_and_deviation(guess) if name == "accuracy" else NOTHING for _, name, _ in measures
    ]
    return [MOST_FREQUENT, NOTHING, score, *others, NOTHING, gap, NOTHING, NOTHING]


def _shown_measures(record: SweepRecord) -> list[_Measure]:
    """Return what the table has beside the score: title, name of the measure, and its text.

    That is the calibration error if it was measured. Beside a score that says nothing of it, the
    table has the accuracy; and beside the likelihood, the negative log-likelihood.
    """
    measures: list[_Measure] = []
    if record.beside_accuracy:
        measures.append(("accuracy (%)", "accuracy", mean_and_deviation))
    if record.settings.get("evaluation_score") == "negative-log-likelihood":
        measures.append(("NLL (nats)", "cross_entropy", partial(mean_and_deviation, share=False)))
    measures.append(("ECE (%)", "calibration_error", mean_and_deviation))
    known = {name for row in record.comparison for name in row.measures}
    return [measure for measure in measures if measure[1] in known]


def headline(record: SweepRecord) -> dict[str, float]:
    """Return the outcome in three numbers, as far as they are known.

    These are the mean test scores, such as accuracies in [0, 1], of the champion and of the best
    baseline, and the p value of Welch's test between them, adjusted by Holm's method.
    """
    numbers: dict[str, float | None] = {}
    best = best_baseline(record)
    rows = {f"champion_{record.metric}": 0, f"best_baseline_{record.metric}": best}
    for name, index in rows.items():
        numbers[name] = None if index is None else _mean(record.comparison[index].accuracies)
    numbers["p_value"] = holm(_p_values(record))[best] if best is not None else None
    return {name: value for name, value in numbers.items() if value is not None}


def markdown(record: SweepRecord, links: Mapping[str, str]) -> str:
    """Return a summary in Markdown, for a page of another system.

    Args:
        record: of the sweep.
        links: where to read more, by name; an address that is not http(s) is shown as it is.
    """
    header, rows = comparison_cells(record)
    lines = [f"## Sweep {record.name}", "", verdict(record), ""]
    lines += [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    lines.append("")
    for name, address in links.items():
        is_page = address.startswith(("http://", "https://"))
        lines.append(f"- {name}: " + (f"[{address}]({address})" if is_page else f"`{address}`"))
    return "\n".join(lines) + "\n"


def best_baseline(record: SweepRecord) -> int | None:
    """Return the index in ``comparison`` of the baseline with the highest mean test accuracy.

    Returns:
        None if no baseline has a test accuracy.
    """
    means = {
        index: float(finite(row.accuracies).mean())
        for index, row in enumerate(record.comparison)
        if index > 0 and finite(row.accuracies).size
    }
    return max(means, key=means.__getitem__, default=None)


def is_best_baseline(record: SweepRecord) -> bool:
    """Return whether the champion is the best baseline itself, so that there is nothing to test."""
    best = best_baseline(record)
    return best is not None and record.comparison[best].loss == record.champion.baseline


def _points(record: SweepRecord, reference: Sequence[float], accuracies: Sequence[float]) -> float:
    """Return how far the mean score is above that of the reference; for shares, in points."""
    scale = 100 if record.share else 1
    return scale * float(finite(accuracies).mean() - finite(reference).mean())


def _gain(record: SweepRecord, standing: StandingRecord) -> float:
    """Return how far the new champion is above the standing one; for shares, in points.

    The seeds count from which both have a score.
    """
    new, former = _paired_with(record, standing)
    return _points(record, former, new)


def _paired_with(record: SweepRecord, standing: StandingRecord) -> tuple[list[float], list[float]]:
    """Return the scores of the new and the standing champion from the seeds that gave both one."""
    return complete_pairs(record.comparison[0].accuracies, standing.accuracies)


def _difference(record: SweepRecord, row: ComparisonRow) -> str:
    """Return how far a baseline is above the champion, as text."""
    champion = record.comparison[0]
    tested = finite(champion.accuracies).size and finite(row.accuracies).size
    if row is champion or row.loss == record.champion.baseline or not tested:
        return NOTHING
    points = _points(record, champion.accuracies, row.accuracies)
    return difference(points, record.share, sign=True)


def _above(record: SweepRecord, points: float) -> str:
    side = "below" if points < 0 else "above"
    return f"{_gap(record, points)} {side}"


def _gap(record: SweepRecord, points: float) -> str:
    """Return the size of a difference with its unit."""
    return difference(abs(points), record.share) + (" points" if record.share else "")


def _percent(record: SweepRecord) -> str:
    return " %" if record.share else ""


def _sample_sizes(champion: ComparisonRow, baseline: ComparisonRow) -> str:
    first = finite(champion.accuracies).size
    second = finite(baseline.accuracies).size
    return f"n = {first}" if first == second else f"n = {first} and {second}"


def _p_values(record: SweepRecord) -> list[float | None]:
    """Return the p value of each row of the comparison; None if no test was possible."""
    return [
        row.p_value if row.p_value is not None and math.isfinite(row.p_value) else None
        for row in record.comparison
    ]


def _p_text(p_value: float | None) -> str:
    if p_value is None:
        return NOTHING
    if p_value < 0.001:
        return "< 0.001"
    return f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def _relation(p_value: float) -> str:
    """Return a p value with its sign of relation, such as ``= 0.04``."""
    text = _p_text(p_value)
    return text if text.startswith("<") else f"= {text}"
