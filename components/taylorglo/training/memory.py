"""The memory that a training takes, computed before it starts."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from taylorglo.errors import InputError
from taylorglo.networks.factory import ImageShape, skeleton
from taylorglo.settings import TrainingSettings
from taylorglo.training.devices import available_memory

# The most bytes that PyTorch takes in a process that trains, or that a CUDA context takes on its
# GPU.
PROCESS = 750 * 2**20

_FLOAT = 4  # bytes

# Factor on the saved activations, for their gradients, for buffers of the convolutions, and for
# memory that the allocator keeps.
_WORKSPACE = 1.5

# Part of the free memory that trainings may take. The rest is for memory outside of the formula.
_SHARE = 0.9


@dataclass(frozen=True)
class Footprint:
    """The memory of one training, in bytes.

    A worker takes ``PROCESS + data set + chunk x training``.

    Attributes:
        weights: parameters and buffers of the network.
        activations: tensors that a step keeps for its backward pass.
        copies: number of tensors for each weight; see :func:`copies_of`.
    """

    weights: int
    activations: int
    copies: int = 3

    @property
    def training(self) -> int:
        """The memory of the weights' copies, and of activations with their workspace."""
        return self.copies * self.weights + int(_WORKSPACE * self.activations)


def copies_of(settings: TrainingSettings) -> int:
    """Return how many tensors a training keeps for each weight.

    These are the weight itself, its gradient, the momentum of SGD or both moments of Adam, and the
    average if there is one.
    """
    return (4 if settings.adaptive else 3) + (1 if settings.ema else 0)


def footprint(network: nn.Module, image_shape: ImageShape, batch_size: int) -> Footprint:
    """Return the memory that training a network in float32 takes.

    Nothing is computed or allocated for it.

    Args:
        network: on any device, also on ``meta``.
        image_shape: (C, H, W).
        batch_size: number of images in a step of the training.
    """
    # Tied weights occur once under these names, as functional_call needs them.
    parameters = {name: value.detach().to("meta") for name, value in network.named_parameters()}
    buffers = {name: value.detach().to("meta") for name, value in network.named_buffers()}
    weights = sum(value.numel() * _FLOAT for value in (*parameters.values(), *buffers.values()))
    for value in parameters.values():
        value.requires_grad_(value.is_floating_point())
    state = parameters | buffers
    of_weights = {value.untyped_storage()._cdata for value in state.values()}
    activations: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()._cdata
        if storage not in of_weights:
            activations[storage] = value
        return value

    images = torch.zeros(batch_size, *image_shape, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        try:
            functional_call(network.train(), state, (images,))
        except Exception:
            # A network of a user may create tensors on a device of its choice. Only a part of its
            # activations was found then, which is no measure.
            activations.clear()
    sizes = (value.untyped_storage().nbytes() for value in activations.values())
    return Footprint(weights, sum(sizes))


def free_memory(device: torch.device) -> int:
    """Return how many bytes trainings may take on a device."""
    return int(available_memory(device) * _SHARE)


def check_memory(
    name: str,
    image_shape: ImageShape,
    num_classes: int,
    *,
    batch_size: int,
    device: torch.device,
    copies: int = 3,
) -> Footprint:
    """Return the memory that training a network takes, if the device has enough of it.

    It is the memory for float32 in every precision, because bfloat16 saves only a part of the
    activations.

    Args:
        name: of the network.
        image_shape: (C, H, W).
        num_classes: number of classes.
        batch_size: number of images in a step.
        device: to train on.
        copies: number of tensors for each weight, as :func:`copies_of` returns it.

    Raises:
        InputError: there is no such network, or the device has not enough memory for it.
    """
    network = skeleton(name, image_shape, num_classes)
    need = replace(footprint(network, image_shape, batch_size), copies=copies)
    free = free_memory(device)
    if need.training > free:
        raise InputError(
            f"model {name!r}: training it in batches of {batch_size} takes about "
            f"{need.training / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory can be used on "
            f"the {device.type} here; use a smaller batch or network"
        )
    return need
