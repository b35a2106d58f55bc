"""The studies of a database: what is read of them, which can go, and what is left."""

import sqlite3
import subprocess
import sys
import sysconfig
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest

from taylorglo.errors import InputError
from taylorglo.results import Evaluation
from taylorglo.search.studies import Studies, Study, deletable
from taylorglo.search.study import Search
from taylorglo.settings import Identity, SearchSettings

SETTINGS = SearchSettings(
    family="taylor",
    coordinates="reduced",
    popsize=4,
    mean=[0.0] * 4,
    filters=["none"],
    renew=True,
)
IDENTITY = Identity(candidates={"data": "digits 0123456789ab"}, fitness={}, precision="auto")
CLAIM = """
import sys
from taylorglo.search.study import Search
from taylorglo.settings import SearchSettings
_, url, name, trial = sys.argv
settings = SearchSettings(family="taylor", coordinates="reduced", popsize=4)
search = Search(url, name, settings, 0, num_classes=10)
with search.claimed(int(trial)) as candidate:
    print(candidate is not None, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return str(request.getfixturevalue("postgres_url"))


def begin(url: str, sweep: str = "digits", told: int = 4) -> Search:
    """Begin a search, or a new one after it; tell it this many results of its first generation."""
    search = Search.begin(url, sweep, SETTINGS, 0, IDENTITY, num_classes=10)
    result = Evaluation(
        status="ok",
        fitness=0.5,
        accuracies=[0.5],
        robust_accuracies=[],
        curve=[],
        started=0.0,
        ended=1.0,
        seconds=1.0,
    )
    search.propose(1)
    for candidate in search.screen(1)[:told]:
        search.tell(candidate.trial, result)
    if told == 4:
        search.finish()
    return search


def test_what_is_read_of_the_studies(url: str) -> None:
    started = datetime.now(UTC)
    begin(url)
    begin(url, "digits-2")
    begin(url, told=2)
    storage = optuna.storages.RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
    optuna.create_study(storage=storage, study_name="digits.of-another-program")
    sweeps = Studies.open(url).by_sweep()
    assert list(sweeps) == ["digits", "digits-2"]
    first, second = sweeps["digits"]
    assert (first.name, first.number, first.candidates) == ("digits", 1, 4)
    assert (first.finished, first.in_use, first.source) == (True, False, None)
    assert first.data == "0123456789ab"
    assert first.last is not None
    assert started <= first.last <= datetime.now(UTC)
    assert (second.name, second.number, second.finished) == ("digits.2", 2, False)
    assert second.source == "digits"
    assert [study.name for study in sweeps["digits-2"]] == ["digits-2"]


def test_a_study_is_in_use_while_a_process_has_claimed_a_candidate(url: str) -> None:
    search = begin(url, told=2)
    (trial, _) = [c.trial for c in search.candidates() if not c.finished]
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM, url, search.study, str(trial)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        studies = Studies.open(url)
        assert [study.in_use for study in studies.by_sweep()["digits"]] == [True]
        process.communicate("go\n", timeout=60)
    assert [study.in_use for study in studies.by_sweep()["digits"]] == [False]


def test_a_deleted_study_is_gone_with_its_candidates_and_the_sweep_goes_on(url: str) -> None:
    begin(url)
    begin(url)
    third = begin(url)
    other = begin(url, "digits-2")
    studies = Studies.open(url)
    first, second, _ = studies.by_sweep()["digits"]
    for _ in range(2):
        studies.delete(first)
    assert [study.name for study in studies.by_sweep()["digits"]] == ["digits.2", "digits.3"]
    assert len(third.candidates()) == len(other.candidates()) == 4
    trials = studies._storage.get_all_trials(studies._storage.get_study_id_from_name("digits.2"))
    assert len(trials) == second.candidates
    with pytest.raises(KeyError):
        studies._storage.get_study_id_from_name("digits")
    fourth = begin(url)
    assert (fourth.study, fourth.source) == ("digits.4", "digits.3")


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        Studies.open(f"sqlite:///{tmp_path / 'absent.db'}")
    assert list(tmp_path.iterdir()) == []


def test_studies_of_an_older_optuna_are_upgraded_by_its_own_command(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    begin(url)
    newest = schema(tmp_path / "study.db", "v3.0.0.d")
    with pytest.raises(InputError, match="optuna storage upgrade --storage"):
        Studies.open(url)
    program = f"{sysconfig.get_path('scripts')}/optuna"
    upgrade = [program, "storage", "upgrade", "--storage", url]
    subprocess.run(upgrade, check=True, capture_output=True)
    assert [study.candidates for study in Studies.open(url).by_sweep()["digits"]] == [4]
    assert schema(tmp_path / "study.db", "v99.0.0.a") == newest
    with pytest.raises(InputError, match="updating optuna"):
        Studies.open(url)


def schema(path: Path, version: str) -> str:
    """Change the version of a database's tables; return the one that it had."""
    with closing(sqlite3.connect(path)) as database, database:
        ((former,),) = database.execute("SELECT version_num FROM alembic_version").fetchall()
        database.execute("UPDATE alembic_version SET version_num = ?", [version])
    return str(former)


NOW = datetime(2026, 3, 31, tzinfo=UTC)
STUDY = Study("s", "s", 1, 4, "0123", True, False, None, NOW - timedelta(days=40))


def chain(length: int) -> list[Study]:
    """Return the studies of a sweep, each warm-started from the one before it."""
    names = ["s", *(f"s.{number}" for number in range(2, length + 1))]
    return [
        replace(STUDY, name=name, number=number, source=names[number - 2] if number > 1 else None)
        for number, name in enumerate(names, start=1)
    ]


def gone(studies: list[Study], kept: str = "") -> list[str]:
    return [study.name for study in deletable(studies, NOW - timedelta(days=30), kept)]


def test_the_newest_study_and_its_source_are_kept() -> None:
    assert gone(chain(1)) == gone(chain(2)) == []
    assert gone(chain(5)) == ["s", "s.2", "s.3"]
    assert gone(chain(12)) == ["s", *(f"s.{number}" for number in range(2, 11))]
    # A search of other coordinates is not warm-started.
    first, second = chain(2)
    assert gone([first, replace(second, source=None)]) == ["s"]
    assert gone([replace(second, source=None), first]) == ["s"]


@pytest.mark.parametrize(
    "change",
    [{"in_use": True}, {"last": NOW - timedelta(days=29)}, {"last": None}],
    ids=["in use", "young", "without candidates"],
)
def test_a_study_that_may_be_needed_is_kept_with_its_source(change: dict[str, object]) -> None:
    studies = chain(6)
    studies[2] = replace(studies[2], **change)  # type: ignore[arg-type]
    assert gone(studies) == ["s", "s.4"]


def test_the_study_of_an_unfinished_run_is_kept() -> None:
    assert gone(chain(4), kept="s.2") == []
    assert gone(chain(4), kept="s.9") == ["s", "s.2"]
