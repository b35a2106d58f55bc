"""The task that trains a shard of a generation's candidates, and tells the study each result."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from taylorglo.errors import InputError, ServiceError, TaylorgloError
from taylorglo.evaluation.fitness import Assignment, attempts_wanted, evaluate
from taylorglo.results import Candidate, Evaluation, read_json, write_json
from taylorglo.retries import retry
from taylorglo.search.study import Search
from taylorglo.tasks.console import say, task
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.progress import report_generation
from taylorglo.training.engine import Engine

_RETRY_SECONDS = 10
_POLL_SECONDS = 1.0  # between looks at what another run is training


@task
def run(
    *,
    sweep_path: str,
    search_data_path: str,
    generation: int,
    screened_path: str,
    shard: int,
    shards: int,
    retries: int,
    results_path: str,
) -> None:
    """Evaluate every ``shards``-th accepted candidate from number ``shard`` on, and write them.

    Kubeflow does not retry the tasks of a loop, so this task retries by itself if a service fails.

    Args:
        sweep_path: the context of the sweep.
        search_data_path: the data without the test split.
        generation: number of the generation within this run, from 1.
        screened_path: all candidates of the generation, with the verdicts of the filters.
        shard: number of this shard, from 0.
        shards: number of shards.
        retries: how often the task is tried again if a service fails.
        results_path: where to write the candidates of the shard with their results.
    """
    sweep = Sweep.read(sweep_path)
    screened = read_json(screened_path, list[Candidate])
    accepted = [c.trial for c in screened if c.verdict is not None and c.verdict.accepted]
    number = sweep.generation(generation)
    tries = iter(range(1, retries + 1))
    evaluated = retry(
        lambda: evaluate_shard(sweep, number, accepted[shard::shards], search_data_path),
        [_RETRY_SECONDS] * retries,
        retryable=lambda error: isinstance(error, ServiceError),
        before_pause=lambda error: say(f"{error}; trying again ({next(tries)} of {retries})"),
    )
    write_json(results_path, evaluated)


def evaluate_shard(
    sweep: Sweep, generation: int, trials: Sequence[int], search_data: str
) -> list[Candidate]:
    """Train the candidates that have no result yet; the study gets each result at once.

    A candidate that another run of the sweep is training is left to that run, and waited for.
    With ``evaluation.max_attempts``, the shard that completes a generation trains its leaders more
    often as long as their order is noise, and reports the results of all candidates afterwards.

    Args:
        sweep: the context of the sweep.
        generation: number of the generation in the search, from 1.
        trials: the candidates of the shard.
        search_data: path of the data without the test split.

    Returns:
        The candidates of the shard, with their results.

    Raises:
        InputError: the search was trained in another precision so far.
        TaylorgloError: all trainings failed, so no candidate can be blamed; the study gets none
            of these results.
    """
    settings, search = sweep.settings, sweep.search
    own = set(trials)
    unfinished = any(not c.finished for c in search.candidates(generation) if c.trial in own)
    if unfinished:
        with Engine.open(settings, search_data) as engine:
            attempts = dict.fromkeys(trials, settings.evaluation.attempts)
            Shard(sweep, generation, attempts, engine).run()
            if settings.evaluation.max_attempts:
                _train_leaders(sweep, generation, own, engine)
    candidates = search.candidates(generation)
    trained = [c for c in candidates if c.result is not None]
    last = max(trained, key=lambda c: c.ended or "", default=None)
    if last and last.trial in own and all(c.finished for c in candidates):
        report_generation(sweep, generation, candidates, new=unfinished)
    return [c for c in candidates if c.trial in own]


def _train_leaders(sweep: Sweep, generation: int, own: set[int], engine: Engine) -> None:
    """Train the leaders of a complete generation more often, then report all of its results.

    Nothing is done as long as another shard has not recorded all of its results.
    """
    search = sweep.search
    while True:
        candidates = [c for c in search.candidates(generation) if not c.rejected]
        results = {c.trial: c.result for c in candidates if c.result is not None}
        if len(results) < len(candidates):
            return
        more = attempts_wanted(results, sweep.settings)
        if not more:
            break
        Shard(sweep, generation, more, engine).run()
    # Report our own candidates last: the process that reports a generation's final result also
    # prints its summary.
    for candidate in sorted(candidates, key=lambda c: c.trial in own):
        search.tell(candidate.trial, results[candidate.trial])


class Shard:
    """The candidates that one task trains, each until it has the attempts that it should have.

    Args:
        sweep: the context of the sweep.
        generation: number of the generation in the search, from 1.
        attempts: number of attempts that each candidate should have, by trial.
        engine: that trains them.
    """

    def __init__(
        self, sweep: Sweep, generation: int, attempts: Mapping[int, int], engine: Engine
    ) -> None:
        self._sweep = sweep
        self._search = sweep.search
        self._generation = generation
        self._attempts = attempts
        self._engine = engine
        # Results are final unless the leaders may get more attempts.
        self._final = not sweep.settings.evaluation.max_attempts
        self._claims: dict[int, ExitStack] = {}
        self._held_back: dict[int, Evaluation] = {}
        self._something_trained = False

    def run(self) -> None:
        """Train every candidate, or wait for the run that is training it.

        Raises:
            InputError: the search was trained in another precision so far.
            TaylorgloError: every training failed.
        """
        announced = False
        if self._pending():
            _check_precision(self._search, self._engine.plan.precision)
        while True:
            self._evaluate()
            self._tell_recorded()
            pending = self._pending()
            if not pending:
                return
            if not announced:
                say(
                    f"generation {self._generation}: waiting for {len(pending)} candidates that "
                    "another run is training"
                )
            announced = True
            time.sleep(_POLL_SECONDS)

    def _candidates(self) -> list[Candidate]:
        """Return the candidates of the shard as the study has them now."""
        candidates = self._search.candidates(self._generation)
        return [candidate for candidate in candidates if candidate.trial in self._attempts]

    def _pending(self) -> list[Candidate]:
        """Return the candidates that have to be trained, here or by another run."""
        return [candidate for candidate in self._candidates() if self._is_pending(candidate)]

    def _is_pending(self, candidate: Candidate) -> bool:
        if candidate.finished:
            return False
        result = candidate.result
        if result is None:
            return True
        wanted = self._attempts[candidate.trial]
        return result.status == "ok" and len(result.accuracies) < wanted

    def _evaluate(self) -> None:
        """Train the candidates that no other run claims, and keep their results."""
        cache = self._sweep.short_trainings
        try:
            for trial, evaluation in evaluate(
                self._claimed(), self._generation, self._engine, cache
            ):
                result = evaluation.model_copy(update={"run": self._sweep.run_id})
                if result.status == "failed" and not self._something_trained:
                    # Whether the candidate or the machine is to blame is not known yet.
                    self._held_back[trial] = result
                    continue
                self._something_trained = True
                self._keep_held_back()
                self._keep(trial, result)
            _check_failures(
                self._generation, self._held_back, self._search.candidates(self._generation)
            )
            self._keep_held_back()
        finally:
            for claim in self._claims.values():
                claim.close()
            self._claims.clear()

    def _claimed(self) -> Iterator[Assignment]:
        """Claim the candidates that have to be trained, one by one as the engine has room."""
        for trial, attempts in self._attempts.items():
            with ExitStack() as claim:
                candidate = claim.enter_context(self._search.claimed(trial))
                if candidate and self._is_pending(candidate):
                    self._claims[trial] = claim.pop_all()
                    yield Assignment(trial, candidate.theta, attempts)

    def _keep(self, trial: int, result: Evaluation) -> None:
        """Give a result to the study, and the claim on its candidate back."""
        if self._final:
            self._search.tell(trial, result)
        else:
            self._search.note(trial, result)
        self._claims.pop(trial).close()

    def _keep_held_back(self) -> None:
        for trial in list(self._held_back):
            self._keep(trial, self._held_back.pop(trial))

    def _tell_recorded(self) -> None:
        """Tell the study results that a process recorded before it was killed."""
        if not self._final:
            return
        for candidate in self._candidates():
            if candidate.result is not None and not candidate.finished:
                self._search.tell(candidate.trial, candidate.result)


def _check_precision(search: Search, precision: str) -> None:
    """Refuse another precision than that of the results so far, perhaps of another machine."""
    known = search.precisions()
    if known - {precision}:
        raise InputError(
            f"search {search.study!r} was trained in {' and '.join(sorted(known))} so far, and "
            f"this machine would train in {precision}, which cannot be compared: set "
            "training.precision to the former, if the machine has arithmetic for it, or give the "
            "new sweep another name"
        )


def _check_failures(
    generation: int, failed: Mapping[int, Evaluation], candidates: Sequence[Candidate]
) -> None:
    """Refuse to blame the candidates if the network or the machine may be the reason.

    A candidate is to blame only if another candidate of the generation trained successfully. If
    every re-trained leader fails, the machine is to blame: the leaders trained successfully before.
    """
    trained = {c.trial for c in candidates if c.result is not None and c.result.status != "failed"}
    if failed and (not trained or failed.keys() <= trained):
        reason = next(iter(failed.values())).reason
        raise TaylorgloError(
            f"generation {generation}: every training failed, the first with: {reason}; none of "
            "them counts, so put that right and run the sweep again, which goes on from here"
        )
