"""docs/commands.md names every command of the command line, with every option and argument."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from taylorglo_pipelines.cli import group

PAGE = (Path(__file__).parents[3] / "docs" / "commands.md").read_text()
ACCESS = {"--host", "--namespace", "--experiment", "--token-file", "--ca-cert"}


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands below a command, with all words that name them."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield f"{path} {name}", below
            yield from commands(below, f"{path} {name}")


ALL = dict(commands(group, "taylorglo"))


def section(words: str) -> str:
    """Return what the page says below the heading of a command."""
    match = re.search(rf"^### {words}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"there is no heading {words}"
    return match[1]


@pytest.mark.parametrize("words", ALL)
def test_a_command_has_its_options_and_arguments_and_no_others(words: str) -> None:
    text = section(words)
    parameters = ALL[words].params
    options = {name for p in parameters if isinstance(p, click.Option) for name in p.opts}
    shared = options & ACCESS
    assert shared in (set(), ACCESS)
    rows = re.findall(r"^\| (`-.*?`) \|", text, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(--?[a-z-]+)", row)}
    assert documented == options - ACCESS
    for parameter in parameters:
        if isinstance(parameter, click.Argument):
            name = parameter.make_metavar(click.Context(ALL[words])).strip("[].")
            if name.startswith("{"):
                name = "SHELL"
            assert re.search(rf"`{words} [^`]*{name}", text), name


def test_the_page_has_no_command_that_there_is_not() -> None:
    headings = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
    assert sorted(headings) == sorted(ALL)
    shared = PAGE.partition("share these options")[2].partition("###")[0]
    assert set(re.findall(r"^\| `(--[a-z-]+)", shared, re.MULTILINE)) == ACCESS
