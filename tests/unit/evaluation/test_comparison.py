"""The comparison: what is remembered and under which key, who is compared from which seeds, and the
kept networks."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from trainings import GOOD as THETA
from trainings import steps_counted

from taylorglo.data import dataset as data
from taylorglo.data.batches import derived_seed, scaled
from taylorglo.data.dataset import Dataset, Split
from taylorglo.errors import InputError, TaylorgloError
from taylorglo.evaluation import comparison
from taylorglo.evaluation.comparison import (
    Contender,
    Memo,
    Trained,
    baselines,
    best_contender,
    restore_network,
)
from taylorglo.loss.functions import CrossEntropy, SquaredError, TaylorLoss
from taylorglo.settings import DataSettings, SweepSettings
from taylorglo.training.engine import Engine
from taylorglo.training.loop import validate

STEPS = 12
CONTENDER = Contender("cross-entropy", "cross-entropy", 0.1)


@dataclass
class Memory:
    """A memo in memory, of JSON as in a store."""

    results: dict[str, str] = field(default_factory=dict)
    networks: dict[str, bytes] = field(default_factory=dict)

    def recall(self, key: str) -> Mapping[str, Any] | None:
        return json.loads(self.results[key]) if key in self.results else None

    def weights(self, key: str) -> bytes:
        return self.networks[key]

    def record(self, key: str, result: Mapping[str, Any], weights: bytes) -> None:
        assert key not in self.results, "trained twice"
        self.results[key], self.networks[key] = json.dumps(result, allow_nan=False), weights


@pytest.fixture(scope="module")
def full() -> Dataset:
    return data.load(DataSettings(), 0)


@pytest.fixture(scope="module")
def digits(full: Dataset) -> Dataset:
    return data.without_test(full)


@pytest.fixture
def steps() -> Iterator[Callable[[], int]]:
    """How many optimizer steps were done since the last time of asking."""
    with steps_counted() as done:

        def since() -> int:
            number = len(done)
            done.clear()
            return number

        yield since


def sweep(changes: dict[str, Any] | None = None) -> SweepSettings:
    values: dict[str, Any] = {
        "training": {"steps": STEPS, "engine": "sequential"},
        "evaluation": {"steps": 5, "give_up_step": 0},
        "baselines": {"learning_rates": [0.05, 0.2], "attempts": 2, "label_smoothing": 0.15},
        "champion": {"seeds": 3},
    }
    for section, own in (changes or {}).items():
        values[section] = {**values.get(section, {}), **own} if isinstance(own, dict) else own
    return SweepSettings.model_validate(values)


def untimed(trained: Trained) -> Trained:
    return replace(trained, started=0.0, ended=0.0)


def train_in_full(
    contender: Contender, seed: int, dataset: Dataset, settings: SweepSettings, memo: Memo
) -> Trained:
    with Engine(settings, lambda: dataset) as engine:
        (trained,) = comparison.train_in_full([(contender, seed)], engine, memo)
    return trained


def tune_baselines(dataset: Dataset, settings: SweepSettings, memo: Memo) -> list[Trained]:
    with Engine(settings, lambda: dataset) as engine:
        return comparison.tune_baselines(engine, memo)


def train_finalists(
    thetas: Sequence[Sequence[float]], dataset: Dataset, settings: SweepSettings, memo: Memo
) -> list[Trained]:
    with Engine(settings, lambda: dataset) as engine:
        return comparison.train_finalists(thetas, engine, memo)


def compare(
    contender: Contender, dataset: Dataset, settings: SweepSettings, memo: Memo
) -> list[Trained]:
    with Engine(settings, lambda: dataset) as engine:
        return comparison.compare(contender, engine, memo)


# The memo


def test_nothing_is_trained_twice(digits, steps):
    memo, settings = Memory(), sweep()
    first = tune_baselines(digits, settings, memo)
    assert steps() == 3 * 2 * 2 * STEPS
    assert len(memo.results) == 12
    assert tune_baselines(digits, settings, memo) == first
    assert steps() == 0
    # One more learning rate is all that is trained of a larger grid.
    more = tune_baselines(digits, sweep({"baselines": {"learning_rates": [0.05, 0.1, 0.2]}}), memo)
    assert steps() == 3 * 2 * STEPS
    assert [t for t in more if t.contender.learning_rate != 0.1] == first


def test_a_result_does_not_depend_on_the_memo(full, steps):
    memo = Memory()
    known = train_in_full(CONTENDER, 5, full, sweep(), memo)
    assert train_in_full(CONTENDER, 5, full, sweep(), memo) == known
    assert steps() == STEPS
    again = Memory()
    assert untimed(train_in_full(CONTENDER, 5, full, sweep(), again)) == untimed(known)
    assert again.networks == memo.networks  # to the byte
    assert Trained.from_dict(json.loads(json.dumps(known.as_dict()))) == known


def test_another_name_is_the_same_training(digits, steps):
    memo = Memory()
    known = train_in_full(CONTENDER, 5, digits, sweep(), memo)
    renamed = replace(CONTENDER, name="the winner")
    settings = sweep(
        {"name": "other-name", "seed": 9, "search": {"popsize": 99}, "evaluation": {"steps": 7}}
    )
    found = train_in_full(renamed, 5, digits, settings, memo)
    assert steps() == STEPS
    assert found == replace(known, contender=renamed)


def test_the_key_is_made_of_everything_that_decides(digits, full, monkeypatch, tmp_path):
    (tmp_path / "compared_networks.py").write_text(
        "from taylorglo.networks.factory import mlp as other\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    memo = Memory()

    def key(
        contender: Contender = CONTENDER, seed: int = 5, dataset: Dataset = digits, **changes: Any
    ) -> str:
        return train_in_full(contender, seed, dataset, sweep(changes), memo).key

    def training(**changes: Any) -> str:
        return key(training=changes)

    assert full.test is not None
    moved = replace(full, test=Split(full.test.images.roll(1, 0), full.test.labels))
    relabelled = replace(full, test=Split(full.test.images, full.test.labels.roll(1, 0)))
    other_data = data.without_test(data.load(DataSettings(train_fraction=0.5), 0))
    taylor = Contender("cross-entropy", "taylor", 0.1, theta=THETA)
    keys = {
        "known": key(),
        "rate": key(replace(CONTENDER, learning_rate=0.2)),
        "smoothing": key(replace(CONTENDER, label_smoothing=0.1)),
        "loss": key(replace(CONTENDER, loss="squared-error")),
        "theta": key(taylor),
        "another theta": key(replace(taylor, theta=[*THETA[:-1], 0.1])),
        "seed": key(seed=6),
        "data": key(dataset=other_data),
        "tested": key(dataset=full),
        "test images": key(dataset=moved),
        "test labels": key(dataset=relabelled),
        "model": key(model={"name": "cnn"}),
        "user's model": key(model={"name": "compared_networks:other"}),
        "steps": training(steps=13),
        "batch_size": training(batch_size=32),
        "momentum": training(momentum=0.8),
        "nesterov": training(nesterov=False),
        "weight_decay": training(weight_decay=0.0),
        "schedule": training(schedule="constant"),
        "milestones": training(schedule="step", milestones=[0.5]),
        "other milestones": training(schedule="step", milestones=[0.6]),
        "decay": training(schedule="step", milestones=[0.5], decay=0.2),
        "crop": key(augmentation={"crop_padding": 1}),
        "flip": key(augmentation={"flip": True}),
        "cutout": key(augmentation={"cutout": 2}),
        "cutmix": key(augmentation={"cutmix": 0.5}),
    }
    assert [names for names in Counter(keys.values()).items() if names[1] > 1] == []
    assert len(memo.results) == len(keys)
    assert key() == keys["known"]


def test_a_changed_test_split_is_tested_anew(full):
    memo = Memory()
    assert full.test is not None
    wrong = replace(full, test=Split(full.test.images, (full.test.labels + 1) % 10))
    right = train_in_full(CONTENDER, 5, full, sweep(), memo)
    assert right.test_accuracy is not None
    assert right.test_accuracy > 0.5
    assert (train_in_full(CONTENDER, 5, wrong, sweep(), memo).test_accuracy or 0.0) < 0.2


# The contenders


def test_the_baselines():
    rate, settings = 0.3, sweep()
    losses = {c.name: c.build() for c in baselines(settings, rate)}
    assert list(losses) == ["cross-entropy", "label-smoothed cross-entropy", "squared error"]
    assert {c.learning_rate for c in baselines(settings, rate)} == {rate}
    plain, smoothed, squared = losses.values()
    assert isinstance(plain, CrossEntropy)
    assert plain.label_smoothing == 0
    assert isinstance(smoothed, CrossEntropy)
    assert smoothed.label_smoothing == 0.15
    assert isinstance(squared, SquaredError)


def test_every_baseline_is_tuned_on_the_whole_grid_from_the_same_seeds(digits):
    settings = sweep({"seed": 4})
    seeds: dict[tuple[str, float], list[int]] = {}
    for t in tune_baselines(digits, settings, Memory()):
        seeds.setdefault((t.contender.name, t.contender.learning_rate), []).append(t.seed)
        assert t.test_accuracy is None
        assert t.status == "ok"
    names = [c.name for c in baselines(settings, 1.0)]
    assert set(seeds) == {(name, rate) for name in names for rate in (0.05, 0.2)}
    assert list(seeds.values()) == [[derived_seed(4, 0, 0), derived_seed(4, 0, 1)]] * 6


def test_finalists_are_trained_as_the_baselines_are_tuned(digits):
    other = [*THETA[:-1], 0.5]
    settings = sweep({"training": {"learning_rate": 0.07}})
    found = train_finalists([THETA, other], digits, settings, Memory())
    tuning = tune_baselines(digits, settings, Memory())
    assert [t.contender.theta for t in found] == [THETA, THETA, other, other]
    assert (
        [t.seed for t in found[:2]] == [t.seed for t in found[2:]] == [t.seed for t in tuning[:2]]
    )
    assert {t.contender.learning_rate for t in found} == {0.07}
    loss = found[0].contender.build()
    assert isinstance(loss, TaylorLoss)
    assert loss.theta.tolist() == THETA
    assert loss.order == 3
    assert found[0].accuracy != found[2].accuracy


def test_contenders_are_compared_from_the_same_new_seeds(full):
    settings, memo = sweep({"seed": 4}), Memory()
    contenders = [
        CONTENDER,
        Contender("squared error", "squared-error", 0.2),
        Contender("c", "taylor", 0.1, THETA),
    ]
    compared = [compare(contender, full, settings, memo) for contender in contenders]
    seeds = [[t.seed for t in own] for own in compared]
    assert seeds[0] == seeds[1] == seeds[2]
    assert len(set(seeds[0])) == 3
    used = [
        derived_seed(4, generation, attempt) for generation in range(200) for attempt in range(5)
    ]
    assert not set(seeds[0]) & set(used)
    assert full.test is not None
    for own in compared:
        for t in own:
            network = restore_network(memo.weights(t.key), "mlp", full)
            assert validate(network, full.test, 64)[0] == t.test_accuracy
            assert validate(network, full.validation, 64)[0] == t.accuracy
        assert len({t.test_accuracy for t in own}) > 1


def test_the_learning_rate_of_the_contender_is_used(digits):
    """Without the momentum and decay of the settings, a rate too small to move anything leaves the
    initial weights."""
    rates = {}
    for rate in (1e-30, 0.1):
        memo = Memory()
        trained = train_in_full(replace(CONTENDER, learning_rate=rate), 5, digits, sweep(), memo)
        rates[rate] = trained.accuracy
    assert rates[1e-30] < 0.3 < rates[0.1]


def trained(contender: Contender, accuracy: float) -> Trained:
    return Trained(contender, 0, "ok", accuracy, None, [], 0.0, 1.0, "key")


def test_the_best_contender_is_the_best_on_average():
    a, b, c = (Contender("x", "cross-entropy", rate) for rate in (0.1, 0.2, 0.3))
    lucky = [trained(a, 0.99), trained(b, 0.8), trained(a, 0.5), trained(b, 0.81), trained(c, 0.7)]
    assert (
        best_contender([*lucky, *[trained(c, 0.7)] * 5]) == b
    )  # however many trainings there are of each
    assert (
        best_contender([trained(c, 0.5), trained(a, 0.5), trained(b, 0.4)]) == c
    )  # of equals, the first
    theta = replace(a, theta=THETA)
    assert best_contender([trained(a, 0.5), trained(theta, 0.6)]) == theta


def test_a_training_that_runs_off_is_recorded(digits):
    memo = Memory()
    found = train_in_full(replace(CONTENDER, learning_rate=1e30), 5, digits, sweep(), memo)
    assert (found.status, found.accuracy) == ("diverged", 0.0)
    assert train_in_full(replace(CONTENDER, learning_rate=1e30), 5, digits, sweep(), memo) == found


# The networks


@pytest.fixture(scope="module")
def kept(full: Dataset) -> tuple[bytes, Trained]:
    memo = Memory()
    result = train_in_full(CONTENDER, 5, full, sweep(), memo)
    return memo.weights(result.key), result


def test_a_network_is_restored(full, kept):
    weights, result = kept
    network = restore_network(weights, "mlp", full)
    assert not network.training
    assert full.test is not None
    assert validate(network, full.test, 64)[0] == result.test_accuracy
    assert torch.equal(network.get_submodule("normalize").mean.flatten(), torch.tensor(full.mean))


def test_bare_weights_get_the_normalisation_of_the_data(full, kept):
    state = load(kept[0])
    bare = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
    assert len(bare) == 4
    images = scaled(full.train.images[:50])
    one, two = restore_network(kept[0], "mlp", full), restore_network(save(bare), "mlp", full)
    assert torch.equal(one(images), two(images))
    other = replace(full, mean=(0.9,))
    assert torch.equal(
        one(images), restore_network(kept[0], "mlp", other)(images)
    )  # whole weights bring their own
    assert not torch.equal(one(images), restore_network(save(bare), "mlp", other)(images))


@pytest.mark.parametrize(
    "damage",
    [
        lambda weights: weights[:-7],
        lambda weights: weights[:20],
        lambda weights: b"",
        lambda weights: b"not weights at all",
        lambda weights: save({k: v for k, v in load(weights).items() if "bias" not in k}),
        lambda weights: save({**load(weights), "network.9.weight": torch.zeros(3)}),
        lambda weights: save({"weights": torch.zeros(3)}),
        lambda weights: save({k: v[:-1] for k, v in load(weights).items()}),
    ],
)
def test_damaged_weights_are_refused(full, kept, damage):
    with pytest.raises(
        InputError, match=r"^these weights do not fit model 'mlp' and data set 'digits': ."
    ) as caught:
        restore_network(damage(kept[0]), "mlp", full)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(full, kept):
    with pytest.raises(
        InputError, match="these weights do not fit model 'cnn' and data set 'digits'"
    ):
        restore_network(kept[0], "cnn", full)
    with pytest.raises(InputError, match="unknown"):
        restore_network(kept[0], "nonsense", full)


def test_a_network_with_tied_weights_is_kept(digits, monkeypatch, tmp_path: Path):
    (tmp_path / "tied_networks.py").write_text(
        """
