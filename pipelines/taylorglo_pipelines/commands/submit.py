"""``taylorglo submit``: a run of a sweep on Kubeflow Pipelines."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from taylorglo_pipelines.commands.options import (
    access_options,
    connect,
    echo,
    sweep_options,
)
from taylorglo_pipelines.commands.wait import errors_as_events, follow, json_option


@click.command("submit")
@sweep_options
@access_options(experiment="the sweep's name")
@click.option(
    "--wait",
    "waiting",
    is_flag=True,
    help="Follow the run to its end; the exit status is 1 unless it succeeds.",
)
@json_option
def command(
    path: Path,
    overrides: Sequence[str],
    experiment: str,
    waiting: bool,
    as_json: bool,
    **access: Any,
) -> None:
    """Run a sweep on Kubeflow Pipelines.

    CONFIG is a YAML file, such as pipelines/configs/digits.yaml.
    """
    from taylorglo_pipelines import config
    from taylorglo_pipelines.kubeflow.runs import submit

    with errors_as_events(as_json):
        settings = config.load(path, overrides)
        connection = connect(access)
        run_id = str(submit(settings, connection, experiment).run_id)
        _say_submitted(run_id, connection.link(f"runs/details/{run_id}"), as_json)
        if waiting:
            follow(connection, run_id, as_json)


def _say_submitted(run_id: str, link: str, as_json: bool) -> None:
    if as_json:
        from taylorglo_pipelines.kubeflow import progress

        event = progress.Event(datetime.now(UTC), "submitted", message=link, run=run_id)
        link = progress.as_json(event)
    echo(link)
