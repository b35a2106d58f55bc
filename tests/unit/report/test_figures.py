"""The figures: the curves that they draw, and their form as SVG."""

import itertools
import re
from importlib import resources

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sample_records import MNIST_THETA, example

from taylorglo.evaluation import comparison
from taylorglo.loss.dynamics import equilibrium_confidence
from taylorglo.report.figures import (
    MUTED,
    SERIES,
    attack_figure,
    bands_figure,
    examples_figure,
    loss_figure,
    search_figure,
    seeds_figure,
    svg,
    trade_off_figure,
)


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata())]


def test_the_pull_is_minus_the_slope_of_the_loss_and_one_at_chance() -> None:
    figure = loss_figure({"MNIST": MNIST_THETA}, 10)
    shape, pull = figure.axes
    for drawn, slope in zip(shape.lines[:2], pull.lines[:2], strict=True):
        p = np.asarray(xs(drawn))
        height = np.asarray(ys(drawn))
        g = np.asarray(ys(slope))
        inside = p > 0.1
        assert -np.gradient(height, p)[inside][1:-1] == pytest.approx(
            g[inside][1:-1], rel=0.02, abs=2e-3
        )
        assert np.interp(0.1, p, height) == pytest.approx(0, abs=1e-3)
        assert np.interp(0.1, p, g) == pytest.approx(1, rel=1e-2)
    rest = equilibrium_confidence(MNIST_THETA, 10)
    assert f"p* = {rest:.3f}" in svg(figure, "x", "a loss")


def test_cross_entropy_as_a_taylor_loss_is_drawn_on_cross_entropy() -> None:
    figure = loss_figure({"member": [0.0] * 8 + [0.5]}, 10)
    for axes in figure.axes:
        cross_entropy, taylor = axes.lines[:2]
        assert xs(taylor) == xs(cross_entropy)
        assert ys(taylor) == pytest.approx(ys(cross_entropy), rel=1e-12, abs=1e-12)


def test_the_equilibrium_of_a_loss_with_a_logarithm_is_marked() -> None:
    # g = 0.5/p - 1, so that p* = 0.5, and the pull at chance is 4. The loss falls by the integral
    # of g from chance on, 0.5 log(p/0.1) - (p - 0.1).
    figure = loss_figure({"a": [0.0] * 5 + [-1.0, 0.0, 0.0, 0.5]}, 10)
    shape, pull = figure.axes
    marks = [line for line in shape.lines if line.get_marker() == "o"]
    assert [(xs(mark), ys(mark)) for mark in marks] == [
        (pytest.approx([0.5]), pytest.approx([-(0.5 * np.log(5) - 0.4) / 4]))
    ]
    assert [xs(line) for line in pull.lines if line.get_marker() == "o"] == [pytest.approx([0.5])]


def test_losses_have_colours_of_their_own_and_a_legend() -> None:
    figure = loss_figure({"a": MNIST_THETA, "b": [0.0] * 8}, 10)
    shape = figure.axes[0]
    colours = {line.get_label(): line.get_color() for line in shape.lines}
    assert (colours["cross-entropy"], colours["a"], colours["b"]) == (MUTED, *SERIES[:2])
    legend = shape.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["cross-entropy", "a", "b"]


def test_seeds_are_dots_with_mean_and_deviation() -> None:
    (axes,) = seeds_figure([("a", [0.8, 0.9], []), ("b", [float("nan")], [])]).axes
    dots, deviation, mean = axes.lines
    assert xs(dots) == pytest.approx([80, 90])
    assert xs(deviation) == pytest.approx([85 - 50**0.5, 85 + 50**0.5])
    assert xs(mean) == pytest.approx([85])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]


def test_learning_curves_are_drawn_if_there_are_any() -> None:
    figure = seeds_figure([("a", [0.8], [(10, 0.5), (20, 0.6)]), ("b", [0.7], [])])
    curves = figure.axes[1]
    assert xs(curves.lines[0]) == [10, 20]
    assert ys(curves.lines[0]) == pytest.approx([50, 60])


