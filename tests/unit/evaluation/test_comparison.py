"""The comparison: the contenders, and the seeds that they are compared from."""

from typing import Any

import pytest
from comparisons import CROSS_ENTROPY, Memory, changed, engine_on, settings_of, trained
from trainings import GOOD, score_and_entropy

from taylorglo.data.dataset import Dataset
from taylorglo.data.seeds import derived_seed
from taylorglo.evaluation.comparison import (
    baselines,
    best_contender,
    compare,
    fitnesses,
    loss_of,
    restore_network,
    train_finalists,
    tune_baselines,
    tuned_member,
)
from taylorglo.evaluation.fitness import short_training
from taylorglo.loss.classic import CrossEntropy, SquaredError
from taylorglo.loss.dynamics import learning_drive
from taylorglo.loss.functions import TaylorLoss
from taylorglo.loss.members import MEMBERS
from taylorglo.results import Contender, FullTraining, Training
from taylorglo.settings import SweepSettings


def test_the_baselines() -> None:
    contenders = baselines(settings_of(), 0.3)
    names = [contender.name for contender in contenders]
    assert names == ["cross-entropy", "label-smoothed cross-entropy", "squared error"]
    assert {contender.learning_rate for contender in contenders} == {0.3}
    plain, smoothed, squared = map(loss_of, contenders)
    assert isinstance(plain, CrossEntropy)
    assert plain.label_smoothing == 0
    assert isinstance(smoothed, CrossEntropy)
    assert smoothed.label_smoothing == 0.15
    assert isinstance(squared, SquaredError)


def test_the_default_baselines_are_those_of_version_0_1_0() -> None:
    rate, smoothing = {"learning_rate": 0.3}, {"label_smoothing": 0.1}
    assert baselines(SweepSettings(), 0.3) == [
        Contender(name="cross-entropy", loss="cross-entropy", **rate),
        Contender(name="label-smoothed cross-entropy", loss="cross-entropy", **rate, **smoothing),
        Contender(name="squared error", loss="squared-error", **rate),
    ]


def test_baselines_come_in_the_order_of_the_setting() -> None:
    losses = [
        "mean-absolute-error",
        "label-smoothing",
        "baikal",
        "symmetric-cross-entropy",
        "squared-error",
        "generalised-cross-entropy",
        "cross-entropy",
    ]
    section = {"losses": losses, "label_smoothing": [0.05, 0.3]}
    contenders = baselines(settings_of(baselines=section), 0.2)
    assert [(contender.name, repr(loss_of(contender))) for contender in contenders] == [
        ("mean absolute error", "MeanAbsoluteError()"),
        ("label-smoothed cross-entropy", "CrossEntropy(label_smoothing=0.05)"),
        ("label-smoothed cross-entropy", "CrossEntropy(label_smoothing=0.3)"),
        ("Baikal", "Baikal()"),
        ("symmetric cross-entropy", "SymmetricCrossEntropy(alpha=0.1, beta=1.0)"),
        ("squared error", "SquaredError()"),
        ("generalised cross-entropy", "GeneralisedCrossEntropy(q=0.7)"),
        ("cross-entropy", "CrossEntropy(label_smoothing=0.0)"),
    ]
    (alone,) = baselines(settings_of(baselines={"losses": "mean-absolute-error"}), 0.2)
    assert alone == contenders[0]


def test_label_smoothing_is_tuned_over_alphas_and_rates(search_digits: Dataset) -> None:
    section = {"losses": ["label-smoothing"], "label_smoothing": [0.1, 0.4], "attempts": 1}
    with engine_on(search_digits, baselines=section) as engine:
        tuning = tune_baselines(engine, Memory())
    tried = [(full.contender.learning_rate, full.contender.label_smoothing) for full in tuning]
    assert tried == [(0.05, 0.1), (0.05, 0.4), (0.2, 0.1), (0.2, 0.4)]
    assert len({full.key for full in tuning}) == 4
    # All have one name, by which the best of them is chosen.
    assert len({full.contender.name for full in tuning}) == 1
    best = max(tuning, key=lambda full: full.training.accuracy)
    assert best_contender(tuning) == best.contender


def test_every_baseline_is_tuned_on_the_whole_grid_from_the_same_seeds(
    search_digits: Dataset,
) -> None:
    with engine_on(search_digits, seed=4) as engine:
        tuning = tune_baselines(engine, Memory())
    seeds: dict[tuple[str, float], list[int]] = {}
    for full in tuning:
        contender = full.contender
        seeds.setdefault((contender.name, contender.learning_rate), []).append(full.seed)
        assert full.training.test_accuracy is None
        assert full.training.status == "ok"
    names = [contender.name for contender in baselines(settings_of(), 1.0)]
    assert set(seeds) == {(name, rate) for name in names for rate in (0.05, 0.2)}
    assert list(seeds.values()) == [[derived_seed(4, 0, 0), derived_seed(4, 0, 1)]] * 6


