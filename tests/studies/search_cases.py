"""The tasks and the methods of the study of the search, and its sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GENERATIONS = 6
POPULATION = 12
SMOOTHING = 0.1  # alpha of label smoothing
NO_LEARNING = 0.05  # gain above chance that a training has to exceed
BASE = "published"  # the method that the others are compared with


@dataclass(frozen=True)
class Task:
    """Data, a network and how it is trained.

    Attributes:
        title: for the tables.
        data: the settings of the data.
        steps: of a training.
        rate: the learning rate of the candidates.
        smoothed: the task of which label smoothing's target is taken; the same data, network and
            steps.
        seconds: of one training in a search, on one core; for the estimate of the time.
        model: name of the network.
    """

    title: str
    data: Mapping[str, Any]
    steps: int
    rate: float
    smoothed: str
    seconds: float
    model: str = "mlp"


def fashion(train: int, validation: int, **flaws: Any) -> dict[str, Any]:
    """Return the settings of a part of Fashion-MNIST, which has 60 000 images for training."""
    return {
        "name": "fashion-mnist",
        "root": "/usr/share/datasets/fashion-mnist",
        "validation_fraction": validation / 60_000,
        "train_fraction": train / (60_000 - validation),
        **flaws,
    }


_DIGITS: dict[str, Any] = {"name": "digits"}
_LITTLE = fashion(2_000, 500)
_NOISY = fashion(2_000, 500, label_noise=0.4)
TASKS = {
    "digits": Task("digits", _DIGITS, 300, 0.1, "digits", 0.055),
    "digits-low": Task("digits, rate / 10", _DIGITS, 300, 0.01, "digits", 0.055),
    "digits-high": Task("digits, rate x 10", _DIGITS, 300, 1.0, "digits", 0.055),
    "fashion": Task("Fashion 2 000", _LITTLE, 500, 0.03, "fashion", 0.2),
    "fashion-low": Task("Fashion 2 000, rate / 10", _LITTLE, 500, 0.003, "fashion", 0.2),
    "fashion-high": Task("Fashion 2 000, rate x 10", _LITTLE, 500, 0.3, "fashion", 0.2),
    "noise": Task("Fashion 2 000, 40 % noise", _NOISY, 500, 0.03, "noise", 0.2),
    "cnn": Task("Fashion 5 000, cnn", fashion(5_000, 1_000), 200, 0.03, "cnn", 1.0, "cnn"),
}

# Where a search might start: end, bend, collapse and log_share, around the two starts of the
# product. Each is trained with all scales on the tasks below.
STARTS: Sequence[tuple[float, float, float, float]] = (
    *((end, 0.05, collapse, 0.1) for end in (-1.0, -2.0, -3.0) for collapse in (-1.5, -2.8, -4.0)),
    *((end, 0.12, collapse, 0.25) for end in (0.2, 0.45, 0.7) for collapse in (-0.6, -0.25, 0.0)),
)
SCALES = (-1.2, -0.6, 0.0, 0.6, 1.2)
TASKS_OF_STARTS = ("digits", "fashion", "noise", "cnn")


@dataclass(frozen=True)
class Method:
    """A way to search.

    Attributes:
        title: for the tables.
        search: the settings of the search that differ from the defaults.
        attempts: trainings of a candidate.
        generations: at the default size.
        adapted: whether CMA-ES adapts its learning rate (cmaes's ``lr_adapt``).
        source: begin with a finished search on another task (WS-CMA-ES).
        sampler: of Optuna, in place of CMA-ES: ``random``, ``tpe`` or ``gp``.
    """

    title: str
    search: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 2
    generations: int = GENERATIONS
    adapted: bool = False
    source: bool = False
    sampler: str = ""


_FILTERS = {"filters": ["learnable", "stable"], "on_reject": "resample"}
# As published (TaylorGLO paper, section IV): mean 0, and a step size of 1.2.
_THETA = {"coordinates": "theta", "family": "taylor", "sigma": 1.2}
_REDUCED = {"coordinates": "reduced", "family": "taylor", "sigma": 1.2, **_FILTERS}
_DYNAMICS = {"coordinates": "dynamics", "family": "taylor-log", **_FILTERS}
METHODS = {
    BASE: Method(
        "theta, no filter (as published)",
        {**_THETA, "filters": ["none"]},
        generations=15,
    ),
    "filtered": Method(
        "theta, published filter, penalize",
        {**_THETA, "filters": ["published"], "on_reject": "penalize"},
    ),
    "theta": Method("theta, learnable + stable", {**_THETA, **_FILTERS}),
    "reduced": Method("reduced", _REDUCED),
    "dynamics-taylor": Method("dynamics, taylor", {**_DYNAMICS, "family": "taylor"}),
    "dynamics": Method("dynamics, taylor-log", _DYNAMICS),
    "8x1": Method("dynamics, 8 x 1 attempt", {**_DYNAMICS, "popsize": 8}, 1, 12),
    "12x1": Method("dynamics, 12 x 1 attempt", _DYNAMICS, 1, 12),
    "adapted": Method("dynamics, lr_adapt", _DYNAMICS, adapted=True),
    "warm": Method("dynamics, warm start", _DYNAMICS, source=True),
    "random": Method("random search", _DYNAMICS, sampler="random"),
    "tpe": Method("TPE", _DYNAMICS, sampler="tpe"),
    "gp": Method("GP", _DYNAMICS, sampler="gp"),
}
DEFAULT_METHOD = "8x1"  # what the product does if nothing is set

# Methods and number of searches of each at the default size, by task; what counts most comes first.
DEFAULT: Mapping[str, tuple[Sequence[str], int]] = {
    "digits": (tuple(METHODS), 6),
    "fashion": ((BASE, "reduced", DEFAULT_METHOD), 3),
    "noise": ((BASE, "dynamics-taylor", DEFAULT_METHOD), 3),
    "digits-low": ((BASE, "reduced", DEFAULT_METHOD), 4),
    "digits-high": ((BASE, "reduced", DEFAULT_METHOD), 4),
    "fashion-low": ((BASE, DEFAULT_METHOD), 1),
    "fashion-high": ((BASE, DEFAULT_METHOD), 1),
    "cnn": ((BASE, DEFAULT_METHOD), 1),
}
FULL: Mapping[str, tuple[Sequence[str], int]] = dict.fromkeys(DEFAULT, (tuple(METHODS), 10))
