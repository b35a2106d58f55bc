"""The few statistics that results need.

scipy has the tests; the cases in which it has no answer are decided here.
"""

from collections.abc import Iterable, Sequence

_ROUNDING = 1e-12  # accuracies that differ by less are the same


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """The p value of Welch's two-sided test of equal means; two constant samples differ (0) or do not (1)."""
    from scipy.stats import ttest_ind

    if len(set(first)) == 1 and len(set(second)) == 1:
        return float(first[0] == second[0])
    return float(ttest_ind(first, second, equal_var=False).pvalue)


def paired(first: Sequence[float], second: Sequence[float]) -> float:
    """The p value of the two-sided paired t-test.

    Where all differences are the same, there is no spread to test by: 1 if there is none, else that of the sign test.
    """
    from scipy.stats import ttest_rel

    differences = [a - b for a, b in zip(first, second, strict=True)]
    if max(differences) - min(differences) < _ROUNDING:
        return 1.0 if abs(differences[0]) < _ROUNDING else 2.0 ** (1 - len(differences))
    return float(ttest_rel(first, second).pvalue)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of time spans: seconds in which at least one of them was going on."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
