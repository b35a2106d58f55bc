"""Searches of a known function, whose candidates can be computed by another way too."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import event
from sqlalchemy.engine import Engine

from taylorglo.loss.dynamics import coefficients
from taylorglo.results import Candidate, Evaluation
from taylorglo.search.study import Search
from taylorglo.settings import Identity, SearchSettings

IDENTITY = Identity(candidates={"popsize": 4}, fitness={}, precision="auto")
OTHER_DATA = Identity(candidates={"popsize": 4, "data": "new"}, fitness={}, precision="auto")
CLASSES = 10
# The coordinates of the known function.
REDUCED = {"family": "taylor", "coordinates": "reduced"}
OPTIMUM = np.array([1.0, -2.0, 3.0, 0.5])  # in the reduced coordinates


@event.listens_for(Engine, "connect")
def _without_fsync(connection: Any, record: Any) -> None:
    """Write without waiting for the disk: it halves the time, and a killed process loses nothing.

    Only a machine that loses its power would.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def open_search(path: Path, *, seed: int = 0, patience: float = 120, **settings: Any) -> Search:
    """Open a search without filters in a file; ``patience`` is in seconds."""
    values = SearchSettings(**{**REDUCED, "popsize": 4, "filters": ["none"], **settings})
    return Search(
        url_of(path),
        "s",
        values,
        seed,
        IDENTITY,
        num_classes=CLASSES,
        exclusive_seconds=patience,
    )


def in_memory(*, seed: int = 0, classes: int = CLASSES, **settings: Any) -> Search:
    values = SearchSettings(**{**REDUCED, **settings})
    return Search("sqlite:///:memory:", "s", values, seed, IDENTITY, num_classes=classes)


def begin(path: Path, identity: Identity = IDENTITY, **settings: Any) -> Search:
    """Begin a run of a sweep that searches anew when the search is finished."""
    values = SearchSettings(
        **{**REDUCED, "popsize": 4, "filters": ["none"], "renew": True, **settings}
    )
    return Search.begin(url_of(path), "s", values, 0, identity, num_classes=CLASSES)


def point(theta: Sequence[float]) -> np.ndarray:
    """Return the reduced coordinates (cy', chy, ch, chh) of a theta."""
    c = coefficients(theta)
    return np.array([c.cy + c.cyy, c.chy, c.ch, c.chh])


def distance(theta: Sequence[float]) -> float:
    """Return the squared distance from the optimum."""
    return float(np.sum((point(theta) - OPTIMUM) ** 2))


def fitness(theta: Sequence[float]) -> float:
    return 1 / (1 + distance(theta))


def evaluation(fitness: float, **values: Any) -> Evaluation:
    """Return the evaluation of a candidate; ``values`` are those that a test looks at."""
    empty: dict[str, Any] = {"accuracies": [], "robust_accuracies": [], "curve": []}
    times = {"started": 0.0, "ended": 1.0, "seconds": 1.0}
    return Evaluation(**{"status": "ok", "fitness": fitness, **empty, **times, **values})


def run_generation(
    search: Search,
    generation: int,
    value: Callable[[Sequence[float]], float] = fitness,
    order: Callable[[list[Candidate]], list[Candidate]] = list,
) -> list[Candidate]:
    """Propose and screen a generation, and tell every result that is missing."""
    search.propose(generation)
    for candidate in order([c for c in search.screen(generation) if not c.finished]):
        search.tell(candidate.trial, evaluation(value(candidate.theta)))
    return search.candidates(generation)


def facts(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates without the time of telling, which differs if the same is done again."""
    return [candidate.model_copy(update={"ended": None}) for candidate in candidates]
