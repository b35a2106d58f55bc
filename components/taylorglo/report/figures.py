"""The figures of the report: matplotlib figures, drawn without pyplot, and their form as SVG."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from taylorglo.loss.dynamics import equilibrium_confidence, net_pull
from taylorglo.report.text import taken_for
from taylorglo.results import Example
from taylorglo.stats import finite

# matplotlib takes most of a second to import, so the functions that draw import it themselves.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Accuracies = Sequence[float]

# Each colour is also a custom property of the page's style sheet, so that the figures follow its
# dark theme.
INK = "#1c1f24"
MUTED = "#6a7078"
RULE = "#d5d8dc"
# One for the champion, and one for each baseline that the settings know. They and those of the dark
# theme differ for colour-blind readers, too (a test simulates it).
SERIES = (
    "#c35609",
    "#3480c5",
    "#006238",
    "#5f1c8b",
    "#5d4d05",
    "#1f3e62",
    "#c95e96",
    "#646464",
)
# A shape for each colour: they tell losses apart without colours.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "d")
_PROPERTIES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"} | {
    color: f"--series-{index}" for index, color in enumerate(SERIES)
}

WIDTH = 7.4  # inches
_DOTS_PER_INCH = 160

# matplotlib's type hints list the names of all settings, which differ between its versions.
_STYLE: dict[Any, Any] = {
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


def loss_figure(thetas: Mapping[str, Sequence[float]], num_classes: int) -> Figure:
    """Draw shape and pull of Taylor losses beside cross-entropy, for a one-hot target.

    Both are drawn against the probability p of the target, if the other classes share the rest
    equally, so the pull is minus the slope of the loss. Each loss is divided by its pull at chance
    (p = 1/n), a factor that the learning rate takes up: so all curves have the same slope at
    chance, and differ in their course from there.

    Args:
        thetas: coefficients of any order, by the name of the loss.
        num_classes: n >= 2.

    Raises:
        InputError: a theta or the number of classes is not valid.
    """
    chance = 1 / num_classes
    p = np.linspace(min(0.02, chance / 2), 1.0, 400)
    cross_entropy = _Course(-np.log(num_classes * p) / num_classes, 1 / (num_classes * p))
    courses = {name: _course(theta, num_classes, p) for name, theta in thetas.items()}
    with _style():
        figure = _figure(2.75)
        shape, pull = figure.subplots(1, 2)
        shape.plot(p, cross_entropy.height, color=MUTED, dashes=(4, 2), label="cross-entropy")
        pull.plot(p, cross_entropy.pull, color=MUTED, dashes=(4, 2))
        for (name, course), color in zip(courses.items(), itertools.cycle(SERIES), strict=False):
            shape.plot(p, course.height, color=color, label=name)
            pull.plot(p, course.pull, color=color)
            _mark_rest(shape, pull, course, color)
        pull.axhline(0, color=INK, linewidth=0.7)
        drawn = [cross_entropy, *courses.values()]
        learned = p >= chance
        _frame_loss(shape, "loss − loss at chance", chance, [c.height[learned] for c in drawn])
        _frame_loss(pull, "net pull g(p)", chance, [c.pull[learned] for c in drawn])
        shape.legend(loc="upper right")
    return figure


def seeds_figure(
    rows: Sequence[tuple[str, Accuracies, Sequence[tuple[int, float]]]],
    score: str = "accuracy",
    share: bool = True,
) -> Figure:
    """Draw the test score of each seed by loss, beside the learning curves.

    Args:
        rows: (loss, test scores, curve of (step, validation score)); the curve may be empty. The
            learning curves are left out if all are.
        score: what the scores are, in words.
        share: whether they are in [0, 1], and are shown in percent.
    """
    rows = [
        (loss, _scaled(scores, share), [(step, _shown(value, share)) for step, value in curve])
        for loss, scores, curve in rows
    ]
    unit = " (%)" if share else ""
    curves = [curve for _, _, curve in rows]
    columns = 2 if any(curves) else 1
    with _style():
        figure = _figure(max(2.5 if any(curves) else 1.5, 0.75 + 0.4 * len(rows)))
        grid = figure.subplots(1, columns, squeeze=False, width_ratios=[1.15, 1][:columns])
        _plot_seeds(grid[0, 0], [(loss, accuracies) for loss, accuracies, _ in rows])
        grid[0, 0].set_xlabel(f"test {score}{unit}")
        if any(curves):
            _plot_curves(grid[0, 1], curves)
            grid[0, 1].set_ylabel(f"validation {score}{unit}")
    return figure


def search_figure(
    generations: Sequence[tuple[int, Accuracies]],
    num_classes: int | None,
    score: str = "accuracy",
    share: bool = True,
) -> Figure:
    """Draw the fitness of each candidate by generation; beside it the better half enlarged.

    Args:
        generations: (number, fitnesses). Fitnesses that are not finite are left out; at least one
            is finite.
        num_classes: n >= 2, for the line at chance; None for no such line.
        score: what the fitness is, in words.
        share: whether it is in [0, 1], and is shown in percent.
    """
    scored = [(number, finite(_scaled(fitnesses, share))) for number, fitnesses in generations]
    scored = [(number, shown) for number, shown in scored if shown.size]
    with _style():
        figure = _figure(2.6)
        whole, upper = figure.subplots(1, 2)
        _plot_fitness(whole, scored)
        _plot_fitness(upper, scored)
        whole.set_ylabel(f"fitness: validation {score}{' (%)' if share else ''}")
        if num_classes is not None:
            _mark_chance(whole, 100 / num_classes)
        pooled = np.concatenate([shown for _, shown in scored])
        low = float(np.median(pooled))
        high = float(pooled.max())
        margin = 0.08 * (high - low) or 1.0
        upper.set_ylim(low - margin, high + margin)
        figure.legend(*whole.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def trade_off_figure(
    others: Sequence[tuple[float, float]],
    front: Sequence[tuple[float, float]],
    champion: tuple[float, float] | None,
    score: str = "accuracy",
    share: bool = True,
) -> Figure:
    """Draw each candidate by its score and its score under attack, with the Pareto front.

    The front is drawn as the border of what the candidates reach: each step is at one of them.

    Args:
        others: (validation score, the same under attack) of the candidates beside the front.
        front: those of the candidates on it.
        champion: the scores of the champion, if it is one of the candidates.
        score: what the scores are, in words.
        share: whether they are in [0, 1], and are shown in percent.
    """
    unit = " (%)" if share else ""
    with _style():
        figure = _figure(3.1)
        axes = figure.subplots()
        _plot_points(axes, others, "o", share, color=MUTED, label="candidate", alpha=0.5)
        _plot_points(
            axes,
            sorted(front),
            "o-",
            share,
            color=SERIES[1],
            label="Pareto front",
            drawstyle="steps-pre",
        )
        if champion is not None:
            _plot_points(
                axes, [champion], "*", share, color=SERIES[0], label="champion", markersize=11
            )
        axes.set(xlabel=f"validation {score}{unit}", ylabel=f"under attack{unit}")
        axes.grid()
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def _plot_points(
    axes: Axes, points: Sequence[tuple[float, float]], form: str, share: bool, **options: Any
) -> None:
    if points:
        rows = [_scaled(point, share) for point in points]
        axes.plot(*zip(*rows, strict=True), form, **options)


# Marker and index of the colour by fate: the shapes tell the fates apart without colours.
_FATES = {
    "rejected": ("x", 7),
    "failed": ("+", 6),
    "diverged": ("v", 4),
    "stopped": ("s", 3),
    "trained": ("o", 1),
    "finalist": ("D", 2),
    "champion": ("*", 0),
}


def plane_figure(points: Sequence[tuple[float, float, str]]) -> Figure:
    """Draw each candidate by learning drive A and collapse rate B, with its fate.

    The axes are linear around 0 and logarithmic beyond, because candidates differ by orders of
    magnitude.

    Args:
        points: (A, B, fate), with finite A and B.
    """
    with _style():
        figure = _figure(3.4)
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, linewidth=0.7)
        axes.axhline(0, color=MUTED, linewidth=0.7)
        for fate, (marker, index) in _FATES.items():
            drives = [drive for drive, _, own in points if own == fate]
            rates = [rate for _, rate, own in points if own == fate]
            if not drives:
                continue
            size = {"champion": 11.0, "rejected": 5.0}.get(fate, 5.5)
            label = f"{fate} ({len(drives)})"
            axes.plot(
                drives, rates, marker, color=SERIES[index], markersize=size, label=label, alpha=0.85
            )
        _stretch(axes, "x", np.array([drive for drive, _, _ in points]))
        _stretch(axes, "y", np.array([rate for _, rate, _ in points]))
        axes.set(xlabel="learning drive A", ylabel="collapse rate B")
        axes.grid()
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def _stretch(axes: Axes, axis: Literal["x", "y"], values: NDArray[np.float64]) -> None:
    """Make an axis linear up to the typical size of the values, and logarithmic beyond."""
    from matplotlib.ticker import FuncFormatter

    sizes = np.abs(values[values != 0])
    typical = float(np.median(sizes)) if sizes.size else 1.0
    threshold = 10.0 ** round(math.log10(typical))
    line = axes.xaxis if axis == "x" else axes.yaxis
    (axes.set_xscale if axis == "x" else axes.set_yscale)("symlog", linthresh=threshold)
    # The scale's own labels are formulas, which are not parsed here.
    line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def calibration_figure(
    rows: Sequence[tuple[str, Sequence[tuple[int, int, float]], Accuracies]],
) -> Figure:
    """Draw the reliability diagram of each loss, and its calibration error by seed.

    Args:
        rows: (loss, (images, right answers, sum of confidences) by bin, calibration errors). The
            bins may be empty, if they are not known.
    """
    with _style():
        binned = any(bins for _, bins, _ in rows)
        figure = _figure(max(2.9 if binned else 1.5, 0.75 + 0.4 * len(rows)))
        columns = 2 if binned else 1
        grid = figure.subplots(1, columns, squeeze=False)
        _plot_seeds(grid[0, 0], [(loss, _scaled(errors, True)) for loss, _, errors in rows])
        grid[0, 0].set_xlabel("expected calibration error (%)")
        if binned:
            axes = grid[0, 1]
            axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.7, dashes=(4, 2))
            for index, (_, bins, _) in enumerate(rows):
                known = [(n, right, total) for n, right, total in bins if n]
                axes.plot(
                    [100 * total / n for n, _, total in known],
                    [100 * right / n for n, right, _ in known],
                    "o-",
                    color=_series(index),
                    markersize=3,
                    linewidth=1.1,
                    zorder=3 - 0.1 * index,
                )
            axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 102), ylim=(0, 102))
            axes.grid()
    return figure


_MOST_WRITTEN = 12
_LONGEST_NAME = 14  # characters of the name of a class


def confusion_figure(
    tables: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str] = ()
) -> Figure:
    """Draw confusion matrices side by side, each row in percent of its class.

    The numbers are written for up to 12 classes.

    Args:
        tables: number of images by class (rows) and named class (columns), by loss.
        classes: the names of the classes in the order of the labels; empty if they have none.
    """
    from matplotlib.patches import Rectangle

    with _style():
        figure = _figure(0.7 + 3.4 * 2 / max(len(tables), 2))
        panels = figure.subplots(1, max(len(tables), 2), squeeze=False)[0]
        for axes in panels[len(tables) :]:
            axes.set_visible(False)
        for axes, (index, (loss, table)) in zip(panels, enumerate(tables.items()), strict=False):
            size = len(table)
            for row, counts in enumerate(table):
                total = sum(counts) or 1
                for column, count in enumerate(counts):
                    share = count / total
                    corner = (column - 0.5, row - 0.5)
                    axes.add_patch(
                        Rectangle(
                            corner, 1, 1, color=_series(index), alpha=0.6 * share, linewidth=0
                        )
                    )
                    if count and size <= _MOST_WRITTEN:
                        written = f"{100 * share:.0f}" if share >= 0.005 else "<1"
                        axes.text(column, row, written, ha="center", va="center", fontsize=7)
            axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
            if classes or size <= _MOST_WRITTEN:
                _name_classes(axes, classes or [str(label) for label in range(size)], index == 0)
            axes.set_title(loss)
            axes.set_xlabel("predicted class")
        panels[0].set_ylabel("true class")
    return figure


def _name_classes(axes: Axes, names: Sequence[str], first: bool) -> None:
    """Write the names of the classes along a confusion matrix; those of rows by the first one."""
    shown = [
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names
    ]
    font = 7 if len(shown) <= _MOST_WRITTEN else 5
    is_long = max(map(len, shown)) > 2
    axes.set_xticks(range(len(shown)), shown, rotation=90 if is_long else 0)
    axes.set_yticks(range(len(shown)), shown if first else [""] * len(shown))
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_fontsize(font)
        # A name of somebody's own may have signs that would begin a formula.
        label.set_parse_math(False)


def roc_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw ROC curves, with a logarithmic axis for the false positive rate.

    Good classifiers differ where that rate is small, which a linear axis does not show.

    Args:
        curves: false and true positive rates by loss, ascending.
    """
    with _style():
        figure = _figure(2.6)
        axes = figure.subplots()
        for index, (loss, (false, true)) in enumerate(curves.items()):
            shown = [(100 * x, 100 * y) for x, y in zip(false, true, strict=True) if x > 0]
            axes.plot(*zip(*shown, strict=True), color=_series(index), linewidth=1.1, label=loss)
        axes.set_xscale("log")
        axes.set_xticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="false positive rate (%)", ylabel="true positive rate (%)")
        axes.set(xlim=(0.01, 100), ylim=(None, 100.5))
        axes.grid()
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def _scaled(scores: Accuracies, share: bool) -> list[float]:
    """Return scores as they are drawn."""
    return [_shown(score, share) for score in scores]


