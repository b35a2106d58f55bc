"""The database of a study: which URLs are good, and actions that are retried."""

import re
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import optuna
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from taylorglo.errors import InputError, ServiceError, one_line
from taylorglo.retries import doubling, retry, waiting

TRIES = 4  # of an action on a database that fails
SERVER_TRIES = 13  # of a server in the middle of a search: it has two minutes to start again
BUSY_SECONDS = 60  # how long one try waits for an SQLite file that another process writes

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 16  # seconds
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
    arguments: dict[str, Any] = {"timeout": busy_seconds}
    if parsed.get_backend_name() == "postgresql":
        arguments = _POSTGRESQL
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return retried(
                lambda: optuna.storages.RDBStorage(
                    _with_driver(parsed).render_as_string(hide_password=False),
                    engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
                    # The check takes a fifth of a second in every task.
                    skip_compatibility_check=not new,
                    skip_table_creation=not new,
                ),
                tries,
            )
    except (InputError, ArgumentError, NoSuchModuleError, ImportError) as error:
        raise InputError(f"{_shown(parsed)}: {_message(error)}") from None


def retried(action: Callable[[], Result], tries: int) -> Result:
    """Run an action on the database, again after 0.5, 1, 2, ... seconds if the database fails.

    Raises:
        InputError: it fails in a way that no further try can mend.
        ServiceError: it still fails after the last try, and after the waiting on a cluster.
    """
    return waiting(lambda: _retried(action, tries))


def _retried(action: Callable[[], Result], tries: int) -> Result:
    try:
        return retry(
            action,
            doubling(_FIRST_PAUSE, tries, _LONGEST_PAUSE),
            retryable=lambda error: _is_of_database(error) and not _is_hopeless(error),
        )
    except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
        if _is_hopeless(error):
            raise InputError(f"the study's database cannot be used: {_message(error)}") from None
        raise ServiceError(
            f"the study's database fails, after {tries} tries: {_message(error)}"
        ) from None


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
    return parsed


def _with_driver(url: URL) -> URL:
    """Name the driver that is installed: the default one depends on SQLAlchemy's version."""
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _shown(url: URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)


def _is_of_database(error: BaseException) -> bool:
    return isinstance(error, DBAPIError | optuna.exceptions.StorageInternalError)


def _is_hopeless(error: BaseException) -> bool:
    return any(message in _message(error) for message in _HOPELESS)


def _message(error: BaseException) -> str:
    """Return the driver's own message: SQLAlchemy's goes on with the statement and its values."""
    cause = error if isinstance(error, DBAPIError) else error.__cause__
    original = cause.orig if isinstance(cause, DBAPIError) else None
    return re.split(r" \(Background on this error", one_line(original or error))[0]
