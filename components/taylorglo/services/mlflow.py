"""The connection to MLflow: checked URIs, a safely created SQLite file, and calls with retries.

This is our own code around MLflow's client, because the client retries for a quarter of an hour,
damages an SQLite file that two processes create at once, and prints credentials in its errors.
MLflow takes over a second to import, and is imported when the first connection is opened.
"""

import fcntl
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import urlsplit

from taylorglo.addresses import is_sqlite, sqlite_file, sqlite_url
from taylorglo.errors import (
    MAX_REASON,
    InputError,
    ServiceError,
    TaylorgloError,
    first_line,
    is_disk_full,
    shortened,
    with_remedy,
)
from taylorglo.retries import retry, waiting

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run

# The tag that is shown as the description of an experiment or a run, in Markdown.
NOTE = "mlflow.note.content"

_MODEL = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Seconds between the tries to use an SQLite file. In each try MLflow waits 20 s for a lock.
_PAUSES = (0.5, 1.0, 2.0)
_AT_ONCE = 4  # calls to a server at a time
_BUSY_SECONDS = 20  # how long a file that is checked may be locked

# MLflow's own 7 retries of 120 s each could take a quarter of an hour.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

# Errors of an SQLite file that no further try can mend.
_HOPELESS = (
    "unable to open database file",
    "readonly database",
    "disk image is malformed",
    "already exists",
)

# MLflow's codes of errors that no further try can mend.
_LOGIN = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_REFUSALS = (
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_PARAMETER_VALUE",
)

# The first line matches user:password@. The second one matches the same with a slash in the
# password, but not host:port/path@.
_CREDENTIALS = re.compile(
    r"://(?:[^/\s]*@"
    r"|[^\s@/:]+:(?!\d+/)[^\s@]*@)"
)


class LoginError(TaylorgloError):
    """MLflow wants a login, or other rights.

    It is no InputError, by which callers know that MLflow does not have what they ask for.
    """


def redacted(text: str) -> str:
    """Return a text without the credentials of the URIs in it."""
    return _CREDENTIALS.sub("://", text)


