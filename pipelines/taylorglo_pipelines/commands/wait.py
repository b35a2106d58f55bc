"""``taylorglo wait``: a run on Kubeflow Pipelines is followed to its end."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from taylorglo.errors import TaylorgloError
from taylorglo_pipelines.commands.options import access_options, connect, echo

if TYPE_CHECKING:
    from taylorglo_pipelines.kubeflow.client import Connection

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a JSON object a line for each event, and nothing else.",
)


@click.command("wait")
@click.argument("run", metavar="RUN")
@access_options(experiment="all of them")
@json_option
def command(run: str, experiment: str, as_json: bool, **access: Any) -> None:
    """Follow a run on Kubeflow Pipelines to its end.

    RUN is the id of a run, the address of its page, or its name if no other run is called so.
    The exit status is 1 unless the run succeeds.
    """
    from taylorglo_pipelines.kubeflow.find import find_run

    with errors_as_events(as_json):
        connection = connect(access)
        follow(connection, find_run(connection, run, experiment), as_json)


def follow(connection: "Connection", run_id: str, as_json: bool) -> None:
    """Print what happens in a run until it ends.

    Raises:
        TaylorgloError: the run does not succeed, or cannot be followed any longer.
        KeyboardInterrupt: the user interrupted the waiting.
    """
    from taylorglo_pipelines.kubeflow import progress
    from taylorglo_pipelines.kubeflow.wait import wait

    written = progress.as_json if as_json else progress.as_text
    outcome = wait(connection, run_id, echo, written=written)
    echo(progress.as_json(outcome) if as_json else outcome.message)


@contextlib.contextmanager
def errors_as_events(as_json: bool) -> Iterator[None]:
    """Print an error, or the outcome of a run that did not succeed, as an event if asked for."""
    try:
        yield
    except (TaylorgloError, KeyboardInterrupt) as error:
        if as_json:
            from taylorglo_pipelines.kubeflow import progress
            from taylorglo_pipelines.kubeflow.wait import RunFailedError

            event = progress.Event(datetime.now(UTC), "error", message=str(error))
            if isinstance(error, RunFailedError):
                event = error.event
            echo(progress.as_json(event))
        raise
