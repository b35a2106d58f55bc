"""The space that is searched: named coordinates around a mean, and the way to a theta."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from taylorglo.loss.polynomial import from_coefficients
from taylorglo.settings import SearchSettings

BOX = 50.0  # half the width of the space, in units of sigma: CMA-ES walks freely inside it

_REDUCED = ("cy", "chy", "ch", "chh")
# Cross-entropy's t/h expanded at h = 1/2, and a push back that grows with h.
_NEAR_CROSS_ENTROPY = (4.0, -4.0, -1.0, 0.0)
_WARM_SHARE = 0.1  # WS-CMA-ES learns from this best part of the source's results
_WARM_WIDTH = 6.0  # width of the domain that WS-CMA-ES is told of, in units of sigma


@dataclass(frozen=True)
class Space:
    """The coordinates of the search, and mean and sigma of its first generation."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    sigma: float

    @classmethod
    def of(cls, settings: SearchSettings) -> Self:
        """Return the space of the settings.

        It is ``reduced`` (cy', chy, ch, chh), or all of ``theta`` (TaylorGLO paper, section IV).
        """
        mean = tuple(settings.mean)
        if settings.coordinates == "reduced":
            return cls(_REDUCED, mean or _NEAR_CROSS_ENTROPY, settings.sigma)
        names = tuple(f"theta_{index}" for index in range(settings.dimensions))
        return cls(names, mean or (0.0,) * settings.dimensions, settings.sigma)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The box around the mean, in Optuna's form."""
        reach = BOX * self.sigma
        return {
            name: FloatDistribution(centre - reach, centre + reach)
            for name, centre in zip(self.names, self.mean, strict=True)
        }

    def theta(self, point: Mapping[str, float]) -> list[float]:
        """Return the theta of a point in these coordinates."""
        values = [point[name] for name in self.names]
        return from_coefficients(*values) if self.names == _REDUCED else values

    def solution(self, trial: FrozenTrial, width: float) -> tuple[np.ndarray, float]:
        """Return a trial in the form of cmaes: a point in the unit cube, and a value to minimise.

        Args:
            trial: with its value.
            width: of the domain that the unit cube stands for, in units of sigma.
        """
        assert trial.value is not None
        point = np.array([trial.params[name] for name in self.names]) - np.array(self.mean)
        return point / (width * self.sigma) + 0.5, -trial.value

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