def test_the_search_is_drawn_whole_and_its_better_half_enlarged() -> None:
    nan = float("nan")
    figure = search_figure([(1, [0.5, 0.6]), (2, [nan]), (3, [0.4, nan, 0.9])], 10)
    whole, upper = figure.axes
    lines = {line.get_label(): line for line in whole.lines}
    assert xs(lines["best so far"]) == [1, 3]
    assert ys(lines["best so far"]) == pytest.approx([60, 90])
    assert ys(lines["median of the generation"]) == pytest.approx([55, 65])
    # The median of all is 55, the best is 90.
    assert upper.get_ylim() == pytest.approx((55 - 0.08 * 35, 90 + 0.08 * 35))


def test_the_line_at_chance_is_drawn_if_there_is_a_chance() -> None:
    def at(num_classes: int | None) -> list[float]:
        whole, _ = search_figure([(1, [0.5, 0.6])], num_classes).axes
        return [
            ys(line)[0] for line in whole.lines if len(set(ys(line))) == 1 and xs(line) == [0, 1]
        ]

    assert at(10) == [10]
    assert at(None) == []


def test_a_loss_has_the_same_colour_under_every_attack() -> None:
    points = [(0.1, [0.4, 0.6]), (0.0, [0.9, 0.9])]
    figure = attack_figure({"one": {"b": points}, "two": {"b": points, "a": points}}, ["a", "b"])
    one, two = figure.axes
    assert [line.get_color() for line in one.lines] == [SERIES[1]]
    assert [line.get_color() for line in two.lines] == [SERIES[1], SERIES[0]]
    assert xs(one.lines[0]) == [0.0, 0.1]
    assert ys(one.lines[0]) == pytest.approx([90, 50])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_a_band_goes_from_the_lowest_to_the_highest_network() -> None:
    points = [(0.1, [0.4, 0.6, 0.35]), (0.0, [0.9, 0.9, np.nan])]
    panels = {"one": {"b": points}, "two": {"b": points, "a": points}}
    figure = bands_figure(panels, ["a", "b"], "strength")
    one, two = figure.axes
    assert [line.get_color() for line in two.lines] == [SERIES[1], SERIES[0]]
    assert len({line.get_marker() for line in two.lines}) == 2
    assert xs(one.lines[0]) == [0.0, 0.1]
    assert ys(one.lines[0]) == pytest.approx([90, 45])
    (band,) = one.collections
    corners = {(round(float(x), 6), round(float(y), 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(0.0, 90.0), (0.1, 35.0), (0.1, 60.0)}
    assert one.get_ylim() == two.get_ylim() == (27, 103)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_a_figure_of_bands_without_any_number_is_drawn() -> None:
    figure = bands_figure({"one": {"a": [(0.0, [np.nan])]}}, ["a"], "strength")
    assert "accuracy" in svg(figure, "x", "nothing")


def test_attacked_images_have_a_row_for_each_loss_and_their_words() -> None:
    shown = [example(117, 0.05), example(4, None)]
    figure = examples_figure({"champion": shown, "cross-entropy": shown})
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    row = ["change × 10", "taken for 5 at 0.05", "change × 10", "withstands all"]
    assert titles == ["class 3", "class 3", *row, *row]
    words = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert words == {"champion", "cross-entropy"}


def test_a_champion_and_all_baselines_have_colours_of_their_own_and_room_for_their_names() -> None:
    names = ["champion", *comparison.NAMES.values()]
    (seeds,) = seeds_figure([(name, [0.5], []) for name in names]).axes
    assert len({tick.get_color() for tick in seeds.get_yticklabels()}) == len(names)
    for number in range(1, len(names) + 1):
        lines = {name: [(0.0, [0.9]), (0.1, [0.5])] for name in names[:number]}
        figure = attack_figure(dict.fromkeys(("a", "b", "c", "d"), lines), names[:number])
        figure.canvas.draw()
        (legend,) = figure.legends
        extent = legend.get_window_extent()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.x1


def test_an_svg_follows_the_style_sheet_and_keeps_its_ids_apart() -> None:
    drawn = svg(loss_figure({"a": MNIST_THETA}, 10), "loss", 'a "loss" <b>')
    assert drawn.startswith('<svg role="img" aria-label="a &#34;loss&#34; &lt;b&gt;" viewBox=')
    assert not any(colour in drawn for colour in (MUTED, *SERIES))
    assert "var(--series-0)" in drawn
    assert 'id="loss-' in drawn
    assert "xmlns" not in drawn
    assert "<style" not in drawn


def test_text_in_a_figure_is_escaped() -> None:
    drawn = svg(seeds_figure([("<script>&", [0.5], [])]), "seeds", "seeds")
    assert "<script" not in drawn
    assert "&lt;script&gt;&amp;" in drawn


def test_figures_leave_matplotlib_as_it_was() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 23, "text.color": "#ff0000"}):
        before = dict(matplotlib.rcParams)
        drawn = svg(loss_figure({"a": MNIST_THETA}, 10), "x", "a loss")
        assert dict(matplotlib.rcParams) == before
    assert drawn == svg(loss_figure({"a": MNIST_THETA}, 10), "x", "a loss")


