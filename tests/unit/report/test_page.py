"""The report: right numbers, an honest verdict, one page that loads nothing and trusts nobody."""

import dataclasses
import functools
import math
import re
import statistics
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from taylorglo.loss.dynamics import equilibrium_confidence, learning_drive
from taylorglo.report.figures import svg
from taylorglo.report.html import centred, expanded, formula
from taylorglo.report.page import (
    ChampionRecord,
    ComparisonRow,
    GenerationRecord,
    RobustnessRow,
    StandingRecord,
    SweepRecord,
    TuningRow,
    beats_standing,
    loss_figure,
    render,
    standing_verdict,
    table,
    verdict,
)

MNIST_THETA = [-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513]
NAN = math.nan


def row(loss: str, mean: float, champion: list[float] | None = None, n: int = 5) -> ComparisonRow:
    accuracies = [mean + 0.001 * (i - (n - 1) / 2) for i in range(n)]
    p = (
        None
        if champion is None
        else float(stats.ttest_ind(champion, accuracies, equal_var=False).pvalue)
    )
    return ComparisonRow(loss, 0.1, accuracies, [(100, mean - 0.1), (200, mean)], p)


def record(
    champion: float = 0.92, baselines: dict[str, float] | None = None, **changes: Any
) -> SweepRecord:
    first = row("champion", champion)
    others = {"cross-entropy": 0.91, "squared-error": 0.90} if baselines is None else baselines
    values = SweepRecord(
        name="digits",
        created="2025-11-23T18:40:12+00:00",
        settings={
            "seed": 3,
            "training_steps": 1500,
            "training_nesterov": True,
            "training_learning_rate": 0.1,
        },
        provenance={"source": "scikit-learn digits"},
        environment={"torch": "2.14.1"},
        num_classes=10,
        generations=[
            GenerationRecord(0, [0.1, 0.5, 0.6], 9, 5, 1, 0, 3, 12.5),
            GenerationRecord(1, [0.7, 0.9], 4, 1, 0, 1, 2, 10.0),
        ],
        champion=ChampionRecord(MNIST_THETA, 3, 0.9, 1, 12),
        tuning=[
            TuningRow("cross-entropy", rate, [a, a + 0.01])
            for rate, a in ((0.01, 0.8), (0.1, 0.9), (1.0, 0.7))
        ],
        comparison=[first, *(row(loss, mean, first.accuracies) for loss, mean in others.items())],
        robustness=[
            RobustnessRow(loss, attack, epsilon, [0.9 - 5 * epsilon, 0.92 - 5 * epsilon])
            for attack in ("fgsm", "worst")
            for loss in ("champion", "cross-entropy")
            for epsilon in (0.0, 0.05)
        ],
        seconds={"candidate training": 15.0, "final training": 12.0},
        wall_seconds=25.0,
        training_share=0.8,
        notes=[],
    )
    return dataclasses.replace(values, **changes)


@functools.cache
def default_page() -> str:
    return render(record())


def text(page: str) -> str:
    """What a reader of the page sees, in one line."""
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


