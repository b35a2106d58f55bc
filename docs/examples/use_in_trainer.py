"""Use a found loss in Hugging Face's Trainer (pip install 'transformers[torch]').

python docs/examples/use_in_trainer.py [LOSS]
"""

import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

import taylorglo

CLASSES, LENGTH = 10, 12
SIZE = {"hidden_size": 32, "intermediate_size": 64}
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2}


class Sentences(Dataset[dict[str, Tensor]]):
    """Sentences of ten random words, whose class is their first word."""

    def __init__(self, number: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.words = torch.randint(CLASSES, (number, LENGTH), generator=random)

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a sentence as the network takes it."""
        return {"input_ids": self.words[index], "labels": self.words[index, 0]}


def loss_for_trainer(source: str) -> Callable[..., Tensor]:
    """Return a found loss as the function that the Trainer calls."""
    loss = taylorglo.load_loss(source)

    def compute_loss(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
        return loss(outputs.logits, labels)

    return compute_loss


def trainer_with(source: str, folder: str) -> Trainer:
    """Return a Trainer of a tiny BERT from scratch that trains with a found loss."""
    compute_loss = loss_for_trainer(source)
    arguments = TrainingArguments(
        folder,
        max_steps=300,
        per_device_train_batch_size=32,
        learning_rate=0.003,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    config = BertConfig(**SIZE, **LAYERS, vocab_size=CLASSES, num_labels=CLASSES)
    network = BertForSequenceClassification(config)
    sentences = Sentences(1000, seed=0)
    return Trainer(network, arguments, train_dataset=sentences, compute_loss_func=compute_loss)


def main(source: str) -> None:
    """Train, and print the accuracy on other sentences."""
    torch.manual_seed(0)
    held_out = Sentences(500, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_with(source, folder)
        # It would print a line for each training.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        predicted = torch.tensor(trainer.predict(held_out).predictions).argmax(dim=1)
    accuracy = (predicted == held_out.words[:, 0]).float().mean()
    print(f"accuracy on held-out sentences: {accuracy:.1%}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "zoo:digits")
