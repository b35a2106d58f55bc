"""Numbers as text, for the page and for the terminal. What is not finite becomes a dash.

A score is a share in [0, 1], which is shown in percent, or any other number.
"""

import math
from collections.abc import Sequence

from taylorglo.results import Champion, Example
from taylorglo.scores import is_known
from taylorglo.stats import finite

NOTHING = "–"


def mean_and_deviation(scores: Sequence[float], share: bool = True) -> str:
    """Return mean and sample standard deviation of scores as text.

    Scores that are not finite are left out.

    Args:
        scores: accuracies in [0, 1], for example.
        share: whether they are shares, which are shown in percent.
    """
    shown = (100 if share else 1) * finite(scores)
    if not shown.size:
        return NOTHING
    decimals = 2 if share else _decimals(max(map(abs, shown.tolist())), digits=5)
    mean = f"{shown.mean():.{decimals}f}".replace("-", "−")
    return mean if shown.size == 1 else f"{mean} ± {shown.std(ddof=1):.{decimals}f}"


def difference(points: float, share: bool, sign: bool = False) -> str:
    """Return by how much two scores differ, as text.

    Args:
        points: the difference, in percentage points if the scores are shares.
        share: whether they are.
        sign: whether a difference above 0 has a sign, too.
    """
    decimals = 2 if share else _decimals(abs(points), digits=3)
    return f"{points:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def _decimals(largest: float, digits: int) -> int:
    """Return how many decimals numbers have of which the largest has so many significant digits."""
    return min(12, max(0, digits - 1 - math.floor(math.log10(largest)))) if largest else digits - 1


def amount(score: float, share: bool = True) -> str:
    """Return a score with its unit: percent for a share, else none."""
    return mean_and_deviation([score], share) + (" %" if share else "")


def sample_size(accuracies: Sequence[float]) -> str:
    """Return the number of finite accuracies as text, and of how many, if some are not finite."""
    size = finite(accuracies).size
    return str(size) if size == len(accuracies) else f"{size} of {len(accuracies)}"


def number(value: float | None) -> str:
    """Return a number with four significant digits, or a dash if there is no finite number."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.4g}".replace("-", "−")


def score(value: float | None, share: bool = True) -> str:
    """Return a score without its unit, or a dash if there is no finite one."""
    return mean_and_deviation([] if value is None else [value], share)


def share(fraction: float) -> str:
    """Return a fraction in whole percent, with the sign."""
    return f"{100 * fraction:.0f} %" if math.isfinite(fraction) else NOTHING


def seconds(value: float) -> str:
    """Return seconds with one decimal, and with thin spaces between the thousands."""
    return f"{value:,.1f}".replace(",", "\u202f") if math.isfinite(value) else NOTHING


def duration(value: float) -> str:
    """Return seconds as hours and minutes, minutes and seconds, or seconds."""
    if not math.isfinite(value):
        return NOTHING
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def origin(champion: Champion) -> str:
    """Return where a champion comes from, in words."""
    if champion.baseline:
        return f"{champion.baseline} with its tuned learning rate, which is a Taylor loss, too"
    if champion.trial is None:
        return f"the mean of the search's distribution after generation {champion.generation}"
    return f"candidate {champion.trial} of generation {champion.generation}"


def expectation(champion: Champion, share: bool = True) -> str:
    """Return the expected fitness of a champion with its interval, in words.

    Args:
        champion: the champion.
        share: whether the fitness is a share, which is shown in percent.
    """
    if not is_known(champion.fitness):
        return "no expected fitness, because no training of it as a finalist has a score"
    fitness = amount(champion.fitness, share)
    if not champion.trainings:
        return f"fitness {fitness} in the search"
    text = f"expected fitness {fitness}"
    if champion.interval is None:
        return f"{text} (1 training)"
    low, high = champion.interval
    return (
        f"{text} (95 % interval {score(low, share)} to {score(high, share)}, "
        f"{champion.trainings} trainings)"
    )


def taken_for(example: Example) -> str:
    """Return what an attacked image is taken for, and after which change, in words."""
    size = example.found.perturbation
    if size is None:
        return "withstands all"
    if not size:
        return f"taken for {example.taken_for} as it is"
    return f"taken for {example.taken_for} at {size:.2g}"
