"""Files that appear whole or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")


def is_draft(path: Path) -> bool:
    """Return whether a path is the temporary file of :func:`replacing`."""
    return _DRAFT.fullmatch(path.name) is not None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place if the block succeeds.

    If the block fails, the temporary file is removed and ``path`` is left as it was.

    Raises:
        OSError: the file cannot be written.
    """
    # Not tempfile: it makes files that only their owner can read, and the next task may run as
    # another user.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
