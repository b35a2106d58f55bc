"""The search: CMA-ES over the coefficients of the loss, through Optuna, one generation at a time.

The study in Optuna's relational storage is the one memory of a search: every candidate that was drawn, the verdict of
the filters, and the result of its training, written the moment it is known. Whatever is killed goes on from there,
and a generation may be proposed by one process, screened by a second and evaluated by several more.

A sweep that recurs has a study per search: NAME, then NAME.2, NAME.3, each warm-started from the one before it.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from taylorglo.claims import Claims
from taylorglo.database import SERVER_TRIES, TRIES, open_storage, retried
from taylorglo.errors import InputError, ServiceError
from taylorglo.filters import Verdict, all_of
from taylorglo.sampling import GenerationalCmaEs, Space
from taylorglo.settings import SearchSettings

WORST_FITNESS = 0.0
_GENERATION, _VERDICT, _RESULT = "generation", "verdict", "result"  # of a trial
_PRECISION = "training_precision"  # of the settings
_DRAWN = re.compile("seed|search|data")  # settings that candidates are drawn and judged by, before any is trained
_IDENTITY, _START, _FINISHED = "identity", "start", "finished"  # of a study
DRAWING, TELLING, _FIRST_TRIAL = 0, 1, 2  # the parts of a study that can be claimed; from the third on, its trials
_EXCLUSIVE_SECONDS, _POLL_SECONDS = 120, 0.1

Result = TypeVar("Result")


@dataclass(frozen=True)
class Candidate:
    """One theta that was drawn, what the filters said, and what came of its training (None: not yet).

    ``ended`` is when the study was told, by the clock of the task that told it.
    """

    trial: int
    generation: int
    theta: list[float]
    verdict: Verdict | None = None
    result: Mapping[str, Any] | None = None
    fitness: float | None = None
    finished: bool = False
    ended: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The candidate as JSON values."""
        return asdict(self)

    @property
    def rejected(self) -> bool:
        """True once the filters have turned it down."""
        return self.verdict is not None and not self.verdict.accepted


