"""``taylorglo run``: a sweep on this machine."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taylorglo import __version__
from taylorglo.addresses import is_sqlite
from taylorglo.services import layout
from taylorglo_pipelines.commands.options import sweep_options

if TYPE_CHECKING:
    from taylorglo_pipelines.local.runner import Runner


@click.command("run")
@sweep_options
@click.option(
    "--runner",
    type=click.Choice(("subprocess", "docker")),
    default="subprocess",
    show_default=True,
    help="Run each task as a process, or as a container of the image with Docker or Podman.",
)
def command(path: Path, overrides: Sequence[str], runner: "Runner") -> None:
    """Run a sweep on this machine, or go on with an interrupted one.

    CONFIG is a YAML file, such as pipelines/configs/digits.yaml.
    """
    from taylorglo_pipelines import config

    settings = config.load(path, overrides)
    click.echo(
        f"taylorglo {__version__}: sweep {settings.name!r}, {settings.pipeline.generations} "
        f"generations of {settings.search.popsize} candidates, in {settings.services.folder}/"
    )
    # kfp takes a second to import; a mistake in the configuration is reported before.
    from taylorglo_pipelines.local.runner import run

    places = run(settings, runner)
    runs = places.tracking
    if is_sqlite(runs):
        mlflow = str(Path(sys.executable).with_name("mlflow"))
        runs = shlex.join([mlflow, "ui", "--backend-store-uri", runs])
    click.echo(
        f"\nreport    {places.store}/{layout.report(settings.name)}\n"
        f"champion  {places.store}/{layout.champion(settings.name)}\n"
        f"runs      {runs}"
    )