class Connection:
    """A tracking server or an SQLite file. Each call to it is tried a bounded number of times.

    Attributes:
        name: the URI without credentials.
        client: MLflow's client.
    """

    def __init__(self, uri: str) -> None:
        """Connect to ``http(s)://host[:port]`` or ``sqlite:///FILE``.

        Raises:
            InputError: the URI is malformed, or the file is not MLflow's.
            ServiceError: the server or the database cannot be reached.
        """
        path = check_uri(uri)
        if path:
            uri = sqlite_url(path)
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # This logger prints a traceback for every locked database. Here the call is tried again,
        # and the last error is raised in one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self.name = redacted(uri)
        self._uri = uri
        # Over http, MLflow itself retries.
        self._pauses = _PAUSES if path else ()
        if path and _is_empty(path):
            try:
                _create_database(
                    path, lambda temporary: self.call(MlflowClient, tracking_uri=temporary)
                )
            except OSError as error:
                # The disk may be full, or the file system may have no locks.
                raise self.error(error) from None
        self.client: MlflowClient = self.call(MlflowClient, tracking_uri=uri)

    def call(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a method of the client.

        Raises:
            InputError: MLflow says that the arguments are wrong, or has no such thing.
            LoginError: MLflow says that the credentials are wrong, or lack a right.
            ServiceError: the server or the database still fails after the last try, and after the
                waiting on a cluster.
        """
        return waiting(lambda: self._call(method, *args, **kwargs))

    def _call(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError, SQLAlchemyError

        def transient(error: Exception) -> bool:
            code = getattr(error, "error_code", "")
            if any(text in str(error) for text in _HOPELESS) or is_disk_full(str(error)):
                return False
            return isinstance(error, OperationalError) or code == "TEMPORARILY_UNAVAILABLE"

        try:
            return retry(lambda: method(*args, **kwargs), self._pauses, retryable=transient)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            # The errors are not chained, because the original message may have the password of the
            # URI.
            raise self.error(error, getattr(error, "error_code", "")) from None

    def error(self, error: Exception, code: str = "") -> TaylorgloError:
        """Return the error for users: one line without credentials.

        Args:
            error: the error of MLflow or of a library under it.
            code: MLflow's code of the error, if it has one.
        """
        # The line is cut after the redaction, which needs whole URIs.
        line = first_line(error, limit=len(str(error)))
        # urllib3 ends its long message with the cause.
        cause = line.rpartition("(Caused by ")[2]
        message = with_remedy(f"MLflow at {self.name}: {redacted(cause)[:MAX_REASON]}")
        if code in _LOGIN:
            return LoginError(message)
        if code in _REFUSALS:
            return InputError(message)
        return ServiceError(message)

    def each(self, action: Callable[[_T], None], items: Iterable[_T]) -> None:
        """Do something for each item that needs calls of its own, some at a time over http.

        A server has several processes. An SQLite file has one writer at a time, so that nothing
        would be gained.

        Raises:
            TaylorgloError: an action failed; no further one is begun.
        """
        if not self.name.startswith("http"):
            for item in items:
                action(item)
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # A thread does not inherit whether to wait for a service that fails.
            futures = [pool.submit(copy_context().run, action, item) for item in items]
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def run(self, run_id: str, origin: str) -> "Run":
        """Return the run of an id.

        Args:
            run_id: id of the run.
            origin: the source of the id, for the error.

        Raises:
            InputError: there is no such run, or it was deleted.
        """
        try:
            run: Run = self.call(self.client.get_run, run_id)
        except InputError:
            raise InputError(
                f"{origin} {run_id!r}: there is no such run in MLflow at {self.name}"
            ) from None
        if run.info.lifecycle_stage != "active":
            raise InputError(
                f"{origin} {run_id!r}: was deleted in MLflow at {self.name}; restore it or start "
                "a new run"
            )
        return run

    def experiment(self, name: str, artifact_location: str | None) -> "Experiment":
        """Return an experiment, and create it if there is none.

        Args:
            name: name of the experiment.
            artifact_location: where a new experiment keeps its artifacts; None: MLflow's choice.

        Raises:
            InputError: the experiment was deleted.
        """
        experiment = self.call(self.client.get_experiment_by_name, name)
        if experiment is None:
            try:
                experiment_id = self.call(
                    self.client.create_experiment, name, artifact_location=artifact_location
                )
                return self.call(self.client.get_experiment, experiment_id)
            except InputError:
                # Another process may have created it in between.
                experiment = self.call(self.client.get_experiment_by_name, name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise InputError(
                f"experiment {name!r}: was deleted in MLflow at {self.name}; restore it or rename "
                "the sweep"
            )
        return experiment

    def download(self, uri: str, file: str, folder: Path) -> Path:
        """Copy a file of a model version into a folder, and return its path.

        Args:
            uri: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
            file: name of the file, ``layout.LOSS`` or ``layout.NETWORK``.
            folder: an existing folder.

        Raises:
            InputError: the URI is malformed, there is no such version, or it has no such file.
            ServiceError: the server, the database or the artifact store fails.
        """
        from mlflow.artifacts import download_artifacts

        parts = _MODEL.fullmatch(uri)
        if parts is None:
            raise InputError(f"{uri}: should be models:/NAME@ALIAS or models:/NAME/VERSION")
        name, alias, version = parts.groups()
        if alias:
            version = self.call(self.client.get_model_version_by_alias, name, alias).version
        source = self.call(self.client.get_model_version_download_uri, name, str(version))
        # Not by the URI of the model, because MLflow would look for it in the registry that the
        # environment names.
        try:
            path = download_artifacts(
                artifact_uri=f"{source.rstrip('/')}/{file}",
                dst_path=str(folder),
                tracking_uri=self._uri,
            )
        except Exception as error:
            # Every artifact store (S3, ...) raises the errors of another library.
            reason = redacted(str(error))
            message = (
                f"{uri}: its {file} cannot be read from {redacted(source)}: {shortened(reason)}"
            )
            if re.search(r"404|NoSuch|No such|not found|not exist", reason):
                raise InputError(message) from None
            raise ServiceError(message) from None
        return Path(path)

    def upload(self, run_id: str, files: Mapping[str, Path]) -> None:
        """Store local files as artifacts of a run.

        Args:
            run_id: id of the run.
            files: local file by artifact path.

        Raises:
            InputError: a file does not exist, or an artifact path is not inside the run.
            ServiceError: the artifact store fails.
        """
        if not files:
            return
        with _staged(files) as folder:
            waiting(lambda: self._store(self.client.log_artifacts, run_id, folder))

    def upload_model(self, model_id: str, folder: Path) -> None:
        """Store the files of a folder as artifacts of a logged model.

        Raises:
            ServiceError: the artifact store fails.
        """
        waiting(lambda: self._store(self.client.log_model_artifacts, model_id, folder))

    def _store(self, method: Callable[[str, str], None], owner: str, folder: Path) -> None:
        try:
            method(owner, str(folder))
        except Exception as error:
            # Every artifact store (S3, ...) raises the errors of another library.
            raise self.error(error) from None


def check_uri(uri: str) -> Path | None:
    """Refuse a URI that MLflow would fail on, or would retry for minutes.

    Returns:
        The file of an SQLite URI, or None for http.

    Raises:
        InputError: the URI is malformed, or the file is not MLflow's.
        ServiceError: the file cannot be read now, because it is locked, for example.
    """
    subject = f"tracking URI {redacted(uri)!r}:"
    try:
        parts = urlsplit(uri)
        # This raises ValueError if the port is not a number up to 65535.
        _ = parts.port
    except ValueError:
        # Its message may quote a part of the password, so that it is not shown.
        raise InputError(f"{subject} is malformed; should be like http://host:5000") from None
    if parts.scheme in ("http", "https"):
        if not parts.hostname:
            raise InputError(f"{subject} has no host; should be like http://host:5000")
        return None
    if not is_sqlite(uri):
        raise InputError(f"{subject} should start with http://, https:// or sqlite:///")
    path = sqlite_file(uri)
    _check_file(path, subject)
    return path


def _check_file(path: Path, subject: str) -> None:
    """Refuse an SQLite file that cannot be written, or that has other tables than MLflow's."""
    if not path.parent.is_dir():
        raise InputError(f"{subject} there is no folder {str(path.parent)!r}; create it first")
    allowed = partial(os.access, effective_ids=os.access in os.supports_effective_ids)
    folder_allowed = allowed(path.parent, os.W_OK | os.X_OK)
    if not folder_allowed or (path.exists() and not allowed(path, os.R_OK | os.W_OK)):
        raise InputError(f"{subject} {str(path)!r} and its folder should be writable")
    if path.exists() and not path.is_file():
        raise InputError(f"{subject} {str(path)!r} is not a file")
    if _is_empty(path):
        return
    query = "SELECT 1 FROM sqlite_master WHERE name = 'experiments'"
    try:
        # MLflow itself would try for minutes to open what cannot be opened.
        location = f"{path.as_uri()}?mode=ro"
        with closing(sqlite3.connect(location, uri=True, timeout=_BUSY_SECONDS)) as database:
            tables = database.execute(query).fetchall()
    except sqlite3.OperationalError as error:
        raise ServiceError(f"{subject} {str(path)!r}: {error}") from None
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{subject} {str(path)!r} is not an SQLite database, or is damaged: {error}"
        ) from None
    # MLflow would add its tables to any database, such as the one of an Optuna study.
    if not tables:
        raise InputError(
            f"{subject} {str(path)!r} is a database, but not one of MLflow; should be a file of "
            "its own"
        )


