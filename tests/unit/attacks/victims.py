"""Networks that attacks are tried on: linear ones, and small ones trained on Fashion-MNIST."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from taylorglo.data.batches import scaled
from taylorglo.data.published import read_published
from taylorglo.networks.factory import build

ROOT = Path("/usr/share/datasets/fashion-mnist")


@cache
def fashion() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 6 000 training images with labels, and 1 000 test images with labels."""
    if not ROOT.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    source = read_published("fashion-mnist", ROOT, False)
    train, test = source.train, source.test
    assert test is not None
    images, labels = scaled(train.images[:6000]), train.labels[:6000]
    return images, labels, scaled(test.images[:1000]), test.labels[:1000]


@cache
def trained(name: str, label_smoothing: float = 0.0, steps: int = 500) -> nn.Module:
    """Return a network of the factory, trained on Fashion-MNIST.

    Convolutions see the images at half of their size, which takes a quarter of the time.
    """
    images, labels, _, _ = fashion()
    side = 28 if name == "mlp" else 14
    network = build(name, (1, side, side), 10, mean=(0.286,), std=(0.353,), seed=0)
    if side < 28:
        network = nn.Sequential(nn.AvgPool2d(2), network)
    return fitted(network, images, labels, label_smoothing=label_smoothing, steps=steps)


def fitted(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    steps: int = 500,
) -> nn.Module:
    """Train a network with Adam, in evaluation mode afterwards."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(steps):
        batch = torch.randint(len(labels), (64,), generator=generator)
        loss = functional.cross_entropy(
            network(images[batch]), labels[batch], label_smoothing=label_smoothing
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def predictions(network: nn.Module, images: Tensor) -> Tensor:
    return network(images).argmax(dim=1)


def linear(features: int, classes: int, seed: int = 0) -> nn.Sequential:
    """Return a linear model, whose robustness has a closed form."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, features, generator=generator))
        # Centred on the middle of the pixel range, so that all classes occur.
        layer.bias.copy_(-0.5 * layer.weight.sum(dim=1))
    return nn.Sequential(nn.Flatten(), layer)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))
