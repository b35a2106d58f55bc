"""Networks of a user, named ``user_networks:FACTORY`` in the settings of the tests.

Some of them record what they are shown, and some fail.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from taylorglo.networks.factory import ImageShape, mlp


@dataclass
class Record:
    """What the networks of this module are shown, and whether they fail.

    Attributes:
        initial: the initial weights of each network.
        batches: the images of each training step, flattened.
        validated: the numbers of images that were shown in evaluation mode.
        calls: the number of calls of a network that counts them.
        broken: whether every call of a breakable network fails.
    """

    initial: list[list[float]] = field(default_factory=list)
    batches: list[Tensor] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    calls: int = 0
    broken: bool = False

    def clear(self) -> None:
        """Forget everything."""
        for entries in (self.initial, self.batches, self.validated):
            entries.clear()
        self.calls = 0
        self.broken = False


RECORD = Record()
perceptron = mlp


class Recording(nn.Module):
    """A linear network that records its initial weights and the images that it is shown."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = linear(num_classes)
        weights = torch.cat([p.detach().flatten() for p in self.network.parameters()])
        RECORD.initial.append(weights.tolist())

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            RECORD.batches.append(images.flatten(1).clone())
        else:
            RECORD.validated.append(len(images))
        logits: Tensor = self.network(images)
        return logits


class Failing(nn.Module):
    """A linear network that counts its calls, and fails in some of them."""

    def __init__(self, failures: Collection[int], num_classes: int) -> None:
        super().__init__()
        self.failures = failures
        self.network = linear(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        RECORD.calls += 1
        if RECORD.calls in self.failures:
            raise RuntimeError("disk on fire\nwith details")
        logits: Tensor = self.network(images)
        return logits


class Breakable(nn.Sequential):
    """A network that fails as long as the record says so."""

    def forward(self, images: Tensor) -> Tensor:
        if RECORD.broken:
            raise RuntimeError("disk on fire")
        logits: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return logits


class Peeking(nn.Sequential):
    """A network whose computation depends on the values of the images."""

    def forward(self, images: Tensor) -> Tensor:
        shown = images if images.sum() > 0 else -images
        logits: Tensor = super().forward(shown)  # type: ignore[no-untyped-call]
        return logits


def linear(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def recording(image_shape: ImageShape, num_classes: int) -> nn.Module:
    return Recording(num_classes)


def sound(image_shape: ImageShape, num_classes: int) -> nn.Module:
    return Failing((), num_classes)


def failing_once(image_shape: ImageShape, num_classes: int) -> nn.Module:
    return Failing({3}, num_classes)


def failing_twice(image_shape: ImageShape, num_classes: int) -> nn.Module:
    return Failing({3, 6}, num_classes)


def breakable(image_shape: ImageShape, num_classes: int) -> nn.Module:
    return Breakable(linear(num_classes))


def peeking(image_shape: ImageShape, num_classes: int) -> nn.Module:
    return Peeking(linear(num_classes))


def misfit(image_shape: ImageShape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(63, num_classes))


def dropout(image_shape: ImageShape, num_classes: int) -> nn.Module:
    hidden = (nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, num_classes))


def tied(image_shape: ImageShape, num_classes: int) -> nn.Module:
    one, two = nn.Linear(64, 64), nn.Linear(64, 64)
    two.weight = one.weight
    return nn.Sequential(nn.Flatten(), one, nn.ReLU(), two, nn.ReLU(), nn.Linear(64, num_classes))


def frozen(image_shape: ImageShape, num_classes: int) -> nn.Module:
    first = nn.Linear(64, 32)
    first.weight.requires_grad = False
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(32, num_classes))


def tokens(image_shape: ImageShape, num_classes: int) -> nn.Module:
    rows = nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Flatten())
    return nn.Sequential(rows, nn.Linear(128, num_classes))


def wide(image_shape: ImageShape, num_classes: int) -> nn.Module:
    hidden = (nn.Linear(64, 8000), nn.ReLU())
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(8000, num_classes))


def huge(image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Return a network of 112.5 GiB, which only the device ``meta`` can hold."""
    width = 2**28 + 2**27
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))
