"""The search: CMA-ES over the coefficients of the loss, through Optuna, one generation at a time.

The study in Optuna's relational storage is the one memory of a search: every candidate that was drawn, the verdict of
the filters, and the result of its training, written the moment it is known. Whatever is killed goes on from there,
and a generation may be proposed by one process, screened by a second and evaluated by several more.

A sweep that recurs has a study per search: NAME, then NAME.2, NAME.3, each warm-started from the one before it.
"""

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from taylorglo.claims import Claims
from taylorglo.errors import InputError, ServiceError
from taylorglo.filters import Verdict, all_of
from taylorglo.polynomial import from_coefficients
from taylorglo.settings import SearchSettings

if TYPE_CHECKING:
    import cmaes

WORST_FITNESS = 0.0
_REDUCED = ("cy", "chy", "ch", "chh")
_NEAR_CROSS_ENTROPY = (4.0, -4.0, -1.0, 0.0)  # t/h expanded at h = 1/2, and a push back that grows with h
_BOX = 50.0  # half-width of the search space in units of sigma: CMA-ES walks freely inside it
_TRIES, _PAUSE = 4, 0.5  # of a failing database: as many tries, the pause in seconds doubled each time
_SERVER_TRIES, _LONGEST_PAUSE = 13, 16  # of a server in the middle of a search: two minutes, to start again in
_BUSY_SECONDS = 60  # how long one try waits for an SQLite file that another process is writing
_HOPELESS = ("file is not a database", "unable to open database file", "attempt to write a readonly database")
_GENERATION, _VERDICT, _RESULT, _IDENTITY, _FINISHED = "generation", "verdict", "result", "identity", "finished"
DRAWING, TELLING, _FIRST_TRIAL = 0, 1, 2  # the parts of a study that can be claimed; from the third on, its trials
_EXCLUSIVE_SECONDS, _POLL_SECONDS = 120, 0.1
_WARM_SHARE, _WARM_WIDTH = 0.1, 6.0  # of the source's results, the best tenth; the domain's width in units of sigma

Result = TypeVar("Result")


