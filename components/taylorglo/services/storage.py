"""Files of a sweep by key, in a folder or in an S3 bucket.

This is our own code and no library, because it is only two small stores behind one interface, its
error texts name the cure, and boto3 is installed for MLflow anyway.

Credentials and the address of the S3 service come from the environment, as boto3 reads it:
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL.
boto3 is imported when a bucket is first opened, so that a folder needs no boto3.
"""

import errno
import functools
import hashlib
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Concatenate, ParamSpec, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from taylorglo.addresses import expanded
from taylorglo.errors import InputError, ServiceError, TaylorgloError, with_remedy
from taylorglo.extras import missing
from taylorglo.files import is_draft, replacing
from taylorglo.retries import doubling, retry, waiting

_Self = TypeVar("_Self")
_P = ParamSpec("_P")
_T = TypeVar("_T")

_TRIES = 3
_CONNECT_SECONDS = 5
_READ_SECONDS = 15
_PAUSE = 0.2  # seconds before a download that broke off is begun again


@dataclass(frozen=True)
class StoredFile:
    """A file of a store, as a listing shows it.

    Attributes:
        key: of the file.
        size: in bytes.
        modified: when it was written last.
    """

    key: str
    size: int
    modified: datetime


class Store(Protocol):
    """A folder or a bucket with a prefix.

    A key is a relative POSIX path below it, such as ``run-1/theta.json``. A file is written as a
    whole or not at all, and replaces a file of the same key.

    Every method raises InputError if the key is no such path, if credentials or rights are missing,
    or if the bucket does not exist; and ServiceError if the service still fails after a few tries.

    Attributes:
        uri: of the folder, or of the bucket with the prefix.
    """

    uri: str

    def check(self) -> None:
        """Find out whether files can be kept here, before anything is computed."""

    def read(self, key: str) -> bytes | None:
        """Return the content of a file, or None if there is no such file."""

    def write(self, key: str, content: bytes) -> str:
        """Write a file, and return its URI."""

    def exists(self, key: str) -> bool:
        """Return whether there is such a file."""

    def download(self, key: str, path: Path) -> None:
        """Copy a file to a local path, as a whole or not at all.

        Raises:
            InputError: there is no such file.
        """

    def upload(self, path: Path, key: str) -> str:
        """Write the content of a local file without holding it in memory, and return its URI."""

    def files(self, folder: str) -> list[StoredFile]:
        """Return the files whose keys begin with ``folder/``, in the order of their keys."""

    def delete(self, key: str) -> None:
        """Delete a file. It is no error if there is no such file."""


