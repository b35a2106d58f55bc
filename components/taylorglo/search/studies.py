"""The studies of all sweeps in a database: what each is, which are old, and how one is deleted."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, Self

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from taylorglo.addresses import is_sqlite, sqlite_file
from taylorglo.errors import InputError
from taylorglo.scores import known
from taylorglo.search.database import TRIES, open_storage, retried
from taylorglo.search.locks import Claims
from taylorglo.search.study import (
    DRAWING,
    FINISHED,
    FIRST_TRIAL,
    GENERATION,
    GENERATIONS,
    IDENTITY,
    REPORTING,
    RESULT,
    START,
    VERDICT,
    number_of,
    sweep_of,
)


@dataclass(frozen=True)
class Study:
    """A study of a sweep.

    Attributes:
        name: of the study.
        sweep: name of the sweep.
        number: of the search, from 1; the highest one of a sweep is the one that runs go on with.
        candidates: number of candidates.
        data: the start of the checksum of its data.
        finished: whether the search has come to its end.
        in_use: whether a process has claimed a part of it.
        source: the study that it is warm-started from; None if there is none.
        last: when something was written to it last; None if it has no candidate.
    """

    name: str
    sweep: str
    number: int
    candidates: int
    data: str
    finished: bool
    in_use: bool
    source: str | None
    last: datetime | None


@dataclass(frozen=True)
class StudyProgress:
    """How far a search is.

    Attributes:
        generation: number of the last generation that was begun, from 1; 0 if none was.
        generations: number of generations of the whole search; None if an older version of
            taylorglo did not write it down.
        popsize: number of candidates that a generation needs.
        finished: number of candidates of the last generation that have their results.
        trained: number of candidates of all generations that were trained.
        rejected: number of candidates of all generations that the filters rejected.
        best: the best fitness of the last generation; None if it has none.
        median: the median of the fitnesses of the last generation.
        score: name of the score.
    """

    generation: int
    generations: int | None
    popsize: int
    finished: int
    trained: int
    rejected: int
    best: float | None
    median: float | None
    score: str


class Studies:
    """The studies of taylorglo in a database. Other studies of Optuna are left out."""

    def __init__(self, storage: RDBStorage) -> None:
        """Keep an open storage. Use :meth:`open` to get one."""
        self._storage = storage

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a database that exists.

        Args:
            url: ``sqlite:///PATH`` or ``postgresql://...`` without a password.

        Raises:
            InputError: the URL is malformed, or there is no such file.
            ServiceError: the database does not answer, after a bounded number of tries.
        """
        if is_sqlite(url) and not sqlite_file(url).is_file():
            raise InputError(f"{url}: there is no such file, so there is no study in it")
        return cls(open_storage(url, new=True, tries=TRIES))

    def by_sweep(self) -> dict[str, list[Study]]:
        """Return the studies of each sweep, the newest one last."""
        sweeps: dict[str, list[Study]] = {}
        for frozen in retried(self._storage.get_all_studies, TRIES):
            if IDENTITY in frozen.user_attrs:
                study = self._study(frozen.study_name, frozen.user_attrs)
                sweeps.setdefault(study.sweep, []).append(study)
        for studies in sweeps.values():
            studies.sort(key=lambda study: study.number)
        return dict(sorted(sweeps.items()))

    def progress(self, study: Study) -> StudyProgress:
        """Return how far the search of a study is."""
        number = retried(lambda: self._storage.get_study_id_from_name(study.name), TRIES)
        attributes = retried(lambda: self._storage.get_study_user_attrs(number), TRIES)
        trials = retried(lambda: self._storage.get_all_trials(number, deepcopy=False), TRIES)
        drawn = [trial for trial in trials if GENERATION in trial.user_attrs]
        last = max((trial.user_attrs[GENERATION] for trial in drawn), default=0)
        latest = [trial for trial in drawn if trial.user_attrs[GENERATION] == last]
        counted = [
            t.value for t in latest if t.state == TrialState.COMPLETE and t.value is not None
        ]
        fitnesses = known(
            t.value
            for t in latest
            if t.state == TrialState.COMPLETE and t.value is not None and RESULT in t.user_attrs
        )
        identity = attributes[IDENTITY]
        verdicts = [trial.user_attrs.get(VERDICT) or {} for trial in drawn]
        return StudyProgress(
            generation=last,
            generations=attributes.get(GENERATIONS),
            popsize=int(identity.get("search_popsize", len(counted))),
            finished=len(counted),
            trained=sum(RESULT in t.user_attrs and t.state.is_finished() for t in drawn),
            rejected=sum(not verdict.get("accepted", True) for verdict in verdicts),
            best=max(fitnesses, default=None),
            median=median(fitnesses) if fitnesses else None,
            score=str(identity.get("evaluation_score", "accuracy")),
        )

    def delete(self, study: Study) -> None:
        """Delete a study with all its candidates. It is no error if there is no such study."""

        def remove() -> None:
            # There is none if an earlier try was carried out without an answer.
            with suppress(KeyError):
                self._storage.delete_study(self._storage.get_study_id_from_name(study.name))

        retried(remove, TRIES)

    def _study(self, name: str, attributes: Mapping[str, Any]) -> Study:
        number = retried(lambda: self._storage.get_study_id_from_name(name), TRIES)
        trials = retried(lambda: self._storage.get_all_trials(number, deepcopy=False), TRIES)
        return Study(
            name=name,
            sweep=sweep_of(name),
            number=number_of(name),
            candidates=len(trials),
            data=str(attributes[IDENTITY].get("data", "")).rpartition(" ")[2],
            finished=bool(attributes.get(FINISHED)),
            in_use=self._in_use(number, trials),
            source=attributes.get(START, {}).get("study"),
            last=max((time for trial in trials for time in _times(trial)), default=None),
        )

    def _in_use(self, study: int, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether another process has a claim on the study or on a candidate of it."""
        claims = Claims(self._storage.engine, study)
        open_trials = [trial.number for trial in trials if not trial.state.is_finished()]
        parts = [DRAWING, REPORTING, *(FIRST_TRIAL + number for number in open_trials)]
        return not all(_is_free(claims, part) for part in parts)


def deletable(studies: Iterable[Study], before: datetime, kept: str) -> list[Study]:
    """Return the studies of one sweep that are old, and that nothing needs.

    The newest study is kept, and so is one that is in use. The study that a kept one was
    warm-started from is kept with it, unless the kept one is kept for that reason alone.

    Args:
        studies: all studies of the sweep.
        before: a study is old if nothing was written to it since then.
        kept: name of a study that has to be kept, because a run searches in it; may be empty.
    """
    ordered = sorted(studies, key=lambda study: study.number)
    old = [
        study
        for study in ordered[:-1]
        if study.last is not None
        and study.last <= before
        and not study.in_use
        and study.name != kept
    ]
    sources = {study.source for study in ordered if study not in old}
    return [study for study in old if study.name not in sources]


def _times(trial: FrozenTrial) -> Iterator[datetime]:
    """Yield when a candidate was written to."""
    for time in (trial.datetime_start, trial.datetime_complete):
        if time is not None:
            # Optuna does not say the zone of its times. It is that of the machine that wrote them.
            yield time.astimezone(UTC)
    if ended := (trial.user_attrs.get(RESULT) or {}).get("ended"):
        yield datetime.fromtimestamp(ended, UTC)


def _is_free(claims: Claims, part: int) -> bool:
    """Return whether no process has claimed a part."""
    free = retried(lambda: claims.take(part), TRIES)
    if free:
        claims.release(part)
    return free