@dataclass(frozen=True)
class Space:
    """What is searched: named coordinates, the mean and sigma of the first generation, and the way to a theta."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    sigma: float

    @classmethod
    def of(cls, settings: SearchSettings) -> "Space":
        """The ``reduced`` coordinates (cy', chy, ch, chh), or all of ``theta`` (TaylorGLO paper, section IV)."""
        if settings.coordinates == "reduced":
            return cls(_REDUCED, tuple(settings.mean) or _NEAR_CROSS_ENTROPY, settings.sigma)
        names = tuple(f"theta_{index}" for index in range(settings.dimensions))
        return cls(names, tuple(settings.mean) or (0.0,) * settings.dimensions, settings.sigma)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The box around the mean, as Optuna wants it."""
        reach = _BOX * self.sigma
        return {
            name: FloatDistribution(centre - reach, centre + reach)
            for name, centre in zip(self.names, self.mean, strict=True)
        }

    def theta(self, point: Mapping[str, float]) -> list[float]:
        """The theta of a point in these coordinates."""
        values = [point[name] for name in self.names]
        return from_coefficients(*values) if self.names == _REDUCED else values


class _GenerationalCmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES, from its first candidate on, with its state rebuilt from the trials each time.

    Optuna's own sampler draws uniformly until a trial is complete, and keeps its state in the database as a pickle:
    whoever can write there could run code in every task. Telling the finished generations again gives the same state.
    Randomness depends on the seed and the trial's number alone, so it does not matter which process asks.
    """

    def __init__(self, space: Space, popsize: int, seed: int, source_trials: list[FrozenTrial]) -> None:
        super().__init__(n_startup_trials=0, popsize=popsize, seed=seed, source_trials=source_trials or None)
        self._space = space
        self._population_size = popsize
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._cma_rng.rng.seed(self._seed)
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> "cmaes.CMA":
        import cmaes  # with scipy behind it, half a second that only a task which draws has to spend

        dimensions, popsize = len(self._space.names), self._population_size
        mean, sigma, covariance = self._start()
        with np.errstate(divide="ignore"):  # cmaes warns of infinities that it leaves aside, where popsize is 2 or 3
            optimizer = cmaes.CMA(
                mean=mean,
                sigma=sigma,
                cov=covariance,
                bounds=np.array([[0.0, 1.0]] * dimensions),
                population_size=popsize,
            )
        generations: dict[int, list[tuple[np.ndarray, float]]] = {}
        for trial in sorted(completed_trials, key=lambda trial: trial.number):
            generation = trial.system_attrs[self._attr_key_generation]
            generations.setdefault(generation, []).append(self._solution(trial, 2 * _BOX))
        while len(solutions := generations.get(optimizer.generation, [])) >= popsize:
            optimizer.tell(solutions[:popsize])
        return optimizer

    def _start(self) -> tuple[np.ndarray, float, np.ndarray | None]:
        """Mean, sigma and covariance of the first generation, in units of the box.

        With source trials, as WS-CMA-ES has it (Nomura et al., arXiv 2012.06932). Its prior is a tenth of the domain;
        the box is far wider than the domain, so it is told of one that is as wide as Optuna takes it to be, 6 sigma.
        """
        import cmaes

        if not self._source_trials:
            return np.full(len(self._space.names), 0.5), 1 / (2 * _BOX), None
        solutions = [self._solution(trial, _WARM_WIDTH) for trial in self._source_trials]
        share = min(1.0, max(_WARM_SHARE, 1.5 / len(solutions)))  # at least one, after rounding down
        mean, sigma, covariance = cmaes.get_warm_start_mgd(solutions, gamma=share)
        scale = _WARM_WIDTH / (2 * _BOX)
        return np.clip((mean - 0.5) * scale + 0.5, 0.01, 0.99), sigma * scale, covariance

    def _solution(self, trial: FrozenTrial, width: float) -> tuple[np.ndarray, float]:
        """A trial as cmaes wants it: the point, in a domain of this width in sigma, and a value to minimize."""
        assert trial.value is not None
        point = np.array([trial.params[name] for name in self._space.names]) - np.array(self._space.mean)
        return point / (width * self._space.sigma) + 0.5, -trial.value


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
        self._tries = _TRIES if identity is not None or url.startswith("sqlite") else _SERVER_TRIES
        self._storage = _open_storage(url, identity is not None, self._tries)
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
        storage = _open_storage(url, True, _TRIES)
        names = _retried(lambda: [study.study_name for study in storage.get_all_studies()], _TRIES)
        numbers = [_number(name) for name in names if re.fullmatch(rf"{re.escape(sweep)}(\.[2-9]|\.[1-9]\d+)?", name)]
        latest = max(numbers, default=1)
        if settings.renew and numbers:
            search = cls(url, _study_name(sweep, latest), settings, seed)
            if search.finished or search.changes(identity):
                latest += 1
        return cls(url, _study_name(sweep, latest), settings, seed, identity)

    def changes(self, identity: Mapping[str, Any]) -> list[str]:
        """What the study was begun with that is not so now, in words; empty: everything is as it was."""
        known = self._retried(lambda: self._study.user_attrs).get(_IDENTITY)
        if known is None:
            return []
        changed = [key for key in {**known, **identity} if known.get(key) != identity.get(key)]
        return [f"{key} {known.get(key)!r}, now {identity.get(key)!r}" for key in sorted(changed)]

    def _check_identity(self, identity: dict[str, Any]) -> None:
        if changed := self.changes(identity):
            raise InputError(
                f"sweep {_sweep(self.study)!r} was begun with {', '.join(changed)}: its candidates cannot be compared "
                "with new ones; give the new sweep another name"
            )
        self._retried(lambda: self._study.set_user_attr(_IDENTITY, identity))

    @property
    def finished(self) -> bool:
        """Whether the search has come to its end, and its champion was reported."""
        return bool(self._retried(lambda: self._study.user_attrs).get(_FINISHED))

    def finish(self) -> None:
        """Mark the search as finished."""
        self._retried(lambda: self._study.set_user_attr(_FINISHED, True))

    @property
    def source(self) -> str | None:
        """The study that this one is warm-started from, if there is a fitting one."""
        return _study_name(_sweep(self.study), _number(self.study) - 1) if self._source_trials() else None

    def _source_trials(self) -> list[FrozenTrial]:
        if _number(self.study) == 1:
            return []
        former = _study_name(_sweep(self.study), _number(self.study) - 1)
        trials = self._retried(
            lambda: self._storage.get_all_trials(
                self._storage.get_study_id_from_name(former), deepcopy=False, states=[TrialState.COMPLETE]
            )
        )
        fitting = set(self.space.names)  # it may have been a search in other coordinates
        return [trial for trial in trials if set(trial.params) == fitting]

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
        if not isinstance(self._study.sampler, _GenerationalCmaEs):
            # Not before: only a task that draws needs the trials of the study that this one is warm-started from.
            seed = self._seed + _number(self.study) - 1
            trials = self._source_trials()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of source_trials
                self._study.sampler = _GenerationalCmaEs(self.space, self.settings.popsize, seed, trials)

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
        return _retried(action, self._tries)

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


def _open_storage(url: str, new: bool, tries: int) -> optuna.storages.RDBStorage:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: of a port that is no number
        raise InputError(
            "the study's URL is malformed; it should be sqlite:///PATH or postgresql://HOST/DATABASE"
        ) from None
    shown = parsed.set(query={}).render_as_string(hide_password=True)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(f"{shown}: a study is kept in sqlite:///PATH or postgresql://HOST/DATABASE")
    if parsed.password or any("password" in option for option in parsed.query):
        raise InputError(f"{shown}: leave the password out of the URL and set PGPASSWORD in the environment")
    if parsed.drivername == "postgresql":  # which driver that means depends on SQLAlchemy's version
        parsed = parsed.set(drivername="postgresql+psycopg")
    arguments = {"timeout": _BUSY_SECONDS} if parsed.get_backend_name() == "sqlite" else {"connect_timeout": 10}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _retried(
                lambda: optuna.storages.RDBStorage(
                    parsed.render_as_string(hide_password=False),
                    engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
                    skip_compatibility_check=not new,  # a fifth of a second in every task
                    skip_table_creation=not new,
                ),
                tries,
            )
    except (InputError, ArgumentError, NoSuchModuleError, ImportError) as error:
        raise InputError(f"{shown}: {_first_line(error)}") from None


def _retried(action: Callable[[], Result], tries: int) -> Result:
    """Run an action on the database, again after 0.5, 1, 2, ... seconds if the database fails."""
    from sqlalchemy.exc import DBAPIError

    for attempt in range(tries):
        try:
            return action()
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            failure = error if isinstance(error, DBAPIError) else error.__cause__
            # The driver's own error: SQLAlchemy's goes on with the statement and its parameters.
            message = _first_line((isinstance(failure, DBAPIError) and failure.orig) or error)
            if any(hopeless in message for hopeless in _HOPELESS):
                raise InputError(f"the study's database cannot be used: {message}") from None
            if attempt == tries - 1:
                raise ServiceError(f"the study's database fails, after {tries} tries: {message}") from None
            time.sleep(min(_PAUSE * 2**attempt, _LONGEST_PAUSE))
    raise AssertionError("unreachable")


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).split(" (Background on this error")[0].strip()[:300]
