"""Attacks beside those of ART and foolbox, in turns: ``make bench-attacks``.

Networks of Fashion-MNIST (Debian's package dataset-fashion-mnist) are attacked by PGD on
cross-entropy, with the same images, steps, starts, step size and batches. The libraries take turns,
so that they see the same machine. A row has the median of the seconds, what each attack leaves, and
how many times as fast ours is as the faster of the others. With ``--suites``, the suites "quick",
"apgd" and "standard" stand beside ART's AutoAttack, which has the attacks of "standard".
"""

import argparse
import io
import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from art.attacks.evasion import AutoAttack, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from fashion import fashion_mnist
from foolbox.attacks import LinfPGD
from foolbox.models.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional

from taylorglo.attacks import Strength, pgd, withstood
from taylorglo.data.batches import scaled
from taylorglo.networks.factory import Normalize, build

NETWORKS = ("mlp", "cnn", "mnist-cnn", "batch-norm")
STEPS, STARTS, BATCH = 20, 2, 256
EPSILON = 0.1
SUITES = ("quick", "apgd", "standard")
OTHERS = ("ART", "foolbox")
TRAINING_STEPS = 300

Attack = Callable[[Tensor, Tensor], Tensor]


class Data(NamedTuple):
    """Images and labels to train on, and to attack."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def data(images: int) -> Data:
    """Return a part of Fashion-MNIST."""
    dataset = fashion_mnist(train=6000, validation=images)
    splits = [(scaled(s.images), s.labels) for s in (dataset.train, dataset.validation)]
    return Data(splits[0], splits[1], tuple(dataset.mean), tuple(dataset.std))


def batch_normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """Return a network of three convolutions with batch normalisation."""
    layers: list[nn.Module] = [Normalize(mean, std)]
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained(name: str, source: Data) -> nn.Module:
    """Return a network after a short training."""
    torch.manual_seed(0)
    if name == "batch-norm":
        network = batch_normalised(source.mean, source.std)
    else:
        network = build(name, (1, 28, 28), 10, mean=source.mean, std=source.std, seed=0)
    images, labels = source.train
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(TRAINING_STEPS):
        batch = torch.randint(len(labels), (64,))
        optimizer.zero_grad()
        functional.cross_entropy(network(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


def classifier(network: nn.Module) -> Any:
    """Return a network as ART takes it."""
    return PyTorchClassifier(
        model=network,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def by_pgd(network: nn.Module, epsilon: float) -> Mapping[str, Attack]:
    """Return PGD of each library: two starts of 20 steps."""
    size = 2.5 * epsilon / STEPS

    def ours(images: Tensor, labels: Tensor) -> Tensor:
        parts = zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True)
        attack = partial(pgd, steps=STEPS, restarts=STARTS)
        return torch.cat([attack(network, x, y, epsilon) for x, y in parts])

    def by_art(images: Tensor, labels: Tensor) -> Tensor:
        attack = ProjectedGradientDescentPyTorch(
            classifier(network),
            eps=epsilon,
            eps_step=size,
            max_iter=STEPS,
            num_random_init=STARTS,
            batch_size=BATCH,
            verbose=False,
        )
        return torch.from_numpy(attack.generate(images.numpy(), labels.numpy().astype(np.int64)))

    def by_foolbox(images: Tensor, labels: Tensor) -> Tensor:
        model = PyTorchModel(network, bounds=(0, 1), device="cpu")
        attack = LinfPGD(abs_stepsize=size, steps=STEPS).repeat(STARTS)
        parts = zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True)
        return torch.cat([attack(model, x, y, epsilons=epsilon)[1] for x, y in parts])

    return {"ours": ours, "ART": by_art, "foolbox": by_foolbox}


def by_suites(network: nn.Module, epsilon: float) -> Mapping[str, Attack]:
    """Return the suites, as images that are or are not what they broke, and AutoAttack."""

    def ours(suite: str, images: Tensor, labels: Tensor) -> Tensor:
        return withstood(network, images, labels, [epsilon], strength=Strength(suite)).distances

    def by_art(images: Tensor, labels: Tensor) -> Tensor:
        attack = AutoAttack(
            classifier(network), eps=epsilon, eps_step=epsilon / 4, batch_size=BATCH
        )
        # Its attacks draw a progress bar for each start.
        with redirect_stderr(io.StringIO()):
            attacked = attack.generate(images.numpy(), labels.numpy().astype(np.int64))
        return torch.from_numpy(attacked)

    return {**{suite: partial(ours, suite) for suite in SUITES}, "ART": by_art}


@torch.no_grad()
def left(network: nn.Module, attacked: Tensor, labels: Tensor, epsilon: float) -> float:
    """Return the accuracy that is left, from attacked images or from distances to them."""
    if attacked.ndim == 1:
        return float((attacked > epsilon).double().mean())
    return float((network(attacked).argmax(dim=1) == labels).double().mean())


def compare(
    name: str, attacks: Mapping[str, Attack], network: nn.Module, *, source: Data, turns: int
) -> float:
    """Print a row for a network; return how many times as fast ours is as the faster other one.

    Of several of ours, the last one is compared.
    """
    images, labels = source.test
    seconds: dict[str, list[float]] = {library: [] for library in attacks}
    accuracies = {}
    for library, attack in attacks.items():
        attack(images[:BATCH], labels[:BATCH])
        accuracies[library] = 0.0
    for _ in range(turns):
        for library, attack in attacks.items():
            started = time.perf_counter()
            attacked = attack(images, labels)
            seconds[library].append(time.perf_counter() - started)
            accuracies[library] = left(network, attacked, labels, EPSILON)
    medians = {library: statistics.median(values) for library, values in seconds.items()}
    own = [library for library in attacks if library not in OTHERS]
    ratio = min(medians[library] for library in OTHERS if library in medians) / medians[own[-1]]
    cells = "  ".join(
        f"{library} {medians[library]:7.2f} s, {accuracies[library]:6.1%} left"
        for library in attacks
    )
    print(f"{name:<11}{cells}  {ratio:5.1f} x", flush=True)
    return ratio


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--suites", action="store_true")
    arguments = parser.parse_args()
    source = data(arguments.images)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.images} images, "
        f"epsilon {EPSILON}, {arguments.turns} turns"
    )
    ratios = []
    for name in arguments.networks:
        network = trained(name, source)
        attacks = (by_suites if arguments.suites else by_pgd)(network, EPSILON)
        ratios.append(compare(name, attacks, network, source=source, turns=arguments.turns))
    mean = math.exp(statistics.mean(map(math.log, ratios)))
    print(f"geometric mean: {mean:.1f} times as fast as the faster of the others")


if __name__ == "__main__":
    main()
