"""Small comparisons: contenders, settings, and a memory of trainings in full."""

import json
from dataclasses import dataclass, field
from typing import Any

from trainings import untimed

from taylorglo.data.dataset import Dataset
from taylorglo.evaluation.comparison import Entry, Memo, train_in_full
from taylorglo.results import Contender, FullTraining
from taylorglo.settings import SweepSettings
from taylorglo.training.engine import Engine

STEPS = 12
CROSS_ENTROPY = Contender(name="cross-entropy", loss="cross-entropy", learning_rate=0.1)


@dataclass
class Memory:
    """A memory of trainings in full, as JSON, which is what a store keeps."""

    trainings: dict[str, str] = field(default_factory=dict)
    networks: dict[str, bytes] = field(default_factory=dict)

    def recall(self, key: str) -> FullTraining | None:
        content = self.trainings.get(key)
        return None if content is None else FullTraining.model_validate_json(content)

    def weights(self, key: str) -> bytes:
        return self.networks[key]

    def record(self, training: FullTraining, weights: bytes) -> None:
        assert training.key not in self.trainings, "trained twice"
        self.trainings[training.key] = json.dumps(training.to_json(), allow_nan=False)
        self.networks[training.key] = weights


def settings_of(**changes: Any) -> SweepSettings:
    """Return settings of short trainings in full; ``changes`` are other settings, by section."""
    values: dict[str, Any] = {
        "training": {"steps": STEPS, "engine": "sequential"},
        "evaluation": {"steps": 5, "give_up_step": 0},
        "baselines": {"learning_rates": [0.05, 0.2], "attempts": 2, "label_smoothing": 0.15},
        "champion": {"seeds": 3},
    }
    for section, content in changes.items():
        is_section = isinstance(content, dict)
        values[section] = {**values.get(section, {}), **content} if is_section else content
    return SweepSettings.model_validate(values)


def changed(contender: Contender, **changes: Any) -> Contender:
    """Return a contender with other values."""
    return contender.model_copy(update=changes)


def without_times(full: FullTraining) -> FullTraining:
    """Return a training in full without what differs if the same is computed elsewhere."""
    return full.model_copy(update={"training": untimed(full.training)})


def engine_on(dataset: Dataset, **changes: Any) -> Engine:
    """Return an engine with the settings of :func:`settings_of`."""
    return Engine(settings_of(**changes), lambda: dataset)


def trained(
    contender: Contender, dataset: Dataset, memo: Memo, *, from_seed: int = 5, **changes: Any
) -> FullTraining:
    """Train a contender in full, with the settings of :func:`settings_of`."""
    with engine_on(dataset, **changes) as engine:
        (full,) = train_in_full([Entry(contender, from_seed)], engine, memo)
    return full
