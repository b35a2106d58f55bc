"""The optimizers of the search: the CMA-ES of the library cmaes, and a generation before it.

With scipy behind it, cmaes takes half a second to import. Only a task that draws should spend it,
so the sampler imports this module when it is first asked for a candidate.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import cmaes
import numpy as np

from taylorglo.search.space import BOX, Space

Kind = TypeVar("Kind", bound=cmaes.CMA)
Solutions = Mapping[int, Sequence[tuple[np.ndarray, float]]]  # by generation, from 0


class ScaleFinder(cmaes.CMA):  # type: ignore[misc]  # cmaes has no types
    """The distribution of a first generation whose scales are spread evenly over its quantiles."""

    space: Space
    candidate: int  # number of the candidate to draw, from 0

    def ask(self) -> np.ndarray:
        """Draw a candidate; one that follows on rejected ones has a scale at random."""
        place: np.ndarray = super().ask()
        if self.candidate >= self.population_size:
            return place
        return self.space.with_scale(place, (self.candidate + 0.5) / self.population_size)


class AfterScale(cmaes.CMA):  # type: ignore[misc]  # cmaes has no types
    """CMA-ES that begins after the generation that found the scale."""

    @property
    def generation(self) -> int:
        """Number of the generation, with the one before it."""
        generation: int = super().generation
        return generation + 1


def restored(
    space: Space, popsize: int, start: Mapping[str, Any], told: Solutions, candidate: int
) -> cmaes.CMA:
    """Return the optimizer after all complete generations.

    Args:
        space: that is searched.
        popsize: number of results of a generation.
        start: mean, sigma and covariance of a warm start (:meth:`Space.warm_start`); empty if there
            is none.
        told: the results of every generation.
        candidate: number of the candidate that is drawn next.
    """
    if "mean" in start or not space.finds_scale:
        optimizer = _begun(cmaes.CMA, space, popsize, start)
    elif len(first := told.get(0, [])) < popsize:
        ratios = np.array(space.first) / np.array(space.sigmas)
        finder = _begun(ScaleFinder, space, popsize, {"covariance": np.diag(ratios**2)})
        finder.space, finder.candidate = space, candidate
        return finder
    else:
        optimizer = _begun(AfterScale, space, popsize, {"mean": space.found(first[:popsize])})
    while len(solutions := told.get(optimizer.generation, [])) >= popsize:
        optimizer.tell(list(solutions[:popsize]))
    return optimizer


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
