"""Records of sweeps, as the tests of the report need them."""

import dataclasses
from typing import Any

from scipy import stats

from taylorglo.report.record import ComparisonRow, GenerationRecord, SweepRecord, TuningRow
from taylorglo.results import (
    AttackedImage,
    Champion,
    CorruptionRow,
    Example,
    Guessing,
    RobustnessRow,
)

MNIST_THETA = [-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513]


def row(loss: str, mean: float, champion: list[float] | None = None, n: int = 5) -> ComparisonRow:
    """Return a row whose n accuracies lie around the mean, tested against the champion's."""
    accuracies = [mean + 0.001 * (i - (n - 1) / 2) for i in range(n)]
    p_value = None
    if champion is not None:
        p_value = float(stats.ttest_ind(champion, accuracies, equal_var=False).pvalue)
    return ComparisonRow(loss, 0.1, accuracies, [(100, mean - 0.1), (200, mean)], p_value)


def robustness(loss: str, attack: str, epsilon: float, accuracies: list[float]) -> RobustnessRow:
    return RobustnessRow(loss=loss, attack=attack, epsilon=epsilon, accuracies=accuracies)


# A gray picture of two by two pixels, as PNG in Base64.
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNoaGBoaAAABgYCASzBUNcAAAAASUVORK5C"
    "YII="
)


def example(image: int, perturbation: float | None, taken_for: int = 5) -> Example:
    """Return an example of class 3 and this number, and what it is taken for after an attack."""
    found = AttackedImage(image, 3, 3, perturbation, "" if perturbation is None else "fgsm")
    return Example(
        found=found, taken_for=taken_for, clean=PICTURE, change=PICTURE, attacked=PICTURE
    )


def attacked_record(**changes: Any) -> SweepRecord:
    """Return a record with corruptions of 0.9 - 0.1 times the strength, and with examples."""
    losses = ("champion", "cross-entropy")
    corruptions = [
        CorruptionRow(
            loss=loss,
            corruption=corruption,
            strength=strength,
            accuracies=[0.9 - 0.1 * strength, 0.8 - 0.1 * strength],
        )
        for corruption in ("noise", "blur", "contrast")
        for loss in losses
        for strength in range(1, 6)
    ]
    examples = {loss: [example(117, 0.05), example(4, None, 3)] for loss in losses}
    place = "s3://bucket/digits/attacked-images.parquet"
    return record(
        **{"corruptions": corruptions, "examples": examples, "attacked_images": place} | changes
    )


def champion_of(theta: list[float], order: int = 3) -> Champion:
    return Champion(theta=theta, order=order, fitness=0.9, generation=1, trial=12)


def record(
    accuracy: float = 0.92, baselines: dict[str, float] | None = None, **changes: Any
) -> SweepRecord:
    """Return the record of a sweep in which champion and baselines have these test accuracies."""
    first = row("champion", accuracy)
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
        guessing=Guessing(accuracy=0.1, images=360),
        generations=[
            GenerationRecord(0, [0.1, 0.5, 0.6], 9, 5, 1, 0, 3, 12.5),
            GenerationRecord(1, [0.7, 0.9], 4, 1, 0, 1, 2, 10.0),
        ],
        champion=champion_of(MNIST_THETA),
        tuning=[
            TuningRow("cross-entropy", rate, [validation, validation + 0.01])
            for rate, validation in ((0.01, 0.8), (0.1, 0.9), (1.0, 0.7))
        ],
        comparison=[first, *(row(loss, mean, first.accuracies) for loss, mean in others.items())],
        robustness=[
            robustness(loss, attack, epsilon, [0.9 - 5 * epsilon, 0.92 - 5 * epsilon])
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
