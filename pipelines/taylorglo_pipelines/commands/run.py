"""``taylorglo run``: a sweep on this machine."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from taylorglo import __version__
from taylorglo.addresses import is_sqlite
from taylorglo.errors import InputError
from taylorglo.services import layout
from taylorglo_pipelines.commands.options import echo_json, json_option, sweep_options

if TYPE_CHECKING:
    from taylorglo.results import SweepResult
    from taylorglo_pipelines.config import Config
    from taylorglo_pipelines.local.runner import Places, Runner


@click.command("run")
@sweep_options
@click.option(
    "--runner",
    type=click.Choice(("subprocess", "docker")),
    default="subprocess",
    show_default=True,
    help="Run each task as a process, or as a container of the image with Docker or Podman.",
)
@click.option("--quiet", is_flag=True, help="Print the table and the verdict alone.")
@json_option
def command(
    path: Path, overrides: Sequence[str], *, runner: "Runner", quiet: bool, as_json: bool
) -> None:
    """Run a sweep on this machine, or go on with an interrupted one.

    CONFIG is a YAML file, such as pipelines/configs/digits.yaml.
    """
    from taylorglo_pipelines import config

    settings = config.load(path, overrides)
    terminal: TextIO | None = sys.stderr if as_json else sys.stdout
    if quiet:
        terminal = None
    if terminal:
        _announce(settings, terminal)
    # kfp takes a second to import; a mistake in the configuration is reported before.
    from taylorglo_pipelines.local.runner import run

    places = run(settings, runner, terminal)
    if as_json:
        named = {**_places(settings, places), "log": str(places.log)}
        echo_json(document(_result(settings, places), named))
    elif quiet:
        result = _result(settings, places)
        click.echo(f"{result.table}\n\n{result.verdict}")
    else:
        click.echo("")
        for name, place in _places(settings, places).items():
            click.echo(f"{name:9} {place}")


def _announce(settings: "Config", terminal: TextIO) -> None:
    """Print what is about to be run."""
    click.echo(
        f"taylorglo {__version__}: sweep {settings.name!r}, {settings.pipeline.generations} "
        f"generations of {settings.search.popsize} candidates, in {settings.services.folder}/",
        file=terminal,
    )


def _result(settings: "Config", places: "Places") -> "SweepResult":
    """Return the result that the run has just written."""
    from taylorglo.services.memo import read_result
    from taylorglo.services.storage import open_store

    result = read_result(open_store(places.store), settings.name)
    if result is None:
        raise InputError(f"{places.store}: the result of sweep {settings.name!r} is gone")
    return result


def document(result: "SweepResult", places: Mapping[str, str]) -> dict[str, object]:
    """Return the result of a run as JSON values: the comparison as rows of numbers, not as a table.

    Args:
        result: of the run.
        places: where it wrote what.
    """
    values = result.to_json()
    del values["table"]
    return {**values, "losses": _rows(result), "places": dict(places)}


def _rows(result: "SweepResult") -> list[dict[str, object]]:
    """Return the rows of the comparison; differences and tests are against the champion."""
    from taylorglo.stats import finite, holm, welch

    scores = [[math.nan if s is None else s for s in row.scores] for row in result.losses]
    means = [float(finite(row).mean()) if finite(row).size else math.nan for row in scores]
    deviations = [
        float(finite(row).std(ddof=1)) if finite(row).size > 1 else math.nan for row in scores
    ]
    # The champion comes first. A baseline that it is itself is not compared with it.
    compared = [row.loss not in ("champion", result.champion.baseline) for row in result.losses]
    tests = [
        welch(scores[0], row) if other else math.nan
        for row, other in zip(scores, compared, strict=True)
    ]
    p_values = [p if math.isfinite(p) else None for p in tests]
    adjusted = holm(p_values)
    return [
        {
            **row.to_json(),
            "n": int(finite(scores[index]).size),
            "mean": means[index],
            "standard_deviation": deviations[index],
            "difference": means[index] - means[0] if compared[index] else None,
            "p": p_values[index],
            "p_holm": adjusted[index],
        }
        for index, row in enumerate(result.losses)
    ]


def _places(settings: "Config", places: "Places") -> dict[str, str]:
    """Return where the report and the champion are, and how to look at the runs."""
    runs = places.tracking
    if is_sqlite(runs):
        mlflow = str(Path(sys.executable).with_name("mlflow"))
        runs = shlex.join([mlflow, "ui", "--backend-store-uri", runs])
    return {
        "report": f"{places.store}/{layout.report(settings.name)}",
        "champion": f"{places.store}/{layout.champion(settings.name)}",
        "runs": runs,
    }
