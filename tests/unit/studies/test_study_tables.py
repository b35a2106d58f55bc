"""The tables of the studies in the documentation."""

import subprocess
import sys
from pathlib import Path

import pytest

from taylorglo.errors import InputError

sys.path.append(str(Path(__file__).parents[2] / "studies"))

from tables import DOCUMENT, with_tables

STUDIES = Path(__file__).parents[2] / "studies"

TEXT = """# Results

<!-- study search/methods -->
| old |
<!-- end -->

Words.

<!-- study fitness/ranks -->
| kept |
<!-- end -->
"""


def test_a_table_is_taken_from_its_study(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "methods.md").write_text("| new |\n| --- |\n\n(n = 3.)\n")
    text, missing = with_tables(TEXT, tmp_path)
    new = "<!-- study search/methods -->\n\n| new |\n| --- |\n\n(n = 3.)\n\n<!-- end -->"
    assert text == TEXT.replace("<!-- study search/methods -->\n| old |\n<!-- end -->", new)
    assert missing == ["fitness/ranks"]
    assert with_tables(text, tmp_path) == (text, missing)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.removesuffix("<!-- end -->\n"),
        TEXT.replace("<!-- end -->\n", "", 1),
    ],
)
def test_a_table_without_an_end_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="has no <!-- end -->"):
        with_tables(text, tmp_path)


def test_the_document_of_the_repository_has_whole_tables(tmp_path: Path) -> None:
    text = DOCUMENT.read_text()
    assert with_tables(text, tmp_path)[0] == text


def test_the_command_writes_the_document(tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text(TEXT)
    (tmp_path / "fitness").mkdir()
    (tmp_path / "fitness" / "ranks.md").write_text("| rank |\n")
    command = [sys.executable, str(STUDIES / "tables.py"), "--folder", str(tmp_path)]
    command += ["--document", str(document)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "| rank |" in document.read_text()
    assert "| old |" in document.read_text()
    assert result.stdout.startswith("search/methods stays as it is")
    document.write_text(TEXT.replace("<!-- end -->\n", ""))
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