def test_finalists_are_trained_from_the_seeds_of_the_tuning(search_digits: Dataset) -> None:
    other = [*GOOD[:-1], 0.5]
    with engine_on(search_digits, training={"learning_rate": 0.07}) as engine:
        finalists = train_finalists([GOOD, other], engine, Memory())
        tuning = tune_baselines(engine, Memory())
    assert [full.contender.theta for full in finalists] == [GOOD, GOOD, other, other]
    seeds = [full.seed for full in finalists]
    assert seeds[:2] == seeds[2:] == [full.seed for full in tuning[:2]]
    assert {full.contender.learning_rate for full in finalists} == {0.07}
    loss = loss_of(finalists[0].contender)
    assert isinstance(loss, TaylorLoss)
    assert loss.theta.tolist() == GOOD
    assert loss.order == 3
    assert finalists[0].training.accuracy != finalists[2].training.accuracy


def test_finalists_are_chosen_by_the_fitness_with_its_attack(search_digits: Dataset) -> None:
    attack = {"adversarial_weight": 0.4, "adversarial_epsilon": 0.05}
    other = [*GOOD[:-1], 0.5]
    with engine_on(search_digits, evaluation=attack) as engine:
        finalists = train_finalists([GOOD, other], engine, Memory())
        tuning = tune_baselines(engine, Memory())
    with engine_on(search_digits) as engine:
        plain = train_finalists([GOOD, other], engine, Memory())
    with engine_on(search_digits, evaluation={**attack, "adversarial_steps": 5}) as engine:
        by_pgd = train_finalists([GOOD, other], engine, Memory())
    for one, weaker, stronger in zip(plain, finalists, by_pgd, strict=True):
        assert one.training.accuracy == weaker.training.accuracy == stronger.training.accuracy
        assert one.training.robust_accuracy is None
        assert weaker.training.robust_accuracy is not None
        assert stronger.training.robust_accuracy is not None
        assert one.training.accuracy > weaker.training.robust_accuracy
        assert weaker.training.robust_accuracy > stronger.training.robust_accuracy
    keys = [[full.key for full in trainings] for trainings in (plain, finalists, by_pgd)]
    assert len({key for group in keys for key in group}) == 12
    assert {full.training.robust_accuracy for full in tuning} == {None}
    fitness = fitnesses(finalists[:1], 0.4)
    accuracy, robust = finalists[0].training.accuracy, finalists[0].training.robust_accuracy
    assert robust is not None
    assert fitness == pytest.approx([0.6 * accuracy + 0.4 * robust])


def test_the_weight_of_the_attack_decides_between_contenders() -> None:
    def with_accuracies(contender: Contender, accuracy: float, robust: float) -> FullTraining:
        training = Training(
            status="ok",
            accuracy=accuracy,
            robust_accuracy=robust,
            curve=[],
            started=0.0,
            ended=1.0,
            seconds=1.0,
        )
        return FullTraining(contender=contender, seed=1, key="key", training=training)

    a, b = (CROSS_ENTROPY.model_copy(update={"learning_rate": rate}) for rate in (0.1, 0.2))
    trainings = [with_accuracies(a, 0.9, 0.3), with_accuracies(b, 0.8, 0.5)]
    assert best_contender(trainings) == best_contender(trainings, 0.3) == a
    assert best_contender(trainings, 0.4) == best_contender(trainings, 1.0) == b


def tuned(loss: str, rate: float, accuracy: float, alpha: float = 0.0) -> FullTraining:
    """Return a training of the tuning of a baseline."""
    contender = Contender(name=f"the {loss}", loss=loss, learning_rate=rate, label_smoothing=alpha)
    training = Training(
        status="ok", accuracy=accuracy, curve=[], started=0.0, ended=1.0, seconds=1.0
    )
    return FullTraining(contender=contender, seed=1, key="key", training=training)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("loss", MEMBERS)
def test_a_tuned_member_is_trained_as_the_baseline_is(
    loss: str, optimizer: str, search_digits: Dataset
) -> None:
    rate = 0.02 if optimizer == "sgd" else 0.002
    sections = {
        "training": {"steps": 40, "optimizer": optimizer, "learning_rate": 3 * rate},
        "baselines": {"losses": [loss], "learning_rates": [rate], "attempts": 1},
    }
    with engine_on(search_digits, **sections) as engine:
        (baseline,) = tune_baselines(engine, Memory())
        member = tuned_member([baseline], engine.settings, 10)
        assert member is not None
        (finalist,) = train_finalists([member[1]], engine, Memory())
    assert member[0] == baseline.contender.name
    assert baseline.training.accuracy > 0.2
    ours, theirs = finalist.training.curve, baseline.training.curve
    assert [step for step, *_ in ours] == [step for step, *_ in theirs]
    for (_, accuracy, _), (_, expected, _) in zip(ours, theirs, strict=True):
        assert accuracy == pytest.approx(expected, abs=0.01)


