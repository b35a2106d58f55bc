"""The comparison: nothing trained twice, every contender under the same conditions, networks that can be restored."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from taylorglo import comparison, data, training
from taylorglo.comparison import Contender
from taylorglo.errors import InputError
from taylorglo.polynomial import from_coefficients
from taylorglo.settings import BaselineSettings, ChampionSettings, SweepSettings, TrainingSettings

SETTINGS = SweepSettings(
    training=TrainingSettings(steps=30, batch_size=32),
    evaluation={"steps": 10},
    baselines=BaselineSettings(learning_rates=[0.01, 0.1], attempts=2, label_smoothing=0.2),
    champion=ChampionSettings(seeds=3),
)
CHAMPION = Contender("champion", "taylor", 0.1, theta=from_coefficients(4, -4, -1, 0))


class Dictionary:
    def __init__(self) -> None:
        self.results: dict[str, Mapping[str, Any]] = {}
        self.networks: dict[str, bytes] = {}
        self.recorded: Counter[str] = Counter()

    def recall(self, key: str) -> Mapping[str, Any] | None:
        return self.results.get(key)

    def weights(self, key: str) -> bytes:
        return self.networks[key]

    def record(self, key: str, result: Mapping[str, Any], weights: bytes) -> None:
        self.results[key], self.networks[key] = result, weights
        self.recorded[key] += 1


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load(SETTINGS.data, 0)


@pytest.fixture(scope="module")
def tuned(digits: data.Dataset) -> tuple[list[comparison.Trained], Dictionary]:
    memo = Dictionary()
    return comparison.tune_baselines(data.without_test(digits), SETTINGS, memo), memo


def test_every_baseline_is_tuned_at_every_rate_from_the_same_seeds(tuned) -> None:
    trainings, _ = tuned
    assert Counter((t.contender.name, t.contender.learning_rate) for t in trainings) == {
        (name, rate): 2
        for name in ("cross-entropy", "label-smoothed cross-entropy", "squared error")
        for rate in (0.01, 0.1)
    }
    assert len({t.seed for t in trainings}) == 2
    smoothing = {t.contender.name: t.contender.label_smoothing for t in trainings}
    assert smoothing == {"cross-entropy": 0, "label-smoothed cross-entropy": 0.2, "squared error": 0}
    assert all(t.test_accuracy is None for t in trainings)  # tuning has no test split to look at


def test_nothing_is_trained_twice(digits: data.Dataset, tuned) -> None:
    trainings, memo = tuned
    again = comparison.tune_baselines(data.without_test(digits), SETTINGS, memo)
    assert [t.as_dict() for t in again] == [t.as_dict() for t in trainings]
    assert set(memo.recorded.values()) == {1}
    assert len(memo.recorded) == len(trainings)


def test_a_memory_is_what_training_again_gives(digits: data.Dataset, tuned) -> None:
    trainings, memo = tuned
    first = trainings[0]
    fresh = Dictionary()
    again = comparison.train_in_full(first.contender, first.seed, data.without_test(digits), SETTINGS, fresh)
    assert (again.accuracy, again.curve, again.key) == (first.accuracy, first.curve, first.key)
    assert fresh.networks == {first.key: memo.networks[first.key]}


def test_the_key_is_of_all_that_decides_and_of_nothing_else(digits: data.Dataset) -> None:
    def key(contender: Contender = CHAMPION, seed: int = 1, dataset: data.Dataset = digits, **changes: Any) -> str:
        settings = SETTINGS.model_copy(update=changes)
        return comparison._key(contender, seed, dataset, settings)

    known = key()
    assert key(replace(CHAMPION, name="finalist")) == known
    assert key(champion=ChampionSettings(seeds=9), name="other") == known
    different = [
        key(replace(CHAMPION, learning_rate=0.2)),
        key(replace(CHAMPION, theta=from_coefficients(4, -4, -1, 0.1))),
        key(Contender("a", "cross-entropy", 0.1)),
        key(Contender("a", "cross-entropy", 0.1, label_smoothing=0.1)),
        key(seed=2),
        key(dataset=data.without_test(digits)),
        key(dataset=data.load(SETTINGS.data, 1)),
        key(training=TrainingSettings(steps=31, batch_size=32)),
        key(model=SETTINGS.model.model_copy(update={"name": "cnn"})),
    ]
    assert len({known, *different}) == 1 + len(different)


def test_the_best_contender_is_that_of_the_highest_mean_validation_accuracy(tuned) -> None:
    template = tuned[0][0]

    def trained(rate: float, accuracy: float) -> comparison.Trained:
        return replace(template, contender=Contender("a", "cross-entropy", rate), accuracy=accuracy, test_accuracy=0.0)

    trainings = [trained(0.1, 0.9), trained(0.1, 0.7), trained(0.2, 0.85), trained(0.2, 0.85), trained(0.3, 0.85)]
    assert comparison.best_contender(trainings).learning_rate == 0.2
    assert comparison.best_contender([trained(0.1, 0.8), trained(0.2, 0.8)]).learning_rate == 0.1


def test_contenders_are_compared_from_the_same_seeds_which_chose_nothing(digits: data.Dataset, tuned) -> None:
    memo = Dictionary()
    champion = comparison.compare(CHAMPION, digits, SETTINGS, memo)
    baseline = comparison.compare(Contender("cross-entropy", "cross-entropy", 0.1), digits, SETTINGS, memo)
    seeds = [t.seed for t in champion]
    assert seeds == [t.seed for t in baseline]
    assert len(set(seeds)) == 3
    assert set(seeds).isdisjoint(t.seed for t in tuned[0])
    evaluated = {training.derived_seed(0, generation, attempt) for generation in range(1, 41) for attempt in range(3)}
    assert set(seeds).isdisjoint(evaluated)
    network = comparison.restore_network(memo.weights(champion[0].key), "mlp", digits)
    assert training.validate(network, digits.test)[0] == champion[0].test_accuracy
    assert training.validate(network, digits.validation)[0] == champion[0].accuracy


def test_finalists_are_trained_from_the_seeds_of_the_tuning(digits: data.Dataset, tuned) -> None:
    finalists = comparison.train_finalists([CHAMPION.theta], data.without_test(digits), SETTINGS, Dictionary())
    assert {t.seed for t in finalists} == {t.seed for t in tuned[0]}
    assert {t.contender.learning_rate for t in finalists} == {SETTINGS.training.learning_rate}


def test_a_training_survives_json(tuned) -> None:
    assert comparison.Trained.from_dict(tuned[0][0].as_dict()) == tuned[0][0]


def test_bare_weights_get_the_normalisation_of_the_data(digits: data.Dataset, tuned) -> None:
    from safetensors.torch import save

    trainings, memo = tuned
    whole = comparison.restore_network(memo.weights(trainings[0].key), "mlp", digits)
    bare = save({k: v.contiguous() for k, v in whole.get_submodule("network").state_dict().items()})
    restored = comparison.restore_network(bare, "mlp", digits)
    images = training.scaled(digits.validation.images[:20])
    assert torch.equal(whole(images), restored(images))
    assert not restored.training


def test_weights_of_something_else_are_refused(digits: data.Dataset, tuned) -> None:
    trainings, memo = tuned
    weights = memo.weights(trainings[0].key)
    for damaged, model in ((weights, "cnn"), (weights[:-7], "mlp"), (b"not weights", "mlp")):
        with pytest.raises(InputError, match=f"do not fit model '{model}'") as caught:
            comparison.restore_network(damaged, model, digits)
        assert "\n" not in str(caught.value)
