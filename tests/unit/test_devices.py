"""What a device is asked: its CPUs and its memory, as a container is allowed them, and its arithmetic."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taylorglo import devices
from taylorglo.devices import available_memory, computing, cpus, is_out_of_memory, precision_of
from taylorglo.errors import InputError
from taylorglo.settings import TrainingSettings

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 CPUs; returns the folder of its cgroup, which is empty."""
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv(devices.CPUS, raising=False)
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
def test_cpus_of_a_container(machine, quota, expected):
    if quota is not None:
        (machine / "cpu.max").write_text(f"{quota}\n")
    assert cpus() == expected


def test_cpus_that_a_task_was_told_of(machine, monkeypatch):
    monkeypatch.setenv(devices.CPUS, "3")
    assert cpus() == 3
    monkeypatch.setenv(devices.CPUS, "0")
    assert cpus() == 1
    monkeypatch.setenv(devices.CPUS, "")
    assert cpus() == 8


def test_a_pinned_process_has_the_cpus_that_it_is_pinned_to(machine, monkeypatch):
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert cpus() == 2


def test_memory_of_a_container(machine):
    whole = available_memory(CPU)
    assert 2**20 < whole < 2**63
    (machine / "memory.max").write_text("max\n")
    assert available_memory(CPU) == pytest.approx(whole, rel=0.5)
    (machine / "memory.max").write_text("1000000\n")
    assert available_memory(CPU) == 1000000
    (machine / "memory.current").write_text("400000\n")
    assert available_memory(CPU) == 600000
    (machine / "memory.current").write_text("1400000\n")
    assert available_memory(CPU) == 0


@pytest.mark.parametrize(
    ("asked", "measured", "there", "expected"),
    [
        ("auto", True, True, "bfloat16"),
        ("auto", True, False, "float32"),
        ("auto", False, True, "float32"),
        ("float32", True, True, "float32"),
        ("bfloat16", False, True, "bfloat16"),
        ("bfloat16", True, False, "the CPU here has no arithmetic for it"),
        ("tf32", True, True, "the CPU here has no arithmetic for it"),
    ],
)
def test_the_precision(monkeypatch, asked, measured, there, expected):
    monkeypatch.setattr(devices, "_has_bfloat16", lambda device: there)
    settings = TrainingSettings(precision=asked)
    if expected in ("float32", "bfloat16"):
        assert precision_of(settings, CPU, measured=measured) == expected
    else:
        with pytest.raises(InputError, match=expected) as caught:
            precision_of(settings, CPU, measured=measured)
        assert str(caught.value).startswith(f"training.precision is {asked}, ")
        assert "\n" not in str(caught.value)


def test_this_cpu_is_asked_without_a_failure():
    assert devices._has_bfloat16(CPU) in (True, False)


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_computing_in_a_precision_for_a_while(precision, dtype):
    layer, values = nn.Linear(4, 4), torch.rand(2, 4)
    with computing(precision, CPU):
        assert layer(values).dtype == dtype
        with computing("float32", CPU):
            assert layer(values).dtype == torch.float32
        assert layer(values).dtype == dtype
    assert layer(values).dtype == torch.float32
    with pytest.raises(ZeroDivisionError), computing(precision, CPU):
        raise ZeroDivisionError
    assert layer(values).dtype == torch.float32


def test_what_is_computed_follows_the_weights():
    """Autocast would keep a copy of them until the end of the block, which is a whole training."""
    layer, values = nn.Linear(4, 4), torch.rand(2, 4)
    with computing("bfloat16", CPU):
        before = layer(values)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        assert before.abs().sum() > 0
        assert layer(values).abs().sum() == 0


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", True), ("float32", False), ("bfloat16", False)])
def test_tf32_is_allowed_for_a_while(precision, allowed):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    former = matmul.allow_tf32, cudnn.allow_tf32
    with computing(precision, CPU):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == former
    with pytest.raises(ZeroDivisionError), computing(precision, CPU):
        raise ZeroDivisionError
    assert (matmul.allow_tf32, cudnn.allow_tf32) == former


FREED_AND_TAKEN = """
import resource
import torch
from taylorglo.devices import reuse_memory
{first}
for _ in range(20):
    torch.ones(2**22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**22)  # 16 MiB, 4096 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one than glibc")
def test_memory_is_used_again():
    """Pages that were given back would have to be brought in again, one fault each."""

    def faults(first: str) -> int:
        command = [sys.executable, "-c", FREED_AND_TAKEN.format(first=first)]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}  # it adapts itself, unless it is set
        return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    assert faults("") > 20 * 4000
    assert faults("reuse_memory()") < 20 * 400


def test_out_of_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    errors: list[tuple[Any, bool]] = [
        (caught.value, True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("sizes do not match"), False),
        (InputError("no"), False),
    ]
    assert [is_out_of_memory(error) for error, _ in errors] == [expected for _, expected in errors]
