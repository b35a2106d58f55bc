"""Features of a table: columns that are standardised or encoded one-hot by the training split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taylorglo.data.splits import Column

# The name of a column, with its mean and deviation or with its categories.
Encoding = dict[str, Any]


def encoding_of(columns: Sequence[Column], codes: Tensor) -> list[Encoding]:
    """Return the encoding of each column, which standardises or one-hot encodes a training split.

    A column of numbers that is constant in it has the deviation 1. The categories of a column of
    texts are those that it has in it.

    Args:
        columns: of the table.
        codes: float64 (N, number of columns), of the training split.
    """
    encoding: list[Encoding] = []
    for number, (name, categories) in enumerate(columns):
        values = codes[:, number].numpy()
        if categories is None:
            constant = values.min() == values.max()
            deviation = 1.0 if constant else float(values.std())
            encoding.append({"name": name, "mean": float(values.mean()), "std": deviation})
        else:
            present = [categories[int(code)] for code in np.unique(values)]
            encoding.append({"name": name, "categories": present})
    return encoding


def encoded(
    encoding: Sequence[Encoding], columns: Sequence[Column], codes: Tensor
) -> tuple[Tensor, int]:
    """Return features, and how many texts are no category of the training split.

    Such a text is 0 in every feature of its column.

    Args:
        encoding: of each column, learned from the training split.
        columns: of the table.
        codes: float64 (N, number of columns).

    Returns:
        Float32 of shape (N, F), and the number.
    """
    parts: list[NDArray[np.float64]] = []
    unknown = 0
    for number, (described, column) in enumerate(zip(encoding, columns, strict=True)):
        values = codes[:, number].numpy()
        if column.categories is None:
            parts.append(((values - described["mean"]) / described["std"])[:, None])
        else:
            known = [column.categories.index(text) for text in described["categories"]]
            one_hot = values[:, None] == np.array(known, np.float64)
            unknown += int((~one_hot.any(axis=1)).sum())
            parts.append(one_hot.astype(np.float64))
    return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32)), unknown
