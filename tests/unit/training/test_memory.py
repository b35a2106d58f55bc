"""How much a training takes: against closed forms, and against what PyTorch really keeps for the
backward pass."""

import pytest
import torch
from torch import nn

from taylorglo.errors import InputError
from taylorglo.networks.factory import BUILT_IN, build, skeleton
from taylorglo.training import memory
from taylorglo.training.memory import check_memory, footprint, free_memory

DIGITS, CIFAR = (1, 8, 8), (3, 32, 32)
CPU = torch.device("cpu")


def built(model: str, shape: tuple[int, int, int] = CIFAR) -> nn.Module:
    return build(model, shape, 10, (0.5,) * shape[0], (0.2,) * shape[0], seed=0)


@pytest.mark.parametrize(
    "make", [built, lambda model, shape: skeleton(model, shape, 10)], ids=["built", "skeleton"]
)
@pytest.mark.parametrize("batch", [1, 32, 100_000])
def test_the_mlp_in_closed_form(make, batch):
    found = footprint(make("mlp", DIGITS), DIGITS, batch)
    assert found.weights == 4 * (64 * 128 + 128 + 128 * 10 + 10 + 2)  # and a mean and a deviation
    # The inputs of both linear layers, where the second is what ReLU keeps as well.
    assert found.activations == 4 * batch * (64 + 128)
    assert found.training == 3 * found.weights + 1.5 * found.activations


@pytest.mark.parametrize("model", [name for name in BUILT_IN if name != "pyramidnet-110-48"])
def test_weights_of_every_network_and_nothing_is_allocated(model):
    """With batches of 64 million images, which no machine has room for."""
    network = skeleton(model, CIFAR, 10)
    assert {value.device.type for value in network.state_dict().values()} == {"meta"}
    found = footprint(network, CIFAR, 2**26)
    assert found.activations > 2**35
    expected = sum(p.numel() for p in network.parameters()) + sum(
        b.numel() for b in network.buffers()
    )
    assert found.weights == 4 * expected


@pytest.mark.parametrize("model", ["cnn", "mnist-cnn", "allcnn-c", "alexnet", "preresnet-20"])
def test_as_much_as_is_really_kept(model):
    network = built(model)
    expected = footprint(network, CIFAR, 4).activations
    own = {value.untyped_storage().data_ptr() for value in network.state_dict().values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        logits = network(torch.rand(4, *CIFAR))
    real = sum(
        value.untyped_storage().nbytes() for pointer, value in kept.items() if pointer not in own
    )
    assert logits.requires_grad
    # A layer may be computed in another way on meta, and keep indices of another size.
    assert expected == pytest.approx(real, rel=0.15)


def test_a_question_changes_nothing():
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
    """Makes a tensor on a device of its choice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(images.flatten(1)) + torch.ones(10, device="cpu")
        return result


class Tied(nn.Module):
    """One matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.two.weight = self.one.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.two(self.one(images.flatten(1)))
        return result


def test_networks_of_a_user():
    assert footprint(Stubborn(), DIGITS, 32).weights == 4 * 650
    tied = footprint(Tied(), DIGITS, 32)
    assert tied.weights == 4 * 64 * 64
    assert tied.activations == 4 * 32 * (64 + 64)


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 10 * 2**30)
    assert free_memory(CPU) == 9 * 2**30
    assert check_memory("allcnn-c", CIFAR, 10, 128, CPU) == footprint(built("allcnn-c"), CIFAR, 128)
    with pytest.raises(InputError) as caught:
        check_memory("allcnn-c", CIFAR, 10, 100_000, CPU)
    line = str(caught.value)
    assert line.startswith("model 'allcnn-c': training it in batches of 100000 takes about ")
    assert line.endswith(
        " GiB, and 9.0 GiB of memory can be used on the cpu here; use a smaller batch or network"
    )
