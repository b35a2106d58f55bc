"""The device that a training runs on: what it can do, how much memory is left, and its errors."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

from taylorglo.errors import InputError
from taylorglo.settings import TrainingSettings
from taylorglo.training.machine import free_host_memory

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",  # the CPU's allocator has no exception of its own
    "CUDA error: out of memory",  # of what is not PyTorch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>


def device_of(settings: TrainingSettings) -> torch.device:
    """The device to train on; ``auto`` is the GPU if there is one.

    Raises:
        InputError: cuda is asked for and not there.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise InputError(
            "training.device is cuda, and there is no CUDA device here; use auto or cpu"
        )
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
    # PyTorch computes with bfloat16 on every CPU, but slower than in float32 where the CPU has no
    # arithmetic for it. To its kernels any AVX512 will do, so that x86 is asked for AVX512-BF16,
    # which those with AMX have too.
    there = torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return there and (
        platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_avx512_bf16_supported()
    )


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
        with torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
        ):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = former


def available_memory(device: torch.device) -> int:
    """How many bytes can still be allocated on a device, as far as the system tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_memory()


def reuse_memory() -> None:
    """Let this process keep the memory that it frees, for its next tensors.

    The C library's allocator gives large blocks back, and the system hands out every page of them anew, cleared, in
    every step. This is for glibc's; other allocators are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(
            _M_MMAP_THRESHOLD, 32 * 2**20
        )  # the most that it takes; larger blocks still come and go
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left."""
    told = any(message in str(error) for message in _OUT_OF_MEMORY)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


def is_broken(error: BaseException) -> bool:
    """Whether a GPU failed in a way after which this process can compute nothing on it any more."""
    return isinstance(error, torch.AcceleratorError)
