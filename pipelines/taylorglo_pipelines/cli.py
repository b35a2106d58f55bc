"""The command line: ``taylorglo run | compile | submit | schedule | inspect | attack``."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taylorglo import __version__
from taylorglo.errors import TaylorgloError

if TYPE_CHECKING:
    from taylorglo_pipelines.config import Config
    from taylorglo_pipelines.kubeflow.client import Connection


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 after one clear line (or one per problem) about what is wrong.

    1: the run that was waited for did not succeed.
    """
    words = sys.argv[1:] if arguments is None else arguments
    sys.path.insert(0, "")  # the user's own networks, as `python -m` finds them
    # argparse takes a theta that begins with a minus for an option, unless there is a space in it.
    given = _parser().parse_args(
        [f" {word}" if re.match(r"^-[\d.]", word) else word for word in words]
    )
    try:
        given.command(given)
    except TaylorgloError as error:
        for line in str(error).splitlines():
            print(f"taylorglo: error: {line}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as interrupt:
        print("; ".join(["taylorglo: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="taylorglo",
        description="Find better loss functions for a network and a data set (TaylorGLO).",
    )
    parser.add_argument("--version", action="version", version=f"taylorglo {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run", help="run a sweep on this machine, or go on with an interrupted one"
    )
    _add_config(run)
    run.add_argument(
        "--runner",
        choices=("subprocess", "docker"),
        default="subprocess",
        help="what a task is: a process (the default), or a container of the image (docker's engine, or podman's)",
    )
    run.set_defaults(command=_run)

    compile_ = commands.add_parser("compile", help="compile a sweep for Kubeflow Pipelines")
    _add_config(compile_)
    compile_.add_argument(
        "-o", "--output", required=True, metavar="FILE", type=Path, help="the pipeline, .yaml"
    )
    compile_.set_defaults(command=_compile)

    submit = commands.add_parser("submit", help="run a sweep on Kubeflow Pipelines")
    _add_config(submit)
    _add_access(submit)
    submit.add_argument(
        "--wait", action="store_true", help="follow the run; exit status 1 unless it succeeds"
    )
    submit.set_defaults(command=_submit)

    _add_schedule(commands.add_parser("schedule", help="sweeps that recur on Kubeflow Pipelines"))

    inspect = commands.add_parser(
        "inspect", help="what a loss does in training, from its coefficients alone"
    )
    inspect.add_argument(
        "loss",
        nargs="+",
        metavar="LOSS",
        help="a theta (numbers, with spaces or commas), a saved loss (.json), or cross-entropy, squared-error, baikal",
    )
    inspect.add_argument(
        "--classes",
        type=int,
        metavar="N",
        help="number of classes (default: the saved loss's, or 10)",
    )
    inspect.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw its shape and pull to a .svg, .png or .pdf file",
    )
    inspect.set_defaults(command=_inspect)

    attack = commands.add_parser("attack", help="attack a trained network with FGSM and PGD")
    attack.add_argument(
        "model",
        metavar="MODEL",
        help="a champion's folder, or weights (.safetensors); may be s3://",
    )
    attack.add_argument(
        "--data", metavar="FILE", help="prepared data set (default: the one beside the champion)"
    )
    attack.add_argument(
        "--model-name",
        metavar="NAME",
        help="the network, where the weights do not name it themselves",
    )
    attack.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="e.g. epsilons=[0,0.05,0.1]",
    )
    attack.set_defaults(command=_attack)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG",
        type=Path,
        help="YAML file, such as pipelines/configs/digits.yaml",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="in place of what the file says; may be given again",
    )


def _add_access(parser: argparse.ArgumentParser, experiment: str = "the sweep's name") -> None:
    parser.add_argument(
        "--host",
        default="",
        metavar="URL",
        help="of Kubeflow Pipelines (default: KF_PIPELINES_ENDPOINT, the cluster that this is a pod of, or the "
        "kubeconfig's)",
    )
    parser.add_argument(
        "--namespace",
        default="",
        metavar="NS",
        help="of the runs, and of Kubeflow without --host (default: kubeflow)",
    )
    parser.add_argument(
        "--experiment", default="", metavar="NAME", help=f"of the runs (default: {experiment})"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="read for every call (default: KF_PIPELINES_SA_TOKEN_PATH)",
    )
    parser.add_argument(
        "--ca-cert",
        type=Path,
        metavar="FILE",
        help="of the authority that the server's is signed by",
    )


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, dest="verb")

    create = verbs.add_parser(
        "create", help="let a sweep recur; again with the same name: change it"
    )
    _add_config(create)
    create.add_argument("--name", default="", help="of the schedule (default: the sweep's)")
    when = create.add_mutually_exclusive_group(required=True)
    when.add_argument(
        "--cron",
        metavar="FIELDS",
        help='in UTC, seconds first, such as "0 0 3 * * *"; or five fields',
    )
    when.add_argument("--every", metavar="TIME", help="such as 30m, 12h or 2d")
    _add_access(create)

    _add_access(
        verbs.add_parser("list", help="all schedules and when they fire next"), experiment="any"
    )
    for verb, help_ in (
        ("show", "what it is, and its next firings"),
        ("pause", "let it not fire until it is resumed"),
        ("resume", "let it fire again; what it missed stays missed"),
        ("delete", "remove it; its runs stay"),
        ("run-now", "start a run besides its own ones"),
    ):
        one = verbs.add_parser(verb, help=help_)
        one.add_argument("name", metavar="NAME")
        _add_access(one, experiment="any")
    parser.set_defaults(command=_schedule)


