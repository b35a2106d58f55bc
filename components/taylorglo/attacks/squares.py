"""The Square attack: a search at random that sees nothing but logits.

Andriushchenko et al. 2020 (arXiv 1912.00049), in l-infinity and l2, with the schedule that is
stretched to the number of queries. An attack without gradients notices a network that only hides
them. Samples without height and width, such as features, have intervals in place of squares.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from taylorglo.attacks.ball import TINY, Ball, over_samples
from taylorglo.attacks.contract import (
    Network,
    check_counts,
    evaluating,
    fooled,
    logits_of,
    looked_at,
)
from taylorglo.attacks.objectives import margin
from taylorglo.attacks.problem import Finds, Found, Problem, problem

QUERIES = 5000  # as in AutoAttack

_FIRST_PART = 0.8  # p: the part of the pixels in a square at the beginning, as in AutoAttack
# At these numbers of 10 000 queries, p is halved (section 5 of the paper).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_AT_ONCE = 50  # queries whose random numbers are drawn at once


def square(
    model: Network,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    queries: int = QUERIES,
    norm: str = "linf",
    seed: int = 0,
    unit: Tensor | None = None,
) -> Tensor:
    """Attack by Square (Andriushchenko et al. 2020), which takes no gradients.

    The arguments before ``queries`` are those of :func:`~taylorglo.attacks.fgsm`.

    Args:
        queries: number of images that the network sees for each sample, at least 1.
        norm: "linf" or "l2".
        seed: decides the squares. They are drawn on the CPU: the same for every device.
        unit: as for :func:`~taylorglo.attacks.fgsm`.

    Returns:
        For each sample the first misclassified image; without one, that of the smallest margin.

    Raises:
        InputError: an argument has the wrong shape, type or range.
    """
    own = problem(model, images, labels, epsilon, norm=norm, seed=seed, unit=unit)
    check_counts(queries=queries)
    found = Finds(own)
    with evaluating(model):
        found.note(images, fooled(looked_at(model, images, labels), labels))
        if len(found.left):
            again = square_found(found.left, queries=queries)
            found.keep(again.images)
            found.note(again.images, again.fooled)
    return found.all.images


def square_found(own: Problem, *, queries: int) -> Found:
    """Return what Square finds. An image is left alone as soon as it is misclassified."""
    search = _Search(own) if own.ball.norm == "linf" else _SearchL2(own)
    with torch.no_grad():
        for window in _windows(own, search.shape, queries):
            search.query(window)
            if not len(search.found.left):
                break
    search.end()
    return search.found.all


@dataclass(frozen=True)
class _Window:
    """A rectangle that a query changes, and another one for l2; their numbers for each image.

    Attributes:
        number: of the query; 0 is the first guess.
        place: rows and columns.
        other: of a second rectangle of the same size.
    """

    number: int
    place: tuple[slice, slice]
    other: tuple[slice, slice]


def _windows(own: Problem, shape: tuple[int, int, int], queries: int) -> Iterator[_Window]:
    """Yield the rectangles of all queries: at one place in all images, as published."""
    _, height, width = shape
    generator = torch.Generator().manual_seed(own.draws.seed)
    draws = torch.rand(queries, 4, generator=generator).tolist()
    for number, draw in enumerate(draws):
        part = _FIRST_PART / 2 ** sum(number * 10_000 > queries * h for h in _HALVINGS)
        side = max(1, round(math.sqrt(part * height * width)))
        rows, columns = min(side, height), min(side, width)
        if height == 1:
            columns = max(1, round(part * width))
        if own.ball.norm == "l2":
            # Of three pixels at least, and odd.
            rows, columns = (min(n, max(3, k) | 1) for n, k in ((height, rows), (width, columns)))
        places = [
            slice(begin, begin + size)
            for u, size, most in zip(draw, (rows, columns) * 2, (height, width) * 2, strict=True)
            for begin in [min(int(u * (most - size + 1)), most - size)]
        ]
        yield _Window(number, (places[0], places[1]), (places[2], places[3]))


class _Search:
    """The search in l-infinity: a square of an image is set to a corner of its ball."""

    def __init__(self, own: Problem) -> None:
        self.found = Finds(own)
        images = own.images
        self.shape = (1, 1, images[0].numel())
        if images.ndim == 4:
            self.shape = (images.shape[1], images.shape[2], images.shape[3])
        self._points = images.clone(memory_format=torch.contiguous_format)
        self._margin = torch.full_like(images.flatten(1)[:, 0], torch.inf)
        self._drawn = torch.empty(len(own), 0)
        self._replaced = images  # what was in the squares of the last query

    def query(self, window: _Window) -> None:
        """Try a change in all images, and keep it where the margin became smaller."""
        proposed = self._proposed(window)
        left = self.found.left
        look = logits_of if window.number == 0 else _unchecked
        logits = look(left.network, proposed, left.labels)
        here = margin(logits, left.labels)
        # What is not a number is misclassified, and no larger than anything.
        self._decide(proposed, here >= self._margin, window)
        self._margin = here.minimum(self._margin)
        if bool((here > 0).all()):
            return
        kept = self.found.note(self._points, fooled(logits, left.labels))
        if kept is not None:
            self._points, self._margin = self._points[kept], self._margin[kept]
            self._drawn = self._drawn[kept.cpu()]

    def end(self) -> None:
        """Note the points of those images that withstood."""
        if len(self.found.left):
            self.found.keep(self._points)

    def _decide(self, proposed: Tensor, worse: Tensor, window: _Window) -> None:
        """Take over the proposals, but those of some images."""
        if window.number == 0:
            self._points = proposed.clone(memory_format=torch.contiguous_format)
            return
        back = worse.nonzero().squeeze(1)
        rows, columns = window.place
        self._spatial(self._points)[back, :, rows, columns] = self._replaced[back]

    def _proposed(self, window: _Window) -> Tensor:
        """Return images with another square each, or with stripes in the first query.

        The squares are written into the points themselves. Copies of all images would take longer
        than the network does if it is small.
        """
        ball = self.found.left.ball
        channels, _, width = self.shape
        if window.number == 0:
            # Vertical stripes, section 3.3 of the paper.
            stripes = self._signs("stripes", (channels, 1, width))
            change = stripes.expand(-1, *self.shape).reshape(ball.images.shape)
            change = over_samples(ball.epsilon, change) * change
            return ball.project(ball.images + ball.scaled(change))
        signs = self._numbers(window.number, (channels, 1, 1))
        corners = self._corners(ball, signs, window)
        square = self._spatial(self._points)[:, :, *window.place]
        self._replaced = square.clone()
        square.copy_(corners)
        return self._points

    def _corners(self, ball: Ball, signs: Tensor, window: _Window) -> Tensor:
        rows, columns = window.place
        change = over_samples(ball.epsilon, signs) * signs
        if ball.unit is not None:
            unit = ball.unit.expand(ball.images.shape[1:])[None]
            change = change * self._spatial(unit)[:, :, rows, columns]
        return ball.within_range(self._spatial(ball.images)[:, :, rows, columns] + change)

    def _spatial(self, values: Tensor) -> Tensor:
        """Return samples as (N, channels, height, width), the same memory if it is contiguous."""
        return values if values.ndim == 4 else values.reshape(-1, *self.shape)

    def _numbers(self, number: int, shape: tuple[int, ...]) -> Tensor:
        """Return the signs of a query, +1 or -1, (N, *shape)."""
        if number % _AT_ONCE == 0 or not self._drawn.shape[1]:
            self._drawn = self._signs(f"queries {number // _AT_ONCE}", (_AT_ONCE, *shape)).cpu()
        return self._drawn[:, number % _AT_ONCE].to(self._points)

    def _signs(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        drawn = self.found.left.draws.uniform(f"square {purpose}", shape)
        return (2 * (drawn < 0.5).float() - 1).to(self._points)


class _SearchL2(_Search):
    """The search in l2: length goes from one square to another (section 3.4 of the paper)."""

    def _decide(self, proposed: Tensor, worse: Tensor, window: _Window) -> None:
        back = worse.nonzero().squeeze(1)
        proposed[back] = self._points[back]
        self._points = proposed

    def _proposed(self, window: _Window) -> Tensor:
        ball = self.found.left.ball
        if window.number == 0:
            return self._tiled(ball)
        change = self._spatial(ball.unscaled(self._points - ball.images)).clone()
        signs = self._numbers(window.number, (self.shape[0], 1, 1))
        here = (slice(None), slice(None), *window.place)
        there = (slice(None), slice(None), *window.other)
        both = torch.zeros(self.shape[1:], device=change.device)
        both[window.place] = both[window.other] = 1
        limit = over_samples(ball.epsilon, change)
        unused = (limit**2 - _squares(change).sum(dim=1, keepdim=True)).clamp(min=0)
        available = _squares(change * both) + unused / self.shape[0]
        old = change[here] / (_squares(change[here]).sqrt() + TINY)
        pattern = _pattern(change[here].shape[2:], turned=window.number % 2 == 1).to(change)
        new = old + signs * pattern
        new = new / (_squares(new).sqrt() + TINY) * available.sqrt()
        change[there] = 0
        change[here] = new
        return self._at_radius(ball, change)

    def _tiled(self, ball: Ball) -> Tensor:
        """Return the first guess: a grid of five by five patterns of random signs."""
        channels, height, width = self.shape
        rows, columns = max(1, height // 5), max(1, width // 5)
        grid = (-(-height // rows), -(-width // columns))
        signs = self._signs("tiles", (channels, *grid))
        signs = signs.repeat_interleave(rows, dim=2).repeat_interleave(columns, dim=3)
        tile = _pattern(torch.Size((rows, columns)), turned=False).to(signs)
        pattern = tile.repeat(grid) * signs
        return self._at_radius(ball, pattern[:, :, :height, :width])

    def _at_radius(self, ball: Ball, change: Tensor) -> Tensor:
        """Return images with changes that are made as long as the ball allows."""
        length = _squares(change).sum(dim=1, keepdim=True).sqrt()
        change = change / (length + TINY) * over_samples(ball.epsilon, change)
        change = change.reshape(ball.images.shape)
        return ball.project(ball.images + ball.scaled(change))


def _unchecked(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of a network whose first ones were checked."""
    return network(images)


