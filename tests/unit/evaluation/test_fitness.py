"""Fitness: the accuracies that it is made of, in one program, and in another precision."""

import json
from typing import Any

import pytest
import torch
from trainings import (
    BACKWARDS,
    EXTREME,
    GOOD,
    OTHER,
    all_evaluated,
    evaluated,
    sweep,
    untimed,
)

from taylorglo.attacks import fgsm, pgd
from taylorglo.attacks.gradient import fgsm_and_pgd
from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset
from taylorglo.data.seeds import derived_seed
from taylorglo.evaluation.fitness import short_training
from taylorglo.loss.functions import TaylorLoss
from taylorglo.settings import SweepSettings
from taylorglo.training import devices
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe, build_network, score_under_attack, train_network


def accuracies_by_hand(
    dataset: Dataset, settings: SweepSettings, seed: int, epsilon: float
) -> tuple[float, float]:
    """Train the good candidate; return its validation accuracy, and the accuracy under FGSM."""
    split, steps = dataset.validation, settings.evaluation.steps
    with Engine(settings, lambda: dataset) as engine:
        recipe = short_training(GOOD, seed, engine)
    network = build_network(settings, dataset, recipe.seed)
    plain = Recipe(recipe.loss, 0.1, recipe.seed, steps=steps, horizon=steps)
    train_network(network, plain, dataset, settings)
    images = scaled(split.images)
    attacked = fgsm(network, images, split.labels, epsilon)
    correct = (network(shown).argmax(dim=1) == split.labels for shown in (images, attacked))
    accuracy, robust = (answers.float().mean().item() for answers in correct)
    return accuracy, robust


def test_fitness_with_a_share_of_the_accuracy_under_attack(search_digits: Dataset) -> None:
    settings = sweep(steps=40, adversarial_weight=0.3, adversarial_epsilon=0.07)
    evaluation = evaluated(GOOD, 2, search_digits, settings)
    seeds = [derived_seed(0, 2, attempt) for attempt in range(2)]
    attempts = [accuracies_by_hand(search_digits, settings, seed, 0.07) for seed in seeds]
    accuracies, robust = zip(*attempts, strict=True)
    assert evaluation.accuracies == pytest.approx(accuracies, abs=1e-6)
    assert evaluation.robust_accuracies == pytest.approx(robust, abs=1e-6)
    fitness = 0.7 * sum(accuracies) / 2 + 0.3 * sum(robust) / 2
    assert evaluation.fitness == pytest.approx(fitness, abs=1e-6)
    assert 0.1 < robust[0] < accuracies[0] - 0.05
    plain = evaluated(GOOD, 2, search_digits, sweep(steps=40, adversarial_epsilon=0.07))
    assert (plain.accuracies, plain.robust_accuracies) == (evaluation.accuracies, [])
    assert plain.fitness == pytest.approx(sum(accuracies) / 2)


def test_each_step_of_the_attack_leaves_less(search_digits: Dataset) -> None:
    clean = evaluated(GOOD, 2, search_digits, sweep(steps=40))
    left = {
        steps: evaluated(
            GOOD,
            2,
            search_digits,
            sweep(
                steps=40,
                adversarial_weight=0.3,
                adversarial_epsilon=0.07,
                adversarial_steps=steps,
            ),
        )
        for steps in (1, 2, 10)
    }
    robust = [sum(left[steps].robust_accuracies) for steps in (1, 2, 10)]
    assert sum(clean.accuracies) > robust[0] > robust[1] > robust[2] > 0
    fitness = [clean.fitness, *(left[steps].fitness for steps in (1, 2, 10))]
    assert fitness == sorted(fitness, reverse=True)
    assert all(evaluation.accuracies == clean.accuracies for evaluation in left.values())


def test_pgd_of_the_fitness_is_the_worst_of_three_attacks(search_digits: Dataset) -> None:
    """An image counts as right if no attack alone changes that, from the image itself on."""
    settings, split = sweep(), search_digits.validation
    network = build_network(settings, search_digits, 1)
    recipe = Recipe(TaylorLoss(GOOD), 0.1, 1, steps=40, horizon=40)
    train_network(network, recipe, search_digits, settings)
    images, labels = scaled(split.images), split.labels

    def right(shown: torch.Tensor) -> torch.Tensor:
        return network(shown).argmax(dim=1) == labels

    alone = [
        right(images),
        right(fgsm(network, images, labels, 0.07)),
        *(right(pgd(network, images, labels, 0.07, steps=3, objective=o)) for o in ("dlr", "ce")),
    ]
    together = right(fgsm_and_pgd(network, images, labels, 0.07, steps=3))
    assert torch.equal(together, torch.stack(alone).all(dim=0))
    assert 0 < together.sum() < min(each.sum() for each in alone)
    measured = score_under_attack(network, split, 0.07, 64, steps=3)
    assert measured == pytest.approx(together.float().mean().item())