def _run(given: argparse.Namespace) -> None:
    from taylorglo_pipelines import config
    from taylorglo_pipelines.local import runner as local

    settings = config.load(given.config, given.overrides)
    print(
        f"taylorglo {__version__}: sweep {settings.name!r}, {settings.pipeline.generations} generations of "
        f"{settings.search.popsize} candidates, in {settings.services.work_dir}/",
        flush=True,
    )
    places = local.run(settings, given.runner)
    mlflow = Path(sys.executable).with_name("mlflow")
    look = (
        f"{mlflow} ui --backend-store-uri {places.tracking}"
        if places.tracking.startswith("sqlite:")
        else places.tracking
    )
    print(
        f"\nreport    {places.store}/{settings.name}/report.html\n"
        f"champion  {places.store}/{settings.name}/champion/loss.json\n"
        f"runs      {look}"
    )


def _compile(given: argparse.Namespace) -> None:
    from taylorglo_pipelines.pipeline.compile import compile_sweep

    print(
        f"{given.output}: {compile_sweep(_config_for_kubeflow(given), given.output) / 1000:.0f} kB"
    )


def _config_for_kubeflow(given: argparse.Namespace) -> "Config":
    from taylorglo_pipelines import config
    from taylorglo_pipelines.pipeline import compile as compiling

    settings = config.load(given.config, given.overrides)
    for warning in compiling.warnings(settings):
        print(f"taylorglo: warning: {warning}", file=sys.stderr)
    return settings


def _connection(given: argparse.Namespace) -> "Connection":
    from taylorglo_pipelines.kubeflow.client import Access, Connection

    return Connection(Access(given.host, given.namespace, given.token_file, given.ca_cert))


def _submit(given: argparse.Namespace) -> None:
    from taylorglo_pipelines.kubeflow import client as kubeflow
    from taylorglo_pipelines.kubeflow.wait import wait

    settings = _config_for_kubeflow(given)
    connection = _connection(given)
    run = kubeflow.submit(settings, connection, given.experiment)
    print(connection.link(f"runs/details/{run.run_id}"), flush=True)
    if given.wait:
        wait(connection, run.run_id, lambda line: print(line, flush=True))
        print("the run has succeeded")


def _schedule(given: argparse.Namespace) -> None:
    from taylorglo_pipelines.kubeflow import cron, schedules

    where = given.experiment
    if given.verb == "create":
        trigger = cron.parse(given.cron) if given.cron is not None else cron.interval(given.every)
        settings = _config_for_kubeflow(given)
        done, lines = schedules.create(settings, _connection(given), given.name, where, trigger)
        lines = [f"schedule {given.name or settings.name!r} {done}", *lines]
    elif given.verb == "list":
        lines = schedules.listing(_connection(given), where)
    elif given.verb == "show":
        lines = schedules.show(_connection(given), given.name, where)
    elif given.verb == "run-now":
        connection = _connection(given)
        run = schedules.run_now(connection, given.name, where)
        lines = [connection.link(f"runs/details/{run.run_id}")]
    elif given.verb == "resume":
        lines = schedules.resume(_connection(given), given.name, where)
    elif given.verb == "pause":
        schedules.pause(_connection(given), given.name, where)
        lines = [f"schedule {given.name!r} is paused"]
    else:
        schedules.delete(_connection(given), given.name, where)
        lines = [f"schedule {given.name!r} is deleted"]
    print("\n".join(lines))


def _inspect(given: argparse.Namespace) -> None:
    from taylorglo_pipelines.commands.inspect import inspect

    print(
        inspect(
            [word for part in given.loss for word in part.replace(",", " ").split()],
            given.classes,
            given.plot,
        )
    )


def _attack(given: argparse.Namespace) -> None:
    from taylorglo_pipelines.commands.attack import attack

    print(attack(given.model, given.data, given.model_name, given.overrides))


if __name__ == "__main__":
    sys.exit(main())
