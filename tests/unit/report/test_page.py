"""The page of the report: it loads nothing, it escapes everything, and it shows every number."""

import dataclasses
import functools
import math
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sample_records import (
    MNIST_THETA,
    PICTURE,
    attacked_record,
    champion_of,
    example,
    record,
    robustness,
    row,
)

from taylorglo.attacks import SUITES
from taylorglo.loss.dynamics import equilibrium_confidence, learning_drive
from taylorglo.report.page import render
from taylorglo.report.record import (
    CandidateRecord,
    Fate,
    GenerationRecord,
    Savings,
    StandingRecord,
    TradeOff,
    TuningRow,
)
from taylorglo.report.verdict import standing_verdict, verdict
from taylorglo.results import EPSILON_UNIT, Counts, Guessing

NAN = math.nan


@functools.cache
def default_page() -> str:
    return render(record())


@functools.cache
def attacked_page() -> str:
    return render(attacked_record())


# Nearly all of the time of a page goes into its figures, so a test draws those that it is about.
NO_FIGURES: dict[str, Any] = {"generations": [], "comparison": [], "robustness": []}


def short(**changes: Any) -> str:
    """Return the page of a record in which there is no figure but that of the loss."""
    return render(record(**NO_FIGURES | changes))


def text(page: str) -> str:
    """Return what a reader of the page sees, in one line."""
    body = page[page.index("<body>") :]
    return one_line(unescape(re.sub(r"<[^>]+>", " ", body)))


def one_line(text: str) -> str:
    return " ".join(text.split())


def formulas(theta: list[float]) -> list[str]:
    """Return the formulas on the page of a champion, as HTML in one line."""
    page = short(champion=champion_of(theta))
    return [one_line(f) for f in re.findall(r'<p class="formula">(.*?)</p>', page, re.DOTALL)]


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
        if tag not in ("meta", "br", "hr", "img"):
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
    assert page.startswith("<!DOCTYPE html>")
    structure = Structure(page)
    assert not structure.open
    assert not structure.tags & {"script", "link", "iframe", "img", "object", "embed"}
    assert not re.search(r"https?://|@import|//[a-z]+\.", page)
    assert len(structure.ids) == len(set(structure.ids))
    assert structure.references
    assert {reference.removeprefix("#") for reference in structure.references} <= set(structure.ids)


def test_the_same_record_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import sys; from sample_records import record; from taylorglo.report.page import render; "
        "sys.stdout.write(render(record()))"
    )
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert run.stdout == render(record()) == default_page()


def test_every_value_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script>&\"'$x^$ _{{ 6 * 7 }}"
    standing = StandingRecord("evil" + evil, evil, [0.9] * 5, 0.01)
    values = record(
        name=evil,
        created=evil,
        settings={evil: evil},
        provenance={evil: evil},
        environment={evil: evil},
        notes=[evil],
        comparison=[dataclasses.replace(r, loss=evil + r.loss) for r in record().comparison],
        tuning=[TuningRow(evil, 0.1, [0.5])],
        robustness=[robustness("_" + evil, evil, 0.0, [0.5])],
        seconds={evil: 1.0},
        standing=standing,
    )
    page = render(values)
    structure = Structure(page)
    assert not structure.open
    assert not structure.tags & {"img", "script"}
    assert "<img" not in page
    assert "<script" not in page
    assert text(page).count(evil) >= 20
    assert one_line(standing_verdict(values)) in text(page)


def test_the_verdict_stands_on_the_page() -> None:
    assert verdict(record()) in text(default_page())
    for accuracy in (0.9102, 0.9):
        values = record(accuracy, generations=[], robustness=[])
        assert verdict(values) in text(render(values))


def test_the_headline_shows_accuracies_candidates_and_time() -> None:
    page = text(default_page())
    assert "Champion, test accuracy 92.00 % ± 0.16, n = 5 Best baseline" in page
    assert "Best baseline 91.00 % ± 0.16, n = 5, cross-entropy Candidates trained" in page
    assert "Candidates trained 5 of 13 drawn, 2 generations" in page
    assert "Wall time 25.0 s 80 % of it inside trainings" in page


def test_the_comparison_shows_mean_deviation_n_difference_and_p() -> None:
    assert "cross-entropy 0.1 91.00 ± 0.16 5 −1.00 < 0.001 < 0.001" in text(default_page())


def test_curves_are_mentioned_if_there_are_any() -> None:
    assert "validation accuracy while training" in text(default_page())
    rows = [dataclasses.replace(r, curve=[]) for r in record().comparison]
    assert "validation accuracy while training" not in text(short(comparison=rows))