def test_the_member_is_the_best_of_those_in_the_family_of_the_search() -> None:
    tuning = [
        tuned("cross-entropy", 0.3, 0.8),
        tuned("cross-entropy", 0.3, 0.99, alpha=0.1),
        tuned("squared-error", 0.2, 0.7),
        tuned("generalised-cross-entropy", 0.2, 0.95),
    ]

    def name(**sections: Any) -> str | None:
        member = tuned_member(tuning, SweepSettings.model_validate(sections), 10)
        return None if member is None else member[0]

    assert name() == "the cross-entropy"
    assert name(search={"family": "taylor"}) == "the squared-error"
    assert name(search={"order": 4, "coordinates": "theta"}) is None
    own = {"data": {"name": "own", "classes": 10}, "training": {"function": "a:b"}}
    assert name(**own) is None
    assert tuned_member(tuning[1:2], SweepSettings(), 10) is None


def test_with_adam_a_finalist_has_the_rate_that_it_had_as_a_candidate(
    search_digits: Dataset,
) -> None:
    other = [*GOOD[:2], *(3 * value for value in GOOD[2:])]
    training = {"optimizer": "adamw", "learning_rate": 0.002}
    with engine_on(search_digits, training=training) as engine:
        candidates = [short_training(theta, 1, engine).learning_rate for theta in (GOOD, other)]
        finalists = train_finalists([GOOD, other], engine, Memory())
        tuning = tune_baselines(engine, Memory())
    assert candidates[1] == pytest.approx(3 * candidates[0])
    assert candidates[0] == pytest.approx(0.002 * learning_drive(GOOD, 10) / 10)
    rates = [full.contender.learning_rate for full in finalists]
    assert rates == [candidates[0]] * 2 + [candidates[1]] * 2
    # The rates of the baselines are tuned as they are.
    assert {full.contender.learning_rate for full in tuning} == {0.05, 0.2}


def test_contenders_are_compared_from_the_same_new_seeds(digits: Dataset) -> None:
    memo = Memory()
    contenders = [
        CROSS_ENTROPY,
        Contender(name="squared error", loss="squared-error", learning_rate=0.2),
        Contender(name="c", loss="taylor", learning_rate=0.1, theta=GOOD),
    ]
    with engine_on(digits, seed=4) as engine:
        compared = [compare(contender, engine, memo) for contender in contenders]
    seeds = [[full.seed for full in trainings] for trainings in compared]
    assert seeds[0] == seeds[1] == seeds[2]
    assert len(set(seeds[0])) == 3
    paths = [(generation, attempt) for generation in range(200) for attempt in range(5)]
    assert not set(seeds[0]) & {derived_seed(4, *path) for path in paths}
    assert digits.test is not None
    for trainings in compared:
        for full in trainings:
            network = restore_network(memo.weights(full.key), "mlp", digits)
            assert score_and_entropy(network, digits.test, 64)[0] == full.training.test_accuracy
            assert score_and_entropy(network, digits.validation, 64)[0] == full.training.accuracy
        assert len({full.test_accuracy for full in trainings}) > 1


@pytest.mark.parametrize(("rate", "learns"), [(1e-30, False), (0.1, True)])
def test_the_learning_rate_of_the_contender_is_used(
    search_digits: Dataset, rate: float, learns: bool
) -> None:
    """A rate that is too small to move anything leaves the initial weights."""
    full = trained(changed(CROSS_ENTROPY, learning_rate=rate), search_digits, Memory())
    assert (full.training.accuracy > 0.3) is learns


def with_accuracy(contender: Contender, accuracy: float) -> FullTraining:
    """Return a training in full with this validation accuracy."""
    training = Training(
        status="ok", accuracy=accuracy, curve=[], started=0.0, ended=1.0, seconds=1.0
    )
    return FullTraining(contender=contender, seed=0, key="key", training=training)


def test_the_best_contender_is_the_best_on_average() -> None:
    a, b, c = (changed(CROSS_ENTROPY, learning_rate=rate) for rate in (0.1, 0.2, 0.3))
    accuracies = [(a, 0.99), (b, 0.8), (a, 0.5), (b, 0.81), (c, 0.7)]
    # The number of trainings does not count.
    trainings = [with_accuracy(*pair) for pair in [*accuracies, *[(c, 0.7)] * 5]]
    assert best_contender(trainings) == b
    # The first of several equals is the best.
    equals = [with_accuracy(*pair) for pair in ((c, 0.5), (a, 0.5), (b, 0.4))]
    assert best_contender(equals) == c
    taylor = changed(a, theta=GOOD)
    assert best_contender([with_accuracy(a, 0.5), with_accuracy(taylor, 0.6)]) == taylor
