"""What a task finds where it runs: the study, the object store and MLflow, named by the environment.

A laptop and a cluster differ in these variables and in nothing else. Credentials are read from the environment by the
clients themselves (PGPASSWORD, AWS_ACCESS_KEY_ID, ...) and pass through nothing of ours.
"""

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from taylorglo.errors import InputError, ServiceError, TaylorgloError
from taylorglo.settings import Scalar, SweepSettings

if TYPE_CHECKING:
    from taylorglo.data import Dataset
    from taylorglo.engine import Engine
    from taylorglo.search import Search
    from taylorglo.storage import Store
    from taylorglo.tracking import Tracker

STUDY_URL, STORE_URI, TRACKING_URI = "TAYLORGLO_STUDY_URL", "TAYLORGLO_STORE_URI", "MLFLOW_TRACKING_URI"
LOCAL_RUN, STARTED = "TAYLORGLO_LOCAL_RUN", "TAYLORGLO_STARTED"
PREFIX = "taylorglo: "
ERROR = "error: "
_RETRY_SECONDS = 10
_DECISIVE = ("seed", "model", "training", "augmentation", "evaluation", "search")
# Those that say where, how hard and how long to search, and so do not decide a candidate's fitness.
_INDECISIVE = (
    *(f"training_{name}" for name in ("device", "engine", "workers", "threads", "compile")),
    *(f"search_{name}" for name in ("max_draws", "generations", "renew")),
)

Result = TypeVar("Result")


@contextmanager
def task() -> Iterator[None]:
    """Around the body of a component: a user's error ends the task with one line and exit status 2."""
    _end_with_runner()
    try:
        yield
    except TaylorgloError as error:
        for line in str(error).splitlines():
            say(ERROR + line)
        sys.exit(2)


def retried(retries: int, action: Callable[[], Result]) -> Result:
    """Do something that can be done again, as many times more as ``retries`` where a service fails.

    Raises:
        ServiceError: the last try's.
    """
    for retry in range(retries):
        try:
            return action()
        except ServiceError as error:
            say(f"{error}; trying again ({retry + 1} of {retries})")
            time.sleep(_RETRY_SECONDS)
    return action()


def say(text: str) -> None:
    """Print lines of progress for a person; the local runner passes them on to the terminal."""
    for line in text.splitlines():
        print(PREFIX + line, flush=True)


@dataclass(frozen=True)
class Sweep:
    """One pipeline run of a sweep, as open_sweep begins it and every later task finds it in an artifact.

    ``study`` is the study that it searches in, ``generations`` how many that search has in all and ``first`` the number
    of the one that this run begins with; ``run_id`` is MLflow's parent run, ``started`` in seconds since the epoch,
    ``fingerprint`` and ``provenance`` those of the data. ``standing`` is the version of the loss that is the champion
    in MLflow's model registry, as :meth:`taylorglo.tracking.Tracker.standing_champion` gives it, or None.
    """

    settings: SweepSettings
    study: str
    generations: int
    first: int
    num_classes: int
    fingerprint: str
    provenance: Mapping[str, str]
    run_id: str
    started: float
    standing: Mapping[str, Any] | None = None

    def write(self, path: str) -> None:
        """Write it as JSON, the settings as the scalars that the pipeline was given."""
        content = {**{k: getattr(self, k) for k in self.__dataclass_fields__}, "settings": self.settings.parameters()}
        write_json(path, content)

    @classmethod
    def read(cls, path: str) -> "Sweep":
        """The inverse of :meth:`write`."""
        content = read_json(path)
        return cls(**{**content, "settings": SweepSettings.from_parameters(content["settings"])})

    @cached_property
    def search(self) -> "Search":
        """The study, which open_sweep opened."""
        from taylorglo.search import Search

        return Search(variable(STUDY_URL), self.study, self.settings.search, self.settings.seed)

    @cached_property
    def store(self) -> "Store":
        """The folder or bucket in which the sweep's own files are kept, under its name."""
        return open_store()

    @cached_property
    def tracker(self) -> "Tracker":
        """The MLflow parent run."""
        from taylorglo.tracking import Tracker

        return Tracker.attach(variable(TRACKING_URI), self.run_id)

    def generation(self, number: int) -> int:
        """Which generation of the search the run's generation of this number is, both from 1."""
        return self.first + number - 1

    @property
    def complete(self) -> bool:
        """Whether the search has all its generations, so that nothing is left for a later run."""
        return self.search.complete_generations() >= self.generations

    def tracked(self) -> int:
        """The last generation of which MLflow has been told, as far as this run's own is concerned."""
        known = json.loads(self.store.read(self.key("run.json")) or b"{}")
        return int(known.get("tracked", 0)) if known.get("unfinished") == self.run_id else 0

    def set_tracked(self, generation: int) -> None:
        """Remember that MLflow has been told up to this generation."""
        _write_run(self.store, self.settings.name, self.run_id, self.study, generation)

    def finish(self, *, search: bool) -> None:
        """Mark the pipeline run as finished, in MLflow and for the next run of the sweep, and with it the search."""
        self.tracker.finish()
        self.store.write(self.key("run.json"), b"{}")
        if search:  # last: whoever is killed before goes on with it
            self.search.finish()

    @property
    def memo(self) -> "StoreMemo":
        """The trainings in full that are finished."""
        return StoreMemo(self.store, self.settings.name)

    @property
    def evaluations(self) -> "StoreCache":
        """The short trainings that were done, in this sweep or another one in the same store."""
        return StoreCache(self.store)

    def key(self, name: str) -> str:
        """Where a file of this sweep is in the store."""
        return f"{self.settings.name}/{name}"


