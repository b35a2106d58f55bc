"""``taylorglo submit``: a run of a sweep on Kubeflow Pipelines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from taylorglo_pipelines.commands.options import (
    access_options,
    connect,
    load_for_kubeflow,
    sweep_options,
)


@click.command("submit")
@sweep_options
@access_options(experiment="the sweep's name")
@click.option(
    "--wait",
    "waiting",
    is_flag=True,
    help="Follow the run to its end; the exit status is 1 unless it succeeds.",
)
def command(
    path: Path, overrides: Sequence[str], experiment: str, waiting: bool, **access: Any
) -> None:
    """Run a sweep on Kubeflow Pipelines.

    CONFIG is a YAML file, such as pipelines/configs/digits.yaml.
    """
    from taylorglo_pipelines.kubeflow.runs import submit
    from taylorglo_pipelines.kubeflow.wait import wait

    settings = load_for_kubeflow(path, overrides)
    connection = connect(access)
    run = submit(settings, connection, experiment)
    click.echo(connection.link(f"runs/details/{run.run_id}"))
    if waiting:
        wait(connection, run.run_id, click.echo)
        click.echo("the run has succeeded")
