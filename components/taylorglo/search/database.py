"""The database of a study: which URLs are good, and actions that are retried."""

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from taylorglo.addresses import sqlite_file
from taylorglo.errors import InputError, ServiceError, is_disk_full, one_line, with_remedy
from taylorglo.retries import doubling, retry, waiting
from taylorglo.search.locks import claims_of, opened

TRIES = 4  # of an action on a database that fails
SERVER_TRIES = 13  # of a server in the middle of a search: it has two minutes to start again
BUSY_SECONDS = 20  # how long one try waits for an SQLite file that another process writes

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 16  # seconds
_STUDIES = "studies"  # the table by which a database of Optuna is known
_OF_MLFLOW = "experiments"  # the table by which a database of MLflow is known
_MIGRATIONS = "alembic_version"  # the table in which Optuna and MLflow alike keep their version
# A minute after a connection is lost, both ends know it. The server has to know it too, so that
# a lost process keeps no claims.
_POSTGRESQL = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}
_HOPELESS = (
    "file is not a database",
    "unable to open database file",
    "attempt to write a readonly database",
    "database disk image is malformed",
    "password authentication failed",
)

Result = TypeVar("Result")


def open_storage(
    url: str, *, new: bool, tries: int, busy_seconds: float = BUSY_SECONDS
) -> optuna.storages.RDBStorage:
    """Open Optuna's storage in a database.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://...`` without a password (libpq reads
            PGPASSWORD).
        new: whether its tables may have to be made. Time is saved if they are there.
        tries: as for :func:`retried`.
        busy_seconds: how long one try waits for an SQLite file that another process writes.

    Raises:
        InputError: the URL is malformed, or the database cannot be used.
        ServiceError: the database does not answer after the last try.
    """
    parsed = _parsed(url)
    arguments = _arguments(parsed, busy_seconds)
    connection: dict[str, Any] = {"connect_args": arguments, "pool_pre_ping": True}

    def connected() -> optuna.storages.RDBStorage:
        if new:
            tables = _tables(parsed, arguments)
            _check_owner(parsed, tables)
            if not tables:
                _use_log(parsed, arguments)
        address = _with_driver(parsed).render_as_string(hide_password=False)
        storage = optuna.storages.RDBStorage(
            address,
            engine_kwargs=connection,
            # Optuna's own check takes a fifth of a second in every task.
            skip_compatibility_check=True,
            skip_table_creation=not new,
        )
        if new and storage.get_current_version() != _newest_version(storage):
            # The check fails, and says how to go on.
            return optuna.storages.RDBStorage(address, engine_kwargs=connection)
        return storage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return retried(connected, tries, _shown(parsed))
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise InputError(f"{_shown(parsed)}: {_message(error)}") from None
    except RuntimeError as error:
        if isinstance(error, ServiceError):
            raise
        # Another version of Optuna has another schema.
        raise InputError(f"{_shown(parsed)}: {one_line(error)}") from None


# The version of this Optuna's tables, once it is known. Optuna loads all its migrations to tell it.
_newest: list[str] = []


def _newest_version(storage: optuna.storages.RDBStorage) -> str:
    if not _newest:
        _newest.append(storage.get_head_version())
    return _newest[0]


def retried(
    action: Callable[[], Result], tries: int, database: str = "the study's database"
) -> Result:
    """Run an action on the database, again after 0.5, 1, 2, ... seconds if the database fails.

    Args:
        action: what is done; it has to be safe to do twice.
        tries: how many tries there are in all.
        database: name of the database, for the error.

    Raises:
        InputError: it fails in a way that no further try can mend.
        ServiceError: it still fails after the last try, and after the waiting on a cluster.
    """
    return waiting(lambda: _retried(action, tries, database))


def _retried(action: Callable[[], Result], tries: int, database: str) -> Result:
    try:
        return retry(
            action,
            doubling(_FIRST_PAUSE, tries, _LONGEST_PAUSE),
            retryable=lambda error: _is_of_database(error) and not _is_hopeless(error),
        )
    except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
        message = _message(error)
        if is_disk_full(message):
            raise ServiceError(with_remedy(f"{database}: {message}")) from None
        if _is_hopeless(error):
            raise InputError(f"{database}: cannot be used: {message}") from None
        raise ServiceError(f"{database}: still fails after {tries} tries: {message}") from None


