"""The filter study: its bounds and proportions, and a small one."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "studies"))

import filters
from filters import (
    CLASSES,
    FILTERS,
    MOMENTUM,
    RATES,
    SHIPPED,
    TARGETS,
    Trained,
    balanced_accuracy,
    best_bound,
    best_interval,
    even_bound,
    separation,
    share,
    shares,
    with_interval,
)
from studies import Row, Study

from taylorglo.loss.dynamics import dynamics
from taylorglo.loss.filters import FILTERS as SHIPPED_FILTERS
from taylorglo.loss.polynomial import from_coefficients

SMALL = {"mlp": (6, 20), "cnn": (2, 10)}

# Values with a truth each, some of either kind.
OUTCOMES = st.lists(
    st.tuples(st.integers(-20, 20), st.booleans()),
    min_size=2,
    max_size=12,
    unique_by=lambda v: v[0],
).filter(lambda pairs: len({learned for _, learned in pairs}) == 2)


def arrays(pairs: list[tuple[int, bool]]) -> tuple[Any, Any]:
    return np.array([float(v) for v, _ in pairs]), np.array([learned for _, learned in pairs])


def row(theta: list[float], accuracy: float, classes: int = 10, rate: float = 0.1) -> Row:
    drive, rate_of_collapse, confidence = dynamics(theta, classes)
    return {
        "classes": classes,
        "rate": rate,
        "targets": "hard",
        "model": "mlp",
        "candidates": 2,
        "steps": 20,
        "theta": " ".join(map(repr, theta)),
        "A": drive,
        "B": rate_of_collapse,
        "A_rate": drive * rate,
        "p_star": 1.0 if confidence is None else confidence,
        "status": "ok",
        "accuracy": accuracy,
    }


def test_the_bounds_lie_between_learners_and_failures() -> None:
    ratios = np.array([3.0, -1.0, 0.5, 1.0])
    learned = np.array([False, True, True, False])
    assert best_bound(ratios, learned) == even_bound(ratios, learned) == 0.75


def test_the_even_bound_passes_a_failure_among_many_learners() -> None:
    ratios = np.arange(8.0)
    learned = np.array([True, True, False, True, True, False, False, True])
    # Isotonic: 1, 1, then 2 of 3 learn, then 1 of 3.
    assert even_bound(ratios, learned) == 4.5


def test_without_learners_or_failures_there_is_no_bound() -> None:
    ratios = np.array([1.0, 2.0])
    for learned in (np.array([True, True]), np.array([False, False])):
        assert math.isnan(best_bound(ratios, learned))
        assert math.isnan(best_interval(ratios, learned)[0])
        assert math.isnan(separation(ratios, learned))
        assert math.isnan(balanced_accuracy(ratios > 1, learned))
    assert math.isnan(even_bound(ratios, np.array([False, False])))
    assert even_bound(ratios, np.array([True, True])) == math.inf
    assert math.isnan(even_bound(np.array([]), np.array([], dtype=bool)))


@given(OUTCOMES)
def test_no_other_bound_has_a_higher_balanced_accuracy(pairs: list[tuple[int, bool]]) -> None:
    ratios, learned = arrays(pairs)
    found = balanced_accuracy(ratios <= best_bound(ratios, learned), learned)
    every = [balanced_accuracy(ratios <= kappa, learned) for kappa in ratios]
    assert found == pytest.approx(max(every))


@given(OUTCOMES)
def test_no_other_interval_has_a_higher_balanced_accuracy(pairs: list[tuple[int, bool]]) -> None:
    values, learned = arrays(pairs)

    def inside(low: float, high: float) -> float:
        return balanced_accuracy((values >= low) & (values <= high), learned)

    every = [inside(low, high) for low in values for high in values]
    assert inside(*best_interval(values, learned)) == pytest.approx(max(every))


def test_an_interval_is_open_to_the_side_on_which_nothing_fails() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert best_interval(values, np.array([True, True, False, False])) == (-math.inf, 2.5)
    assert best_interval(values, np.array([False, True, True, True])) == (1.5, math.inf)
    assert best_interval(values, np.array([False, True, True, False])) == (1.5, 3.5)


def test_separation_is_the_share_of_the_pairs_in_order() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert separation(values, np.array([True, True, False, False])) == 1.0
    assert separation(values, np.array([True, False, True, False])) == 0.75


def test_shares_have_the_interval_of_wilson() -> None:
    # Of (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) for p = 0.8, n = 10.
    assert share(8, 10) == "80% (49% to 94%) of 10"
    assert share(0, 0) == "–"
    accepted = np.array([True, True, True, False, False])
    learned = np.array([True, True, False, True, False])
    assert [text.split()[0] for text in shares(accepted, learned)] == ["67%", "67%", "50%"]


def test_the_interval_of_an_estimate_contains_it() -> None:
    generator = np.random.default_rng(1)
    ratios = generator.normal(size=300)
    learned = ratios + generator.normal(0, 0.3, size=300) < 0.5
    text = with_interval(even_bound, ratios, learned)
    found = re.fullmatch(r"(-?[\d.]+) \((-?[\d.]+) to (-?[\d.]+)\)", text)
    assert found is not None
    middle, low, high = map(float, found.groups())
    assert low < middle < high
    assert low < 0.5 < high


def test_a_candidate_is_judged_by_the_filters_and_by_what_it_learned() -> None:
    good, bad = from_coefficients(4.0, -4.0, -1.0, 0.0), from_coefficients(-4.0, 0.0, 0.0, 0.0)
    trained = Trained.of([row(good, 0.2), row(bad, 0.1), row(good, 0.6, classes=2)])
    # Learned is more than 0.19 for 10 classes, and more than 0.55 for 2.
    assert trained.learned.tolist() == [True, False, True]
    for index, (theta, classes) in enumerate([(good, 10), (bad, 10), (good, 2)]):
        verdicts = {name: f(theta, classes).accepted for name, f in SHIPPED_FILTERS.items()}
        verdicts[SHIPPED] = verdicts["learnable"] and verdicts["stable"]
        assert verdicts == {name: trained.accepted[name][index] for name in FILTERS}
    drive = dynamics(good, 10).learning_drive
    assert trained.speed[0] == pytest.approx(drive * 0.1 / (1 - MOMENTUM))
    assert trained.having(classes=2).accuracy.tolist() == [0.6]


@pytest.mark.long
def test_a_small_study_is_done_and_goes_on(tmp_path: Path) -> None:
    study = Study("filters", 1, tmp_path)
    filters.run(study, SMALL)
    names = {"mlp", "cnn", "settings", "kappa", "bound", "bounds"}
    tables = {name: (tmp_path / f"{name}.md").read_text() for name in names}
    written = (tmp_path / "rows.csv").read_bytes()
    settings = len(CLASSES) * len(RATES) * len(TARGETS)
    assert len(written.splitlines()) == 1 + settings * sum(number for number, _ in SMALL.values())
    assert tables["mlp"].count("| learnable, stable |") == len(CLASSES)
    assert (tmp_path / "filters.svg").exists()
    filters.run(study, SMALL)
    assert (tmp_path / "rows.csv").read_bytes() == written
    assert {name: (tmp_path / f"{name}.md").read_text() for name in names} == tables
