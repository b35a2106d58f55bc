"""The space that is searched: coordinates, where the search starts, and the way to a theta."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

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

_WARM_SHARE = 0.1  # WS-CMA-ES learns from this best part of the source's results
_WARM_WIDTH = 6.0  # width of the domain that WS-CMA-ES is told of, in units of sigma

Solution = tuple[np.ndarray, float]  # a place in the unit cube, and a value to minimise


class Start(NamedTuple):
    """A place from which CMA-ES may begin.

    Attributes:
        mean: by coordinate; the scale of a later start is counted from that of the first one.
        tried: standard deviations of the candidates that try the start, by coordinate.
        begun: those with which CMA-ES begins from it.
    """

    mean: tuple[float, ...]
    tried: tuple[float, ...]
    begun: tuple[float, ...]


# In ``dynamics``, CMA-ES begins from the better of two starts, each at the scale that suits it:
# near losses that let the confidence rest well below 1, as label smoothing lets it rest a little
# below; and near the losses that withstand wrong labels, symmetric and generalised cross-entropy.
# Each axis has its mean and the two widths, in units of sigma. The scale of the first start is as
# wide as a learning rate needs that is ten times too high or too low.
_STARTS: Sequence[Mapping[str, tuple[float, float, float]]] = (
    {
        "scale": (-0.6, 1.3, 0.4),
        "end": (-2.0, 0.25, 0.4),
        "bend": (0.05, 0.05, 0.1),
        "collapse": (-2.8, 0.3, 0.5),
        "log_share": (0.1, 0.05, 0.08),
    },
    {
        "scale": (0.5, 0.8, 0.4),
        "end": (0.45, 0.15, 0.25),
        "bend": (0.12, 0.065, 0.11),
        "collapse": (-0.25, 0.17, 0.29),
        "log_share": (0.25, 0.09, 0.15),
    },
)


@dataclass(frozen=True)
class Space:
    """The coordinates of the search, and where it starts.

    Attributes:
        names: of the coordinates.
        mean: the centre of the box, and the mean with which CMA-ES begins if there are no starts.
        sigmas: standard deviations by coordinate, the units of the box; those with which CMA-ES
            begins if there are no starts.
        starts: the places that the first generations try, one each, before CMA-ES begins.
        num_classes: n.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    sigmas: tuple[float, ...]
    starts: tuple[Start, ...]
    num_classes: int

    @classmethod
    def of(cls, settings: SearchSettings, num_classes: int) -> Self:
        """Return the space of the settings.

        It is ``dynamics`` (:mod:`taylorglo.loss.coordinates`), ``reduced`` (cy', chy, ch, chh), or
        all of ``theta`` (TaylorGLO paper, section IV).
        """
        log = settings.family == "taylor-log"
        if settings.coordinates == "dynamics":
            return cls._of_dynamics(settings, axes(num_classes, log=log), num_classes)
        if settings.coordinates == "reduced":
            centre = dict(zip(_REDUCED, _NEAR_CROSS_ENTROPY, strict=True))
        else:
            centre = {f"theta_{index}": 0.0 for index in range(settings.dimensions - log)}
        if log:
            centre[LOG_WEIGHT] = _MEAN_LOG_WEIGHT
        mean = tuple(settings.mean or centre.values())
        return cls(tuple(centre), mean, (settings.sigma,) * len(centre), (), num_classes)

    @classmethod
    def _of_dynamics(
        cls, settings: SearchSettings, names: tuple[str, ...], num_classes: int
    ) -> Self:
        # A mean of the user's own takes the place of both starts. With two classes there are fewer
        # names than it has numbers.
        given = dict(zip(_STARTS[0], settings.mean, strict=False))

        def start(axes_of: Mapping[str, tuple[float, float, float]]) -> Start:
            rows = [axes_of[name] for name in names]
            mean = tuple(given.get(name, row[0]) for name, row in zip(names, rows, strict=True))
            tried = tuple(settings.sigma * row[1] for row in rows)
            return Start(mean, tried, tuple(settings.sigma * row[2] for row in rows))

        starts = tuple(map(start, _STARTS[:1] if given else _STARTS))
        return cls(names, starts[0].mean, starts[0].begun, starts, num_classes)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The box around the mean, in Optuna's form."""
        return {
            name: FloatDistribution(centre - BOX * sigma, centre + BOX * sigma)
            for name, centre, sigma in zip(self.names, self.mean, self.sigmas, strict=True)
        }

    def theta(self, point: Mapping[str, float]) -> list[float]:
        """Return the theta of a point in these coordinates."""
        if self.starts:
            return theta_at({name: point[name] for name in self.names}, self.num_classes)
        weight = math.exp(point[LOG_WEIGHT]) if LOG_WEIGHT in self.names else None
        values = [point[name] for name in self.names if name != LOG_WEIGHT]
        if self.names[: len(_REDUCED)] == _REDUCED:
            return from_coefficients(*values, log_weight=weight)
        return values if weight is None else [*values, weight]

    def point(self, place: np.ndarray) -> dict[str, float]:
        """Return the point of a place in the unit cube that stands for the box."""
        away = (place - 0.5) * 2 * BOX * np.array(self.sigmas)
        return dict(zip(self.names, (np.array(self.mean) + away).tolist(), strict=True))

    def place(self, values: Sequence[float]) -> np.ndarray:
        """Return the place in the unit cube that stands for the values of the coordinates."""
        away = np.array(values) - np.array(self.mean)
        place: np.ndarray = 0.5 + away / (2 * BOX * np.array(self.sigmas))
        return place

    def solution(self, trial: FrozenTrial) -> Solution:
        """Return a trial in the form of cmaes: a place in the unit cube, and a value to minimise.

        Args:
            trial: with its value.
        """
        assert trial.value is not None
        return self.place([trial.params[name] for name in self.names]), -trial.value

    def warm_start(self, solved: Sequence[Solution]) -> dict[str, Any]:
        """Return the start of a search that goes on from the results of another one.

        This is WS-CMA-ES (Nomura et al., arXiv 2012.06932). Its prior is a tenth of the domain.
        Our box is far wider than the domain should be, so WS-CMA-ES is told of a domain of 6 sigma,
        as Optuna does.

        Returns:
            Mean, sigma and covariance of the first generation, in units of the box, as JSON values.
        """
        import cmaes

        scale = _WARM_WIDTH / (2 * BOX)
        solutions = [((place - 0.5) / scale + 0.5, value) for place, value in solved]
        # At least one result, after cmaes rounds down.
        share = min(1.0, max(_WARM_SHARE, 1.5 / len(solutions)))
        mean, sigma, covariance = cmaes.get_warm_start_mgd(solutions, gamma=share)
        inside = np.clip((mean - 0.5) * scale + 0.5, 0.01, 0.99)
        return {
            "mean": inside.tolist(),
            "sigma": float(sigma * scale),
            "covariance": covariance.tolist(),
        }
