"""Search a loss for a training by Hugging Face's Trainer (pip install 'transformers[torch]').

python docs/examples/hugging_face_training.py [FOLDER]
"""

import sys
import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

import taylorglo

CLASSES, WORDS, LENGTH = 3, 10, 12
SIZE = {"hidden_size": 32, "intermediate_size": 64}
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2}


class Sentences(Dataset[dict[str, Tensor]]):
    """Sentences of random words, whose class is the one of three words that is most frequent."""

    def __init__(self, number: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.words = torch.randint(WORDS, (number, LENGTH), generator=random)
        counts = torch.stack([(self.words == word).sum(dim=1) for word in range(CLASSES)])
        self.labels = counts.argmax(dim=0)

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a sentence as the network takes it."""
        return {"input_ids": self.words[index], "labels": self.labels[index]}


def train(
    loss: nn.Module,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    split: taylorglo.Split,
    device: str,
) -> float:
    """Train a tiny BERT from scratch, and return its accuracy."""
    torch.manual_seed(seed)
    config = BertConfig(**SIZE, **LAYERS, vocab_size=WORDS, num_labels=CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=learning_rate,
            seed=seed,
            use_cpu=device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            BertForSequenceClassification(config),
            arguments,
            train_dataset=Sentences(1000, seed=0),
            # The Trainer calls it with the outputs of the network, which have logits (N, C).
            compute_loss_func=lambda outputs, labels, **_: loss(outputs.logits, labels),
        )
        # It would print a line for each training.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        measured = Sentences(500, seed=1 if split.name == "validation" else 2)
        predicted = torch.tensor(trainer.predict(measured).predictions).argmax(dim=1)
    return float((predicted == measured.labels).float().mean())


if __name__ == "__main__":
    found = sys.argv[1] if len(sys.argv) > 1 else "runs/hugging-face"
    options = {"classes": CLASSES, "steps": 200, "learning_rate": 0.003}
    print(taylorglo.search(train, **options, folder=found).loss)