class Structure(HTMLParser):
    """Collects ids and references, and checks that HTML elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br", "hr"):
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._attributes(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "xlink:href", "src"):
                self.references.append(value or "")
            self.references += re.findall(r"url\(([^)]*)\)", value or "")


def test_the_page_loads_nothing_and_is_well_formed() -> None:
    page = default_page()
    structure = Structure(page)
    assert not structure.open
    assert not structure.tags & {"script", "link", "iframe", "img", "object", "embed"}
    assert not re.search(r"https?://|@import|//[a-z]+\.", page)
    assert len(structure.ids) == len(set(structure.ids))
    assert structure.references
    assert {reference.removeprefix("#") for reference in structure.references} <= set(structure.ids)


def test_the_same_record_gives_the_same_bytes_in_another_process() -> None:
    values = record()
    again = "import sys; from test_report import record, render; sys.stdout.write(render(record()))"
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", again],
        cwd=Path(__file__).parent,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert run.stdout == render(values) == default_page()


def test_everything_from_outside_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>&\"'$x^$ _"
    values = record(
        name=evil,
        created=evil,
        settings={evil: evil},
        provenance={evil: evil},
        environment={evil: evil},
        notes=[evil],
        comparison=[dataclasses.replace(r, loss=evil + r.loss) for r in record().comparison],
        tuning=[TuningRow(evil, 0.1, [0.5])],
        robustness=[RobustnessRow("_" + evil, evil, 0.0, [0.5])],
        seconds={evil: 1.0},
    )
    page = render(values)
    structure = Structure(page)
    assert "img" not in structure.tags
    assert "<img" not in page
    assert text(page).count("<img src=x onerror=alert(1)>&\"'$x^$ _") >= 12


def test_the_comparison_shows_mean_deviation_n_difference_and_p() -> None:
    values = record()
    champion, baseline = values.comparison[:2]
    mean, deviation = statistics.mean(baseline.accuracies), statistics.stdev(baseline.accuracies)
    shown = f"{100 * mean:.2f} ± {100 * deviation:.2f}"
    assert shown == "91.00 ± 0.16"
    p = stats.ttest_ind(champion.accuracies, baseline.accuracies, equal_var=False).pvalue
    assert p < 0.001
    assert "cross-entropy 0.1 91.00 ± 0.16 5 −1.00 < 0.001 < 0.001" in text(default_page())
    lines = table(values).splitlines()
    assert lines[2].split() == ["champion", "0.1", "92.00", "±", "0.16", "5", "-", "-", "-"]
    assert lines[3].split() == [
        "cross-entropy",
        "0.1",
        shown[:5],
        "±",
        "0.16",
        "5",
        "-1.00",
        *["<", "0.001"] * 2,
    ]
    assert len({line.index("±") for line in lines[2:]}) == 1


def test_p_values_are_adjusted_by_holm() -> None:
    values = record(baselines={"a": 0.9, "b": 0.9, "c": 0.9})
    raw = {"a": 0.03, "b": 0.01, "c": 0.04}
    rows = [
        values.comparison[0],
        *(dataclasses.replace(r, p_value=raw[r.loss]) for r in values.comparison[1:]),
    ]
    lines = table(dataclasses.replace(values, comparison=rows)).splitlines()
    shown = {line.split()[0]: line.split()[-2:] for line in lines[3:]}
    # 3 x 0.01, then 2 x 0.03, then 1 x 0.04 raised to its forerunner
    assert shown == {"b": ["0.010", "0.030"], "a": ["0.030", "0.060"], "c": ["0.040", "0.060"]}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_raw_and_bonferroni(p_values: list[float]) -> None:
    from taylorglo.report.record import _holm

    adjusted = _holm([ComparisonRow("x", 0.1, [], [], p) for p in p_values])
    for raw, holm in zip(p_values, adjusted, strict=True):
        assert holm is not None
        assert raw <= holm <= min(1.0, max(holm, len(p_values) * raw))
    assert min(x for x in adjusted if x is not None) == min(1.0, len(p_values) * min(p_values))


def test_verdict_ahead() -> None:
    assert verdict(record()) == (
        "The champion is ahead of tuned cross-entropy, the best baseline, by 1.00 points "
        "(Holm-adjusted p < 0.001, n = 5)."
    )


def test_verdict_behind() -> None:
    assert verdict(record(champion=0.9, baselines={"cross-entropy": 0.91})) == (
        "The champion is behind tuned cross-entropy by 1.00 points (p < 0.001, n = 5)."
    )


def test_verdict_of_no_difference() -> None:
    values = record(champion=0.9102, baselines={"squared-error": 0.9, "label-smoothing": 0.91})
    best = values.comparison[2]
    assert best.p_value is not None
    assert best.p_value > 0.05
    assert verdict(values) == (
        "No significant difference: the champion is 0.02 points above tuned label-smoothing, the best baseline "
        f"(Holm-adjusted p = {best.p_value:.2f}, n = 5)."
    )
    assert verdict(values) in text(render(values)).replace("( ", "(")


def test_a_difference_that_correction_takes_away_is_none() -> None:
    values = record(baselines={"a": 0.91, "b": 0.90})
    rows = [
        values.comparison[0],
        *(dataclasses.replace(r, p_value=0.03) for r in values.comparison[1:]),
    ]
    assert verdict(dataclasses.replace(values, comparison=rows)).startswith(
        "No significant difference"
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "The champion has no test accuracy, so nothing can be said about it."),
        ([ComparisonRow("champion", 0.1, [NAN], [], None)], "The champion has no test accuracy"),
        (
            [ComparisonRow("champion", 0.1, [0.9], [], None)],
            "The champion reaches 90.00 %; there is no baseline",
        ),
        (
            [
                ComparisonRow("champion", 0.1, [0.9], [], None),
                ComparisonRow("ce", 0.1, [0.8], [], NAN),
            ],
            "No test was possible: the champion is 10.00 points above tuned ce (n = 1).",
        ),
        (
            [
                ComparisonRow("champion", 0.1, [0.9, 0.9, NAN], [], None),
                ComparisonRow("ce", 0.1, [0.9] * 3, [], 1.0),
            ],
            "No significant difference: the champion is 0.00 points above tuned ce (p = 1.00, n = 2 and 3).",
        ),
    ],
)
def test_verdict_without_enough_to_go_by(rows: list[ComparisonRow], expected: str) -> None:
    values = record(comparison=rows)
    assert verdict(values).startswith(expected)
    assert "nan" not in text(render(values)).lower()
    assert "nan" not in table(values)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("points", "p", "beats"),
    [(0.5, 0.01, True), (0.5, 0.049, True), (0.5, 0.05, False), (-0.5, 0.001, False)],
)
def test_the_standing_champion_is_beaten_by_a_significant_gain_alone(
    points: float, p: float, beats: bool
) -> None:
    ours = record().comparison[0].accuracies
    standing = StandingRecord("3", "digits.2", [accuracy - points / 100 for accuracy in ours], p)
    found = record(standing=standing)
    assert beats_standing(found) == beats
    sentence = standing_verdict(found)
    assert sentence.startswith(
        f"The new champion {'beats' if beats else 'does not beat'} the standing one (version 3, "
    )
    assert (
        f"0.50 points {'above' if points > 0 else 'below'} it (paired t-test, p = 0.0" in sentence
    )
    assert "n = 5 seeds" in sentence
    assert unescape(render(found)).count(sentence) == 1


def test_no_standing_champion_is_not_a_word() -> None:
    assert standing_verdict(record()) == ""
    assert not beats_standing(record())
    assert "standing" not in default_page()


def test_a_record_with_nothing_in_it_renders() -> None:
    empty = record(
        settings={}, provenance={}, environment={}, generations=[], tuning=[], comparison=[], robustness=[], seconds={},
        wall_seconds=NAN, training_share=NAN,
    )  # fmt: skip
    page = text(render(empty))
    for phrase in (
        "No generation was",
        "No network was attacked",
        "No baseline was tuned",
        "No loss was trained",
    ):
        assert phrase in page
    assert "nan" not in page.lower()


@pytest.mark.filterwarnings("error")
def test_generations_and_attacks_without_results_render() -> None:
    values = record(
        generations=[
            GenerationRecord(0, [], 30, 30, 0, 0, 0, 1.0),
            GenerationRecord(1, [NAN, math.inf], 9, 7, 2, 0, 0, NAN),
        ],
        robustness=[
            RobustnessRow("champion", "fgsm", 0.0, [NAN]),
            RobustnessRow("champion", "new", 0.1, [0.4]),
        ],
        seconds={"attack": NAN, "final training": 2.0},
    )
    assert values.generations[1].best is None
    page = text(render(values))
    assert "0 30 30 0 0 0 – – 1.0" in page
    assert "new champion – 40.00" in page
    assert "nan" not in page.lower()


def test_generations_are_summed_up() -> None:
    page = text(default_page())
    assert "0 9 5 1 0 3 60.00 50.00 12.5" in page
    assert "1 4 1 0 1 2 90.00 80.00 10.0" in page
    assert "all 13 6 1 1 5 90.00 22.5" in page


def test_accuracy_under_attack_is_shown_by_epsilon() -> None:
    assert "FGSM champion 91.00 ± 1.41 66.00 ± 1.41" in text(default_page())


def test_a_learning_rate_at_the_edge_of_its_grid_is_flagged() -> None:
    assert ", at the edge of the grid" not in text(default_page())
    rates = [
        TuningRow("cross-entropy", rate, [accuracy])
        for rate, accuracy in ((0.03, 0.9), (0.1, 0.95))
    ]
    assert "0.1, at the edge of the grid" in text(render(record(tuning=rates)))
    assert "0.1, the only one tried" in text(render(record(tuning=rates[1:])))


def test_shares_of_time() -> None:
    page = text(default_page())
    assert "candidate training 15.0 60.0" in page
    assert "final training 12.0 48.0" in page
    assert "all 25.0 100.0" in page  # of the wall time: stages may overlap
    assert "80 % of it was spent inside trainings" in page


def test_the_champion_is_written_out() -> None:
    page = default_page()
    assert "8.29 (<i>h</i> − 7.522)" in page
    assert "(<i>t</i> + 10.94)" in page
    drive, rest = learning_drive(MNIST_THETA, 10), equilibrium_confidence(MNIST_THETA, 10)
    assert rest is not None
    assert f"learning drive A {drive:.4g}" in text(page)
    meaning = f"{rest:.4g} pulls below it, pushes back above it, as label smoothing with α = {(1 - rest) / 0.9:.3f}"
    assert meaning in text(page)
    assert f"TaylorLoss({MNIST_THETA}, order=3)" in unescape(page)


@given(
    st.sampled_from([5, 8, 12]).flatmap(
        lambda length: st.lists(st.floats(-2, 2), min_size=length, max_size=length)
    )
)
def test_the_expanded_polynomial_is_the_same_up_to_terms_without_h(theta: list[float]) -> None:
    order = {5: 2, 8: 3, 12: 4}[len(theta)]

    def value(summands: list[tuple[float, str, bool]], t: float, h: float) -> float:
        total = 0.0
        for coefficient, monomial, _ in summands:
            factor = coefficient
            for letter, centre, at in (("t", theta[0], t), ("h", theta[1], h)):
                for bracket, power in re.findall(
                    rf"(\([^)]*)?<i>{letter}</i>[^<]*(?:<sup>(\d)</sup>)?", monomial
                ):
                    factor *= (at - (centre if bracket else 0)) ** int(power or 1)
            total += factor
        return total

    for t in (0.0, 1.0, 0.3):
        forms = (centred(theta, order), expanded(theta, order))
        one, other = ([value(form, t, h) for h in (0.0, 0.2, 1.0)] for form in forms)
        assert np.diff(one) == pytest.approx(np.diff(other), rel=1e-9, abs=1e-9)


def test_a_formula_leaves_out_zeros_and_greys_what_is_idle() -> None:
    assert formula([(0.0, "a", False)]).endswith("= 0</p>")
    shown = formula(expanded([0, 0, 2.0, -1.5, 0, 0, 0.5, 0], 3))
    assert (
        '<span class="term idle">2 <i>h</i></span> <span class="term">− 1.5 <i>h</i><sup>2</sup></span>'
        in shown
    )
    assert shown.count("<span") == 3


@pytest.mark.parametrize(
    ("theta", "classes"),
    [
        ([0.1, 0.2, 3, -1, 2.0], 2),
        (MNIST_THETA, 100),
        ([0.1, 0.2, 1, -0.5, 0.3, -0.2, 2, 1, 0.4, -0.3, 0.2, 0.1], 10),
        ([0.0] * 8, 3),
    ],
)
def test_champions_of_every_order_render(theta: list[float], classes: int) -> None:
    order = {5: 2, 8: 3, 12: 4}[len(theta)]
    champion = ChampionRecord(theta, order, 0.9, 0, 0)
    page = render(dataclasses.replace(record(), champion=champion, num_classes=classes))
    assert "nan" not in text(page).lower()


def test_in_the_figure_the_pull_is_minus_the_slope_of_the_loss_and_one_at_chance() -> None:
    figure = loss_figure(MNIST_THETA, 10)
    shape, pull = figure.axes
    for drawn, slope in zip(shape.lines[:2], (pull.lines[0], pull.lines[1]), strict=True):
        p, height = (np.asarray(values, dtype=float) for values in drawn.get_data())
        _, g = slope.get_data()
        inside = p > 0.1
        assert -np.gradient(height, p)[inside][1:-1] == pytest.approx(
            np.asarray(g)[inside][1:-1], rel=0.02, abs=2e-3
        )
        assert np.interp(0.1, p, height) == pytest.approx(0, abs=1e-3)
        assert np.interp(0.1, p, np.asarray(g)) == pytest.approx(1, rel=1e-2)
    rest = equilibrium_confidence(MNIST_THETA, 10)
    assert f"p* = {rest:.3f}" in svg(figure, "x", "a loss")


def test_figures_leave_matplotlib_as_it_was() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 23, "text.color": "#ff0000"}):
        before = dict(matplotlib.rcParams)
        drawn = svg(loss_figure({"a": MNIST_THETA}, 10), "x", "a loss")
        assert dict(matplotlib.rcParams) == before
    assert drawn == svg(loss_figure({"a": MNIST_THETA}, 10), "x", "a loss")


def test_importing_the_report_loads_neither_matplotlib_nor_torch() -> None:
    code = "import sys, taylorglo.report.page; sys.exit(bool({'matplotlib', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
