"""``taylorglo compare``: the results of two sweeps side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from taylorglo.errors import InputError
from taylorglo_pipelines.commands.options import (
    aligned,
    echo,
    echo_json,
    folder_option,
    json_option,
    sweep_argument,
)

if TYPE_CHECKING:
    from taylorglo.results import SweepResult
    from taylorglo_pipelines.commands.places import Places


@dataclass(frozen=True)
class Row:
    """A loss in both sweeps.

    Attributes:
        loss: its name.
        first: its test scores in the first sweep; empty if it was not trained there.
        second: its test scores in the second sweep.
        difference: how far the mean of the second is above that of the first; None if one of the
            two has no score, or if the scores cannot be compared.
        p_value: of the test of that difference; None if there is no test.
    """

    loss: str
    first: list[float]
    second: list[float]
    difference: float | None
    p_value: float | None


@click.command("compare")
@sweep_argument("first")
@sweep_argument("second")
@folder_option
@json_option
def command(first: str, second: str, folder: Path, as_json: bool) -> None:
    """Put the results of two finished sweeps side by side.

    The difference is that of the second SWEEP to the first one. It is tested if both sweeps have
    the same data: by the paired t-test if the trainings in full have the same seeds, else by
    Welch's test.
    """
    from taylorglo_pipelines.commands.places import Places

    places = Places.open(folder)
    results = _result(places, first), _result(places, second)
    kind, remark = _test(*results)
    rows = _rows(*results, kind)
    if as_json:
        echo_json(_document(results, rows, kind, remark))
        return
    echo(aligned([_head(*results), *(_cells(row, results[0]) for row in rows)]))
    echo("")
    echo(remark)
    for result in results:
        echo(f"{result.sweep}: {result.verdict}")


def _result(places: "Places", name: str) -> "SweepResult":
    """Return the result of a finished sweep.

    Raises:
        InputError: there is no such sweep, or no run of it has finished.
    """
    sweep = places.sweep(name)
    if sweep.result is None:
        raise InputError(
            f"sweep {name!r} is {sweep.state} and has no result yet, in {places.folder}; run it to "
            "its end first (a sweep of an older version is run again, which trains nothing)"
        )
    return sweep.result


def _test(first: "SweepResult", second: "SweepResult") -> tuple[str, str]:
    """Return which test the difference of two sweeps allows, and that in words.

    Returns:
        ``paired``, ``welch``, ``none``, or ``no difference`` if the scores have nothing in common.
    """
    if first.score != second.score:
        return "no difference", (
            f"The scores are different ones ({first.score} and {second.score}), so there is no "
            "difference to tell."
        )
    if (first.data, first.fingerprint) != (second.data, second.fingerprint):
        return "none", (
            f"The data are different ({first.data} {first.fingerprint[:12]} and {second.data} "
            f"{second.fingerprint[:12]}), so the differences are not tested."
        )
    if first.seeds == second.seeds:
        return "paired", (
            f"Same data and same {len(first.seeds)} seeds: p is that of the paired t-test over the "
            "seeds, not adjusted for the number of rows."
        )
    return "welch", (
        "Same data and other seeds: p is that of Welch's test, not adjusted for the number of rows."
    )


def _rows(first: "SweepResult", second: "SweepResult", kind: str) -> list[Row]:
    """Return a row for each loss of either sweep, in the order of the first one."""
    scores: list[Mapping[str, list[float]]] = [
        {loss.loss: [math.nan if s is None else s for s in loss.scores] for loss in result.losses}
        for result in (first, second)
    ]
    return [
        _row(loss, scores[0].get(loss, []), scores[1].get(loss, []), kind)
        for loss in {**scores[0], **scores[1]}
    ]


def _row(loss: str, first: list[float], second: list[float], kind: str) -> Row:
    from taylorglo.stats import finite, paired, welch

    known = [finite(values).tolist() for values in (first, second)]
    if not all(known) or kind == "no difference":
        return Row(loss, first, second, None, None)
    difference = fmean(known[1]) - fmean(known[0])
    if kind == "none" or min(map(len, known)) < 2:
        return Row(loss, first, second, difference, None)
    test = paired if kind == "paired" else welch
    p_value = test(first, second)
    return Row(loss, first, second, difference, p_value if math.isfinite(p_value) else None)


def _head(first: "SweepResult", second: "SweepResult") -> Sequence[str]:
    from taylorglo.scores import is_share, words

    share = is_share(first.score)
    unit = " (points)" if share else ""
    score = f"test {words(first.score)}" + (" (%)" if share else "")
    return (score, first.sweep, second.sweep, f"difference{unit}", "p")


def _cells(row: Row, result: "SweepResult") -> Sequence[str]:
    """Return the cells of a row as text."""
    from taylorglo.report.text import difference, mean_and_deviation
    from taylorglo.scores import is_share

    share = is_share(result.score)
    points = "-"
    if row.difference is not None:
        points = difference(row.difference * (100 if share else 1), share, sign=True)
    p_value = "-"
    if row.p_value is not None:
        p_value = "< 0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}"
    scores = (
        f"{mean_and_deviation(values, share)} (n = {len(values)})" if values else "-"
        for values in (row.first, row.second)
    )
    return (row.loss, *scores, points, p_value)


def _document(
    results: Sequence["SweepResult"], rows: Sequence[Row], kind: str, remark: str
) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    first, second = results
    return {
        "sweeps": [
            {"sweep": r.sweep, "study": r.study, "score": r.score, "verdict": r.verdict}
            for r in results
        ],
        "same_data": (first.data, first.fingerprint) == (second.data, second.fingerprint),
        "same_seeds": first.seeds == second.seeds,
        "test": kind if kind in ("paired", "welch") else None,
        "remark": remark,
        "losses": [asdict(row) for row in rows],
    }