def _is_empty(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0


def _create_database(path: Path, connect: Callable[[str], object]) -> None:
    """Create MLflow's tables under a temporary name.

    MLflow takes seconds for it. If two processes did it in one file, or if one process was killed,
    the file would be unusable.

    Args:
        path: the file, which is missing or empty.
        connect: creates the tables in the database of a URI.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if _is_empty(path):
            with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
                made = Path(temporary) / path.name
                with _without_waiting_for_disk():
                    connect(sqlite_url(made))
                with made.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(made, path)
    finally:
        os.close(folder)


@contextmanager
def _without_waiting_for_disk() -> Iterator[None]:
    """Let SQLite leave it to the system when writes reach the disk, for a file nobody has yet.

    MLflow makes hundreds of writes for its tables, and SQLite would wait for the disk at each.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def relax(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", relax)


@contextmanager
def _staged(files: Mapping[str, Path]) -> Iterator[Path]:
    """Create a temporary folder with links that have the names of the artifacts.

    MLflow would keep the names of the local files.
    """
    with tempfile.TemporaryDirectory(prefix="taylorglo-") as folder:
        for name, source in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise InputError(f"artifact {name!r}: should be a relative path inside the run")
            if not Path(source).is_file():
                raise InputError(f"artifact {name!r}: there is no file {str(source)!r}")
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(source).resolve())
        yield Path(folder)
