"""Use a found loss in Lightning (pip install pytorch-lightning).

python docs/examples/use_in_lightning.py [LOSS]
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

# It would tell of its accelerators.
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Classifier(lightning.LightningModule):
    """A classifier of digits that is trained with a found loss."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.loss = taylorglo.load_loss(source)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        return self.loss(self.network(images), labels)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the accuracy on a batch; Lightning averages it."""
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer, with the learning rate that the loss was found with."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(source: str) -> None:
    """Train on three quarters of scikit-learn's digits, and print the accuracy on the rest."""
    lightning.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
    training, held_out = torch.utils.data.random_split(data, [0.75, 0.25])
    trainer = lightning.Trainer(
        max_steps=500,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier(source)
    trainer.fit(model, DataLoader(training, 64, shuffle=True))
    (scores,) = trainer.validate(model, DataLoader(held_out, 450), verbose=False)
    print(f"accuracy on held-out images: {scores['accuracy']:.1%}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "zoo:digits")