def test_scores_that_are_no_shares_are_drawn_as_they_are_and_without_chance() -> None:
    whole, upper = search_figure([(1, [-3.0, -1.0])], None, "log likelihood", share=False).axes
    assert {y for line in whole.lines for y in ys(line)} == {-3.0, -2.0, -1.0}
    assert whole.get_ylabel() == "fitness: validation log likelihood"
    assert [text.get_text() for text in (*whole.texts, *upper.texts)] == []
    dots, curve = seeds_figure(
        [("champion", [-0.5, -0.25], [(1, -2.0), (2, -1.0)])], "log likelihood", share=False
    ).axes
    assert sorted(xs(dots.lines[0])) == [-0.5, -0.25]
    assert ys(curve.lines[0]) == [-2.0, -1.0]
    assert dots.get_xlabel() == "test log likelihood"


def test_the_front_is_a_line_through_its_candidates_in_their_order() -> None:
    figure = trade_off_figure([(0.5, 0.1), (0.6, 0.2)], [(0.9, 0.3), (0.7, 0.4)], (0.9, 0.3))
    (axes,) = figure.axes
    others, front, champion = axes.lines
    assert list(zip(xs(others), ys(others), strict=True)) == [(50, 10), (60, 20)]
    assert list(zip(xs(front), ys(front), strict=True)) == [(70, 40), (90, 30)]
    assert (xs(champion), ys(champion)) == ([90], [30])
    # To the left of a candidate, nothing above it was reached.
    assert front.get_drawstyle() == "steps-pre"
    assert axes.get_xlabel() == "validation accuracy (%)"
    (axes,) = trade_off_figure([], [(1.5, 0.3)], None, "score", share=False).axes
    (only,) = axes.lines
    assert (xs(only), ys(only), axes.get_ylabel()) == ([1.5], [0.3], "under attack")


# Of Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009, severity 1; they map linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
# From linear sRGB to XYZ, divided by the white point D65.
XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])


def linear(color: str) -> NDArray[np.float64]:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return CIE L*a*b* of a colour in linear RGB."""
    x, y, z = XYZ @ np.clip(rgb, 0, 1)
    fx, fy, fz = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def palettes() -> list[tuple[str, list[str]]]:
    """Return the paper and the colours of the light theme, and those of the dark one."""
    page = resources.files("taylorglo.report").joinpath("page.html.jinja").read_text()
    colors = re.findall(r"--series-\d: (#[0-9a-f]{6});", page)
    papers = re.findall(r"--paper: (#[0-9a-f]{6});", page)
    half = len(SERIES)
    assert (len(papers), len(colors)) == (2, 2 * half)
    assert tuple(colors[:half]) == SERIES
    return [(papers[0], colors[:half]), (papers[1], colors[half:])]


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_of_losses_differ_for_every_vision(vision: str) -> None:
    for _, colors in palettes():
        seen = [lab(VISION[vision] @ linear(color)) for color in colors]
        for (i, one), (j, other) in itertools.combinations(enumerate(seen), 2):
            # A difference of 2.3 is just noticeable. The usual sweep has the first four losses.
            least = 20 if max(i, j) < 4 else 15
            assert np.linalg.norm(one - other) > least, (colors[i], colors[j])


def test_the_colours_stand_out_against_the_paper() -> None:
    """WCAG 2.1, 1.4.11: graphics have a contrast of 3 to 1 at least."""
    for paper, colors in palettes():
        for color in colors:
            dark, light = sorted(float(XYZ[1] @ linear(each)) for each in (paper, color))
            assert (light + 0.05) / (dark + 0.05) >= 3, color
