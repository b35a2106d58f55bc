"""Points with two objectives, both to be maximised: their fronts, and a rank for each point.

A point dominates another one if it is no worse in both objectives, and better in one. The first
front has the points that none dominates, the second front those that only the first one dominates,
and so on (non-dominated sorting, Deb et al. 2002). Within a front, points are ranked by the area
that would be lost without them, as in MO-CMA-ES (Igel, Hansen & Roth 2007, section 3).
"""

from bisect import bisect_right
from collections.abc import Sequence

Point = tuple[float, float]


def fronts(points: Sequence[Point]) -> list[list[int]]:
    """Return the fronts, each as the places of its points, in descending order of the first value.

    Equal points are in one front.
    """
    found: list[list[int]] = []
    # The last point of each front has its largest second value, which falls from front to front.
    fallen: list[float] = []
    front, former = 0, None
    for place in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        first, second = points[place]
        if (first, second) != former:
            front, former = bisect_right(fallen, -second), (first, second)
        if front == len(found):
            found.append([])
            fallen.append(-second)
        found[front].append(place)
        fallen[front] = -second
    return found


def ranks(points: Sequence[Point], reference: Point) -> list[int]:
    """Return the rank of each point, 0 for the best; no two points have the same.

    Fronts come one after another. In a front, the point without which the least area is lost has
    the last rank, then the one of the others without which the least of the rest is lost, and so
    on. Of equals, the one of the lower first value is the last, and of equal points the last one.

    Args:
        points: to rank.
        reference: the corner of the areas; a point beyond it has none.
    """
    order: list[int] = []
    for front in fronts(points):
        order += _by_area([points[place] for place in front], front, reference)
    result = [0] * len(points)
    for rank, place in enumerate(order):
        result[place] = rank
    return result


def _by_area(front: Sequence[Point], places: Sequence[int], reference: Point) -> list[int]:
    """Return the places of a front, the one of the largest area first."""
    firsts = [max(first, reference[0]) for first, _ in front]
    seconds = [max(second, reference[1]) for _, second in front]
    size = len(front)
    before, after = list(range(-1, size - 1)), list(range(1, size + 1))

    def area(index: int) -> float:
        """Return what only this point covers, between its two neighbours."""
        nearest = firsts[after[index]] if after[index] < size else reference[0]
        highest = seconds[before[index]] if before[index] >= 0 else reference[1]
        return (firsts[index] - nearest) * (seconds[index] - highest)

    left = {index: area(index) for index in range(size)}
    order = []
    while left:
        least = min(reversed(left), key=left.__getitem__)
        order.append(places[least])
        del left[least]
        one, other = before[least], after[least]
        if one >= 0:
            after[one] = other
            left[one] = area(one)
        if other < size:
            before[other] = one
            left[other] = area(other)
    return order[::-1]
