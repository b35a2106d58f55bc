"""The statistics of the report, against scipy, numpy and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from taylorglo.stats import above_chance, complete_pairs, covered, finite, holm, paired, welch

GRID = st.integers(0, 20)


@pytest.mark.parametrize(
    ("sizes", "shift"), [((10, 10), 0.0), ((10, 10), 1.0), ((3, 7), 2.0), ((2, 2), 0.3)]
)
def test_welch_is_the_two_sided_p_value_with_unequal_variances(
    sizes: tuple[int, int], shift: float
) -> None:
    rng = np.random.default_rng(sum(sizes))
    a = rng.normal(0, 1, sizes[0])
    b = rng.normal(shift, 3, sizes[1])
    # The textbook formula: t with the Welch-Satterthwaite degrees of freedom.
    u = a.var(ddof=1) / len(a)
    v = b.var(ddof=1) / len(b)
    t = (a.mean() - b.mean()) / np.sqrt(u + v)
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    p = welch(a.tolist(), b.tolist())
    assert p == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-10)
    assert p == pytest.approx(welch(b.tolist(), a.tolist()), rel=1e-12)
    assert p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-12)


def test_welch_of_constant_samples() -> None:
    assert welch([0.9] * 5, [0.9] * 3) == 1.0
    assert welch([0.9] * 5, [0.8] * 5) == 0.0


# scipy warns of the constant sample.
@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")
def test_welch_of_one_constant_sample_is_a_test_against_a_number() -> None:
    other = [0.1, 0.4, 0.3, 0.7]
    assert welch([0.25] * 9, other) == pytest.approx(
        stats.ttest_1samp(other, 0.25).pvalue, rel=1e-10
    )


@pytest.mark.parametrize("missing", [float("nan"), float("-inf")])
def test_welch_says_nothing_of_a_sample_with_a_missing_value(missing: float) -> None:
    for sample in ([0.1, 0.2, missing], [missing] * 3, [0.1, missing]):
        assert np.isnan(welch(sample, [0.5] * 3))
        assert np.isnan(welch([0.5] * 3, sample))


def test_paired_leaves_out_pairs_that_are_not_complete() -> None:
    nan = float("nan")
    first, second = [0.1, 0.25, 0.3, 0.5], [0.2, 0.3, 0.45, 0.4]
    expected = paired(first, second)
    assert 0 < expected < 1
    for place in range(5):
        one, other = first.copy(), second.copy()
        one.insert(place, nan)
        other.insert(place, 0.3)
        assert paired(one, other) == paired(other, one) == expected
    assert paired([0.1, 0.2, nan], [0.2, 0.3, 0.3]) == paired([nan, 0.1, 0.2], [0.3, 0.2, 0.3])
    assert np.isnan(paired([nan, 0.1], [0.1, nan]))
    assert complete_pairs([nan, 0.1, 0.2], [0.3, nan, 0.4]) == ([0.2], [0.4])


def test_paired_is_a_test_of_the_differences_against_zero() -> None:
    rng = np.random.default_rng(3)
    # The samples share the effect of the seeds, which a paired test takes out.
    seeds = rng.normal(0, 5, 12)
    first = seeds + rng.normal(1.0, 0.3, 12)
    second = seeds + rng.normal(0, 0.3, 12)
    p = paired(first.tolist(), second.tolist())
    differences = first - second
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(12))
    assert p == pytest.approx(2 * stats.t.sf(abs(t), 11), rel=1e-10)
    assert p < 1e-4 < 0.2 < welch(first.tolist(), second.tolist())
    with pytest.raises(ValueError, match="zip"):
        paired([0.1, 0.2], [0.1])


def test_paired_of_equal_differences() -> None:
    assert paired([0.5, 0.75], [0.5, 0.75]) == 1.0
    # Without a spread to estimate there is no certainty: n differences of one sign are as likely
    # as n heads or n tails.
    assert paired([0.5, 0.75], [0.25, 0.5]) == 0.5
    # These differences are equal but for rounding.
    assert paired([0.9, 0.8, 0.7], [0.8, 0.7, 0.6]) == 0.25
    assert paired([0.1] * 10, [0.2] * 10) == 2**-9


@settings(deadline=None, derandomize=True)
@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_holm_is_the_largest_of_the_products_so_far(p_values: list[float | None]) -> None:
    tested = sorted(p for p in p_values if p is not None)
    adjusted = holm(p_values)
    assert len(adjusted) == len(p_values)
    for raw, value in zip(p_values, adjusted, strict=True):
        if raw is None:
            assert value is None
            continue
        # Written as in Holm 1979: the maximum over all smaller p values.
        products = [(len(tested) - rank) * p for rank, p in enumerate(tested) if p <= raw]
        assert value == min(1.0, max(products))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_raw_and_bonferroni(p_values: list[float]) -> None:
    adjusted = [value for value in holm(p_values) if value is not None]
    for raw, value in zip(p_values, adjusted, strict=True):
        assert raw <= value <= min(1.0, len(p_values) * raw)
    assert min(adjusted) == min(1.0, len(p_values) * min(p_values))


def test_holm_by_hand() -> None:
    assert holm([]) == []
    assert holm([0.03, None, 0.01, 0.04]) == [0.06, None, 0.03, 0.06]


def test_finite_values_are_kept_in_their_order() -> None:
    values = [0.5, float("nan"), 0.25, float("inf"), float("-inf")]
    assert finite(values).tolist() == [0.5, 0.25]
    assert finite(value for value in values).tolist() == [0.5, 0.25]
    assert finite([]).shape == (0,)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(GRID, GRID).map(lambda pair: (min(pair), max(pair)))))
def test_covered_is_the_length_of_the_union(spans: list[tuple[int, int]]) -> None:
    cells = {cell for start, end in spans for cell in range(start, end)}
    assert covered(spans) == len(cells)
    assert covered(iter(spans[::-1])) == len(cells)


def test_above_chance_is_the_tail_of_the_binomial_distribution() -> None:
    assert above_chance(1.0, 5, 0.5) == pytest.approx(1 / 32)
    assert above_chance(0.8, 5, 0.5) == pytest.approx(6 / 32)
    assert above_chance(0.0, 5, 0.5) == 1.0


def test_covered_by_hand() -> None:
    assert covered([]) == 0.0
    assert covered([(1.0, 2.5), (2.0, 4.0), (10.0, 10.5), (2.1, 2.2)]) == pytest.approx(3.5)
