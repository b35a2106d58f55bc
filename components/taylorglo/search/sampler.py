"""CMA-ES as an Optuna sampler that can be rebuilt from the finished trials."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from taylorglo.pareto import Point, ranks
from taylorglo.search.space import Solution, Space

if TYPE_CHECKING:
    import cmaes


class Judged(NamedTuple):
    """The two objectives of a candidate, and whether it was trained to the end."""

    objectives: Point
    trained: bool


class GenerationalCmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES from its first candidate on, with its state rebuilt from the trials.

    Optuna's own sampler draws uniformly until a trial is complete, and keeps its state in the
    database as a pickle: anybody who can write there could run code in every task. Telling the
    finished generations again gives the same state. Randomness depends on the seed and the trial's
    number alone, so it does not matter which process asks.

    Args:
        space: that is searched.
        popsize: number of candidates of a generation.
        seed: decides all that is drawn.
        start: of the search, if it is a warm start.
        judged: returns the two objectives of a finished trial, by which candidates are ranked then;
            None: they are ranked by the trials' values.
    """

    def __init__(
        self,
        space: Space,
        popsize: int,
        seed: int,
        start: Mapping[str, Any],
        *,
        judged: Callable[[FrozenTrial], Judged] | None = None,
    ) -> None:
        super().__init__(n_startup_trials=0, popsize=popsize, seed=seed)
        self._space = space
        self._warm = start if "mean" in start else {}
        self._population_size = popsize
        self._seed = seed
        self._judged = judged
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
        trials: dict[int, list[FrozenTrial]] = {}
        for trial in sorted(finished, key=lambda trial: trial.number):
            trials.setdefault(trial.system_attrs[self._attr_key_generation], []).append(trial)
        last = {generation: own[-1].number for generation, own in trials.items()}
        if self._judged is None:
            return {generation: self.solutions(own) for generation, own in trials.items()}, last
        # CMA-ES is told complete generations. Those that try a start each are compared.
        whole = {
            generation: own[: self._population_size]
            for generation, own in trials.items()
            if len(own) >= self._population_size
        }
        starts = 0 if self._warm else len(self._space.starts)
        groups: dict[int, list[int]] = {}
        for generation in sorted(whole):
            groups.setdefault(max(generation, starts - 1), []).append(generation)
        told: dict[int, list[Solution]] = {}
        for group in groups.values():
            together = self.solutions([trial for number in group for trial in whole[number]])
            for place, number in enumerate(group):
                first = place * self._population_size
                told[number] = together[first : first + self._population_size]
        return told, last

    def solutions(self, trials: Sequence[FrozenTrial]) -> list[Solution]:
        """Return finished trials as places with values to minimise; with two objectives, ranks."""
        plain = [self._space.solution(trial) for trial in trials]
        if self._judged is None:
            return plain
        judged = [self._judged(trial) for trial in trials]
        points = [one.objectives for one in judged]
        # One that failed would make the other areas alike.
        counted = [one.objectives for one in judged if one.trained] or points
        reference = min(first for first, _ in counted), min(second for _, second in counted)
        return [
            (place, float(rank))
            for (place, _), rank in zip(plain, ranks(points, reference), strict=True)
        ]
