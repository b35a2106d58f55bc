"""Artifacts by key, in a folder or in an S3 bucket.

Credentials and the address of the S3 service come from the environment, as boto3 reads it: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL. boto3 is imported when a bucket is
first opened.
"""

import errno
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from taylorglo.errors import InputError, ServiceError, TaylorgloError
from taylorglo.files import replacing

_TRIES = 4
_CONNECT_SECONDS = 5
_READ_SECONDS = 30


class Store(Protocol):
    """A folder or a bucket with a prefix; a key is a relative POSIX path below it, such as ``run-1/theta.json``.

    Every method raises InputError for a key that is no such path, for missing credentials or rights, and for a bucket
    that does not exist; and ServiceError where the service still fails after a few tries.
    """

    uri: str

    def read(self, key: str) -> bytes | None:
        """The content, or None where there is none."""

    def write(self, key: str, content: bytes) -> str:
        """Store the content, in whole or not at all, in place of what was there; returns its URI."""

    def exists(self, key: str) -> bool:
        """Whether the key has a content."""

    def download(self, key: str, path: Path) -> None:
        """Copy the content to a local file, in whole or not at all; InputError where there is none."""

    def upload(self, path: Path, key: str) -> str:
        """Store a local file, as :meth:`write` does, without holding it in memory; returns its URI."""


class FolderStore:
    """A :class:`Store` in a local folder, which is made when first written to."""

    def __init__(self, folder: Path) -> None:
        """Open ``folder``, which need not exist."""
        self._folder = folder.absolute()
        self.uri = self._folder.as_uri()

    def read(self, key: str) -> bytes | None:
        """The content, or None where there is none."""
        path = self._path(key)
        with _local(path):
            return path.read_bytes() if path.is_file() else None

    def write(self, key: str, content: bytes) -> str:
        """Store the content, in whole or not at all, in place of what was there; returns its URI."""
        path = self._path(key)
        with _local(path), _replacing_file(path) as file:
            file.write(content)
        return path.as_uri()

    def exists(self, key: str) -> bool:
        """Whether the key has a content."""
        path = self._path(key)
        with _local(path):
            return path.is_file()

    def download(self, key: str, path: Path) -> None:
        """Copy the content to a local file, in whole or not at all."""
        _copy(self._path(key), path)

    def upload(self, path: Path, key: str) -> str:
        """Store a local file; returns its URI."""
        target = self._path(key)
        _copy(path, target)
        return target.as_uri()

    def _path(self, key: str) -> Path:
        return self._folder / _checked(key)


