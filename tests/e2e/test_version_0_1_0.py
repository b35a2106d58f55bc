"""A sweep that version 0.1.0 began goes on with this version.

The data are the work folder of ``taylorglo run pipelines/configs/digits.yaml`` of version 0.1.0
with ``SETTINGS``, killed by SIGKILL when generation 2 of 3 was printed. Some files are left out:
empty lock files, the prepared data set, which every run writes anew, and the weights of the six
networks of the baselines' tuning, which no later task reads. When version 0.1.0 went on from there,
it printed the lines ``KNOWN``.
"""

import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
from sweeps import (
    LOSSES,
    POPSIZE,
    Sweeps,
    files_of,
    final_table,
    mlflow_of,
    runs_of,
    study_of,
    trained,
)

from taylorglo.services.memo import RunState
from taylorglo.services.storage import open_store

DATA = Path(__file__).parent / "data" / "version-0.1.0.zip"
# Defaults that were other ones in version 0.1.0.
SEARCH = {"family": "taylor", "coordinates": "reduced"}
SETTINGS = (
    *(f"search.{key}={value}" for key, value in SEARCH.items()),
    "evaluation.folds=0",
    "training.steps=60",
    "training.engine=sequential",
    "evaluation.steps=60",
    "evaluation.attempts=2",
    "evaluation.give_up_step=0",
    "search.popsize=4",
    "pipeline.generations=3",
    "baselines.learning_rates=[0.1,0.3]",
    "baselines.label_smoothing=[0.1]",
    "baselines.attempts=1",
    "champion.finalists=2",
    "champion.seeds=2",
    "attack.epsilons=[0.05]",
    "attack.images=50",
    "attack.pgd_steps=3",
    "attack.pgd_restarts=1",
    "attack.seeds=1",
)
KNOWN = [
    "generation 1/3  best  94.44%  median  93.52%  rejected 0 of 4  diverged 0  known from before",
    "generation 2/3  best  94.81%  median  93.33%  rejected 0 of 4  diverged 0  known from before",
]
PYTORCH = "2.14.1"  # of the installation that made the data


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The work folder that version 0.1.0 left."""
    with ZipFile(DATA) as archive:
        archive.extractall(tmp_path)
    # MLflow keeps absolute paths of artifacts, here those of the machine that made the data.
    store = (tmp_path / "store").as_uri()
    with closing(sqlite3.connect(tmp_path / "mlruns.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)",
                ("file:///srv/sweep/runs/store", store),
            )
    return tmp_path


def table_and_verdict_alone(output: str) -> bool:
    """Return whether this is what ``--quiet`` prints."""
    lines = output.splitlines()
    printed = [line for line in lines if line]
    return (
        lines[:8] == final_table(output)[:8]
        and printed[0].startswith("loss ")
        and printed[-1].endswith(").")
        and len(printed) == 2 + len(LOSSES) + 1 + 1
    )


def test_it_goes_on_and_trains_nothing_again(work: Path) -> None:
    before = trained(work, **SEARCH)
    assert len(before) == 2 * POPSIZE
    assert {c.result.precision for c in before.values() if c.result} == {"float32"}
    files = files_of(work / "store")
    store = open_store(str(work / "store"))
    unfinished = RunState.read(store, "digits").unfinished

    process = Sweeps(work, SETTINGS, words=("--quiet",)).run()
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert table_and_verdict_alone(process.stdout)
    log = (work / "logs" / "digits.log").read_text().splitlines()
    said = [line.removeprefix("taylorglo: ") for line in log]
    lines = [line for line in said if line.startswith("generation ")]
    assert lines[:2] == KNOWN
    assert lines[2].startswith("generation 3/3  best ")
    assert lines[2].endswith(" s")

    candidates = study_of(work, **SEARCH)
    assert [c.generation for c in candidates] == [1] * 4 + [2] * 4 + [3] * 4
    after = trained(work, **SEARCH)
    assert len(after) == 3 * POPSIZE
    assert before.items() <= after.items()
    assert all(0.5 < c.result.fitness <= 1 for c in after.values() if c.result)

    now = files_of(work / "store")
    results = {name for name in files if not name.endswith("run.json")}
    assert {name: files[name] for name in results} == {name: now[name] for name in results}
    new = now.keys() - files.keys()
    assert sum(name.startswith("evaluations/") for name in new) == POPSIZE * 2
    # The finalists, and champion and baselines from two seeds. The results of the tuning are kept
    # under keys that have the version of PyTorch in them.
    tuned_again = 0 if version("torch") == PYTORCH else 6
    for kind in (".json", ".safetensors"):
        trainings = [n for n in new if n.startswith("digits/trainings/") and n.endswith(kind)]
        assert len(trainings) == 3 + 4 * 2 + tuned_again

    (parent,), nested = runs_of(mlflow_of(work))
    assert (parent.info.run_id, parent.info.status) == (unfinished, "FINISHED")
    assert RunState.read(store, "digits") == RunState()
    trials = [run.data.tags.get("taylorglo.trial") for run in nested]
    assert sorted(int(trial) for trial in trials if trial) == sorted(after)
