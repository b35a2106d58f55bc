"""Features of a table: columns that are standardised or encoded one-hot by the training split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taylorglo.data.splits import Column
from taylorglo.errors import InputError, quoted

# The name of a column, with its mean and deviation or with its categories.
Encoding = dict[str, Any]

# Squares of deviations below it are no numbers of full precision any more.
_TINY = 1e-140
_LARGEST = float(np.finfo(np.float32).max)


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
            encoding.append({"name": name, "mean": float(values.mean()), "std": _deviation(values)})
        else:
            present = [categories[int(code)] for code in np.unique(values)]
            encoding.append({"name": name, "categories": present})
    return encoding


def _deviation(values: NDArray[np.float64]) -> float:
    """Return the standard deviation of numbers, above 0; 1 if all are the same."""
    if values.min() == values.max():
        return 1.0
    deviation = float(values.std())
    if deviation > _TINY:
        return deviation
    # A power of two scales numbers exactly. The largest distance becomes about 1.
    distances = values - values.mean()
    _, exponent = np.frexp(np.abs(distances).max())
    deviation = float(np.ldexp(np.ldexp(distances, -exponent).std(), exponent))
    return max(deviation, float(np.finfo(np.float64).smallest_subnormal))


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
        Float32 of shape (N, F), finite, and the number.

    Raises:
        InputError: a number is too far from the training split to be a feature.
    """
    parts: list[NDArray[np.float64]] = []
    unknown = 0
    for number, (described, column) in enumerate(zip(encoding, columns, strict=True)):
        values = codes[:, number].numpy()
        if column.categories is None:
            parts.append(_standardised(values, described)[:, None])
        else:
            known = [column.categories.index(text) for text in described["categories"]]
            one_hot = values[:, None] == np.array(known, np.float64)
            unknown += int((~one_hot.any(axis=1)).sum())
            parts.append(one_hot.astype(np.float64))
    return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32)), unknown


def _standardised(values: NDArray[np.float64], described: Encoding) -> NDArray[np.float64]:
    # Numbers that are too large are refused below, in place of NumPy's warning.
    with np.errstate(over="ignore"):
        features: NDArray[np.float64] = (values - described["mean"]) / described["std"]
    if (far := np.flatnonzero(np.abs(features) > _LARGEST)).size:
        raise InputError(
            f"column {quoted(described['name'])} has the number {values[far[0]]:g}, but in the "
            f"training split the mean {described['mean']:g} and the standard deviation "
            f"{described['std']:g}: should be corrected, or the row left out"
        )
    return features
