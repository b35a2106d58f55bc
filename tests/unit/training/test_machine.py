"""The CPUs and the memory of a task: the machine's, or what a container is allowed of them."""

from pathlib import Path

import pytest

from taylorglo.training import machine
from taylorglo.training.machine import cpus, free_host_memory

V1, V2 = "version 1", "version 2"


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 CPUs and 8 GiB; returns the folder of its cgroup, which is empty."""
    (tmp_path / "meminfo").write_text(
        "MemTotal: 9000000 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n"
    )
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(
        machine.os, "sched_getaffinity", lambda process: set(range(8)), raising=False
    )
    monkeypatch.delenv(machine.CPUS, raising=False)
    for folder in ("cpu", "memory"):
        (tmp_path / folder).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (None, 8),
        ("max 100000", 8),
        ("300000 100000", 3),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_cpus_of_a_container(cgroup, quota, expected):
    if quota is not None:
        (cgroup / "cpu.max").write_text(f"{quota}\n")
    assert cpus() == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("-1", 8), ("300000", 3), ("50000", 1), ("1600000", 8)]
)
def test_cpus_of_a_container_on_an_older_system(cgroup, quota, expected):
    (cgroup / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (cgroup / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert cpus() == expected


def test_cpus_that_a_task_was_told_of(cgroup, monkeypatch):
    monkeypatch.setenv(machine.CPUS, "3")
    assert cpus() == 3
    monkeypatch.setenv(machine.CPUS, "0")
    assert cpus() == 1
    monkeypatch.setenv(machine.CPUS, "")
    assert cpus() == 8


def test_a_pinned_process_has_the_cpus_that_it_is_pinned_to(cgroup, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert cpus() == 2


@pytest.mark.parametrize(
    ("limit", "used", "cache", "unlimited"),
    [
        ("memory.max", "memory.current", "inactive_file", "max"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "total_inactive_file",
            "9223372036854771712",
        ),
    ],
    ids=[V2, V1],
)
def test_memory_of_a_container(cgroup, limit, used, cache, unlimited):
    assert free_host_memory() == 8 * 2**30
    (cgroup / limit).write_text(f"{unlimited}\n")
    assert free_host_memory() == 8 * 2**30
    (cgroup / limit).write_text("1000000\n")
    assert free_host_memory() == 1000000
    (cgroup / used).write_text("400000\n")
    assert free_host_memory() == 600000
    (cgroup / used).write_text("1400000\n")
    assert free_host_memory() == 0
    # Files that were read count as used, and are given up for who needs the memory.
    (cgroup / limit).with_name("memory.stat").write_text(f"anon 100000\n{cache} 700000\n")
    assert free_host_memory() == 300000
    (cgroup / used).write_text("600000\n")
    assert free_host_memory() == 1000000


def test_a_system_that_tells_nothing(cgroup):
    (cgroup / "meminfo").unlink()
    assert free_host_memory() == 2**63
