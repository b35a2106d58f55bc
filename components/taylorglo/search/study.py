"""The search: CMA-ES over the coefficients of the loss, through Optuna, generation by generation.

The study in Optuna's relational storage is the only memory of a search. It has every candidate that
was drawn, the verdict of the filters, and the result of its training, each written the moment it is
known. So a killed process loses nothing, and a generation may be proposed by one process, screened
by a second and evaluated by several more.

A sweep that recurs has a study for each search: NAME, then NAME.2, NAME.3, and so on, each
warm-started from the one before it.
"""

import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Self, TypeVar

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from taylorglo.errors import InputError, ServiceError
from taylorglo.loss.filters import Verdict, all_of
from taylorglo.loss.polynomial import check_classes
from taylorglo.results import Candidate, Evaluation
from taylorglo.scores import words
from taylorglo.search.database import (
    BUSY_SECONDS,
    SERVER_TRIES,
    TRIES,
    open_storage,
    retried,
    shown,
)
from taylorglo.search.locks import Claims
from taylorglo.search.sampler import GenerationalCmaEs, Judged
from taylorglo.search.space import Space
from taylorglo.settings import Decides, Identity, SearchSettings, former_values
from taylorglo.variables import service_timeout

WORST_FITNESS = 0.0

# The parts of a study that can be claimed; from the third on, its trials.
DRAWING, REPORTING, FIRST_TRIAL = 0, 1, 2

# Attributes of a trial.
GENERATION, VERDICT, RESULT, _HELD_BACK = "generation", "verdict", "result", "held back"
# What became of a candidate in a word, for people who look at the study in Optuna's dashboard.
_STATUS = "status"
# Attributes of a study.
IDENTITY, START, FINISHED, GENERATIONS = "identity", "start", "finished", "generations"
_EXCLUSIVE_SECONDS, _POLL_SECONDS = 120, 0.1

Result = TypeVar("Result")


