"""The device that a training runs on: what it can do, how many CPUs there are, how much memory is left."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from taylorglo.errors import InputError
from taylorglo.settings import CPUS, TrainingSettings

_CGROUP = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>


def device_of(settings: TrainingSettings) -> torch.device:
    """The device to train on; ``auto`` is the GPU if there is one.

    Raises:
        InputError: cuda is asked for and not there.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise InputError("training.device is cuda, and there is no CUDA device here; use auto or cpu")
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


def precision_of(settings: TrainingSettings, device: torch.device, *, measured: bool) -> str:
    """The precision to train in: ``float32``, ``tf32`` or ``bfloat16``.

    Args:
        settings: what is asked for.
        device: to train on.
        measured: whether bfloat16 was measured to give the network the same accuracy; ``auto`` is float32 otherwise.

    Raises:
        InputError: the device has no such arithmetic.
    """
    if settings.precision == "auto":
        return "bfloat16" if measured and _has_bfloat16(device) else "float32"
    if settings.precision == "bfloat16" and not _has_bfloat16(device):
        raise InputError(
            f"training.precision is bfloat16, and the {_named(device)} here has no arithmetic for it; "
            "use auto or float32"
        )
    tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if settings.precision == "tf32" and not tf32:
        raise InputError(
            f"training.precision is tf32, and the {_named(device)} here has no arithmetic for it; use auto or float32"
        )
    return settings.precision


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # AVX512-BF16 or AMX, or their like: PyTorch computes with bfloat16 on every CPU, but elsewhere slower than without.
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _named(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "CPU"


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision: matrix products and convolutions, that is; the rest stays in float32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    former = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        # Without its cache, in which the weights of the first step would stay for all others.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = former


def cpus() -> int:
    """How many CPUs this task may use, at least 1: those it was told of, or what the system and its cgroup allow."""
    told = os.environ.get(CPUS)
    if told:
        return max(1, int(told))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(_CGROUP / "cpu.max").split()  # "max 100000", or "150000 100000" for one and a half
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, int(quota[0]) // int(quota[1]))
    return max(1, allowed)


def available_memory(device: torch.device) -> int:
    """How many bytes can still be allocated on a device, as far as the system tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = _read(Path("/proc/meminfo")).splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 2**63)
    limit = _read(_CGROUP / "memory.max").strip()
    if limit.isdigit():
        free = min(free, int(limit) - int(_read(_CGROUP / "memory.current").strip() or 0))
    return max(0, free)


def reuse_memory() -> None:
    """Let this process keep the memory that it frees, for its next tensors.

    The C library's allocator gives large blocks back, and the system hands out every page of them anew, cleared, in
    every step. This is for glibc's; other allocators are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes; larger blocks still come and go
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left."""
    # The CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