def _shown(score: float, share: bool) -> float:
    """Return a score as it is drawn: a share in percent."""
    return 100 * score if share else score


def _mark_chance(axes: Axes, chance: float) -> None:
    """Draw a line at what chance reaches, in percent."""
    axes.axhline(chance, color=MUTED, linewidth=0.7, dashes=(1, 2))
    axes.annotate(
        "chance",
        (1, chance),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        color=MUTED,
    )


def attack_figure(
    attacks: Mapping[str, Mapping[str, Sequence[tuple[float, Accuracies]]]],
    losses: Sequence[str],
    unit: str = "L∞, pixels in [0, 1]",
) -> Figure:
    """Draw accuracy against the size of the perturbation: a panel per attack, a line per loss.

    Args:
        attacks: by attack and loss, the points (epsilon, accuracies in [0, 1] of the attacked
            networks).
        losses: all losses, in the order that gives them their colours.
        unit: of epsilon, in words, with the norm.
    """
    columns = min(len(attacks), 4)
    rows = -(-len(attacks) // columns)
    handles: dict[str, Line2D] = {}
    with _style():
        figure = _figure(0.5 + 1.9 * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(attacks) :]:
            axes.set_visible(False)
        for axes, (attack, points) in zip(grid.flat, attacks.items(), strict=False):
            handles |= _plot_attack(axes, points, losses)
            axes.set_title(attack)
        figure.supxlabel(f"perturbation ε ({unit})", fontsize=8, color=MUTED)
        grid[0, 0].set_ylabel("accuracy (%)")
        attacked = [loss for loss in losses if loss in handles]
        figure.legend(
            [handles[loss] for loss in attacked],
            attacked,
            loc="outside upper center",
            ncols=min(len(attacked), 4),
        )
    return figure


def bands_figure(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Accuracies]]]],
    losses: Sequence[str],
    across: str,
) -> Figure:
    """Draw the mean accuracy over networks, in a band from the lowest to the highest one.

    Args:
        panels: by title of a panel and loss, the points (x, accuracies in [0, 1] of the networks).
        losses: all losses, in the order that gives them their colours.
        across: what x is, in words.
    """
    handles: dict[str, Line2D] = {}
    with _style():
        figure = _figure(2.6)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, points) in zip(grid, panels.items(), strict=True):
            handles |= _plot_bands(axes, points, losses)
            axes.set_title(title)
        lowest = min(axes.dataLim.y0 for axes in grid)
        # Nothing is drawn if no accuracy is finite.
        if math.isfinite(lowest):
            grid[0].set_ylim(10 * math.floor(lowest / 10) - 3, 103)
        figure.supxlabel(across, fontsize=8, color=MUTED)
        grid[0].set_ylabel("accuracy (%)")
        drawn = [loss for loss in losses if loss in handles]
        lines = [handles[loss] for loss in drawn]
        figure.legend(lines, drawn, loc="outside upper center", ncols=min(len(drawn), 4))
    return figure


