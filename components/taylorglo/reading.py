"""Files that somebody else wrote, read in bounded time and memory."""

import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taylorglo.errors import quoted


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file: a pipe or a device may never end.

    Raises:
        OSError: there is no such file, or it is no regular one.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        raise OSError(errno.EINVAL, "Not a path: it has a null byte") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file")


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """Return the content of a small file.

    Args:
        path: of the file.
        limit: the largest number of bytes that it may have.

    Raises:
        OSError: the file cannot be read, is no regular one, or is larger.
    """
    check_regular(path)
    with Path(path).open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"Too large: should have at most {limit} bytes")
    return content


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as those of safetensors do: a length, and a group in JSON.

    Raises:
        OSError: the file cannot be read, or is no regular one.
    """
    check_regular(path)
    with Path(path).open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and head[7] == 0


def parse_json(content: bytes | str) -> Any:
    """Return the values of a JSON text, which is in UTF-8.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a key twice in one group.
    """
    text = content.decode() if isinstance(content, bytes) else content
    try:
        return json.loads(text, object_pairs_hook=_group, parse_int=_integer)
    except RecursionError:
        raise ValueError("the values are nested too deeply") from None


def _group(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return named values; JSON's own parser would take the last one of two of the same name."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {quoted(key)} is there twice")
        values[key] = value
    return values


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        # Python refuses such numbers, because reading them takes quadratic time.
        raise ValueError(f"a number has {len(digits)} digits") from None
