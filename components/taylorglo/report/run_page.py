"""What the page of a run in MLflow shows: description, outcome, metrics, curves and figures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from statistics import fmean
from typing import TYPE_CHECKING

from taylorglo.errors import InputError
from taylorglo.loss.polynomial import checked_theta
from taylorglo.report.figures import (
    attack_figure,
    bands_figure,
    examples_figure,
    loss_figure,
    png,
    search_figure,
    seeds_figure,
    trade_off_figure,
)
from taylorglo.report.formula import Term, expanded
from taylorglo.report.record import SweepRecord
from taylorglo.report.text import number
from taylorglo.report.verdict import (
    SIGNIFICANCE,
    beats_guessing,
    best_baseline,
    comparison_cells,
    headline,
    is_best_baseline,
    standing_verdict,
    verdict,
)
from taylorglo.scores import known
from taylorglo.stats import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Metrics that a repeated report would measure anew.
TIMES = ("seconds", "training_share")

_THOUSANDTHS = 1000  # steps of MLflow are whole numbers: an epsilon counts in thousandths
_NO_BREAK = "\N{NO-BREAK SPACE}"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def description(record: SweepRecord, links: Mapping[str, str]) -> str:
    """Return the description of a run in Markdown: verdict, links, table and formula.

    MLflow shows the first lines of it, and the rest by a click.

    Args:
        record: of the sweep.
        links: address by its text.
    """
    header, rows = comparison_cells(record)
    lines = [f"**{verdict(record)}**", ""]
    lines += [" · ".join(f"[{text}]({address})" for text, address in links.items()), ""]
    if standing := standing_verdict(record):
        lines += [standing, ""]
    lines += [
        _spaced(header),
        f"|{'---|' * len(header)}",
        *(
            _spaced([loss, *(cell.replace(" ", _NO_BREAK) for cell in cells)])
            for loss, *cells in rows
        ),
    ]
    lines += ["", "The champion, for targets t and probabilities h:", ""]
    lines += ["```", *formula(record), "```"]
    return "\n".join(lines) + "\n"


def _spaced(row: Sequence[str]) -> str:
    """Return a row of a table whose columns are apart: MLflow shows tables without any space."""
    return "| " + " | ".join(cell + 2 * _NO_BREAK for cell in row) + " |"


def formula(record: SweepRecord) -> list[str]:
    """Return the champion's loss as lines of text, multiplied out in powers of t and h."""
    theta, order = checked_theta(record.champion.theta, record.champion.order)
    terms = [term for term in expanded(theta, order) if term.coefficient and not term.idle]
    if not terms:
        return ["loss = 0"]
    products = [f"{_signed(term.coefficient)} {_factors(term)}" for term in terms]
    products[0] = products[0].removeprefix("+ ")
    # A few terms a line: the formula of a high order is long.
    lines = ["  ".join(products[first : first + 4]) for first in range(0, len(products), 4)]
    lines[-1] += " )"
    opening = "loss = −Σₖ ( "
    margins = [opening, *(" " * len(opening) for _ in lines[1:])]
    return [margin + line for margin, line in zip(margins, lines, strict=True)]


def _signed(coefficient: float) -> str:
    sign = "−" if coefficient < 0 else "+"
    return f"{sign} {number(abs(coefficient))}"


def _factors(term: Term) -> str:
    """Return the powers of a term as text, such as t²h."""
    if term.logarithm:
        return "t·log h"

    def power(base: str, exponent: int) -> str:
        if exponent == 0:
            return ""
        return base + (str(exponent).translate(_SUPERSCRIPTS) if exponent > 1 else "")

    return power("t", term.a) + power("h", term.b)


def outcome(record: SweepRecord) -> str:
    """Return the outcome in a word or two, to search runs by.

    Returns:
        ``ahead`` or ``behind`` if champion and best baseline differ significantly, else ``no
        significant difference``; ``no better loss`` if the champion is the best baseline itself;
        ``learned nothing`` or ``not tested`` if that comes first.
    """
    numbers, itself = headline(record), is_best_baseline(record)
    if f"champion_{record.metric}" not in numbers or not (itself or "p_value" in numbers):
        return "not tested"
    if not beats_guessing(record):
        return "learned nothing"
    if itself:
        return "no better loss"
    if numbers["p_value"] >= SIGNIFICANCE:
        return "no significant difference"
    return "ahead" if _difference(record, numbers) > 0 else "behind"


def _difference(record: SweepRecord, numbers: Mapping[str, float]) -> float:
    return numbers[f"champion_{record.metric}"] - numbers[f"best_baseline_{record.metric}"]


