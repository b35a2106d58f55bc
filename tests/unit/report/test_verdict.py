"""The verdict: an honest sentence, and a table with the right numbers."""

import dataclasses
import math
import statistics

import pytest
from sample_records import record
from scipy import stats

from taylorglo.report.page import render
from taylorglo.report.record import ComparisonRow, StandingRecord, SweepRecord
from taylorglo.report.text import NOTHING, mean_and_deviation
from taylorglo.report.verdict import (
    beats_guessing,
    beats_standing,
    comparison_cells,
    headline,
    losses,
    markdown,
    standing_verdict,
    table,
    verdict,
)
from taylorglo.results import Guessing
from taylorglo.stats import welch

NAN = math.nan


def test_the_table_shows_mean_deviation_n_difference_and_p() -> None:
    values = record()
    champion, baseline = values.comparison[:2]
    mean = statistics.mean(baseline.accuracies)
    deviation = statistics.stdev(baseline.accuracies)
    shown = f"{100 * mean:.2f} ± {100 * deviation:.2f}"
    assert shown == "91.00 ± 0.16"
    p = stats.ttest_ind(champion.accuracies, baseline.accuracies, equal_var=False).pvalue
    assert p < 0.001
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
    assert len({line.index("±") for line in lines[2:-1]}) == 1


def test_the_last_row_of_the_table_is_the_most_frequent_class() -> None:
    lines = table(record(guessing=Guessing(accuracy=0.1, images=360))).splitlines()
    words = ["always", "the", "most", "frequent", "class"]
    assert lines[-1].split() == [*words, "-", "10.00", "-", "-82.00", "-", "-"]
    alone = table(record(comparison=[], guessing=Guessing(accuracy=0.1, images=360)))
    assert alone.splitlines()[-1].split() == [*words, "-", "10.00", "-", "-", "-", "-"]


def test_p_values_are_adjusted_by_holm() -> None:
    values = record(baselines={"a": 0.9, "b": 0.9, "c": 0.9})
    raw = {"a": 0.03, "b": 0.01, "c": 0.04}
    rows = [
        values.comparison[0],
        *(dataclasses.replace(r, p_value=raw[r.loss]) for r in values.comparison[1:]),
    ]
    lines = table(dataclasses.replace(values, comparison=rows)).splitlines()
    shown = {line.split()[0]: line.split()[-2:] for line in lines[3:-1]}
    # 3 x 0.01, then 2 x 0.03, then 1 x 0.04, which is raised to the one before it.
    assert shown == {"b": ["0.010", "0.030"], "a": ["0.030", "0.060"], "c": ["0.040", "0.060"]}


def test_verdict_ahead() -> None:
    assert verdict(record()) == (
        "The champion is ahead of tuned cross-entropy, the best baseline, by 1.00 points "
        "(Holm-adjusted p < 0.001, n = 5)."
    )


def test_the_champion_may_be_a_baseline_itself() -> None:
    values = record(accuracy=0.91)
    own = dataclasses.replace(
        values, champion=values.champion.model_copy(update={"baseline": "cross-entropy"})
    )
    assert verdict(own) == (
        "The champion is tuned cross-entropy itself, the best baseline: "
        "the search found no better loss."
    )


def test_verdict_behind() -> None:
    assert verdict(record(accuracy=0.9, baselines={"cross-entropy": 0.91})) == (
        "The champion is behind tuned cross-entropy by 1.00 points (p < 0.001, n = 5)."
    )


