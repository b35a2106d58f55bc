"""The CPUs and the memory of a task: those of the machine, or the part that a container allows."""

import os
from pathlib import Path

import pytest

from taylorglo.training.machine import cpus, free_host_memory
from taylorglo.variables import CPUS

CGROUP = Path("sys/fs/cgroup")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a machine of 8 CPUs and 8 GiB, whose cgroup sets no limits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv(CPUS, raising=False)
    write(tmp_path, "proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8388608 kB\nHugePages: 0")
    return tmp_path


def write(root: Path, name: str | Path, content: str) -> None:
    """Write a file of the system, with the newline that the kernel puts at its end."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def test_cpus_of_a_machine_without_cgroups(root: Path) -> None:
    assert cpus(root) == 8


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("300000 100000", 3),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_cpus_of_a_container(root: Path, quota: str, expected: int) -> None:
    write(root, CGROUP / "cpu.max", quota)
    assert cpus(root) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("-1", 8), ("300000", 3), ("50000", 1), ("1600000", 8)]
)
def test_cpus_of_a_container_of_version_1(root: Path, quota: str, expected: int) -> None:
    write(root, CGROUP / "cpu/cpu.cfs_quota_us", quota)
    write(root, CGROUP / "cpu/cpu.cfs_period_us", "100000")
    assert cpus(root) == expected


@pytest.mark.parametrize(("configured", "expected"), [("3", 3), ("0", 1), ("", 8)])
def test_cpus_that_the_environment_gives_a_task(
    root: Path, monkeypatch: pytest.MonkeyPatch, configured: str, expected: int
) -> None:
    monkeypatch.setenv(CPUS, configured)
    assert cpus(root) == expected


def test_a_pinned_process_has_the_cpus_that_it_is_pinned_to(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert cpus(root) == 2


def test_this_machine_has_cpus_and_memory() -> None:
    assert cpus() >= 1
    assert free_host_memory() > 0


@pytest.mark.parametrize(
    ("limit", "use", "cache", "unlimited"),
    [
        ("memory.max", "memory.current", "inactive_file", "max"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "total_inactive_file",
            "9223372036854771712",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_memory_of_a_container(
    root: Path, limit: str, use: str, cache: str, unlimited: str
) -> None:
    assert free_host_memory(root) == 8 * 2**30
    write(root, CGROUP / limit, unlimited)
    assert free_host_memory(root) == 8 * 2**30
    write(root, CGROUP / limit, "1000000")
    assert free_host_memory(root) == 1000000
    write(root, CGROUP / use, "400000")
    assert free_host_memory(root) == 600000
    write(root, CGROUP / use, "1400000")
    assert free_host_memory(root) == 0
    # Files that were read count as used, and are given up if somebody needs the memory.
    statistics = (CGROUP / limit).with_name("memory.stat")
    write(root, statistics, f"anon 100000\n{cache} 700000")
    assert free_host_memory(root) == 300000
    write(root, CGROUP / use, "600000")
    assert free_host_memory(root) == 1000000


def test_the_memory_of_a_system_that_reports_nothing_is_unlimited(tmp_path: Path) -> None:
    assert free_host_memory(tmp_path) == 2**63
