"""Fronts of points with two objectives, and the ranks of points."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from taylorglo.pareto import Point, fronts, ranks

ORIGIN = (0.0, 0.0)


def dominates(one: Point, other: Point) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def fronts_by_definition(points: Sequence[Point]) -> list[set[int]]:
    left, found = set(range(len(points))), []
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        found.append(front)
        left -= front
    return found


def area(points: Sequence[Point], reference: Point) -> float:
    """Return the area above the reference that points cover, cell by cell of their grid."""
    firsts = sorted({reference[0], *(first for first, _ in points if first > reference[0])})
    seconds = sorted({reference[1], *(second for _, second in points if second > reference[1])})
    return sum(
        (right - left) * (top - bottom)
        for left, right in pairwise(firsts)
        for bottom, top in pairwise(seconds)
        if any(first >= right and second >= top for first, second in points)
    )


# On a coarse grid, so that there are equal values, and sums are exact.
coordinates = st.integers(-4, 12).map(float)
many_points = st.lists(st.tuples(coordinates, coordinates), max_size=14)


def test_fronts_of_an_example() -> None:
    points = [(1.0, 5.0), (4.0, 4.0), (5.0, 1.0), (3.0, 3.0), (4.0, 1.0), (2.0, 2.0)]
    assert fronts(points) == [[2, 1, 0], [4, 3], [5]]
    assert fronts([]) == []


def test_equal_points_are_in_one_front() -> None:
    points = [(2.0, 1.0), (1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (0.0, 1.0)]
    assert fronts(points) == [[0, 3], [1, 2], [4]]


def test_ranks_of_an_example() -> None:
    # Alone, the points of the first front cover 2 x 1, 2 x 3, 1 x 1 and 3 x 1 beyond the others.
    points = [(1.0, 1.0), (2.0, 8.0), (4.0, 7.0), (5.0, 4.0), (8.0, 3.0)]
    assert ranks(points, (0.0, 2.0)) == [4, 2, 0, 3, 1]


def test_the_area_of_a_point_grows_once_its_neighbour_has_its_rank() -> None:
    # The two in the middle are near each other. Without (4, 5.9), the other one covers 4.2 x 5.8.
    points = [(0.0, 10.0), (4.0, 5.9), (4.2, 5.8), (10.0, 0.0)]
    assert ranks(points, (-1.0, -1.0)) == [2, 3, 0, 1]


def test_a_point_beyond_the_reference_is_the_last_of_its_front() -> None:
    assert ranks([(9.0, 1.0), (5.0, 5.0), (1.0, 9.0)], (2.0, 0.0)) == [1, 0, 2]
    assert ranks([(-1.0, 9.0), (5.0, 5.0)], ORIGIN) == [1, 0]


def test_of_equal_points_the_first_one_has_the_better_rank() -> None:
    assert ranks([(0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0)], ORIGIN) == [1, 0, 2, 3]


@settings(deadline=None, derandomize=True)
@given(many_points)
def test_fronts_are_those_of_the_definition(points: list[Point]) -> None:
    found = fronts(points)
    assert [set(front) for front in found] == fronts_by_definition(points)
    for front in found:
        firsts = [points[place][0] for place in front]
        assert firsts == sorted(firsts, reverse=True)


@settings(deadline=None, derandomize=True)
@given(many_points)
def test_the_last_of_a_front_is_the_one_without_which_the_least_is_lost(
    points: list[Point],
) -> None:
    rank = ranks(points, ORIGIN)
    assert sorted(rank) == list(range(len(points)))
    for front in fronts_by_definition(points):
        left = sorted(front, key=lambda place: rank[place])
        while left:
            shown = [points[place] for place in left]
            losses = [
                area(shown, ORIGIN) - area(shown[:index] + shown[index + 1 :], ORIGIN)
                for index in range(len(shown))
            ]
            assert losses[-1] == min(losses)
            left.pop()


@settings(deadline=None, derandomize=True)
@given(many_points)
def test_a_point_that_dominates_another_one_has_the_better_rank(points: list[Point]) -> None:
    rank = ranks(points, ORIGIN)
    for i, one in enumerate(points):
        for j, other in enumerate(points):
            assert not dominates(one, other) or rank[i] < rank[j]


@settings(deadline=None, derandomize=True)
@given(many_points, st.sampled_from([0.25, 2.0, 64.0]), st.sampled_from([-3.0, 0.0, 5.0]))
def test_the_units_of_the_objectives_do_not_matter(
    points: list[Point], factor: float, shift: float
) -> None:
    changed = [(first, factor * second + shift) for first, second in points]
    assert ranks(changed, (0.0, shift)) == ranks(points, ORIGIN)
