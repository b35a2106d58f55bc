"""The places of artifacts in MLflow's database, put right after the work folder was moved.

MLflow writes absolute paths of artifacts into its database, and has no call that changes them. So
this is SQL on four of its tables, for an SQLite file beside a store in a folder.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from taylorglo.errors import ServiceError

_BUSY_SECONDS = 20  # how long the file may be locked
# The columns with the places of artifacts, by table.
_PLACES = {
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}


def relocate(database: Path, experiment: str, location: str) -> int:
    """Let MLflow look for the artifacts of an experiment where they are now.

    New runs keep their artifacts at ``location``. Of the earlier runs, those keep their place whose
    artifacts are there still, and not at ``location``. An experiment that somebody gave another
    folder keeps that.

    Args:
        database: MLflow's SQLite file.
        experiment: name of the experiment.
        location: ``file://`` URI of the folder with the artifacts of its runs, which has the same
            name in every store.

    Returns:
        The number of places that changed; 0 if the experiment has its artifacts at ``location``.

    Raises:
        ServiceError: the file cannot be changed.
    """
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection, connection:
            return _relocate(connection, experiment, location)
    except sqlite3.Error as error:
        raise ServiceError(f"MLflow's database {database}: {error}") from None


def _relocate(connection: sqlite3.Connection, experiment: str, location: str) -> int:
    query = "SELECT artifact_location FROM experiments WHERE name = ?"
    former = next((row[0] for row in connection.execute(query, (experiment,))), location)
    name = location.rpartition("/")[2]
    if former == location or not (former.startswith("file:") and former.endswith(f"/{name}")):
        return 0
    connection.execute(
        "UPDATE experiments SET artifact_location = ? WHERE name = ?", (location, experiment)
    )
    return 1 + sum(
        _move(connection, table, column, former, location)
        for table, columns in _PLACES.items()
        for column in columns
    )


def _move(
    connection: sqlite3.Connection, table: str, column: str, former: str, location: str
) -> int:
    """Change the places in one column that exist at the new location; return their number."""
    rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
    moved = 0
    for row, place in rows:
        if place is None or not place.startswith(f"{former}/"):
            continue
        now = location + place.removeprefix(former)
        # A run without artifacts has no folder anywhere.
        if _exists(now) or not _exists(place):
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (now, row))
            moved += 1
    return moved


def _exists(uri: str) -> bool:
    return Path(unquote(urlsplit(uri).path)).exists()
