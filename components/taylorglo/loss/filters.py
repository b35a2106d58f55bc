"""Invariants that reject a candidate before any training, from the null epoch alone.

Each filter is a function of (theta, num_classes) and gives a Verdict. ``published`` is the condition of the
regularization paper (section 5); ``learnable`` and ``stable`` are what it approximates: A > 0, and B below kappa A.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from taylorglo.errors import InputError
from taylorglo.loss.dynamics import collapse_rate, gamma, learning_drive


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may be trained, why, and the numbers that decided it."""

    accepted: bool
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


Filter = Callable[[Sequence[float], int], Verdict]


def published(theta: Sequence[float], num_classes: int) -> Verdict:
    """Accept when gamma_T > (n-1) gamma_N at the null epoch (regularization paper, section 5).

    It depends on c1, which no training does; for n = 2 it is the condition of :func:`learnable`.
    """
    drive = learning_drive(theta, num_classes)
    other = float(gamma(theta, 0.0)(1 / num_classes))
    margin = drive - (num_classes - 2) * other
    return _verdict(
        "published", "gamma_T - (n-1) gamma_N", margin, margin > 0, "above 0", {"margin": margin}
    )


def learnable(theta: Sequence[float], num_classes: int) -> Verdict:
    """Accept when the learning drive A is positive: the first step raises the target's logit over the others."""
    return by_drive(learning_drive(theta, num_classes))


def by_drive(drive: float) -> Verdict:
    """The verdict of :func:`learnable` on any loss, from its learning drive A."""
    return _verdict("learnable", "A", drive, drive > 0, "above 0", {"A": drive})


def stable(theta: Sequence[float], num_classes: int) -> Verdict:
    """Accept when the collapse rate B is at most kappa times the learning drive A (where A > 0), or not positive.

    kappa is 2 for two classes and 0.3 for more: first values, measured on Fashion-MNIST.
    """
    return by_collapse(
        learning_drive(theta, num_classes), collapse_rate(theta, num_classes), num_classes
    )


def by_collapse(drive: float, rate: float, num_classes: int) -> Verdict:
    """The verdict of :func:`stable` on any loss, from its learning drive A and its collapse rate B."""
    limit = (2.0 if num_classes == 2 else 0.3) * max(drive, 0.0)
    return _verdict(
        "stable", "B", rate, rate <= limit, f"at most {limit:.4g}", {"A": drive, "B": rate}
    )


def none(theta: Sequence[float], num_classes: int) -> Verdict:
    """Accept every candidate."""
    del theta, num_classes
    return Verdict(True, "accepted: no filter")


FILTERS: Mapping[str, Filter] = {
    "published": published,
    "learnable": learnable,
    "stable": stable,
    "none": none,
}


def all_of(names: Sequence[str]) -> Filter:
    """The filter that accepts what every named filter accepts; its reason is that of the first one to reject.

    Raises:
        InputError: a name is unknown, or there is none.
    """
    unknown = [name for name in names if name not in FILTERS]
    if unknown or not names:
        raise InputError(
            f"unknown filter {', '.join(unknown) or '(none given)'}; there are {', '.join(FILTERS)}"
        )

    def combined(theta: Sequence[float], num_classes: int) -> Verdict:
        verdicts = [FILTERS[name](theta, num_classes) for name in names]
        numbers = {key: value for verdict in verdicts for key, value in verdict.numbers.items()}
        decisive = next((verdict for verdict in verdicts if not verdict.accepted), None)
        reason = decisive.reason if decisive else "; ".join(verdict.reason for verdict in verdicts)
        return Verdict(decisive is None, reason, numbers)

    return combined


def _verdict(
    name: str, symbol: str, value: float, accepted: bool, wanted: str, numbers: Mapping[str, float]
) -> Verdict:
    relation = "accepted" if accepted else "rejected"
    return Verdict(
        accepted, f"{relation} by {name}: {symbol} = {value:.4g}, should be {wanted}", numbers
    )
