"""Places that a user names: paths with ``~``, and databases in SQLite files as URLs.

A path may have any character in it. In a URL, ``%`` and ``?`` have a meaning, and SQLAlchemy's own
type writes and reads them.
"""

import os
from pathlib import Path

from taylorglo.errors import InputError, quoted

_SCHEME = "sqlite:"


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path in which ``~`` is the user's home.

    Raises:
        InputError: there is no such user, or the path has a NUL character.
    """
    if "\0" in str(path):
        raise InputError(f"{quoted(str(path))}: a path cannot have a NUL character in it")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}; write the whole path") from None


def is_sqlite(url: str) -> bool:
    """Return whether a URL names a database of SQLite."""
    return url.startswith(_SCHEME)


def sqlite_url(path: Path) -> str:
    """Return the URL of an SQLite database in a file."""
    # SQLAlchemy takes a tenth of a second to import.
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path)).render_as_string()


def sqlite_file(url: str) -> Path:
    """Return the file of an SQLite database as an absolute path.

    Args:
        url: ``sqlite:///PATH``, in which ``%`` is written ``%25`` and ``?`` is written ``%3F``.

    Raises:
        InputError: the URL is malformed, has options, or names no file.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    expected = "should be sqlite:///PATH, with the path of a file"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise InputError(f"{quoted(url)}: {expected}") from None
    if parsed.query:
        raise InputError(f"{quoted(url)}: {expected}; a ? in the path is written %3F")
    name = parsed.database or ""
    if parsed.host or not name or name.startswith((":memory:", "file:")):
        raise InputError(f"{quoted(url)}: {expected}")
    return expanded(name).absolute()