def check(url: str) -> None:
    """Find out whether a study can be kept in a database, before anything is computed.

    Nothing is made or changed there.

    Raises:
        InputError: the URL is malformed, or the database cannot be used.
        ServiceError: the database does not answer after the last try.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        file = sqlite_file(url)
        if claims_of(str(file)).exists():
            opened(claims_of(str(file))).close()
        if not file.exists():
            _check_folder(parsed, file.parent)
            return

    def names() -> set[str]:
        return _tables(parsed, _arguments(parsed, BUSY_SECONDS))

    tables = retried(names, TRIES, _shown(parsed))
    _check_owner(parsed, tables)
    if _STUDIES in tables:
        # Optuna compares the version of its tables.
        open_storage(url, new=True, tries=TRIES).engine.dispose()


def _check_folder(url: URL, folder: Path) -> None:
    """Refuse a folder in which no file can be made."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"{_shown(url)}: cannot be made; {folder} should be a folder that this user can write "
            "to"
        )


def shown(url: str) -> str:
    """Return the URL of a study's database as errors show it, without credentials."""
    return _shown(_parsed(url))


def _arguments(url: URL, busy_seconds: float) -> dict[str, Any]:
    """Return the arguments of a connection."""
    return _POSTGRESQL if url.get_backend_name() == "postgresql" else {"timeout": busy_seconds}


def _tables(url: URL, arguments: dict[str, Any]) -> set[str]:
    """Return the names of the tables that a database has."""
    engine = sqlalchemy.create_engine(_with_driver(url), connect_args=arguments)
    try:
        return set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()


def _use_log(url: URL, arguments: dict[str, Any]) -> None:
    """Let SQLite append what is written to a log beside a new file, if it is on a local disk.

    SQLite then waits for the disk once for each write, and not four times. Processes share the log
    through memory, so that it is not for file systems that several machines have in common.
    """
    if url.get_backend_name() != "sqlite" or url.database in (None, ":memory:"):
        return
    # Those file systems have no device, and neither have those of containers.
    if os.major(Path(str(url.database)).parent.stat().st_dev) == 0:
        return
    engine = sqlalchemy.create_engine(_with_driver(url), connect_args=arguments)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    finally:
        engine.dispose()


def _check_owner(url: URL, names: set[str]) -> None:
    """Refuse a database of another program, before Optuna adds its tables to it.

    Args:
        url: of the database.
        names: of its tables.

    Raises:
        InputError: the database has tables of another program, or is one of MLflow.
    """
    foreign = names & {_OF_MLFLOW}
    if not foreign and _STUDIES not in names:
        # A server's database may have tables of others, as long as they keep no version there.
        foreign = names if url.get_backend_name() == "sqlite" else names & {_MIGRATIONS}
    if foreign:
        raise InputError(
            f"{_shown(url)}: is a database of another program, such as MLflow (it has the table "
            f"{min(foreign)!r}); the study should have a database of its own"
        )


def _parsed(url: str) -> URL:
    """Return the URL if a study can be kept there."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is no number
        raise InputError(
            "the study's URL is malformed; it should be sqlite:///PATH or "
            "postgresql://HOST/DATABASE"
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(
            f"{_shown(parsed)}: a study is kept in sqlite:///PATH or postgresql://HOST/DATABASE"
        )
    if parsed.password or any("password" in option for option in parsed.query):
        raise InputError(
            f"{_shown(parsed)}: leave the password out of the URL and set PGPASSWORD in the "
            "environment"
        )
    # A program that uses this package may keep a study in memory, which no task could find.
    if parsed.get_backend_name() == "sqlite" and parsed.database != ":memory:":
        return parsed.set(database=str(sqlite_file(url)))
    return parsed


def _with_driver(url: URL) -> URL:
    """Name the driver that is installed: the default one depends on SQLAlchemy's version."""
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _shown(url: URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)


def _is_of_database(error: BaseException) -> bool:
    return isinstance(error, DBAPIError | optuna.exceptions.StorageInternalError)


def _is_hopeless(error: BaseException) -> bool:
    message = _message(error)
    return is_disk_full(message) or any(text in message for text in _HOPELESS)


def _message(error: BaseException) -> str:
    """Return the driver's own message: SQLAlchemy's goes on with the statement and its values."""
    cause = error if isinstance(error, DBAPIError) else error.__cause__
    original = cause.orig if isinstance(cause, DBAPIError) else None
    return re.split(r" \(Background on this error", one_line(original or error))[0]
