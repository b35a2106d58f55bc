"""Trained networks as safetensors: what is written of one, and how it is built again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from taylorglo.errors import InputError, one_line, quoted
from taylorglo.networks.factory import ImageShape, build, skeleton
from taylorglo.reading import check_regular, is_safetensors, parse_json

_MOST_AXES = 3  # of a sample: (C, H, W) of an image, (F,) of features
_LARGEST_SIDE = 1_000_000
_HEAD = 1_000_000  # bytes of a file that is no network, within which a saved loss names its format


class Origin(NamedTuple):
    """What weights say of their network; None if they do not say it.

    Attributes:
        model: its name, as in the settings.
        image_shape: of a sample that it takes.
        classes: number of its logits.
    """

    model: str | None
    image_shape: ImageShape | None
    classes: int | None


def weights_of(network: nn.Module, origin: Origin) -> bytes:
    """Return the network's state as safetensors; the same weights are the same bytes."""
    return packed(network.state_dict(), origin)


def packed(state: Mapping[str, Tensor], origin: Origin) -> bytes:
    """Return the state of a network as safetensors, with its origin."""
    # One entry only: safetensors writes several in an arbitrary order.
    metadata = {"taylorglo": json.dumps(origin._asdict())}
    # Copies, because safetensors refuses tensors that share memory, such as tied weights.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    return save(tensors, metadata)


def origin_of(weights: Path) -> Origin:
    """Return what a file of weights says of its network.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        check_regular(weights)
        if _is_loss(weights):
            raise InputError(
                f"{weights}: is a saved loss, and no network: taylorglo.load_loss reads losses, "
                "and taylorglo.load_network the model.safetensors beside them"
            )
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
        content: Any = parse_json(metadata.get("taylorglo", "{}"))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{weights}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{weights}: are not weights in safetensors: {one_line(error)}") from None
    if not isinstance(content, dict):
        return Origin(None, None, None)
    model, shape, classes = (content.get(key) for key in Origin._fields)
    return Origin(
        model if isinstance(model, str) else None,
        tuple(shape) if isinstance(shape, list) and _is_shape(shape) else None,
        classes if _is_side(classes) else None,
    )


def _is_loss(path: Path) -> bool:
    """Return whether a file is a loss as a sweep saves it, in JSON."""
    if is_safetensors(path):
        return False
    with path.open("rb") as file:
        return b'"taylorglo.loss/' in file.read(_HEAD)


def _is_shape(values: Sequence[object]) -> bool:
    return 0 < len(values) <= _MOST_AXES and all(map(_is_side, values))


def _is_side(value: object) -> bool:
    return isinstance(value, int) and 0 < value <= _LARGEST_SIDE


def trusted_name(origin: Origin, place: str, option: str) -> str:
    """Return the name of the network that weights belong to, unless it stands for somebody's code.

    A file from somebody else must not choose the code that is run.

    Args:
        origin: of the weights.
        place: what the weights are called in an error.
        option: with which the name is given by hand, in an error.

    Raises:
        InputError: there is no name, or it is that of a user's factory.
    """
    name = origin.model
    if name is None:
        raise InputError(f"{place}: do not name their network; give it with {option}")
    if ":" in name and not name.startswith("torchvision:"):
        raise InputError(
            f"{place}: belong to a network of somebody's own; if you trust it, give its name, "
            f"{quoted(name)}, with {option}"
        )
    return name


def restored(
    weights: bytes,
    model: str,
    image_shape: ImageShape,
    num_classes: int,
    *,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> nn.Module:
    """Return a trained network from its safetensors, in evaluation mode, on the CPU.

    Args:
        weights: of the network with its normalisation, as a sweep keeps them, or of the bare
            network.
        model: the network that the weights belong to, as in the settings.
        image_shape: of a sample.
        num_classes: number of logits.
        normalisation: mean and standard deviation by channel, for a bare network.

    Raises:
        InputError: there is no such network.
        ValueError: the weights are damaged, or belong to another network.
    """
    mean, std = normalisation or ((0.0,) * image_shape[0], (1.0,) * image_shape[0])
    try:
        state = load(weights)
        whole = any(name.startswith("normalize.") for name in state)
        if not (whole or normalisation):
            raise ValueError("they have no normalisation")
        part = "" if whole else "network"
        # Numbers that do not fit are refused before the network takes memory.
        empty = skeleton(model, image_shape, num_classes)
        empty.get_submodule(part).load_state_dict(state, assign=True)
        network = build(model, image_shape, num_classes, mean=mean, std=std, seed=0)
        network.get_submodule(part).load_state_dict(state)
    except InputError:
        raise
    # PyTorch refuses shapes and types that the header of a damaged file may name.
    except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(one_line(error)) from None
    return network.eval()
