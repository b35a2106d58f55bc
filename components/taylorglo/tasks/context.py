"""The context of a sweep's tasks: its settings, and its study, store and MLflow run."""

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from taylorglo.results import Guessing, Record, StandingChampion, read_json, write_json
from taylorglo.search.study import Search
from taylorglo.services import layout
from taylorglo.services.memo import Attacks, FullTrainings, RunState, ShortTrainings
from taylorglo.services.storage import Store, fetch, open_store
from taylorglo.services.tracking import Tracker
from taylorglo.settings import SweepSettings
from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI, required

Content = TypeVar("Content")


class Sweep(Record):
    """One pipeline run of a sweep, as the task ``open`` begins it and later tasks find it.

    Each task passes it on together with its own results, in one file. So a task needs the file of
    the task before it alone, and Kubeflow's graph shows the way of the results.

    Attributes:
        settings: the settings of the sweep.
        study: name of the study that it searches in.
        generations: number of generations that the search has in all.
        first: number of the search's generation with which this run begins.
        last: number of the search's generation with which this run ends.
        shards: number of tasks that share the candidates of a generation.
        num_classes: number of classes of the data.
        fingerprint: checksum of the training and validation images.
        provenance: where the images come from.
        guessing: what a network reaches that looks at no image; None if no task sees the data.
        run_id: id of the parent run in MLflow; empty without MLflow.
        started: when the run began, in seconds since the epoch.
        standing: the champion of MLflow's model registry when the run began, if there is one.
        classes: the names of the classes in the order of the labels; empty if they have none.
    """

    settings: SweepSettings
    study: str
    generations: int
    first: int
    last: int
    shards: int
    num_classes: int
    fingerprint: str
    provenance: dict[str, str]
    guessing: Guessing | None
    run_id: str
    started: float
    standing: StandingChampion | None = None
    classes: tuple[str, ...] = ()

    def write(self, path: str | Path, content: Any = None) -> None:
        """Write the context as JSON, with the results that a task passes on.

        Args:
            path: where to write.
            content: a record, or a list of records.
        """
        write_json(path, {"sweep": self, "content": content})

    @staticmethod
    def read(path: str | Path) -> "Sweep":
        """Read the context that :meth:`write` wrote, whatever results are beside it."""
        return read_json(path, Passed[Any]).sweep

    @cached_property
    def search(self) -> Search:
        """The study, which the task ``open`` opened."""
        return Search(
            required(STUDY_URL),
            self.study,
            self.settings.search,
            self.settings.seed,
            num_classes=self.num_classes,
        )

    @cached_property
    def store(self) -> Store:
        """The folder or bucket in which the sweep keeps its files."""
        return open_store(required(STORE_URI))

    @cached_property
    def tracker(self) -> Tracker:
        """The parent run in MLflow."""
        return Tracker.attach(required(TRACKING_URI), self.run_id)

    @contextmanager
    def search_data(self) -> Iterator[str]:
        """Yield the path of the data without the test split, from the store."""
        key = layout.search_data(self.settings.name, self.fingerprint)
        with tempfile.TemporaryDirectory() as folder:
            yield str(fetch(f"{self.store.uri}/{key}", Path(folder)))

    @property
    def full_trainings(self) -> FullTrainings:
        """The trainings in full that are finished."""
        return FullTrainings(self.store, self.settings.name)

    @property
    def attacks(self) -> Attacks:
        """What attacks left of the networks that were attacked before."""
        return Attacks(self.store, self.settings.name)

    @property
    def short_trainings(self) -> ShortTrainings:
        """The short trainings that were done, by this sweep or another one in the same store."""
        return ShortTrainings(self.store)

    @property
    def complete(self) -> bool:
        """Whether the search has all its generations, so that no later run has to go on."""
        return self.search.complete_generations() >= self.generations

    def generation(self, number: int) -> int:
        """Return the search's number of this run's generation ``number``, both counted from 1."""
        return self.first + number - 1

    def tracked(self) -> int:
        """Return the last generation of this run that was logged to MLflow; 0 if none was."""
        state = RunState.read(self.store, self.settings.name)
        return state.tracked if state.unfinished == self.run_id else 0

    def set_tracked(self, generation: int) -> None:
        """Remember that MLflow has the generations up to this one."""
        state = RunState(unfinished=self.run_id, study=self.study, tracked=generation)
        state.write(self.store, self.settings.name)

    def finish(self, *, search: bool) -> None:
        """Mark the run as finished, in MLflow and in the store, and the search too if asked."""
        self.tracker.finish()
        RunState().write(self.store, self.settings.name)
        # Last: a run that is killed before this line can go on with the search.
        if search:
            self.search.finish()


class Passed(Record, Generic[Content]):
    """What a task passes on: the context, and its results."""

    sweep: Sweep
    content: Content

    @property
    def both(self) -> tuple[Sweep, Content]:
        """The context and the results."""
        return self.sweep, self.content


def software() -> dict[str, str]:
    """Return the versions and the hardware that a sweep's figures depend on."""
    packages = ("taylorglo", "torch", "torchvision", "optuna", "kfp", "mlflow")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
    }
