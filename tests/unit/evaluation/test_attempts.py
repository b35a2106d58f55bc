"""How often a candidate is trained: more often if the order of the leaders is noise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorglo.evaluation.fitness import attempts_wanted
from taylorglo.results import Evaluation
from taylorglo.settings import SweepSettings

# The attempts of these candidates agree on no order.
NOISE = ([0.50, 0.59], [0.58, 0.50], [0.51, 0.56], [0.55, 0.50])


def noisy_settings(
    popsize: int = 8, attempts: int = 2, most: int = 6, weight: float = 0.0
) -> SweepSettings:
    evaluation = {"attempts": attempts, "max_attempts": most, "adversarial_weight": weight}
    return SweepSettings.model_validate({"evaluation": evaluation, "search": {"popsize": popsize}})


def result(
    accuracies: Sequence[float], status: str = "ok", robust: Sequence[float] = ()
) -> Evaluation:
    times: dict[str, Any] = {"started": 0.0, "ended": 1.0, "seconds": 1.0}
    return Evaluation.model_validate(
        {
            "status": status,
            "fitness": float(np.mean(accuracies)),
            "accuracies": list(accuracies),
            "robust_accuracies": list(robust),
            "curve": [],
            **times,
        }
    )


def noisy_results() -> dict[int, Evaluation]:
    return {trial: result(row) for trial, row in enumerate(NOISE)}


def mean_squares(table: np.ndarray) -> tuple[float, float]:
    """Return the mean squares between rows and of the residual.

    They are computed by least squares on dummy variables, not by sums of deviations.
    """
    rows, columns = table.shape
    row, column = (index.ravel() for index in np.indices(table.shape))

    def unexplained(*factors: np.ndarray) -> float:
        dummies = [factor[:, None] == np.arange(factor.max() + 1) for factor in factors]
        design = np.column_stack([np.ones(table.size), *dummies]).astype(float)
        fitted = design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
        return float(((table.ravel() - fitted) ** 2).sum())

    residual = unexplained(row, column)
    between = unexplained(column) - residual
    return between / (rows - 1), residual / ((rows - 1) * (columns - 1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 5), st.integers(2, 5), st.floats(0.001, 3), st.integers(0, 2**32 - 1))
def test_more_attempts_are_made_if_the_order_is_noise(
    rows: int, attempts: int, spread: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    # All candidates share the seeds of their attempts, which move them together.
    noise = generator.normal(size=(rows, attempts)) + generator.normal(size=(1, attempts)) * 3
    table = 0.5 + 0.01 * (spread * generator.normal(size=(rows, 1)) + noise)
    between, residual = mean_squares(table)
    results = {number: result(row) for number, row in enumerate(table)}
    more = dict.fromkeys(range(rows), 2 * attempts) if between / residual < 1 else {}
    assert attempts_wanted(results, noisy_settings(2 * rows, attempts, 100)) == more


def test_two_tables_by_hand() -> None:
    """By hand, F = 1.5 / 2.5 = 0.6 and F = 13.5 / 2.5 = 5.4."""
    noise = {0: result([0.0, 0.3]), 1: result([0.2, 0.1])}
    assert attempts_wanted(noise, noisy_settings(4)) == {0: 4, 1: 4}
    clear = {0: result([0.9, 0.8]), 1: result([0.2, 0.15])}
    assert attempts_wanted(clear, noisy_settings(4)) == {}


def test_only_leaders_get_more_attempts() -> None:
    results = {10 + number: result(row) for number, row in enumerate(NOISE)}
    results |= {number: result([0.1, 0.2]) for number in range(4)}
    assert attempts_wanted(results, noisy_settings(8)) == dict.fromkeys(range(10, 14), 4)
    # The two candidates that are best on average lead a population of four.
    assert set(attempts_wanted(results, noisy_settings(4))) == {10, 11}
    # One leader has no order.
    assert attempts_wanted(results, noisy_settings(2)) == {}


def test_only_successful_candidates_get_more_attempts() -> None:
    results = noisy_results()
    results[1] = result(NOISE[1], "diverged")
    results[2] = result([0.9], "failed")
    assert attempts_wanted(results, noisy_settings(8)) == {0: 4, 3: 4}
    results[3] = result(NOISE[3], "diverged")
    assert attempts_wanted(results, noisy_settings(8)) == {}


def test_there_are_no_more_attempts_than_the_settings_allow() -> None:
    results = noisy_results()
    assert attempts_wanted(results, noisy_settings(8, most=3)) == dict.fromkeys(range(4), 3)
    assert attempts_wanted(results, noisy_settings(8, most=2)) == {}
    assert attempts_wanted(results, noisy_settings(8, most=0)) == {}
    longer = {number: result([*row, *row]) for number, row in enumerate(NOISE)}
    assert attempts_wanted(longer, noisy_settings(8, most=5)) == dict.fromkeys(range(4), 5)
    assert attempts_wanted(longer, noisy_settings(8, most=4)) == {}


def test_a_candidate_that_has_become_a_leader_catches_up() -> None:
    results = {number: result([*row, *row]) for number, row in enumerate(NOISE)}
    results[2] = result(NOISE[2])
    assert attempts_wanted(results, noisy_settings(8)) == {2: 4}


def test_the_noise_of_the_fitness_counts_and_not_that_of_the_accuracy_alone() -> None:
    results = {number: result(row, robust=[0.1 * number] * 2) for number, row in enumerate(NOISE)}
    assert attempts_wanted(results, noisy_settings(8, weight=0.0)) == dict.fromkeys(range(4), 4)
    assert attempts_wanted(results, noisy_settings(8, weight=0.9)) == {}
