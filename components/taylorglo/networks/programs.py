"""Networks as programs, which need no code of their authors: exported ones and TorchScript."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from taylorglo.errors import InputError, shortened
from taylorglo.reading import check_regular

EXPORTED = ".pt2"
SCRIPTED = (".pt", ".pts", ".torchscript")
SUFFIXES = (EXPORTED, *SCRIPTED)


def load_program(path: Path, name: str) -> nn.Module:
    """Return the network of a program, on the CPU. Like any program, it should be one to trust.

    Args:
        path: of the file.
        name: of the program, whose suffix says what it is: ``.pt2`` is of ``torch.export.save``,
            ``.pt``, ``.pts`` and ``.torchscript`` are of ``torch.jit.save``.

    Raises:
        InputError: the file is missing, or holds no such program.
    """
    try:
        check_regular(path)
        with _quiet():
            return _loaded(path, name.endswith(EXPORTED))
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from None
    except Exception as error:
        kind = "torch.export.save" if name.endswith(EXPORTED) else "torch.jit.save"
        raise InputError(
            f"{name}: should be a program that {kind} wrote: {shortened(str(error), 120)}"
        ) from None


def _loaded(path: Path, is_exported: bool) -> nn.Module:
    if is_exported:
        exported: nn.Module = torch.export.load(path).module()
        return exported
    load: Callable[..., nn.Module] = torch.jit.load
    return load(str(path), map_location="cpu")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from printing tracebacks, and that TorchScript is deprecated, in a block."""
    logger = logging.getLogger("torch.export")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled
