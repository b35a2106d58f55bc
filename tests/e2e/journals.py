"""What was ever written to a store about trainings, so that one that was done twice is seen."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import boto3

_LOOK_SECONDS = 0.05  # between two looks at a folder
_SECOND = 1.0  # S3 tells times in whole seconds
_RECORDS = ("evaluations/*.json", "*/trainings/*.json")


class Version(NamedTuple):
    """The record of a training, as it was when it was written.

    Attributes:
        recorded: the time at which it was written, in seconds since the epoch.
        started: the time at which its training began.
    """

    recorded: float
    started: float

    @classmethod
    def of(cls, content: bytes, recorded: float) -> Self:
        """Return the version with this content."""
        record = json.loads(content)
        # The record of a training in full says more than that of its training.
        return cls(recorded, float(record.get("training", record)["started"]))


class Journal(Protocol):
    """All versions of the records of trainings in a store."""

    def versions(self) -> Mapping[str, Sequence[Version]]:
        """Return the versions of each record by its key, the earliest first."""


class FolderJournal:
    """The journal of a store in a folder; a thread looks at the folder all the time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._marks: dict[Path, tuple[int, int]] = {}
        self._versions: dict[str, list[Version]] = {}

    def versions(self) -> Mapping[str, Sequence[Version]]:
        """See :meth:`Journal.versions`."""
        return self._versions

    @contextmanager
    def kept(self) -> Iterator[Self]:
        """Look at the folder until the end of the block."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_LOOK_SECONDS):
                self._look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
            self._look()

    def _look(self) -> None:
        for path in [path for pattern in _RECORDS for path in self._folder.glob(pattern)]:
            state = path.stat()
            # Each record is a new file, which takes the place of the former one.
            mark = state.st_ino, state.st_mtime_ns
            if self._marks.get(path) != mark:
                self._marks[path] = mark
                version = Version.of(path.read_bytes(), state.st_mtime)
                self._versions.setdefault(str(path.relative_to(self._folder)), []).append(version)


class BucketJournal:
    """The journal of a store in a bucket, which keeps all versions of its objects."""

    def __init__(self, name: str) -> None:
        """Create the bucket, with the address and the credentials of the environment."""
        self._bucket: Any = boto3.session.Session().resource("s3").create_bucket(Bucket=name)
        self._bucket.Versioning().enable()

    def versions(self) -> Mapping[str, Sequence[Version]]:
        """See :meth:`Journal.versions`."""
        found: dict[str, list[Version]] = {}
        for each in self._bucket.object_versions.all():
            if any(Path(each.key).match(pattern) for pattern in _RECORDS):
                content = each.get()["Body"].read()
                version = Version.of(content, each.last_modified.timestamp())
                found.setdefault(each.key, []).append(version)
        return {key: sorted(versions) for key, versions in found.items()}


def repeated(versions: Mapping[str, Sequence[Version]]) -> tuple[list[str], list[str]]:
    """Return the keys of trainings that were done again, and of those done twice at a time.

    A training was done again if it began after a record of the same training was written.
    """
    again, beside = [], []
    for key, (first, *others) in versions.items():
        if any(other.started > first.recorded + _SECOND for other in others):
            again.append(key)
        elif others:
            beside.append(key)
    return again, beside
