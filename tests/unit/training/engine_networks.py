"""Networks of a user that leave files beside this module.

The fixture ``networks`` copies the module into a folder of the test.
"""

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent

ImageShape = tuple[int, int, int]


class Linear(nn.Sequential):
    """A linear network for the digits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))


class Mortal(Linear):
    """A network that kills the first process that trains it."""

    def forward(self, images: Tensor) -> Tensor:
        trains = self.training and torch.is_grad_enabled() and images.device.type != "meta"
        if trains and _is_first("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        logits: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return logits


class Visible(Linear):
    """A network that leaves the ids of the processes which compute it."""

    def forward(self, images: Tensor) -> Tensor:
        (FOLDER / f"pid-{os.getpid()}").touch()
        if not self.training:
            (FOLDER / "validated").touch()
        logits: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return logits


def mortal(image_shape: ImageShape, num_classes: int) -> nn.Module:
    return Mortal(num_classes)


def visible(image_shape: ImageShape, num_classes: int) -> nn.Module:
    return Visible(num_classes)


def _is_first(name: str) -> bool:
    """Make a file; return whether no other process has made it before."""
    try:
        (FOLDER / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