class S3Store:
    """A :class:`Store` in a bucket, under a prefix."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        """Open ``bucket``, which has to exist; nothing is sent yet.

        Raises:
            InputError: AWS_ENDPOINT_URL, a profile or a region in the environment is malformed.
        """
        import boto3
        from botocore.config import Config

        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
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
            # A session of its own: boto3's default one keeps the first credentials it saw. The
            # bucket goes into the path, not the host name, as soon as AWS_ENDPOINT_URL is set:
            # botocore sees to it.
            self._client: Any = boto3.session.Session().client("s3", config=config)

    def read(self, key: str) -> bytes | None:
        """The content, or None where there is none."""
        buffer = BytesIO()
        return buffer.getvalue() if self._fetch(key, buffer) else None

    def write(self, key: str, content: bytes) -> str:
        """Store the content, in whole or not at all, in place of what was there; returns its URI."""
        name = self._name(key)
        with self._explained():
            self._client.put_object(Bucket=self._bucket, Key=name, Body=content)
        return f"s3://{self._bucket}/{name}"

    def exists(self, key: str) -> bool:
        """Whether the key has a content."""
        name = self._name(key)
        with self._explained():
            return self._found(name)

    def download(self, key: str, path: Path) -> None:
        """Copy the content to a local file, in whole or not at all."""
        with _local(path), _replacing_file(path) as file:
            if not self._fetch(key, file):
                raise InputError(f"s3://{self._bucket}/{self._name(key)}: no such object")

    def upload(self, path: Path, key: str) -> str:
        """Store a local file; returns its URI."""
        name = self._name(key)
        with _local(path), path.open("rb") as file, self._explained():
            self._client.upload_fileobj(file, self._bucket, name)
        return f"s3://{self._bucket}/{name}"

    def keys(self) -> Iterator[str]:
        """Every key of this store, folder markers left out."""
        return (entry["Key"].removeprefix(self._prefix) for entry in self._entries(self._prefix))

    def versions(self, name: str) -> list[str]:
        """Key, checksum and size of the object ``name``, and of every object below it, folder markers left out."""
        entries = self._entries(self._prefix + name)
        return [
            f"{entry['Key']} {entry['ETag']} {entry['Size']}"
            for entry in entries
            if not name
            or entry["Key"] == self._prefix + name
            or entry["Key"].startswith(f"{self._prefix}{name}/")
        ]

    def _entries(self, prefix: str) -> Iterator[dict[str, Any]]:
        with self._explained():
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            ):
                yield from (
                    entry for entry in page.get("Contents", []) if not entry["Key"].endswith("/")
                )

    def _name(self, key: str) -> str:
        return self._prefix + _checked(key)

    def _fetch(self, key: str, file: BinaryIO) -> bool:
        from boto3.s3.transfer import TransferConfig
        from botocore.exceptions import ClientError

        name = self._name(key)
        with self._explained():
            try:
                transfer = TransferConfig(num_download_attempts=_TRIES)
                self._client.download_fileobj(self._bucket, name, file, Config=transfer)
            except ClientError as error:
                # Older versions start with a HEAD, whose 404 does not tell a missing object from a
                # missing bucket.
                if error.response["Error"]["Code"] in ("404", "NoSuchKey") and not self._found(
                    name
                ):
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
        """Turn what boto3 raises into one line that says what to do; its own texts may quote credentials."""
        from botocore import exceptions
        from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

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
                f"{self.uri}: {type(error).__name__} at {self._endpoint()} after {_TRIES} tries; is it up, and is "
                "AWS_ENDPOINT_URL right?"
            ) from None
        except (exceptions.BotoCoreError, ValueError) as error:
            raise InputError(
                f"{self.uri}: malformed bucket name, AWS_ENDPOINT_URL, AWS_PROFILE or AWS_DEFAULT_REGION "
                f"({type(error).__name__})"
            ) from None

    def _refused(self, response: dict[str, Any]) -> TaylorgloError:
        code = str(response.get("Error", {}).get("Code", "unknown"))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return InputError(
                f"{self.uri}: no bucket {self._bucket!r} at {self._endpoint()}; create it first"
            )
        if status in (401, 403):
            return InputError(
                f"{self.uri}: access denied ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights "
                "of that key on the bucket"
            )
        if 300 <= status < 500 and status not in (408, 429):
            return InputError(
                f"{self.uri}: refused ({code}, HTTP {status}); check the bucket's name and AWS_DEFAULT_REGION"
            )
        return ServiceError(
            f"{self.uri}: {self._endpoint()} still fails after {_TRIES} tries ({code}, HTTP {status})"
        )

    def _endpoint(self) -> str:
        parts = urlsplit(self._client.meta.endpoint_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def open_store(uri: str) -> Store:
    """The store at a local folder's path, a ``file://`` URI, or ``s3://bucket/prefix``. Nothing is read or made yet.

    Raises:
        InputError: the URI is malformed, or of another scheme.
    """
    location = _parsed(uri)
    return FolderStore(location) if isinstance(location, Path) else S3Store(*location)


def fetch(uri: str, folder: Path) -> Path:
    """Bring what is at ``uri`` to the local disk.

    A local path or a ``file://`` URI is returned as a path, without a copy. From S3, an object becomes the file
    ``folder/NAME``, and everything under a prefix the folder ``folder/NAME``, NAME being the last part of the URI.
    Each file comes in whole or not at all; files already there are replaced.

    Raises:
        InputError: there is nothing at ``uri``, or it is malformed, or access is denied.
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
        whole = S3Store(bucket)
        if whole.exists(prefix):
            whole.download(prefix, target)
            return target
    below = S3Store(bucket, prefix)
    keys = list(below.keys())
    if not keys:
        raise InputError(f"s3://{bucket}/{prefix}: no such object, and nothing under it")
    for key in keys:
        below.download(key, target / key)
    return target


def version(uri: str) -> str:
    """What changes when the content of a file, a folder or an S3 prefix does: a checksum over names, sizes and dates.

    Nothing is read but listings, so that a task can be kept from its cache as soon as its data are other ones. Whether
    there is anything at all is for the task to tell.

    Raises:
        InputError: the URI is malformed, or access is denied.
        ServiceError: the service still fails after a few tries.
    """
    location = _parsed(uri)
    if isinstance(location, Path):
        with _local(location):
            paths = sorted(path for path in (location, *location.rglob("*")) if path.is_file())
            lines = [
                f"{path.relative_to(location)} {(s := path.stat()).st_size} {s.st_mtime_ns}"
                for path in paths
            ]
    else:
        bucket, prefix = location
        lines = sorted(S3Store(bucket).versions(prefix.rstrip("/")))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _parsed(uri: str) -> Path | tuple[str, str]:
    """A local path, or a bucket and a prefix. Errors do not quote the URI, where somebody may have put a password."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri or "\0" in uri or uri.startswith(("s3:", "file:")):
            raise InputError(
                "storage URI: should be a folder's path, file:///path or s3://bucket/prefix"
            )
        return Path(uri)
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
                "storage URI: should be s3://bucket/prefix, with a bucket name of letters, digits, . - _"
            )
        if prefix:
            _checked(prefix.removesuffix("/"))
        return bucket, prefix
    raise InputError(
        "storage URI: unknown scheme; should be a folder's path, file:///path or s3://bucket/prefix"
    )


def _checked(key: str) -> str:
    path = PurePosixPath(key)
    # The comparison also catches a//b, ./a and a/, which a bucket takes for other keys than a
    # folder does.
    if (
        not key
        or "\0" in key
        or path.is_absolute()
        or ".." in path.parts
        or str(path) != key
        or key == "."
    ):
        raise InputError(
            f"key {key!r}: should be a relative path such as run-1/theta.json, without '..'"
        )
    return key


def _copy(source: Path, target: Path) -> None:
    with _local(target), source.open("rb") as content, _replacing_file(target) as file:
        shutil.copyfileobj(content, file)


@contextmanager
def _local(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = (
            ServiceError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else InputError
        )
        raise kind(
            f"{error.filename2 or error.filename or path}: {error.strerror or error}"
        ) from None


@contextmanager
def _replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Replace a file of the store as a whole; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        yield file
