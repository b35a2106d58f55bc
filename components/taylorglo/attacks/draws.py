"""Random numbers that belong to an image, whatever batch it is attacked in.

They are drawn on the CPU, so they are the same for every device, every batch size, and whatever
images were broken before.
"""

import zlib
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

_BLOCK = 64  # images that share a generator; a generator for each image would take longer


class _Draw(Protocol):
    def __call__(self, shape: tuple[int, ...], /, *, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Draws:
    """Where the images of a batch get their random numbers.

    Attributes:
        seed: decides them.
        numbers: of the images among all, (N,) on the CPU; or how many images there are.
    """

    seed: int
    numbers: Tensor | int

    def take(self, index: Tensor) -> "Draws":
        """Return those of some images of the batch, by their places or by a mask."""
        return replace(self, numbers=self._numbers()[index.cpu()])

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return numbers that are uniform in [0, 1), (N, *shape), on the CPU.

        Args:
            name: of what they are for. Another name gives other numbers.
            shape: of the numbers of an image.
        """
        return self._draw(name, shape, torch.rand)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return standard normal numbers (N, *shape), on the CPU."""
        return self._draw(name, shape, torch.randn)

    def _numbers(self) -> Tensor:
        return torch.arange(self.numbers) if isinstance(self.numbers, int) else self.numbers

    def _draw(self, name: str, shape: tuple[int, ...], draw: _Draw) -> Tensor:
        numbers = self._numbers()
        drawn = torch.empty(len(numbers), *shape)
        blocks = numbers // _BLOCK
        for block in sorted(set(blocks.tolist())):
            path = f"{self.seed}/{name}/{block}"
            generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))
            own = blocks == block
            drawn[own] = draw((_BLOCK, *shape), generator=generator)[numbers[own] % _BLOCK]
        return drawn
