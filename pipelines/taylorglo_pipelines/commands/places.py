"""The sweeps of a folder of runs, or of the services that the environment names."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from taylorglo.errors import InputError, meant, quoted

if TYPE_CHECKING:
    from taylorglo.results import SweepResult
    from taylorglo.search.studies import Studies, Study, StudyProgress
    from taylorglo.services.storage import Store

State = Literal["running", "interrupted", "unfinished", "finished"]


@dataclass(frozen=True)
class Sweep:
    """A sweep as its study and its store tell of it.

    Attributes:
        name: of the sweep.
        study: the study that runs go on with.
        state: ``running``; ``interrupted``, if a run did not come to its end; ``unfinished``, if
            every run did, and the search has more generations; or ``finished``.
        progress: how far the search is.
        result: of the last run that came to its end; None if none did.
    """

    name: str
    study: "Study"
    state: State
    progress: "StudyProgress"
    result: "SweepResult | None"

    @property
    def last(self) -> datetime | None:
        """When something was written last; None if nothing was."""
        times = [self.study.last]
        if self.result is not None:
            times.append(datetime.fromisoformat(self.result.created))
        return max((time.astimezone(UTC) for time in times if time is not None), default=None)

    @property
    def champion_scores(self) -> list[float]:
        """The test scores of the champion of the last finished run, as far as it has some."""
        if self.result is None:
            return []
        return [score for score in self.result.losses[0].scores if score is not None]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        progress, result = self.progress, self.result
        scores = self.champion_scores
        return {
            "sweep": self.name,
            "study": self.study.name,
            "state": self.state,
            "last": None if self.last is None else self.last.isoformat(timespec="seconds"),
            "generation": progress.generation,
            "generations": progress.generations,
            "candidates_finished": progress.finished,
            "candidates_of_generation": progress.popsize,
            "candidates_trained": progress.trained,
            "candidates_rejected": progress.rejected,
            "best_fitness": progress.best,
            "median_fitness": progress.median,
            "score": progress.score,
            "champion_score": fmean(scores) if scores else None,
            "champion_scores": scores,
            "verdict": None if result is None else result.verdict,
        }


@dataclass(frozen=True)
class Places:
    """Where sweeps keep what they find.

    Attributes:
        folder: of runs on this machine.
        studies: the database of the studies.
        store: a folder or a bucket.
    """

    folder: Path
    studies: "Studies"
    store: "Store"

    @classmethod
    def open(cls, folder: Path) -> "Places":
        """Open a folder of runs. The environment may name services elsewhere, as for a run.

        Raises:
            InputError: there are no runs.
            ServiceError: a service does not answer.
        """
        from taylorglo.addresses import is_sqlite, sqlite_file
        from taylorglo.search.studies import Studies
        from taylorglo.services.storage import open_store
        from taylorglo.variables import STORE_URI, STUDY_URL
        from taylorglo_pipelines.config import ServiceSettings

        settings = ServiceSettings(work_dir=str(folder))
        variables = settings.variables()
        url = variables[STUDY_URL]
        if is_sqlite(url) and not sqlite_file(url).is_file():
            raise InputError(
                f"{folder}: is no folder of runs: there is no {sqlite_file(url)}; it should be the "
                "services.work_dir of a sweep that was run"
            )
        return cls(settings.folder, Studies.open(url), open_store(variables[STORE_URI]))

    def names(self) -> list[str]:
        """Return the names of all sweeps."""
        return list(self.studies.by_sweep())

    def sweep(self, name: str) -> Sweep:
        """Return a sweep.

        Raises:
            InputError: there is no such sweep, or its result is damaged.
        """
        from taylorglo.services.memo import read_result

        study = self._study(name)
        result = read_result(self.store, name)
        return Sweep(name, study, self._state(study, result), self.studies.progress(study), result)

    def _study(self, name: str) -> "Study":
        by_sweep = self.studies.by_sweep()
        if name not in by_sweep:
            there = ", ".join(by_sweep) or "none"
            raise InputError(
                f"there is no sweep {quoted(name)} in {self.folder}; there are: {there}"
                f"{meant(name, by_sweep)}"
            )
        return by_sweep[name][-1]

    def _state(self, study: "Study", result: "SweepResult | None") -> State:
        from taylorglo.services.memo import RunState
        from taylorglo_pipelines.local.claim import is_running

        if is_running(self.folder, study.sweep) or study.in_use:
            return "running"
        state = RunState.read(self.store, study.sweep)
        if state.unfinished:
            return "interrupted"
        if study.finished:
            return "finished"
        own = result is not None and result.study == study.name
        return "unfinished" if own else "interrupted"
