"""The study's database: PostgreSQL beside SQLite, broken connections, and the errors of databases
that cannot be used."""

import itertools
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from clocks import Clock
from servers import at_once
from sqlalchemy import event
from sqlalchemy.engine import Engine

from taylorglo import retries
from taylorglo.errors import InputError, ServiceError
from taylorglo.results import Evaluation
from taylorglo.search.study import Search
from taylorglo.settings import Identity, SearchSettings

SETTINGS = SearchSettings(
    family="taylor", coordinates="reduced", popsize=4, mean=[0.0] * 4, filters=["learnable"]
)
IDENTITY = Identity(candidates={"seed": 3}, fitness={}, precision="auto")
SECRET = "correct-horse"
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"

Figures = list[tuple[Any, ...]]


def begin_search(url: str, name: str = "s", **waits: float) -> Search:
    """Open a study as the first task does, which makes its tables if need be."""
    return Search(url, name, SETTINGS, 3, IDENTITY, num_classes=10, **waits)


def join_search(url: str) -> Search:
    """Open the study as a later task does."""
    return Search(url, "s", SETTINGS, 3, num_classes=10)


def evaluation(theta: list[float]) -> Evaluation:
    """Return the result of a candidate, which depends on theta alone."""
    fitness = 1 / (1 + sum(x * x for x in theta))
    return Evaluation(
        status="ok",
        fitness=fitness,
        accuracies=[fitness],
        robust_accuracies=[],
        curve=[],
        started=0.0,
        ended=1.0,
        seconds=1.0,
    )


HALF = evaluation([1.0])  # its fitness is 0.5


def run(search: Search, generations: int) -> Figures:
    """Run a search; return everything that the study has of its candidates but the time."""
    for generation in range(1, generations + 1):
        search.propose(generation)
        for candidate in search.screen(generation):
            if not candidate.finished:
                search.tell(candidate.trial, evaluation(candidate.theta))
    return [
        (c.trial, c.generation, c.theta, c.verdict, c.result, c.fitness)
        for c in search.candidates()
    ]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Two generations in SQLite."""
    return run(begin_search(f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/study.db"), 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the pauses between tries, which does not wait."""
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)
    return clock


class Admin:
    """The administrator of the server, connected to another database than the test's."""

    def __init__(self, execute: Callable[..., object], url: str) -> None:
        self.database = url.split("/")[3].split("?")[0]
        self._execute = execute

    def end_connections(self) -> None:
        self._execute(TERMINATE, [self.database])

    def allow_connections(self, allowed: bool) -> None:
        self._execute(f"ALTER DATABASE {self.database} ALLOW_CONNECTIONS {allowed}")


@pytest.fixture
def admin(postgres: str, postgres_url: str) -> Iterator[Admin]:
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        yield Admin(connection.execute, postgres_url)


def test_postgresql_gives_the_candidates_of_sqlite(postgres_url: str, expected: Figures) -> None:
    assert run(begin_search(postgres_url), 2) == expected
    assert run(begin_search(postgres_url), 2) == expected


def test_two_processes_tell_the_same_results_at_once(postgres_url: str, expected: Figures) -> None:
    search = begin_search(postgres_url)
    search.propose(1)
    search.screen(1)
    imports = "from test_study_database import evaluation, join_search"
    code = """
search = join_search(sys.argv[1])
accepted = [candidate for candidate in search.candidates(1) if not candidate.rejected]
wait()
for candidate in accepted:
    search.tell(candidate.trial, evaluation(candidate.theta))
"""
    outputs = at_once(code, postgres_url, imports=imports, path=Path(__file__).parent)
    assert outputs == [("", "")] * 2
    assert run(begin_search(postgres_url), 2) == expected


@contextmanager
def before_every_write(number: int, action: Callable[[], object]) -> Iterator[list[str]]:
    """Act just before every ``number``-th statement that writes; yield these statements."""
    writes = itertools.count(1)
    struck: list[str] = []

    def before(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "UPDATE")) and next(writes) % number == 0:
            struck.append(statement)
            action()

    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield struck
    finally:
        event.remove(Engine, "before_cursor_execute", before)


