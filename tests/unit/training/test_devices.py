"""What a device is asked: its arithmetic, its memory, and what its errors mean."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taylorglo.errors import InputError
from taylorglo.settings import TrainingSettings
from taylorglo.training import devices
from taylorglo.training.devices import (
    available_memory,
    computing,
    is_broken,
    is_out_of_memory,
    precision_of,
)

CPU = torch.device("cpu")


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


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="there is no /proc/cpuinfo")
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the flags of other CPUs have other names"
)
def test_this_cpu_is_asked_for_its_arithmetic():
    flags = Path("/proc/cpuinfo").read_text().split()
    assert devices._has_bfloat16(CPU) == ("avx512_bf16" in flags)


def test_a_cpu_without_the_arithmetic_is_not_taken_for_one_with_avx512(monkeypatch):
    """PyTorch's own answer is yes on any AVX512, where bfloat16 is emulated."""
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not devices._has_bfloat16(CPU)


def test_memory_of_the_host():
    assert 2**20 < available_memory(CPU) < 2**63


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
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


@pytest.mark.parametrize(
    ("precision", "allowed"), [("tf32", True), ("float32", False), ("bfloat16", False)]
)
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
from taylorglo.training.devices import reuse_memory
{first}
for _ in range(20):
    torch.ones(2**22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**22)  # 16 MiB, 4096 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is another one than glibc"
)
def test_memory_is_used_again():
    """Pages that were given back would have to be brought in again, one fault each."""

    def faults(first: str) -> int:
        command = [sys.executable, "-c", FREED_AND_TAKEN.format(first=first)]
        environment = {
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": str(2**20),
        }  # it adapts itself, unless it is set
        return int(
            subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            ).stdout
        )

    assert faults("") > 20 * 4000
    assert faults("reuse_memory()") < 20 * 400


def test_out_of_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    errors: list[tuple[Any, bool]] = [
        (caught.value, True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), False),
        (RuntimeError("sizes do not match"), False),
        (InputError("no"), False),
    ]
    assert [is_out_of_memory(error) for error, _ in errors] == [expected for _, expected in errors]


def test_a_gpu_that_failed_is_recognised():
    assert is_broken(torch.AcceleratorError("CUDA error: unspecified launch failure"))
    assert not is_broken(RuntimeError("sizes do not match"))
