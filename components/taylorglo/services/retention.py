"""What is old and no longer needed of a sweep: its files in the store, and its runs in MLflow.

The sweep's studies decide what is needed. They are in a database that this room does not know, so
the caller names them.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from taylorglo.services import layout
from taylorglo.services.memo import References
from taylorglo.services.mlflow import Connection
from taylorglo.services.models import Models
from taylorglo.services.storage import Store, StoredFile
from taylorglo.services.views import delete_candidates_view

if TYPE_CHECKING:
    from mlflow.entities import Run

_PAGE = 1000  # runs or models in one answer of MLflow


def unlisted(store: Store, sweep: str, studies: Iterable[str]) -> list[str]:
    """Return the studies whose report did not write down which trainings it stands on."""
    return [study for study in studies if not store.exists(layout.references(sweep, study))]


def unneeded_trainings(
    store: Store, sweep: str, studies: Iterable[str], before: datetime
) -> list[StoredFile]:
    """Return old files of trainings in full that no study refers to, results before weights.

    Without the results, nothing looks for the weights. So they may be deleted in this order, and
    the deleting may be interrupted.

    Args:
        store: that has the trainings.
        sweep: name of the sweep.
        studies: all studies of the sweep, each with references.
        before: files that were written since then are kept.
    """
    read = _references(store, sweep, studies)
    needed = {layout.training(sweep, key) for one in read for key in one.results}
    needed |= {layout.weights(sweep, key) for one in read for key in one.weights}
    files = store.files(layout.trainings(sweep))
    unneeded: list[StoredFile] = []
    for _, group in groupby(files, key=lambda file: PurePosixPath(file.key).stem):
        training = list(group)
        # The weights are written first, and a training must not lose them for being older.
        if max(file.modified for file in training) <= before:
            unneeded += [file for file in training if file.key not in needed]
    return unneeded


def unneeded_attacks(
    store: Store, sweep: str, studies: Iterable[str], before: datetime
) -> list[StoredFile]:
    """Return old files of attacks on networks that no study refers to.

    Args:
        store: that has the attacks.
        sweep: name of the sweep.
        studies: all studies of the sweep, each with references.
        before: files that were written since then are kept.
    """
    needed = {key for one in _references(store, sweep, studies) for key in one.weights}
    return [
        file
        for file in store.files(layout.attacks(sweep))
        if PurePosixPath(file.key).name.partition(".")[0] not in needed and file.modified <= before
    ]


def _references(store: Store, sweep: str, studies: Iterable[str]) -> list[References]:
    """Return which trainings the reports of some studies stand on, as far as it is known."""
    read = [References.read(store, sweep, study) for study in studies]
    return [references for references in read if references]


def unneeded_data(
    store: Store, sweep: str, fingerprints: Iterable[str], before: datetime
) -> list[StoredFile]:
    """Return old files of prepared data that no study of a sweep was begun with.

    Args:
        store: that has the data.
        sweep: name of the sweep.
        fingerprints: the checksums of the data of all its studies.
        before: files that were written since then are kept.
    """
    needed = {layout.search_data(sweep, fingerprint) for fingerprint in fingerprints}
    files = store.files(layout.all_search_data(sweep))
    return [file for file in files if file.key not in needed and file.modified <= before]


def unneeded_references(
    store: Store, sweep: str, studies: Iterable[str], before: datetime
) -> list[StoredFile]:
    """Return the old references of studies that are gone.

    Args:
        store: that has the references.
        sweep: name of the sweep.
        studies: all studies of the sweep.
        before: files that were written since then are kept.
    """
    needed = {layout.references(sweep, study) for study in studies}
    files = store.files(layout.all_references(sweep))
    return [file for file in files if file.key not in needed and file.modified <= before]


@dataclass(frozen=True)
class PipelineRun:
    """The MLflow runs of one pipeline run: the parent, and those that are nested in it.

    Attributes:
        name: of the parent.
        parent: id of the parent; None if it was deleted already.
        nested: ids of the nested runs.
        last: when one of them was begun or ended last.
    """

    name: str
    parent: str | None
    nested: tuple[str, ...]
    last: datetime

    def ids(self) -> Iterator[str]:
        """Yield the ids of all its runs, the parent's last."""
        yield from self.nested
        if self.parent is not None:
            yield self.parent


