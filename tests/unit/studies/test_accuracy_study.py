"""The accuracy study: what it measures, and a small one of its sweeps."""

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from taylorglo.data import dataset as datasets
from taylorglo.evaluation.comparison import NAMES
from taylorglo.loss.functions import TaylorLoss
from taylorglo.settings import DataSettings
from taylorglo.training.engine import Engine

sys.path.append(str(Path(__file__).parents[2] / "studies"))

import accuracy
from accuracy import (
    CHAMPION,
    PLAIN,
    ROBUST,
    SETTINGS,
    Effort,
    Setting,
    cells_of,
    compared,
    hedges,
    report,
    steps_to,
    sweep_settings,
    versus,
)
from studies import Cell, Row, Study

SMALL = Effort(
    steps=20,
    generations=2,
    popsize=4,
    attempts=1,
    folds=2,
    finalists=2,
    rates=(0.03, 0.1),
    alphas=(0.1,),
    seeds=2,
)
DIGITS = {
    "tiny": Setting("digits", {"name": "digits"}),
    "oracle": Setting("digits, chosen on the test images", {"name": "digits"}, oracle=True),
}
CELL: Cell = {"setting": "tiny", "model": "mlp", "seed": 0}


class TestStatistics:
    def test_the_effect_size_is_that_of_students_t(self) -> None:
        first, second = [0.5, 0.7, 0.9, 0.6], [0.2, 0.4, 0.1]
        t = ttest_ind(first, second).statistic
        cohen = t * math.sqrt(1 / len(first) + 1 / len(second))
        assert hedges(first, second) == pytest.approx(cohen * (1 - 3 / (4 * 5 - 1)))
        assert hedges(second, first) == -hedges(first, second)

    def test_the_effect_size_of_constant_samples(self) -> None:
        assert hedges([0.5, 0.5], [0.5, 0.5]) == 0
        assert hedges([0.25, 0.25], [0.5, 0.5]) == -math.inf

    def test_steps_to_an_accuracy(self) -> None:
        curve = [(10, 0.2, 1.0), (20, 0.5, 1.0), (30, 0.4, 1.0)]
        assert [steps_to(curve, accuracy) for accuracy in (0.1, 0.4, 0.6)] == [10, 20, 0]

    def test_a_difference_counts_if_it_is_certain(self) -> None:
        def row(mean: float, p: float) -> Row:
            return {"mean": mean, "sd": 0.01, "p": p, "g": 1.0, "ece": 0.1, "steps": 10}

        champion = [row(0.8, 1.0)] * 3
        line = versus(champion, [row(0.7, 0.01), row(0.79, 0.2), row(0.82, 0.04)])
        assert line[:3] == ["77.00 ± 1.00", "+3.00 (-2.00 to +10.00)", "1 : 1 of 3"]


class TestCells:
    def test_the_tuning_has_as_many_trainings_as_the_search(self) -> None:
        effort = Effort()
        for losses in (PLAIN, PLAIN + ROBUST):
            attempts = effort.tuning_attempts(losses)
            contenders = len(losses) - 1 + len(effort.alphas)

            def more(attempts: int, contenders: int = contenders) -> int:
                searched = effort.generations * effort.popsize * effort.attempts
                tuned = contenders * len(effort.rates) * attempts
                return tuned - searched - (effort.finalists + 1) * attempts

            assert more(attempts) >= 0 > more(attempts - 1)

    def test_the_full_size_has_the_cells_of_the_default_size(self) -> None:
        default, full = cells_of(False), cells_of(True)
        assert [cell for cell in default if cell not in full] == []
        assert len(full) == len(SETTINGS) * 2 * 3
        assert default[0] == {"setting": "noise-40", "model": "mlp", "seed": 0}

    @pytest.mark.parametrize("name", SETTINGS)
    def test_the_settings_are_those_of_a_sweep(self, name: str) -> None:
        cell: Cell = {"setting": name, "model": "cnn", "seed": 2}
        settings = sweep_settings(cell, SETTINGS[name], Effort())
        assert settings.name == f"{name}-cnn-2"
        assert all(loss in NAMES for loss in settings.baselines.losses)
        assert settings.baselines.losses[0] == "cross-entropy"

    @pytest.mark.skipif(
        not Path(accuracy.ROOT).is_dir(),
        reason="Debian's package dataset-fashion-mnist is not installed",
    )
    def test_a_fifth_of_the_images_is_for_validation(self) -> None:
        source = datasets.load(DataSettings.model_validate(accuracy.fashion(250)), 0)
        assert (len(source.train), len(source.validation)) == (200, 50)


@pytest.mark.long
def test_a_small_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study("accuracy", 1, tmp_path / "study")
    compute = partial(compared, study.folder, DIGITS, SMALL)
    cells: list[Cell] = [CELL, {**CELL, "seed": 1}, {**CELL, "setting": "oracle"}]
    rows = study.rows(cells, compute)
    assert [row["loss"] for row in rows[:4]] == [CHAMPION, *(NAMES[loss] for loss in PLAIN)]
    for row in rows:
        assert row["n"] == 2
        assert row["tuned"] >= row["searched"] == 2 * 4 + 3 * 3
        assert 0 <= float(row["ece"]) <= 1
    loss = TaylorLoss.load(study.folder / "losses" / "tiny-mlp-0.json")
    assert loss.provenance["best_baseline"] in PLAIN
    assert not any((study.folder / "work").iterdir())
    report(study, DIGITS, rows)
    output = capsys.readouterr().out
    assert output.count("digits") >= 4
    for name in ("accuracy.md", "losses.md", "accuracy.svg"):
        assert (study.folder / name).stat().st_size > 0


@pytest.mark.long
def test_a_sweep_that_was_killed_trains_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> list[Row]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "rows_of", killed)
        with pytest.raises(KeyboardInterrupt):
            compared(tmp_path, DIGITS, SMALL, CELL)

    def run(self: Engine, recipes: Any) -> Any:
        assert list(recipes) == []
        return iter(())

    monkeypatch.setattr(Engine, "run", run)
    rows = compared(tmp_path, DIGITS, SMALL, CELL)
    assert np.isfinite([float(row["mean"]) for row in rows]).all()