def _plot_bands(
    axes: Axes, points: Mapping[str, Sequence[tuple[float, Accuracies]]], losses: Sequence[str]
) -> dict[str, Line2D]:
    """Draw mean, lowest and highest accuracy along x; return the line of each loss."""
    handles = {}
    for loss, by_x in points.items():
        index = losses.index(loss)
        scored = sorted((x, 100 * finite(values)) for x, values in by_x if finite(values).size)
        order = 3 - 0.1 * index
        handles[loss] = axes.plot(
            [x for x, _ in scored],
            [values.mean() for _, values in scored],
            color=_series(index),
            marker=_marker(index),
            markersize=3.5,
            zorder=order,
        )[0]
        axes.fill_between(
            [x for x, _ in scored],
            [values.min() for _, values in scored],
            [values.max() for _, values in scored],
            color=_series(index),
            alpha=0.18,
            linewidth=0,
            zorder=order - 0.05,
        )
    axes.grid(axis="y")
    return handles


def examples_figure(examples: Mapping[str, Sequence[Example]]) -> Figure:
    """Draw images above their magnified perturbations and attacked forms: a row for each loss.

    Args:
        examples: of the same images, by loss.
    """
    columns = max(map(len, examples.values()))
    with _style():
        figure = _figure(1.1 * (1 + len(examples)))
        grid = figure.subplots(1 + len(examples), 2 * columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for column, example in enumerate(next(iter(examples.values()))):
            _show_picture(grid[0, 2 * column], example.clean, f"class {example.found.label}")
        for row, (loss, shown) in enumerate(examples.items(), start=1):
            grid[row, 0].annotate(
                loss,
                (-0.1, 0.5),
                xycoords="axes fraction",
                rotation=90,
                ha="right",
                va="center",
                fontsize=7,
            )
            for column, example in enumerate(shown):
                _show_picture(grid[row, 2 * column], example.change, "change × 10")
                _show_picture(grid[row, 2 * column + 1], example.attacked, taken_for(example))
    return figure


def _show_picture(axes: Axes, picture: str, title: str) -> None:
    """Show a PNG in Base64 with a title."""
    from matplotlib import image

    pixels = image.imread(io.BytesIO(base64.b64decode(picture)), format="png")
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=6.5, pad=2)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG on white, for pages of other systems."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with _style():
        canvas: Any = FigureCanvasAgg(figure)
        _lay_out(figure, _DOTS_PER_INCH, "white")
        canvas.print_png(buffer)
    return buffer.getvalue()