def old_runs(
    connection: Connection, sweep: str, before: datetime, kept: Collection[str]
) -> list[PipelineRun]:
    """Return the old pipeline runs of a sweep in MLflow, the oldest first.

    Runs that somebody else logged to the experiment of the sweep are left out.

    Args:
        connection: to MLflow.
        sweep: name of the sweep.
        before: a pipeline run is old if none of its runs was begun or ended since then.
        kept: ids of runs that are needed. The pipeline run that one of them belongs to is kept as a
            whole.
    """
    experiment = connection.call(connection.client.get_experiment_by_name, sweep)
    if experiment is None:
        return []
    families: dict[str, list[_Listed]] = {}
    for run in _runs(connection, experiment.experiment_id):
        listed = _listed(run, sweep)
        if listed is not None:
            families.setdefault(listed.family, []).append(listed)
    runs = [_pipeline_run(family, members) for family, members in families.items()]
    old = [run for run in runs if run.last <= before and not set(run.ids()) & set(kept)]
    return sorted(old, key=lambda run: run.last)


def delete_run(connection: Connection, run: PipelineRun) -> None:
    """Delete the runs of a pipeline run in MLflow, which can restore them until ``mlflow gc``.

    The logged models and the view of the parent are deleted with it.
    """
    if run.parent is not None:
        parent = connection.run(run.parent, "run to delete")
        Models(connection, parent.info.experiment_id, run.parent).delete()
        delete_candidates_view(connection, parent.info.experiment_id, run.parent)
    for run_id in run.ids():
        connection.call(connection.client.delete_run, run_id)


def aliased_runs(connection: Connection) -> set[str]:
    """Return the runs behind all versions with an alias in MLflow's model registry."""
    call, client = connection.call, connection.client
    runs: set[str] = set()
    token: str | None = None
    while True:
        models = call(client.search_registered_models, max_results=_PAGE, page_token=token)
        for model in models:
            for version in set((model.aliases or {}).values()):
                found = call(client.get_model_version, model.name, str(version))
                if found.run_id:
                    runs.add(found.run_id)
        token = models.token
        if not token:
            return runs


@dataclass(frozen=True)
class _Listed:
    """A run in the experiment of a sweep; ``family`` is the id of its parent, or its own."""

    run_id: str
    name: str
    family: str
    last: datetime


def _runs(connection: Connection, experiment_id: str) -> "Iterator[Run]":
    """Yield all runs of an experiment that are not deleted, page by page."""
    token: str | None = None
    while True:
        page = connection.call(
            connection.client.search_runs, [experiment_id], max_results=_PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _listed(run: "Run", sweep: str) -> _Listed | None:
    """Return what is needed of a run; None if no pipeline run of the sweep logged it."""
    tags, info = run.data.tags, run.info
    parent = tags.get("mlflow.parentRunId")
    if parent is None:
        ours = run.data.params.get("study", "").partition(".")[0] == sweep
    else:
        ours = "taylorglo.stage" in tags
    if not ours:
        return None
    # A nested run of a candidate has the times of its training.
    last = datetime.fromtimestamp(max(info.start_time or 0, info.end_time or 0) / 1000, UTC)
    return _Listed(info.run_id, info.run_name or "", parent or info.run_id, last)


def _pipeline_run(family: str, members: list[_Listed]) -> PipelineRun:
    parents = [member for member in members if member.run_id == family]
    return PipelineRun(
        name=parents[0].name if parents else f"nested in {family}",
        parent=parents[0].run_id if parents else None,
        nested=tuple(member.run_id for member in members if member.run_id != family),
        last=max(member.last for member in members),
    )
