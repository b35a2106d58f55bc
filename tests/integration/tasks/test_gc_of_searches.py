"""``taylorglo gc`` on a sweep that recurs: studies, files and runs of its searches."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from small_sweeps import Work, begin_generation, evaluation, mlflow_client

from taylorglo.errors import ServiceError
from taylorglo.services import layout
from taylorglo.services.memo import References, RunState
from taylorglo.services.storage import FolderStore
from taylorglo.tasks.context import Sweep
from taylorglo_pipelines.commands.gc import collect
from taylorglo_pipelines.config import ServiceSettings
from taylorglo_pipelines.local.claim import only_run


def search_once(work: Work, *, finish: bool = True) -> Sweep:
    """Run a search of one generation; each has a training of its own, and one is of all of them."""
    sweep = work.open(1, search={"renew": True})
    begin_generation(sweep, 1, [evaluation(sweep, 0.5) for _ in range(4)])
    own = sweep.study
    for key in ("all", own):
        sweep.store.write(layout.weights("digits", key), b"weights")
        sweep.store.write(layout.training("digits", key), b"{}")
    sweep.store.write(layout.search_data("digits", "0" * 12), b"of former data")
    if finish:
        References(results=["all", own], weights=["all", own]).write(sweep.store, "digits", own)
        sweep.finish(search=True)
    return sweep


def gc(*, delete: bool, before: datetime | None = None) -> list[tuple[str, ...]]:
    """Collect what is older than now; return kind and name of each thing."""
    before = before or datetime.now(UTC) + timedelta(seconds=1)
    lines = list(collect(ServiceSettings(), before, delete=delete))
    return [tuple(line.split()[:2]) for line in lines[1:-1]]


def study_names(sweep: Sweep) -> list[str]:
    storage = sweep.search._storage
    return sorted(study.study_name for study in storage.get_all_studies())


OLD = [
    ("study", "digits"),
    ("training", "digits/trainings/digits.json"),
    ("weights", "digits/trainings/digits.safetensors"),
    ("data", "digits/search-data/000000000000.safetensors"),
    ("references", "digits/references/digits.json"),
]


def test_the_search_before_the_last_but_one_goes(work: Work) -> None:
    for _ in range(2):
        search_once(work)
    sweep = search_once(work)
    runs = [("run", f"digits/{name}") for name in ("digits", "digits.2", "digits.3")]
    shown = gc(delete=False)
    assert sorted(shown) == sorted([*runs, *OLD])
    assert study_names(sweep) == ["digits", "digits.2", "digits.3"]
    assert gc(delete=False, before=datetime.now(UTC) - timedelta(days=1)) == []
    # A run that has begun in the meantime is left alone; afterwards the rest goes.
    RunState(unfinished=sweep.run_id, study="digits.3").write(sweep.store, "digits")
    state = (sweep.store.read(layout.run_state("digits")), study_names(sweep))
    assert gc(delete=True) == [*runs[:2], ("study", "digits"), ("digits:", "unfinished,")]
    assert (sweep.store.read(layout.run_state("digits")), study_names(sweep)) == (
        state[0],
        ["digits.2", "digits.3"],
    )
    assert mlflow_client().get_run(sweep.run_id).info.lifecycle_stage == "active"
    RunState().write(sweep.store, "digits")
    assert gc(delete=True) == [runs[2], *OLD[1:]]
    assert gc(delete=True) == []
    kept = {file.key for file in sweep.store.files("digits/trainings")}
    assert kept == {
        kind("digits", key)
        for key in ("all", "digits.2", "digits.3")
        for kind in (layout.training, layout.weights)
    }
    with sweep.search_data() as path:
        assert Path(path).stat().st_size > 1000
    assert search_once(work).study == "digits.4"


@pytest.mark.parametrize("finish", [True, False])
def test_files_are_kept_if_it_is_not_known_which_are_needed(work: Work, finish: bool) -> None:
    sweep = search_once(work, finish=False)
    if finish:
        sweep.finish(search=True)
    before = sweep.store.files("digits")
    output = list(collect(ServiceSettings(), datetime.now(UTC) + timedelta(1), delete=True))
    reason = "an older version of taylorglo did not write down" if finish else "unfinished"
    assert [line for line in output if reason in line]
    assert sweep.store.files("digits") == before
    assert study_names(sweep) == ["digits"]


def test_a_sweep_that_is_running_is_called_so(work: Work) -> None:
    search_once(work)
    before = datetime.now(UTC) + timedelta(seconds=1)
    # A repeated run of a finished sweep: it has claimed the sweep, and no task has begun yet.
    with only_run(work.folder, "digits"):
        places = ServiceSettings(work_dir=str(work.folder))
        lines = list(collect(places, before, delete=True))
        assert "digits: running, so all of its files are kept" in lines
    # What nobody needs goes once the run has ended.
    assert OLD[3] in gc(delete=False)


def test_a_sweep_without_a_study_here_is_left_alone(work: Work) -> None:
    # As if the wrong database was named.
    sweep = search_once(work)
    (work.folder / "study.db").rename(work.folder / "other.db")
    work.open(1, name="other")
    before = sweep.store.files("digits")
    lines = gc(delete=True)
    assert lines == [("other:", "unfinished,")]
    assert sweep.store.files("digits") == before
    assert mlflow_client().get_run(sweep.run_id).info.lifecycle_stage == "active"


def test_a_store_that_fails_half_way(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        search_once(work)
    delete = FolderStore.delete

    def failing(self: FolderStore, key: str) -> None:
        if key.endswith(".safetensors"):
            raise ServiceError("the disk fails")
        delete(self, key)

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "delete", failing)
        services = ServiceSettings()
        with pytest.raises(ServiceError) as caught:
            lines.extend(collect(services, datetime.now(UTC) + timedelta(1), delete=True))
    assert str(caught.value) == (
        "the disk fails; before that, 5 items and 2 B in the store were deleted; "
        "the same command deletes the rest"
    )
    assert gc(delete=True) == OLD[2:]
