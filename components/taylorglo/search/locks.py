"""Claims on parts of a study, so that two runs of one sweep share its work.

A claim lasts as long as the process that holds it: PostgreSQL's advisory locks end with the
connection, and locks on the bytes of a file end with the process. Nothing has to be renewed, and a
killed process leaves nothing behind. If PostgreSQL itself is restarted, all claims are gone; a
candidate may then be trained twice, with the same result. A connection pool that lends a connection
for one transaction only (PgBouncer's transaction mode) makes claims void.

No library offers locks of both kinds under one interface, so this is our own code.
"""

import fcntl
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from taylorglo.errors import InputError

_MOST_PARTS = 1 << 31  # of a study, in the file of locks


class Claims:
    """The claims of one process on the numbered parts of a study."""

    def __init__(self, engine: Engine, study: int) -> None:
        """Prepare claims in the database of ``engine``; ``study`` is the study's id in it."""
        self._engine = engine
        self._study = study
        self._connection: Connection | None = None
        self._file: BinaryIO | None = None
        self._held: set[int] = set()

    def take(self, part: int) -> bool:
        """Claim a part until it is released; return False if any process has claimed it.

        Raises:
            InputError: the study's folder is on a file system without locks.
            SQLAlchemyError: the database fails.
        """
        if part in self._held or not self._take(part):
            return False
        self._held.add(part)
        return True

    def release(self, part: int) -> None:
        """Give a claim up."""
        self._held.discard(part)
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._offset(part))
        elif self._connection is not None:
            try:
                self._connection.execute(self._call("pg_advisory_unlock", part))
            except SQLAlchemyError:
                # The connection broke, and the claim ended with it.
                self._forget_connection()

    def _take(self, part: int) -> bool:
        if self._engine.dialect.name == "postgresql":
            return self._take_in_postgresql(part)
        if self._file is None:
            path = self._database_file()
            if not path:
                # A database in memory, which no other process can see.
                return True
            # One handle for good: closing any handle of a file gives up all of a process's locks.
            self._file = opened(claims_of(path))
            weakref.finalize(self, self._file.close)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._offset(part))
        except (BlockingIOError, PermissionError):
            # Which of the two depends on the system.
            return False
        except OSError as error:
            raise InputError(f"{self._file.name}: cannot be locked: {error.strerror}") from None
        return True

    def _database_file(self) -> str:
        with self._engine.connect() as connection:
            databases = connection.exec_driver_sql("PRAGMA database_list").all()
        return str(next(path for _, name, path in databases if name == "main") or "")

    def _take_in_postgresql(self, part: int) -> bool:
        if self._connection is None or self._connection.closed:
            # A connection of its own, which stays open while those of the pool come and go.
            connection = self._engine.connect()
            self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            return bool(self._connection.scalar(self._call("pg_try_advisory_lock", part)))
        except SQLAlchemyError:
            # The claims ended with the connection; the next try opens another one.
            self._forget_connection()
            raise

    def _offset(self, part: int) -> int:
        return self._study * _MOST_PARTS + part

    def _call(self, function: str, part: int) -> TextClause:
        call = text(f"SELECT {function}(CAST(:study AS integer), CAST(:part AS integer))")
        return call.bindparams(study=self._study, part=part)

    def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.invalidate()
                connection.close()


def claims_of(database: str) -> Path:
    """Return the file of locks beside an SQLite database."""
    return Path(f"{database}.claims")


def opened(path: Path) -> BinaryIO:
    """Open a file of locks, which is made if there is none.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        return path.open("ab")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be opened ({error.strerror}); it should be a file that this user can "
            "write, which keeps the locks of the study"
        ) from None
