"""The documentation says what the code does, and its names, links and commands are right."""

import difflib
import fnmatch
import importlib.util
import inspect
import re
import runpy
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import taylorglo
from taylorglo.presets import PRESETS
from taylorglo.settings import Section
from taylorglo_pipelines.cli import COMMANDS, main
from taylorglo_pipelines.config import Config, Toleration, load
from taylorglo_pipelines.pipeline import resources

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
CONFIGURATION = ROOT / "docs/configuration.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

_spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs/generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)

every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def code_blocks(text: str, language: str = r"\w*") -> list[str]:
    """Return the fenced blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    outside_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", outside_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def run_code(text: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the only block of Python in a text, in the current folder; return its global names."""
    (code,) = code_blocks(text, "python")
    script = Path("documented.py")
    script.write_text(code)
    return runpy.run_path(str(script), init_globals=names)


def models() -> dict[str, type[Section]]:
    """Return the models that a configuration is checked by, by the heading of their table."""
    sections = {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    return {"Top level": Config, **sections, "pipeline.tolerations": Toleration}


def documented_keys() -> dict[str, list[str]]:
    """Return the keys of each generated table of the configuration, by its heading."""
    keys: dict[str, list[str]] = {}
    heading = ""
    for line in CONFIGURATION.read_text().partition(generate.END)[0].splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif match := re.match(r"\| `(\w+)` \|", line):
            keys.setdefault(heading, []).append(match[1])
    return keys


class TestConfiguration:
    def test_the_tables_are_those_of_the_models(self) -> None:
        written = CONFIGURATION.read_text()
        made = generate.page(written)
        lines = (written.splitlines(), made.splitlines())
        difference = difflib.unified_diff(*lines, "written", "made now", lineterm="")
        assert written == made, "\n".join(["configuration.md is stale: make docs", *difference])

    def test_every_key_is_documented_and_no_other(self) -> None:
        keys = {heading: list(model.model_fields) for heading, model in models().items()}
        keys["Top level"] = [key for key in keys["Top level"] if key not in keys]
        assert documented_keys() == keys

    def test_every_key_has_a_description_that_is_a_sentence(self) -> None:
        descriptions = {
            f"{heading}: {key}": field.description or ""
            for heading, model in models().items()
            for key, field in model.model_fields.items()
            if key not in models()
        }
        unfit = {key: text for key, text in descriptions.items() if not text.endswith(".")}
        assert unfit == {}

    def test_a_page_that_was_changed_by_hand_is_put_right_and_one_without_marks_refused(
        self,
    ) -> None:
        written = CONFIGURATION.read_text()
        assert generate.page(written.replace("| `12` |", "| `13` |")) == written
        with pytest.raises(ValueError, match=r"configuration\.md should have the lines"):
            generate.page(written.replace(generate.END, ""))

    def test_the_table_of_networks_has_every_preset_with_its_number_of_parameters(self) -> None:
        from taylorglo.networks.factory import build

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

    def test_the_variables_of_a_cluster_are_those_of_its_secret_and_config_map(self) -> None:
        services = resources.ALL_SERVICES
        expected = {
            **dict.fromkeys(services.config.values(), "ConfigMap"),
            **dict.fromkeys(services.optional_config.values(), "ConfigMap, optional"),
            **dict.fromkeys(services.secret.values(), "Secret"),
            **dict.fromkeys(services.optional_secret.values(), "Secret, optional"),
        }
        text = CONFIGURATION.read_text()
        rows = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", text, re.MULTILINE)
        assert dict(rows) == expected
        assert len(rows) == len(expected)

    @pytest.mark.parametrize(
        "path", sorted((ROOT / "pipelines/configs").glob("*.yaml")), ids=lambda path: path.stem
    )
    def test_the_sweeps_of_the_repository_are_valid_and_listed(self, path: Path) -> None:
        assert load(path).name == path.stem
        assert f"| `{path.name}` |" in CONFIGURATION.read_text()


class TestEveryDocument:
    @every_document
    def test_links_lead_to_files_and_headings(self, document: Path) -> None:
        links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", document.read_text())
        for target, anchor in links:
            path = document.parent / target if target else document
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text()), f"{target}#{anchor}"

    @every_document
    def test_targets_of_make_exist(self, document: Path) -> None:
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        named = re.findall(r"(?:^|`)make ([a-z0-9-]+)", document.read_text(), re.MULTILINE)
        assert set(named) <= set(targets)

    @every_document
    def test_commands_and_their_options_exist(
        self, document: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = document.read_text()
        inline = re.findall(r"`(taylorglo [^`]+)`", text)
        lines = [line for block in code_blocks(text) for line in block.splitlines()]
        shown = [re.sub(r"^\$ ", "", line) for line in lines]
        commands = [line for line in [*inline, *shown] if re.match(r"taylorglo [a-z]+\b", line)]
        for command in commands:
            words = command.partition(" #")[0].split()[1:]
            assert words[0] in COMMANDS, command
            verb = words[1:2] if words[0] == "schedule" else []
            capsys.readouterr()
            assert main([words[0], *verb, "--help"]) == 0, command
            help_text = capsys.readouterr().out
            for option in re.findall(r"(?<= )--?[a-z][a-z-]*", command):
                assert re.search(rf"{option}\b", help_text), f"{option} of {command}"


class TestReadme:
    @pytest.mark.parametrize("command", ["make sweep", "make test"])
    def test_the_commands_of_a_fresh_machine_are_shown(self, command: str) -> None:
        lines = [line for block in code_blocks(README, "sh") for line in block.splitlines()]
        assert any(line.partition("#")[0].strip() == command for line in lines)

    def test_the_tree_has_the_folders_that_there_are(self) -> None:
        tree = README.partition("## The repository")[2]
        block = code_blocks(tree)[0]
        listed = set(re.findall(r"^(\w+)/", block, re.MULTILINE))
        patterns = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
        folders = {
            path.name
            for path in ROOT.iterdir()
            if path.is_dir()
            and not path.name.startswith(".")
            and not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
        }
        assert listed == folders
        rooms = {
            room
            for line in re.findall(r"^ +(\S+/.*?)   ", block, re.MULTILINE)
            for room in re.findall(r"(\w+)/", line)
        }
        package = ROOT / "components/taylorglo"
        assert rooms == {path.parent.name for path in package.glob("*/__init__.py")}

    def test_no_line_of_text_has_more_than_120_columns(self) -> None:
        text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
        long = [line for line in text.splitlines() if len(line) > 120 and line[0] != "|"]
        assert long == []

    def test_the_python_code_uses_a_found_loss(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import torch

        monkeypatch.chdir(tmp_path)
        network = torch.nn.Linear(4, 10)
        names = {
            "network": network,
            "images": torch.ones(2, 4),
            "targets": torch.tensor([3, 7]),
        }
        run_code(README, names)
        assert network.weight.grad is not None
        assert network.weight.grad.abs().sum() > 0
        theta = taylorglo.load_loss("zoo:digits").theta
        assert capsys.readouterr().out == f"{taylorglo.dynamics(theta.tolist(), 10)}\n"

    def test_the_figure_is_of_the_loss_that_the_command_beside_it_draws(self) -> None:
        match = re.search(r"`taylorglo inspect ([-\d. ]+) --plot (\S+)`", README)
        assert match
        theta = [float(word) for word in match[1].split()]
        confidence = taylorglo.equilibrium_confidence(theta, 10)
        assert f"]({match[2]})" in README
        # matplotlib writes a label as a comment, beside the paths of its letters.
        assert f"<!-- p* = {confidence:.3f} -->" in (ROOT / match[2]).read_text()


class TestArchitecture:
    @staticmethod
    def modules() -> Iterator[Path]:
        """Yield the modules of both packages, but for the components, which are ten of a kind."""
        for package in ("components/taylorglo", "pipelines/taylorglo_pipelines"):
            for path in sorted((ROOT / package).rglob("*.py")):
                if path.stem != "__init__" and path.parent.name != "components":
                    yield path

    def test_the_tree_has_every_module_in_its_room(self) -> None:
        tree = code_blocks(ARCHITECTURE)[0]
        packages = {
            name: dict(re.findall(r"^  (\S+)(.*(?:\n {10,}.*)*)", body, re.MULTILINE))
            for name, body in re.findall(r"^\w+/(\w+)/\n((?: .*\n)+)", tree, re.MULTILINE)
        }
        missing = []
        for path in self.modules():
            package, *rooms, _ = path.relative_to(ROOT).parts[1:]
            listed = packages[package].get(f"{rooms[0]}/", "") if rooms else tree
            name = path.stem if rooms else path.name
            if not re.search(rf"\b{re.escape(name)}\b", listed):
                missing.append(str(path.relative_to(ROOT)))
        assert missing == []

    def test_the_floors_are_those_of_the_contracts(self) -> None:
        contracts = PROJECT["tool"]["importlinter"]["contracts"]
        layers = {c["containers"][0]: c["layers"] for c in contracts if c["type"] == "layers"}
        described = re.findall(
            r"^    (\w+): +((?:.*\n)(?: {20,}.*\n)*)", ARCHITECTURE, re.MULTILINE
        )
        floors = {name: " ".join(text.split()).split(" > ") for name, text in described}
        assert floors == layers


class TestApi:
    PAGE = (ROOT / "docs/api.md").read_text()

    @staticmethod
    def signature(name: str) -> str:
        """Return a name as the page shows it, with its parameters but without their types."""
        value = getattr(taylorglo, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            return name
        plain = [
            parameter.replace(annotation=inspect.Parameter.empty)
            for parameter in inspect.signature(value).parameters.values()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        return f"{name}{inspect.Signature(plain)}"

    def test_the_page_lists_exactly_the_public_names_with_their_parameters(self) -> None:
        headings = re.findall(r"^### `(.+)`$", self.PAGE, re.MULTILINE)
        assert sorted(headings) == sorted(map(self.signature, taylorglo.__all__))

    def test_every_name_has_a_sentence(self) -> None:
        for section in re.split(r"^### ", self.PAGE, flags=re.MULTILINE)[1:]:
            heading, _, body = section.partition("\n")
            assert body.strip().partition("\n\n")[0].endswith("."), heading

    def test_the_search_by_hand_works(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = []

        def evaluate(theta: list[float]) -> taylorglo.Evaluation:
            told.append(theta)
            now = time.time()
            fitness = 1 / (1 + abs(theta[5]))
            return taylorglo.Evaluation(
                status="ok",
                curve=[],
                started=now,
                ended=now,
                seconds=0.0,
                fitness=fitness,
                accuracies=[fitness],
                robust_accuracies=[],
            )

        monkeypatch.chdir(tmp_path)
        names = run_code(self.PAGE, {"evaluate": evaluate})
        assert len(told) == 3 * 4
        assert names["best"] == min(told, key=lambda theta: abs(theta[5]))


class TestHabits:
    def test_the_citation_and_the_changelog_have_the_version(self) -> None:
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
        assert citation["version"] == version("taylorglo")
        assert citation["license"] == PROJECT["project"]["license"]
        assert f"\n## {version('taylorglo')}\n" in (ROOT / "CHANGELOG.md").read_text()

    def test_the_new_places_of_the_modules_exist(self) -> None:
        rows = re.findall(
            r"^\| `taylorglo[^|]*\| ([^|]+) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
        )
        places = []
        for row in rows:
            package = ""
            for name in re.findall(r"`([\w.]+)`", row):
                full = f"{package}{name}" if name.startswith(".") else name
                package = full.rpartition(".")[0]
                places.append(full)
        assert len(places) > 40
        for place in places:
            folder = "pipelines" if place.startswith("taylorglo_pipelines") else "components"
            path = ROOT / folder / place.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), place

    def test_the_workflow_runs_the_checks_of_the_repository(self) -> None:
        workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
        # YAML 1.1 reads the key `on` as true.
        assert set(workflow[True]) == {"push", "pull_request"}
        steps = workflow["jobs"]["test"]["steps"]
        assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", s["uses"]) for s in steps if "uses" in s)
