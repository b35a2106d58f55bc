"""The space that is searched: named coordinates around a mean, and the way to a theta."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from taylorglo.loss.coordinates import axes, theta_at
from taylorglo.loss.polynomial import from_coefficients
from taylorglo.settings import SearchSettings

BOX = 50.0  # half the width of the space, in units of sigma: CMA-ES walks freely inside it

LOG_WEIGHT = "log_weight"  # the coordinate log w of the family taylor-log, except in dynamics
_REDUCED = ("cy", "chy", "ch", "chh")
# Cross-entropy's t/h expanded at h = 1/2, and a push back that grows with h.
_NEAR_CROSS_ENTROPY = (4.0, -4.0, -1.0, 0.0)
_MEAN_LOG_WEIGHT = math.log(0.1)  # symmetric cross-entropy's
# The mean of each axis of ``dynamics``, and its width in the first generation and after it. The
# first generation looks for the scale, which depends on the learning rate, and so is as wide as a
# learning rate ten times too high or too low needs; the other axes are narrow in it.
_DYNAMICS: Mapping[str, tuple[float, float, float]] = {
    "scale": (-0.3, 1.4, 0.4),
    "end": (-0.3, 0.15, 0.25),
    "bend": (0.3, 0.065, 0.11),
    "collapse": (-1.0, 0.17, 0.29),
    "log_share": (0.25, 0.09, 0.15),
}
_SCALE = "scale"
_WARM_SHARE = 0.1  # WS-CMA-ES learns from this best part of the source's results
_WARM_WIDTH = 6.0  # width of the domain that WS-CMA-ES is told of, in units of sigma


@dataclass(frozen=True)
class Space:
    """The coordinates of the search, and the first generation's distribution.

    Attributes:
        names: of the coordinates.
        mean: of the first generation, by coordinate.
        first: its standard deviations, by coordinate.
        sigmas: those of the second generation; the unit of CMA-ES.
        num_classes: n.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    first: tuple[float, ...]
    sigmas: tuple[float, ...]
    num_classes: int

    @classmethod
    def of(cls, settings: SearchSettings, num_classes: int) -> Self:
        """Return the space of the settings.

        It is ``dynamics`` (:mod:`taylorglo.loss.coordinates`), ``reduced`` (cy', chy, ch, chh), or
        all of ``theta`` (TaylorGLO paper, section IV).
        """
        log = settings.family == "taylor-log"
        if settings.coordinates == "dynamics":
            start = dict(_DYNAMICS)
        elif settings.coordinates == "reduced":
            start = {
                name: (mean, 1.0, 1.0)
                for name, mean in zip(_REDUCED, _NEAR_CROSS_ENTROPY, strict=True)
            }
        else:
            numbers = settings.dimensions - log
            start = {f"theta_{index}": (0.0, 1.0, 1.0) for index in range(numbers)}
        if settings.coordinates != "dynamics":
            start[LOG_WEIGHT] = (_MEAN_LOG_WEIGHT, 1.0, 1.0)
        names = tuple(start)[: settings.dimensions]
        given = dict(zip(names, settings.mean, strict=bool(settings.mean)))
        if settings.coordinates == "dynamics":
            # Two classes have no bend, and their collapse rate follows from the end.
            names = axes(num_classes, log=log)
        return cls(
            names,
            tuple(given.get(name, start[name][0]) for name in names),
            tuple(settings.sigma * start[name][1] for name in names),
            tuple(settings.sigma * start[name][2] for name in names),
            num_classes,
        )

    @property
    def finds_scale(self) -> bool:
        """Whether the first generation looks for the scale, and CMA-ES begins after it."""
        return _SCALE in self.names

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The box around the mean, in Optuna's form."""
        return {
            name: FloatDistribution(centre - BOX * sigma, centre + BOX * sigma)
            for name, centre, sigma in zip(self.names, self.mean, self.sigmas, strict=True)
        }

    def theta(self, point: Mapping[str, float]) -> list[float]:
        """Return the theta of a point in these coordinates."""
        if self.finds_scale:
            return theta_at({name: point[name] for name in self.names}, self.num_classes)
        weight = math.exp(point[LOG_WEIGHT]) if LOG_WEIGHT in self.names else None
        values = [point[name] for name in self.names if name != LOG_WEIGHT]
        if self.names[: len(_REDUCED)] == _REDUCED:
            return from_coefficients(*values, log_weight=weight)
        return values if weight is None else [*values, weight]

    def point(self, unit: np.ndarray) -> dict[str, float]:
        """Return the point of a place in the unit cube that stands for the box."""
        away = (unit - 0.5) * 2 * BOX * np.array(self.sigmas)
        return dict(zip(self.names, (np.array(self.mean) + away).tolist(), strict=True))

    def with_scale(self, unit: np.ndarray, quantile: float) -> np.ndarray:
        """Return a place in the unit cube with another scale.

        Args:
            unit: the place.
            quantile: of the scale in the distribution of the first generation, in (0, 1).
        """
        place, index = unit.copy(), self.names.index(_SCALE)
        away = NormalDist(0, self.first[index]).inv_cdf(quantile)
        place[index] = 0.5 + away / (2 * BOX * self.sigmas[index])
        return place

    def found(self, solutions: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
        """Return the mean, in the unit cube, that the first generation leads to.

        Each axis has the weighted mean of the better half, as CMA-ES would take it. The scale has
        that of the best third: its range is so wide that few candidates are near the best one.

        Args:
            solutions: of the first generation, as :meth:`solution` returns them.
        """
        ranked = np.array([place for place, _ in sorted(solutions, key=lambda s: s[1])])
        mean = _recombined(ranked[: max(1, len(ranked) // 2)])
        scale = self.names.index(_SCALE)
        mean[scale] = _recombined(ranked[: max(1, round(len(ranked) / 3))])[scale]
        return mean

    def solution(self, trial: FrozenTrial, width: float) -> tuple[np.ndarray, float]:
        """Return a trial in the form of cmaes: a point in the unit cube, and a value to minimise.

        Args:
            trial: with its value.
            width: of the domain that the unit cube stands for, in units of sigma.
        """
        assert trial.value is not None
        point = np.array([trial.params[name] for name in self.names]) - np.array(self.mean)
        return point / (width * np.array(self.sigmas)) + 0.5, -trial.value

    def warm_start(self, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return the start of a search that goes on from finished trials.

        This is WS-CMA-ES (Nomura et al., arXiv 2012.06932). Its prior is a tenth of the domain.
        Our box is far wider than the domain should be, so WS-CMA-ES is told of a domain of 6 sigma,
        as Optuna does.

        Returns:
            Mean, sigma and covariance of the first generation, in units of the box, as JSON values.
        """
        import cmaes

        solutions = [self.solution(trial, _WARM_WIDTH) for trial in trials]
        # At least one result, after cmaes rounds down.
        share = min(1.0, max(_WARM_SHARE, 1.5 / len(solutions)))
        mean, sigma, covariance = cmaes.get_warm_start_mgd(solutions, gamma=share)
        scale = _WARM_WIDTH / (2 * BOX)
        inside = np.clip((mean - 0.5) * scale + 0.5, 0.01, 0.99)
        return {
            "mean": inside.tolist(),
            "sigma": float(sigma * scale),
            "covariance": covariance.tolist(),
        }


def _recombined(ranked: np.ndarray) -> np.ndarray:
    """Return the mean of the best solutions with the weights of CMA-ES, the best one first."""
    number = len(ranked)
    weights = math.log(number + 0.5) - np.log(np.arange(1, number + 1))
    mean: np.ndarray = weights / weights.sum() @ ranked
    return mean
