"""How much memory a training takes, before it takes it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from taylorglo.errors import InputError
from taylorglo.networks.factory import ImageShape, skeleton
from taylorglo.training.devices import available_memory

_FLOAT = 4  # bytes
# Gradients of activations, buffers of the convolutions, and what an allocator keeps: on top of what
# is saved.
_WORKSPACE = 1.5
PROCESS = (
    750 * 2**20
)  # bytes that PyTorch takes in a process that trains, or a CUDA context, at most, on its GPU
_SHARE = 0.9  # of what is free: the rest is for what is not in the formula


@dataclass(frozen=True)
class Footprint:
    """The memory of one training, in bytes: its weights, and the activations that a step keeps for its backward pass.

    A worker takes ``PROCESS + data set + chunk x training``.
    """

    weights: int
    activations: int

    @property
    def training(self) -> int:
        """Of one training: weights, gradients and momentum, and the activations with the workspace of a step."""
        return 3 * self.weights + int(_WORKSPACE * self.activations)


def footprint(network: nn.Module, image_shape: ImageShape, batch_size: int) -> Footprint:
    """What training a network takes, in float32; found without computing or allocating anything.

    Args:
        network: on any device, ``meta`` for one too.
        image_shape: (C, H, W).
        batch_size: of its training.
    """
    # By these names tied weights are there once, as functional_call takes them.
    parameters = {name: value.detach().to("meta") for name, value in network.named_parameters()}
    buffers = {name: value.detach().to("meta") for name, value in network.named_buffers()}
    weights = sum(value.numel() * _FLOAT for value in (*parameters.values(), *buffers.values()))
    own = {
        name: value.requires_grad_(value.is_floating_point()) for name, value in parameters.items()
    } | buffers
    known = {value.untyped_storage()._cdata for value in own.values()}
    saved: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage()._cdata not in known:
            saved[value.untyped_storage()._cdata] = value
        return value

    images = torch.zeros(batch_size, *image_shape, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        try:
            functional_call(network.train(), own, (images,))
        # A network of the user's own that makes tensors on a device of its choice: only a part is
        # known.
        except Exception:
            saved.clear()
    return Footprint(weights, sum(value.untyped_storage().nbytes() for value in saved.values()))


def free_memory(device: torch.device) -> int:
    """How many bytes trainings may take on a device."""
    return int(available_memory(device) * _SHARE)


def check_memory(
    name: str, image_shape: ImageShape, num_classes: int, batch_size: int, device: torch.device
) -> Footprint:
    """What training a network takes; computed as for float32, for bfloat16 saves a part of the activations only.

    Raises:
        InputError: there is no such network, or the device has not enough memory for it.
    """
    found = footprint(skeleton(name, image_shape, num_classes), image_shape, batch_size)
    free = free_memory(device)
    if found.training > free:
        raise InputError(
            f"model {name!r}: training it in batches of {batch_size} takes about {found.training / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB of memory can be used on the {device.type} here; use a smaller batch or network"
        )
    return found
