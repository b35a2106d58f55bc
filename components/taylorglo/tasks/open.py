"""The task that opens the study and the MLflow run, before anything is trained."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from taylorglo.addresses import is_sqlite
from taylorglo.errors import InputError
from taylorglo.results import DatasetDescription, read_json
from taylorglo.scores import metric, words
from taylorglo.search.study import Search
from taylorglo.services import layout
from taylorglo.services.memo import RunState
from taylorglo.services.mlflow import check_uri
from taylorglo.services.relocation import relocate
from taylorglo.services.storage import Store, open_store
from taylorglo.services.tracking import Tracker
from taylorglo.settings import Identity, SweepSettings
from taylorglo.tasks.console import say, task
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.origin import origin_tags
from taylorglo.variables import (
    LOCAL_RUN,
    STARTED,
    STORE_URI,
    STUDY_URL,
    TRACKING_URI,
    required,
)

_SMALL_BYTES = 2**28  # of weights and activations: if they do not fit, PyTorch does not either


@task
def run(
    *,
    settings_path: str,
    description_path: str,
    search_data_path: str,
    full_data_path: str,
    generations: int,
    shards: int,
    sweep_path: str,
) -> None:
    """Open the study and the MLflow run, and write the context of all later tasks.

    Args:
        settings_path: the checked settings.
        description_path: the description of the prepared data.
        search_data_path: the data without the test split, which the store keeps.
        full_data_path: the data with the test split, which the store keeps.
        generations: number of generations of the pipeline.
        shards: number of tasks that share the candidates of a generation.
        sweep_path: where to write the context.
    """
    settings = read_json(settings_path, SweepSettings)
    description = read_json(description_path, DatasetDescription)
    data = PreparedData(search_data_path, full_data_path)
    open_sweep(settings, description, data, generations, shards).write(sweep_path)


class PreparedData(NamedTuple):
    """The paths of the data without (``search``) and with the test split (``full``)."""

    search: str
    full: str


def open_sweep(
    settings: SweepSettings,
    description: DatasetDescription,
    data: PreparedData,
    generations: int,
    shards: int = 1,
) -> Sweep:
    """Open the study and the MLflow run of a pipeline run; arguments as for :func:`run`.

    Raises:
        InputError: the data are smaller than a batch, the machine cannot train as configured, or
            the study was begun with other settings or other data.
        ServiceError: the study, the store or MLflow still fails after a few tries.
    """
    started = float(os.environ.get(STARTED) or time.time())
    kept = settings.evaluation.folds and not settings.evaluation.folds_on(description.provenance)
    if kept:
        say(
            "data: the validation split of the source is kept, so that evaluation.folds has no "
            "effect"
        )
    if not settings.training.function:
        settings.training.check_data(description.splits["train"])
        settings.augmentation.check_data(description.features)
    if os.environ.get(LOCAL_RUN):
        _check_machine(settings, description, data.full)
    search = begin_search(settings, description.fingerprint, description.num_classes)
    total = max(settings.search.generations, generations)
    # A run begins where the last one stopped, but it ends no later than the search: generations
    # that are known already are shown again.
    search.plan(total)
    first = min(search.complete_generations() + 1, max(1, total - generations + 1))
    last = min(first + generations - 1, total)
    store = open_store(required(STORE_URI))
    store.upload(Path(data.full), layout.dataset(settings.name))
    store.upload(Path(data.search), layout.search_data(settings.name, description.fingerprint))
    tracker = open_tracker(store, settings, search.study)
    tracker.log_settings({**settings.flat(), "study": search.study, "generations": total})
    tracker.log_tags(origin_tags(settings, search.study, description.name))
    tracker.log_dataset(description)
    _announce(settings, description, search, range(first, last + 1), total)
    return Sweep(
        settings=settings,
        study=search.study,
        generations=total,
        first=first,
        last=last,
        shards=shards,
        num_classes=description.num_classes,
        classes=description.classes,
        fingerprint=description.fingerprint,
        provenance=description.provenance,
        guessing=description.guessing,
        run_id=tracker.run_id,
        started=started,
        standing=tracker.standing_champion(layout.registered_loss(settings.name)),
    )


def begin_search(settings: SweepSettings, fingerprint: str, num_classes: int) -> Search:
    """Open or create the study of a run; it keeps the settings that decide a fitness.

    Args:
        settings: the settings of the sweep.
        fingerprint: checksum of the training and validation images.
        num_classes: of the data.

    Raises:
        InputError: the study was begun with other settings or other data, and ``search.renew`` is
            not set.
    """
    identity = identity_of(settings, fingerprint)
    return Search.begin(
        required(STUDY_URL),
        settings.name,
        settings.search,
        settings.seed,
        identity,
        num_classes=num_classes,
    )


def identity_of(settings: SweepSettings, fingerprint: str) -> Identity:
    """Return what cannot change within a search, with the revision of a training of a user."""
    identity = settings.identity(f"{settings.data.name} {fingerprint[:12]}")
    if not settings.training.function:
        return identity
    from taylorglo.training import function

    revision = {"training_function_revision": function.revision(settings.training.function)}
    return replace(identity, fitness={**identity.fitness, **revision})


def open_tracker(store: Store, settings: SweepSettings, study: str) -> Tracker:
    """Open the MLflow run of this pipeline run; an interrupted one goes on in its own MLflow run.

    A new run is begun if the old one was deleted, or if MLflow is another server now.
    """
    sweep, location = settings.name, f"{store.uri}/mlflow"
    _follow_move(required(TRACKING_URI), sweep, location)
    state = RunState.read(store, sweep)
    unfinished = state.unfinished if state.study == study else ""

    def opened(resume: str | None) -> Tracker:
        return Tracker.open(
            required(TRACKING_URI),
            sweep,
            run_name=f"{study} {time.strftime('%Y-%m-%d %H:%M')}",
            artifact_location=location,
            resume_run_id=resume,
            metric=metric(settings.evaluation.score),
        )

    try:
        tracker = opened(unfinished or None)
    except InputError:
        if not unfinished:
            raise
        tracker = opened(None)
    if unfinished != tracker.run_id:
        RunState(unfinished=tracker.run_id, study=study).write(store, sweep)
    return tracker


def _follow_move(uri: str, sweep: str, location: str) -> None:
    """Let MLflow find its artifacts after the folder with its file and the store was moved."""
    if not (is_sqlite(uri) and location.startswith("file:")):
        return
    database = check_uri(uri)
    if database is None or not database.exists() or not database.stat().st_size:
        return
    if moved := relocate(database, sweep, location):
        say(f"the store was moved: MLflow has {moved} places of artifacts in {location} now")


def _check_machine(
    settings: SweepSettings, description: DatasetDescription, full_data: str
) -> None:
    """Refuse what this machine cannot train, before a task that trains finds it out.

    Importing PyTorch takes seconds, so nothing is checked if nothing can be wrong.
    """
    training, memory = settings.training, description.memory
    needed = memory.weights + training.batch_size * memory.activations_per_image
    plain = training.precision in ("auto", "float32") and training.device != "cuda"
    if needed <= _SMALL_BYTES and plain:
        return
    from taylorglo.training.engine import read_resident
    from taylorglo.training.plan import plan

    plan(settings, read_resident(full_data, training))


def _announce(
    settings: SweepSettings,
    description: DatasetDescription,
    search: Search,
    generations: range,
    total: int,
) -> None:
    """Print what is about to be searched."""
    sizes = ", ".join(f"{size} {name}" for name, size in description.splits.items())
    samples = f", {sizes} {'samples' if description.features else 'images'}" if sizes else ""
    by = f"network: {settings.model.name}"
    if settings.training.function:
        by = f"training: {settings.training.function}, score: {words(settings.evaluation.score)}"
    say(f"data: {description.name}, {description.num_classes} classes{samples}; {by}")
    if search.source:
        say(f"search {search.study!r}, warm-started from {search.source!r}")
    if search.unfitting:
        say(
            f"search {search.study!r} begins without a warm start: {search.unfitting!r} searched "
            "in other coordinates (search.coordinates, search.family or the number of classes)"
        )
    if len(generations) < total:
        say(f"this run: generations {generations[0]} to {generations[-1]} of {total}")