def metrics(record: SweepRecord) -> dict[str, float]:
    """Return the few numbers that a run is compared by.

    These are the three of :func:`taylorglo.report.verdict.headline`, and the difference between
    the first two; ``robust_accuracy``, which the worst attack at the largest epsilon left the
    champion; the number of trainings; wall time; and the part of it inside trainings.
    """
    numbers = headline(record)
    tested = best_baseline(record) is not None and not is_best_baseline(record)
    if tested and f"champion_{record.metric}" in numbers:
        numbers["difference"] = _difference(record, numbers)
    worst = [row for row in record.robustness if (row.loss, row.attack) == ("champion", "worst")]
    if worst:
        strongest = max(worst, key=lambda row: row.epsilon)
        if left := known(strongest.accuracies):
            numbers["robust_accuracy"] = fmean(left)
    trained = sum(generation.trained for generation in record.generations)
    tuned = sum(len(row.accuracies) for row in record.tuning)
    compared = sum(len(row.accuracies) for row in record.comparison)
    return numbers | {
        "trainings": trained + tuned + compared,
        "seconds": record.wall_seconds,
        "training_share": record.training_share,
    }


def curves(record: SweepRecord) -> dict[str, list[tuple[int, float]]]:
    """Return accuracies by attack and loss, and by corruption and loss.

    The steps are epsilon in thousandths, and the strength of the corruption from 1.
    """
    by_name: dict[str, list[tuple[int, float]]] = {}
    for row in record.robustness:
        if left := known(row.accuracies):
            name = f"robust_accuracy/{row.attack}/{row.loss}"
            point = (round(_THOUSANDTHS * row.epsilon), fmean(left))
            by_name.setdefault(name, []).append(point)
    for corrupted in record.corruptions:
        if left := known(corrupted.accuracies):
            # MLflow's page sorts by name, and the curves over the generations come first.
            name = f"under_corruption/{corrupted.corruption}/{corrupted.loss}"
            by_name.setdefault(name, []).append((corrupted.strength, fmean(left)))
    return by_name


def front_table(record: SweepRecord) -> bytes:
    """Return the Pareto front of the candidates as CSV; empty if no candidate was attacked."""
    if not record.front:
        return b""
    lines = [["trial", "generation", record.metric, f"robust_{record.metric}", "champion"]]
    for one in record.front:
        scores = [f"{one.score:.6g}", f"{one.robust_score:.6g}"]
        champion = "yes" if one.champion else "no"
        lines.append([str(one.trial), str(one.generation), *scores, champion])
    return "".join(f"{','.join(line)}\n" for line in lines).encode()


def images(record: SweepRecord) -> dict[str, bytes]:
    """Return the figures of the report as PNG, by their file names in the order of the report."""
    return {f"{name}.png": png(figure) for name, figure in _figures(record)}


def _figures(record: SweepRecord) -> "Iterator[tuple[str, Figure]]":
    # A theta that cannot be drawn is no reason to have no other figure.
    with suppress(InputError):
        yield "1-loss", loss_figure({"champion": record.champion.theta}, record.num_classes)
    if record.comparison:
        seeds = [(row.loss, row.accuracies, row.curve) for row in record.comparison]
        yield "2-seeds", seeds_figure(seeds, record.score, record.share)
    fitnesses = [(each.number, each.fitnesses) for each in record.generations]
    if finite([value for _, values in fitnesses for value in values]).size:
        yield "3-search", search_figure(fitnesses, None, record.score, record.share)
    if record.front:
        others = [one.scores for one in record.trade_offs if not one.on_front]
        front = [one.scores for one in record.front]
        chosen = record.chosen.scores if record.chosen else None
        yield (
            "3-trade-off",
            trade_off_figure(others, front, chosen, record.score, record.share),
        )
    if points := record.worst():
        across = f"perturbation ε ({record.epsilon_unit})"
        yield "4-robustness", bands_figure({"worst of all": points}, record.losses, across)
    if record.robustness:
        yield "5-attacks", attack_figure(_attacks(record), record.losses, record.epsilon_unit)
    if record.examples:
        yield "6-attacked-images", examples_figure(record.examples)
    if panels := record.corrupted():
        yield "7-corruptions", bands_figure(panels, record.losses, "strength")


def _attacks(record: SweepRecord) -> dict[str, dict[str, list[tuple[float, list[float]]]]]:
    """Return (epsilon, accuracies) by attack and loss."""
    points: dict[str, dict[str, list[tuple[float, list[float]]]]] = {}
    for row in record.robustness:
        by_loss = points.setdefault(row.attack, {})
        by_loss.setdefault(row.loss, []).append((row.epsilon, row.accuracies))
    return points
