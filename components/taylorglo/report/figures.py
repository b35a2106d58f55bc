"""The figures of the report: matplotlib figures, drawn without pyplot, and their form as SVG inside a page.

matplotlib is imported where it is used, so that a light caller does not pay for it.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taylorglo.loss.dynamics import equilibrium_confidence, net_pull

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Each colour is a custom property of the page's style sheet too, so that the figures follow its
# dark theme.
INK, MUTED, RULE = "#1c1f24", "#6a7078", "#d5d8dc"
SERIES = ("#b3392c", "#2f6690", "#4f8a4b", "#8a6aa8", "#b5862a", "#4b8f92")
_PROPERTIES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"} | {
    c: f"--series-{i}" for i, c in enumerate(SERIES)
}

WIDTH = 7.4  # inches, of every figure


def loss_figure(
    losses: Sequence[float] | Mapping[str, Sequence[float]], num_classes: int
) -> Figure:
    """Shape and pull of Taylor losses beside cross-entropy, for a one-hot target.

    Both are drawn against the probability p of the target while the other classes share the rest equally, so that
    the pull is minus the slope of the loss. Each loss is divided by the size of its pull at chance, a factor that the
    learning rate takes up: all curves leave chance (p = 1/n) alike, and what differs is what comes after.

    Args:
        losses: one theta of any order, or several by name.
        num_classes: n >= 2.

    Raises:
        InputError: a theta or the number of classes is not valid.
    """
    named = losses if isinstance(losses, Mapping) else {"Taylor loss": losses}
    chance = 1 / num_classes
    p = np.linspace(min(0.02, chance / 2), 1.0, 400)
    learned = p >= chance
    with _style():
        figure = _figure(2.75)
        shape, pull = figure.subplots(1, 2)
        heights = [-np.log(num_classes * p) / num_classes]
        pulls = [1 / (num_classes * p)]
        shape.plot(p, heights[0], color=MUTED, dashes=(4, 2), label="cross-entropy")
        pull.plot(p, pulls[0], color=MUTED, dashes=(4, 2))
        for (name, theta), color in zip(named.items(), itertools.cycle(SERIES), strict=False):
            g = net_pull(theta, num_classes)
            scale = abs(float(g(chance))) or float(np.max(np.abs(g(p)))) or 1.0
            height = -g.integ(lbnd=chance)(p) / scale
            heights.append(height)
            pulls.append(g(p) / scale)
            shape.plot(p, height, color=color, label=name)
            pull.plot(p, pulls[-1], color=color)
            rest = equilibrium_confidence(theta, num_classes)
            if rest is not None:
                shape.plot([rest], [-g.integ(lbnd=chance)(rest) / scale], "o", color=color)
                pull.plot([rest], [0], "o", color=color)
                side = "right" if rest > 0.5 else "left"
                pull.annotate(f"p* = {rest:.3f}", (rest, 0), xytext=(-5 if rest > 0.5 else 5, -11),
                              textcoords="offset points", color=color, ha=side)  # fmt: skip
        pull.axhline(0, color=INK, linewidth=0.7)
        for axes, curves, label in (
            (shape, heights, "loss − loss at chance"),
            (pull, pulls, "net pull g(p)"),
        ):
            inside = np.concatenate([curve[learned] for curve in curves] + [np.zeros(1)])
            margin = 0.1 * float(np.ptp(inside)) or 1.0
            axes.set_ylim(float(inside.min()) - margin, float(inside.max()) + 2 * margin)
            axes.axvline(chance, color=MUTED, linewidth=0.7, dashes=(1, 2))
            axes.annotate("chance", (chance, 0.03), xycoords=("data", "axes fraction"), xytext=(3, 0),
                          textcoords="offset points", color=MUTED)  # fmt: skip
            axes.set(
                xlabel="probability p of the target",
                ylabel=f"{label}, per pull at chance",
                xlim=(0, 1),
            )
        shape.legend(loc="upper right")
    return figure


def seeds_figure(
    rows: Sequence[tuple[str, Sequence[float], Sequence[tuple[int, float]]]],
) -> Figure:
    """Test accuracy of every seed by loss, with mean and sample standard deviation, beside the learning curves.

    Args:
        rows: (loss, test accuracies in [0, 1], curve of (step, validation accuracy)); the curve may be empty.
    """
    with_curves = any(curve for _, _, curve in rows)
    with _style():
        figure = _figure(max(2.5 if with_curves else 1.5, 0.75 + 0.4 * len(rows)))
        grid = figure.subplots(
            1, 1 + with_curves, squeeze=False, width_ratios=[1.15, 1][: 1 + with_curves]
        )
        strip: Axes = grid[0, 0]
        for index, (_, accuracies, _) in enumerate(rows):
            color, values = SERIES[index % len(SERIES)], 100 * finite(accuracies)
            if not values.size:
                continue
            strip.plot(
                values,
                index + _spread(values.size, 0.17),
                "o",
                color=color,
                alpha=0.55,
                markeredgewidth=0,
            )
            mean, deviation = values.mean(), values.std(ddof=1) if values.size > 1 else 0.0
            strip.plot(
                [mean - deviation, mean + deviation], [index + 0.34] * 2, color=color, linewidth=1.2
            )
            strip.plot([mean], [index + 0.34], "|", color=color, markersize=7, markeredgewidth=1.6)
        strip.set_yticks(range(len(rows)), [loss for loss, _, _ in rows])
        strip.set_ylim(len(rows) - 0.4, -0.5)
        strip.tick_params(axis="y", length=0)
        for index, tick in enumerate(strip.get_yticklabels()):
            tick.set_color(SERIES[index % len(SERIES)])
        strip.spines["left"].set_visible(False)
        strip.grid(axis="x")
        strip.set_xlabel("test accuracy (%)")
        if with_curves:
            curves: Axes = grid[0, 1]
            for index, (_, _, curve) in enumerate(rows):
                steps, accuracies = [step for step, _ in curve], [100 * value for _, value in curve]
                curves.plot(
                    steps, accuracies, color=SERIES[index % len(SERIES)], zorder=3 - 0.1 * index
                )
            curves.set(xlabel="training step", ylabel="validation accuracy (%)")
            curves.grid(axis="y")
    return figure


def search_figure(generations: Sequence[tuple[int, Sequence[float]]], num_classes: int) -> Figure:
    """Fitness of every candidate by generation, with best and median; beside it the better half enlarged.

    Args:
        generations: (number, fitnesses in [0, 1]); what is not finite is left out; there is at least one that is.
        num_classes: n >= 2, for the line at chance.
    """
    from matplotlib.ticker import MaxNLocator

    scored = [(number, 100 * finite(fitnesses)) for number, fitnesses in generations]
    scored = [(number, values) for number, values in scored if values.size]
    numbers = [number for number, _ in scored]
    with _style():
        figure = _figure(2.6)
        everything, upper = figure.subplots(1, 2)
        for axes in (everything, upper):
            for number, values in scored:
                axes.plot(number + _spread(values.size, 0.22), values, "o", color=MUTED, alpha=0.5, markersize=3,
                          markeredgewidth=0, label="candidate" if number == numbers[0] else None)  # fmt: skip
            best = np.maximum.accumulate([values.max() for _, values in scored])
            medians = [float(np.median(values)) for _, values in scored]
            axes.plot(
                numbers,
                medians,
                "s-",
                color=SERIES[1],
                markersize=3,
                label="median of the generation",
            )
            axes.plot(numbers, best, "o-", color=SERIES[0], markersize=3, label="best so far")
            axes.set_xlabel("generation")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y")
        everything.set_ylabel("fitness: validation accuracy (%)")
        everything.axhline(100 / num_classes, color=MUTED, linewidth=0.7, dashes=(1, 2))
        everything.annotate("chance", (1, 100 / num_classes), xycoords=("axes fraction", "data"), xytext=(-2, 3),
                            textcoords="offset points", ha="right", color=MUTED)  # fmt: skip
        pooled = np.concatenate([values for _, values in scored])
        low, high = float(np.median(pooled)), float(pooled.max())
        margin = 0.08 * (high - low) or 1.0
        upper.set_ylim(low - margin, high + margin)
        figure.legend(*everything.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def attack_figure(
    attacks: Mapping[str, Mapping[str, Sequence[tuple[float, Sequence[float]]]]],
    losses: Sequence[str],
) -> Figure:
    """Accuracy against the size of the perturbation: a panel per attack, a line per loss.

    Args:
        attacks: by attack and loss, the points (epsilon in pixel space, accuracies in [0, 1] of the attacked seeds).
        losses: all losses, in the order that gives them their colours.
    """
    columns = min(len(attacks), 4)
    rows = -(-len(attacks) // columns)
    handles: dict[str, Line2D] = {}
    with _style():
        figure = _figure(0.5 + 1.9 * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(attacks) :]:
            axes.set_visible(False)
        for axes, (attack, lines) in zip(grid.flat, attacks.items(), strict=False):
            for loss, points in lines.items():
                index = losses.index(loss)
                scored = [
                    (epsilon, 100 * finite(values))
                    for epsilon, values in sorted(points, key=lambda x: x[0])
                ]
                scored = [(epsilon, values) for epsilon, values in scored if values.size]
                handles[loss] = axes.errorbar(
                    [epsilon for epsilon, _ in scored],
                    [values.mean() for _, values in scored],
                    yerr=[values.std(ddof=1) if values.size > 1 else 0.0 for _, values in scored],
                    color=SERIES[index % len(SERIES)], marker="o", markersize=3, elinewidth=0.8,
                    zorder=3 - 0.1 * index,
                )[0]  # fmt: skip
            axes.set_title(attack)
            axes.set_ylim(-3, 103)
            axes.grid(axis="y")
        figure.supxlabel("perturbation ε (L∞, pixels in [0, 1])", fontsize=8, color=MUTED)
        grid[0, 0].set_ylabel("accuracy (%)")
        named = [loss for loss in losses if loss in handles]
        figure.legend(
            [handles[loss] for loss in named],
            named,
            loc="outside upper center",
            ncols=min(len(named), 5),
        )
    return figure


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an ``<svg>`` element that scales with the page and takes its colours from the style sheet.

    The same figure gives the same bytes. ``name`` keeps its ids apart from those of other figures of the page.
    """
    buffer = io.StringIO()
    with _style():
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(
        r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL
    )  # on the page's sheet
    text = re.sub(r"\s+xmlns(:\w+)?=\"[^\"]*\"", "", text[text.index("<svg") :], count=2)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    opening = f'<svg role="img" aria-label="{escape(label)}"'
    text = re.sub(
        r'<svg\b|\s(?:width|height)="[\d.]+pt"',
        lambda m: opening if m[0] == "<svg" else "",
        text,
        count=3,
    )
    for color, custom_property in _PROPERTIES.items():
        text = text.replace(color, f"var({custom_property})")
    return text.strip()


