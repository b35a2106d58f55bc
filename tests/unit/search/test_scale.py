"""The coordinates of the dynamics: a generation for each start, then CMA-ES from the better one."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import cmaes
import numpy as np
import optuna
import pytest
from searches import CLASSES, begin, evaluation, facts, in_memory, open_search, run_generation

from taylorglo.loss.coordinates import axes, point_of
from taylorglo.search.study import Search
from taylorglo.settings import Identity

DYNAMICS = {"coordinates": "dynamics", "family": "taylor-log", "filters": ["learnable", "stable"]}
MEAN = {"scale": -0.6, "end": -2.0, "bend": 0.05, "collapse": -2.8, "log_share": 0.1}
ROBUST = {"end": 0.45, "bend": 0.12, "collapse": -0.25, "log_share": 0.25}
BEGUN = ((0.4, 0.4, 0.1, 0.5, 0.08), (0.4, 0.25, 0.11, 0.29, 0.15))  # widths of CMA-ES


def point(theta: list[float], classes: int = CLASSES) -> np.ndarray:
    return np.array(list(point_of(theta, classes).values()))


def near(target: Mapping[str, float]) -> Callable[[Any], float]:
    """Return a fitness with its only maximum at a point."""
    return lambda theta: -float(np.sum((point(theta) - list(target.values())) ** 2))


def test_the_first_generation_covers_a_factor_of_ninety_evenly() -> None:
    search = in_memory(popsize=8, **DYNAMICS)
    candidates = search.screen(1) if search.propose(1) else []
    assert not any(candidate.rejected for candidate in candidates)
    scales = [point(candidate.theta)[0] for candidate in candidates]
    wide = NormalDist(MEAN["scale"], 1.2 * 1.3)
    assert scales == pytest.approx([wide.inv_cdf((k + 0.5) / 8) for k in range(8)])
    assert max(scales) - min(scales) > math.log(90)


def test_the_other_axes_are_narrow_at_first() -> None:
    points = np.array(
        [
            point(candidate.theta)
            for seed in range(6)
            for candidate in in_memory(seed=seed, popsize=10, **DYNAMICS).propose(1)
        ]
    )[:, 1:]
    widths = 1.2 * np.array([0.25, 0.05, 0.3])
    z = (points[:, :3] - list(MEAN.values())[1:4]) / widths
    # These are five standard errors of a mean and of a variance.
    assert np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(len(z))
    assert np.abs(z.var(axis=0) - 1).max() < 5 * math.sqrt(2 / len(z))


def recombined(best: list[np.ndarray]) -> np.ndarray:
    weights = [math.log(len(best) + 0.5) - math.log(k) for k in range(1, len(best) + 1)]
    return np.average(best, axis=0, weights=weights)


def found(points: list[np.ndarray], value: Callable[[np.ndarray], float]) -> np.ndarray:
    """Return the place that a generation of six around a start leads to."""
    ranked = sorted(points, key=value, reverse=True)
    place = recombined(ranked[:3])
    place[0] = recombined(ranked[:2])[0]
    return place


@pytest.mark.parametrize("winner", [MEAN, ROBUST], ids=["first", "second"])
def test_cma_es_begins_from_the_better_start(tmp_path: Path, winner: dict[str, float]) -> None:
    """Generation 3 is that of cmaes from the place that the better start leads to."""
    target = {**winner, "scale": 1.3}
    popsize, seed = 6, 4

    def opened() -> Search:
        # A new object each time: nothing is remembered but the database.
        settings = {**DYNAMICS, "filters": ["none"]}
        return open_search(tmp_path / "db", seed=seed, popsize=popsize, **settings)

    def value(place: np.ndarray) -> float:
        return -float(np.sum((place - list(target.values())) ** 2))

    points = []
    for generation in (1, 2):
        search = opened()
        drawn = run_generation(search, generation, lambda theta: value(point(theta)))
        points.append([point(candidate.theta) for candidate in drawn])
        means = [found(one, value) for one in points]
        thirds = [fmean(sorted(map(value, one))[-2:]) for one in points]
        best = means[int(np.argmax(thirds))]
        assert point(search.mean() or []) == pytest.approx(best)
    # The second start is tried around the scale that suited the first one.
    wide = NormalDist(means[0][0] + 0.5, 1.2 * 0.8)
    scales = [place[0] for place in points[1]]
    assert scales == pytest.approx([wide.inv_cdf((k + 0.5) / 6) for k in range(6)])
    assert np.abs(np.mean(points[1], axis=0)[1:] - list(ROBUST.values())).max() < 0.3

    assert (best is means[0]) == (winner is MEAN)
    sigmas = 1.2 * np.array(BEGUN[winner is ROBUST])
    units = 1.2 * np.array(BEGUN[0])  # of the box
    optimizer = cmaes.CMA(
        mean=best / units,
        sigma=1.0,
        cov=np.diag((sigmas / units) ** 2),
        population_size=popsize,
    )
    for generation in (3, 4):
        search = opened()
        expected = []
        for trial in range((generation - 1) * popsize, generation * popsize):
            optimizer.reseed_rng(np.random.RandomState(seed).randint(1, 2**16) + trial)
            expected.append(optimizer.ask() * units)
        drawn = search.propose(generation)
        clipped = [np.append(x[:4], max(0.0, x[4])) for x in expected]
        places = [point(candidate.theta) for candidate in drawn]
        np.testing.assert_allclose(places, clipped, rtol=1e-7, atol=1e-7)
        told = run_generation(search, generation, lambda theta: value(point(theta)))
        values = [value(point(candidate.theta)) for candidate in told]
        optimizer.tell([(x / units, -v) for x, v in zip(expected, values, strict=True)])


def test_starts_are_compared_on_the_same_seeds_and_folds(tmp_path: Path) -> None:
    search = in_memory(popsize=4, **DYNAMICS)
    assert [search.group(generation) for generation in range(1, 6)] == [1, 1, 3, 4, 5]
    custom = in_memory(popsize=4, **DYNAMICS, mean=list(MEAN.values()))
    assert [custom.group(generation) for generation in range(1, 4)] == [1, 2, 3]
    plain = in_memory(popsize=4)
    assert [plain.group(generation) for generation in range(1, 4)] == [1, 2, 3]


def test_a_rejected_candidate_of_a_start_is_replaced_at_a_random_scale() -> None:
    """The others keep their places in the even spread, in both generations."""
    search = in_memory(popsize=4, **{**DYNAMICS, "filters": ["stable"]}, sigma=8.0, max_draws=999)
    centre, replaced = -0.6, 0
    for generation, width in ((1, 1.3), (2, 0.8)):
        drawn = run_generation(search, generation, near({**MEAN, "scale": 0.0}))
        scales = [point(candidate.theta)[0] for candidate in drawn]
        spread = NormalDist(centre, 8.0 * width)
        even = [spread.inv_cdf((k + 0.5) / 4) for k in range(4)]
        assert scales[:4] == pytest.approx(even)
        assert not set(scales[4:]) & set(even)
        replaced += len(scales) - 4
        centre = point(search.mean() or [])[0] + 0.5
    assert replaced > 0


@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_a_learning_rate_ten_times_off_costs_nothing(factor: float) -> None:
    """The effect of a loss depends on scale times rate: the mean finds the scale at once."""
    target = {**MEAN, "scale": MEAN["scale"] - math.log(factor)}
    distances = []
    for seed in range(3):
        search = in_memory(seed=seed, popsize=8, **DYNAMICS)
        run_generation(search, 1, near(target))
        distances.append(abs(point(search.mean() or [])[0] - target["scale"]))
    assert fmean(distances) < 0.7


def test_the_search_in_these_coordinates_converges() -> None:
    target = {"scale": 1.0, "end": 0.3, "bend": 0.1, "collapse": -0.4, "log_share": 0.6}
    search = in_memory(seed=3, popsize=6, **DYNAMICS)
    for generation in range(1, 17):
        run_generation(search, generation, near(target))
    assert point(search.mean() or []) == pytest.approx(list(target.values()), abs=0.05)


@pytest.mark.parametrize("family", ["taylor", "taylor-log"])
def test_two_classes_have_no_bend_and_no_collapse(family: str) -> None:
    search = in_memory(classes=2, popsize=4, **{**DYNAMICS, "family": family})
    names = axes(2, log=family == "taylor-log")
    assert search.space.names == names == ("scale", "end", "log_share")[: len(names)]
    assert all(point(c.theta, 2).shape == (len(names),) for c in search.propose(1))


def test_the_mean_of_the_user_is_the_centre(tmp_path: Path) -> None:
    mean = [0.5, 0.1, 0.2, -0.5, 0.4]
    search = in_memory(popsize=4, **DYNAMICS, mean=mean, sigma=1e-9)
    assert [point(c.theta) for c in search.propose(1)] == [pytest.approx(mean, abs=1e-6)] * 4


def test_a_warm_start_does_not_look_for_the_scale_again(tmp_path: Path) -> None:
    target = {**MEAN, "scale": 0.9}
    first = begin(tmp_path / "db", popsize=6, **DYNAMICS)
    for generation in range(1, 7):
        run_generation(first, generation, near(target))
    first.finish()
    second = begin(tmp_path / "db", popsize=6, **DYNAMICS)
    assert second.source == "s"
    scales = [point(candidate.theta)[0] for candidate in second.propose(1)]
    assert np.abs(np.array(scales) - 0.9).max() < 1.0


def test_other_coordinates_are_no_source_of_a_warm_start(tmp_path: Path) -> None:
    first = begin(tmp_path / "db")
    run_generation(first, 1)
    first.finish()
    second = begin(tmp_path / "db", **DYNAMICS)
    assert (second.study, second.source, second.unfitting) == ("s.2", None, "s")
    assert begin(tmp_path / "db", **DYNAMICS).unfitting == "s"


def test_the_leaders_are_the_best_of_each_generation() -> None:
    search = in_memory(popsize=3, filters=["none"])
    for generation, fitnesses in ((1, [0.9, 0.8, 0.7]), (2, [0.2, 0.4, 0.3]), (3, [0.6, 0.5, 0.1])):
        search.propose(generation)
        for candidate, fitness in zip(search.screen(generation), fitnesses, strict=True):
            search.tell(candidate.trial, evaluation(fitness))
    assert [c.fitness for c in search.leaders(5)] == [0.6, 0.4, 0.9, 0.5, 0.3]
    assert len(search.leaders(100)) == 9


def test_a_mean_that_the_filters_reject_is_not_recommended() -> None:
    search = in_memory(popsize=2, coordinates="theta", filters=["learnable"], max_draws=1000)
    assert search.mean() is None  # it is 0 as long as no generation is complete


def test_an_unfinished_study_in_other_coordinates_is_replaced_too(tmp_path: Path) -> None:
    """Its candidates cannot be read in these coordinates, and are no reason to stop."""
    run_generation(begin(tmp_path / "db"), 1)
    other = Identity(candidates={"popsize": 4, "space": "other"}, fitness={}, precision="auto")
    second = begin(tmp_path / "db", other, **DYNAMICS)
    assert (second.study, second.unfitting) == ("s.2", "s")


def test_a_candidate_that_is_half_read_is_left_out(tmp_path: Path) -> None:
    """Another process may write the attribute between two reads of this one."""
    search = open_search(tmp_path / "db", **DYNAMICS)
    known = facts(search.propose(1))
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'db'}")
    half = study.ask({"scale": optuna.distributions.FloatDistribution(-200, 200)})
    half.set_user_attr("generation", 1)
    assert facts(search.candidates()) == known
