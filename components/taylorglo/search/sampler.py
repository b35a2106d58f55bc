"""CMA-ES as an Optuna sampler that can be rebuilt from the finished trials."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from taylorglo.search.space import Solution, Space

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
        self._warm = start if "mean" in start else {}
        self._population_size = popsize
        self._seed = seed
        self._asked = 0  # number of the trial that is being drawn

    def mean(self, finished: list[FrozenTrial]) -> dict[str, float]:
        """Return the mean of the distribution that the finished trials lead to."""
        from taylorglo.search.optimizers import recommended

        told, _ = self._told(finished)
        place = recommended(self._space, self._population_size, self._warm, told)
        return self._space.point(place)

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
        self._asked = trial.number
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> "cmaes.CMA":
        from taylorglo.search.optimizers import restored

        told, last = self._told(completed_trials)

        def first(generation: int) -> int:
            # The last trial of a generation is complete: otherwise, another one was drawn after it.
            return last.get(generation - 1, -1) + 1

        space, popsize, warm = self._space, self._population_size, self._warm
        return restored(space, popsize, warm, told, first, self._asked)

    def _told(
        self, finished: list[FrozenTrial]
    ) -> tuple[dict[int, list[Solution]], dict[int, int]]:
        """Return the results of each generation, numbered from 0, and its last trial's number."""
        told: dict[int, list[Solution]] = {}
        last: dict[int, int] = {}
        for trial in sorted(finished, key=lambda trial: trial.number):
            generation = trial.system_attrs[self._attr_key_generation]
            told.setdefault(generation, []).append(self._space.solution(trial))
            last[generation] = trial.number
        return told, last
