"""The keys of recorded trainings equal those of version 0.1.0, so its records stay in use.

The expected keys were computed by version 0.1.0 with version 2.8.0 of PyTorch.
"""

from typing import Any

import pytest
import torch

from taylorglo.data.dataset import Dataset, Split
from taylorglo.evaluation import comparison, fitness
from taylorglo.evaluation.comparison import Entry, train_in_full
from taylorglo.evaluation.fitness import Assignment, evaluate
from taylorglo.results import Contender, FullTraining, Training
from taylorglo.settings import SweepSettings
from taylorglo.training.engine import Engine

THETA = [0.0, -0.5, -1.0, 4.0, 0.0, -4.0, 0.0, 0.0]
TAYLOR = Contender(name="x", loss="taylor", learning_rate=0.1, theta=THETA)
SMOOTHED = Contender(name="y", loss="cross-entropy", learning_rate=0.3, label_smoothing=0.1)
SQUARED = Contender(name="z", loss="squared-error", learning_rate=0.01)

DEFAULT: dict[str, Any] = {
    "training": {"precision": "float32", "engine": "sequential"},
    "evaluation": {"folds": 0},
}
OTHER: dict[str, Any] = {
    "seed": 7,
    "training": {
        **DEFAULT["training"],
        "steps": 2000,
        "momentum": 0.8,
        "schedule": "step",
        "milestones": [0.5, 0.75],
    },
    "augmentation": {"crop_padding": 1, "flip": True, "cutmix": 0.5},
    "evaluation": {
        "folds": 0,
        "steps": 200,
        "give_up_step": 40,
        "anneal": False,
        "adversarial_weight": 0.25,
    },
}


class Recorded:
    """A memory that has every training, and remembers the keys."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def training(self, key: str) -> Training:
        self.keys.append(key)
        values = {"status": "ok", "accuracy": 0.5, "robust_accuracy": 0.5, "curve": []}
        return Training.model_validate({**values, "started": 0.0, "ended": 1.0, "seconds": 1.0})


class ShortTrainings(Recorded):
    """A cache of short trainings."""

    def recall(self, key: str) -> Training:
        return self.training(key)

    def record(self, key: str, training: Training) -> None:
        raise AssertionError("trained")


class FullTrainings(Recorded):
    """A memory of trainings in full."""

    def recall(self, key: str) -> FullTraining:
        return FullTraining(contender=SQUARED, seed=0, key=key, training=self.training(key))

    def weights(self, key: str) -> bytes:
        raise AssertionError("restored")

    def record(self, training: FullTraining, weights: bytes) -> None:
        raise AssertionError("trained")


@pytest.fixture(autouse=True)
def _software(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of PyTorch with which the expected keys were computed."""
    for module in (fitness, comparison):
        monkeypatch.setattr(module, "version", {"torch": "2.8.0"}.__getitem__)


def dataset(*, test: bool) -> Dataset:
    """Return a data set whose pixels do not come from a generator of random numbers."""

    def split(size: int) -> Split:
        pixels = (torch.arange(size * 64) % 251).to(torch.uint8)
        return Split(pixels.reshape(size, 1, 8, 8), torch.arange(size) % 10)

    return Dataset(
        name="example",
        num_classes=10,
        train=split(100),
        validation=split(20),
        test=split(30) if test else None,
        mean=(0.5,),
        std=(0.25,),
        provenance={"fingerprint": "abc"},
    )


def engine_of(values: dict[str, Any], *, test: bool = False) -> Engine:
    return Engine(SweepSettings.model_validate(values), lambda: dataset(test=test))


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (
            DEFAULT,
            [
                "c3a6a6c9e1d00246c509a0830b00ea44ff2c5fed3df9f56b00cfa4d73694dd23",
                "d8624e9979664baad03dfaffe9ac773c20962e299c0e1e6c59ff490c608f9e46",
            ],
        ),
        (
            OTHER,
            [
                "2d844df01119188af984db4d58a0563aab2a9c7b04349cdb98bd31e61cb95ddb",
                "b23f88ef8957b590fd1bf09cf5510f29b61267198b48a9f1040cd42744c81aca",
            ],
        ),
    ],
    ids=["default", "other"],
)
def test_the_keys_of_the_attempts_of_a_candidate(values: dict[str, Any], keys: list[str]) -> None:
    cache = ShortTrainings()
    with engine_of(values) as engine:
        list(evaluate([Assignment(0, THETA, 2)], 3, engine, cache))
    assert cache.keys == keys


@pytest.mark.parametrize(
    ("values", "test", "keys"),
    [
        (
            DEFAULT,
            False,
            [
                "9f4abd18b20afca18313216b0eadb8025204bd9ca7cc7ebf0b7577bfe778c4a2",
                "a36cd646cbaf4180f19df9bd96d54568931cce70c302b15f0b91bb8cfcbb8382",
                "0eb4ac0ca1f26941d89f5b6ea23f004d8183538dd0a4e43d7febd19a7fa82af2",
            ],
        ),
        (
            DEFAULT,
            True,
            [
                "a15052538575b1d4ecca88807be446cb44d76f4051dda74c3882bda0aa322dce",
                "b5501170c60a3ae8b14dc4d2cd7725398f50ca732a74ee8129ce54057715f456",
                "cb2c0fc76616d8617f494c95d9cb8007ca190e8726f341618afa06079dfa380b",
            ],
        ),
        (
            OTHER,
            True,
            [
                "dd19dfa33aaac5916d3c400373bd42777419cec9d567f7671adf29081ef97db9",
                "59f85b3fd1a671a444f9273ed3bc31d22c72799e4397783280b4d163ba3e548d",
                "48b77fc775a4f689db15401947bc7d71fb14900a3e6d2ca8b13035d790041946",
            ],
        ),
    ],
    ids=["without the test split", "with the test split", "other settings"],
)
def test_the_keys_of_trainings_in_full(values: dict[str, Any], test: bool, keys: list[str]) -> None:
    memo = FullTrainings()
    with engine_of(values, test=test) as engine:
        train_in_full([Entry(one, 5) for one in (TAYLOR, SMOOTHED, SQUARED)], engine, memo)
    assert memo.keys == keys
