"""Candidates in short trainings: common random numbers, early ends, errors, and the splits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainings import BACKWARDS, GOOD, OTHER, MemoryCache, evaluated, steps_counted, sweep, untimed
from user_networks import Record

from taylorglo.data.batches import scaled
from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.seeds import derived_seed
from taylorglo.errors import InputError
from taylorglo.evaluation.fitness import Assignment, evaluate
from taylorglo.results import Evaluation
from taylorglo.settings import SweepSettings
from taylorglo.training.engine import Engine


def recorded(
    record: Record, theta: list[float], generation: int, dataset: Dataset, settings: SweepSettings
) -> Evaluation:
    """Evaluate a candidate, and record only the trainings, not the plan that comes before them."""
    with Engine(settings, lambda: dataset) as engine:
        assert engine.plan.engine == "sequential"
        record.clear()
        assignments = [Assignment(0, theta, settings.evaluation.attempts)]
        ((_, evaluation),) = evaluate(assignments, generation, engine, MemoryCache())
    return evaluation


def test_a_candidate_learns_the_digits(search_digits: Dataset) -> None:
    settings = sweep(training={"steps": 200}, steps=200, attempts=1)
    result = evaluated(GOOD, 1, search_digits, settings)
    assert result.status == "ok"
    assert result.fitness > 0.93


def test_dropout_repeats_and_the_global_generator_is_left_alone(search_digits: Dataset) -> None:
    def evaluation(seed: int) -> Evaluation:
        settings = sweep(model="user_networks:dropout", seed=seed)
        return untimed(evaluated(GOOD, 1, search_digits, settings))

    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = evaluation(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    assert evaluation(0) == first
    assert evaluation(1) != first


def test_derived_seeds_are_different_and_in_range() -> None:
    seeds = {
        derived_seed(seed, a, b)
        for seed in range(3)
        for a in (0, 1, 2, 1_000_000)
        for b in range(100)
    }
    assert len(seeds) == 1200
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert derived_seed(7, 1, 2) == int(np.random.SeedSequence([7, 1, 2]).generate_state(1)[0]) // 2


def test_candidates_of_a_generation_differ_by_their_loss_alone(
    search_digits: Dataset, record: Record
) -> None:
    settings = sweep(model="user_networks:recording", attempts=2)

    def shown(theta: list[float], generation: int) -> tuple[list[list[float]], list[Tensor]]:
        recorded(record, theta, generation, search_digits, settings)
        return list(record.initial), list(record.batches)

    initial, batches = shown(GOOD, 1)
    other_initial, other_batches = shown(OTHER, 1)
    assert (len(initial), len(batches)) == (2, 40)
    assert other_initial == initial
    assert all(torch.equal(a, b) for a, b in zip(batches, other_batches, strict=True))
    # Attempts and generations have weights and batches of their own.
    later, later_batches = shown(GOOD, 2)
    assert len({tuple(weights) for weights in initial + later}) == 4
    starts = [batches[0], batches[20], later_batches[0], later_batches[20]]
    assert not any(torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_losses_that_differ_in_c1_alone_train_alike(search_digits: Dataset) -> None:
    def curve(theta: list[float]) -> list[float]:
        evaluation = evaluated(theta, 1, search_digits, sweep(steps=40))
        return [loss for _, _, loss in evaluation.curve]

    gauged = [*GOOD[:2], GOOD[2] + 3.0, *GOOD[3:]]
    assert curve(GOOD) == pytest.approx(curve(gauged), rel=1e-3)
    assert curve(GOOD) != pytest.approx(curve(OTHER), rel=1e-2)


def test_fitness_does_not_depend_on_the_order_or_the_shard(search_digits: Dataset) -> None:
    def evaluations(*thetas: list[float]) -> list[Evaluation]:
        settings = sweep(give_up_step=10)
        return [untimed(evaluated(theta, 3, search_digits, settings)) for theta in thetas]

    together = evaluations(GOOD, BACKWARDS, OTHER)
    assert evaluations(OTHER, GOOD) == [together[2], together[0]]
    assert together[1].status == "diverged"


def test_an_epoch_shows_every_image_once(search_digits: Dataset, record: Record) -> None:
    settings = sweep(
        model="user_networks:recording", training={"batch_size": 100}, attempts=1, steps=20
    )
    recorded(record, GOOD, 1, search_digits, settings)
    size = len(search_digits.train)
    per_epoch = size // 100
    assert [len(batch) for batch in record.batches] == [100] * 20
    epochs = [torch.cat(record.batches[start : start + per_epoch]) for start in (0, per_epoch)]
    # No two images are alike, so equal images are the same one.
    assert len(scaled(search_digits.train.images).flatten(1).unique(dim=0)) == size
    for epoch in epochs:
        assert len(epoch.unique(dim=0)) == per_epoch * 100
    assert not torch.equal(*epochs)
    # A candidate is validated once, after its last step.
    assert sum(record.validated) == len(search_digits.validation)
    # An evaluation takes no more memory than a training.
    assert max(record.validated) == 100


def test_a_batch_larger_than_the_data_is_refused(search_digits: Dataset) -> None:
    train = search_digits.train
    few = replace(search_digits, train=Split(train.images[:63], train.labels[:63]))
    message = r"^training\.batch_size: 64 is more than the 63 training samples$"
    with pytest.raises(InputError, match=message):
        evaluated(GOOD, 1, few, sweep())
    assert evaluated(GOOD, 1, few, sweep(training={"batch_size": 63}, steps=3)).status == "ok"


def test_a_candidate_that_has_not_learned_is_given_up(search_digits: Dataset) -> None:
    settings = sweep(steps=20, give_up_step=7, give_up_gain=0.05, attempts=3)
    with steps_counted() as steps:
        result = evaluated(BACKWARDS, 1, search_digits, settings)
    # These are the steps of the first attempt, and there is no second one.
    assert len(steps) == 7
    assert result.status == "diverged"
    assert result.accuracies == [result.fitness]
    assert result.fitness <= 0.15
    assert "at step 7: no learning" in result.reason
    assert result.curve[-1][0] == 7


def test_the_check_for_learning_changes_nothing_in_a_training(search_digits: Dataset) -> None:
    unchecked = untimed(evaluated(GOOD, 1, search_digits, sweep(give_up_step=0, steps=40)))
    settings = sweep(give_up_step=20, give_up_gain=0.05, steps=40)
    checked = untimed(evaluated(GOOD, 1, search_digits, settings))
    assert [step for step, _, _ in checked.curve] == [20, 40]
    assert checked.model_copy(update={"curve": checked.curve[1:]}) == unchecked
    assert unchecked.status == "ok"
    assert len(unchecked.accuracies) == 2


def test_a_candidate_is_given_up_by_its_gain_and_only_if_that_is_asked_for(
    search_digits: Dataset,
) -> None:
    with steps_counted() as steps:
        settings = sweep(give_up_step=20, give_up_gain=0.899)
        assert evaluated(GOOD, 1, search_digits, settings).status == "diverged"
        assert len(steps) == 20
        steps.clear()
        settings = sweep(give_up_step=0, attempts=1)
        assert evaluated(BACKWARDS, 1, search_digits, settings).status == "ok"
        assert len(steps) == 20


def test_fitness_is_the_mean_over_the_attempts(search_digits: Dataset) -> None:
    result = evaluated(GOOD, 1, search_digits, sweep(attempts=3, steps=10))
    assert len(set(result.accuracies)) > 1
    assert result.fitness == pytest.approx(sum(result.accuracies) / 3)
    assert result.curve[-1][1] == pytest.approx(result.fitness)
    assert 0 < result.seconds <= result.ended - result.started + 0.01


def test_a_training_is_tried_again_after_an_error(search_digits: Dataset, record: Record) -> None:
    expected = untimed(evaluated(GOOD, 1, search_digits, sweep(model="user_networks:sound")))
    failing = sweep(model="user_networks:failing_once")
    assert untimed(recorded(record, GOOD, 1, search_digits, failing)) == expected
    assert record.calls > 3
    assert expected.status == "ok"


def test_a_training_that_fails_twice_is_a_result(search_digits: Dataset, record: Record) -> None:
    settings = sweep(model="user_networks:failing_twice", attempts=3)
    result = recorded(record, GOOD, 1, search_digits, settings)
    assert record.calls == 6
    nothing: dict[str, Any] = {"accuracies": [], "robust_accuracies": [], "curve": []}
    times = {"started": 0.0, "ended": 0.0, "seconds": 0.0}
    assert untimed(result) == Evaluation(
        status="failed", fitness=0.0, reason="disk on fire", **nothing, **times
    )
    assert result.to_json()["status"] == "failed"


def test_bad_input_is_not_tried_again(search_digits: Dataset) -> None:
    with pytest.raises(InputError, match="theta has 3 numbers"):
        evaluated([1.0, 2.0, 3.0], 1, search_digits, sweep())
    with pytest.raises(InputError, match="no_such_module"):
        evaluated(GOOD, 1, search_digits, sweep(model="no_such_module:network"))


class Forbidden(Split):
    """A split that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} of the test split was read")

    def __len__(self) -> int:
        raise AssertionError("the test split was counted")


def test_fitness_never_sees_the_test_split(search_digits: Dataset) -> None:
    sealed = replace(search_digits, test=Forbidden.__new__(Forbidden))
    expected = untimed(evaluated(GOOD, 1, search_digits, sweep()))
    assert untimed(evaluated(GOOD, 1, sealed, sweep())) == expected


def test_validation_images_are_not_trained_on(search_digits: Dataset, record: Record) -> None:
    settings = sweep(model="user_networks:recording", attempts=1, steps=60)
    recorded(record, GOOD, 1, search_digits, settings)
    mean, std = search_digits.mean[0], search_digits.std[0]
    normalised = (scaled(search_digits.validation.images) - mean) / std
    held_out = {tuple(row) for row in normalised.flatten(1).tolist()}
    shown = {tuple(row) for batch in record.batches for row in batch.tolist()}
    assert len(shown) > 1000
    assert not shown & held_out
