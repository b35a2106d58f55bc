"""Losses of a user that fail, for the tests of the engine. Worker processes can import them."""

import os
import signal
import weakref
from pathlib import Path

import torch
from torch import Tensor

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.errors import InputError
from taylorglo.loss.classic import CrossEntropy


class Fatal(CrossEntropy):
    """A loss that kills its process."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class StrangeError(Exception):
    """An error that cannot be unpickled: its constructor takes two arguments."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


class Strange(CrossEntropy):
    """A loss whose error cannot be passed to another process."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise StrangeError("one", "other")


class Crowded(CrossEntropy):
    """A loss for which the memory is too small four times in all, in whichever processes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        for number in range(4):
            try:
                (self.folder / f"crowded-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            raise MemoryError("too many")
        return super().per_sample(logits, targets)


class Wrong(CrossEntropy):
    """A loss that reports bad input."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise InputError("this loss cannot be computed")


class Hungry(CrossEntropy):
    """A loss that needs more memory than there is."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB\nand much more"
        )


class Late(CrossEntropy):
    """A loss that fails in every third step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 3 == 0:
            raise RuntimeError("broken\nin two")
        return super().per_sample(logits, targets)


class Broken(CrossEntropy):
    """A loss that finds the GPU broken."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise torch.AcceleratorError(
            "CUDA error: unspecified launch failure\nCUDA kernel errors might be ..."
        )


class Holding(CrossEntropy):
    """A loss that fails, and checks whether the logits of earlier calls are still in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[weakref.ref[Tensor]] = []
        self.alive: list[bool] = []

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.alive.append(any(earlier() is not None for earlier in self.logits))
        self.logits.append(weakref.ref(logits))
        raise ValueError("broken")


def read_or_die(path: Path, survivor: int) -> Dataset:
    """Read a data set in the process ``survivor``; kill every other process."""
    if os.getpid() != survivor:
        os.kill(os.getpid(), signal.SIGKILL)
    return datasets.read(path)
