"""Search a loss for a training by Lightning (pip install pytorch-lightning).

python docs/examples/lightning_training.py [FOLDER]
"""

import logging
import sys

import pytorch_lightning as lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import taylorglo

Batch = tuple[Tensor, Tensor]

# It would tell of its accelerators in each training.
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Classifier(lightning.LightningModule):
    """A classifier of digits that is trained with a loss."""

    def __init__(self, loss: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.loss = loss
        self.learning_rate = learning_rate
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch."""
        return self.loss(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the accuracy on a batch; Lightning averages it."""
        right = self.network(batch[0]).argmax(dim=1) == batch[1]
        self.log("accuracy", right.float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate)


def train(
    loss: nn.Module,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    split: taylorglo.Split,
    device: str,
) -> float:
    """Train by Lightning, and return the accuracy on a fourth of the digits."""
    lightning.seed_everything(seed, verbose=False)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
    parts = torch.utils.data.random_split(data, [0.5, 0.25, 0.25], torch.Generator().manual_seed(0))
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier(loss, learning_rate)
    trainer.fit(model, DataLoader(parts[0], 64, shuffle=True))
    measured = parts[1] if split.name == "validation" else parts[2]
    return float(trainer.validate(model, DataLoader(measured, 450), verbose=False)[0]["accuracy"])


if __name__ == "__main__":
    found = sys.argv[1] if len(sys.argv) > 1 else "runs/lightning"
    print(taylorglo.search(train, classes=10, steps=100, learning_rate=0.003, folder=found).loss)