def test_the_standing_champion_is_mentioned_if_there_is_one() -> None:
    assert "standing" not in default_page()
    standing = StandingRecord("3", "digits.2", [0.91] * 5, 0.01)
    values = record(standing=standing, generations=[], robustness=[])
    assert text(render(values)).count(standing_verdict(values)) == 1


def test_notes_are_listed() -> None:
    assert "<aside>" not in default_page()
    page = short(notes=["first & foremost", "second"])
    assert "<li>first &amp; foremost</li>" in page
    assert "<li>second</li>" in page


def test_a_record_with_nothing_in_it_renders() -> None:
    empty = record(
        settings={},
        provenance={},
        environment={},
        generations=[],
        tuning=[],
        comparison=[],
        robustness=[],
        seconds={},
        wall_seconds=NAN,
        training_share=NAN,
    )
    page = text(render(empty))
    for phrase in (
        "No generation was",
        "No network was attacked",
        "No baseline was tuned",
        "No loss was trained",
    ):
        assert phrase in page
    assert page.count("None recorded") == 3
    assert "nan" not in page.lower()


@pytest.mark.filterwarnings("error")
def test_generations_and_attacks_without_results_render() -> None:
    page = text(
        short(
            generations=[
                GenerationRecord(0, [], 30, 30, 0, 0, 0, 1.0),
                GenerationRecord(1, [NAN, math.inf], 9, 7, 2, 0, 0, NAN),
            ],
            comparison=record().comparison,
            robustness=[
                robustness("champion", "fgsm", 0.0, [NAN]),
                robustness("champion", "new", 0.1, [0.4]),
            ],
            seconds={"attack": NAN, "final training": 2.0},
        )
    )
    assert "0 30 30 0 0 0 – – 1.0" in page
    assert "new champion – 40.00" in page
    assert "nan" not in page.lower()


def test_generations_are_summed_up() -> None:
    page = text(default_page())
    assert "0 9 5 1 0 3 60.00 50.00 12.5" in page
    assert "1 4 1 0 1 2 90.00 80.00 10.0" in page
    assert "all 13 6 1 1 5 90.00 22.5" in page


def test_accuracy_under_attack_is_shown_by_epsilon() -> None:
    page = text(default_page())
    assert "attack loss ε = 0 ε = 0.05" in page
    assert "FGSM champion 91.00 ± 1.41 66.00 ± 1.41 cross-entropy 91.00" in page
    assert "over n = 2 attacked networks" in page
    rows = [robustness("champion", "fgsm", 0.1, [0.5] * n) for n in (3, 1)]
    assert "over n = 1 to 3 attacked networks" in text(short(robustness=rows))


def test_the_chosen_learning_rate_is_in_bold() -> None:
    assert re.findall(r"<b>(.*?)</b>", default_page()) == ["90.50 ± 0.71"]


def test_a_learning_rate_at_the_edge_of_its_grid_is_flagged() -> None:
    assert ", at the edge of the grid" not in text(default_page())
    rates = [
        TuningRow("cross-entropy", rate, [accuracy])
        for rate, accuracy in ((0.03, 0.9), (0.1, 0.95))
    ]
    assert "0.1, at the edge of the grid" in text(short(tuning=rates))
    assert "0.1, the only one tried" in text(short(tuning=rates[1:]))


def test_label_smoothing_has_a_row_for_each_alpha_and_one_choice() -> None:
    name = "label-smoothed cross-entropy"
    accuracies = {(0.1, 0.05): 0.8, (0.1, 0.2): 0.82, (1.0, 0.05): 0.84, (1.0, 0.2): 0.81}
    rows = [
        TuningRow(name, rate, [accuracy], alpha) for (rate, alpha), accuracy in accuracies.items()
    ]
    page = short(tuning=rows)
    shown = text(page)
    chosen = f"{name}, α = 0.05 80.00 84.00 1, at the edge of the grid"
    most_frequent = "always the most frequent class 10.00 10.00"
    assert f"{chosen} {name}, α = 0.2 82.00 81.00 – {most_frequent} Where the time" in shown
    assert re.findall(r"<b>(.*?)</b>", page) == ["84.00"]
    # The contender that was compared decides, if there is one.
    compared = dataclasses.replace(row(name, 0.9), learning_rate=0.1, label_smoothing=0.2)
    champion = record().comparison[0]
    page = short(tuning=rows, comparison=[champion, compared])
    assert re.findall(r"<b>(.*?)</b>", page) == ["82.00"]
    # A single alpha is not mentioned.
    assert "α = 0.05" not in text(short(tuning=rows[::2]))


