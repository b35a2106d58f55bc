"""The command line: ``taylorglo COMMAND``, with the commands that ``COMMANDS`` lists."""

import codecs
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import requires
from io import TextIOWrapper

from taylorglo.errors import InputError, TaylorgloError, meant, shortened
from taylorglo.extras import missing

try:
    import click
except ModuleNotFoundError as error:
    print(f"taylorglo: error: {missing('the command line', error)}", file=sys.stderr)
    raise SystemExit(2) from None

# Each is a module of taylorglo_pipelines.commands, in the order of the help.
COMMANDS = (
    "run",
    "status",
    "list",
    "compare",
    "inspect",
    "attack",
    "compile",
    "submit",
    "wait",
    "schedule",
    "gc",
    "completion",
)
_COMPLETION = "_TAYLORGLO_COMPLETE"  # the variable by which a shell asks for completions
# Signs of our texts that a terminal may not have.
_ASCII = {"±": "+-", "−": "-", "–": "-", "\u202f": " "}
# Packages whose name in an import is not the one they are installed by, or that come with another.
_DISTRIBUTIONS = {
    "botocore": "boto3",
    "pydantic_core": "pydantic",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


class Commands(click.Group):
    """The group of all commands, each of which is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name, or None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"taylorglo_pipelines.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first word names, and the other words.

        Raises:
            UsageError: there is no such command.
        """
        name = args[0]
        if not (name in COMMANDS or name.startswith("-") or ctx.resilient_parsing):
            raise click.UsageError(f"no such command {name!r}{meant(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="taylorglo", message="taylorglo %(version)s")
def group() -> None:
    """Find better loss functions for a network and a data set (TaylorGLO)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    Args:
        arguments: the words of the command line; None: those of this process.

    Returns:
        0; 2 after one clear line for each problem; 1 if a run that was waited for did not succeed;
        130 after Ctrl-C.
    """
    # The user's own networks may be in the current folder. It comes last, so that no file in it is
    # taken for a module of Python or of a package, such as random.py.
    sys.path.append("")
    codecs.register_error("taylorglo", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        # It is another object in a test or a notebook, which takes every character.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="taylorglo")
    if instruction := os.environ.get(_COMPLETION):
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, "taylorglo", _COMPLETION, instruction)
    try:
        _run(sys.argv[1:] if arguments is None else arguments)
    except TaylorgloError as error:
        for line in str(error).splitlines():
            print(f"taylorglo: error: {line}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The program that reads the output has ended, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as interrupt:
        print("; ".join(["taylorglo: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    return 0


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return other characters for those that the encoding of a terminal does not have."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in text), error.end


def _run(words: Sequence[str]) -> None:
    """Run a command.

    Raises:
        TaylorgloError: the words are no command, the command fails, or a package is missing.
    """
    try:
        with group.make_context("taylorglo", list(words)) as context:
            group.invoke(context)
    except click.exceptions.Exit:
        # The help or the version was printed.
        return
    except click.UsageError as error:
        raise InputError(_usage_problem(error)) from None
    except ModuleNotFoundError as error:
        if not _is_of_extra(error.name or ""):
            raise
        raise missing("the command line", error) from None


def _usage_problem(error: click.UsageError) -> str:
    """Return what is wrong with the words of a command line, and the command that helps."""
    problem = shortened(error.format_message()).rstrip(".")
    path = error.ctx.command_path if error.ctx else "taylorglo"
    return f"{problem[:1].lower()}{problem[1:]} (see {path} --help)"


def _is_of_extra(module: str) -> bool:
    """Return whether the extra ``pipeline`` installs a module; a user's network may import others.

    Args:
        module: name of the module, with dots.
    """
    package = module.partition(".")[0]
    distribution = _DISTRIBUTIONS.get(package, package.replace("_", "-"))
    for requirement in requires("taylorglo") or ():
        name, _, marker = requirement.partition(";")
        if "pipeline" in marker and re.split(r"[^\w-]", name)[0] == distribution:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