class Search:
    """A study and its generations, numbered from 1: propose, screen, tell.

    Each of these can be repeated after a kill.

    Attributes:
        settings: the search settings.
        study: name of the study.
        space: the coordinates that are searched.
    """

    def __init__(
        self,
        url: str,
        name: str,
        settings: SearchSettings,
        seed: int,
        identity: Identity | None = None,
        *,
        num_classes: int,
        exclusive_seconds: float = _EXCLUSIVE_SECONDS,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        """Open the study ``name``, creating it if need be.

        Args:
            url: ``sqlite:///PATH`` or ``postgresql://...`` without a password (libpq reads
                PGPASSWORD).
            name: the sweep's name, or that with the number of the search, such as ``digits.2``.
            settings: the search settings.
            seed: decides every candidate, together with the fitness values.
            identity: the settings that decide a candidate's fitness; a study that was begun with
                others is refused. None if the study exists and was checked.
            num_classes: of the data.
            exclusive_seconds: how long :meth:`exclusively` waits for another process.
            busy_seconds: how long one try waits for an SQLite file that another process writes.

        Raises:
            InputError: the URL is malformed, or the study was begun with other settings.
            ServiceError: the database does not answer, after a bounded number of tries.
        """
        self.settings = settings
        self.study = name
        check_classes(num_classes, "num_classes")
        self.space = Space.of(settings, num_classes)
        self._num_classes = num_classes
        self._seed = seed
        self._exclusive_seconds = exclusive_seconds
        new = identity is not None
        # A user who begins is told of a dead server at once. In the middle of a search, a server
        # may be starting again.
        self._tries = TRIES if new or url.startswith("sqlite") else SERVER_TRIES
        self._database = shown(url)
        self._storage = open_storage(url, new=new, tries=self._tries, busy_seconds=busy_seconds)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = self._retried(
            lambda: optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
        )
        self._id = self._retried(lambda: self._storage.get_study_id_from_name(name))
        self._claims = Claims(self._storage.engine, self._id)
        if identity is not None:
            self._check_identity(identity)

    @classmethod
    def begin(
        cls,
        url: str,
        sweep: str,
        settings: SearchSettings,
        seed: int,
        identity: Identity,
        *,
        num_classes: int,
    ) -> Self:
        """Open the study in which a run of a sweep searches.

        This is the latest study of the sweep. With ``settings.renew``, it is a new one,
        warm-started from the latest, if the latest is finished or was begun with other settings or
        other data.

        Args:
            url: as for the constructor.
            sweep: name of the sweep.
            settings: the search settings.
            seed: as for the constructor.
            identity: as for the constructor.
            num_classes: as for the constructor.

        Raises:
            InputError: the URL is malformed, or the study was begun with other settings and
                ``settings.renew`` is not set.
            ServiceError: the database does not answer, after a bounded number of tries.
        """
        storage = open_storage(url, new=True, tries=TRIES)
        studies = retried(storage.get_all_studies, TRIES)
        of_sweep = re.compile(rf"{re.escape(sweep)}(\.[2-9]|\.[1-9]\d+)?")
        names = [study.study_name for study in studies]
        numbers = [number_of(name) for name in names if of_sweep.fullmatch(name)]
        latest = max(numbers, default=1)
        if settings.renew and numbers:
            search = cls(url, _study_name(sweep, latest), settings, seed, num_classes=num_classes)
            if search.finished or search.changes(identity):
                latest += 1
        begun = cls(
            url, _study_name(sweep, latest), settings, seed, identity, num_classes=num_classes
        )
        former = max((number for number in numbers if number < latest), default=None)
        if former is not None:
            begun._settle_start(_study_name(sweep, former))
        return begun

    def _settle_start(self, former: str) -> None:
        """Fix once where the search begins.

        The former study may be added to, or deleted, while this one goes on.
        """
        with self.exclusively(DRAWING):
            if START in self._attributes():
                return
            trials = self._retried(
                lambda: self._storage.get_all_trials(
                    self._storage.get_study_id_from_name(former),
                    deepcopy=False,
                    states=[TrialState.COMPLETE],
                )
            )
            # Trials in other coordinates are of no use.
            fitting = [trial for trial in trials if set(trial.params) == set(self.space.names)]
            solved = self._sampler().solutions(fitting)
            start = {"study": former, **self.space.warm_start(solved)} if fitting else {}
            if trials and not fitting:
                start = {"unfitting": former}
            self._retried(lambda: self._study.set_user_attr(START, start))

    def changes(self, identity: Identity) -> list[str]:
        """Return in words what the study was begun with and is different now; empty if nothing."""
        known = self._attributes().get(IDENTITY)
        if known is None:
            return []
        of_candidates, of_fitness = (
            former_values()[what] for what in (Decides.CANDIDATES, Decides.FITNESS)
        )
        unnamed = {**of_candidates, **of_fitness}
        known, now = {**unnamed, **known}, {**unnamed, **identity.flat()}
        changed = {key for key in {**known, **now} if known.get(key) != now.get(key)}
        # What ``auto`` means is found out on the machine that trains.
        former, precision = known.get(Identity.PRECISION), identity.precision
        same = former == "auto" and self.precisions() <= {precision}
        if precision == "auto" or same:
            changed.discard(Identity.PRECISION)
        untrained = all(candidate.result is None for candidate in self.candidates())
        if untrained and changed <= {*identity.fitness, *of_fitness, Identity.PRECISION}:
            # Nothing was trained with the former settings, which may have been a mistake.
            return []
        if "data_classes" in changed:
            # Data that no task sees differ by nothing else.
            changed.discard("data")
        return [_difference(key, known.get(key), now.get(key)) for key in sorted(changed)]

    def _check_identity(self, identity: Identity) -> None:
        if changed := self.changes(identity):
            raise InputError(
                f"sweep {sweep_of(self.study)!r} was begun with {', '.join(changed)}: its "
                "candidates cannot be compared with new ones; give the new sweep another name"
            )
        self._retried(lambda: self._study.set_user_attr(IDENTITY, identity.flat()))
        self._name_objective(identity)

    def _name_objective(self, identity: Identity) -> None:
        """Name the fitness for people who look at the study in Optuna's dashboard."""
        flat = identity.flat()
        name = f"validation {words(str(flat.get('evaluation_score', 'accuracy')))}"
        if flat.get("evaluation_adversarial_weight"):
            name = "fitness"
        with warnings.catch_warnings():
            # Optuna counts this method as experimental.
            warnings.simplefilter("ignore")
            self._retried(lambda: self._study.set_metric_names([name]))

    def plan(self, generations: int) -> None:
        """Note how many generations the search is to have in all."""
        self._retried(lambda: self._study.set_user_attr(GENERATIONS, generations))

    def precisions(self) -> set[str]:
        """Return the precisions that candidates were trained in; at most one, if all is well."""
        results = [candidate.result for candidate in self.candidates()]
        return {r.precision for r in results if r is not None and r.status != "failed"}

    @property
    def finished(self) -> bool:
        """Whether the search has come to its end, and its champion was reported."""
        return bool(self._attributes().get(FINISHED))

    def finish(self) -> None:
        """Mark the search as finished."""
        self._retried(lambda: self._study.set_user_attr(FINISHED, True))

    @property
    def source(self) -> str | None:
        """The study that this one is warm-started from, if there is a fitting one."""
        return self._start().get("study")

    @property
    def unfitting(self) -> str | None:
        """The study that this one could not be warm-started from: it has other coordinates."""
        return self._start().get("unfitting")

    def _start(self) -> dict[str, Any]:
        return dict(self._attributes().get(START, {}))

    def _attributes(self) -> dict[str, Any]:
        return self._retried(lambda: self._study.user_attrs)

    def complete_generations(self) -> int:
        """Return how many generations, from the first one on, have all their results."""
        results: dict[int, int] = {}
        for candidate in self.candidates():
            told = candidate.fitness is not None
            results[candidate.generation] = results.get(candidate.generation, 0) + told
        complete = 0
        while results.get(complete + 1, 0) >= self.settings.popsize:
            complete += 1
        return complete

    @contextmanager
    def claimed(self, trial: int) -> Iterator[Candidate | None]:
        """Keep a candidate from all other runs until the end of the block.

        Yields:
            The candidate as it is now, or None if another run has claimed it.
        """
        part = FIRST_TRIAL + trial
        taken = self._retried(lambda: self._claims.take(part))
        try:
            yield next(c for c in self.candidates() if c.trial == trial) if taken else None
        finally:
            if taken:
                self._claims.release(part)

    @contextmanager
    def exclusively(self, part: int = REPORTING) -> Iterator[None]:
        """Keep a part of the study, ``DRAWING`` or ``REPORTING``, to this process for the block.

        Raises:
            ServiceError: another process has had it for two minutes.
        """
        # The other process may be waiting for a service meanwhile.
        deadline = time.monotonic() + self._exclusive_seconds + service_timeout()
        while not self._retried(lambda: self._claims.take(part)):
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"another run has kept study {self.study!r} to itself for "
                    f"{self._exclusive_seconds} s; is it stuck?"
                )
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            self._claims.release(part)

    def candidates(self, generation: int | None = None) -> list[Candidate]:
        """Return all candidates (of one generation), in the order in which they were drawn.

        A candidate that another process is drawing is left out. Optuna reads attributes after
        coordinates, so the attribute alone does not tell that all coordinates were read.
        """
        trials = self._retried(lambda: self._study.get_trials(deepcopy=False))
        return [
            self._candidate(trial)
            for trial in trials
            if GENERATION in trial.user_attrs
            and trial.params.keys() >= set(self.space.names)
            and generation in (None, trial.user_attrs[GENERATION])
        ]

    def group(self, generation: int) -> int:
        """Return the first of the generations whose fitnesses are compared with each other.

        They have to be trained from the same seeds and validated on the same folds. The generations
        that try a start each are compared; every other generation is ranked by itself.
        """
        starts = 0 if "mean" in self._start() else len(self.space.starts)
        return 1 if generation <= starts else generation

    def propose(self, generation: int) -> list[Candidate]:
        """Draw the candidates of a generation from CMA-ES's distribution, ``popsize`` of them.

        Asking again gives the same candidates. The former generation has to be complete.

        Raises:
            InputError: the former generation is not complete.
        """
        popsize = self.settings.popsize
        if generation > 1:
            finished = sum(c.fitness is not None for c in self.candidates(generation - 1))
            if finished < popsize:
                raise InputError(
                    f"generation {generation} cannot be proposed: generation {generation - 1} has "
                    f"{finished} of {popsize} results"
                )
        with self.exclusively(DRAWING):
            self._draw(generation, popsize)
        return self.candidates(generation)

    def screen(self, generation: int) -> list[Candidate]:
        """Judge the proposed candidates; return all of the generation, accepted and rejected.

        With ``resample``, the study is told that a rejected candidate failed, and another one is
        drawn from the same distribution, until ``popsize`` are accepted. With ``penalize``, a
        rejected candidate counts in the population with fitness 0 (regularization paper,
        section 5).

        Raises:
            InputError: ``max_draws`` candidates did not give ``popsize`` accepted ones.
        """
        with self.exclusively(DRAWING):
            while True:
                self._judge_all(generation)
                drawn = self.candidates(generation)
                accepted = sum(not candidate.rejected for candidate in drawn)
                missing = self.settings.popsize - accepted
                if self.settings.on_reject == "penalize" or missing <= 0:
                    return drawn
                if len(drawn) + missing > self.settings.max_draws:
                    raise InputError(
                        f"generation {generation}: the filters "
                        f"({', '.join(self.settings.filters)}) accepted {accepted} of "
                        f"{len(drawn)} candidates, and {self.settings.popsize} are needed; raise "
                        f"search.max_draws ({self.settings.max_draws}), move search.mean, or "
                        "choose other filters"
                    )
                self._draw(generation, len(drawn) + missing)

    def is_screened(self, candidates: Sequence[Candidate]) -> bool:
        """Return whether the candidates of a generation are drawn and judged, all of them."""
        judged = all(c.finished if c.rejected else c.verdict is not None for c in candidates)
        penalize = self.settings.on_reject == "penalize"
        counted = [c for c in candidates if penalize or not c.rejected]
        return judged and len(counted) >= self.settings.popsize

    def _judge_all(self, generation: int) -> None:
        """Judge the candidates that have no verdict, and finish those that are rejected."""
        judge = all_of(self.settings.filters)
        for candidate in self.candidates(generation):
            if candidate.verdict is None:
                self._judge(candidate, judge(candidate.theta, self._num_classes))
            elif candidate.rejected and not candidate.finished:
                self._reject(candidate)

    def note(self, trial: int, result: Evaluation) -> None:
        """Record what is known of a candidate so far, before its fitness is told."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._set(trial, RESULT, result.to_json())

    def hold_back(self, trial: int, held_back: bool = True) -> None:
        """Note that the training of a candidate failed, and that the reason is not known yet."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._set(trial, _HELD_BACK, held_back)

    def tell(self, trial: int, result: Evaluation) -> None:
        """Record the result of a candidate and tell CMA-ES its fitness.

        Telling a finished candidate again, from any process, changes nothing.
        """
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._set(trial, RESULT, result.to_json())
            self._note_status(trial, "trained" if result.status == "ok" else result.status)
            self._retried(lambda: self._study.tell(trial, result.fitness, skip_if_finished=True))

    def best(self, number: int) -> list[Candidate]:
        """Return the ``number`` candidates of highest fitness; of equals, the earlier.

        A candidate whose training diverged or failed is none of them.
        """
        trained = [
            c
            for c in self.candidates()
            if c.fitness is not None and c.result is not None and c.result.status == "ok"
        ]
        return sorted(trained, key=lambda c: (-(c.fitness or 0.0), c.trial))[:number]

    def leaders(self, number: int) -> list[Candidate]:
        """Return ``number`` candidates to choose the champion from: the best of each generation.

        The latest generation comes first. If there are fewer generations, the second best of each
        follow, and so on. Fitnesses of two generations are not compared: each generation may be
        validated on other images.
        """
        ranks: dict[int, int] = {}
        ranked = []
        for candidate in self.best(len(self.candidates())):
            rank = ranks[candidate.generation] = ranks.get(candidate.generation, 0) + 1
            ranked.append((rank, -candidate.generation, candidate))
        return [candidate for *_, candidate in sorted(ranked, key=lambda r: r[:2])[:number]]

    def check_trained(self) -> None:
        """Refuse a search in which no candidate was trained to the end.

        Raises:
            InputError: with the reason of the first candidate that was not.
        """
        candidates = self.candidates()
        results = [c.result for c in candidates if c.result is not None]
        if any(result.status == "ok" for result in results):
            return
        remedy = (
            "nothing can be chosen from this search; give the sweep another name and change "
            "training.learning_rate, search.mean, search.sigma or the network"
        )
        if not results:
            raise InputError(f"the filters rejected all {len(candidates)} candidates: {remedy}")
        raise InputError(
            f"no candidate learned: of {len(results)} that were trained, all diverged or failed, "
            f"the first with: {results[0].reason}; {remedy}"
        )

    def mean(self) -> list[float] | None:
        """Return the theta at the mean of CMA-ES's distribution, after all complete generations.

        It is None if the filters reject it.
        """
        trials = self._retried(
            lambda: self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        )
        theta = self.space.theta(self._sampler().mean(trials))
        accepted = all_of(self.settings.filters)(theta, self._num_classes).accepted
        return theta if accepted else None

    def _sampler(self) -> GenerationalCmaEs:
        seed = self._seed + number_of(self.study) - 1
        judged = _judged if self.settings.two_objectives else None
        return GenerationalCmaEs(
            self.space, self.settings.popsize, seed, self._start(), judged=judged
        )

    def _draw(self, generation: int, total: int) -> None:
        """Draw until the generation has ``total`` candidates."""

        def draw() -> None:
            trials = self._study.get_trials(deepcopy=False)
            missing = total - sum(t.user_attrs.get(GENERATION) == generation for t in trials)
            # A candidate is drawn in memory and written at once. Its coordinates and attributes
            # would be ten writes, for each of which the database waits for its disk.
            self._study.sampler = self._sampler()
            memory = optuna.create_study(sampler=self._study.sampler, direction="maximize")
            memory.add_trials(trials)
            # An earlier version left a trial behind if it was killed while it drew: the next draw.
            orphans = [trial.number for trial in trials if _is_orphan(trial)]
            for _ in range(missing):
                orphan = self._trial_id(orphans.pop(0)) if orphans else None
                trial = memory.ask() if orphan is None else Trial(self._study, orphan)
                for name, box in self.space.distributions.items():
                    assert isinstance(box, FloatDistribution)
                    trial.suggest_float(name, box.low, box.high)
                trial.set_user_attr(GENERATION, generation)
                if trial.study is memory:
                    self._storage.create_new_trial(self._id, memory.get_trials(deepcopy=False)[-1])

        self._retried(draw)

    def _judge(self, candidate: Candidate, verdict: Verdict) -> None:
        self._set(candidate.trial, VERDICT, asdict(verdict))
        if not verdict.accepted:
            self._reject(candidate)

    def _reject(self, candidate: Candidate) -> None:
        if self.settings.on_reject == "penalize":
            told: dict[str, Any] = {"values": WORST_FITNESS}
        else:
            told = {"state": TrialState.FAIL}
        trial = candidate.trial
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._note_status(trial, "rejected")
        self._retried(lambda: self._study.tell(trial, **told, skip_if_finished=True))

    def _note_status(self, trial: int, status: str) -> None:
        """Note what became of a candidate, unless a process that was killed has noted it.

        So a search goes on, however few writes each process of it lives for.
        """
        known = self._retried(lambda: self._storage.get_trial(self._trial_id(trial)).user_attrs)
        if known.get(_STATUS) != status:
            self._set(trial, _STATUS, status)

    def _retried(self, action: Callable[[], Result]) -> Result:
        return retried(action, self._tries, self._database)

    def _candidate(self, trial: FrozenTrial) -> Candidate:
        finished = trial.datetime_complete
        return Candidate(
            trial=trial.number,
            generation=trial.user_attrs[GENERATION],
            theta=self.space.theta(trial.params),
            verdict=trial.user_attrs.get(VERDICT),
            result=trial.user_attrs.get(RESULT),
            fitness=trial.value if trial.state == TrialState.COMPLETE else None,
            finished=trial.state.is_finished(),
            held_back=trial.user_attrs.get(_HELD_BACK, False),
            ended=finished.isoformat() if finished else None,
        )

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _set(self, number: int, key: str, value: Any) -> None:
        self._retried(lambda: self._storage.set_trial_user_attr(self._trial_id(number), key, value))


