"""``taylorglo status``: where a sweep stands."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from taylorglo.errors import InputError
from taylorglo_pipelines.commands.options import (
    echo,
    echo_json,
    folder_option,
    json_option,
    sweep_argument,
)

if TYPE_CHECKING:
    from taylorglo_pipelines.commands.places import Places, Sweep

_NEXT = {
    "running": "",
    "interrupted": "taylorglo run with the same configuration goes on from there",
    "unfinished": "taylorglo run with the same configuration goes on with the search",
    "finished": "",
}


# What a run does after its last generation leaves no trace in the study.
_AFTER_SEARCH = (
    "after the last generation, champion and baselines are trained in full, compared and attacked"
)


@click.command("status")
@sweep_argument("name", required=False)
@folder_option
@json_option
def command(name: str | None, folder: Path, as_json: bool) -> None:
    """Tell where a sweep stands.

    It is running, interrupted, unfinished (the search has more generations) or finished. SWEEP is
    its name; without one, it is the sweep that was written to last.
    """
    from taylorglo_pipelines.commands.places import Places

    places = Places.open(folder)
    sweep = places.sweep(name) if name else _latest(places)
    if as_json:
        echo_json(sweep.to_json())
    else:
        echo("\n".join(_lines(sweep)))


def _latest(places: "Places") -> "Sweep":
    """Return the sweep that was written to last."""
    sweeps = list(map(places.sweep, places.names()))
    if not sweeps:
        raise InputError(f"{places.folder}: there are no sweeps yet")
    return max(sweeps, key=lambda sweep: sweep.last.timestamp() if sweep.last else 0.0)


def _lines(sweep: "Sweep") -> list[str]:
    """Return what a person reads of a sweep."""
    from taylorglo.report.text import amount
    from taylorglo.scores import is_share

    progress, share = sweep.progress, is_share(sweep.progress.score)
    generations = "" if progress.generations is None else f" of {progress.generations}"
    search = f" (search {sweep.study.name!r})" if sweep.study.name != sweep.name else ""
    lines = [f"sweep       {sweep.name}{search}: {sweep.state}"]
    if sweep.last is not None:
        lines.append(f"last write  {sweep.last:%Y-%m-%d %H:%M:%S} UTC")
    lines += [
        f"generation  {progress.generation}{generations}: {progress.finished} of "
        f"{progress.popsize} candidates finished",
        f"candidates  {progress.trained} trained, {progress.rejected} rejected in all",
    ]
    if progress.best is not None and progress.median is not None:
        best, middle = amount(progress.best, share), amount(progress.median, share)
        lines.append(f"fitness     best {best}, median {middle} in this generation")
    if sweep.result is not None:
        lines.append(f"verdict     {sweep.result.verdict}")
    after = _NEXT[sweep.state]
    if sweep.state == "running" and progress.generation == progress.generations:
        after = _AFTER_SEARCH
    if after:
        lines.append(f"next        {after}")
    return lines
