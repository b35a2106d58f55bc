"""CMA-ES as an Optuna sampler that can be rebuilt from the finished trials."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from taylorglo.search.space import BOX, Space

if TYPE_CHECKING:
    import cmaes


class GenerationalCmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES from its first candidate on, with its state rebuilt from the trials.

    Optuna's own sampler draws uniformly until a trial is complete, and keeps its state in the
    database as a pickle: anybody who can write there could run code in every task. Telling the
    finished generations again gives the same state. Randomness depends on the seed and the trial's
    number alone, so it does not matter which process asks.
    """

    def __init__(self, space: Space, popsize: int, seed: int, start: Mapping[str, Any]) -> None:
        super().__init__(n_startup_trials=0, popsize=popsize, seed=seed)
        self._space = space
        self._start = start
        self._population_size = popsize
        self._seed = seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the whole box, from the first trial on."""
        return self._space.distributions

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Draw a point of CMA-ES's distribution; the trial's number decides which one."""
        self._cma_rng.rng.seed(self._seed)
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> "cmaes.CMA":
        # With scipy behind it, cmaes takes half a second that only a task which draws should spend.
        import cmaes

        dimensions, popsize = len(self._space.names), self._population_size
        covariance = self._start.get("covariance")
        # cmaes warns of infinities that do it no harm if popsize is 2 or 3.
        with np.errstate(divide="ignore"):
            optimizer = cmaes.CMA(
                mean=np.array(self._start.get("mean", [0.5] * dimensions)),
                sigma=self._start.get("sigma", 1 / (2 * BOX)),
                cov=None if covariance is None else np.array(covariance),
                bounds=np.array([[0.0, 1.0]] * dimensions),
                population_size=popsize,
            )
        generations: dict[int, list[tuple[np.ndarray, float]]] = {}
        for trial in sorted(completed_trials, key=lambda trial: trial.number):
            generation = trial.system_attrs[self._attr_key_generation]
            generations.setdefault(generation, []).append(self._space.solution(trial, 2 * BOX))
        while len(solutions := generations.get(optimizer.generation, [])) >= popsize:
            optimizer.tell(solutions[:popsize])
        return optimizer
