"""The few statistics that results need; no torch, so that a report does not wait for it."""

from collections.abc import Iterable, Sequence


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """The p value of Welch's two-sided test of equal means; two constant samples differ (0) or do not (1)."""
    from scipy.stats import ttest_ind

    if len(set(first)) == 1 and len(set(second)) == 1:
        return float(first[0] == second[0])
    return float(ttest_ind(first, second, equal_var=False).pvalue)


def paired(first: Sequence[float], second: Sequence[float]) -> float:
    """The p value of the two-sided paired t-test; differences that are all the same are none (1) or certain (0)."""
    from scipy.stats import ttest_rel

    differences = {a - b for a, b in zip(first, second, strict=True)}
    if len(differences) == 1:
        return float(differences == {0.0})
    return float(ttest_rel(first, second).pvalue)


def mean_curve(curves: Sequence[Sequence[tuple[int, float, float]]]) -> list[tuple[int, float, float]]:
    """The mean of several learning curves of (step, accuracy, loss), as far as all of them go."""
    return [
        (points[0][0], sum(p[1] for p in points) / len(points), sum(p[2] for p in points) / len(points))
        for points in zip(*curves, strict=False)
    ]


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of time spans: seconds in which at least one of them was going on."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
