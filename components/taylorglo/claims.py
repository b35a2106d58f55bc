"""Claims on parts of a study, so that two runs of one sweep share its work instead of doing it twice.

A claim lasts as long as the process that holds it: PostgreSQL's advisory locks end with the connection, and locks on
the bytes of a file with the process. Nothing has to be renewed, and whoever is killed leaves nothing behind.
"""

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

_MOST = 1 << 31  # numbers of a study, in a file


class Claims:
    """The claims of one process on the numbered parts of a study."""

    def __init__(self, engine: Engine, study: int) -> None:
        """Take claims in the database of ``engine``; ``study`` is the study's id in it."""
        self._engine = engine
        self._study = study
        self._connection: Connection | None = None
        self._file: BinaryIO | None = None
        self._held: set[int] = set()

    def take(self, number: int) -> bool:
        """Claim a part until it is released; returns False where anybody has it already.

        Raises:
            SQLAlchemyError: the database fails.
        """
        if number in self._held or not self._take(number):
            return False
        self._held.add(number)
        return True

    def release(self, number: int) -> None:
        """Give a claim up."""
        self._held.discard(number)
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._offset(number))
        elif self._connection is not None:
            try:
                self._connection.execute(self._call("pg_advisory_unlock", number))
            except SQLAlchemyError:  # the connection broke, and with it went the claim
                self._forget_connection()

    def _take(self, number: int) -> bool:
        if self._engine.dialect.name == "postgresql":
            return self._take_in_postgresql(number)
        if self._file is None:
            with self._engine.connect() as connection:
                databases = connection.exec_driver_sql("PRAGMA database_list").all()
            path = next(path for _, name, path in databases if name == "main")
            if not path:
                return True  # a database in memory, which nobody else can see
            # One handle for good: closing any handle of a file gives up all of a process's locks on it.
            self._file = Path(f"{path}.claims").open("ab")  # noqa: SIM115
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._offset(number))
        except OSError:
            return False
        return True

    def _take_in_postgresql(self, number: int) -> bool:
        if self._connection is None or self._connection.closed:
            # Of its own, not of the pool's: it has to stay open while the pool's are given back and forth.
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            return bool(self._connection.scalar(self._call("pg_try_advisory_lock", number)))
        except SQLAlchemyError:
            self._forget_connection()  # with the connection, its claims are gone; the next try opens another
            raise

    def _offset(self, number: int) -> int:
        return self._study * _MOST + number

    def _call(self, function: str, number: int) -> TextClause:
        call = text(f"SELECT {function}(CAST(:study AS integer), CAST(:number AS integer))")
        return call.bindparams(study=self._study, number=number)

    def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.invalidate()
                connection.close()
