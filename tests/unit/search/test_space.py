"""The space: the distribution of the first generation."""

import math
from typing import Any

import numpy as np
import pytest
from searches import in_memory, point

CUSTOM = [-3.0, 10.0, 0.5, 100.0]


@pytest.mark.parametrize(
    ("settings", "mean", "sigma"),
    [
        ({"coordinates": "theta"}, [0.0] * 8, 1.2),
        ({"coordinates": "reduced"}, [4.0, -4.0, -1.0, 0.0], 1.2),
        ({"coordinates": "reduced", "mean": CUSTOM, "sigma": 0.05}, CUSTOM, 0.05),
    ],
    ids=["theta", "reduced", "custom"],
)
def test_the_first_generation_is_normal(
    settings: dict[str, Any], mean: list[float], sigma: float
) -> None:
    from scipy.stats import kstest

    drawn = [
        c.theta if settings["coordinates"] == "theta" else point(c.theta)
        for seed in range(2)
        for c in in_memory(seed=seed, popsize=30, filters=["none"], **settings).propose(1)
    ]
    z = (np.array(drawn) - mean) / sigma
    number, dimensions = z.shape
    assert (number, dimensions) == (60, len(mean))
    # These are five standard errors of a mean, of a variance and of a correlation.
    assert np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(number)
    assert np.abs(z.var(axis=0) - 1).max() < 5 * math.sqrt(2 / number)
    assert np.abs(np.corrcoef(z.T) - np.eye(dimensions)).max() < 5 / math.sqrt(number)
    # A draw does not depend on the one before it, although their seeds are neighbours.
    assert np.abs((z[:-1] * z[1:]).mean(axis=0)).max() < 5 / math.sqrt(number)
    assert min(kstest(column, "norm").pvalue for column in z.T) > 1e-3 / dimensions
    assert kstest(z.flatten(), "norm").pvalue > 1e-3
    # The distribution is not truncated.
    assert np.abs(z).max() > 2.5


def test_theta_of_another_order() -> None:
    mean = [1.0, 2.0, 3.0, 4.0, 5.0]
    search = in_memory(
        popsize=2, coordinates="theta", order=2, mean=mean, sigma=1e-6, filters=["none"]
    )
    assert [c.theta for c in search.propose(1)] == [pytest.approx(mean, abs=1e-4)] * 2
