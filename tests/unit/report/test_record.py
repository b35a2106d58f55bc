"""The record of a sweep, built from the results of its tasks."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from trainings import synthetic

from taylorglo.data.dataset import Split
from taylorglo.loss.dynamics import learning_drive
from taylorglo.loss.filters import Verdict
from taylorglo.report.record import GenerationRecord, SweepRecord, sweep_record
from taylorglo.report.run_page import metrics, outcome
from taylorglo.report.text import NOTHING
from taylorglo.report.verdict import comparison_cells
from taylorglo.results import (
    Candidate,
    Champion,
    Comparison,
    Contender,
    Evaluation,
    FullTraining,
    Guessing,
    Robustness,
    StandingChampion,
    Training,
)
from taylorglo.scores import worst
from taylorglo.settings import SweepSettings
from taylorglo.stats import paired, welch

THETA = [1.0] * 8
STANDING = StandingChampion(version="7", study="digits.2", theta=[2.0] * 8, learning_rate=None)

Span = tuple[float, float]


def candidate(trial: int, fitness: float, span: Span, **changes: Any) -> Candidate:
    result = Evaluation(
        status=changes.pop("status", "ok"),
        curve=[],
        started=span[0],
        ended=span[1],
        seconds=span[1] - span[0],
        engine="fused",
        precision="float32",
        device="cpu",
        fitness=fitness,
        accuracies=[fitness],
        robust_accuracies=[],
    )
    values: dict[str, Any] = {
        "trial": trial,
        "generation": 1,
        "theta": THETA,
        "verdict": Verdict(True, ""),
        "result": result,
        "fitness": fitness,
        "finished": True,
    }
    return Candidate(**values | changes)


def full_training(
    name: str, accuracy: float, span: Span = (0.0, 0.0), **changes: Any
) -> FullTraining:
    training = Training(
        status=changes.pop("status", "ok"),
        curve=[(100, accuracy - 0.1, 1.0), (200, accuracy, 0.5)],
        started=span[0],
        ended=span[1],
        seconds=span[1] - span[0],
        engine="sequential",
        precision="float32",
        device="cpu",
        accuracy=accuracy,
        test_accuracy=accuracy - 0.01,
    )
    values = {"learning_rate": changes.pop("learning_rate", 0.1), **changes}
    contender = Contender(name=name, loss=name, **values)
    return FullTraining(contender=contender, seed=0, key="", training=training)


def comparison(
    trainings: Sequence[FullTraining],
    finalists: Sequence[FullTraining] = (),
    standing: Sequence[FullTraining] = (),
) -> Comparison:
    return Comparison(
        champion=Champion(theta=THETA, order=3, fitness=0.5, generation=1, trial=0),
        finalists=list(finalists),
        trainings=list(trainings),
        standing=list(standing),
        complete=True,
    )


TRAININGS = [
    *(full_training("champion", accuracy) for accuracy in (0.8, 0.83, 0.85)),
    *(full_training("cross-entropy", accuracy) for accuracy in (0.7, 0.72, 0.73)),
]


def record(**changes: Any) -> SweepRecord:
    """Return the record of a sweep that began 100 seconds ago."""
    values: dict[str, Any] = {
        "candidates": [],
        "tuning": [],
        "comparison": comparison(TRAININGS),
        "robustness": Robustness(rows=[], started=0.0, ended=0.0),
        "generations": 2,
        "num_classes": 10,
        "provenance": {"source": "digits"},
        "guessing": Guessing(accuracy=0.1, images=360),
        "software": {"torch": "2.14.1"},
        "started": time.time() - 100,
        "standing": None,
    }
    settings = changes.pop("settings", SweepSettings(name="small"))
    return sweep_record(settings, **values | changes)


def timed(wall: float, **spans: list[Span]) -> SweepRecord:
    """Return a record of a run of ``wall`` seconds; spans are in seconds after its start."""
    start = time.time() - wall
    absolute = {name: [(start + a, start + b) for a, b in spans[name]] for name in spans}
    (attack,) = absolute["attack"]
    pairs = zip(("champion", "cross-entropy"), absolute["final"], strict=True)
    return record(
        started=start,
        candidates=[candidate(i, 0.5, span) for i, span in enumerate(absolute["candidates"])],
        tuning=[full_training("cross-entropy", 0.6, span) for span in absolute["tuning"]],
        comparison=comparison(
            [full_training(name, 0.6, span) for name, span in pairs],
            finalists=[full_training("finalist", 0.6, span) for span in absolute["finalists"]],
        ),
        robustness=Robustness(rows=[], started=attack[0], ended=attack[1]),
    )


def test_best_and_median_are_of_the_finite_fitnesses() -> None:
    generation = GenerationRecord(1, [math.nan, 0.2, 0.9, 0.4], 4, 0, 0, 0, 4, 1.0)
    assert (generation.best, generation.median) == (0.9, 0.4)
    empty = GenerationRecord(1, [math.nan], 1, 0, 0, 0, 1, 1.0)
    assert (empty.best, empty.median) == (None, None)


def test_generations_count_their_candidates() -> None:
    rejected = Verdict(False, "rejected by learnable")
    candidates = [
        candidate(0, 0.5, (10.0, 20.0)),
        candidate(1, 0.0, (15.0, 30.0), status="diverged"),
        candidate(2, 0.0, (0.0, 0.0), status="failed"),
        candidate(3, 0.0, (0.0, 0.0), verdict=rejected, result=None),
        candidate(4, 0.7, (40.0, 41.0), generation=2),
    ]
    first, second = record(candidates=candidates).generations
    assert first == GenerationRecord(1, [0.5, 0.0, 0.0], 4, 1, 1, 1, 3, 20.0)
    assert second == GenerationRecord(2, [0.7], 1, 0, 0, 0, 1, 1.0)


def test_the_comparison_tests_each_baseline_against_the_champion() -> None:
    champion, baseline = record().comparison
    assert (champion.loss, champion.p_value) == ("champion", None)
    assert champion.accuracies == pytest.approx([0.79, 0.82, 0.84])
    assert baseline.loss == "cross-entropy"
    assert baseline.p_value == welch(champion.accuracies, baseline.accuracies)
    assert baseline.curve == [(100, pytest.approx(0.6166667)), (200, pytest.approx(0.7166667))]


def test_a_champion_that_is_a_baseline_is_not_tested_against_itself() -> None:
    others = [full_training("Baikal", accuracy) for accuracy in (0.6, 0.62, 0.63)]
    compared = comparison([*TRAININGS, *others])
    itself = compared.champion.model_copy(update={"baseline": "cross-entropy"})
    values = record(comparison=compared.model_copy(update={"champion": itself}))
    champion, same, other = values.comparison
    assert same.p_value is None
    # One test is left, and nothing to adjust it for.
    assert other.p_value == welch(champion.accuracies, other.accuracies)
    header, rows = comparison_cells(values)
    shown = [dict(zip(header, cells, strict=True)) for cells in rows]
    assert [row["vs champion (points)"] == NOTHING for row in shown[:3]] == [True, True, False]
    assert [row["p"] == NOTHING for row in shown[:3]] == [True, True, False]
    assert shown[2]["p (Holm)"] == shown[2]["p"]
    assert outcome(values) == "no better loss"
    assert {"difference", "p_value"}.isdisjoint(metrics(values))


def test_tuning_has_a_row_for_each_loss_and_rate() -> None:
    tuning = [
        full_training("cross-entropy", accuracy, learning_rate=rate)
        for rate in (0.1, 1.0)
        for accuracy in (0.6, 0.7)
    ]
    rows = record(tuning=tuning).tuning
    assert [(row.loss, row.learning_rate, row.accuracies) for row in rows] == [
        ("cross-entropy", 0.1, [0.6, 0.7]),
        ("cross-entropy", 1.0, [0.6, 0.7]),
    ]


def test_rows_of_tuning_and_comparison_keep_the_label_smoothing() -> None:
    smoothed = full_training("label-smoothed cross-entropy", 0.6, label_smoothing=0.2)
    values = record(tuning=[smoothed], comparison=comparison([TRAININGS[0], smoothed]))
    assert [row.label_smoothing for row in values.tuning] == [0.2]
    assert [row.label_smoothing for row in values.comparison] == [0.0, 0.2]


def test_settings_and_methods_are_kept() -> None:
    values = record(candidates=[candidate(0, 0.5, (0.0, 1.0))])
    assert (values.name, values.settings["name"], values.settings["generations"]) == (
        "small",
        "small",
        2,
    )
    assert values.environment == {
        "torch": "2.14.1",
        "candidates": "fused, float32, cpu",
        "trainings in full": "sequential, float32, cpu",
    }


def test_the_standing_champion_is_tested_in_pairs() -> None:
    standing = [full_training("standing champion", accuracy) for accuracy in (0.7, 0.74, 0.77)]
    compared = comparison(TRAININGS, standing=standing)
    values = record(comparison=compared, standing=STANDING)
    assert values.standing is not None
    assert (values.standing.version, values.standing.study) == ("7", "digits.2")
    accuracies = [training.test_accuracy for training in standing]
    assert values.standing.accuracies == accuracies
    assert values.standing.p_value == paired(values.comparison[0].accuracies, accuracies)
    assert len(values.comparison) == 2


def test_a_seed_without_a_score_is_left_out_of_the_pairs() -> None:
    accuracies = (0.7, worst("log likelihood"), 0.77)
    standing = [full_training("standing champion", accuracy) for accuracy in accuracies]
    compared = comparison(TRAININGS, standing=standing)
    values = record(comparison=compared, standing=STANDING).standing
    assert values is not None
    assert values.p_value == paired([0.8, 0.85], [0.7, 0.77])
    assert math.isnan(values.accuracies[1])


def test_a_standing_champion_that_was_not_trained_is_left_out() -> None:
    assert record(standing=STANDING).standing is None
    assert record().standing is None


def test_notes_count_earlier_and_diverged_trainings() -> None:
    now = time.time()
    trainings = [
        full_training("champion", 0.8, (now - 50, now - 40)),
        full_training("cross-entropy", 0.7, (now - 500, now - 400)),
        full_training("cross-entropy", 0.1, (now - 40, now - 30), status="diverged"),
    ]
    split, earlier, diverged = record(comparison=comparison(trainings)).notes
    assert split.startswith("All seeds share one split")
    assert earlier.startswith("Trainings known from an earlier run: 1.")
    assert diverged == ("1 of 2 trainings in full of cross-entropy at learning rate 0.1 diverged.")
    clean = record(comparison=comparison([trainings[0]]))
    assert clean.notes == [split]


def test_a_note_names_the_label_smoothing_of_what_diverged() -> None:
    now = time.time()
    tuning = [
        full_training(
            "smoothed", 0.1, (now - 40, now - 30), status="diverged", label_smoothing=alpha
        )
        for alpha in (0.05, 0.2)
    ]
    assert record(tuning=tuning, comparison=comparison(TRAININGS[:1])).notes[-2:] == [
        f"1 of 1 trainings in full of smoothed at learning rate 0.1 and alpha {alpha} diverged."
        for alpha in (0.05, 0.2)
    ]


def test_time_is_counted_once_if_tasks_run_side_by_side() -> None:
    values = timed(
        100,
        # 12 seconds, and 5.
        candidates=[(10, 20), (12, 22), (30, 35), (30, 34)],
        tuning=[(40, 45), (50, 55)],
        finalists=[(60, 62)],
        final=[(62, 70), (69, 75)],
        attack=[(80, 90)],
    )
    *stages, rest = values.seconds.values()
    assert stages == pytest.approx([17, 10, 15, 10], abs=1e-3)
    assert values.wall_seconds == pytest.approx(100, abs=2)
    assert values.training_share == pytest.approx(42 / values.wall_seconds)
    assert rest == pytest.approx(values.wall_seconds - 52)
    assert values.generations[0].seconds == pytest.approx(17, abs=1e-3)


def test_stages_may_run_side_by_side() -> None:
    # On a cluster, the baselines are tuned while candidates are trained.
    values = timed(
        100,
        candidates=[(0, 80)],
        tuning=[(10, 90)],
        finalists=[(90, 91)],
        final=[(91, 92), (92, 93)],
        attack=[(93, 94)],
    )
    assert list(values.seconds.values())[:2] == pytest.approx([80, 80], abs=1e-3)
    assert values.training_share == pytest.approx(93 / values.wall_seconds)
    assert list(values.seconds.values())[-1] == pytest.approx(values.wall_seconds - 94)


def test_the_time_of_an_earlier_run_is_not_counted() -> None:
    values = timed(
        50,
        candidates=[(-500, -400), (-5, 5)],
        tuning=[(-300, -200)],
        finalists=[(-100, -90)],
        final=[(10, 20), (20, 30)],
        attack=[(30, 40)],
    )
    assert list(values.seconds.values())[:4] == pytest.approx([5, 0, 20, 10], abs=1e-3)
    assert values.training_share == pytest.approx(25 / values.wall_seconds)


def test_guessing_is_right_in_one_class_by_the_balanced_accuracy() -> None:
    guessing = Guessing(accuracy=0.4, images=360)
    assert record(guessing=guessing).guessing == guessing
    balanced = SweepSettings.model_validate({"evaluation": {"score": "balanced-accuracy"}})
    guessed = record(guessing=guessing, settings=balanced)
    assert guessed.guessing == Guessing(accuracy=0.1, images=360, share=0.4)
    assert (guessed.score, record().score) == ("balanced accuracy", "accuracy")


@pytest.mark.parametrize(
    ("score", "words", "accuracy"),
    [
        # The F1 of the class is 2 x 0.4 / (1 + 0.4), and that of nine others is 0.
        ("macro-f1", "macro F1", pytest.approx(0.8 / 1.4 / 10)),
        ("negative-log-likelihood", "likelihood exp(−NLL)", 0.4),
        ("ece", "calibration 1 − ECE", 0.4),
    ],
)
def test_guessing_by_the_other_scores(score: str, words: str, accuracy: float) -> None:
    settings = SweepSettings.model_validate({"evaluation": {"score": score}})
    guessed = record(guessing=Guessing(accuracy=0.4, images=360), settings=settings)
    assert (guessed.score, guessed.guessing.accuracy) == (words, accuracy)


def test_guessing_reaches_what_is_measured_of_a_network_that_names_one_class() -> None:
    """The truth is what scikit-learn says of its answers; one class has no test image."""
    labels = torch.tensor([0] * 12 + [1] * 5 + [3] * 3)
    whole = synthetic((1, 4, 4))
    test = Split(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), labels)
    guessing = replace(whole, test=test).guessing
    answers = [0] * 20
    classes = [0, 1, 3]
    f1 = f1_score(labels, answers, labels=classes, average="macro", zero_division=0)
    for score, expected in (
        ("accuracy", accuracy_score(labels, answers)),
        ("balanced-accuracy", balanced_accuracy_score(labels, answers)),
        ("macro-f1", f1),
    ):
        settings = SweepSettings.model_validate({"evaluation": {"score": score}})
        guessed = record(guessing=guessing, settings=settings, num_classes=4).guessing
        assert guessed is not None
        assert (guessed.accuracy, guessed.majority) == (pytest.approx(expected), 0.6)
        # By the macro F1, drawing classes by their shares is better than naming one, up to 1/n.
        to_beat = 1 / 3 if score == "macro-f1" else expected
        assert guessed.to_beat == pytest.approx(to_beat)
    drawn = labels[torch.randint(20, (300, 20), generator=torch.Generator().manual_seed(1))]
    draws = [
        f1_score(labels, row, labels=classes, average="macro", zero_division=0) for row in drawn
    ]
    assert f1 < sum(draws) / len(draws) < 1 / 3


@pytest.mark.parametrize("score", ["accuracy", "ece", "log likelihood"])
def test_what_guessing_reaches_is_not_known_if_a_function_measures(score: str) -> None:
    settings = SweepSettings.model_validate(
        {"training": {"function": "mine:train"}, "evaluation": {"score": score}}
    )
    guessed = record(guessing=Guessing(accuracy=0.4, images=360), settings=settings)
    assert (guessed.guessing, guessed.beside_accuracy) == (None, False)


def test_the_rows_of_the_comparison_have_the_measures_of_every_seed() -> None:
    def measured(name: str, measures: dict[str, float]) -> FullTraining:
        full = full_training(name, 0.8)
        training = full.training.model_copy(update={"test_measures": measures})
        return full.model_copy(update={"training": training})

    trainings = [
        measured("champion", {"accuracy": 0.7, "calibration_error": 0.1}),
        # An older version kept this one, and numbers of a diverged network are left out.
        measured("champion", {"accuracy": 0.6}),
        measured("cross-entropy", {}),
    ]
    first, second = record(comparison=comparison(trainings)).comparison
    assert first.measures["accuracy"] == [0.7, 0.6]
    assert first.measures["calibration_error"][0] == 0.1
    assert math.isnan(first.measures["calibration_error"][1])
    assert second.measures == {}


def test_each_candidate_has_its_fate_and_the_savings_are_those_of_the_mean_training() -> None:
    candidates = [
        candidate(0, 0.9, (0.0, 4.0)),
        candidate(1, 0.8, (0.0, 2.0)),
        candidate(2, 0.1, (0.0, 1.0), status="diverged"),
        candidate(3, 0.0, (0.0, 0.0), verdict=Verdict(False, "learnable"), result=None),
        candidate(4, 0.0, (0.0, 0.0), result=None, finished=False),
    ]
    # Another theta, so that the champion of trial 0 is the only one of its kind.
    candidates[1:] = [c.model_copy(update={"theta": [0.5] * 8}) for c in candidates[1:]]
    told = record(candidates=candidates)
    fates = [found.fate for found in told.candidates]
    assert fates == ["champion", "trained", "diverged", "rejected"]
    assert told.savings is not None
    assert (told.savings.spent, told.savings.rejected) == pytest.approx((7.0, 3.0))
    assert told.savings.stopped == pytest.approx(2.0)
    assert told.candidates[0].drive == pytest.approx(learning_drive(THETA, 10))


def test_the_front_has_the_candidates_that_no_other_one_beats_in_both() -> None:
    scores = [(0.9, 0.2), (0.8, 0.4), (0.8, 0.3), (0.7, 0.5), (0.95, 0.0)]
    candidates = [
        with_robust(candidate(0, 0.9, (0.0, 1.0)).model_copy(update={"trial": trial}), *pair)
        for trial, pair in enumerate(scores)
    ]
    # A network that did not learn is none, though no attack changes what it says.
    stopped = candidate(0, 0.1, (0.0, 1.0), status="diverged").model_copy(update={"trial": 5})
    told = record(candidates=[*candidates, with_robust(stopped, 0.1, 0.9)])
    assert [one.scores for one in told.trade_offs] == scores
    assert [one.trial for one in told.front] == [4, 0, 1, 3]
    assert told.chosen is not None
    assert told.chosen.trial == 0
    assert told.short_attack == "FGSM, ε = 0.03"
    assert record(candidates=[candidate(0, 0.9, (0.0, 1.0))]).trade_offs == []


def with_robust(one: Candidate, accuracy: float, robust: float) -> Candidate:
    """Return the candidate with the mean accuracies of two attempts."""
    assert one.result is not None
    accuracies = {
        "accuracies": [accuracy + 0.03, accuracy - 0.03],
        "robust_accuracies": [robust, robust],
    }
    return one.model_copy(update={"result": one.result.model_copy(update=accuracies)})


def test_the_command_writes_settings_that_read_as_the_same() -> None:
    settings = SweepSettings.model_validate(
        {"name": "small", "seed": 3, "search": {"popsize": 6}, "data": {"label_noise": 0.2}}
    )
    first, *lines, last, run = record(settings=settings).command.splitlines()
    assert (first, last, run) == ("cat > small.yaml <<'END'", "END", "taylorglo run small.yaml")
    values = yaml.safe_load("\n".join(lines))
    assert values.pop("pipeline") == {"generations": 2}
    assert SweepSettings.model_validate(values) == settings
