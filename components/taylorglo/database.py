"""The database of a study: which URLs are good, and actions on it that are tried again."""

import re
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import optuna

from taylorglo.errors import InputError, ServiceError

TRIES, _PAUSE = 4, 0.5  # of a failing database: as many tries, the pause in seconds doubled each time
SERVER_TRIES, _LONGEST_PAUSE = 13, 16  # of a server in the middle of a search: two minutes, to start again in
_BUSY_SECONDS = 60  # how long one try waits for an SQLite file that another process is writing
# A minute after a node is lost or a connection is, both ends know it: the server, so that claims do not outlive theirs.
_POSTGRESQL = {
    "connect_timeout": 10,
    **{"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3},
    "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}
_HOPELESS = ("file is not a database", "unable to open database file", "attempt to write a readonly database")

Result = TypeVar("Result")


def open_storage(url: str, new: bool, tries: int) -> optuna.storages.RDBStorage:
    """Optuna's storage in a database.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://...`` without a password (libpq reads PGPASSWORD).
        new: whether its tables may have to be made; if not, time is saved.
        tries: as for :func:`retried`.

    Raises:
        InputError: the URL is malformed, or the database cannot be used.
        ServiceError: it does not answer after the last try.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: of a port that is no number
        raise InputError(
            "the study's URL is malformed; it should be sqlite:///PATH or postgresql://HOST/DATABASE"
        ) from None
    shown = parsed.set(query={}).render_as_string(hide_password=True)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(f"{shown}: a study is kept in sqlite:///PATH or postgresql://HOST/DATABASE")
    if parsed.password or any("password" in option for option in parsed.query):
        raise InputError(f"{shown}: leave the password out of the URL and set PGPASSWORD in the environment")
    if parsed.drivername == "postgresql":  # which driver that means depends on SQLAlchemy's version
        parsed = parsed.set(drivername="postgresql+psycopg")
    arguments = {"timeout": _BUSY_SECONDS} if parsed.get_backend_name() == "sqlite" else _POSTGRESQL
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return retried(
                lambda: optuna.storages.RDBStorage(
                    parsed.render_as_string(hide_password=False),
                    engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
                    skip_compatibility_check=not new,  # a fifth of a second in every task
                    skip_table_creation=not new,
                ),
                tries,
            )
    except (InputError, ArgumentError, NoSuchModuleError, ImportError) as error:
        raise InputError(f"{shown}: {_first_line(error)}") from None


def retried(action: Callable[[], Result], tries: int) -> Result:
    """Run an action on the database, again after 0.5, 1, 2, ... seconds if the database fails.

    Raises:
        InputError: it fails in a way that no further try can mend.
        ServiceError: it still fails after the last try.
    """
    from sqlalchemy.exc import DBAPIError

    for attempt in range(tries):
        try:
            return action()
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            failure = error if isinstance(error, DBAPIError) else error.__cause__
            # The driver's own error: SQLAlchemy's goes on with the statement and its parameters.
            message = _first_line((isinstance(failure, DBAPIError) and failure.orig) or error)
            if any(hopeless in message for hopeless in _HOPELESS):
                raise InputError(f"the study's database cannot be used: {message}") from None
            if attempt == tries - 1:
                raise ServiceError(f"the study's database fails, after {tries} tries: {message}") from None
            time.sleep(min(_PAUSE * 2**attempt, _LONGEST_PAUSE))
    raise AssertionError("unreachable")


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).split(" (Background on this error")[0].strip()[:300]
