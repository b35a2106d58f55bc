"""The study's database: PostgreSQL as on SQLite, connections that break, and what is said when it
cannot be used."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import at_once
from sqlalchemy import event
from sqlalchemy.engine import Engine

from taylorglo.errors import InputError, ServiceError
from taylorglo.search import database as module
from taylorglo.search.study import Search
from taylorglo.settings import SearchSettings

SETTINGS = SearchSettings(popsize=4, mean=[0.0] * 4, filters=["learnable"])
CLASSES = 10
SECRET = "correct-horse"


def open_search(url: str) -> Search:
    return Search(url, "s", SETTINGS, 3, {"seed": 3})


def run(search: Search, generations: int) -> list[tuple[Any, ...]]:
    for generation in range(1, generations + 1):
        search.propose(generation)
        for c in search.screen(generation, CLASSES):
            if not c.finished:
                search.tell(c.trial, 1 / (1 + sum(x * x for x in c.theta)), {"status": "ok"})
    return [
        (c.trial, c.generation, c.theta, c.verdict, c.result, c.fitness)
        for c in search.candidates()
    ]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """Two generations as SQLite gives them."""
    return run(open_search(f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/study.db"), 2)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)


@pytest.fixture
def admin(postgres: str) -> Iterator[Callable[..., None]]:
    """Statements of the server's administrator, from a database of her own."""
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection.execute


def name_of(url: str) -> str:
    return url.split("/")[3].split("?")[0]


TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"


def test_postgresql_gives_the_candidates_of_sqlite(postgres_url, expected):
    assert run(open_search(postgres_url), 2) == expected
    assert run(open_search(postgres_url), 2) == expected


def test_two_processes_tell_the_same_results_at_once(postgres_url, expected):
    search = open_search(postgres_url)
    search.propose(1)
    search.screen(1, CLASSES)
    code = """
from test_study_database import *
search = Search(sys.argv[1], "s", SETTINGS, 3)
own = [c for c in search.candidates(1) if not c.rejected]
wait()
for c in own:
    search.tell(c.trial, 1 / (1 + sum(x * x for x in c.theta)), {"status": "ok"})
"""
    assert at_once(code, postgres_url, path=Path(__file__).parent) == [("", "")] * 2
    assert run(open_search(postgres_url), 2) == expected


@contextmanager
def on_every_write(number: int, action: Callable[[], object]) -> Iterator[list[str]]:
    """Do something just before every ``number``-th statement that writes; yields those
    statements."""
    writes = 0
    struck: list[str] = []

    def before(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal writes
        if statement.startswith(("INSERT", "UPDATE")):
            writes += 1
            if writes % number == 0:
                struck.append(statement)
                action()

    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield struck
    finally:
        event.remove(Engine, "before_cursor_execute", before)


@pytest.mark.usefixtures("impatient")
def test_connections_that_break_in_the_middle_of_a_write(postgres_url, expected, admin):
    search = open_search(postgres_url)
    with on_every_write(17, lambda: admin(TERMINATE, [name_of(postgres_url)])) as struck:
        found = run(search, 2)
    assert len({statement.split("(")[0] for statement in struck}) >= 3, "of several tables"
    assert found == expected
    assert len(search._study.trials) == len(expected)


@pytest.mark.usefixtures("impatient")
def test_a_database_that_goes_away_and_comes_back(postgres_url, expected, admin):
    search, name = open_search(postgres_url), name_of(postgres_url)
    search.propose(1)
    admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    admin(TERMINATE, [name])
    for action in (
        lambda: search.candidates(),
        lambda: search.propose(1),
        lambda: search.screen(1, CLASSES),
        lambda: search.tell(0, 0.5, {}),
        lambda: open_search(postgres_url),
    ):
        with pytest.raises(
            ServiceError,
            match=r"^the study's database fails, after 4 tries: .*not currently accepting connections$",
        ):
            action()
    admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert run(search, 2) == expected


@pytest.mark.usefixtures("impatient")
def test_in_the_middle_of_a_search_a_server_has_time_to_start_again(
    postgres_url, admin, monkeypatch
):
    name = name_of(postgres_url)
    open_search(postgres_url).propose(1)
    task = Search(postgres_url, "s", SETTINGS, 3)  # as a task does that comes after the front door
    admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    admin(TERMINATE, [name])
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 10:
            admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    monkeypatch.setattr(module, "_PAUSE", 0.5)
    monkeypatch.setattr(module.time, "sleep", pause)
    assert len(task.candidates(1)) == 4
    assert pauses == [0.5, 1, 2, 4, 8, 16, 16, 16, 16, 16]


# Two runs at once


def test_a_claim_is_one_process_s_and_ends_with_its_connection(postgres_url, admin):
    mine, theirs = open_search(postgres_url), open_search(postgres_url)
    trial = mine.propose(1)[0].trial
    with mine.claimed(trial) as candidate:
        assert candidate is not None
        with theirs.claimed(trial) as taken:
            assert taken is None
        with theirs.claimed(trial + 1) as other:
            assert other is not None
        admin(
            TERMINATE, [name_of(postgres_url)]
        )  # as when a process is killed, or the server restarted
        with theirs.claimed(trial) as freed:
            assert freed is not None
    with mine.claimed(trial) as again:
        assert again is not None


def test_claims_on_another_study_are_others(postgres_url):
    first, second = open_search(postgres_url), Search(postgres_url, "s.2", SETTINGS, 3, {"seed": 3})
    trial = first.propose(1)[0].trial
    assert second.propose(1)[0].trial == trial
    with first.claimed(trial) as mine, second.claimed(trial) as other:
        assert mine is not None
        assert other is not None


def test_two_runs_that_draw_at_once_draw_one_generation(postgres_url, expected):
    open_search(postgres_url)
    searches = [Search(postgres_url, "s", SETTINGS, 3) for _ in range(4)]
    barrier = threading.Barrier(len(searches))
    failures: list[BaseException] = []

    def draw(search: Search) -> None:
        try:
            barrier.wait(30)
            search.propose(1)
            search.screen(1, CLASSES)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=draw, args=(search,)) for search in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert run(open_search(postgres_url), 2) == expected