def test_no_accuracy_is_left_after_numbers_became_infinite(search_digits: Dataset) -> None:
    settings = sweep(adversarial_weight=0.5, attempts=2)
    evaluation = evaluated(EXTREME, 1, search_digits, settings)
    assert (evaluation.status, evaluation.fitness) == ("diverged", 0.0)
    assert (evaluation.accuracies, evaluation.robust_accuracies) == ([0.0], [0.0])


def test_a_candidate_that_is_given_up_is_attacked_too(search_digits: Dataset) -> None:
    settings = sweep(adversarial_weight=0.5, give_up_step=5)
    evaluation = evaluated(BACKWARDS, 1, search_digits, settings)
    assert evaluation.status == "diverged"
    assert len(evaluation.accuracies) == len(evaluation.robust_accuracies) == 1
    mean = (evaluation.accuracies[0] + evaluation.robust_accuracies[0]) / 2
    assert evaluation.fitness == pytest.approx(mean)


@pytest.mark.parametrize("steps", [1, 4])
def test_fitness_in_one_program(search_digits: Dataset, steps: int) -> None:
    thetas = [GOOD, BACKWARDS, OTHER, EXTREME]
    options: dict[str, Any] = {
        "give_up_step": 10,
        "attempts": 2,
        "adversarial_weight": 0.2,
        "adversarial_steps": steps,
    }
    expected = all_evaluated(thetas, search_digits, sweep(**options))
    fused = sweep(training={"engine": "fused"}, **options)
    for one, two in zip(all_evaluated(thetas, search_digits, fused), expected, strict=True):
        assert (one.status, one.reason) == (two.status, two.reason)
        assert one.accuracies == pytest.approx(two.accuracies, abs=1e-6)
        # An attack depends on the sign of tiny gradients.
        assert one.fitness == pytest.approx(two.fitness, abs=0.01)
    statuses = [evaluation.status for evaluation in expected]
    assert statuses == ["ok", "diverged", "ok", "diverged"]


@pytest.fixture
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with arithmetic for bfloat16. All CPUs compute in it, but some slowly."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: True)


@pytest.mark.usefixtures("_bfloat16")
def test_fitness_in_bfloat16_repeats_and_is_close(search_digits: Dataset) -> None:
    def settings(**training: str) -> SweepSettings:
        values: dict[str, Any] = {"model": "cnn", "steps": 60, "attempts": 1}
        return sweep(training=training, **values)

    half = evaluated(GOOD, 1, search_digits, settings(precision="bfloat16"))
    again = evaluated(GOOD, 1, search_digits, settings(precision="bfloat16"))
    assert untimed(half) == untimed(again)
    single = evaluated(GOOD, 1, search_digits, settings(precision="float32"))
    assert single.fitness > 0.9
    assert half.fitness == pytest.approx(single.fitness, abs=0.03)
    assert half.curve != single.curve
    assert half.method == "sequential, bfloat16, cpu"
    assert single.method == "sequential, float32, cpu"
    assert json.dumps(half.to_json(), allow_nan=False)
    # The network is one of those that bfloat16 was measured with.
    automatic = evaluated(GOOD, 1, search_digits, settings())
    assert untimed(automatic) == untimed(half)
    fused = evaluated(GOOD, 1, search_digits, settings(precision="bfloat16", engine="fused"))
    assert fused.fitness == pytest.approx(half.fitness, abs=0.03)


def test_the_attack_is_computed_in_float32(search_digits: Dataset) -> None:
    settings, split = sweep(model="cnn"), search_digits.validation
    network = build_network(settings, search_digits, 1)
    recipe = Recipe(TaylorLoss(GOOD), 0.1, 1, steps=40, horizon=40)
    train_network(network, recipe, search_digits, settings)
    images = scaled(split.images)
    accuracy = score_under_attack(network, split, 0.05, 64)
    attacked = fgsm(network, images, split.labels, 0.05)
    types = set()
    network.register_forward_hook(lambda _network, _images, logits: types.add(logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert score_under_attack(network, split, 0.05, 64) == accuracy
        assert types == {torch.float32}
        assert not torch.equal(fgsm(network, images, split.labels, 0.05), attacked)
    assert 0.1 < accuracy < 0.95
