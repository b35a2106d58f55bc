"""What the documentation names is there."""

import re
from pathlib import Path

import pytest

from taylorglo.settings import Section
from taylorglo_pipelines.cli import _parser
from taylorglo_pipelines.config import Config, load

ROOT = Path(__file__).parents[2]


def keys() -> list[str]:
    return [
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        for key in field.annotation.model_fields
    ]


def documented_keys() -> list[str]:
    found, section = [], ""
    for line in (ROOT / "docs/configuration.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif match := re.match(r"\| `([a-z_0-9]+)` \| (?!`)", line):
            found.append(f"{section}.{match[1]}")
    return found


def test_every_key_of_the_configuration_is_documented_and_no_other() -> None:
    assert documented_keys() == keys()


def test_documented_defaults_are_the_defaults() -> None:
    sections = Config().model_dump()
    text = (ROOT / "docs/configuration.md").read_text()
    for path in keys():
        section, key = path.split(".")
        default = sections[section][key]
        shown = ", ".join(map(str, default)) if isinstance(default, list) else str(default)
        shown = shown.lower() if isinstance(default, bool) else shown
        assert f"| `{key}` | {shown or '(empty)'} |" in text, path


@pytest.mark.parametrize(
    "document", ["README.md", "docs/cluster.md", "docs/configuration.md", "docs/method.md", "docs/results.md"]
)
def test_links_to_files_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    assert "@@" not in text
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert ((ROOT / document).parent / target).exists(), target


def test_the_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/cluster.md").read_text()
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z0-9-]+)", text)) <= set(targets)
    help_text = _parser().format_help()
    for command in re.findall(r"^taylorglo ([a-z]+)", text, re.MULTILINE):
        assert command in help_text


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines/configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_are_valid_and_in_the_readme(path: Path) -> None:
    assert load(path).name == path.stem
    assert path.name in (ROOT / "README.md").read_text()
