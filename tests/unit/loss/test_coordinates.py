"""The coordinates: each is what it says of the pull, and every loss has one point."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taylorglo.errors import InputError
from taylorglo.loss.coordinates import LOG_SHARE, axes, point_of, theta_at
from taylorglo.loss.dynamics import (
    collapse_rate,
    dynamics,
    equilibrium_confidence,
    learning_drive,
    net_pull,
)
from taylorglo.loss.members import member
from taylorglo.loss.polynomial import has_log, log_weight

numbers = st.floats(-3, 3)
classes = st.sampled_from([2, 3, 5, 10, 100])


@st.composite
def points(draw: st.DrawFn) -> tuple[dict[str, float], int]:
    n, log = draw(classes), draw(st.booleans())
    point = {name: draw(numbers) for name in axes(n, log=log)}
    if log:
        point[LOG_SHARE] = abs(point[LOG_SHARE])
    return point, n


@given(points())
def test_each_axis_is_what_it_says(case: tuple[dict[str, float], int]) -> None:
    point, n = case
    theta = theta_at(point, n)
    drive, pull = learning_drive(theta, n), net_pull(theta, n)

    def of_drive(value: float) -> object:
        return pytest.approx(value * drive, rel=1e-7, abs=1e-7 * drive)

    assert drive == pytest.approx(n * math.exp(point["scale"]))
    assert pull(1.0) == of_drive(point["end"])
    if n > 2:
        chord = (1 + point["end"]) / 2
        assert pull((1 + 1 / n) / 2) == of_drive(chord - point["bend"])
        assert collapse_rate(theta, n) == of_drive(point["collapse"])
    else:
        # The growth of a drift to one class is half the slope of the polynomial's pull there.
        rest = np.array([pull(0.5), pull(1.0)]) - log_weight(theta) / np.array([0.5, 1.0])
        drift = rest[1] - rest[0] - 2 * log_weight(theta)
        assert collapse_rate(theta, n) == of_drive(drift / drive)
    assert has_log(theta) == (LOG_SHARE in point)
    assert log_weight(theta) * n == of_drive(point.get(LOG_SHARE, 0.0))


@given(points())
def test_point_and_theta_invert_each_other(case: tuple[dict[str, float], int]) -> None:
    point, n = case
    back = point_of(theta_at(point, n), n)
    assert back.keys() == point.keys()
    for name, value in point.items():
        assert back[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


@given(st.floats(-5, 0.9), classes)
def test_a_straight_pull_ends_where_the_end_says(end: float, n: int) -> None:
    point = {"scale": 0.0, "end": end, "bend": 0.0, "collapse": -1.0}
    theta = theta_at({name: point[name] for name in axes(n, log=False)}, n)
    rest = 1 / n + (1 - 1 / n) / (1 - end)
    found = equilibrium_confidence(theta, n)
    if rest > 1 + 1e-9:
        assert found is None
    elif rest < 1 - 1e-9:
        assert found == pytest.approx(rest)


@pytest.mark.parametrize("n", [3, 10, 100])
def test_the_points_of_the_losses_that_people_use(n: int) -> None:
    halfway = 1 / 2 + 1 / (2 * n) - 2 / (n + 1)
    pull = 0.1 * n + 4  # of symmetric cross-entropy at the null epoch
    share = 0.1 * n / pull
    known = {
        "cross-entropy": (0, 1 / n, halfway, -1, 1),
        "squared-error": (math.log(2 / n), 0, 0, -1),
        "mean-absolute-error": (math.log(2 / n), 1, 0, 0),
        "symmetric-cross-entropy": (
            math.log(pull / n),
            4.1 / pull,
            share * halfway,
            -share,
            share,
        ),
    }
    for name, values in known.items():
        point = point_of(member(name), n)
        assert tuple(point.values()) == pytest.approx(values, abs=1e-12), name
        assert dynamics(theta_at(point, n), n) == pytest.approx(dynamics(member(name), n))


def test_a_negative_share_of_the_logarithm_counts_as_none() -> None:
    point = {"scale": 0.2, "end": -0.1, "bend": 0.2, "collapse": -0.7}
    assert theta_at({**point, LOG_SHARE: -0.3}, 10) == [*theta_at(point, 10), 0.0]


def test_a_loss_that_does_not_pull_has_no_point() -> None:
    with pytest.raises(InputError, match="a loss with A = -1 has no scale; A should be above 0"):
        point_of([0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0], 10)
