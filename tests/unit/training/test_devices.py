"""A device's arithmetic, its memory, and its errors."""

import os
import platform
import subprocess
import sys
from pathlib import Path

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
    ("configured", "measured", "available", "expected"),
    [
        ("auto", True, True, "bfloat16"),
        ("auto", True, False, "float32"),
        ("auto", False, True, "float32"),
        ("float32", True, True, "float32"),
        ("bfloat16", False, True, "bfloat16"),
    ],
)
def test_the_precision(
    monkeypatch: pytest.MonkeyPatch,
    configured: str,
    measured: bool,
    available: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: available)
    settings = TrainingSettings.model_validate({"precision": configured})
    assert precision_of(settings, CPU, measured=measured) == expected


@pytest.mark.parametrize(("configured", "available"), [("bfloat16", False), ("tf32", True)])
def test_a_precision_that_the_device_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, configured: str, available: bool
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: available)
    settings = TrainingSettings.model_validate({"precision": configured})
    with pytest.raises(InputError, match="the CPU here has no arithmetic for it") as caught:
        precision_of(settings, CPU, measured=True)
    assert str(caught.value).startswith(f"training.precision is {configured}, ")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="there is no /proc/cpuinfo")
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the flags of other CPUs have other names"
)
def test_the_arithmetic_of_this_cpu() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert devices.has_bfloat16(CPU) == ("avx512_bf16" in flags)


def test_avx512_alone_is_no_arithmetic_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch says that any AVX512 supports bfloat16, but some only emulate it.
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not devices.has_bfloat16(CPU)


def test_memory_of_the_host() -> None:
    assert 2**20 < available_memory(CPU) < 2**63


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
def test_computing_in_a_precision_within_a_block(precision: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4)
    values = torch.rand(2, 4)
    with computing(precision, CPU):
        assert layer(values).dtype == dtype
        with computing("float32", CPU):
            assert layer(values).dtype == torch.float32
        assert layer(values).dtype == dtype
    assert layer(values).dtype == torch.float32
    with pytest.raises(ZeroDivisionError), computing(precision, CPU):
        raise ZeroDivisionError
    assert layer(values).dtype == torch.float32


def test_results_follow_the_weights() -> None:
    # With its cache, autocast would keep a copy of the weights until the end of the block.
    layer = nn.Linear(4, 4)
    values = torch.rand(2, 4)
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
def test_tf32_is_allowed_within_a_block(precision: str, allowed: bool) -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with computing(precision, CPU):
        assert flags() == (allowed, allowed)
    assert flags() == before
    with pytest.raises(ZeroDivisionError), computing(precision, CPU):
        raise ZeroDivisionError
    assert flags() == before


# A tensor of 16 MiB has 4096 pages. Each page that was given back costs a page fault.
PAGE_FAULTS = """
import resource
import torch
from taylorglo.training.devices import reuse_memory
{first_statement}
for _ in range(20):
    torch.ones(2**22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(first_statement: str) -> int:
    command = [sys.executable, "-c", PAGE_FAULTS.format(first_statement=first_statement)]
    # glibc would adapt the threshold by itself if it were not set.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(process.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is another one than glibc"
)
def test_memory_is_used_again() -> None:
    assert page_faults("") > 20 * 4000
    assert page_faults("reuse_memory()") < 20 * 400


def test_the_cpus_error_of_missing_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_errors_of_missing_memory_are_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("sizes do not match"),
        InputError("no"),
    ],
)
def test_other_errors_are_no_errors_of_missing_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_gpu_that_failed_is_recognised() -> None:
    assert is_broken(torch.AcceleratorError("CUDA error: unspecified launch failure"))
    assert not is_broken(RuntimeError("sizes do not match"))
