"""The memory of a sweep in the store: its finished trainings and its unfinished pipeline run."""

import json
from dataclasses import dataclass
from typing import Self

from taylorglo.errors import InputError
from taylorglo.results import FullTraining, Record, Training
from taylorglo.services import layout
from taylorglo.services.storage import Store


@dataclass(frozen=True)
class FullTrainings:
    """The finished trainings in full of a sweep.

    The key of a training is a digest of everything that decides its result.
    """

    store: Store
    sweep: str

    def recall(self, key: str) -> FullTraining | None:
        """Return the training that was recorded under a key, or None."""
        content = self.store.read(layout.training(self.sweep, key))
        return None if content is None else FullTraining.model_validate_json(content)

    def weights(self, key: str) -> bytes:
        """Return the weights that were recorded under a key, as safetensors.

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
        """Record a training and the weights of its network."""
        # The weights are written first, so that a recorded training is never without them.
        self.store.write(layout.weights(self.sweep, training.key), weights)
        self.store.write(layout.training(self.sweep, training.key), _encoded(training))


@dataclass(frozen=True)
class ShortTrainings:
    """The finished short trainings of all sweeps in a store.

    The key of a training is a digest of everything that decides its result.
    """

    store: Store

    def recall(self, key: str) -> Training | None:
        """Return the training that was recorded under a key, or None."""
        content = self.store.read(layout.evaluation(key))
        return None if content is None else Training.model_validate_json(content)

    def record(self, key: str, training: Training) -> None:
        """Record a training."""
        self.store.write(layout.evaluation(key), _encoded(training))


class RunState(Record):
    """The unfinished pipeline run of a sweep.

    Attributes:
        unfinished: id of its MLflow run; empty if every run is finished.
        study: name of the study that the run searches in.
        tracked: number of the last generation that was logged to MLflow; 0 if none was.
    """

    unfinished: str = ""
    study: str = ""
    tracked: int = 0

    @classmethod
    def read(cls, store: Store, sweep: str) -> Self:
        """Read the state. A sweep that never ran has no unfinished run."""
        return cls.model_validate_json(store.read(layout.run_state(sweep)) or b"{}")

    def write(self, store: Store, sweep: str) -> None:
        """Write the state."""
        store.write(layout.run_state(sweep), _encoded(self))


def _encoded(record: Record) -> bytes:
    return json.dumps(record.to_json(), allow_nan=False).encode()