def svg(figure: Figure, name: str, label: str) -> Markup:
    """Return a figure as an ``<svg>`` element that scales with the page.

    The element takes its colours from the style sheet. The same figure gives the same bytes.

    Args:
        figure: one of the figures of this module.
        name: keeps the ids of the element apart from those of other figures on the page.
        label: description for readers who do not see the figure.
    """
    text = _drawn(figure)
    # The page's style sheet has the rules of this one.
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"\s+xmlns(:\w+)?=\"[^\"]*\"", "", text[text.index("<svg") :], count=2)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    # Without width and height, the element is as wide as its place on the page.
    text = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", text, count=2)
    opening = Markup('<svg role="img" aria-label="{}"').format(label)
    text = text.replace("<svg", opening, 1)
    for color, custom_property in _PROPERTIES.items():
        text = text.replace(color, f"var({custom_property})")
    return Markup(text.strip())


def _drawn(figure: Figure) -> str:
    """Return a figure as an SVG file without a background and without metadata."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with _style():
        canvas: Any = FigureCanvasSVG(figure)
        # The unit of SVG is a point.
        _lay_out(figure, 72, "none")
        for axes in figure.axes:
            axes.patch.set_facecolor("none")
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        canvas.print_svg(buffer, metadata=no_metadata)
    return buffer.getvalue()


def _lay_out(figure: Figure, dots_per_inch: float, background: str) -> None:
    """Give a figure its background and its final layout.

    ``savefig`` would draw everything once more than is needed, to lay it out.
    """
    figure.dpi = dots_per_inch
    figure.patch.set_facecolor(background)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")


@dataclass(frozen=True)
class _Course:
    """Height and pull of a loss along p, divided by the size of the pull at chance.

    ``rest`` is the equilibrium confidence and the height there, if there is an equilibrium.
    """

    height: NDArray[np.float64]
    pull: NDArray[np.float64]
    rest: tuple[float, float] | None = None


def _course(theta: Sequence[float], num_classes: int, p: NDArray[np.float64]) -> _Course:
    """Compute the course of a Taylor loss at the probabilities ``p`` of the target."""
    chance = 1 / num_classes
    g = net_pull(theta, num_classes)
    # A loss without any pull at chance is divided by its largest pull, and the zero loss by 1.
    scale = abs(float(g(chance))) or float(np.max(np.abs(g(p)))) or 1.0
    fallen = g.integ(lbnd=chance)
    confidence = equilibrium_confidence(theta, num_classes)
    rest = None if confidence is None else (confidence, -float(fallen(confidence)) / scale)
    return _Course(-fallen(p) / scale, g(p) / scale, rest)


def _mark_rest(shape: Axes, pull: Axes, course: _Course, color: str) -> None:
    """Mark the equilibrium confidence of a loss on both of its curves."""
    if course.rest is None:
        return
    confidence, height = course.rest
    shape.plot([confidence], [height], "o", color=color)
    pull.plot([confidence], [0], "o", color=color)
    side, offset = ("right", -5) if confidence > 0.5 else ("left", 5)
    pull.annotate(
        f"p* = {confidence:.3f}",
        (confidence, 0),
        xytext=(offset, -11),
        textcoords="offset points",
        color=color,
        ha=side,
    )


def _frame_loss(
    axes: Axes, quantity: str, chance: float, curves: Sequence[NDArray[np.float64]]
) -> None:
    """Set limits and labels of the axes for curves, given from chance on, and mark chance."""
    values = np.concatenate([*curves, np.zeros(1)])
    margin = 0.1 * float(np.ptp(values)) or 1.0
    axes.set_ylim(float(values.min()) - margin, float(values.max()) + 2 * margin)
    axes.axvline(chance, color=MUTED, linewidth=0.7, dashes=(1, 2))
    axes.annotate(
        "chance",
        (chance, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        color=MUTED,
    )
    axes.set(
        xlabel="probability p of the target",
        ylabel=f"{quantity}, per pull at chance",
        xlim=(0, 1),
    )


def _plot_seeds(axes: Axes, rows: Sequence[tuple[str, Accuracies]]) -> None:
    """Draw the scores of each loss as dots, with their mean and sample standard deviation."""
    for index, (_, scores) in enumerate(rows):
        shown = finite(scores)
        if not shown.size:
            continue
        color = _series(index)
        heights = index + _spread(shown.size, 0.17)
        axes.plot(shown, heights, "o", color=color, alpha=0.55, markeredgewidth=0)
        mean = shown.mean()
        deviation = _deviation(shown)
        below = index + 0.34
        axes.plot([mean - deviation, mean + deviation], [below] * 2, color=color, linewidth=1.2)
        axes.plot([mean], [below], "|", color=color, markersize=7, markeredgewidth=1.6)
    axes.set_yticks(range(len(rows)), [loss for loss, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.5)
    axes.tick_params(axis="y", length=0)
    for index, tick in enumerate(axes.get_yticklabels()):
        tick.set_color(_series(index))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _plot_curves(axes: Axes, curves: Sequence[Sequence[tuple[int, float]]]) -> None:
    """Draw the learning curve of each loss; the first one lies on top."""
    for index, curve in enumerate(curves):
        steps = [step for step, _ in curve]
        scores = [score for _, score in curve]
        axes.plot(steps, scores, color=_series(index), zorder=3 - 0.1 * index)
    axes.set(xlabel="training step")
    axes.grid(axis="y")


def _plot_fitness(axes: Axes, scored: Sequence[tuple[int, NDArray[np.float64]]]) -> None:
    """Draw fitnesses by generation, their medians, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    numbers = [number for number, _ in scored]
    for number, percentages in scored:
        axes.plot(
            number + _spread(percentages.size, 0.22),
            percentages,
            "o",
            color=MUTED,
            alpha=0.5,
            markersize=3,
            markeredgewidth=0,
            label="candidate" if number == numbers[0] else None,
        )
    medians = [float(np.median(percentages)) for _, percentages in scored]
    best = np.maximum.accumulate([percentages.max() for _, percentages in scored])
    median_label = "median of the generation"
    axes.plot(numbers, medians, "s-", color=SERIES[1], markersize=3, label=median_label)
    axes.plot(numbers, best, "o-", color=SERIES[0], markersize=3, label="best so far")
    axes.set_xlabel("generation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")