# What is said


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_not_there(free_port_url, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", SECRET)
    with pytest.raises(ServiceError) as caught:
        open_search(free_port_url)
    message = str(caught.value)
    assert message.startswith("the study's database fails, after 4 tries: ")
    assert "refused" in message
    assert "\n" not in message
    assert SECRET not in message


@pytest.fixture
def free_port_url() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"postgresql://someone@127.0.0.1:{probe.getsockname()[1]}/study"


@pytest.mark.usefixtures("impatient")
def test_tries_are_counted_and_paused_for(free_port_url, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(module, "_PAUSE", 0.5)
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    with pytest.raises(ServiceError):
        open_search(free_port_url)
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.usefixtures("impatient")
def test_a_database_that_does_not_exist(postgres_url):
    with pytest.raises(
        ServiceError, match=r'^the study\'s database fails.* database "nosuch" does not exist$'
    ):
        open_search(postgres_url.replace(name_of(postgres_url), "nosuch"))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://someone:{SECRET}@127.0.0.1/study",
        f"postgresql://someone@127.0.0.1/study?password={SECRET}",
        f"postgresql://someone@127.0.0.1/study?sslpassword={SECRET}",
    ],
)
def test_passwords_in_the_url_are_refused_unseen(url):
    with pytest.raises(InputError, match="PGPASSWORD") as caught:
        open_search(url)
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
            "sqlite:////proc/study.db: the study's database cannot be used: unable to open",
        ),
    ],
)
def test_urls_that_cannot_be_used(url, message):
    with pytest.raises(InputError) as caught:
        open_search(url)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_files_that_are_no_database(tmp_path):
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear study,\n" * 500)
    with pytest.raises(
        InputError,
        match=r"letter\.txt: the study's database cannot be used: file is not a database$",
    ):
        open_search(f"sqlite:///{letter}")
    assert letter.read_text() == "Dear study,\n" * 500
    with pytest.raises(
        InputError, match=r"nowhere/study\.db: the study's database cannot be used: unable to open"
    ):
        open_search(f"sqlite:///{tmp_path}/nowhere/study.db")


def test_a_database_that_may_only_be_read(tmp_path):
    open_search(f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(
        InputError,
        match=r"^the study's database cannot be used: attempt to write a readonly database$",
    ):
        Search(f"sqlite:///file:{tmp_path}/study.db?mode=ro&uri=true", "s", SETTINGS, 3)


def test_a_locked_file_is_waited_for_and_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    url, path = f"sqlite:///{tmp_path}/study.db", tmp_path / "study.db"
    patient = open_search(url)
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
    impatient = open_search(url)
    trial = patient.propose(1)[0].trial
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(
        ServiceError, match=r"^the study's database fails, after 4 tries: database is locked$"
    ):
        impatient.tell(trial, 0.5, {})
    release = threading.Timer(0.5, lambda: other.execute("ROLLBACK"))
    release.start()
    patient.tell(trial, 0.5, {})
    release.join()
    other.close()
    assert impatient.candidates()[0].fitness == 0.5
