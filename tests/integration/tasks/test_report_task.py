"""The record behind the report, from the candidates of a real study: what is compared.

Time spans are in seconds after the start of the sweep.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_sweeps import begin_generation, changed, evaluation, full_training

from taylorglo.report.record import SweepRecord, sweep_record
from taylorglo.results import Champion, Comparison, Robustness, RobustnessRow
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.report import classes_of

Spans = list[tuple[float, float]]


def record_of(sweep: Sweep, spans: Mapping[str, Spans], wall: float) -> SweepRecord:
    """Return the record of a sweep that began ``wall`` seconds ago, with trainings at these times.

    Args:
        sweep: whose study gets the candidates.
        spans: begin and end of ``candidates``, ``tuning``, ``finalists``, ``final`` (two, for each
            seed one) and ``attack`` (one).
        wall: seconds.
    """
    start = time.time() - wall
    at: dict[str, Any] = {
        stage: [{"started": start + begin, "ended": start + end} for begin, end in own]
        for stage, own in spans.items()
    }
    begin_generation(sweep, 1, [evaluation(sweep, 0.5, **times) for times in at["candidates"]])
    (attack,) = at["attack"]
    worst = RobustnessRow(loss="champion", attack="worst", epsilon=0.1, accuracies=[0.4])
    return sweep_record(
        sweep.settings,
        candidates=sweep.search.candidates(),
        tuning=[full_training("cross-entropy", 0.6, **times) for times in at["tuning"]],
        comparison=Comparison(
            champion=Champion(theta=[1.0] * 8, order=3, fitness=0.5, generation=1, trial=0),
            finalists=[full_training("finalist", 0.6, **times) for times in at["finalists"]],
            trainings=[
                full_training(name, accuracy, **times)
                for name in ("champion", "cross-entropy")
                for accuracy, times in zip((0.6, 0.7), at["final"], strict=True)
            ],
            standing=[],
            complete=True,
        ),
        robustness=Robustness(rows=[worst], **attack),
        generations=sweep.generations,
        num_classes=sweep.num_classes,
        provenance=sweep.provenance,
        guessing=sweep.guessing,
        software={},
        started=start,
        standing=None,
    )


def test_p_values_and_groups(sweep: Sweep) -> None:
    spans: dict[str, Spans] = {
        "candidates": [(0, 1)],
        "tuning": [(1, 2), (2, 3)],
        "finalists": [],
        "final": [(3, 4)] * 2,
        "attack": [(4, 5)],
    }
    record = record_of(sweep, spans, wall=10)
    assert [(row.loss, row.p_value) for row in record.comparison] == [
        ("champion", None),
        ("cross-entropy", pytest.approx(1.0)),  # of the same accuracies
    ]
    assert [row.accuracies for row in record.tuning] == [[0.6, 0.6]]


def test_the_names_of_the_classes_are_those_of_the_data_or_else_numbers(
    sweep: Sweep, tmp_path: Path
) -> None:
    compared = Comparison(
        champion=Champion(theta=[1.0] * 8, order=3, fitness=0.5, generation=1, trial=0),
        finalists=[],
        trainings=[],
        standing=[],
        complete=True,
    )
    path = tmp_path / "comparison"
    sweep.write(path, compared)
    assert classes_of(str(path)) == [str(digit) for digit in range(10)]
    names = [f"digit {digit}" for digit in range(10)]
    changed(sweep, classes=names).write(path, compared)
    assert classes_of(str(path)) == names