@pytest.mark.usefixtures("clock")
def test_connections_that_break_in_the_middle_of_a_write(
    postgres_url: str, expected: Figures, admin: Admin
) -> None:
    search = begin_search(postgres_url)
    with before_every_write(17, admin.end_connections) as struck:
        figures = run(search, 2)
    assert len({statement.split("(")[0] for statement in struck}) >= 3, "of several tables"
    assert figures == expected
    assert len(search._study.trials) == len(expected)


@pytest.mark.usefixtures("clock")
def test_a_database_that_goes_away_and_comes_back(
    postgres_url: str, expected: Figures, admin: Admin
) -> None:
    search = begin_search(postgres_url)
    search.propose(1)
    admin.allow_connections(False)
    admin.end_connections()
    actions: tuple[Callable[[], object], ...] = (
        lambda: search.candidates(),
        lambda: search.propose(1),
        lambda: search.screen(1),
        lambda: search.tell(0, HALF),
        lambda: begin_search(postgres_url),
    )
    for action in actions:
        with pytest.raises(
            ServiceError,
            match=r"^postgresql://\S+: still fails after 4 tries: "
            r".*not currently accepting connections$",
        ):
            action()
    admin.allow_connections(True)
    assert run(search, 2) == expected


def test_in_the_middle_of_a_search_a_server_has_time_to_start_again(
    postgres_url: str, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_search(postgres_url).propose(1)
    task = join_search(postgres_url)
    admin.allow_connections(False)
    admin.end_connections()

    def start_again() -> None:
        if len(clock.pauses) == 10:
            admin.allow_connections(True)

    clock = Clock(start_again)
    monkeypatch.setattr(retries, "time", clock)
    assert len(task.candidates(1)) == 4
    assert clock.pauses == [0.5, 1, 2, 4, 8, 16, 16, 16, 16, 16]


def test_a_claim_belongs_to_one_process_and_ends_with_its_connection(
    postgres_url: str, admin: Admin
) -> None:
    ours = begin_search(postgres_url)
    theirs = begin_search(postgres_url)
    trial = ours.propose(1)[0].trial
    with ours.claimed(trial) as candidate:
        assert candidate is not None
        with theirs.claimed(trial) as taken:
            assert taken is None
        with theirs.claimed(trial + 1) as other:
            assert other is not None
        # A connection ends when its process is killed, or when the server restarts.
        admin.end_connections()
        with theirs.claimed(trial) as freed:
            assert freed is not None
    with ours.claimed(trial) as again:
        assert again is not None


def test_claims_on_different_studies_do_not_conflict(postgres_url: str) -> None:
    first = begin_search(postgres_url)
    second = begin_search(postgres_url, "s.2")
    trial = first.propose(1)[0].trial
    assert second.propose(1)[0].trial == trial
    with first.claimed(trial) as ours, second.claimed(trial) as other:
        assert ours is not None
        assert other is not None


def test_two_runs_that_draw_at_once_draw_one_generation(
    postgres_url: str, expected: Figures
) -> None:
    begin_search(postgres_url)
    searches = [join_search(postgres_url) for _ in range(4)]
    barrier = threading.Barrier(len(searches))
    failures: list[BaseException] = []

    def draw(search: Search) -> None:
        try:
            barrier.wait(30)
            search.propose(1)
            search.screen(1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=draw, args=(search,)) for search in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert run(begin_search(postgres_url), 2) == expected


@pytest.fixture
def closed_url(closed_port: int) -> str:
    """The URL of a server that is not there."""
    return f"postgresql://someone@127.0.0.1:{closed_port}/study"


@pytest.mark.usefixtures("clock")
def test_a_server_that_is_not_there(closed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    with pytest.raises(ServiceError) as caught:
        begin_search(closed_url)
    message = str(caught.value)
    assert message.startswith(f"{closed_url}: still fails after 4 tries: ")
    assert "refused" in message
    assert "\n" not in message
    assert SECRET not in message


def test_tries_are_counted_and_paused_for(closed_url: str, clock: Clock) -> None:
    with pytest.raises(ServiceError):
        begin_search(closed_url)
    assert clock.pauses == [0.5, 1.0, 2.0]


@pytest.mark.usefixtures("clock")
def test_a_database_that_does_not_exist(postgres_url: str, admin: Admin) -> None:
    with pytest.raises(
        ServiceError, match=r'/nosuch: still fails after .* database "nosuch" does not exist$'
    ):
        begin_search(postgres_url.replace(admin.database, "nosuch"))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://someone:{SECRET}@127.0.0.1/study",
        f"postgresql://someone@127.0.0.1/study?password={SECRET}",
        f"postgresql://someone@127.0.0.1/study?sslpassword={SECRET}",
    ],
)
def test_passwords_in_the_url_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InputError, match="PGPASSWORD") as caught:
        begin_search(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "malformed; it should be sqlite:///PATH or postgresql://HOST/DATABASE"),
        (f"postgresql://u:{SECRET}@host:port/db", "malformed; it should be"),
        (
            "mysql://host/db",
            "mysql://host/db: a study is kept in sqlite:///PATH or postgresql://HOST/DATABASE",
        ),
        ("postgresql+nosuch://host/db", "postgresql+nosuch://host/db: "),
        (
            "sqlite:////proc/study.db",
            "sqlite:////proc/study.db: cannot be used: unable to open",
        ),
    ],
)
def test_urls_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        begin_search(url)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_files_that_are_no_database(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear study,\n" * 500)
    with pytest.raises(
        InputError,
        match=r"letter\.txt: cannot be used: file is not a database$",
    ):
        begin_search(f"sqlite:///{letter}")
    assert letter.read_text() == "Dear study,\n" * 500
    with pytest.raises(InputError, match=r"nowhere/study\.db: cannot be used: unable to open"):
        begin_search(f"sqlite:///{tmp_path}/nowhere/study.db")


def test_a_database_that_may_only_be_read(tmp_path: Path) -> None:
    search = begin_search(f"sqlite:///{tmp_path}/study.db")
    engine = search._storage.engine
    engine.dispose()
    event.listen(engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA query_only = ON"))
    with pytest.raises(
        InputError,
        match=r"study\.db: cannot be used: attempt to write a readonly database$",
    ):
        search.propose(1)


def journal(file: Path) -> str:
    """Return how SQLite writes to a file."""
    with closing(sqlite3.connect(file)) as database:
        return str(database.execute("PRAGMA journal_mode").fetchone()[0])


def test_a_new_file_has_a_log_if_its_disk_is_of_this_machine(tmp_path: Path) -> None:
    begin_search(f"sqlite:///{tmp_path}/study.db")
    local = os.major(tmp_path.stat().st_dev) > 0
    assert journal(tmp_path / "study.db") == ("wal" if local else "delete")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        begin_search(f"sqlite:///{memory}/study.db")
        assert journal(Path(memory) / "study.db") == "delete"


def test_a_file_of_an_earlier_version_stays_as_it_is(tmp_path: Path) -> None:
    optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    begin_search(f"sqlite:///{tmp_path}/study.db")
    assert journal(tmp_path / "study.db") == "delete"


@pytest.mark.usefixtures("clock")
def test_a_locked_file_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    patient = begin_search(url)
    impatient = begin_search(url, busy_seconds=0.05)
    trial = patient.propose(1)[0].trial
    with closing(
        sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(
            ServiceError, match=r"study\.db: still fails after 4 tries: database is locked$"
        ):
            impatient.tell(trial, HALF)
        release = threading.Timer(0.5, lambda: other.execute("ROLLBACK"))
        release.start()
        patient.tell(trial, HALF)
        release.join()
    assert impatient.candidates()[0].fitness == 0.5
