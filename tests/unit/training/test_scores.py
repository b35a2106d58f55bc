"""What is measured of a network: accuracy and balanced accuracy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import nn
from trainings import GOOD, OTHER, sweep

from taylorglo.attacks import fgsm
from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset, Split
from taylorglo.loss.functions import TaylorLoss
from taylorglo.settings import SweepSettings
from taylorglo.training.loop import (
    Recipe,
    accuracy_under_fgsm,
    build_network,
    train_network,
    validate,
)
from taylorglo.training.scores import scores
from taylorglo.training.stacked import train_stack

Metric = Callable[[Any, Any], float]


def unbalanced(split: Split) -> Split:
    """Return a part of a split: one class has no image, and the others have more and more."""
    numbers = torch.arange(len(split))
    kept = (split.labels != 4) & (numbers % 10 <= split.labels)
    return Split(split.images[kept], split.labels[kept])


@pytest.fixture(scope="module")
def dataset(digits: Dataset) -> Dataset:
    assert digits.test is not None
    return replace(digits, validation=unbalanced(digits.validation), test=unbalanced(digits.test))


def settings_of(score: str = "balanced-accuracy", **evaluation: Any) -> SweepSettings:
    return sweep(score=score, training={"batch_size": 32}, **evaluation)


def recipe(theta: list[float], **options: Any) -> Recipe:
    values: dict[str, Any] = {"steps": 30, "horizon": 30, "validations": 2, "kept": True}
    return Recipe(TaylorLoss(theta), 0.1, 1, **{**values, **options})


def answers(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(images).argmax(dim=1)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(
    ("score", "metric"),
    [("accuracy", accuracy_score), ("balanced-accuracy", balanced_accuracy_score)],
)
def test_every_score_of_a_training_agrees_with_scikit_learn(
    dataset: Dataset, score: Any, metric: Metric
) -> None:
    sweep_settings = settings_of(score)
    network = build_network(sweep_settings, dataset, 1)
    result = train_network(network, recipe(GOOD, epsilon=0.03), dataset, sweep_settings).training
    split, test = dataset.validation, dataset.test
    assert test is not None
    assert len(split) > 32
    expected = metric(split.labels, answers(network, scaled(split.images)))
    assert result.accuracy == result.curve[-1][1] == pytest.approx(expected, abs=1e-7)
    assert validate(network, split, 32, score)[0] == result.accuracy
    tested = metric(test.labels, answers(network, scaled(test.images)))
    assert result.test_accuracy == pytest.approx(tested, abs=1e-7)
    attacked = fgsm(network, scaled(split.images), split.labels, 0.03)
    robust = metric(split.labels, answers(network, attacked))
    assert result.robust_accuracy == pytest.approx(robust, abs=1e-7)
    assert accuracy_under_fgsm(network, split, 0.03, 32, score) == result.robust_accuracy
    assert 0 < robust < expected < 1


def test_the_two_scores_differ(dataset: Dataset) -> None:
    network = build_network(settings_of(), dataset, 1)
    train_network(network, recipe(GOOD), dataset, settings_of())
    accuracy, entropy = validate(network, dataset.validation, 32)
    balanced, same_entropy = validate(network, dataset.validation, 32, "balanced-accuracy")
    assert accuracy != pytest.approx(balanced, abs=1e-3)
    assert entropy == same_entropy


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_the_score_of_any_answers(pairs: list[tuple[int, int]]) -> None:
    labels, given_answers = (torch.tensor(column) for column in zip(*pairs, strict=True))
    sizes = torch.bincount(labels, minlength=5).float()
    right = torch.bincount(labels[labels == given_answers], minlength=5).float()
    by_class = [
        (given_answers[labels == label] == label).double().mean().item()
        for label in labels.unique()
    ]
    (balanced,) = scores(right[None], sizes, "balanced-accuracy")
    (accuracy,) = scores(right[None], sizes, "accuracy")
    assert balanced == pytest.approx(sum(by_class) / len(by_class), abs=1e-12)
    assert accuracy == (right.sum() / len(labels)).item()
    # The score of a network does not depend on the others.
    both = scores(torch.stack([sizes, right]), sizes, "balanced-accuracy")
    assert both == [1.0, balanced]


def test_a_stack_has_the_scores_of_single_trainings(dataset: Dataset) -> None:
    recipes = [recipe(theta) for theta in (GOOD, OTHER)]
    stack = [result.training for result in train_stack(recipes, dataset, settings_of())]
    for one, training in zip(recipes, stack, strict=True):
        network = build_network(settings_of(), dataset, 1)
        alone = train_network(network, one, dataset, settings_of()).training
        assert (training.accuracy, training.test_accuracy) == (alone.accuracy, alone.test_accuracy)
        assert [point[1] for point in training.curve] == [point[1] for point in alone.curve]


def test_a_training_is_given_up_by_its_score(dataset: Dataset) -> None:
    network = build_network(settings_of(), dataset, 1)
    train_network(network, recipe(GOOD, steps=5), dataset, settings_of())
    reached = validate(network, dataset.validation, 32, "balanced-accuracy")[0]

    def status(least: float) -> str:
        fresh = build_network(settings_of(), dataset, 1)
        checked = recipe(GOOD, steps=5, give_up=(5, least))
        return train_network(fresh, checked, dataset, settings_of()).training.status

    assert status(reached) == "diverged"
    assert status(reached - 1e-6) == "ok"