from torch import nn

def tied(image_shape, num_classes):
    one, two = nn.Linear(64, 64), nn.Linear(64, 64)
    two.weight = one.weight
    return nn.Sequential(nn.Flatten(), one, nn.ReLU(), two, nn.Linear(64, num_classes))
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    memo = Memory()
    result = train_in_full(
        CONTENDER, 5, digits, sweep({"model": {"name": "tied_networks:tied"}}), memo
    )
    network = restore_network(memo.weights(result.key), "tied_networks:tied", digits)
    assert validate(network, digits.validation, 64)[0] == result.accuracy


def test_a_training_in_full_that_fails_twice_is_an_error(digits, monkeypatch, tmp_path: Path):
    (tmp_path / "broken_networks.py").write_text(
        """From torch import nn.

                                                 class Broken(nn.Sequential):     def forward(self,
                                                 images):         if self.training:
                                                 raise RuntimeError("disk on fire")         return
                                                 super().forward(images)

                                                 def broken(image_shape, num_classes):     return
                                                 Broken(nn.Flatten(), nn.Linear(64, num_classes))
                                                 """
    )
    monkeypatch.syspath_prepend(tmp_path)
    memo = Memory()
    with pytest.raises(
        TaylorgloError, match=r"^a training in full of cross-entropy failed twice: disk on fire$"
    ):
        train_in_full(
            CONTENDER, 5, digits, sweep({"model": {"name": "broken_networks:broken"}}), memo
        )
    assert not memo.results