def _difference(key: str, former: object, now: object) -> str:
    """Return in words what a study was begun with, and what it is now; no checksums."""
    if key == "training_function_revision" and former and now:
        return "another version of the training function, whose source has changed"
    if key == "data" and former and now:
        names = [str(value).partition(" ")[0] for value in (former, now)]
        if names[0] == names[1]:
            return f"other samples, labels or splits of the data {names[0]!r}"
        former, now = names
    return f"{key} {former!r}, now {now!r}"


def _judged(trial: FrozenTrial) -> Judged:
    """Return the two objectives of a finished trial."""
    result = trial.user_attrs.get(RESULT)
    if result is None:
        # The filters rejected it, and it counts with the worst fitness.
        return Judged((WORST_FITNESS, WORST_FITNESS), trained=False)
    # Checked when the result was written; a search has thousands.
    evaluation = Evaluation.model_construct(**result)
    return Judged(evaluation.objectives, trained=evaluation.status == "ok")


def _is_orphan(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING and GENERATION not in trial.user_attrs


def _study_name(sweep: str, number: int) -> str:
    """Return the name of a sweep's study; the name of a sweep has no dot in it."""
    return sweep if number == 1 else f"{sweep}.{number}"


def sweep_of(study: str) -> str:
    """Return the name of the sweep that a study belongs to."""
    return study.partition(".")[0]


def number_of(study: str) -> int:
    """Return the number of a study among those of its sweep, from 1."""
    return int(study.partition(".")[2] or 1)