def _plot_attack(
    axes: Axes,
    points: Mapping[str, Sequence[tuple[float, Accuracies]]],
    losses: Sequence[str],
) -> dict[str, Line2D]:
    """Draw mean and sample standard deviation by epsilon; return the line of each loss."""
    handles = {}
    for loss, by_epsilon in points.items():
        index = losses.index(loss)
        scored = [(epsilon, 100 * finite(accuracies)) for epsilon, accuracies in by_epsilon]
        scored = sorted((point for point in scored if point[1].size), key=lambda point: point[0])
        handles[loss] = axes.errorbar(
            [epsilon for epsilon, _ in scored],
            [percentages.mean() for _, percentages in scored],
            yerr=[_deviation(percentages) for _, percentages in scored],
            color=_series(index),
            marker=_marker(index),
            markersize=3,
            elinewidth=0.8,
            zorder=3 - 0.1 * index,
        )[0]
    axes.set_ylim(-3, 103)
    axes.grid(axis="y")
    return handles


def _series(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def _deviation(values: NDArray[np.float64]) -> float:
    """Return the sample standard deviation, and 0 for a single value."""
    return float(values.std(ddof=1)) if values.size > 1 else 0.0


def _spread(count: int, width: float) -> NDArray[np.float64]:
    """Return offsets within +-width that keep neighbours apart and are the same every time.

    They are the golden-ratio sequence.
    """
    if count == 1:
        return np.zeros(1)
    return width * (2 * ((np.arange(count, dtype=np.float64) * 0.6180339887) % 1) - 1)


def _figure(height: float) -> Figure:
    """Return an empty figure of this height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


@contextmanager
def _style() -> Iterator[None]:
    """Set the style of the report, whatever the user's own configuration of matplotlib says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield
