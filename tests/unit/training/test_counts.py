"""What a network answered to the test split, against scikit-learn."""

import numpy as np
import torch
from sklearn.metrics import auc, confusion_matrix, roc_auc_score

from taylorglo.data.dataset import Split
from taylorglo.results import Counts
from taylorglo.training.scores import Tally, calibration_error


def counted(logits: torch.Tensor, labels: torch.Tensor) -> Counts:
    split = Split(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    tally = Tally(split, 1, ["counts"])
    for part in (slice(0, 100), slice(100, None)):
        tally.add(logits[None, part], labels[part], torch.zeros(1))
    return tally.counts()[0]


def drawn(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % classes
    logits = 2 * torch.randn(300, classes, generator=generator)
    logits[torch.arange(300), labels] += 1.5
    return logits, labels


def test_counts_are_those_of_other_routes() -> None:
    logits, labels = drawn(4)
    counts = counted(logits, labels)
    named = logits.argmax(dim=1)
    assert counts.confusion == confusion_matrix(labels, named).tolist()
    gaps = sum(abs(right - confidence) for _, right, confidence in counts.reliability) / 300
    assert np.isclose(gaps, calibration_error(logits.softmax(dim=1), labels))
    false, true, _ = counts.roc()
    one_hot = np.eye(4)[labels].ravel()
    expected = roc_auc_score(one_hot, logits.softmax(dim=1).ravel())
    assert abs(counts.area() - expected) < 0.005
    assert np.isclose(counts.area(), auc(false, true))
    assert (false[-1], true[-1]) == (1.0, 1.0)


def test_a_total_is_the_sum_over_networks() -> None:
    counts = counted(*drawn(4))
    total = Counts.total([counts, counts])
    assert np.array_equal(np.array(total.confusion), 2 * np.array(counts.confusion))
    assert total.roc() == counts.roc()


def test_no_confusion_matrix_is_kept_for_many_classes_and_nan_is_counted_nowhere() -> None:
    logits, labels = drawn(31)
    logits[0] = torch.nan
    counts = counted(logits, labels)
    assert counts.confusion == []
    assert sum(images for images, _, _ in counts.reliability) == 299
