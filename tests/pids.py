"""Processes by their numbers."""

from pathlib import Path


def is_running(pid: int) -> bool:
    """Return whether there is such a process, and it is not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The name of the program, in parentheses, may have any character in it.
    return status.rpartition(")")[2].split()[0] != "Z"