@pytest.mark.parametrize(
    ("accuracy", "guessing", "learned"),
    [
        # Of 100 images, 60 are significantly more than half (p = 0.028), and 58 are not (0.067).
        (0.60, Guessing(accuracy=0.5, images=100), True),
        (0.58, Guessing(accuracy=0.5, images=100), False),
        # A champion that names the most frequent class has learned nothing, however good it looks.
        (0.95, Guessing(accuracy=0.95, images=360), False),
        (0.99, Guessing(accuracy=0.95, images=360), True),
        (1.00, Guessing(accuracy=1.0, images=360), False),
        (0.05, Guessing(accuracy=0.1, images=360), False),
    ],
)
def test_a_champion_has_to_beat_guessing(
    accuracy: float, guessing: Guessing, learned: bool
) -> None:
    values = record(accuracy=accuracy, guessing=guessing)
    assert beats_guessing(values) is learned
    first = f"The champion learned nothing: its test accuracy of {100 * accuracy:.2f}"
    assert verdict(values).startswith(first) is not learned
    if not learned:
        above = f"the {100 * guessing.accuracy:.2f} % of always naming the most frequent class. "
        comparison = verdict(record(accuracy=accuracy))
        assert verdict(values).partition(above)[2] in comparison


def test_a_champion_has_to_beat_the_best_guesses_of_macro_f1() -> None:
    """They are better than naming one class, which is what the last row of the table says."""
    guessing = Guessing(accuracy=0.0571, images=360, share=0.4, highest=0.1)
    macro = {"evaluation_score": "macro-f1"}
    lost = record(accuracy=0.11, guessing=guessing, settings=macro)
    assert not beats_guessing(lost)
    assert beats_guessing(record(accuracy=0.15, guessing=guessing, settings=macro))
    assert verdict(lost).startswith(
        "The champion learned nothing: its test macro F1 of 11.00 ± 0.16 % is not significantly "
        "above the 10.00 % that a network can expect which looks at no sample. "
    )
    assert table(lost).splitlines()[-1].split()[5:8] == ["-", "5.71", "-"]


def test_a_champion_without_an_accuracy_does_not_beat_guessing() -> None:
    assert not beats_guessing(record(comparison=[]))


def test_verdict_of_no_difference() -> None:
    values = record(accuracy=0.9102, baselines={"squared-error": 0.9, "label-smoothing": 0.91})
    best = values.comparison[2]
    assert best.p_value is not None
    assert best.p_value > 0.05
    assert verdict(values) == (
        "No significant difference: the champion is 0.02 points above tuned label-smoothing, "
        f"the best baseline (Holm-adjusted p = {best.p_value:.2f}, n = 5)."
    )


def test_a_difference_that_correction_takes_away_is_none() -> None:
    values = record(baselines={"a": 0.91, "b": 0.90})
    rows = [
        values.comparison[0],
        *(dataclasses.replace(r, p_value=0.03) for r in values.comparison[1:]),
    ]
    sentence = verdict(dataclasses.replace(values, comparison=rows))
    assert sentence.startswith("No significant difference")


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
            "No significant difference: the champion is 0.00 points above tuned ce "
            "(p = 1.00, n = 2 and 3).",
        ),
    ],
)
def test_verdict_without_enough_to_go_by(rows: list[ComparisonRow], expected: str) -> None:
    values = record(comparison=rows)
    assert verdict(values).startswith(expected)
    body = render(values).partition("<body>")[2]
    assert "nan" not in body.lower()
    assert "nan" not in table(values)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("points", "p", "beats"),
    [(0.5, 0.01, True), (0.5, 0.049, True), (0.5, 0.05, False), (-0.5, 0.001, False)],
)
def test_the_standing_champion_is_beaten_by_a_significant_gain_alone(
    points: float, p: float, beats: bool
) -> None:
    accuracies = [accuracy - points / 100 for accuracy in record().comparison[0].accuracies]
    values = record(standing=StandingRecord("3", "digits.2", accuracies, p))
    assert beats_standing(values) == beats
    sentence = standing_verdict(values)
    outcome = "beats" if beats else "does not beat"
    side = "above" if points > 0 else "below"
    assert sentence.startswith(
        f"The new champion {outcome} the standing one (version 3, of search 'digits.2', "
    )
    assert f"0.50 points {side} it (paired t-test, p = 0.0" in sentence
    assert "n = 5 seeds" in sentence


