"""Train a small network with a found loss, in plain PyTorch.

python docs/examples/train_with_a_loss.py [LOSS.json]
"""

import sys

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import taylorglo


def train(loss: nn.Module, steps: int = 500) -> float:
    """Train on scikit-learn's digits; return the accuracy on images that were held out."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0)
    train_images, test_images = (torch.tensor(part).float() for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part) for part in parts[2:])

    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(len(train_images), (64,))
        optimizer.zero_grad()
        # A found loss is called like nn.CrossEntropyLoss: logits first, then the targets.
        value: Tensor = loss(network(train_images[batch]), train_labels[batch])
        value.backward()
        optimizer.step()
    with torch.no_grad():
        predicted = network(test_images).argmax(dim=1)
    return float((predicted == test_labels).float().mean())


def main(arguments: list[str]) -> None:
    """Train with the loss of a file, or with the loss that a search begins with."""
    if arguments:
        loss = taylorglo.load_loss(arguments[0])
    else:
        loss = taylorglo.TaylorLoss.from_coefficients(cy=4.0, chy=-4.0, ch=-1.0, chh=0.0)
    print(loss)
    print(f"accuracy on held-out images: {train(loss):.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
