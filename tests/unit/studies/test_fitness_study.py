"""The fitness study: rank correlation, regret and finalists, and a small one."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "studies"))

import fitness
from fitness import (
    COSTS,
    FOLDS,
    GROUPS,
    NOISE,
    SCORES,
    TRAININGS,
    TRUTH,
    WAYS,
    Repetition,
    Size,
    by_condition,
    chosen_regret,
    contenders,
    with_interval,
)
from studies import Row, Study

from taylorglo.loss.functions import TaylorLoss
from taylorglo.results import Training

SMALL = Size(repetitions=2, images=(200,), steps=5, candidates=2)


def repetition(truth: list[float], fitnesses: dict[str, list[list[float]]]) -> Repetition:
    """Return a repetition in which all scores of a way are these, by loss and training."""
    scores = {(way, score): np.array(fitnesses[way]) for way in WAYS for score in SCORES}
    return Repetition(np.array(truth), scores)


def constant(*losses: float) -> list[list[float]]:
    return [[value] * TRAININGS for value in losses]


def test_regret_is_zero_for_the_best_and_shared_by_equals() -> None:
    truth = np.array([0.9, 0.8, 0.6])
    assert chosen_regret(np.array([3.0, 2.0, 1.0]), truth) == 0
    assert chosen_regret(np.array([1.0, 2.0, 3.0]), truth) == pytest.approx(30)
    assert chosen_regret(np.array([2.0, 1.0, 2.0]), truth) == pytest.approx(15)


def test_a_fitness_that_ranks_as_the_truth_does_has_no_regret() -> None:
    own = repetition(
        [0.9, 0.8, 0.6],
        {
            "validation split": constant(0.7, 0.5, 0.4),
            "folds": constant(0.4, 0.5, 0.7),
            "subsampling": constant(0.5, 0.7, 0.4),
        },
    )
    for cost in COSTS:
        assert own.correlation("validation split", "accuracy", cost) == pytest.approx(1)
        assert own.regret("validation split", "accuracy", cost) == 0
        assert own.correlation("folds", "accuracy", cost) == pytest.approx(-1)
        assert own.regret("folds", "accuracy", cost) == pytest.approx(30)


def test_more_trainings_of_a_loss_are_averaged() -> None:
    # The second loss looks better in the first two trainings, and the first one in all ten.
    noisy = [[0.5, 0.5, *[0.9] * 8], [0.7] * TRAININGS]
    own = repetition([0.9, 0.8], dict.fromkeys(WAYS, noisy))
    assert own.regret("folds", "accuracy", 10) == 0
    assert own.regret("folds", "accuracy", 5) == pytest.approx(0)
    assert own.regret("folds", "accuracy", 2) == pytest.approx(10 / len(GROUPS[2]))


def test_finalists_are_chosen_and_then_compared_among_each_other() -> None:
    own = repetition(
        [0.9, 0.8, 0.7, 0.6],
        {
            # The best loss is no finalist of two, and the third one leads.
            "subsampling": constant(0.1, 0.3, 0.4, 0.2),
            "validation split": constant(0.5, 0.4, 0.3, 0.2),
            "folds": constant(0.1, 0.2, 0.3, 0.4),
        },
    )
    assert own.finalists("folds", 2, 0) == pytest.approx((10, 0))
    assert own.finalists("validation split", 2, 1) == pytest.approx((0, 1))
    assert own.finalists("folds", 2, 5) == pytest.approx((10, 0))
    assert own.finalists("validation split", 4, 10) == pytest.approx((0, 1))
    assert own.finalists("folds", 4, 10) == pytest.approx((30, 0))


def test_the_groups_have_each_training_once_and_no_fold_twice() -> None:
    for cost, groups in GROUPS.items():
        used = [training for group in groups for training in group]
        assert len(set(used)) == len(used)
        assert all(len(group) == cost for group in groups)
        for group in groups:
            whole, rest = divmod(cost, FOLDS)
            times = [[t % FOLDS for t in group].count(fold) for fold in range(FOLDS)]
            assert sorted(times) == [whole] * (FOLDS - rest) + [whole + 1] * rest


def test_rows_become_arrays_by_loss_and_training() -> None:
    names = [contender.name for contender in contenders(SMALL.candidates)]
    rows: list[Row] = []
    for repeated in (1, 0):
        for way in (TRUTH, *WAYS):
            for attempt in range(TRAININGS):
                for index, name in enumerate(names):
                    value = index + attempt / 100 + repeated / 10
                    rows.append(
                        {
                            "repetition": repeated,
                            "images": 200,
                            "noise": 0.4,
                            "way": way,
                            "loss": name,
                            "attempt": attempt,
                            "accuracy": value,
                            "cross_entropy": value,
                            "late": value,
                            "test": value if way == TRUTH else math.nan,
                        }
                    )
    (first, second) = by_condition(rows, SMALL)[200, 0.4]
    expected = np.arange(len(names))[:, None] + np.arange(TRAININGS) / 100
    assert np.allclose(first.scores["folds", "accuracy"], expected)
    assert np.allclose(first.scores["folds", "cross-entropy"], -expected)
    assert np.allclose(first.truth, expected.mean(axis=1))
    assert np.allclose(second.truth, expected.mean(axis=1) + 0.1)


def test_a_diverged_training_is_the_worst_there_is() -> None:
    training = Training(
        status="diverged", accuracy=0.0, curve=[(1, 0.5, 1.0)], started=0, ended=1, seconds=1
    )
    measured = fitness._measured(training)
    assert measured["accuracy"] == measured["late"] == 0
    assert measured["cross_entropy"] == math.inf


def test_the_score_of_the_last_two_points_is_their_mean() -> None:
    curve = [(1, 0.1, 3.0), (2, 0.5, 2.0), (3, 0.6, 1.0)]
    training = Training(status="ok", accuracy=0.6, curve=curve, started=0, ended=1, seconds=1)
    measured = fitness._measured(training)
    assert measured["late"] == pytest.approx(0.55)
    assert measured["cross_entropy"] == 1.0


def test_the_losses_are_different_and_always_the_same() -> None:
    names = [contender.name for contender in contenders(12)]
    assert len(set(names)) == len(names) == 24
    first, again = contenders(3)[-1], contenders(12)[-10]
    assert first.name == again.name == "candidate 3"
    assert isinstance(first.loss, TaylorLoss)
    assert isinstance(again.loss, TaylorLoss)
    assert first.loss.theta.tolist() == again.loss.theta.tolist()


def test_a_mean_has_its_interval() -> None:
    # 12.706 is the quantile of Student's t with one degree of freedom.
    assert (
        with_interval([1.0, 2.0]) == f"1.50 ({1.5 - 12.706 * 0.5:.2f} to {1.5 + 12.706 * 0.5:.2f})"
    )
    assert with_interval([1.0]) == "1.00"


@pytest.mark.long
def test_a_small_study_is_done_and_goes_on(tmp_path: Path) -> None:
    study = Study("fitness", 1, tmp_path)
    fitness.run(study, SMALL)
    written = (tmp_path / "rows.csv").read_bytes()
    losses = len(contenders(SMALL.candidates))
    trainings = losses * TRAININGS * (1 + len(WAYS))
    assert len(written.splitlines()) == 1 + SMALL.repetitions * len(NOISE) * trainings
    for name in ("truth", "fitness", "summary", "finalists"):
        assert "NaN" not in (tmp_path / f"{name}.md").read_text()
        assert "nan" not in (tmp_path / f"{name}.md").read_text()
    assert (tmp_path / "summary.md").read_text().count("| folds |") == len(SCORES)
    assert (tmp_path / "fitness.svg").exists()
    fitness.run(study, SMALL)
    assert (tmp_path / "rows.csv").read_bytes() == written