@pytest.mark.filterwarnings("error")
def test_seeds_without_both_scores_do_not_count_against_the_standing_champion() -> None:
    values = record()
    new = [0.2, 0.9, 0.92, 0.91]
    first = dataclasses.replace(values.comparison[0], accuracies=new)

    def against(former: list[float], p: float) -> SweepRecord:
        standing = StandingRecord("3", "digits.2", former, p)
        return dataclasses.replace(values, comparison=[first], standing=standing)

    # With the first seed the new champion would have the lower mean.
    beaten = against([NAN, 0.88, 0.91, 0.9], 0.01)
    assert beats_standing(beaten)
    assert "it is 1.33 points above it" in standing_verdict(beaten)
    assert "n = 3 of 4 seeds)" in standing_verdict(beaten)
    untested = against([NAN] * 4, NAN)
    assert not beats_standing(untested)
    assert standing_verdict(untested) == (
        "The new champion does not beat the standing one (version 3, of search 'digits.2'): "
        "no test was possible, because from no seed both have a score."
    )


def test_there_is_no_verdict_without_a_standing_champion() -> None:
    assert standing_verdict(record()) == ""
    assert not beats_standing(record())


def test_the_headline_is_both_accuracies_and_the_adjusted_p() -> None:
    values = record(baselines={"a": 0.9, "b": 0.91})
    rows = [
        values.comparison[0],
        *(dataclasses.replace(row, p_value=0.01) for row in values.comparison[1:]),
    ]
    numbers = headline(dataclasses.replace(values, comparison=rows))
    assert numbers == {
        "champion_accuracy": pytest.approx(0.92),
        "best_baseline_accuracy": pytest.approx(0.91),
        "p_value": pytest.approx(0.02),
    }


def test_the_headline_has_what_is_known_alone() -> None:
    values = record(baselines={})
    assert set(headline(values)) == {"champion_accuracy"}
    unknown = dataclasses.replace(values.comparison[0], accuracies=[NAN])
    assert headline(dataclasses.replace(values, comparison=[unknown])) == {}


def test_the_summary_in_markdown_has_the_verdict_the_table_and_links() -> None:
    values = record()
    links = {"MLflow": "http://mlflow:5000/#/experiments/1/runs/2", "report": "s3://b/report.html"}
    lines = markdown(values, links).splitlines()
    assert lines[0] == f"## Sweep {values.name}"
    assert verdict(values) in lines
    cells = [line.count("|") for line in lines if line.startswith("|")]
    assert cells == [8] * (3 + len(values.comparison))
    assert lines[-2:] == [
        "- MLflow: [http://mlflow:5000/#/experiments/1/runs/2]"
        "(http://mlflow:5000/#/experiments/1/runs/2)",
        "- report: `s3://b/report.html`",
    ]


def test_the_score_of_the_sweep_is_named() -> None:
    balanced = record(settings={"evaluation_score": "balanced-accuracy"})
    assert "test balanced accuracy (%)" in table(balanced).splitlines()[0]
    lost = dataclasses.replace(balanced, guessing=Guessing(accuracy=0.99, images=360))
    assert "its test balanced accuracy of 92.00" in verdict(lost)
    # A record of an older version does not name its score.
    assert "test accuracy (%)" in table(record(settings={})).splitlines()[0]


def measured(score: str, **measures: list[list[float]]) -> SweepRecord:
    """Return a record by a score, whose rows have these measures, one list for each row."""
    values = record(settings={"evaluation_score": score})
    rows = [
        dataclasses.replace(row, measures={name: lists[i] for name, lists in measures.items()})
        for i, row in enumerate(values.comparison)
    ]
    return dataclasses.replace(values, comparison=rows)


def test_the_calibration_error_stands_beside_the_score() -> None:
    errors = [[0.02, 0.04], [0.1, 0.1], [math.nan, 0.3]]
    header, rows = comparison_cells(measured("macro-f1", calibration_error=errors))
    assert header[2:4] == ["test macro F1 (%)", "ECE (%)"]
    assert [row[3] for row in rows] == ["3.00 ± 1.41", "10.00 ± 0.00", "30.00", NOTHING]
    # Trainings that an older version kept have none.
    assert "ECE (%)" not in comparison_cells(record())[0]


