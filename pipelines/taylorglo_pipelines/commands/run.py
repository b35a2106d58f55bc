"""``taylorglo run``: a sweep on this machine."""

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
    return {**values, "places": dict(places)}


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
