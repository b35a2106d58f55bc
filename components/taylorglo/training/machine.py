"""The CPUs and the memory that the system allows a task, which a container may limit (cgroups, version 2 or 1)."""

import os
from pathlib import Path

from taylorglo.services.variables import CPUS

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def cpus() -> int:
    """How many CPUs this task may use, at least 1: those it was told of, or what the system and its cgroup allow."""
    told = os.environ.get(CPUS)
    if told:
        return max(1, int(told))
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _cgroup("cpu.max").split()  # "max 100000", or "150000 100000" for one and a half
    quota = quota or [
        _cgroup("cpu/cpu.cfs_quota_us"),
        _cgroup("cpu/cpu.cfs_period_us"),
    ]  # "-1" for no limit
    if len(quota) == 2 and all(part.isdigit() for part in quota):
        allowed = min(allowed, int(quota[0]) // int(quota[1]))
    return max(1, allowed)


def free_host_memory() -> int:
    """How many bytes this task can still allocate, as far as the system tells; 2^63 where it tells nothing."""
    free = _entries(_read(_MEMINFO)).get("MemAvailable:", 2**63 // 1024) * 1024
    for folder, limit, used, cache in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most = _cgroup(folder + limit)
        if most.isdigit():
            taken = int(_cgroup(folder + used) or 0)
            # Files that were read are kept in memory, and counted, until somebody needs it.
            given_back = _entries(_cgroup(f"{folder}memory.stat")).get(cache, 0)
            free = min(free, int(most) - max(0, taken - given_back))
    return max(0, free)


def _entries(text: str) -> dict[str, int]:
    """The lines of a file of names and numbers."""
    return {
        words[0]: int(words[1]) for words in map(str.split, text.splitlines()) if len(words) > 1
    }


def _cgroup(name: str) -> str:
    return _read(_CGROUP / name).strip()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
