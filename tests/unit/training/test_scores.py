"""What is measured of a network: its scores, and the error of its calibration."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from torch import nn
from trainings import EXTREME, GOOD, OTHER, score_and_entropy, sweep

from taylorglo.attacks import fgsm
from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset, Split
from taylorglo.loss.functions import TaylorLoss
from taylorglo.results import Training
from taylorglo.scores import SCORES
from taylorglo.settings import SweepSettings
from taylorglo.training.loop import (
    Recipe,
    build_network,
    score_under_attack,
    train_network,
)
from taylorglo.training.scores import Tally, calibration_error, scores
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
    assert score_and_entropy(network, split, 32, score)[0] == result.accuracy
    tested = metric(test.labels, answers(network, scaled(test.images)))
    assert result.test_accuracy == pytest.approx(tested, abs=1e-7)
    attacked = fgsm(network, scaled(split.images), split.labels, 0.03)
    robust = metric(split.labels, answers(network, attacked))
    assert result.robust_accuracy == pytest.approx(robust, abs=1e-7)
    assert score_under_attack(network, split, 0.03, 32, score=score) == result.robust_accuracy
    assert 0 < robust < expected < 1


def test_the_two_scores_differ(dataset: Dataset) -> None:
    network = build_network(settings_of(), dataset, 1)
    train_network(network, recipe(GOOD), dataset, settings_of())
    accuracy, entropy = score_and_entropy(network, dataset.validation, 32)
    balanced, same_entropy = score_and_entropy(network, dataset.validation, 32, "balanced-accuracy")
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
    reached = score_and_entropy(network, dataset.validation, 32, "balanced-accuracy")[0]

    def status(least: float) -> str:
        fresh = build_network(settings_of(), dataset, 1)
        checked = recipe(GOOD, steps=5, give_up=(5, least))
        return train_network(fresh, checked, dataset, settings_of()).training.status

    assert status(reached) == "diverged"
    assert status(reached - 1e-6) == "ok"


class TestCalibration:
    def test_the_error_is_the_weighted_gap_of_the_bins(self) -> None:
        # Confidence 0.8 in a bin with 3 of 4 right, and 0.6 in another one with 1 of 1.
        probabilities = torch.tensor([[0.8, 0.2]] * 4 + [[0.4, 0.6]])
        labels = torch.tensor([0, 0, 0, 1, 1])
        expected = 4 / 5 * abs(0.75 - 0.8) + 1 / 5 * abs(1 - 0.6)
        assert calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-7)

    def test_errors_within_a_bin_cancel_and_those_of_two_bins_do_not(self) -> None:
        probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3]])
        labels = torch.tensor([0, 1])
        assert calibration_error(probabilities, labels, 1) == pytest.approx(0.3)
        assert calibration_error(probabilities, labels, 10) == pytest.approx((0.1 + 0.7) / 2)

    @pytest.mark.parametrize(("label", "error"), [(0, 0.0), (1, 1.0)])
    def test_a_certain_network(self, label: int, error: float) -> None:
        certain = torch.tensor([[1.0, 0.0]])
        assert calibration_error(certain, torch.tensor([label])) == error


BESIDE = ("negative-log-likelihood", "ece")


def expected_score(score: str, labels: Any, probabilities: Any) -> float:
    """Return a score by scikit-learn, or by a loop over the bins of the confidence."""
    named = probabilities.argmax(1)
    if score == "macro-f1":
        present = sorted(set(labels.tolist()))
        return float(f1_score(labels, named, labels=present, average="macro", zero_division=0))
    if score == "negative-log-likelihood":
        classes = range(probabilities.shape[1])
        return math.exp(-log_loss(labels, probabilities, labels=list(classes)))
    confidences, error = probabilities.max(1).values, 0.0
    for index in range(15):
        inside = (confidences > index / 15) & (confidences <= (index + 1) / 15)
        if inside.any():
            right = (named == labels)[inside].double().mean()
            error += float(inside.double().mean() * (right - confidences[inside].mean()).abs())
    return 1 - error


@pytest.mark.parametrize("score", ["macro-f1", *BESIDE])
def test_the_new_scores_agree_with_scikit_learn_and_with_a_loop(
    dataset: Dataset, score: Any
) -> None:
    sweep_settings = settings_of(score, give_up_step=1)
    network = build_network(sweep_settings, dataset, 1)
    result = train_network(network, recipe(GOOD, epsilon=0.03), dataset, sweep_settings).training

    def of(images: torch.Tensor, labels: torch.Tensor) -> float:
        with torch.no_grad():
            probabilities = network(images).double().softmax(dim=1)
        return expected_score(score, labels, probabilities)

    split, test = dataset.validation, dataset.test
    assert test is not None
    expected = of(scaled(split.images), split.labels)
    assert result.accuracy == result.curve[-1][1] == pytest.approx(expected, abs=1e-6)
    tested = of(scaled(test.images), test.labels)
    assert result.test_accuracy == pytest.approx(tested, abs=1e-6)
    attacked = fgsm(network, scaled(split.images), split.labels, 0.03)
    robust = of(attacked, split.labels)
    assert result.robust_accuracy == pytest.approx(robust, abs=1e-6)
    assert 0 < expected < 1
    assert expected != pytest.approx(score_and_entropy(network, split, 32)[0], abs=1e-3)


def test_the_test_split_is_measured_beside_the_score(dataset: Dataset) -> None:
    assert dataset.test is not None
    network = build_network(settings_of(), dataset, 1)
    result = train_network(network, recipe(GOOD), dataset, settings_of()).training
    accuracy, entropy = score_and_entropy(network, dataset.test, 32)
    calibrated = score_and_entropy(network, dataset.test, 32, "ece")[0]
    expected = {"accuracy": accuracy, "cross_entropy": entropy, "calibration_error": 1 - calibrated}
    assert result.test_measures == pytest.approx(expected, abs=1e-12)
    unkept = build_network(settings_of(), dataset, 1)
    assert (
        train_network(
            unkept, recipe(GOOD, kept=False), dataset, settings_of()
        ).training.test_measures
        == {}
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 10_000))
def test_even_probabilities_have_the_likelihood_of_chance(n: int, size: int, seed: int) -> None:
    labels = torch.randint(0, n, (size,), generator=torch.Generator().manual_seed(seed))
    split = Split(torch.zeros(size, 1, 1, 1, dtype=torch.uint8), labels)
    tally = Tally(split, 2, BESIDE)
    logits = torch.zeros(2, size, n)
    logits[1, range(size), labels] = 60.0
    entropy = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.repeat(2), reduction="none"
    )
    tally.add(logits, labels, entropy.view(2, -1).sum(1))
    assert tally.scores("negative-log-likelihood") == pytest.approx([1 / n, 1.0], rel=1e-5)
    share = (labels == 0).double().mean().item()
    assert tally.scores("ece") == pytest.approx([1 - abs(share - 1 / n), 1.0], abs=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_have_the_lowest_score(value: float) -> None:
    labels = torch.tensor([0, 1])
    tally = Tally(Split(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), labels), 1, BESIDE)
    tally.add(torch.full((1, 2, 3), value), labels, torch.tensor([value]))
    assert [tally.scores(score) for score in BESIDE] == [[0.0], [0.0]]


def tally_of(logits: torch.Tensor, labels: torch.Tensor) -> Tally:
    """Return what networks with these logits (M, B, n) answer, for all scores."""
    split = Split(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    tally = Tally(split, len(logits), SCORES)
    entropy = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none"
    )
    tally.add(logits, labels, entropy.view(len(logits), -1).sum(1))
    return tally


@pytest.mark.parametrize("score", SCORES)
def test_a_network_that_answers_nan_has_0_by_every_score(score: str) -> None:
    """It does not have the share of the class that argmax finds NaN at."""
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.full((2, 4, 2), math.nan)
    logits[1] = 60 * torch.nn.functional.one_hot(labels)
    assert tally_of(logits, labels).scores(score) == [0.0, pytest.approx(1.0)]


def test_an_answer_of_nan_is_wrong_and_leaves_the_others_as_they_are() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 1, 2])).float()[None]
    logits[0, 0, 2] = math.nan
    tally = tally_of(logits, labels)
    assert tally.scores("accuracy") == pytest.approx([4 / 6])
    assert tally.scores("balanced-accuracy") == pytest.approx([(1 / 3 + 1 + 1) / 3])
    # One of three images of class 0 is named so, and one of another class is named 1.
    assert tally.scores("macro-f1") == pytest.approx([(2 / 4 + 4 / 5 + 1) / 3])
    assert [tally.scores(score) for score in BESIDE] == [[0.0], [0.0]]


def test_a_diverged_network_has_no_test_score_in_any_engine(dataset: Dataset) -> None:
    for score in ("accuracy", "balanced-accuracy", "macro-f1"):
        chosen, diverging = settings_of(score), recipe(EXTREME, epsilon=0.03)
        alone = train_network(build_network(chosen, dataset, 1), diverging, dataset, chosen)
        stack = train_stack([diverging, recipe(GOOD, epsilon=0.03)], dataset, chosen)
        for training in (alone.training, stack[0].training):
            assert (training.status, training.test_accuracy) == ("diverged", 0.0)
            assert training.robust_accuracy == training.test_measures["accuracy"] == 0.0
        assert stack[1].training.test_accuracy


@pytest.mark.parametrize("score", BESIDE)
def test_a_training_is_given_up_by_its_accuracy_if_the_score_does_not_tell(
    dataset: Dataset, score: str
) -> None:
    """A network that has learned nothing may be well calibrated, and counts no more for it."""
    chosen = settings_of(score, give_up_step=1)
    one = build_network(chosen, dataset, 1)
    train_network(one, recipe(GOOD, steps=5), dataset, chosen)
    accuracy = score_and_entropy(one, dataset.validation, 32)[0]
    found = score_and_entropy(one, dataset.validation, 32, chosen.evaluation.score)[0]

    def training(least: float) -> Training:
        fresh = build_network(chosen, dataset, 1)
        checked = recipe(GOOD, steps=5, give_up=(5, least))
        return train_network(fresh, checked, dataset, chosen).training

    assert training(accuracy - 1e-6).status == "ok"
    assert training(accuracy - 1e-6).accuracy == found
    given_up = training(accuracy)
    assert (given_up.status, given_up.accuracy) == ("diverged", min(accuracy, found))


def test_a_stack_has_every_score_of_single_trainings(dataset: Dataset) -> None:
    for score in ("macro-f1", *BESIDE):
        chosen = settings_of(score, give_up_step=1)
        recipes = [recipe(theta) for theta in (GOOD, OTHER)]
        for one, result in zip(recipes, train_stack(recipes, dataset, chosen), strict=True):
            network = build_network(chosen, dataset, 1)
            alone = train_network(network, one, dataset, chosen).training
            found = [point[1] for point in result.training.curve]
            assert found == pytest.approx([point[1] for point in alone.curve], rel=1e-4)
            assert result.training.test_measures == pytest.approx(alone.test_measures, rel=1e-4)
