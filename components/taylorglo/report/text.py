"""Numbers as text, for the page and for the terminal. What is not finite becomes a dash."""

import math
from collections.abc import Sequence

from taylorglo.results import Champion
from taylorglo.stats import finite

NOTHING = "–"


def mean_and_deviation(accuracies: Sequence[float]) -> str:
    """Return mean and sample standard deviation of accuracies in [0, 1] as text, in percent.

    Accuracies that are not finite are left out.
    """
    percentages = 100 * finite(accuracies)
    if not percentages.size:
        return NOTHING
    if percentages.size == 1:
        return f"{percentages[0]:.2f}"
    return f"{percentages.mean():.2f} ± {percentages.std(ddof=1):.2f}"


def mean_and_spread(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation of numbers as text, as they are.

    Numbers that are not finite are left out.
    """
    numbers = finite(values)
    if not numbers.size:
        return NOTHING
    if numbers.size == 1:
        return f"{numbers[0]:.3f}"
    return f"{numbers.mean():.3f} ± {numbers.std(ddof=1):.3f}"


def sample_size(accuracies: Sequence[float]) -> str:
    """Return the number of finite accuracies as text, and of how many, if some are not finite."""
    size = finite(accuracies).size
    return str(size) if size == len(accuracies) else f"{size} of {len(accuracies)}"


def number(value: float | None) -> str:
    """Return a number with four significant digits, or a dash if there is no finite number."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.4g}".replace("-", "−")


def percent(value: float | None) -> str:
    """Return a fraction in percent, or a dash if there is no finite one."""
    return mean_and_deviation([] if value is None else [value])


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
    if champion.trial is None:
        return f"the mean of the search's distribution after generation {champion.generation}"
    return f"candidate {champion.trial} of generation {champion.generation}"


def expectation(champion: Champion) -> str:
    """Return the expected fitness of a champion with its interval, in words."""
    fitness = f"{percent(champion.fitness)} %"
    if not champion.trainings:
        return f"fitness {fitness} in the search"
    text = f"expected fitness {fitness}"
    if champion.interval is None:
        return f"{text} (1 training)"
    low, high = champion.interval
    return (
        f"{text} (95 % interval {percent(low)} to {percent(high)}, {champion.trainings} trainings)"
    )