class Search:
    """A study and its generations, numbered from 1: propose, screen, tell, each of them repeatable after a kill."""

    def __init__(
        self, url: str, name: str, settings: SearchSettings, seed: int, identity: Mapping[str, Any] | None = None
    ) -> None:
        """Open the study ``name``, creating it if need be.

        Args:
            url: ``sqlite:///PATH`` or ``postgresql://...`` without a password (libpq reads PGPASSWORD).
            name: the study's: the sweep's name, or that with the number of the search, such as ``digits.2``.
            settings: the search settings.
            seed: decides every candidate, together with the fitness values.
            identity: the settings that decide a candidate's fitness; a study made with others is refused. None: the
                study is there already, and was checked.

        Raises:
            InputError: the URL is malformed, or the study was made with other settings.
            ServiceError: the database does not answer, after a bounded number of tries.
        """
        self.settings = settings
        self.study = name
        self.space = Space.of(settings)
        self._seed = seed
        # Whoever begins is told of a dead server at once; in the middle of a search, a server may be starting again.
        self._tries = TRIES if identity is not None or url.startswith("sqlite") else SERVER_TRIES
        self._storage = open_storage(url, identity is not None, self._tries)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = self._retried(
            lambda: optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
        )
        self._id = self._retried(lambda: self._storage.get_study_id_from_name(name))
        self._claims = Claims(self._storage.engine, self._id)
        if identity is not None:
            self._check_identity(dict(identity))

    @classmethod
    def begin(cls, url: str, sweep: str, settings: SearchSettings, seed: int, identity: Mapping[str, Any]) -> "Search":
        """Open the study in which a run of a sweep searches.

        That is the latest one of the sweep. With ``settings.renew``, where the latest one is finished, or was begun
        with other settings or other data, it is a new one, warm-started from that.

        Args:
            url: as for the constructor.
            sweep: the sweep's name.
            settings: the search settings.
            seed: as for the constructor.
            identity: as for the constructor.

        Raises:
            InputError: the URL is malformed, or, without ``renew``, the study was made with other settings.
            ServiceError: the database does not answer, after a bounded number of tries.
        """
        storage = open_storage(url, True, TRIES)
        names = retried(lambda: [study.study_name for study in storage.get_all_studies()], TRIES)
        numbers = [_number(name) for name in names if re.fullmatch(rf"{re.escape(sweep)}(\.[2-9]|\.[1-9]\d+)?", name)]
        latest = max(numbers, default=1)
        if settings.renew and numbers:
            search = cls(url, _study_name(sweep, latest), settings, seed)
            if search.finished or search.changes(identity):
                latest += 1
        begun = cls(url, _study_name(sweep, latest), settings, seed, identity)
        former = max((number for number in numbers if number < latest), default=None)
        if former is not None:
            begun._settle_start(_study_name(sweep, former))
        return begun

    def _settle_start(self, former: str) -> None:
        """Fix once where the search begins: the former study may be added to, or deleted, while this one goes on."""
        with self.exclusively(DRAWING):
            if _START in self._retried(lambda: self._study.user_attrs):
                return
            trials = self._retried(
                lambda: self._storage.get_all_trials(
                    self._storage.get_study_id_from_name(former), deepcopy=False, states=[TrialState.COMPLETE]
                )
            )
            fitting = [trial for trial in trials if set(trial.params) == set(self.space.names)]  # of these coordinates
            start = {"study": former, **self.space.warm_start(fitting)} if fitting else {}
            self._retried(lambda: self._study.set_user_attr(_START, start))

    def changes(self, identity: Mapping[str, Any]) -> list[str]:
        """What the study was begun with that is not so now, in words; empty: everything is as it was."""
        known = self._retried(lambda: self._study.user_attrs).get(_IDENTITY)
        if known is None:
            return []
        changed = [key for key in {**known, **identity} if known.get(key) != identity.get(key)]
        precision = identity.get(_PRECISION)
        if precision == "auto" or (known.get(_PRECISION) == "auto" and self.precisions() <= {precision}):
            changed = [key for key in changed if key != _PRECISION]  # what auto comes to is seen where it is trained
        if not any(_DRAWN.match(key) for key in changed) and all(c.result is None for c in self.candidates()):
            return []  # nothing was trained with what was there, which may have been a mistake
        return [f"{key} {known.get(key)!r}, now {identity.get(key)!r}" for key in sorted(changed)]

    def _check_identity(self, identity: dict[str, Any]) -> None:
        if changed := self.changes(identity):
            raise InputError(
                f"sweep {_sweep(self.study)!r} was begun with {', '.join(changed)}: its candidates cannot be compared "
                "with new ones; give the new sweep another name"
            )
        self._retried(lambda: self._study.set_user_attr(_IDENTITY, identity))

    def precisions(self) -> set[str]:
        """What the candidates were trained in: one precision, if all is well."""
        results = [c.result for c in self.candidates() if c.result is not None and c.result["status"] != "failed"]
        return {part for result in results for part in result["method"].split(", ")[1:2]}  # engine, precision, device

    @property
    def finished(self) -> bool:
        """Whether the search has come to its end, and its champion was reported."""
        return bool(self._retried(lambda: self._study.user_attrs).get(_FINISHED))

    def finish(self) -> None:
        """Mark the search as finished."""
        self._retried(lambda: self._study.set_user_attr(_FINISHED, True))

    @property
    def source(self) -> str | None:
        """The study that this one is warm-started from, if there was a fitting one."""
        return self._start().get("study")

    def _start(self) -> dict[str, Any]:
        return dict(self._retried(lambda: self._study.user_attrs).get(_START, {}))

    def complete_generations(self) -> int:
        """How many generations, from the first one on, have all their results."""
        results: dict[int, int] = {}
        for candidate in self.candidates():
            results[candidate.generation] = results.get(candidate.generation, 0) + (candidate.fitness is not None)
        complete = 0
        while results.get(complete + 1, 0) >= self.settings.popsize:
            complete += 1
        return complete

    @contextmanager
    def claimed(self, trial: int) -> Iterator[Candidate | None]:
        """Keep a candidate from all other runs until the end of the block; yields it as it is now, None: taken."""
        number = _FIRST_TRIAL + trial
        taken = self._retried(lambda: self._claims.take(number))
        try:
            yield next(c for c in self.candidates() if c.trial == trial) if taken else None
        finally:
            if taken:
                self._claims.release(number)

    @contextmanager
    def exclusively(self, part: int = TELLING) -> Iterator[None]:
        """Keep a part of the study, such as the telling of its results, to this process until the end of the block.

        Raises:
            ServiceError: another process has had it for two minutes.
        """
        deadline = time.monotonic() + _EXCLUSIVE_SECONDS
        while not self._retried(lambda: self._claims.take(part)):
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"another run has kept study {self.study!r} to itself for {_EXCLUSIVE_SECONDS} s; is it stuck?"
                )
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            self._claims.release(part)

    def candidates(self, generation: int | None = None) -> list[Candidate]:
        """All candidates (of one generation), in the order in which they were drawn."""
        trials = self._retried(lambda: self._study.get_trials(deepcopy=False))
        known = [self._candidate(trial) for trial in trials if _GENERATION in trial.user_attrs]
        return [c for c in known if generation is None or c.generation == generation]

    def propose(self, generation: int) -> list[Candidate]:
        """Draw the candidates of a generation from CMA-ES's distribution, as many as popsize.

        Asking again gives the same candidates. The former generation has to be complete.
        """
        if generation > 1:
            finished = sum(c.fitness is not None for c in self.candidates(generation - 1))
            if finished < self.settings.popsize:
                raise InputError(
                    f"generation {generation} cannot be proposed: generation {generation - 1} has {finished} of "
                    f"{self.settings.popsize} results"
                )
        with self.exclusively(DRAWING):
            self._draw(generation, self.settings.popsize)
        return self.candidates(generation)

    def screen(self, generation: int, num_classes: int) -> list[Candidate]:
        """Judge the proposed candidates; returns all of the generation, the accepted and the rejected.

        With ``resample``, a rejected candidate is told to the study as failed and another one is drawn from the same
        distribution, until popsize are accepted. With ``penalize`` it counts in the population with fitness 0
        (regularization paper, section 5).

        Raises:
            InputError: max_draws candidates did not give popsize accepted ones.
        """
        with self.exclusively(DRAWING):
            return self._screen(generation, num_classes)

    def _screen(self, generation: int, num_classes: int) -> list[Candidate]:
        judge = all_of(self.settings.filters)
        while True:
            for candidate in self.candidates(generation):
                if candidate.verdict is None:
                    self._judge(candidate, judge(candidate.theta, num_classes))
                elif candidate.rejected and not candidate.finished:
                    self._reject(candidate)
            drawn = self.candidates(generation)
            accepted = sum(not c.rejected for c in drawn)
            missing = self.settings.popsize - accepted
            if self.settings.on_reject == "penalize" or missing <= 0:
                return drawn
            if len(drawn) + missing > self.settings.max_draws:
                raise InputError(
                    f"generation {generation}: the filters ({', '.join(self.settings.filters)}) accepted {accepted} of "
                    f"{len(drawn)} candidates, and {self.settings.popsize} are needed; raise search.max_draws "
                    f"({self.settings.max_draws}), move search.mean, or choose other filters"
                )
            self._draw(generation, len(drawn) + missing)

    def note(self, trial: int, result: Mapping[str, Any]) -> None:
        """Record what is known of a candidate so far, before its fitness is told."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._set(trial, _RESULT, dict(result))

    def tell(self, trial: int, fitness: float, result: Mapping[str, Any]) -> None:
        """Record what came of a candidate's training; telling a finished one again, from anywhere, changes nothing.

        Args:
            trial: the candidate's number.
            fitness: validation accuracy in [0, 1].
            result: details as JSON values.
        """
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._set(trial, _RESULT, dict(result))
            self._retried(lambda: self._study.tell(trial, fitness, skip_if_finished=True))

    def best(self, number: int) -> list[Candidate]:
        """The ``number`` trained candidates of highest fitness, best first; of equals, the earlier one first."""
        trained = [c for c in self.candidates() if c.fitness is not None and c.result is not None]
        return sorted(trained, key=lambda c: (-(c.fitness or 0.0), c.trial))[:number]

    def _draw(self, generation: int, total: int) -> None:
        """Draw until the generation has ``total`` candidates."""
        if not isinstance(self._study.sampler, GenerationalCmaEs):
            seed = self._seed + _number(self.study) - 1
            self._study.sampler = GenerationalCmaEs(self.space, self.settings.popsize, seed, self._start())

        def draw() -> bool:
            trials = self._study.get_trials(deepcopy=False)
            if sum(trial.user_attrs.get(_GENERATION) == generation for trial in trials) >= total:
                return False
            # Who is killed while drawing, or loses the database, leaves a trial behind: it is the next draw.
            orphans = [t for t in trials if t.state == TrialState.RUNNING and _GENERATION not in t.user_attrs]
            trial = Trial(self._study, self._trial_id(orphans[0].number)) if orphans else self._study.ask()
            for name, box in self.space.distributions.items():
                assert isinstance(box, FloatDistribution)
                trial.suggest_float(name, box.low, box.high)
            trial.set_user_attr(_GENERATION, generation)
            return True

        while self._retried(draw):
            pass

    def _judge(self, candidate: Candidate, verdict: Verdict) -> None:
        record = {"accepted": verdict.accepted, "reason": verdict.reason, "numbers": dict(verdict.numbers)}
        self._set(candidate.trial, _VERDICT, record)
        if not verdict.accepted:
            self._reject(candidate)

    def _reject(self, candidate: Candidate) -> None:
        if self.settings.on_reject == "penalize":
            self._retried(lambda: self._study.tell(candidate.trial, WORST_FITNESS, skip_if_finished=True))
        else:
            self._retried(lambda: self._study.tell(candidate.trial, state=TrialState.FAIL, skip_if_finished=True))

    def _retried(self, action: Callable[[], Result]) -> Result:
        return retried(action, self._tries)

    def _candidate(self, trial: FrozenTrial) -> Candidate:
        verdict = trial.user_attrs.get(_VERDICT)
        return Candidate(
            trial=trial.number,
            generation=trial.user_attrs[_GENERATION],
            theta=self.space.theta(trial.params),
            verdict=Verdict(**verdict) if verdict else None,
            result=trial.user_attrs.get(_RESULT),
            fitness=trial.value if trial.state == TrialState.COMPLETE else None,
            finished=trial.state.is_finished(),
            ended=trial.datetime_complete.isoformat() if trial.datetime_complete else None,
        )

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _set(self, number: int, key: str, value: Any) -> None:
        self._retried(lambda: self._storage.set_trial_user_attr(self._trial_id(number), key, value))


def summary(candidates: Sequence[Candidate]) -> dict[str, float]:
    """What a generation came to: how many were drawn, rejected, trained, ..., and the best and median fitness."""
    results = [c.result for c in candidates if c.result is not None and c.finished]
    fitnesses = [c.fitness for c in candidates if c.fitness is not None and c.result is not None]
    return {
        "drawn": len(candidates),
        "rejected": sum(c.rejected for c in candidates),
        "trained": len(results),
        "diverged": sum(result["status"] == "diverged" for result in results),
        "failed": sum(result["status"] == "failed" for result in results),
        "best": max(fitnesses, default=0.0),
        "median": float(np.median(fitnesses)) if fitnesses else 0.0,
    }


def _study_name(sweep: str, number: int) -> str:
    return sweep if number == 1 else f"{sweep}.{number}"  # the name of a sweep has no dot in it


def _sweep(study: str) -> str:
    return study.partition(".")[0]


def _number(study: str) -> int:
    return int(study.partition(".")[2] or 1)
