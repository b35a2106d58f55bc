"""The command line: ``taylorglo run | compile | inspect | attack``."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from taylorglo import __version__
from taylorglo.errors import TaylorgloError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 after one clear line (or one per problem) about what is wrong."""
    words = sys.argv[1:] if arguments is None else arguments
    sys.path.insert(0, "")  # the user's own networks, as `python -m` finds them
    # argparse takes a theta that begins with a minus for an option, unless there is a space in it.
    given = _parser().parse_args([f" {word}" if re.match(r"^-[\d.]", word) else word for word in words])
    try:
        given.command(given)
    except TaylorgloError as error:
        for line in str(error).splitlines():
            print(f"taylorglo: error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("taylorglo: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="taylorglo", description="Find better loss functions for a network and a data set (TaylorGLO)."
    )
    parser.add_argument("--version", action="version", version=f"taylorglo {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run a sweep on this machine, or go on with an interrupted one")
    _add_config(run)
    run.set_defaults(command=_run)

    compile_ = commands.add_parser("compile", help="compile a sweep for Kubeflow Pipelines")
    _add_config(compile_)
    compile_.add_argument("-o", "--output", required=True, metavar="FILE", type=Path, help="the pipeline, .yaml")
    compile_.set_defaults(command=_compile)

    inspect = commands.add_parser("inspect", help="what a loss does in training, from its coefficients alone")
    inspect.add_argument(
        "loss",
        nargs="+",
        metavar="LOSS",
        help="a theta (numbers, with spaces or commas), a saved loss (.json), or cross-entropy, squared-error, baikal",
    )
    inspect.add_argument(
        "--classes", type=int, metavar="N", help="number of classes (default: the saved loss's, or 10)"
    )
    inspect.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw its shape and pull to a .svg, .png or .pdf file"
    )
    inspect.set_defaults(command=_inspect)

    attack = commands.add_parser("attack", help="attack a trained network with FGSM and PGD")
    attack.add_argument("model", metavar="MODEL", help="a champion's folder, or weights (.safetensors); may be s3://")
    attack.add_argument("--data", metavar="FILE", help="prepared data set (default: the one beside the champion)")
    attack.add_argument("--model-name", metavar="NAME", help="the network, where the weights do not name it themselves")
    attack.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="e.g. epsilons=[0,0.05,0.1]"
    )
    attack.set_defaults(command=_attack)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="YAML file, such as pipelines/configs/digits.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="in place of what the file says; may be given again",
    )


def _run(given: argparse.Namespace) -> None:
    from taylorglo_pipelines import config, local

    settings = config.load(given.config, given.overrides)
    print(
        f"taylorglo {__version__}: sweep {settings.name!r}, {settings.pipeline.generations} generations of "
        f"{settings.search.popsize} candidates, in {settings.services.work_dir}/",
        flush=True,
    )
    places = local.run(settings)
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
    from taylorglo_pipelines import compiling, config

    settings = config.load(given.config, given.overrides)
    size = compiling.compile_sweep(settings, given.output)
    for warning in compiling.warnings(settings):
        print(f"taylorglo: warning: {warning}", file=sys.stderr)
    print(f"{given.output}: {size / 1000:.0f} kB")


def _inspect(given: argparse.Namespace) -> None:
    from taylorglo_pipelines.inspection import inspect

    print(inspect([word for part in given.loss for word in part.replace(",", " ").split()], given.classes, given.plot))


def _attack(given: argparse.Namespace) -> None:
    from taylorglo_pipelines.attacking import attack

    print(attack(given.model, given.data, given.model_name, given.overrides))


if __name__ == "__main__":
    sys.exit(main())
