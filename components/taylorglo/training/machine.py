"""The CPUs and the memory that the system allows a task.

A container may limit both by cgroups, of version 2 or 1.
"""

import os
from pathlib import Path

from taylorglo.variables import CPUS

_ROOT = Path("/")
_CGROUP = "sys/fs/cgroup"

# Names of the files with the limit and the use of memory, and of the entry in ``memory.stat`` with
# the memory that cached files occupy: of version 2, then of version 1.
_MEMORY_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def cpus(root: Path = _ROOT) -> int:
    """Return how many CPUs this task may use, at least 1.

    The variable ``TAYLORGLO_CPUS`` decides if it is set, else the system and its cgroup.

    Args:
        root: root of the file system.
    """
    configured = os.environ.get(CPUS)
    if configured:
        return max(1, int(configured))
    allowed = _system_cpus()
    quota = _cpu_quota(root / _CGROUP)
    return max(1, allowed if quota is None else min(allowed, quota))


def free_host_memory(root: Path = _ROOT) -> int:
    """Return how many bytes this task can still allocate, as far as the system reports it.

    Args:
        root: root of the file system.

    Returns:
        2^63 if the system reports nothing.
    """
    free = _entries(root / "proc/meminfo").get("MemAvailable:", 2**63 // 1024) * 1024
    for limit, use, cache in _MEMORY_LIMITS:
        limit_path = root / _CGROUP / limit
        text = _read(limit_path)
        if text.isdigit():
            used = int(_read(root / _CGROUP / use) or 0)
            # The system counts files that were read as used memory, and gives them up as soon as
            # somebody needs the memory.
            cached = _entries(limit_path.with_name("memory.stat")).get(cache, 0)
            free = min(free, int(text) - max(0, used - cached))
    return max(0, free)


def _system_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_quota(cgroup: Path) -> int | None:
    """Return the number of whole CPUs that a cgroup allows, or None if it sets no limit."""
    # Version 2 has both numbers in one file: "max 100000" for no limit, or "150000 100000" for one
    # and a half CPUs. Version 1 has a file for each, and "-1" for no limit.
    words = _read(cgroup / "cpu.max").split() or [
        _read(cgroup / "cpu/cpu.cfs_quota_us"),
        _read(cgroup / "cpu/cpu.cfs_period_us"),
    ]
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    quota, period = map(int, words)
    return quota // period


def _entries(path: Path) -> dict[str, int]:
    """Read the lines of a file of names and numbers."""
    lines = [line.split() for line in _read(path).splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def _read(path: Path) -> str:
    """Read a file of the system; an absent or unreadable one is empty."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