def finite(values: Sequence[float]) -> NDArray[np.float64]:
    """The values that are finite, as an array: what a mean can be taken of."""
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    return array[np.isfinite(array)]


def _spread(count: int, width: float) -> NDArray[np.float64]:
    """Offsets within +-width that keep neighbours apart and are the same every time (golden-ratio sequence)."""
    if count == 1:
        return np.zeros(1)
    return width * (2 * ((np.arange(count, dtype=np.float64) * 0.6180339887) % 1) - 1)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


@contextmanager
def _style() -> Iterator[None]:
    """The house style, whatever the user's own matplotlib configuration says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "text.parse_math": False,
                "svg.hashsalt": "taylorglo",
                "font.size": 8,
                "axes.labelsize": 8,
                "axes.titlesize": 8.5,
                "axes.titlecolor": INK,
                "axes.labelcolor": MUTED,
                "axes.edgecolor": MUTED,
                "axes.linewidth": 0.7,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "grid.color": RULE,
                "grid.linewidth": 0.6,
                "text.color": INK,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "xtick.major.size": 3,
                "ytick.major.size": 3,
                "xtick.major.width": 0.7,
                "ytick.major.width": 0.7,
                "lines.linewidth": 1.5,
                "lines.markersize": 4.5,
                "legend.frameon": False,
                "legend.handlelength": 1.8,
            }
        )
        yield
