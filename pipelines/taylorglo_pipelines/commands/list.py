"""``taylorglo list``: the sweeps of a folder of runs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from taylorglo.errors import InputError
from taylorglo_pipelines.commands.options import (
    FILE,
    RUNS,
    aligned,
    echo,
    echo_json,
    json_option,
)

if TYPE_CHECKING:
    from taylorglo_pipelines.commands.places import Sweep

_HEAD = ("SWEEP", "STATE", "GENERATION", "LAST (UTC)", "CHAMPION", "VERDICT")


@click.command("list")
@click.argument("folder", metavar="[FOLDER]", type=FILE, default=RUNS)
@json_option
def command(folder: Path, as_json: bool) -> None:
    """List the sweeps of a folder of runs.

    FOLDER is services.work_dir of the sweeps, runs by default. CHAMPION is the mean test score of
    the champion of the last finished run, with the standard deviation over its seeds.
    """
    from taylorglo_pipelines.commands.places import Places

    places = Places.open(folder)
    sweeps, problems = [], []
    for name in places.names():
        try:
            sweeps.append(places.sweep(name))
        except InputError as error:
            problems.append(str(error))
    if as_json:
        echo_json([sweep.to_json() for sweep in sweeps])
    elif sweeps:
        echo(aligned([_HEAD, *map(_row, sweeps)]))
    elif not problems:
        echo(f"there are no sweeps in {places.folder}")
    if problems:
        raise InputError("\n".join(problems))


def _row(sweep: "Sweep") -> tuple[str, ...]:
    """Return what the table shows of a sweep."""
    from taylorglo.report.text import mean_and_deviation
    from taylorglo.scores import is_share

    progress, result = sweep.progress, sweep.result
    of = "" if progress.generations is None else f" of {progress.generations}"
    share = is_share(progress.score)
    champion = mean_and_deviation(sweep.champion_scores, share) + (" %" if share else "")
    return (
        sweep.name,
        sweep.state,
        f"{progress.generation}{of}",
        "-" if sweep.last is None else f"{sweep.last:%Y-%m-%d %H:%M}",
        champion if sweep.champion_scores else "-",
        "-" if result is None else result.verdict,
    )
