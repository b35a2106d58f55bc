"""The memory of a sweep in the store: finished trainings and attacks, and the unfinished run."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from pydantic import ValidationError

from taylorglo.errors import InputError
from taylorglo.results import Attacked, Comparison, FullTraining, Record, SweepResult, Training
from taylorglo.services import layout
from taylorglo.services.storage import Store

Kind = TypeVar("Kind", bound=Record)

_logger = logging.getLogger(__name__)


class _Recorded(FullTraining):
    """A training in full as the store keeps it, with the checksum of its weights.

    Version 0.1.0 kept none.
    """

    weights_sha256: str = ""


@dataclass(frozen=True)
class FullTrainings:
    """The finished trainings in full of a sweep.

    The key of a training is a digest of everything that decides its result.
    """

    store: Store
    sweep: str

    def recall(self, key: str) -> FullTraining | None:
        """Return the training that was recorded under a key, or None."""
        path = layout.training(self.sweep, key)
        known = _read(self.store, path, FullTraining)
        if known is not None and known.key != key:
            # Somebody copied or renamed a file.
            _logger.warning("%s/%s is of another training, and is made again", self.store.uri, path)
            return None
        return known

    def weights(self, key: str) -> bytes:
        """Return the weights that were recorded under a key, as safetensors.

        Raises:
            InputError: the weights were deleted or damaged.
        """
        path = layout.weights(self.sweep, key)
        content = self.store.read(path)
        if content is None:
            problem = "is gone"
        elif self._is_damaged(key, content):
            problem = "is damaged"
        else:
            return content
        raise InputError(
            f"{self.store.uri}: {path} {problem}; remove the .json beside it to train it again"
        )

    def _is_damaged(self, key: str, weights: bytes) -> bool:
        """Return whether weights are not those that were recorded."""
        known = _read(self.store, layout.training(self.sweep, key), _Recorded)
        expected = known.weights_sha256 if known is not None else ""
        return bool(expected) and hashlib.sha256(weights).hexdigest() != expected

    def record(self, training: FullTraining, weights: bytes) -> None:
        """Record a training and the weights of its network."""
        # The weights are written first, so that a recorded training is never without them.
        self.store.write(layout.weights(self.sweep, training.key), weights)
        digest = hashlib.sha256(weights).hexdigest()
        recorded = _Recorded(**dict(training), weights_sha256=digest)
        self.store.write(layout.training(self.sweep, training.key), _encoded(recorded))


@dataclass(frozen=True)
class Attacks:
    """What attacks left of the networks of a sweep.

    The key of an attack is a digest of everything that decides its result.
    """

    store: Store
    sweep: str

    def recall(self, training: str, key: str) -> Attacked | None:
        """Return what was left of the network of a training, or None."""
        return _read(self.store, layout.attack(self.sweep, training, key), Attacked)

    def record(self, training: str, key: str, attacked: Attacked) -> None:
        """Record what was left of the network of a training."""
        self.store.write(layout.attack(self.sweep, training, key), _encoded(attacked))


@dataclass(frozen=True)
class ShortTrainings:
    """The finished short trainings of all sweeps in a store.

    The key of a training is a digest of everything that decides its result.
    """

    store: Store

    def recall(self, key: str) -> Training | None:
        """Return the training that was recorded under a key, or None."""
        return _read(self.store, layout.evaluation(key), Training)

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
        return _read(store, layout.run_state(sweep), cls) or cls()

    def write(self, store: Store, sweep: str) -> None:
        """Write the state."""
        store.write(layout.run_state(sweep), _encoded(self))


class References(Record):
    """The trainings in full that the report of a study stands on, by their keys.

    Attributes:
        results: the trainings whose results a repeated run reads.
        weights: those whose networks it reads, too, to keep or to attack them.
    """

    results: list[str]
    weights: list[str]

    @classmethod
    def of(cls, tuning: Sequence[FullTraining], comparison: Comparison) -> Self:
        """Return the references of a report.

        Args:
            tuning: the trainings that tuned the baselines.
            comparison: the trainings of champion and baselines.
        """
        tested = comparison.trainings
        read = [*tuning, *comparison.finalists, *tested, *comparison.standing]
        return cls(
            results=sorted({training.key for training in read}),
            weights=sorted({training.key for training in tested}),
        )

    @classmethod
    def read(cls, store: Store, sweep: str, study: str) -> Self | None:
        """Read the references of a study; None if no report of it was written."""
        return _read(store, layout.references(sweep, study), cls)

    def write(self, store: Store, sweep: str, study: str) -> None:
        """Write the references of a study."""
        store.write(layout.references(sweep, study), _encoded(self))


def read_result(store: Store, sweep: str) -> SweepResult | None:
    """Return the result of a sweep's last finished run; None if no run has finished.

    Raises:
        InputError: the file is damaged.
    """
    content = store.read(layout.result(sweep))
    if content is None:
        return None
    try:
        return SweepResult.model_validate_json(content)
    except ValidationError:
        raise InputError(
            f"{store.uri}/{layout.result(sweep)}: is damaged; the sweep run again writes it anew"
        ) from None


def write_result(store: Store, result: SweepResult) -> None:
    """Write the result of a finished run."""
    store.write(layout.result(result.sweep), _encoded(result))


def _read(store: Store, key: str, kind: type[Kind]) -> Kind | None:
    """Read a record; None if there is none, or if it is damaged: it is made again then."""
    content = store.read(key)
    if content is None:
        return None
    try:
        return kind.model_validate_json(content)
    except ValidationError:
        _logger.warning("%s/%s is damaged, and is made again", store.uri, key)
        return None


def _encoded(record: Record) -> bytes:
    return json.dumps(record.to_json(), allow_nan=False).encode()
