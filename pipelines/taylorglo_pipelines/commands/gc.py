"""``taylorglo gc``: delete what is old and no longer needed of all sweeps."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taylorglo.errors import InputError, TaylorgloError
from taylorglo_pipelines.commands.options import FILE, echo_json, json_option, set_option

if TYPE_CHECKING:
    from taylorglo.search.studies import Studies, Study
    from taylorglo.services.mlflow import Connection
    from taylorglo.services.storage import Store, StoredFile

_AGE = re.compile(r"(\d+)([dh])")
_UNITS = {"d": "days", "h": "hours"}


@click.command("gc")
@click.argument("path", metavar="[CONFIG]", type=FILE, required=False)
@set_option
@click.option(
    "--older-than",
    default="30d",
    show_default=True,
    metavar="AGE",
    help="Keep everything younger: 30d, 12h, or a date and time in ISO 8601 (UTC).",
)
@click.option("--delete", is_flag=True, help="Delete. Otherwise nothing is changed.")
@json_option
def command(
    path: Path | None, overrides: Sequence[str], older_than: str, *, delete: bool, as_json: bool
) -> None:
    """Show or delete what is old and no longer needed of all sweeps.

    This is: trainings in the store that no study refers to, prepared data, studies that a newer one
    has replaced, and runs in MLflow. CONFIG only names the services, which are otherwise those of
    the environment. A sweep that has no study in the database is left alone.
    """
    before = threshold(older_than, datetime.now(UTC))
    if path is None and overrides:
        raise click.UsageError("--set needs a CONFIG", click.get_current_context())
    variables = _variables(path, overrides)
    if as_json:
        echo_json(_document(variables, before, delete=delete))
        return
    for line in collect(variables, before, delete=delete):
        click.echo(line)


def threshold(age: str, now: datetime) -> datetime:
    """Return the time before which things are old.

    Args:
        age: a number of days (``30d``) or hours (``12h``), or a date and time in ISO 8601.
        now: the time now.

    Raises:
        InputError: the age is something else, or in the future.
    """
    problem = f"--older-than {age}: should be an age such as 30d or 12h, or a date that is past"
    try:
        if match := _AGE.fullmatch(age):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        time = datetime.fromisoformat(age)
    except (ValueError, OverflowError):
        raise InputError(problem) from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if time > now:
        raise InputError(problem)
    return time


def _variables(path: Path | None, overrides: Sequence[str]) -> dict[str, str]:
    """Return the addresses of the services, as a local run has them."""
    from taylorglo_pipelines import config

    if path is None:
        return config.ServiceSettings().variables()
    return config.load(path, overrides).services.variables()


@dataclass(frozen=True)
class Item:
    """A thing that can be deleted.

    Attributes:
        kind: what it is, in a word or two.
        name: what to call it.
        content: how large it is, in words.
        last: when it was written last.
        size: bytes in the store; 0 if it is not there.
        remove: deletes it.
    """

    kind: str
    name: str
    content: str
    last: datetime
    size: int
    remove: Callable[[], None]

    def line(self) -> str:
        """Return what to show of it."""
        return f"{self.kind:<10}  {self.name}  ({self.content}, of {self.last:%Y-%m-%d %H:%M})"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        shown = {"kind": self.kind, "name": self.name, "content": self.content}
        return {**shown, "last": self.last.isoformat(timespec="seconds"), "bytes": self.size}


@dataclass
class Count:
    """How many things there were so far, and their bytes in the store."""

    items: int = 0
    size: int = 0

    def add(self, item: Item) -> None:
        """Count one more."""
        self.items += 1
        self.size += item.size

    def total(self) -> str:
        """Return both numbers in words."""
        things = "1 item" if self.items == 1 else f"{self.items} items"
        return f"{things} and {_bytes(self.size)} in the store"


def collect(variables: Mapping[str, str], before: datetime, *, delete: bool) -> Iterator[str]:
    """Find what can be deleted, and delete it if asked; yield the lines to show.

    Args:
        variables: the addresses of the services.
        before: what was written since then is kept.
        delete: whether to delete.

    Raises:
        InputError: an address is wrong.
        ServiceError: a service fails. What was deleted so far is in the lines before.
    """
    services = Services.open(variables)
    count = Count()
    action = "deleting" if delete else "would delete"
    yield f"{action} what is not needed and older than {before.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    for found in _each(services, before, count, delete=delete):
        yield found.line() if isinstance(found, Item) else found
    yield _ending(count, delete)


def _document(variables: Mapping[str, str], before: datetime, *, delete: bool) -> dict[str, Any]:
    """Find what can be deleted, and delete it if asked; return all of it as JSON values."""
    found = list(_each(Services.open(variables), before, Count(), delete=delete))
    return {
        "older_than": before.astimezone(UTC).isoformat(timespec="seconds"),
        "deleted": delete,
        "items": [item.to_json() for item in found if isinstance(item, Item)],
        "remarks": [remark for remark in found if isinstance(remark, str)],
    }


def _each(
    services: "Services", before: datetime, count: Count, *, delete: bool
) -> Iterator[Item | str]:
    """Yield each thing that can be deleted, after it was deleted if asked, and remarks.

    Args:
        services: of the sweeps.
        before: what was written since then is kept.
        count: of the things so far.
        delete: whether to delete.
    """
    try:
        for sweep, studies in services.studies.by_sweep().items():
            items, notes = services.old(sweep, studies, before)
            for item in items:
                if delete:
                    item.remove()
                count.add(item)
                yield item
            yield from notes
    except TaylorgloError as error:
        if not delete:
            raise
        raise type(error)(
            f"{error}; before that, {count.total()} were deleted; the same command deletes the rest"
        ) from None


def _ending(count: Count, delete: bool) -> str:
    """Return the last line."""
    if not count.items:
        return "there is nothing to delete"
    if delete:
        return f"deleted {count.total()}"
    return f"would delete {count.total()}; run it again with --delete"


@dataclass(frozen=True)
class Services:
    """The services of sweeps.

    Attributes:
        studies: the database of the studies.
        store: a folder or a bucket.
        mlflow: the connection to MLflow.
        champions: the runs behind the versions with an alias in MLflow's registry.
    """

    studies: "Studies"
    store: "Store"
    mlflow: "Connection"
    champions: frozenset[str]

    @classmethod
    def open(cls, variables: Mapping[str, str]) -> "Services":
        """Connect to the services of these addresses, and read the registry."""
        from taylorglo.search.studies import Studies
        from taylorglo.services.mlflow import Connection
        from taylorglo.services.retention import aliased_runs
        from taylorglo.services.storage import open_store
        from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI

        # The study first: if it is not there, nothing is created in MLflow's place either.
        studies = Studies.open(variables[STUDY_URL])
        mlflow = Connection(variables[TRACKING_URI])
        champions = frozenset(aliased_runs(mlflow))
        return cls(studies, open_store(variables[STORE_URI]), mlflow, champions)

    def old(
        self, sweep: str, studies: Sequence["Study"], before: datetime
    ) -> tuple[list[Item], list[str]]:
        """Return what can be deleted of a sweep, and lines that say what is kept though old."""
        from taylorglo.search.studies import deletable
        from taylorglo.services.memo import RunState
        from taylorglo.services.retention import unlisted

        state = RunState.read(self.store, sweep)
        gone = deletable(studies, before, kept=state.study)
        left = [study for study in studies if study not in gone]
        items = [*self._runs(sweep, before, state.unfinished), *map(self._study, gone)]
        newest = left[-1]
        if state.unfinished or not newest.finished or any(study.in_use for study in left):
            return items, [f"{sweep}: unfinished, so all of its files are kept"]
        if lacking := unlisted(self.store, sweep, [study.name for study in left]):
            return items, [
                f"{sweep}: all of its files are kept, because an older version of taylorglo did "
                f"not write down which trainings study {lacking[0]!r} needs"
            ]
        return [*items, *self._files(sweep, left, before)], []

    def _runs(self, sweep: str, before: datetime, unfinished: str) -> Iterator[Item]:
        """Yield the old pipeline runs in MLflow."""
        from taylorglo.services.retention import delete_run, old_runs

        for run in old_runs(self.mlflow, sweep, before, self.champions | {unfinished}):
            content = f"{len(list(run.ids()))} runs in MLflow"
            remove = partial(delete_run, self.mlflow, run)
            yield Item("run", f"{sweep}/{run.name}", content, run.last, 0, remove)

    def _study(self, study: "Study") -> Item:
        """Return an old study."""
        assert study.last is not None
        content = f"{study.candidates} candidates"
        remove = partial(self.studies.delete, study)
        return Item("study", study.name, content, study.last, 0, remove)

    def _files(self, sweep: str, studies: Sequence["Study"], before: datetime) -> Iterator[Item]:
        """Yield the old files in the store that none of these studies needs."""
        from taylorglo.services import retention

        names = [study.name for study in studies]
        data = [study.data for study in studies]
        trainings = retention.unneeded_trainings(self.store, sweep, names, before)
        for file in trainings:
            yield self._file("weights" if file.key.endswith(".safetensors") else "training", file)
        for file in retention.unneeded_attacks(self.store, sweep, names, before):
            yield self._file("attack", file)
        for file in retention.unneeded_data(self.store, sweep, data, before):
            yield self._file("data", file)
        for file in retention.unneeded_references(self.store, sweep, names, before):
            yield self._file("references", file)

    def _file(self, kind: str, file: "StoredFile") -> Item:
        remove = partial(self.store.delete, file.key)
        return Item(kind, file.key, _bytes(file.size), file.modified, file.size, remove)


def _bytes(size: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