def test_a_baseline_without_finite_accuracies_has_no_chosen_rate() -> None:
    rows = [TuningRow("baikal", rate, [NAN]) for rate in (0.1, 1.0)]
    assert "baikal – – – always the most frequent" in text(short(tuning=rows))


def test_the_most_frequent_class_is_in_every_table_of_accuracies() -> None:
    shown = text(render(record(guessing=Guessing(accuracy=0.1, images=360, share=0.3))))
    # The comparison, the generations and the tuning go by the score, the attacks by the accuracy.
    assert "always the most frequent class – 10.00 – −82.00 – –" in shown
    assert shown.count("always the most frequent class 10.00 10.00") == 2
    assert shown.count("always the most frequent class 10.00 10.00 10.00") == 1
    assert shown.count("always the most frequent class 30.00 30.00") == 1


def test_the_most_frequent_class_is_in_no_table_if_it_is_not_known_what_naming_it_reaches() -> None:
    settings = {"evaluation_score": "log likelihood", "training_function": "mine:train"}
    values = record(-0.5, settings=settings, guessing=None, robustness=[])
    shown = text(render(dataclasses.replace(values, not_attacked="Nothing was attacked: why.")))
    assert "most frequent class" not in shown
    assert "Nothing was attacked: why." in shown
    # The one share that is left is that of the time.
    assert "(%)" not in shown
    assert "champion. p (Holm): p, adjusted for the number of baselines. The verdict above" in shown


def test_the_unit_of_epsilon_is_named() -> None:
    assert "Accuracy (%) by ε (L∞, pixels in [0, 1])" in text(default_page())
    provenance = {EPSILON_UNIT: "standard deviations"}
    attacked = record().robustness
    page = text(short(provenance=provenance, robustness=attacked))
    assert "Accuracy (%) by ε (L∞, standard deviations)" in page
    assert "perturbation ε (L∞, standard deviations)" in page
    assert "pixels in [0, 1]" not in page
    settings = {**record().settings, "attack_norm": "l2"}
    in_l2 = text(short(settings=settings, robustness=attacked[:1]))
    assert "Accuracy (%) by ε (L2, pixels in [0, 1])" in in_l2


def test_attacks_that_may_have_gone_astray_are_named() -> None:
    assert "Suspect" not in text(default_page())
    sign = "champion (n = 2): the gradient is exactly 0 for <40%> of the images"
    page = text(short(suspicions=[sign], robustness=record().robustness[:1]))
    assert "may be weaker than the table says" in page
    assert sign in page


def test_the_worst_of_all_attacks_is_drawn_and_its_numbers_are_read_aloud() -> None:
    (label,) = re.findall(r'aria-label="(Accuracy under the worst[^"]*)"', default_page())
    assert label == (
        "Accuracy under the worst of all attacks by ε: champion 66.0 % at 0.05 (65.0 to 67.0, "
        "n = 2); cross-entropy 66.0 % at 0.05 (65.0 to 67.0, n = 2)"
    )
    shown = text(default_page())
    assert "the mean over n = 2 networks per loss, in a band from the lowest to the" in shown
    # Without such a row there is no such figure, and the others are there.
    rows = [robustness("champion", "fgsm", 0.1, [0.5])]
    page = short(robustness=rows)
    assert "under the worst" not in page
    assert "FGSM champion 50.00" in text(page)


def test_corruptions_are_shown_by_their_mean_over_strengths_and_networks() -> None:
    page = text(attacked_page())
    assert "loss clean noise blur contrast mean" in page
    # Strengths 1 to 5 leave 0.9 - 0.3 and 0.8 - 0.3 in the mean.
    assert "champion 91.00 ± 1.41" + " 55.00 ± 7.07" * 4 in page
    assert "always the most frequent class" + " 10.00" * 5 in page
    label = r'aria-label="(Accuracy by strength of a corruption: noise champion 35.0 % at 5 [^"]*)"'
    assert re.search(label, attacked_page())
    assert "Accuracy with corruptions" not in default_page()


def test_corruptions_without_known_clean_accuracies_are_shown() -> None:
    rows = [robustness("a", "fgsm", 0.1, [0.5])]
    page = text(render(attacked_record(generations=[], robustness=rows)))
    assert "champion –" + " 55.00 ± 7.07" * 4 in page


