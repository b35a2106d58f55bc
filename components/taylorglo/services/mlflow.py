"""The way to MLflow: which URIs are good, an SQLite file made safely, and calls that are tried again.

MLflow takes over a second to import and is imported only once a connection is opened.
"""

import fcntl
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import urlsplit

from taylorglo.errors import MAX_REASON, InputError, ServiceError
from taylorglo.retries import retry
from taylorglo.services import layout

if TYPE_CHECKING:
    from mlflow.entities import Run

_MODEL = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")

_P = ParamSpec("_P")
_T = TypeVar("_T")

_RETRY_DELAYS = (
    0.5,
    1.0,
    2.0,
)  # seconds, on top of the 20 s that MLflow lets SQLite wait for a lock
_ENVIRONMENT = {
    # MLflow's own 7 retries of 120 s each can take a quarter of an hour
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_CREDENTIALS = re.compile(
    r"://(?:[^/\s]*@"  # user:password@
    # the same with a slash in the password, which is not host:port/path@
    r"|[^\s@/:]+:(?!\d+/)[^\s@]*@)"
)


def redacted(text: str) -> str:
    """The text without the credentials of URIs in it."""
    return _CREDENTIALS.sub("://", text)


class Connection:
    """A tracking server, or an SQLite file; every call to it is retried a bounded number of times."""

    def __init__(self, uri: str) -> None:
        path = _check_uri(uri)
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # It prints a traceback for every locked database, which is retried here, and raised in one
        # line if in vain.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self.name = redacted(uri)
        self._uri = uri
        # Over http, MLflow itself retries.
        self._pauses = _RETRY_DELAYS if path else ()
        if path and _is_empty(path):
            try:
                _create_database(
                    path, lambda temporary: self.call(MlflowClient, tracking_uri=temporary)
                )
            except OSError as error:  # a full disk, or a file system without locks
                raise self.error(error) from None
        self.client: MlflowClient = self.call(MlflowClient, tracking_uri=uri)

    def call(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a method of the client.

        Raises:
            InputError: where MLflow says that the arguments are wrong.
            ServiceError: where the server or the database still fails after the last try.
        """
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError, SQLAlchemyError

        def transient(error: Exception) -> bool:
            code = getattr(error, "error_code", "")
            return isinstance(error, OperationalError) or code == "TEMPORARILY_UNAVAILABLE"

        try:
            return retry(lambda: method(*args, **kwargs), self._pauses, retryable=transient)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            # Not chained: the original message may hold the password of the URI.
            raise self.error(error, getattr(error, "error_code", "")) from None

    def error(self, error: Exception, code: str = "") -> InputError | ServiceError:
        """The error in one line, without credentials."""
        line = (str(error).splitlines() or [type(error).__name__])[0]
        reason = redacted(line.rpartition("(Caused by ")[2])[
            :MAX_REASON
        ]  # what urllib3 ends its long story with
        kind = (
            InputError
            if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
            else ServiceError
        )
        return kind(f"MLflow at {self.name}: {reason}")

    def run(self, run_id: str, origin: str) -> "Run":
        """The run of this id.

        Raises:
            InputError: if there is none, or it was deleted; ``origin`` says where the id came from.
        """
        try:
            run: Run = self.call(self.client.get_run, run_id)
        except InputError:
            raise InputError(
                f"{origin} {run_id!r}: there is no such run in MLflow at {self.name}"
            ) from None
        if run.info.lifecycle_stage != "active":
            raise InputError(
                f"{origin} {run_id!r}: was deleted in MLflow at {self.name}; restore it or start a new run"
            )
        return run

    def experiment(self, name: str, artifact_location: str | None) -> str:
        """The id of the experiment of this name, created if need be."""
        found = self.call(self.client.get_experiment_by_name, name)
        if found is None:
            try:
                return self.call(
                    self.client.create_experiment, name, artifact_location=artifact_location
                )
            except ServiceError:  # another process may have created it in between
                found = self.call(self.client.get_experiment_by_name, name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise InputError(
                f"experiment {name!r}: was deleted in MLflow at {self.name}; restore it or rename the sweep"
            )
        return str(found.experiment_id)

    def download_loss(self, uri: str, folder: Path) -> Path:
        """Fetch the saved loss of a model version (``models:/NAME/VERSION``, ``models:/NAME@ALIAS``) into a folder.

        Raises:
            InputError: the URI is malformed, or there is no such version, or no loss in it.
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
        # Not by the model's URI: MLflow would look it up in whatever registry the environment
        # names.
        try:
            path = download_artifacts(
                artifact_uri=f"{source.rstrip('/')}/{layout.LOSS}",
                dst_path=str(folder),
                tracking_uri=self._uri,
            )
        except Exception as error:  # every artifact store (S3, ...) raises its own library's errors
            text = redacted(" ".join(str(error).split()))
            gone = re.search(r"404|NoSuch|No such|not found|not exist", text)
            raise (InputError if gone else ServiceError)(
                f"{uri}: its {layout.LOSS} cannot be read from {redacted(source)}: {text[:MAX_REASON]}"
            ) from None
        return Path(path)

    def upload(self, run_id: str, files: Mapping[str, Path]) -> None:
        """Store local files as artifacts of a run, under the names that are the keys."""
        if not files:
            return
        with _staged(files) as folder:
            try:
                self.client.log_artifacts(run_id, str(folder))
            except (
                Exception
            ) as error:  # every artifact store (S3, ...) raises its own library's errors
                raise self.error(error) from None


def _check_uri(uri: str) -> Path | None:
    """The file of an SQLite URI, or None for http; refuses what MLflow would retry for minutes or fail on."""
    bad = f"tracking URI {redacted(uri)!r}:"
    try:
        parts = urlsplit(uri)
        _ = parts.port  # raises where it is not a number up to 65535
    except ValueError:  # its message may quote a part of the password
        raise InputError(f"{bad} is malformed; should be like http://host:5000") from None
    if parts.scheme in ("http", "https"):
        if not parts.hostname:
            raise InputError(f"{bad} has no host; should be like http://host:5000")
        return None
    if not uri.startswith("sqlite:///"):
        raise InputError(f"{bad} should start with http://, https:// or sqlite:///")
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    if not name or name.startswith((":memory:", "file:")):
        raise InputError(f"{bad} should name a file, like sqlite:///mlflow.db")
    path = Path(name).absolute()
    if not path.parent.is_dir():
        raise InputError(f"{bad} there is no folder {str(path.parent)!r}; create it first")
    allowed = partial(os.access, effective_ids=os.access in os.supports_effective_ids)
    if not allowed(path.parent, os.W_OK | os.X_OK) or (
        path.exists() and not allowed(path, os.R_OK | os.W_OK)
    ):
        raise InputError(f"{bad} {str(path)!r} and its folder should be writable")
    if path.exists() and not path.is_file():
        raise InputError(f"{bad} {str(path)!r} is not a file")
    if not _is_empty(path):
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
                tables = database.execute(
                    "SELECT 1 FROM sqlite_master WHERE name = 'experiments'"
                ).fetchall()
        except sqlite3.OperationalError:  # such as locked: MLflow can wait, or tell
            return path
        except sqlite3.DatabaseError:
            raise InputError(f"{bad} {str(path)!r} is not an SQLite database") from None
        if not tables:  # MLflow would add its tables to it, say to an Optuna study
            raise InputError(
                f"{bad} {str(path)!r} is a database, but not one of MLflow; should be a file of its own"
            )
    return path


def _is_empty(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0


def _create_database(path: Path, connect: Callable[[str], object]) -> None:
    """Create MLflow's tables under a temporary name.

    MLflow takes seconds for it, and two processes that do so in one file, or one that is killed, leave it unusable.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if _is_empty(path):
            with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
                connect(f"sqlite:///{temporary}/{path.name}")
                os.replace(f"{temporary}/{path.name}", path)
    finally:
        os.close(folder)


@contextmanager
def _staged(files: Mapping[str, Path]) -> Iterator[Path]:
    """A temporary folder with links that bear the artifacts' names (MLflow keeps the local names otherwise)."""
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
