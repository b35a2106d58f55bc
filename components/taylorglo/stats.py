"""The few statistics that results need.

scipy has the tests. The cases in which it has no answer are decided here.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Accuracies that differ by less are the same, but for rounding.
_ROUNDING = 1e-12

# scipy.stats takes more than a second to import, and each task is a process of its own. Most tasks
# that import this module test nothing, so the functions that test import scipy themselves.


def finite(values: Iterable[float]) -> NDArray[np.float64]:
    """Return the finite values as an array of one dimension."""
    array = np.fromiter(values, dtype=np.float64)
    return array[np.isfinite(array)]


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the p value of Welch's two-sided test of equal means.

    Two constant samples have no variance to test by: their p value is 1 if they are equal, else 0.
    It is NaN if a value is, because the values that are left are those of the better trainings.
    """
    from scipy.stats import ttest_ind

    if not np.isfinite([*first, *second]).all():
        return math.nan
    if len(set(first)) == 1 and len(set(second)) == 1:
        return float(first[0] == second[0])
    return float(ttest_ind(first, second, equal_var=False).pvalue)


def paired(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the p value of the two-sided paired t-test.

    Equal differences have no variance to test by: the p value is 1 if they are all 0, else the one
    of the sign test. Pairs that are not complete are left out; the p value is NaN if none is left.

    Raises:
        ValueError: the samples are not equally long.
    """
    from scipy.stats import ttest_rel

    first, second = complete_pairs(first, second)
    if not first:
        return math.nan
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if max(differences) - min(differences) < _ROUNDING:
        return 1.0 if abs(differences[0]) < _ROUNDING else 2.0 ** (1 - len(differences))
    return float(ttest_rel(first, second).pvalue)


def complete_pairs(
    first: Sequence[float], second: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return two samples without the pairs in which a value is not finite.

    Raises:
        ValueError: the samples are not equally long.
    """
    pairs = [
        (a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by Student's t; None for less than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    reach = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    mean = float(np.mean(values))
    return mean - reach, mean + reach


def above_chance(accuracy: float, images: int, chance: float) -> float:
    """Return the p value of the one-sided binomial test of an accuracy against guessing.

    Args:
        accuracy: share of the images that were classified correctly, in [0, 1].
        images: number of images, at least 1.
        chance: share that guessing classifies correctly, in [0, 1].
    """
    from scipy.stats import binomtest

    correct = round(accuracy * images)
    return float(binomtest(correct, images, chance, alternative="greater").pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for the number of tests by Holm's step-down method (Holm 1979).

    The method is written here because no library that this package needs has it, not even scipy.

    Args:
        p_values: one for each test, in [0, 1]; None if no test was possible.

    Returns:
        The adjusted p values in the same order; None stays None and counts for nothing.
    """
    ranked = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * p))
        adjusted[index] = largest
    return adjusted


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of time spans: seconds in which at least one was going on."""
    total = 0.0
    reached = float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
