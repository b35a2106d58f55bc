"""Small runs of the engine, and comparisons of their results."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from trainings import GOOD, sweep, untimed_network

from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.settings import SweepSettings
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, TrainedNetwork

Key = TypeVar("Key", bound=Hashable)


def settings_of(model: str = "mlp", **training: Any) -> SweepSettings:
    return sweep(model=model, training={"batch_size": 32, "precision": "float32", **training})


def recipe(loss: Loss, seed: int = 1, steps: int = 20, **options: Any) -> Recipe:
    values = {"steps": steps, "horizon": steps, "validations": 2, "kept": True, **options}
    return Recipe(loss, 0.1, seed, **values)


def recipes(number: int = 6, **options: Any) -> dict[str, Recipe]:
    """Return recipes that differ in their losses."""
    losses = [TaylorLoss([x * (1 + 0.01 * i) for x in GOOD]) for i in range(number)]
    return {f"training {i}": recipe(loss, **options) for i, loss in enumerate(losses)}


def results(
    settings: SweepSettings, path: Path, recipes: Mapping[Key, Recipe]
) -> dict[Key, TrainedNetwork]:
    """Run an engine on a saved data set."""
    with Engine.open(settings, path) as engine:
        return dict(engine.run(recipes.items()))


def assert_same(
    results: Mapping[Key, TrainedNetwork], expected: Mapping[Key, TrainedNetwork]
) -> None:
    """Compare to the bit."""
    assert results.keys() == expected.keys()
    different = [
        key for key in expected if untimed_network(results[key]) != untimed_network(expected[key])
    ]
    assert different == []
