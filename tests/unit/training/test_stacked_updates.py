"""Stacked trainings with every optimizer: each network is trained as alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_runs import assert_same, results
from safetensors.torch import load
from trainings import BACKWARDS, EXTREME, GOOD, OTHER, sweep, untimed_network

from taylorglo.data.dataset import Dataset
from taylorglo.loss.classic import CrossEntropy
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.settings import SweepSettings
from taylorglo.training import engine as engines
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, TrainedNetwork, build_network, train_network
from taylorglo.training.stacked import train_stack

LOSSES: tuple[Loss, ...] = (TaylorLoss(GOOD), TaylorLoss(OTHER), CrossEntropy(), CrossEntropy(0.1))
# Four networks, each at its own rate: an adaptive optimizer trains all of them in one program.
RATES = (1e-3, 4e-3, 2e-3, 1e-2)
EVERYTHING: dict[str, Any] = {
    "weight_decay_on": "weights",
    "weight_decay": 0.05,
    "warmup_steps": 20,
    "clip_norm": 0.3,
    "ema": 0.7,
}
ADAM: dict[str, Any] = {"optimizer": "adam", "betas": [0.8, 0.99]}
CASES: dict[str, dict[str, Any]] = {
    "adam": ADAM,
    "adamw": {"optimizer": "adamw"},
    "sgd, clipped": {"clip_norm": 0.3},
    "sgd, averaged": {"ema": 0.7},
    "sgd, weights alone decay": {"weight_decay_on": "weights", "weight_decay": 0.05},
    "sgd, everything": EVERYTHING,
    "adam, everything": {**ADAM, **EVERYTHING},
    "adamw, everything, one-cycle": {
        "optimizer": "adamw",
        **EVERYTHING,
        "schedule": "one-cycle",
    },
    "adamw, everything, step": {
        "optimizer": "adamw",
        **EVERYTHING,
        "schedule": "step",
        "milestones": [0.3, 0.6],
    },
}


def settings_of(model: str = "mlp", **training: Any) -> SweepSettings:
    return sweep(model=model, training={"batch_size": 16, **training})


def recipes(settings: SweepSettings, **options: Any) -> list[Recipe]:
    """Return a recipe for each loss, at rates of their own if the optimizer takes them."""
    values = {"steps": 8, "horizon": 8, "validations": 2, "kept": True, **options}
    rates = RATES if settings.training.adaptive else [0.05] * len(LOSSES)
    return [Recipe(loss, rate, 3, **values) for loss, rate in zip(LOSSES, rates, strict=True)]


def alone(one: Recipe, dataset: Dataset, settings: SweepSettings) -> TrainedNetwork:
    return train_network(build_network(settings, dataset, one.seed), one, dataset, settings)


def assert_alike(
    found: Sequence[TrainedNetwork], expected: Sequence[TrainedNetwork], rtol: float
) -> None:
    """Compare up to rounding."""
    for one, two in zip(found, expected, strict=True):
        a, b = one.training, two.training
        assert (a.status, a.accuracy, a.test_accuracy) == (b.status, b.accuracy, b.test_accuracy)
        assert a.test_measures == pytest.approx(b.test_measures, rel=rtol)
        weights = load(two.weights)
        for name, value in load(one.weights).items():
            torch.testing.assert_close(value, weights[name], rtol=rtol, atol=rtol * 0.1)


@pytest.mark.parametrize("case", CASES)
def test_every_network_is_trained_as_alone(digits: Dataset, case: str) -> None:
    settings = settings_of(**CASES[case])
    found = train_stack(recipes(settings), digits, settings)
    expected = [alone(one, digits, settings) for one in recipes(settings)]
    assert_alike(found, expected, rtol=1e-3)
    assert len({one.weights for one in found}) == len(LOSSES)
    # Without the setting, another network comes out of it.
    plain = settings_of(optimizer=CASES[case].get("optimizer", "sgd"))
    if settings != plain:
        assert alone(recipes(plain)[0], digits, plain).weights != expected[0].weights


@pytest.mark.parametrize("case", ["adam, everything", "sgd, everything"])
def test_convolutions_are_trained_as_alone(digits: Dataset, case: str) -> None:
    settings = settings_of("cnn", **CASES[case])
    found = train_stack(recipes(settings, steps=4), digits, settings)
    expected = [alone(one, digits, settings) for one in recipes(settings, steps=4)]
    assert_alike(found, expected, rtol=2e-3)


@pytest.mark.parametrize("network", ["tied", "frozen"])
def test_tied_and_frozen_weights_are_trained_as_alone(digits: Dataset, network: str) -> None:
    settings = settings_of(f"user_networks:{network}", **CASES["adam, everything"])
    found = train_stack(recipes(settings), digits, settings)
    assert_alike(found, [alone(one, digits, settings) for one in recipes(settings)], rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_the_size_of_the_stack_does_not_matter(digits: Dataset, case: str) -> None:
    settings = settings_of(**CASES[case])
    every = recipes(settings, steps=6, validations=1)
    whole = train_stack(every, digits, settings)
    # One network is computed in another way than several.
    for size in (1, 3):
        parts = [
            one
            for begin in range(0, len(LOSSES), size)
            for one in train_stack(every[begin : begin + size], digits, settings)
        ]
        assert list(map(untimed_network, parts)) == list(map(untimed_network, whole))


@pytest.mark.parametrize("case", ["adam", "adamw, everything, one-cycle", "sgd, everything"])
def test_networks_that_leave_the_stack_leave_the_others_as_they_are(
    digits: Dataset, case: str
) -> None:
    settings = settings_of(**CASES[case])
    sound = recipes(settings, steps=20, horizon=20)
    rate = 0.05
    given_up = Recipe(
        TaylorLoss(BACKWARDS), rate, 3, steps=20, horizon=20, validations=2, give_up=(6, 0.13)
    )
    diverging = Recipe(TaylorLoss(EXTREME), 1e30, 3, steps=20, horizon=20, validations=2)
    expected = train_stack(sound, digits, settings)
    if settings.training.adaptive:
        together = [sound[0], diverging, sound[1], sound[2], diverging, sound[3]]
        found = train_stack(together, digits, settings)
        assert [one.training.status for one in (found.pop(4), found.pop(1))] == ["diverged"] * 2
    else:
        sound = [_given_up_at(one) for one in sound]
        found = train_stack([sound[0], given_up, *sound[1:]], digits, settings)
        assert found.pop(1).training.status == "diverged"
        expected = train_stack(sound, digits, settings)
    assert list(map(untimed_network, found)) == list(map(untimed_network, expected))


def _given_up_at(one: Recipe) -> Recipe:
    """Return the recipe with the check of the one that is given up: a stack has one for all."""
    return Recipe(
        one.loss,
        one.learning_rate,
        one.seed,
        steps=one.steps,
        horizon=one.horizon,
        validations=one.validations,
        kept=True,
        give_up=(6, 0.13),
    )


def test_the_fused_engine_trains_candidates_of_all_rates_in_one_program(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(stack: Sequence[Recipe], *args: Any) -> list[TrainedNetwork]:
        sizes.append(len(stack))
        return train_stack(stack, *args)

    monkeypatch.setattr(engines, "train_stack", counted)
    for optimizer, expected in (("adam", [4]), ("sgd", [1, 1, 1, 1])):
        settings = settings_of(optimizer=optimizer, engine="fused")
        chosen = [
            Recipe(loss, rate, 3, steps=2, horizon=2)
            for loss, rate in zip(LOSSES, RATES, strict=True)
        ]
        with Engine(settings, lambda: digits) as engine:
            assert len(dict(engine.run(enumerate(chosen)))) == 4
        assert sizes == expected
        sizes.clear()


def test_the_engines_agree(saved_digits: Any) -> None:
    settings = {
        kind: settings_of(engine=kind, workers=2, precision="float32", **CASES["adam, everything"])
        for kind in ("sequential", "parallel", "fused")
    }
    every = dict(enumerate(recipes(settings["fused"])))
    found = {kind: results(one, saved_digits, every) for kind, one in settings.items()}
    assert_same(found["parallel"], found["sequential"])
    assert_alike(
        [found["fused"][key] for key in every],
        [found["sequential"][key] for key in every],
        rtol=1e-3,
    )
