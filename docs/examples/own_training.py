"""Search a loss for a training of your own: a table, plain PyTorch, AdamW.

python docs/examples/own_training.py [FOLDER]
"""

import sys

import numpy as np
import torch
from sklearn.datasets import make_classification
from torch import nn

import taylorglo

CLASSES, HELD_OUT = 4, 400
TABLE, LABELS = make_classification(
    2000, n_features=20, n_informative=8, n_classes=CLASSES, flip_y=0.1, random_state=0
)


def rows_of(split: taylorglo.Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on, and those to measure on."""
    rows = np.arange(len(TABLE))
    if split.name == "test":
        return rows[:-HELD_OUT], rows[-HELD_OUT:]
    # The search never sees the last rows. Each attempt of a loss validates on another fold.
    order = np.random.default_rng(split.seed).permutation(rows[:-HELD_OUT])
    held = np.arange(len(order)) % max(2, split.folds) == split.fold
    return order[~held], order[held]


def train(
    loss: nn.Module,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    split: taylorglo.Split,
    device: str,
) -> float:
    """Train a network with a loss, and return its accuracy, which the search maximises."""
    table = torch.tensor(TABLE, dtype=torch.float32, device=device)
    labels = torch.tensor(LABELS, device=device)
    trained, measured = (torch.from_numpy(rows).to(device) for rows in rows_of(split))
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, CLASSES)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    for _ in range(steps):
        batch = trained[torch.randint(len(trained), (64,), device=device)]
        optimizer.zero_grad()
        loss(network(table[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = network(table[measured]).argmax(dim=1)
    return float((predicted == labels[measured]).float().mean())


if __name__ == "__main__":
    # After an interruption, the same call goes on with the search.
    result = taylorglo.search(
        train,
        classes=CLASSES,
        steps=300,
        learning_rate=0.003,
        folder=sys.argv[1] if len(sys.argv) > 1 else "runs/own-training",
        compare=True,
    )
    print(result.table, result.verdict, result.loss, sep="\n\n")