def _squares(values: Tensor) -> Tensor:
    """Return the sum of squares of each channel, (N, channels, 1, 1)."""
    return values.square().sum(dim=(2, 3), keepdim=True)


def _pattern(shape: torch.Size, *, turned: bool) -> Tensor:
    """Return the pattern eta of section 3.4: two hills, one of them upside down, of length 1.

    Args:
        shape: rows and columns.
        turned: whether the hills are beside each other, and not one above the other.
    """
    rows, columns = reversed(shape) if turned else shape
    upper = rows // 2
    pattern = torch.cat([_hill(upper, columns), -_hill(rows - upper, columns)])
    if turned:
        pattern = pattern.T
    return pattern / (pattern.square().sum().sqrt() + TINY)


def _hill(rows: int, columns: int) -> Tensor:
    """Return a hill: the sum of ever smaller rectangles around the middle, of ever more weight."""
    row, column = torch.arange(rows), torch.arange(columns)
    most = max(rows, columns) // 2
    apart = torch.maximum((row - rows // 2).abs()[:, None], (column - columns // 2).abs()[None])
    weights = 1 / torch.arange(most + 1, 0, -1).double() ** 2
    # A pixel is in the rectangles that reach as far as it is from the middle.
    return weights.cumsum(0)[(most - apart).clamp(min=0)].float()
