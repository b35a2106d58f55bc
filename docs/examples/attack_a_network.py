"""Attack a network with FGSM and PGD, and measure how much accuracy they leave.

python docs/examples/attack_a_network.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import taylorglo

EPSILON = 0.1  # largest change of a pixel, in units of its full range


def train() -> tuple[nn.Module, Tensor, Tensor]:
    """Train a network on half of scikit-learn's digits; return it with the other half."""
    torch.manual_seed(0)
    digits = load_digits()
    # Attacks need images in [0, 1]. Other normalisation would be a layer of the network.
    images = torch.tensor(digits.images / 16).float()
    labels = torch.tensor(digits.target)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(network.parameters())
    loss = taylorglo.CrossEntropy(label_smoothing=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(network(images[::2]), labels[::2]).backward()
        optimizer.step()
    return network, images[1::2], labels[1::2]


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the part of the images that the network classifies correctly."""
    with torch.no_grad():
        return float((network(images).argmax(dim=1) == labels).float().mean())


def main() -> None:
    """Attack a network and print its accuracies."""
    network, images, labels = train()
    print(f"clean     {accuracy(network, images, labels):.1%}")
    attacked = taylorglo.fgsm(network, images, labels, EPSILON)
    print(f"FGSM      {accuracy(network, attacked, labels):.1%}")
    # PGD follows cross-entropy ("ce") or the DLR margin loss ("dlr"), with random restarts.
    attacked = taylorglo.pgd(
        network, images, labels, EPSILON, steps=20, restarts=2, objective="dlr"
    )
    print(f"PGD-DLR   {accuracy(network, attacked, labels):.1%}")
    # An image counts as robust if it withstands FGSM, PGD on cross-entropy and PGD on DLR.
    robust = taylorglo.robust_accuracy(
        network, images, labels, epsilons=[EPSILON], pgd_steps=20, pgd_restarts=2
    )
    print(f"worst     {robust['worst'][EPSILON]:.1%}")


if __name__ == "__main__":
    main()