def test_the_likelihood_stands_beside_the_accuracy_and_what_it_comes_from() -> None:
    values = measured(
        "negative-log-likelihood",
        accuracy=[[0.9, 0.9]] * 3,
        cross_entropy=[[0.25, 0.35]] * 3,
        calibration_error=[[0.05, 0.05]] * 3,
    )
    header, rows = comparison_cells(values)
    assert header[2:6] == [
        "test likelihood exp(−NLL) (%)",
        "accuracy (%)",
        "NLL (nats)",
        "ECE (%)",
    ]
    # A number that is no part of a whole is shown as it is.
    assert rows[0][3:6] == ["90.00 ± 0.00", "0.30000 ± 0.07071", "5.00 ± 0.00"]
    # Naming one class has an accuracy, and no likelihood that says anything.
    guess = mean_and_deviation([values.guessing.accuracy])
    assert rows[-1][2:6] == [NOTHING, guess, NOTHING, NOTHING]
    assert "NLL (nats)" not in comparison_cells(measured("ece", cross_entropy=[[1.0]] * 3))[0]


@pytest.mark.parametrize("score", ["negative-log-likelihood", "ece"])
def test_a_champion_beats_guessing_by_its_accuracy_if_the_score_does_not_tell(score: str) -> None:
    # All rows have a high score of 0.92.
    blind = measured(score, accuracy=[[0.1, 0.1]] * 3)
    assert not beats_guessing(blind)
    assert "learned nothing: its test accuracy of 10.00 ± 0.00 % is not" in verdict(blind)
    assert beats_guessing(measured(score, accuracy=[[0.5, 0.5]] * 3))
    assert not beats_guessing(measured(score))


def test_a_score_of_a_function_is_a_plain_number_and_nobody_knows_what_guessing_reaches() -> None:
    """Nothing is in percent, and nothing was measured beside the score."""
    settings = {"evaluation_score": "log likelihood", "training_function": "mine:train"}
    values = record(-0.5, {"cross-entropy": -0.75}, settings=settings, guessing=None)
    header, rows = comparison_cells(values)
    assert header[2:5] == ["test log likelihood", "n", "vs champion"]
    assert [row[0] for row in rows] == ["champion", "cross-entropy"]
    assert rows[1][4] == "−0.250"
    assert "%" not in table(values)
    assert verdict(values).startswith("The champion is ahead of tuned cross-entropy by 0.250 (p")


@pytest.mark.parametrize("score", ["negative-log-likelihood", "ece"])
def test_a_score_of_a_function_stands_alone_whatever_its_name(score: str) -> None:
    settings = {"evaluation_score": score, "training_function": "mine:train"}
    values = record(settings=settings, guessing=None)
    assert beats_guessing(values)
    assert not comparison_cells(values)[0][3].startswith("accuracy")
    assert verdict(values).startswith("The champion is ahead of tuned cross-entropy, the best")


def test_the_comparison_as_numbers() -> None:
    scores = {"champion": [0.9, 0.92], "Baikal": [0.8, 0.84], "cross-entropy": [0.9, NAN]}
    rows = [
        ComparisonRow(loss, 0.1, values, [], welch(scores["champion"], values))
        for loss, values in scores.items()
    ]
    rows[0] = dataclasses.replace(rows[0], p_value=None)
    itself = ComparisonRow("squared error", 0.1, [0.7, 0.71], [], None)
    first, baikal, incomplete, same = losses(record(comparison=[*rows, itself]))
    assert (first.mean, first.n, first.difference) == (pytest.approx(0.91), 2, None)
    p_value = stats.ttest_ind([0.9, 0.92], [0.8, 0.84], equal_var=False).pvalue
    assert baikal.scores == [0.8, 0.84]
    assert baikal.standard_deviation == pytest.approx(0.04 / 2**0.5)
    assert baikal.difference == pytest.approx(-0.09)
    # The only test: a training of another loss has no score, and the fourth loss is the champion.
    assert baikal.p == baikal.p_holm == pytest.approx(p_value)
    assert (incomplete.n, incomplete.scores, incomplete.p) == (1, [0.9, None], None)
    assert incomplete.difference == pytest.approx(-0.01)
    assert (same.difference, same.p) == (None, None)
