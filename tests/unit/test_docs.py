"""What the documentation names is there."""

import difflib
import importlib.util
import re
from pathlib import Path

import pytest

from taylorglo.networks.factory import build
from taylorglo.presets import PRESETS
from taylorglo.settings import Section
from taylorglo_pipelines.cli import COMMANDS
from taylorglo_pipelines.config import Config, Toleration, load
from taylorglo_pipelines.pipeline import resources

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "docs/configuration.md"
_spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs/generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


def models() -> dict[str, type[Section]]:
    """The models that a configuration is checked by, under the headings of their tables."""
    sections = {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    return {"Top level": Config, **sections, "pipeline.tolerations": Toleration}


def documented() -> dict[str, list[str]]:
    """The keys of each generated table of the page, under its heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in CONFIGURATION.read_text().partition(generate.END)[0].splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif match := re.match(r"\| `(\w+)` \|", line):
            found.setdefault(heading, []).append(match[1])
    return found


@pytest.mark.parametrize("path", generate.PAGES, ids=lambda path: path.name)
def test_the_tables_of_the_configuration_are_those_of_the_models(path: Path) -> None:
    written = path.read_text()
    made = generate.page(path, written)
    difference = difflib.unified_diff(
        written.splitlines(), made.splitlines(), "written", "made now", lineterm=""
    )
    assert written == made, "\n".join([f"{path.name} is stale: make docs", *difference])


def test_every_key_of_the_configuration_is_documented_and_no_other() -> None:
    keys = {heading: list(model.model_fields) for heading, model in models().items()}
    keys["Top level"] = [key for key in keys["Top level"] if key not in keys]
    assert documented() == keys


def test_every_key_says_what_it_means() -> None:
    silent = [
        f"{heading}: {key}"
        for heading, model in models().items()
        for key, field in model.model_fields.items()
        if not field.description and key not in models()
    ]
    assert silent == []


@pytest.mark.parametrize(
    "start",
    [
        "| `seed` | integer ≥ 0, < 2147483648 | `0` |",
        "| `popsize` | integer ≥ 2, ≤ 10000 | `12` |",
        "| `decay` | number > 0, < 1 | `0.1` |",
        "| `weight_decay` | number ≥ 0 | `0.0005` |",
        "| `nesterov` | `false`, `true` | `true` |",
        "| `schedule` | `constant`, `step`, `cosine`, `one-cycle` | `cosine` |",
        "| `accelerator` | (empty), `nvidia.com/gpu`, `amd.com/gpu` | (empty) |",
        "| `work_dir` | text, not empty | `runs` |",
        "| `filters` | list, each: text | `[learnable, stable]` |",
        "| `epsilons` | list, each: number ≥ 0, ≤ 1 | `[0.0, 0.02, 0.05, 0.1]` |",
        "| `node_selector` | mapping of text to text | (empty) |",
    ],
)
def test_a_row_shows_choices_range_and_default(start: str) -> None:
    assert f"\n{start}" in CONFIGURATION.read_text()


def test_the_table_of_networks_is_of_every_preset_and_their_numbers_of_parameters() -> None:
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| \d+ convolutions[^|]* \| ([\d ]+)",
        CONFIGURATION.read_text(),
        re.MULTILINE,
    )
    counts = {}
    for name in PRESETS:
        shape = (1, 28, 28) if name == "mnist-cnn" else (3, 32, 32)
        network = build(name, shape, 10, mean=(0.5,) * shape[0], std=(1.0,) * shape[0], seed=0)
        counts[name] = sum(parameter.numel() for parameter in network.parameters())
    assert {name: int(number.replace(" ", "")) for name, number in rows} == counts


def test_a_page_that_was_changed_by_hand_is_put_right_and_one_without_marks_refused() -> None:
    written = CONFIGURATION.read_text()
    assert generate.page(CONFIGURATION, written.replace("| `12` |", "| `13` |")) == written
    with pytest.raises(ValueError, match=r"configuration\.md should have the lines"):
        generate.page(CONFIGURATION, written.replace(generate.END, ""))


def test_the_variables_of_a_cluster_are_those_of_its_secret_and_config_map() -> None:
    expected = {
        **dict.fromkeys(resources.CONFIG_KEYS, "ConfigMap"),
        **dict.fromkeys(resources.OPTIONAL_CONFIG_KEYS, "ConfigMap, optional"),
        **dict.fromkeys(resources.SECRET_KEYS, "Secret"),
        **dict.fromkeys(resources.OPTIONAL_SECRET_KEYS, "Secret, optional"),
    }
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", CONFIGURATION.read_text(), re.MULTILINE)
    assert dict(rows) == expected
    assert len(rows) == len(expected)


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_to_files_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    assert "@@" not in text
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert ((ROOT / document).parent / target).exists(), target


def test_the_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/cluster.md").read_text()
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE)) <= set(targets)
    for command in re.findall(r"^taylorglo ([a-z]+)", text, re.MULTILINE):
        assert command in COMMANDS


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipelines/configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_configurations_are_valid_and_in_the_readme(path: Path) -> None:
    assert load(path).name == path.stem
    assert path.name in (ROOT / "README.md").read_text()
