"""Paths with ``~``, and SQLite files as URLs."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from taylorglo.addresses import expanded, is_sqlite, sqlite_file, sqlite_url
from taylorglo.errors import InputError

# Any character of a path but NUL; those that cannot be encoded are none of a URL either.
NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1)


@settings(deadline=None, derandomize=True)
@given(st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1))
def test_a_file_is_found_by_its_url_whatever_its_name(names: list[str]) -> None:
    path = Path("/", *names)
    url = sqlite_url(path)
    assert is_sqlite(url)
    assert sqlite_file(url) == path
    assert make_url(url).database == str(path)
    assert not make_url(url).query


def test_the_url_of_a_plain_path_is_plain() -> None:
    assert sqlite_url(Path("/work/runs/study.db")) == "sqlite:////work/runs/study.db"
    assert sqlite_url(Path("/feature%2Fx/a?b.db")) == "sqlite:////feature%252Fx/a%3Fb.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file:study.db",
        "sqlite://host/study.db",
        "sqlite:///study.db?mode=ro",
        "sqlite:study.db",
    ],
)
def test_a_url_without_a_plain_file_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="should be sqlite:///PATH, with the path of a file"):
        sqlite_file(url)


def test_the_home_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/runs") == tmp_path / "runs"
    assert expanded("runs/~") == Path("runs/~")
    assert sqlite_file("sqlite:///~/study.db") == tmp_path / "study.db"
    with pytest.raises(InputError, match="write the whole path"):
        expanded("~no-such-user/runs")


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(InputError, match="a path cannot have a NUL character"):
        expanded("a\0b")
