"""The transfer study: its cells, its tests, and a small one."""

import sys
from functools import partial
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from taylorglo.services.registry import load_loss, zoo

sys.path.append(str(Path(__file__).parents[2] / "studies"))

from studies import Row, Study
from transfer import OPPONENTS, Effort, cells_of, line_of, losses, report, transferred

SMALL = Effort(steps=20, rates=(0.03, 0.1), alphas=(0.1,), attempts=1, seeds=3)


def test_the_losses_are_the_opponents_and_the_zoo() -> None:
    known = losses()
    assert list(known)[: len(OPPONENTS)] == list(OPPONENTS)
    for name in zoo():
        theta = [float(word) for word in known[f"zoo:{name}"].split()]
        assert theta == load_loss(f"zoo:{name}").theta.tolist()


def test_the_full_size_has_the_cells_of_the_default_size() -> None:
    known = losses()
    default, full = cells_of(False, known), cells_of(True, known)
    assert [cell for cell in default if cell not in full] == []
    assert len(full) == 3 * 4 * 2 * len(known)


def test_a_line_has_the_differences_to_the_opponents_and_their_tests() -> None:
    values = {
        "cross-entropy": [0.70, 0.72, 0.71],
        "label-smoothing": [0.80, 0.81, 0.85],
        "symmetric-cross-entropy": [0.90, 0.92, 0.91],
        "zoo:a": [0.80, 0.84, 0.82],
    }
    known: dict[str, list[Row]] = {
        loss: [{"accuracy": value, "rate": 0.1} for value in own] for loss, own in values.items()
    }
    place = ("digits", 0.4, "mlp")
    line = line_of(place, "zoo:a", known)
    assert line[:6] == ["digits", "40 %", "mlp", "zoo:a", "0.1", "82.00 ± 2.00"]
    ps = [ttest_ind(values["zoo:a"], values[o], equal_var=False).pvalue for o in OPPONENTS]
    first, second, third = sorted(ps)
    steps = {first: 3 * first}
    steps[second] = max(steps[first], 2 * second)
    steps[third] = max(steps[second], third)
    differences = ("+11.00", "+0.00", "-9.00")
    assert line[6:] == [
        f"{difference} (p = {steps[p]:.2g})" for difference, p in zip(differences, ps, strict=True)
    ]
    assert line_of(place, "cross-entropy", known)[6:] == ["", "", ""]


@pytest.mark.long
def test_a_small_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study("transfer", 1, tmp_path / "study")
    cells = [cell for cell in cells_of(False, losses()) if cell["data"] == "digits"]
    few = [cell for cell in cells if cell["noise"] in (0, 0.4) and cell["model"] == "mlp"]
    rows = study.rows(few, partial(transferred, SMALL))
    assert len(rows) == len(few) * SMALL.seeds
    assert all(row["rate"] in SMALL.rates for row in rows)
    # Another seed is another network.
    assert len({row["accuracy"] for row in rows if row["loss"] == "cross-entropy"}) > 2
    report(study, rows)
    assert "zoo:digits" in capsys.readouterr().out
    for name in ("transfer.md", "transfer.svg"):
        assert (study.folder / name).stat().st_size > 0
