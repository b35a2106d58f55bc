"""The memory of a training: against closed forms, and against PyTorch's saved tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from taylorglo.errors import InputError
from taylorglo.networks.factory import BUILT_IN, ImageShape, build, skeleton
from taylorglo.settings import TrainingSettings
from taylorglo.training import memory
from taylorglo.training.memory import check_memory, copies_of, footprint, free_memory
from taylorglo.training.updates import by_decay, optimizer_of

DIGITS = (1, 8, 8)
CIFAR = (3, 32, 32)
CPU = torch.device("cpu")


def built(name: str, shape: ImageShape = CIFAR) -> nn.Module:
    mean, std = (0.5,) * shape[0], (0.2,) * shape[0]
    return build(name, shape, 10, mean=mean, std=std, seed=0)


def unbuilt(name: str, shape: ImageShape = CIFAR) -> nn.Module:
    return skeleton(name, shape, 10)


@pytest.mark.parametrize("make", [built, unbuilt])
@pytest.mark.parametrize("batch_size", [1, 32, 100_000])
def test_the_mlp_in_closed_form(
    make: Callable[[str, ImageShape], nn.Module], batch_size: int
) -> None:
    need = footprint(make("mlp", DIGITS), DIGITS, batch_size)
    mean_and_deviation = 2
    assert need.weights == 4 * (64 * 128 + 128 + 128 * 10 + 10 + mean_and_deviation)
    # They are the inputs of both linear layers. ReLU keeps its output, which is the second input.
    assert need.activations == 4 * batch_size * (64 + 128)
    assert need.training == 3 * need.weights + 1.5 * need.activations


@pytest.mark.parametrize(
    ("training", "copies"),
    [
        ({}, 3),  # weights, gradients and momentum
        ({"ema": 0.9}, 4),
        ({"optimizer": "adam"}, 4),
        ({"optimizer": "adamw", "ema": 0.9, "clip_norm": 1.0}, 5),
    ],
)
def test_the_optimizer_and_the_average_have_copies_of_the_weights(
    training: dict[str, Any], copies: int
) -> None:
    settings = TrainingSettings.model_validate(training)
    assert copies_of(settings) == copies
    need = check_memory("mlp", DIGITS, 10, batch_size=2, device=CPU, copies=copies_of(settings))
    plain = footprint(built("mlp", DIGITS), DIGITS, 2)
    assert need.training - plain.training == (copies - 3) * plain.weights
    # These are the tensors that there are after a step.
    network = built("mlp", DIGITS)
    network(torch.rand(2, *DIGITS)).sum().backward()
    optimizer = optimizer_of(by_decay(network.parameters(), settings), settings, 0.1)
    optimizer.step()
    states = [
        value.numel()
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.ndim
    ]
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert sum(states) == (copies - 2 - bool(settings.ema)) * weights


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "pyramidnet-110-48"])
def test_weights_of_every_network_and_nothing_is_allocated(name: str) -> None:
    network = unbuilt(name)
    assert {value.device.type for value in network.state_dict().values()} == {"meta"}
    # No machine has memory for batches of 64 million images.
    need = footprint(network, CIFAR, 2**26)
    assert need.activations > 2**35
    parameters = sum(parameter.numel() for parameter in network.parameters())
    buffers = sum(buffer.numel() for buffer in network.buffers())
    assert need.weights == 4 * (parameters + buffers)


@pytest.mark.parametrize("name", ["cnn", "mnist-cnn", "allcnn-c", "alexnet", "preresnet-20"])
def test_activations_are_those_that_pytorch_saves(name: str) -> None:
    network = built(name)
    activations = footprint(network, CIFAR, 4).activations
    of_weights = {value.untyped_storage().data_ptr() for value in network.state_dict().values()}
    sizes: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in of_weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        logits = network(torch.rand(4, *CIFAR))
    assert logits.requires_grad
    # A layer may be computed in another way on meta, and keep indices of another size.
    assert activations == pytest.approx(sum(sizes.values()), rel=0.15)


def test_a_footprint_changes_nothing() -> None:
    network = built("preresnet-20").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    footprint(network, CIFAR, 4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in network.parameters()
    )
    assert torch.equal(torch.get_rng_state(), state)


class Stubborn(nn.Module):
    """A network that creates a tensor on a device of its choice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.flatten(1)) + torch.ones(10, device="cpu")
        return logits


class Tied(nn.Module):
    """A network that has one matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.second(self.first(images.flatten(1)))
        return logits


def test_networks_of_a_user() -> None:
    assert footprint(Stubborn(), DIGITS, 32).weights == 4 * 650
    tied = footprint(Tied(), DIGITS, 32)
    assert tied.weights == 4 * 64 * 64
    assert tied.activations == 4 * 32 * (64 + 64)


def test_a_training_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 10 * 2**30)
    assert free_memory(CPU) == 9 * 2**30
    need = check_memory("allcnn-c", CIFAR, 10, batch_size=128, device=CPU)
    assert need == footprint(built("allcnn-c"), CIFAR, 128)
    with pytest.raises(InputError) as caught:
        check_memory("allcnn-c", CIFAR, 10, batch_size=100_000, device=CPU)
    line = str(caught.value)
    assert line.startswith("model 'allcnn-c': training it in batches of 100000 takes about ")
    assert line.endswith(
        " GiB, and 9.0 GiB of memory can be used on the cpu here; use a smaller batch or network"
    )
