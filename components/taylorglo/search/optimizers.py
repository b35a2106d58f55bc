"""The optimizers of the search: the CMA-ES of the library cmaes, and the generations before it.

With scipy behind it, cmaes takes half a second to import. Only a task that draws should spend it,
so the sampler imports this module when it is first asked for a candidate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Any, NamedTuple, TypeVar

import cmaes
import numpy as np

from taylorglo.search.space import BOX, Solution, Space, Start

Kind = TypeVar("Kind", bound=cmaes.CMA)
Told = Mapping[int, Sequence[Solution]]  # the results of every generation, numbered from 0


class _Found(NamedTuple):
    """What a generation around a start found: the place to begin from, and how good it is.

    ``value`` is to be minimised, as in cmaes.
    """

    start: Start
    place: np.ndarray
    value: float


class _Numbered(cmaes.CMA):  # type: ignore[misc]  # cmaes has no types
    """CMA-ES whose first generation has a number other than 0."""

    first_generation: int

    @property
    def generation(self) -> int:
        """Number of the generation."""
        since: int = super().generation
        return self.first_generation + since


class _Trying(_Numbered):
    """The distribution around a start, whose scales are spread evenly over its quantiles."""

    scale: int  # index of the coordinate
    scales: NormalDist  # in the unit cube
    candidate: int  # number of the candidate to draw, from 0

    def ask(self) -> np.ndarray:
        """Draw a candidate; one that follows on rejected ones has a scale at random."""
        place: np.ndarray = super().ask()
        if self.candidate < self.population_size:
            quantile = (self.candidate + 0.5) / self.population_size
            place[self.scale] = self.scales.inv_cdf(quantile)
        return place


def restored(
    space: Space,
    popsize: int,
    warm: Mapping[str, Any],
    told: Told,
    first: Callable[[int], int] = lambda generation: 0,
    drawn: int = 0,
) -> cmaes.CMA:
    """Return the optimizer after all complete generations.

    Args:
        space: that is searched.
        popsize: number of results of a generation.
        warm: mean, sigma and covariance of a warm start (:meth:`Space.warm_start`); empty if there
            is none.
        told: the results of every generation.
        first: returns the number of the first trial of a generation.
        drawn: number of the trial that is drawn.
    """
    starts = () if warm else space.starts
    found = _found(space, starts, popsize, told)
    if len(found) < len(starts):
        return _trying(space, popsize, found, drawn - first(len(found)))
    if found:
        best = min(found, key=lambda one: one.value)
        warm = {"mean": best.place, "covariance": _covariance(space, best.start.begun)}
    optimizer = _begun(_Numbered, space, popsize, warm)
    optimizer.first_generation = len(starts)
    while len(solutions := told.get(optimizer.generation, [])) >= popsize:
        optimizer.tell(list(solutions[:popsize]))
    return optimizer


def recommended(space: Space, popsize: int, warm: Mapping[str, Any], told: Told) -> np.ndarray:
    """Return the place in the unit cube that all complete generations lead to.

    It is the mean of CMA-ES's distribution, or the place where CMA-ES would begin; the arguments
    are those of :func:`restored`.
    """
    starts = () if warm else space.starts
    found = _found(space, starts, popsize, told)
    if found and len(found) < len(starts):
        return min(found, key=lambda one: one.value).place
    mean: np.ndarray = restored(space, popsize, warm, told).mean
    return mean


def _found(space: Space, starts: Sequence[Start], popsize: int, told: Told) -> list[_Found]:
    """Return what the generations around the starts found, as far as they are complete."""
    found: list[_Found] = []
    for number, start in enumerate(starts):
        solutions = told.get(number, [])[:popsize]
        if len(solutions) < popsize:
            break
        ranked = sorted(solutions, key=lambda solution: solution[1])
        places = np.array([place for place, _ in ranked])
        third = max(1, round(popsize / 3))
        place = _recombined(places[: max(1, popsize // 2)])
        # The range of the scale is so wide that few candidates are near the best one.
        scale = space.names.index("scale")
        place[scale] = _recombined(places[:third])[scale]
        found.append(_Found(start, place, fmean(value for _, value in ranked[:third])))
    return found


def _trying(space: Space, popsize: int, found: Sequence[_Found], candidate: int) -> _Trying:
    """Return the distribution of the generation that tries the next start.

    Args:
        space: that is searched.
        popsize: number of results of a generation.
        found: what the generations before it found.
        candidate: number of the candidate that is drawn, among those of the generation.
    """
    number = len(found)
    start, scale = space.starts[number], space.names.index("scale")
    unit = 2 * BOX * np.array(space.sigmas)
    mean = space.place(start.mean)
    if found:
        mean[scale] = found[0].place[scale] + start.mean[scale] / unit[scale]
    begun = {"mean": mean, "covariance": _covariance(space, start.tried)}
    optimizer = _begun(_Trying, space, popsize, begun)
    optimizer.first_generation, optimizer.candidate, optimizer.scale = number, candidate, scale
    optimizer.scales = NormalDist(float(mean[scale]), start.tried[scale] / float(unit[scale]))
    return optimizer


def _covariance(space: Space, sigmas: Sequence[float]) -> np.ndarray:
    """Return the covariance of standard deviations, in the units of the box."""
    return np.diag((np.array(sigmas) / np.array(space.sigmas)) ** 2)


def _begun(kind: type[Kind], space: Space, popsize: int, start: Mapping[str, Any]) -> Kind:
    """Return an optimizer of the unit cube that stands for the box of the space."""
    dimensions, covariance = len(space.names), start.get("covariance")
    # cmaes warns of infinities that do it no harm if popsize is 2 or 3.
    with np.errstate(divide="ignore"):
        optimizer: Kind = kind(
            mean=np.array(start.get("mean", [0.5] * dimensions)),
            sigma=start.get("sigma", 1 / (2 * BOX)),
            cov=None if covariance is None else np.array(covariance),
            bounds=np.array([[0.0, 1.0]] * dimensions),
            population_size=popsize,
        )
    return optimizer


def _recombined(ranked: np.ndarray) -> np.ndarray:
    """Return the mean of the best places with the weights of CMA-ES, the best one first."""
    number = len(ranked)
    weights = math.log(number + 0.5) - np.log(np.arange(1, number + 1))
    mean: np.ndarray = weights / weights.sum() @ ranked
    return mean
