"""The documentation is built as a site without a warning, and its pages show what really is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import taylorglo
from taylorglo_pipelines.config import load

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
GUIDES = ["data", "laptop-to-cluster", "network", "start", "using"]

pytest.importorskip("material", reason="needs mkdocs-material, of the extra docs")


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language in a page of the documentation."""
    text = (ROOT / f"docs/{page}.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as ``make site`` does, and return its folder."""
    folder = tmp_path_factory.mktemp("site")
    # A proxy that nobody listens on: the build has to do without the network.
    closed = dict.fromkeys(("http_proxy", "https_proxy"), "127.0.0.1:9")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **closed, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return folder


def test_every_page_is_in_the_navigation_and_on_the_site(site: Path) -> None:
    pages = {path.stem for path in ROOT.glob("docs/*.md")}
    assert {path.stem for path in site.glob("*.html")} == {*pages, "404"}


def test_every_formula_is_drawn_by_the_browser_itself(site: Path) -> None:
    text = (site / "derivations.html").read_text()
    assert text.count("<math") > 100
    assert "arithmatex" not in text
    # A command that the converter does not know stays as it was written.
    formulas = " ".join(re.findall(r"<math.*?</math>", text, re.DOTALL))
    assert not re.search(r"\\[a-z]|<mi>&(amp;)?</mi>", formulas)


def test_a_diagram_is_left_to_mermaid_and_not_shown_as_code(site: Path) -> None:
    for page in ("architecture", "cluster"):
        assert '<pre class="mermaid">' in (site / f"{page}.html").read_text()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loaded = [
        (path.name, address)
        for path in site.glob("*.html")
        for address in re.findall(
            r'<(?:script|img|link)[^>]+(?:src|href)="(https?:[^"]+)"', path.read_text()
        )
    ]
    assert loaded == []


def test_the_reference_has_every_public_name_with_its_docstring(site: Path) -> None:
    text = (ROOT / "docs/reference.md").read_text()
    names = re.findall(r"^::: taylorglo\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(taylorglo.__all__)
    page = (site / "reference.html").read_text()
    for name in names:
        assert re.search(rf'id="taylorglo\.(\w+\.)*{name}"', page), name
    assert "the first gradient step raises the" in page
    assert ":func:" not in page


@pytest.mark.parametrize("page", ["network", "using"])
def test_the_code_of_a_guide_is_that_of_an_example(page: str) -> None:
    sources = [path.read_text() for path in EXAMPLES.glob("*.py")]
    for block in blocks(page, "python"):
        assert any(block in source for source in sources), block


@pytest.mark.parametrize("page", GUIDES)
def test_the_sweeps_of_a_guide_are_valid(page: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        assert load(path).name == yaml.safe_load(block)["name"]
