"""The options that several commands share, and the objects that the commands make of them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taylorglo.addresses import expanded
from taylorglo.errors import printable

if TYPE_CHECKING:
    from taylorglo_pipelines.kubeflow.client import Connection

Function = TypeVar("Function", bound=Callable[..., Any])


class _File(click.Path):
    """A path, in which ``~`` is the user's home: no shell expands it in ``--option=~/file``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return expanded(str(super().convert(value, param, ctx)))


FILE = _File()
RUNS = "runs"  # the default of services.work_dir


def echo(text: str) -> None:
    """Print text that a server may have given: names must not steer the terminal."""
    for line in text.split("\n"):
        click.echo(printable(line))


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set a value in place of the file's. May be given again.",
)


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document, and nothing else on standard output.",
)


def echo_json(document: Any) -> None:
    """Print a JSON document. Numbers that are not finite become null: JSON has none."""
    click.echo(json.dumps(_finite(document), indent=2))


def _finite(value: Any) -> Any:
    """Return a JSON value without numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as a table, with the columns below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _sweeps(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the sweeps that a shell may complete a word to."""
    from taylorglo_pipelines.local.claim import sweeps_in

    folder = expanded(str(context.params.get("folder") or RUNS))
    return [name for name in sweeps_in(folder) if name.startswith(incomplete)]


def sweep_argument(name: str, **more: Any) -> Callable[[Function], Function]:
    """Return a decorator that adds an argument for the name of a sweep, which a shell completes."""
    return click.argument(name, metavar="SWEEP", shell_complete=_sweeps, **more)


folder_option = click.option(
    "--folder",
    type=FILE,
    default=RUNS,
    show_default=True,
    metavar="FOLDER",
    help="Folder of runs: services.work_dir of the sweeps.",
)


def sweep_options(function: Function) -> Function:
    """Add the argument CONFIG (``path``) and the option ``--set`` (``overrides``) to a command."""
    return click.argument("path", metavar="CONFIG", type=FILE)(set_option(function))


def access_options(experiment: str) -> Callable[[Function], Function]:
    """Return a decorator that adds the options of the access to Kubeflow Pipelines.

    Args:
        experiment: the default of ``--experiment``, as the help describes it.
    """
    options = (
        click.option(
            "--host",
            default="",
            metavar="URL",
            show_default="KF_PIPELINES_ENDPOINT, else the cluster of this pod, else the "
            "kubeconfig's",
            help="Address of Kubeflow Pipelines.",
        ),
        click.option(
            "--namespace",
            default="",
            metavar="NS",
            show_default="kubeflow",
            help="Namespace of the runs and, without --host, of Kubeflow Pipelines.",
        ),
        click.option(
            "--experiment",
            default="",
            metavar="NAME",
            show_default=experiment,
            help="Experiment of the runs.",
        ),
        click.option(
            "--token-file",
            type=FILE,
            metavar="FILE",
            show_default="KF_PIPELINES_SA_TOKEN_PATH, else the token of this pod",
            help="File with a bearer token, which is read for every call.",
        ),
        click.option(
            "--ca-cert",
            type=FILE,
            metavar="FILE",
            show_default="the authorities of this machine",
            help="CA certificate that signed the server's certificate.",
        ),
    )
    return _adding(options)


def _adding(options: Sequence[Callable[[Function], Function]]) -> Callable[[Function], Function]:
    """Return a decorator that adds options to a command, in their order in the help."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def connect(access: Mapping[str, Any]) -> "Connection":
    """Connect to Kubeflow Pipelines.

    Args:
        access: the values of ``--host``, ``--namespace``, ``--token-file`` and ``--ca-cert``.

    Raises:
        InputError: the address or the credentials are wrong.
        ServiceError: the server cannot be reached.
    """
    from taylorglo_pipelines.kubeflow.client import Access, Connection

    return Connection.open(Access(**access))
