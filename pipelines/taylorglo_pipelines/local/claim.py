"""The claim of a local run on its sweep, and which sweeps have run in a folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TextIO

from taylorglo.errors import InputError


def opened(path: Path, mode: Literal["a", "w"]) -> TextIO:
    """Open a file of a run."""
    try:
        # Tasks print in UTF-8, whatever the locale is.
        return path.open(mode, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def only_run(work: Path, name: str) -> Iterator[None]:
    """Hold the lock of a sweep, which the system releases when the process ends, however it ends.

    Raises:
        InputError: another process holds it.
    """
    with opened(_lock(work, name), "w") as lock:
        if not _taken(lock):
            raise InputError(f"another run of sweep {name!r} is going on in {work}")
        yield


def is_running(work: Path, name: str) -> bool:
    """Return whether a process on this machine runs a sweep in a folder."""
    try:
        with _lock(work, name).open() as lock:
            return not _taken(lock)
    except OSError:
        # Nobody has run it here, or another user has.
        return False


def sweeps_in(work: Path) -> list[str]:
    """Return the names of the sweeps that have run in a folder."""
    return sorted(path.name[1:].removesuffix(".lock") for path in work.glob(".*.lock"))


def _lock(work: Path, name: str) -> Path:
    return work / f".{name}.lock"


def _taken(lock: TextIO) -> bool:
    """Take a lock, and return whether that was possible."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
