"""Results as records: their JSON, the records of version 0.1.0, and summaries of several."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from taylorglo.errors import InputError
from taylorglo.loss.filters import Verdict
from taylorglo.results import (
    Attacked,
    AttackedImage,
    Candidate,
    Champion,
    Comparison,
    Contender,
    CorruptionRow,
    Counts,
    DatasetDescription,
    Evaluation,
    Example,
    Execution,
    FullTraining,
    GenerationSummary,
    Guessing,
    LossResult,
    MemoryNeed,
    Record,
    Robustness,
    RobustnessRow,
    StandingChampion,
    SweepResult,
    Training,
    by_contender,
    mean_curve,
    read_json,
    write_json,
)

THETA = [0.0, 0.0, 0.0, -2.0, 0.0, 4.0, -1.0, 1e-17]
EXECUTION: dict[str, Any] = {
    "status": "ok",
    "curve": [(10, 0.5, 1.25), (20, 0.75, 0.1 + 0.2)],
    "started": 1700000000.123,
    "ended": 1700000060.5,
    "seconds": 30.25,
    "engine": "fused",
    "precision": "float32",
    "device": "cpu",
}
TRAINING = Training(**EXECUTION, accuracy=0.9, robust_accuracy=0.25, test_accuracy=0.875)
EVALUATION = Evaluation(
    **EXECUTION, fitness=0.5, accuracies=[0.5, 0.5], robust_accuracies=[0.1], run="abc"
)
CONTENDER = Contender(name="champion", loss="taylor", learning_rate=0.1, theta=THETA)
FULL = FullTraining(contender=CONTENDER, seed=2**31, key="digest", training=TRAINING)
GUESSING = Guessing(accuracy=0.1, images=360)
CHAMPION = Champion(theta=THETA, order=3, fitness=0.5, generation=2, trial=7)
CANDIDATE = Candidate(
    trial=7,
    generation=2,
    theta=THETA,
    verdict=Verdict(True, "accepted by learnable", {"A": 2.0}),
    result=EVALUATION,
    fitness=0.5,
    finished=True,
    ended="2025-11-23T18:40:12+00:00",
)
ROW = RobustnessRow(loss="champion", attack="fgsm", epsilon=0.1, accuracies=[0.5])
CORRUPTED = CorruptionRow(loss="champion", corruption="blur", strength=5, accuracies=[0.5, 0.25])
FOUND = AttackedImage(image=7, label=3, predicted=3, perturbation=0.1, attack="fgsm")
WITHSTOOD = AttackedImage(image=8, label=0, predicted=0, perturbation=None, attack="")
EXAMPLE = Example(found=FOUND, taken_for=5, clean="aW1hZ2U=", change="aQ==", attacked="")
ATTACKED = Attacked(
    accuracies={"fgsm": {0.0: 1.0, 0.1: 0.5}, "worst": {0.0: 1.0, 0.1: 0.5}},
    suspicions=["one step breaks more images than 20 steps"],
    images=[FOUND, WITHSTOOD],
    corruptions={"noise": [1.0, 0.5, 0.5, 0.5, 0.0]},
    examples=[EXAMPLE],
)

# A training in full as version 0.1.0 wrote it.
FLAT = {
    "contender": {
        "name": "cross-entropy",
        "loss": "cross-entropy",
        "learning_rate": 0.1,
        "theta": [],
        "label_smoothing": 0.0,
    },
    "seed": 5,
    "status": "ok",
    "accuracy": 0.9,
    "test_accuracy": 0.875,
    "curve": [[10, 0.5, 1.25]],
    "started": 100.0,
    "ended": 160.0,
    "key": "digest",
    "method": "sequential, tf32, cuda",
}


def evaluation(status: str, fitness: float) -> Evaluation:
    values = EXECUTION | {"status": status}
    return Evaluation(**values, fitness=fitness, accuracies=[fitness], robust_accuracies=[])


def candidate(trial: int, **values: Any) -> Candidate:
    return Candidate(trial=trial, generation=1, theta=THETA, **values)


def evaluated(trial: int, fitness: float, status: str = "ok") -> Candidate:
    result = evaluation(status, fitness)
    accepted = Verdict(True, "accepted")
    return candidate(trial, verdict=accepted, result=result, fitness=fitness, finished=True)


LOSS_RESULT = LossResult(
    loss="champion", learning_rate=0.1, label_smoothing=0.0, scores=[0.5, None]
)
RECORDS: list[Record] = [
    Counts(confusion=[[3, 1], [0, 2]], reliability=[(6, 5, 4.5)], scores=[(1, 5), (5, 1)]),
    TRAINING,
    EVALUATION,
    CANDIDATE,
    candidate(0),
    GenerationSummary.of([CANDIDATE]),
    CONTENDER,
    FULL,
    CHAMPION,
    StandingChampion(version="1", study="digits", theta=THETA, learning_rate=None),
    Comparison(champion=CHAMPION, finalists=[FULL], trainings=[FULL], standing=[], complete=False),
    ROW,
    Robustness(rows=[ROW], started=1.0, ended=2.5),
    Robustness(
        rows=[ROW],
        started=1.0,
        ended=2.5,
        corruptions=[CORRUPTED],
        examples={"champion": [EXAMPLE]},
        images="s3://bucket/digits/attacked-images.parquet",
    ),
    CORRUPTED,
    EXAMPLE,
    ATTACKED,
    MemoryNeed(weights=2**40, activations_per_image=1),
    DatasetDescription(
        name="digits",
        num_classes=10,
        splits={"train": 1000},
        memory=MemoryNeed(weights=1, activations_per_image=2),
        fingerprint="abc",
        provenance={"source": "scikit-learn’s digits"},
        guessing=GUESSING,
    ),
    GUESSING,
    LOSS_RESULT,
    SweepResult(
        sweep="digits",
        study="digits",
        created="2026-01-01T00:00:00+00:00",
        complete=True,
        seed=0,
        seeds=[1, 2],
        data="digits",
        fingerprint="abc",
        score="accuracy",
        table="loss  accuracy",
        verdict="The champion is ahead.",
        champion=CHAMPION,
        losses=[LOSS_RESULT],
        seconds=1.5,
    ),
]


def subclasses(kind: type[Record]) -> set[type[Record]]:
    below = kind.__subclasses__()
    return set(below).union(*(subclasses(sub) for sub in below))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_from_a_file_as_it_was(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, record)
    assert read_json(path, type(record)) == record
    assert record.to_json() == json.loads(path.read_text())


def test_a_list_of_records_comes_back_from_a_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    write_json(path, [FULL, FULL])
    assert read_json(path, list[FullTraining]) == [FULL, FULL]


def test_every_type_of_record_has_a_round_trip() -> None:
    types = {kind for kind in subclasses(Record) if kind.__module__ == Record.__module__}
    # An execution is always a training or an evaluation.
    assert types - {type(record) for record in RECORDS} == {Execution}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for value in (TRAINING.model_copy(update={"accuracy": number}), {"a": [number]}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, value)
    assert not path.exists()


def test_a_file_with_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, CHAMPION)
    problem = f"{path}: is not what a task of this version writes"
    with pytest.raises(InputError, match=f"^{problem}: champion: Field required$"):
        read_json(path, Comparison)
    for content in (b"{", b"[" * 100_000, b"[]", b"null", b"\xff\xfe", b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=problem):
            read_json(path, Champion)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_json(tmp_path, Champion)


def test_an_image_withstands_what_is_smaller_than_the_smallest_perturbation() -> None:
    assert [FOUND.withstands(epsilon) for epsilon in (0.0, 0.05, 0.1, 0.2)] == [1, 1, 0, 0]
    assert WITHSTOOD.withstands(1.0)


def test_records_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CHAMPION.fitness = 1.0


def test_the_method_is_one_text_for_a_person() -> None:
    assert TRAINING.method == "fused, float32, cpu"
    bare = Training(status="ok", curve=[], started=0, ended=0, seconds=0, accuracy=0)
    assert bare.method == ""


def test_a_training_of_version_0_1_0_has_its_method_taken_apart(tmp_path: Path) -> None:
    path = tmp_path / "training.json"
    old = {
        "status": "diverged",
        "accuracy": 0.0,
        "curve": [[10, 0.1, 2.3]],
        "started": 1.0,
        "ended": 2.0,
        "seconds": 0.5,
        "reason": "the loss is not finite at step 12",
        "robust_accuracy": None,
        "test_accuracy": None,
        "method": "fused, float32, cpu",
    }
    write_json(path, old)
    training = read_json(path, Training)
    assert (training.engine, training.precision, training.device) == ("fused", "float32", "cpu")
    assert training.method == old["method"]
    assert training.reason == old["reason"]
    assert training.curve == [(10, 0.1, 2.3)]


def test_an_empty_method_of_version_0_1_0_is_read() -> None:
    values = {key: EXECUTION[key] for key in ("status", "curve", "started", "ended", "seconds")}
    assert Training.model_validate({**values, "accuracy": 0.5, "method": ""}).method == ""


def test_a_training_in_full_of_version_0_1_0_holds_a_training() -> None:
    full = FullTraining.model_validate_json(json.dumps(FLAT))
    assert full.contender == Contender(
        name="cross-entropy", loss="cross-entropy", learning_rate=0.1
    )
    assert (full.seed, full.key) == (5, "digest")
    assert full.training == Training(
        status="ok",
        accuracy=0.9,
        test_accuracy=0.875,
        curve=[(10, 0.5, 1.25)],
        started=100.0,
        ended=160.0,
        # Version 0.1.0 did not write the seconds.
        seconds=60.0,
        engine="sequential",
        precision="tf32",
        device="cuda",
    )
    assert full.test_accuracy == 0.875


def test_a_comparison_of_version_0_1_0_is_read() -> None:
    old = {
        "champion": CHAMPION.to_json(),
        "finalists": [FLAT | {"test_accuracy": None}],
        "trainings": [FLAT],
        "standing": [],
        "complete": True,
    }
    comparison = Comparison.model_validate_json(json.dumps(old))
    (finalist,) = comparison.finalists
    assert finalist.training.test_accuracy is None
    assert finalist.test_accuracy == 0
    assert comparison.trainings == [FullTraining.model_validate_json(json.dumps(FLAT))]


def test_a_candidate_of_version_0_1_0_is_read() -> None:
    old = CANDIDATE.to_json()
    result = old["result"]
    method = ", ".join(result.pop(key) for key in ("engine", "precision", "device"))
    result["method"] = method
    assert Candidate.model_validate_json(json.dumps(old)) == CANDIDATE


def test_a_generation_is_summed_up() -> None:
    rejected = candidate(4, verdict=Verdict(False, "rejected"), fitness=0.0, finished=True)
    running = candidate(5, verdict=Verdict(True, "accepted"))
    summary = GenerationSummary.of(
        [
            evaluated(0, 0.25),
            evaluated(1, 0.75),
            evaluated(2, 0.0, "diverged"),
            evaluated(3, 0.0, "failed"),
            rejected,
            running,
        ]
    )
    assert summary == GenerationSummary(
        drawn=6, rejected=1, trained=4, diverged=1, failed=1, best=0.75, median=0.125
    )


def test_a_generation_without_trained_candidates_is_summed_up() -> None:
    rejected = candidate(0, verdict=Verdict(False, "rejected"), fitness=0.0, finished=True)
    assert GenerationSummary.of([rejected, candidate(1)]) == GenerationSummary(
        drawn=2, rejected=1, trained=0, diverged=0, failed=0, best=0.0, median=0.0
    )


def test_trainings_are_grouped_by_contender_in_their_order() -> None:
    slow = CONTENDER.model_copy(update={"learning_rate": 0.01})
    first, second, third = (
        FULL.model_copy(update={"contender": contender, "seed": seed})
        for seed, contender in enumerate((slow, CONTENDER, slow))
    )
    assert by_contender([first, second, third]) == [[first, third], [second]]
    assert by_contender([]) == []


def test_a_mean_curve_goes_as_far_as_all_curves_do() -> None:
    long = [(10, 0.2, 3.0), (20, 0.4, 2.0), (30, 0.6, 1.0)]
    short = [(10, 0.4, -1.0), (20, 0.8, 0.0)]
    assert mean_curve([long, short]) == [
        (10, pytest.approx(0.3), 1.0),
        (20, pytest.approx(0.6), 1.0),
    ]
    assert mean_curve([long]) == long
    assert mean_curve([]) == []
    assert mean_curve([long, []]) == []


def test_a_mean_curve_is_of_points_of_one_step() -> None:
    """A point that is missing in one curve moves no other point of it."""
    assert mean_curve([[(2, 0.5, None)], [(1, 0.1, None), (2, 0.6, None)]]) == [(2, 0.55, None)]
    odd = [(1, 0.2, 2.0), (3, 0.4, 1.0), (5, 0.6, 0.0)]
    even = [(2, 0.3, 2.0), (5, 0.8, 1.0), (3, 0.5, None)]
    assert mean_curve([odd, even]) == [(3, pytest.approx(0.45), None), (5, pytest.approx(0.7), 0.5)]
    assert mean_curve([[(1, 0.2, None)], [(2, 0.4, None)]]) == []
    assert mean_curve([[(1, 0.2, None), (1, 0.3, None)]]) == [(1, 0.3, None)]
