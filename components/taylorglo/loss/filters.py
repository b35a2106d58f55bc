"""Filters that reject a candidate before any training, from the null epoch alone.

A filter is a function of (theta, num_classes) that returns a verdict. ``published`` is the
condition of the regularization paper (section 5). It approximates the two conditions ``learnable``,
A > 0, and ``stable``, B at most kappa A.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from taylorglo.errors import InputError, meant
from taylorglo.loss.dynamics import collapse_rate, gamma, learning_drive

_FEW_CLASSES = 5


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may be trained, why, and the numbers that decided it."""

    accepted: bool
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


Filter = Callable[[Sequence[float], int], Verdict]


def published(theta: Sequence[float], num_classes: int) -> Verdict:
    """Accept if gamma_T > (n-1) gamma_N at the null epoch (regularization paper, section 5).

    It depends on the coefficient c1, on which no training depends. For n = 2 it is the condition of
    :func:`learnable`.
    """
    drive = learning_drive(theta, num_classes)
    other = float(gamma(theta, 0.0)(1 / num_classes))
    margin = drive - (num_classes - 2) * other
    return _verdict(
        margin > 0,
        f"published: gamma_T - (n-1) gamma_N = {margin:.4g}, should be above 0",
        {"margin": margin},
    )


def learnable(theta: Sequence[float], num_classes: int) -> Verdict:
    """Accept if the learning drive A is positive.

    The first gradient step raises the target's logit over the others then.
    """
    return by_drive(learning_drive(theta, num_classes))


def by_drive(drive: float) -> Verdict:
    """Return the verdict of :func:`learnable` on any loss, from its learning drive A."""
    return _verdict(drive > 0, f"learnable: A = {drive:.4g}, should be above 0", {"A": drive})


def stable(theta: Sequence[float], num_classes: int) -> Verdict:
    """Accept if the collapse rate B is at most kappa times the learning drive A, or at most 0.

    Kappa is 1 for up to five classes and 0.5 for more, as fitted on Fashion-MNIST with 2, 3, 5 and
    10 classes (``make study-filters``, table ``bound``).
    """
    drive = learning_drive(theta, num_classes)
    return by_collapse(drive, collapse_rate(theta, num_classes), num_classes)


def by_collapse(drive: float, rate: float, num_classes: int) -> Verdict:
    """Return the verdict of :func:`stable` on any loss, from its A and its collapse rate B."""
    kappa = 1.0 if num_classes <= _FEW_CLASSES else 0.5
    limit = kappa * max(drive, 0.0)
    reason = f"stable: B = {rate:.4g}, should be at most {limit:.4g}"
    return _verdict(rate <= limit, reason, {"A": drive, "B": rate})


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
    """Return the filter that accepts a candidate if every named filter accepts it.

    The reason of a rejection is that of the first filter that rejects.

    Raises:
        InputError: a name is unknown, or there are no names.
    """
    unknown = [name for name in names if name not in FILTERS]
    if unknown or not names:
        hint = meant(unknown[0], FILTERS) if unknown else ""
        raise InputError(
            f"unknown filter {', '.join(unknown) or '(none given)'}; there are "
            f"{', '.join(FILTERS)}{hint}"
        )

    def combined(theta: Sequence[float], num_classes: int) -> Verdict:
        verdicts = [FILTERS[name](theta, num_classes) for name in names]
        numbers = {key: value for verdict in verdicts for key, value in verdict.numbers.items()}
        decisive = next((verdict for verdict in verdicts if not verdict.accepted), None)
        if decisive is not None:
            return Verdict(False, decisive.reason, numbers)
        return Verdict(True, "; ".join(verdict.reason for verdict in verdicts), numbers)

    return combined


def _verdict(accepted: bool, reason: str, numbers: Mapping[str, float]) -> Verdict:
    relation = "accepted" if accepted else "rejected"
    return Verdict(accepted, f"{relation} by {reason}", numbers)
