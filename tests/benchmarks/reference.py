"""The loop that a researcher writes, which the engine is compared with.

This is PyTorch's usual: torchvision's data set and transforms, a DataLoader with the number of
workers that is fastest here, one candidate after another on all cores, and the loss as an
expression in Python.
"""

import gzip
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cases import RATE, Case, thetas
from fashion import ROOT
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets, transforms

from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset
from taylorglo.settings import TrainingSettings
from taylorglo.training.loop import build_network


def unpack(folder: Path) -> None:
    """Write Fashion-MNIST to a folder, as torchvision reads it."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in ROOT.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))


class Reference:
    """The usual loop.

    Attributes:
        case: the network and its trainings.
        workers: number of processes that load images.
        waited: seconds that the loop waited for images so far.
    """

    def __init__(self, folder: Path, case: Case, dataset: Dataset) -> None:
        """Prepare the loop; ``folder`` has the data set that ``unpack`` wrote."""
        self.case = case
        self.workers = 0
        self.waited = 0.0
        self._folder = folder
        self._dataset = dataset
        normalise = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
        )
        self._images = datasets.FashionMNIST(folder, train=True, transform=normalise)
        images = (scaled(dataset.validation.images) - dataset.mean[0]) / dataset.std[0]
        self._validation = TensorDataset(images, dataset.validation.labels)

    def of(self, case: Case) -> "Reference":
        """Return the loop for another case of the same data."""
        return Reference(self._folder, case, self._dataset)

    def tune(self) -> None:
        """Choose the number of workers that is fastest, of two trainings each."""
        seconds = []
        for self.workers in (0, 1, 2) * 2:
            started = time.perf_counter()
            self.train(thetas(1)[0])
            seconds.append((time.perf_counter() - started, self.workers))
        self.workers = min(seconds)[1]

    def run(self) -> tuple[float, float]:
        """Train the generation; return candidate steps per second, and the mean accuracy."""
        started = time.perf_counter()
        accuracy = statistics.mean(self.train(theta) for theta in thetas(self.case.candidates))
        return self.case.candidates * self.case.steps / (time.perf_counter() - started), accuracy

    def train(self, theta: list[float]) -> float:
        """Train one candidate; return its accuracy."""
        settings = self.case.settings().training
        network = self._network()
        optimizer = _optimizer(network, settings)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.case.steps)
        loader = DataLoader(
            self._images,
            settings.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
        )
        network.train()
        batches = self._timed(loader)
        for _ in range(self.case.steps):
            images, labels = next(batches)
            optimizer.zero_grad()
            _loss(network(images), labels, theta).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return self._accuracy(network)

    def _network(self) -> nn.Module:
        """Return the network without its normalisation, which the transforms do."""
        plain = replace(self._dataset, mean=(0.0,), std=(1.0,))
        return build_network(self.case.settings(), plain, 0).get_submodule("network")

    @torch.no_grad()
    def _accuracy(self, network: nn.Module) -> float:
        network.eval()
        size = len(self._validation)
        batches = DataLoader(self._validation, size)
        return sum(int((network(x).argmax(1) == y).sum()) for x, y in batches) / size

    def _timed(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Yield batches, and add up the time that they are waited for."""
        started = time.perf_counter()
        batches = iter(loader)
        while True:
            batch = next(batches)
            self.waited += time.perf_counter() - started
            yield batch
            started = time.perf_counter()


def _optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(),
        lr=RATE,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def _loss(logits: Tensor, labels: Tensor, theta: list[float]) -> Tensor:
    """Return the Taylor loss of order 3, written out."""
    h, t = logits.softmax(dim=1), nn.functional.one_hot(labels, 10).float()
    u, v = h - theta[1], t - theta[0]
    f = theta[2] * u + theta[3] * u**2 + theta[4] * u**3
    f = f + theta[5] * v * u + theta[6] * v * u**2 + theta[7] * v**2 * u
    return -f.sum(dim=1).mean()