def test_attacked_images_are_in_the_page_itself_and_described() -> None:
    page = attacked_page()
    structure = Structure(page)
    assert not structure.open
    sources = re.findall('<img src="([^"]*)"', page)
    assert sources == [f"data:image/png;base64,{PICTURE}"] * 10
    words = re.findall('alt="([^"]*)"', page)
    assert len(words) == 10
    assert words[0] == "test image 117, of class 3"
    assert "ten times the perturbation of test image 117" in words
    assert "test image 117, attacked: taken for 5 at 0.05" in words
    assert "test image 4, attacked: withstands all" in words
    assert "Attacked images" not in default_page()


def test_an_image_that_is_misclassified_without_an_attack_is_called_so() -> None:
    page = text(short(examples={"champion": [example(1, 0.0, 8)]}))
    assert "taken for 8 as it is" in page


def test_the_page_says_where_the_results_by_image_are() -> None:
    assert "s3://bucket/digits/attacked-images.parquet" in text(attacked_page())
    assert "found for each sample" not in text(default_page())


def test_every_attack_of_the_standard_suite_has_a_name_and_a_panel() -> None:
    rows = [
        robustness("champion", attack, epsilon, [0.9, 0.8])
        for attack in (*SUITES["standard"], "worst")
        for epsilon in (0.0, 8 / 255)
    ]
    page = text(short(robustness=rows))
    assert "ε = 0 ε = 8/255" in page
    for name in ("APGD, targeted DLR", "FAB, targeted", "Square", "worst of all"):
        assert f"{name} champion 85.00" in page


def test_shares_of_time() -> None:
    page = text(default_page())
    assert "candidate training 15.0 60.0" in page
    assert "final training 12.0 48.0" in page
    # The whole is the wall time, which is less than the sum if stages overlap.
    assert "all 25.0 100.0" in page
    assert "80 % of it was spent inside trainings" in page


def test_settings_and_provenance_are_listed() -> None:
    page = text(short(settings={"seed": 0, "nesterov": False, "root": ""}))
    assert "Settings seed 0 nesterov False root – Data source scikit-learn digits" in page


def test_the_champion_is_written_out() -> None:
    page = default_page()
    assert "8.29 (<i>h</i> − 7.522)" in one_line(page)
    assert "(<i>t</i> + 10.94)" in page
    drive = learning_drive(MNIST_THETA, 10)
    rest = equilibrium_confidence(MNIST_THETA, 10)
    assert rest is not None
    assert f"learning drive A {drive:.4g}" in text(page)
    meaning = (
        f"{rest:.4g} pulls below it, pushes back above it, as label smoothing with "
        f"α = {(1 - rest) / 0.9:.3f}"
    )
    assert meaning in text(page)


def test_the_page_says_how_to_use_the_champion() -> None:
    page = unescape(default_page())
    assert f"taylorglo.TaylorLoss({MNIST_THETA}, order=3)" in page
    assert "It was trained here with learning rate 0.1;" in text(default_page())
    assert "It was trained here;" in text(short())


def test_a_formula_leaves_out_zeros_and_greys_idle_terms() -> None:
    assert formulas([0.0] * 8) == ["<i>f</i>(<i>t</i>, <i>h</i>) = 0"]
    (formula,) = formulas([0, 0, 2.0, -1.5, 0, 0, 0.5, 0])
    idle = '<span class="term idle">2 <i>h</i></span>'
    assert f'{idle} <span class="term">− 1.5 <i>h</i><sup>2</sup></span>' in formula
    assert formula.count("<span") == 3


def test_a_champion_with_a_logarithm_is_written_out() -> None:
    centred, multiplied = formulas([0.5, 0, 0, 0, 0, 3.0, 0, 0, 0.25])
    logarithm = '<span class="term">+ 0.25 <i>t</i> log <i>h</i></span>'
    # The logarithm has no centres.
    assert centred.endswith(f"(<i>t</i> − 0.5)<i>h</i></span> {logarithm}")
    assert multiplied.endswith(f"<i>t</i><i>h</i></span> {logarithm}")
    page = text(short(champion=champion_of([0.0] * 5 + [1.0, 0.0, 0.0, 0.25])))
    assert "The five numbers that decide all of a training with one-hot targets" in page
    assert "h 2 + w t / h , up to a constant." in page
    # A = 1 + 0.25 * 10.
    assert "value 1 0 0 0 0.25 divided by | A | 0.2857 0 0 0 0.07143" in page
    assert "The four numbers that decide all of a training" in text(default_page())


