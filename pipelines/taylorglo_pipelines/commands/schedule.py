"""``taylorglo schedule``: sweeps that recur on Kubeflow Pipelines."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from taylorglo_pipelines.commands.options import (
    access_options,
    connect,
    echo,
    echo_json,
    json_option,
    sweep_options,
)

Function = TypeVar("Function", bound=Callable[..., Any])


@click.group("schedule", no_args_is_help=False)
def command() -> None:
    """Let sweeps recur on Kubeflow Pipelines."""


def _schedule_options(function: Function) -> Function:
    """Add the argument NAME and the common options to a command about one schedule."""
    with_access = access_options(experiment="any")(json_option(function))
    return click.argument("name", metavar="NAME")(with_access)


def _say(name: str, outcome: str, lines: Sequence[str], *, as_json: bool) -> None:
    """Print what became of a schedule, and lines that describe it."""
    if as_json:
        echo_json({"schedule": name, "outcome": outcome, "lines": list(lines)})
    else:
        echo("\n".join([f"schedule {name!r} {outcome}", *lines]))


@command.command("create")
@sweep_options
@click.option(
    "--name",
    default="",
    metavar="NAME",
    show_default="the sweep's name",
    help="Name of the schedule.",
)
@click.option(
    "--cron",
    metavar="FIELDS",
    help='When it fires: six fields, seconds first, such as "0 0 3 * * *"; or five. In UTC, unless '
    "Kubeflow's scheduler has another CRON_SCHEDULE_TIMEZONE.",
)
@click.option("--every", metavar="TIME", help="Time between firings, such as 30m, 12h or 2d.")
@access_options(experiment="the sweep's name")
@json_option
def create(
    path: Path,
    overrides: Sequence[str],
    *,
    name: str,
    cron: str | None,
    every: str | None,
    experiment: str,
    as_json: bool,
    **access: Any,
) -> None:
    """Let a sweep recur, or change the schedule of this name.

    CONFIG is a YAML file, such as pipelines/configs/digits.yaml. Either --cron or --every is
    needed.
    """
    from taylorglo_pipelines import config
    from taylorglo_pipelines.kubeflow import schedules
    from taylorglo_pipelines.kubeflow.cron import Cron, interval, parse

    trigger: Cron | int
    if cron is not None and every is None:
        trigger = parse(cron)
    elif every is not None and cron is None:
        trigger = interval(every)
    else:
        raise click.UsageError("either --cron or --every is needed, and not both")
    settings = config.load(path, overrides)
    change, lines = schedules.create(settings, connect(access), name, experiment, trigger)
    _say(name or settings.name, change, lines, as_json=as_json)


@command.command("list")
@access_options(experiment="any")
@json_option
def list_schedules(experiment: str, *, as_json: bool, **access: Any) -> None:
    """List all schedules, which are running now, and when they fire next."""
    from taylorglo_pipelines.kubeflow import schedules

    if as_json:
        echo_json([asdict(one) for one in schedules.listed(connect(access), experiment)])
        return
    echo("\n".join(schedules.listing(connect(access), experiment)))


@command.command("show")
@_schedule_options
def show(name: str, experiment: str, *, as_json: bool, **access: Any) -> None:
    """Show a schedule, its next firings and its last runs."""
    from taylorglo_pipelines.kubeflow import schedules

    if as_json:
        shown = schedules.shown(connect(access), name, experiment)
        echo_json({**asdict(shown.schedule), "page": shown.page, "runs": shown.runs})
        return
    echo("\n".join(schedules.show(connect(access), name, experiment)))


@command.command("pause")
@_schedule_options
def pause(name: str, experiment: str, *, as_json: bool, **access: Any) -> None:
    """Stop firing until resumed; a run that has begun goes on."""
    from taylorglo_pipelines.kubeflow import schedules

    lines = schedules.pause(connect(access), name, experiment)
    _say(name, "is paused", lines, as_json=as_json)


@command.command("resume")
@_schedule_options
def resume(name: str, experiment: str, *, as_json: bool, **access: Any) -> None:
    """Fire again from the next time on, without the firings that were missed."""
    from taylorglo_pipelines.kubeflow import schedules

    lines = schedules.resume(connect(access), name, experiment)
    _say(name, "is active", lines, as_json=as_json)


@command.command("delete")
@_schedule_options
def delete(name: str, experiment: str, *, as_json: bool, **access: Any) -> None:
    """Delete a schedule; its runs stay, and one that has begun goes on."""
    from taylorglo_pipelines.kubeflow import schedules

    lines = schedules.delete(connect(access), name, experiment)
    _say(name, "is deleted", lines, as_json=as_json)


@command.command("run-now")
@_schedule_options
def run_now(name: str, experiment: str, *, as_json: bool, **access: Any) -> None:
    """Start a run now, in addition to the schedule's own runs."""
    from taylorglo_pipelines.kubeflow import schedules

    connection = connect(access)
    run = schedules.run_now(connection, name, experiment)
    link = connection.link(f"runs/details/{run.run_id}")
    if as_json:
        echo_json({"schedule": name, "run": run.run_id, "page": link})
    else:
        echo(link)
