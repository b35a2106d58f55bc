"""What the store remembers: finished trainings, and which pipeline run is not finished."""

import json
from dataclasses import dataclass
from typing import Self

from taylorglo.errors import InputError
from taylorglo.results import FullTraining, Record, Training
from taylorglo.services import layout
from taylorglo.services.storage import Store


@dataclass(frozen=True)
class FullTrainings:
    """The finished trainings in full of a sweep, by the digest of all that decides them."""

    store: Store
    sweep: str

    def recall(self, key: str) -> FullTraining | None:
        """Return the training that was recorded under the key, or None."""
        content = self.store.read(layout.training(self.sweep, key))
        return None if content is None else FullTraining.model_validate_json(content)

    def weights(self, key: str) -> bytes:
        """Return the weights that were recorded under the key, as safetensors.

        Raises:
            InputError: the weights were deleted.
        """
        path = layout.weights(self.sweep, key)
        content = self.store.read(path)
        if content is None:
            raise InputError(
                f"{self.store.uri}: {path} is gone; remove the .json beside it to train it again"
            )
        return content

    def record(self, training: FullTraining, weights: bytes) -> None:
        """Keep a training and the weights of its network."""
        # The weights come first, so that a recorded training is never without them.
        self.store.write(layout.weights(self.sweep, training.key), weights)
        self.store.write(layout.training(self.sweep, training.key), _encoded(training))


@dataclass(frozen=True)
class ShortTrainings:
    """The short trainings of all sweeps in a store, by the digest of all that decides them."""

    store: Store

    def recall(self, key: str) -> Training | None:
        """Return the training that was recorded under the key, or None."""
        content = self.store.read(layout.evaluation(key))
        return None if content is None else Training.model_validate_json(content)

    def record(self, key: str, training: Training) -> None:
        """Keep a training."""
        self.store.write(layout.evaluation(key), _encoded(training))


class RunState(Record):
    """The pipeline run of a sweep that is not finished, as the store remembers it.

    Attributes:
        unfinished: id of its MLflow run; empty if every run is finished.
        study: the study that it searches in.
        tracked: the last generation that was logged to MLflow.
    """

    unfinished: str = ""
    study: str = ""
    tracked: int = 0

    @classmethod
    def read(cls, store: Store, sweep: str) -> Self:
        """Read the state; a sweep that never ran has the default one."""
        return cls.model_validate_json(store.read(layout.run_state(sweep)) or b"{}")

    def write(self, store: Store, sweep: str) -> None:
        """Keep the state."""
        store.write(layout.run_state(sweep), _encoded(self))


def _encoded(record: Record) -> bytes:
    return json.dumps(record.to_json(), allow_nan=False).encode()