def test_a_formula_may_begin_with_a_minus() -> None:
    (formula,) = formulas([0, 0, -2.0, 0, 0, 3.0, 0, 0])
    assert '= <span class="term idle">−2 <i>h</i></span>' in formula
    assert formula.endswith('<span class="term">+ 3 <i>t</i><i>h</i></span>')


@pytest.mark.parametrize(
    ("theta", "order", "classes"),
    [
        ([0.1, 0.2, 3, -1, 2.0], 2, 2),
        (MNIST_THETA, 3, 100),
        ([0.1, 0.2, 1, -0.5, 0.3, -0.2, 2, 1, 0.4, -0.3, 0.2, 0.1], 4, 10),
        ([0.0] * 8, 3, 3),
    ],
)
def test_champions_of_every_order_render(theta: list[float], order: int, classes: int) -> None:
    page = text(short(champion=champion_of(theta, order), num_classes=classes))
    assert ("The four numbers that decide" in page) == (order <= 3)
    assert "nan" not in page.lower()


def test_importing_the_report_loads_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys, taylorglo.report.page; "
        "sys.exit(bool({'matplotlib', 'scipy.stats', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_score_of_the_sweep_is_named_on_the_page() -> None:
    settings = {"evaluation_score": "balanced-accuracy"}
    page = render(record(settings=settings, robustness=[]))
    for words in (
        "Champion, test balanced accuracy",
        ">test balanced accuracy (%)</th>",
        "Test balanced accuracy: mean",
        "fitness: validation balanced accuracy (%)",
        "Validation balanced accuracy (%) by learning rate",
    ):
        assert words in page
    assert "test accuracy" not in page.lower()


def test_the_flow_counts_who_is_left_and_who_left() -> None:
    fates: list[Fate] = ["rejected", "rejected", "diverged", "trained", "finalist", "champion"]
    candidates = [CandidateRecord(1.0, 0.5, fate) for fate in fates]
    page = short(candidates=candidates, savings=Savings(60.0, 30.0, 0.0))
    flow = page[page.index('<ol class="flow">') : page.index("</ol>")]
    assert [int(n) for n in re.findall(r"<b>(\d+)</b>", flow)] == [6, 4, 3, 2, 1]
    assert "2 rejected" in flow
    assert "1 diverged" in flow
    assert "1 not among the best" in flow
    assert "The filters saved about 30.0 s, if each" in one_line(page)


def test_the_front_of_the_candidates_is_shown_if_they_were_attacked() -> None:
    settings = {
        **record().settings,
        "evaluation_adversarial_steps": 5,
        "evaluation_adversarial_epsilon": 8 / 255,
    }
    points = [
        TradeOff(0, 1, 0.8, 0.4, on_front=True, champion=False),
        TradeOff(1, 1, 0.9, 0.3, on_front=True, champion=True),
        TradeOff(2, 2, 0.7, 0.2, on_front=False, champion=False),
    ]
    page = short(settings=settings, trade_offs=points)
    assert (
        "Validation accuracy and the same under attack of 3 candidates. On the Pareto front: "
        "90.00 % and 30.00 %; 80.00 % and 40.00 %. The champion: 90.00 % and 30.00 %"
    ) in page
    assert "(FGSM and PGD of 5 steps, ε = 8/255)" in one_line(page)
    assert "is no candidate of the search" not in page
    none = [dataclasses.replace(point, champion=False) for point in points]
    page = short(settings=settings, trade_offs=none)
    assert "The champion is no candidate of the search." in one_line(page)
    assert "Pareto" not in default_page()


def test_confusion_and_roc_are_drawn_if_the_answers_are_known() -> None:
    known = Counts(
        confusion=[[9, 1], [2, 8]],
        reliability=[(20, 17, 17.0)],
        scores=[(3, 17), (17, 3)],
    )
    rows = [dataclasses.replace(row, counts=known) for row in record().comparison]
    page = short(comparison=rows, num_classes=2)
    # Right at 17 of 20 with 3 of 20 false: an area of 0.5 + 0.7 / 2.
    assert "area under the curve: champion 0.8500, cross-entropy 0.8500" in page
    assert "Confusion matrices on the test split: champion, cross-entropy" in page
    assert "Confusion" not in default_page()
    named = short(comparison=rows, num_classes=2, classes=("cat", "dog $x$"))
    assert ">cat<" in named
    assert ">dog $x$<" in named
    assert ">cat<" not in page