@dataclass(frozen=True)
class StoreMemo:
    """Finished trainings in full, in the store: the weights first, so that a result is never without them."""

    store: "Store"
    name: str

    def recall(self, key: str) -> Mapping[str, Any] | None:
        """The result that was recorded under the key, or None."""
        content = self.store.read(f"{self.name}/trainings/{key}.json")
        return None if content is None else json.loads(content)

    def weights(self, key: str) -> bytes:
        """The weights that were recorded under the key, as safetensors."""
        path = f"{self.name}/trainings/{key}.safetensors"
        content = self.store.read(path)
        if content is None:
            raise InputError(f"{self.store.uri}: {path} is gone; remove the .json beside it to train it again")
        return content

    def record(self, key: str, result: Mapping[str, Any], weights: bytes) -> None:
        """Keep a result and its weights."""
        self.store.write(f"{self.name}/trainings/{key}.safetensors", weights)
        self.store.write(f"{self.name}/trainings/{key}.json", json.dumps(result).encode())


@dataclass(frozen=True)
class StoreCache:
    """Short trainings, in the store, for all sweeps that keep their files there."""

    store: "Store"

    def recall(self, key: str) -> Mapping[str, Any] | None:
        """The result that was recorded under the key, or None."""
        content = self.store.read(f"evaluations/{key}.json")
        return None if content is None else json.loads(content)

    def record(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a result."""
        self.store.write(f"evaluations/{key}.json", json.dumps(result).encode())


def variable(name: str) -> str:
    """An environment variable that a task cannot do without."""
    value = os.environ.get(name)
    if not value:
        raise InputError(f"the environment variable {name} is not set; every task of a sweep needs it")
    return value


def open_store() -> "Store":
    """The store that the environment names."""
    from taylorglo.storage import open_store as open_uri

    return open_uri(variable(STORE_URI))


def begin_search(settings: SweepSettings, fingerprint: str) -> "Search":
    """Open or create the study of a run; what decides a candidate's fitness is fixed there.

    Raises:
        InputError: the study was begun with other settings or other data, and ``search.renew`` is not set.
    """
    from taylorglo.search import Search

    identity: dict[str, Scalar] = {
        key: value
        for key, value in settings.parameters().items()
        if key.partition("_")[0] in _DECISIVE and key not in _INDECISIVE
    }
    identity["data"] = f"{settings.data.name} {fingerprint[:12]}"
    return Search.begin(variable(STUDY_URL), settings.name, settings.search, settings.seed, identity)


def open_tracker(settings: SweepSettings, study: str) -> "Tracker":
    """The MLflow parent run of this pipeline run; an interrupted run of the same search goes on in its own.

    Where that one was deleted, or MLflow is another one now, a new run is begun.
    """
    from taylorglo.tracking import Tracker

    store = open_store()
    known = json.loads(store.read(f"{settings.name}/run.json") or b"{}")
    unfinished = known.get("unfinished") if known.get("study") == study else None

    def opened(resume_run_id: str | None) -> "Tracker":
        return Tracker.open(
            variable(TRACKING_URI),
            settings.name,
            run_name=f"{study} {time.strftime('%Y-%m-%d %H:%M')}",
            artifact_location=f"{store.uri}/mlflow",
            resume_run_id=resume_run_id,
        )

    try:
        tracker = opened(unfinished)
    except InputError:
        if unfinished is None:
            raise
        tracker = opened(None)
    if unfinished != tracker.run_id:
        _write_run(store, settings.name, tracker.run_id, study, 0)
    return tracker


def _write_run(store: "Store", name: str, run_id: str, study: str, tracked: int) -> None:
    content = {"unfinished": run_id, "study": study, "tracked": tracked}
    store.write(f"{name}/run.json", json.dumps(content).encode())


def registered_name(sweep: str) -> str:
    """The name of a sweep's loss in MLflow's model registry."""
    return f"{sweep}-loss"


def dataset_of(path: str, sweep: Sweep) -> "Dataset":
    """A data set artifact, resident on the device that the sweep trains on."""
    from taylorglo.training import read_resident

    return read_resident(path, sweep.settings.training)


def engine_of(path: str, sweep: Sweep) -> "Engine":
    """The engine that trains on a data set artifact; a context, which ends its processes."""
    from taylorglo.engine import Engine
    from taylorglo.training import read_resident

    return Engine(sweep.settings, partial(read_resident, path, sweep.settings.training))


def write_json(path: str, content: Any) -> None:
    """Write an artifact of JSON values; numbers that are not finite are an error."""
    Path(path).write_text(json.dumps(content, allow_nan=False))


def read_json(path: str) -> Any:
    """Read an artifact that :func:`write_json` wrote."""
    return json.loads(Path(path).read_text())


def software() -> dict[str, str]:
    """The versions and the hardware that figures are to be read with."""
    import platform
    from importlib.metadata import version

    packages = ("taylorglo", "torch", "torchvision", "optuna", "kfp", "mlflow")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
    }


def _end_with_runner() -> None:
    """On a laptop, end with the process that started the pipeline: a killed run must not train on unseen."""
    if not os.environ.get(LOCAL_RUN):
        return
    output = select.poll()
    # The runner reads what a task prints. The system closes that pipe when the runner ends, in whatever way, and tells
    # at once; a process id would be looked up again and again, and may be a zombie's, or somebody else's by then.
    output.register(sys.stdout.fileno(), 0)

    def watch() -> None:
        output.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