class FolderStore:
    """A :class:`Store` in a local folder, which is created by the first write."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, which need not exist."""
        self._folder = folder.absolute()
        self.uri = self._folder.as_uri()

    def check(self) -> None:
        """See :meth:`Store.check`."""
        # The folder is made by the first write. It can be, if there is room above it.
        there = next(path for path in (self._folder, *self._folder.parents) if path.exists())
        with _local(self._folder):
            try:
                with tempfile.TemporaryFile(dir=there):
                    pass
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._folder)) from None

    def read(self, key: str) -> bytes | None:
        """See :meth:`Store.read`."""
        path = self._path(key)
        with _local(path):
            return path.read_bytes() if path.is_file() else None

    def write(self, key: str, content: bytes) -> str:
        """See :meth:`Store.write`."""
        path = self._path(key)
        with _local(path), _replacing_file(path) as file:
            file.write(content)
        return path.as_uri()

    def exists(self, key: str) -> bool:
        """See :meth:`Store.exists`."""
        path = self._path(key)
        with _local(path):
            return path.is_file()

    def download(self, key: str, path: Path) -> None:
        """See :meth:`Store.download`."""
        _copy(self._path(key), path)

    def upload(self, path: Path, key: str) -> str:
        """See :meth:`Store.upload`."""
        target = self._path(key)
        _copy(path, target)
        return target.as_uri()

    def files(self, folder: str) -> list[StoredFile]:
        """See :meth:`Store.files`. A file that is just being written is left out."""
        root = self._path(folder)
        with _local(root):
            found = [self._listed(path) for path in root.rglob("*") if not is_draft(path)]
        return sorted((file for file in found if file is not None), key=lambda file: file.key)

    def delete(self, key: str) -> None:
        """See :meth:`Store.delete`."""
        path = self._path(key)
        with _local(path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def _listed(self, path: Path) -> StoredFile | None:
        """Return the entry of a path in a listing; None if it is a folder, or is gone."""
        try:
            state = path.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(state.st_mode):
            return None
        modified = datetime.fromtimestamp(state.st_mtime, UTC)
        key = path.relative_to(self._folder).as_posix()
        return StoredFile(key, state.st_size, modified)

    def _path(self, key: str) -> Path:
        return self._folder / _checked(key)


def _waits(
    method: Callable[Concatenate[_Self, _P], _T],
) -> Callable[Concatenate[_Self, _P], _T]:
    """Let a method wait for a service that fails, as :func:`taylorglo.retries.waiting` does."""

    @functools.wraps(method)
    def patient(self: _Self, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return waiting(lambda: method(self, *args, **kwargs))

    return patient  # type: ignore[return-value]


class S3Store:
    """A :class:`Store` in a bucket, under a prefix."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        """Open a bucket, which has to exist. Nothing is sent yet.

        Raises:
            InputError: AWS_ENDPOINT_URL, a profile or a region in the environment is malformed, or
                boto3 is not installed.
        """
        try:
            import boto3
            from botocore.config import Config
        except ModuleNotFoundError as error:
            raise missing(f"s3://{bucket}", error) from None

        folder = prefix.strip("/")
        self._bucket = bucket
        self._prefix = f"{folder}/" if folder else ""
        self.uri = f"s3://{bucket}/{self._prefix}".rstrip("/")
        config = Config(
            retries={"total_max_attempts": _TRIES, "mode": "standard"},
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            # Not every S3-compatible server knows the checksums that boto3 sends by default.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with self._explained():
            # boto3's default session keeps the first credentials that it saw, so each store has a
            # session of its own. If AWS_ENDPOINT_URL is set, botocore puts the bucket into the path
            # and not into the host name.
            self._client: Any = boto3.session.Session().client("s3", config=config)

    @_waits
    def check(self) -> None:
        """See :meth:`Store.check`."""
        with self._explained():
            listed = self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1
            )
        # A web page, such as that of a proxy, may be an answer too, which botocore reads as none.
        if "KeyCount" not in listed and "Name" not in listed:
            raise InputError(_no_s3(self.uri, self._endpoint()))

    @_waits
    def read(self, key: str) -> bytes | None:
        """See :meth:`Store.read`."""
        buffer = BytesIO()
        # In this thread: Python waits for the threads of boto3 before it ends.
        return buffer.getvalue() if self._fetch(key, buffer, threads=False) else None

    @_waits
    def write(self, key: str, content: bytes) -> str:
        """See :meth:`Store.write`."""
        name = self._name(key)
        with self._explained():
            self._client.put_object(Bucket=self._bucket, Key=name, Body=content)
        return f"s3://{self._bucket}/{name}"

    @_waits
    def exists(self, key: str) -> bool:
        """See :meth:`Store.exists`."""
        name = self._name(key)
        with self._explained():
            return self._found(name)

    @_waits
    def download(self, key: str, path: Path) -> None:
        """See :meth:`Store.download`."""
        with _local(path), _replacing_file(path) as file:
            if not self._fetch(key, file, threads=True):
                raise InputError(f"s3://{self._bucket}/{self._name(key)}: no such object")

    @_waits
    def upload(self, path: Path, key: str) -> str:
        """See :meth:`Store.upload`."""
        name = self._name(key)
        with _local(path), path.open("rb") as file, self._explained():
            self._client.upload_fileobj(file, self._bucket, name)
        return f"s3://{self._bucket}/{name}"

    @_waits
    def delete(self, key: str) -> None:
        """See :meth:`Store.delete`."""
        name = self._name(key)
        with self._explained():
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def files(self, folder: str) -> list[StoredFile]:
        """See :meth:`Store.files`."""
        return [
            StoredFile(
                entry["Key"].removeprefix(self._prefix), entry["Size"], entry["LastModified"]
            )
            for entry in self._entries(f"{self._name(folder)}/")
        ]

    def keys(self) -> Iterator[str]:
        """Return the key of every file of this store. Folder markers are no files."""
        return (entry["Key"].removeprefix(self._prefix) for entry in self._entries(self._prefix))

    def versions(self, name: str) -> list[str]:
        """Return key, checksum and size of the object ``name``, and of every object below it."""
        path = self._prefix + name

        def selected(key: str) -> bool:
            return not name or key == path or key.startswith(f"{path}/")

        return [
            f"{entry['Key']} {entry['ETag']} {entry['Size']}"
            for entry in self._entries(path)
            if selected(entry["Key"])
        ]

    @_waits
    def _entries(self, prefix: str) -> list[dict[str, Any]]:
        """Return the entry of each object under a prefix, without folder markers."""
        with self._explained():
            paginator = self._client.get_paginator("list_objects_v2")
            pages = list(paginator.paginate(Bucket=self._bucket, Prefix=prefix))
        entries = (entry for page in pages for entry in page.get("Contents", []))
        return [entry for entry in entries if not entry["Key"].endswith("/")]

    def _name(self, key: str) -> str:
        return self._prefix + _checked(key)

    def _fetch(self, key: str, file: BinaryIO, *, threads: bool) -> bool:
        """Copy an object into an open file; return whether there is such an object."""
        from boto3.s3.transfer import TransferConfig
        from botocore.exceptions import ClientError
        from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

        name = self._name(key)
        # Here, and not by boto3, which would repeat all tries of a server that says nothing.
        once = TransferConfig(num_download_attempts=1, use_threads=threads)

        def download() -> None:
            file.seek(0)
            file.truncate()
            self._client.download_fileobj(self._bucket, name, file, Config=once)

        with self._explained():
            try:
                retry(
                    download,
                    doubling(_PAUSE, _TRIES),
                    retryable=lambda error: isinstance(error, RetriesExceededError),
                )
            except ClientError as error:
                # Older versions of boto3 start with a HEAD, whose 404 means a missing object or a
                # missing bucket.
                absent = error.response["Error"]["Code"] in ("404", "NoSuchKey")
                if absent and not self._found(name):
                    return False
                raise
        return True

    def _found(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._client.get_object(Bucket=self._bucket, Key=name)["Body"].close()
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return False
            raise
        return True

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of boto3 into one line that names the cure.

        boto3's own texts may quote credentials.
        """
        from botocore import exceptions
        from botocore.parsers import ResponseParserError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except exceptions.ClientError as error:
            raise self._refused(error.response) from None
        except (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
        ):
            raise InputError(
                f"{self.uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        except (
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
            exceptions.IncompleteReadError,
            RetriesExceededError,
        ) as error:
            raise ServiceError(
                f"{self.uri}: {type(error).__name__} at {self._endpoint()} after {_TRIES} tries; "
                "is it up, and is AWS_ENDPOINT_URL right?"
            ) from None
        except ResponseParserError:
            raise InputError(_no_s3(self.uri, self._endpoint())) from None
        except (exceptions.BotoCoreError, ValueError) as error:
            raise InputError(
                f"{self.uri}: malformed bucket name, AWS_ENDPOINT_URL, AWS_PROFILE or "
                f"AWS_DEFAULT_REGION ({type(error).__name__})"
            ) from None

    def _refused(self, response: dict[str, Any]) -> TaylorgloError:
        """Return the error for a response that is no success."""
        code = str(response.get("Error", {}).get("Code", "unknown"))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return InputError(
                f"{self.uri}: no bucket {self._bucket!r} at {self._endpoint()}; create it first"
            )
        if status in (401, 403):
            return InputError(
                f"{self.uri}: access denied ({code}); check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and the rights of that key on the bucket"
            )
        if 300 <= status < 500 and status not in (408, 429):
            return InputError(
                f"{self.uri}: refused ({code}, HTTP {status}); check the bucket's name and "
                "AWS_DEFAULT_REGION"
            )
        return ServiceError(
            f"{self.uri}: {self._endpoint()} still fails after {_TRIES} tries "
            f"({code}, HTTP {status})"
        )

    def _endpoint(self) -> str:
        """Return the address of the service, without credentials."""
        parts = urlsplit(self._client.meta.endpoint_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _no_s3(uri: str, endpoint: str) -> str:
    """Return the error for a server whose answers are not those of S3."""
    return (
        f"{uri}: {endpoint} answers, but not as S3 does, perhaps with a web page; AWS_ENDPOINT_URL "
        "should be the address of an S3 service"
    )


def open_store(uri: str) -> Store:
    """Open the store at a folder's path, a ``file://`` URI, or ``s3://bucket/prefix``.

    Nothing is read or created yet.

    Raises:
        InputError: the URI is malformed, or has another scheme; or it is s3:// and boto3 is not
            installed.
    """
    location = _parsed(uri)
    return FolderStore(location) if isinstance(location, Path) else S3Store(*location)


def fetch(uri: str, folder: Path) -> Path:
    """Return a local path with the file or folder at a URI.

    For a local path or a ``file://`` URI it is the path itself, without a copy. From S3, an object
    becomes the file ``folder/NAME``, and the objects under a prefix become the folder
    ``folder/NAME``; NAME is the last part of the URI. Each file is written as a whole or not at
    all, and replaces a file of the same name.

    Args:
        uri: a local path, a ``file://`` URI, or ``s3://bucket/key-or-prefix``.
        folder: where to copy objects of S3 to.

    Raises:
        InputError: there is nothing at the URI, it is malformed, or access is denied; or it is
            s3:// and boto3 is not installed.
        ServiceError: the service still fails after a few tries.
    """
    location = _parsed(uri)
    if isinstance(location, Path):
        if not location.exists():
            raise InputError(f"{location}: no such file or folder")
        return location
    bucket, prefix = location
    target = folder / (PurePosixPath(prefix).name or bucket)
    if prefix and not prefix.endswith("/"):
        store = S3Store(bucket)
        if store.exists(prefix):
            store.download(prefix, target)
            return target
    store = S3Store(bucket, prefix)
    keys = list(store.keys())
    if not keys:
        raise InputError(f"s3://{bucket}/{prefix}: no such object, and nothing under it")
    for key in keys:
        store.download(key, target / key)
    return target


def version(uri: str) -> str:
    """Return a text that changes with the content of a file, a folder or an S3 prefix.

    It is a checksum over names and sizes, with dates of local files and checksums of objects, so
    that listings are enough to compute it. A task that has it as an argument is not taken from the
    cache if its data have changed. If there is nothing at the URI, the task reports that.

    Raises:
        InputError: the URI is malformed, or access is denied.
        ServiceError: the service still fails after a few tries.
    """
    location = _parsed(uri)
    if isinstance(location, Path):
        with _local(location):
            paths = sorted(path for path in (location, *location.rglob("*")) if path.is_file())
            states = [(path.relative_to(location), path.stat()) for path in paths]
            lines = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states]
    else:
        bucket, prefix = location
        lines = sorted(S3Store(bucket).versions(prefix.rstrip("/")))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _parsed(uri: str) -> Path | tuple[str, str]:
    """Return a local path, or a bucket and a prefix.

    Errors do not quote the URI, because somebody may have put a password into it.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri or "\0" in uri or uri.startswith(("s3:", "file:")):
            raise InputError(
                "storage URI: should be a folder's path, file:///path or s3://bucket/prefix"
            )
        return expanded(uri)
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise InputError(
                "storage URI: a file:// URI should be of the form file:///absolute/path"
            )
        return Path("/" + unquote(path))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket):
            raise InputError(
                "storage URI: should be s3://bucket/prefix, "
                "with a bucket name of letters, digits, . - _"
            )
        if prefix:
            _checked(prefix.removesuffix("/"))
        return bucket, prefix
    raise InputError(
        "storage URI: unknown scheme; should be a folder's path, file:///path or s3://bucket/prefix"
    )


def _checked(key: str) -> str:
    """Return a key; refuse one that is no plain relative path."""
    path = PurePosixPath(key)
    leaves = path.is_absolute() or ".." in path.parts
    # The comparison also refuses a//b, ./a and a/. A folder would take them for a/b and a, but a
    # bucket would not.
    is_plain = key not in ("", ".") and "\0" not in key and str(path) == key
    if leaves or not is_plain:
        raise InputError(
            f"key {key!r}: should be a relative path such as run-1/theta.json, without '..'"
        )
    return key


def _copy(source: Path, target: Path) -> None:
    with _local(target), source.open("rb") as content, _replacing_file(target) as file:
        shutil.copyfileobj(content, file)


@contextmanager
def _local(path: Path) -> Iterator[None]:
    """Turn an error of the local file system into one line that names the path."""
    try:
        yield
    except OSError as error:
        message = f"{error.filename2 or error.filename or path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise ServiceError(with_remedy(message)) from None
        raise InputError(message) from None


@contextmanager
def _replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Replace a file as a whole; create its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        yield file
