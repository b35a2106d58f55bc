"""The context of a sweep's tasks, as it is written and read again."""

from pathlib import Path

import pytest
from small_sweeps import Work, small_settings

from taylorglo.results import write_json
from taylorglo.services.tracking import Tracker
from taylorglo.tasks.context import Sweep


def test_the_sweep_artifact_is_read_as_it_was_written(sweep: Sweep, work: Work) -> None:
    sweep.write(work.folder / "again")
    assert Sweep.read(work.folder / "again") == sweep
    assert sweep.settings == small_settings()
    assert (sweep.study, sweep.generations, sweep.first, sweep.num_classes) == ("digits", 2, 1, 10)
    assert sweep.standing is None


def test_the_tracker_joins_the_run_of_the_artifact(sweep: Sweep) -> None:
    assert isinstance(sweep.tracker, Tracker)
    assert sweep.tracker.run_id == sweep.run_id


def test_artifacts_hold_finite_numbers_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "artifact", [float("nan")])
    assert not (tmp_path / "artifact").exists()
