"""The device that a training runs on: its arithmetic, its free memory, and its errors."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

from taylorglo.errors import InputError
from taylorglo.settings import TrainingSettings
from taylorglo.training.machine import free_host_memory

# Parts of the messages of errors that have no type of their own: those of PyTorch's allocator of
# the CPU, of CUDA outside of PyTorch's allocator, and of CUDA's libraries.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

# Options of mallopt, from <malloc.h> of glibc, and the largest values that it accepts, in bytes.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_TRIM_THRESHOLD = 2**31 - 1
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def device_of(settings: TrainingSettings) -> torch.device:
    """Return the device to train on; ``auto`` is the GPU if there is one.

    Raises:
        InputError: the device should be cuda, and there is no CUDA device.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise InputError(
            "training.device is cuda, and there is no CUDA device here; use auto or cpu"
        )
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


def precision_of(settings: TrainingSettings, device: torch.device, *, measured: bool) -> str:
    """Return the precision to train in: ``float32``, ``tf32`` or ``bfloat16``.

    Args:
        settings: they have the configured precision.
        device: the device to train on.
        measured: whether bfloat16 was measured to give the network the same accuracy. If not,
            ``auto`` is float32.

    Raises:
        InputError: the device has no arithmetic for the configured precision.
    """
    precision = settings.precision
    if precision == "auto":
        return "bfloat16" if measured and has_bfloat16(device) else "float32"
    lacks_bfloat16 = precision == "bfloat16" and not has_bfloat16(device)
    lacks_tf32 = precision == "tf32" and not has_tf32(device)
    if lacks_bfloat16 or lacks_tf32:
        name = "GPU" if device.type == "cuda" else "CPU"
        raise InputError(
            f"training.precision is {precision}, and the {name} here has no arithmetic for it; "
            "use auto or float32"
        )
    return precision


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has arithmetic for bfloat16, and does not merely emulate it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch computes with bfloat16 on every CPU, but more slowly than in float32 if the CPU has no
    # arithmetic for it.
    if not (torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # PyTorch's kernels accept any AVX512. On x86, only CPUs with AVX512-BF16 have the arithmetic;
    # those with AMX have AVX512-BF16, too.
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return not is_x86 or bool(torch.cpu._is_avx512_bf16_supported())


def has_tf32(device: torch.device) -> bool:
    """Return whether a device has arithmetic for TF32: GPUs from compute capability 8.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Compute matrix products and convolutions in a precision within a block.

    Everything else stays in float32.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    flags_before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        # The cache of autocast would keep the weights of the first step for all other steps.
        with torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
        ):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = flags_before


def available_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a device, as far as the system reports."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_memory()


def reuse_memory() -> None:
    """Let this process keep the memory that it frees for its next tensors.

    The allocator of the C library gives large blocks back, and the system has to clear and hand out
    each of their pages again in every step. This works for glibc; other allocators are left as they
    are. Blocks above 32 MiB are still given back.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(message in str(error) for message in _OUT_OF_MEMORY)


def is_broken(error: BaseException) -> bool:
    """Return whether a GPU failed so that this process can compute nothing on it any more."""
    return isinstance(error, torch.AcceleratorError)
