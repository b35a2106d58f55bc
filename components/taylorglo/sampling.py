"""Where candidates come from: the space that is searched, and CMA-ES over it as an Optuna sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from taylorglo.polynomial import from_coefficients
from taylorglo.settings import SearchSettings

if TYPE_CHECKING:
    import cmaes

_REDUCED = ("cy", "chy", "ch", "chh")
_NEAR_CROSS_ENTROPY = (4.0, -4.0, -1.0, 0.0)  # t/h expanded at h = 1/2, and a push back that grows with h
_BOX = 50.0  # half-width of the search space in units of sigma: CMA-ES walks freely inside it
_WARM_SHARE, _WARM_WIDTH = 0.1, 6.0  # of the source's results, the best tenth; the domain's width in units of sigma


@dataclass(frozen=True)
class Space:
    """What is searched: named coordinates, the mean and sigma of the first generation, and the way to a theta."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    sigma: float

    @classmethod
    def of(cls, settings: SearchSettings) -> "Space":
        """The ``reduced`` coordinates (cy', chy, ch, chh), or all of ``theta`` (TaylorGLO paper, section IV)."""
        if settings.coordinates == "reduced":
            return cls(_REDUCED, tuple(settings.mean) or _NEAR_CROSS_ENTROPY, settings.sigma)
        names = tuple(f"theta_{index}" for index in range(settings.dimensions))
        return cls(names, tuple(settings.mean) or (0.0,) * settings.dimensions, settings.sigma)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The box around the mean, as Optuna wants it."""
        reach = _BOX * self.sigma
        return {
            name: FloatDistribution(centre - reach, centre + reach)
            for name, centre in zip(self.names, self.mean, strict=True)
        }

    def theta(self, point: Mapping[str, float]) -> list[float]:
        """The theta of a point in these coordinates."""
        values = [point[name] for name in self.names]
        return from_coefficients(*values) if self.names == _REDUCED else values

    def solution(self, trial: FrozenTrial, width: float) -> tuple[np.ndarray, float]:
        """A trial as cmaes wants it: the point, in a domain of this width in sigma, and a value to minimize."""
        assert trial.value is not None
        point = np.array([trial.params[name] for name in self.names]) - np.array(self.mean)
        return point / (width * self.sigma) + 0.5, -trial.value

    def warm_start(self, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Where a search begins that goes on from finished trials: WS-CMA-ES (Nomura et al., arXiv 2012.06932).

        Its prior is a tenth of the domain; the box is far wider than the domain, so it is told of one that is as wide
        as Optuna takes it to be, 6 sigma.

        Returns:
            Mean, sigma and covariance of the first generation, in units of the box, as JSON values.
        """
        import cmaes

        solutions = [self.solution(trial, _WARM_WIDTH) for trial in trials]
        share = min(1.0, max(_WARM_SHARE, 1.5 / len(solutions)))  # at least one, after rounding down
        mean, sigma, covariance = cmaes.get_warm_start_mgd(solutions, gamma=share)
        scale = _WARM_WIDTH / (2 * _BOX)
        inside = np.clip((mean - 0.5) * scale + 0.5, 0.01, 0.99)
        return {"mean": inside.tolist(), "sigma": float(sigma * scale), "covariance": covariance.tolist()}


class GenerationalCmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES, from its first candidate on, with its state rebuilt from the trials each time.

    Optuna's own sampler draws uniformly until a trial is complete, and keeps its state in the database as a pickle:
    whoever can write there could run code in every task. Telling the finished generations again gives the same state.
    Randomness depends on the seed and the trial's number alone, so it does not matter which process asks.
    """

    def __init__(self, space: Space, popsize: int, seed: int, start: Mapping[str, Any]) -> None:
        super().__init__(n_startup_trials=0, popsize=popsize, seed=seed)
        self._space = space
        self._start = start
        self._population_size = popsize
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole box, from the first trial on."""
        return self._space.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A point of CMA-ES's distribution, drawn by the trial's number."""
        self._cma_rng.rng.seed(self._seed)
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> "cmaes.CMA":
        import cmaes  # with scipy behind it, half a second that only a task which draws has to spend

        dimensions, popsize = len(self._space.names), self._population_size
        covariance = self._start.get("covariance")
        with np.errstate(divide="ignore"):  # cmaes warns of infinities that it leaves aside, where popsize is 2 or 3
            optimizer = cmaes.CMA(
                mean=np.array(self._start.get("mean", [0.5] * dimensions)),
                sigma=self._start.get("sigma", 1 / (2 * _BOX)),
                cov=None if covariance is None else np.array(covariance),
                bounds=np.array([[0.0, 1.0]] * dimensions),
                population_size=popsize,
            )
        generations: dict[int, list[tuple[np.ndarray, float]]] = {}
        for trial in sorted(completed_trials, key=lambda trial: trial.number):
            generation = trial.system_attrs[self._attr_key_generation]
            generations.setdefault(generation, []).append(self._space.solution(trial, 2 * _BOX))
        while len(solutions := generations.get(optimizer.generation, [])) >= popsize:
            optimizer.tell(solutions[:popsize])
        return optimizer
