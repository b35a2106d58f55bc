"""The training of a generation's candidates; the study gets each result at once.

The task ``evaluate`` trains one shard of a generation. A worker of the task ``search`` trains its
share of every generation, and what nobody else trains.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from taylorglo.errors import InputError, TaylorgloError
from taylorglo.evaluation.fitness import Assignment, attempts_wanted, evaluate
from taylorglo.results import Candidate, Evaluation, read_json
from taylorglo.search.study import Search
from taylorglo.tasks.console import is_watched, say, task
from taylorglo.tasks.context import Passed, Sweep
from taylorglo.tasks.progress import WatchedGeneration, report_generation
from taylorglo.training.engine import Engine

_POLL_SECONDS = 0.5  # between looks at what another process is training


@task
def run(screened_path: str, shard: int) -> None:
    """Evaluate a shard: every ``shards``-th accepted candidate from number ``shard`` on.

    Args:
        screened_path: all candidates of the generation, with the verdicts of the filters.
        shard: number of this shard, from 0.
    """
    sweep, screened = read_json(screened_path, Passed[list[Candidate]]).both
    trials = accepted(screened)[shard :: sweep.shards]
    with sweep.search_data() as search_data:
        evaluate_shard(sweep, screened[0].generation, trials, search_data)


def accepted(screened: Sequence[Candidate]) -> list[int]:
    """Return the candidates that the filters accepted."""
    return [c.trial for c in screened if c.verdict is not None and c.verdict.accepted]


def last_result(candidates: Sequence[Candidate]) -> int | None:
    """Return the candidate whose result came last; the process that has it tells of them all."""
    trained = [candidate for candidate in candidates if candidate.result is not None]
    last = max(trained, key=lambda candidate: candidate.ended or "", default=None)
    return None if last is None else last.trial


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
                train_leaders(sweep, generation, own, engine)
    candidates = search.candidates(generation)
    if last_result(candidates) in own and all(c.finished for c in candidates):
        report_generation(sweep, generation, candidates, new=unfinished)
    return [c for c in candidates if c.trial in own]


def train_leaders(sweep: Sweep, generation: int, own: set[int], engine: Engine) -> None:
    """Train the leaders of a complete generation more often, then report all of its results.

    Nothing is done as long as another shard has not recorded all of its results.

    Args:
        sweep: the context of the sweep.
        generation: number of the generation in the search, from 1.
        own: the candidates whose results are reported last.
        engine: that trains them.
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
        share: the candidates to train before the others, if several workers have all in common.

    Attributes:
        trained: the candidates whose results came from here.
    """

    def __init__(
        self,
        sweep: Sweep,
        generation: int,
        attempts: Mapping[int, int],
        engine: Engine,
        share: Sequence[int] | None = None,
    ) -> None:
        self.trained: set[int] = set()
        self._share = share
        self._sweep = sweep
        self._search = sweep.search
        self._generation = generation
        self._attempts = attempts
        self._watched = WatchedGeneration(sweep, generation, attempts)
        self._engine = engine
        # Results are final unless the leaders may get more attempts.
        self._final = not sweep.settings.evaluation.max_attempts
        self._claims: dict[int, ExitStack] = {}
        self._held_back: dict[int, Evaluation] = {}

    def run(self) -> None:
        """Train every candidate, or wait for the process that is training it.

        Raises:
            InputError: the search was trained in another precision so far.
            TaylorgloError: every training failed.
        """
        # Workers wait for each other all the time, and say nothing of it.
        announced = self._share is not None
        if self._pending():
            _check_precision(self._search, self._engine.plan.precision)
        try:
            self._evaluate(self._share or [])
            while True:
                self._evaluate(list(self._attempts))
                self._tell_recorded()
                pending = self._pending()
                if not pending:
                    return
                if not announced:
                    say(
                        f"generation {self._generation}: waiting for {len(pending)} candidates "
                        "that another run is training"
                    )
                announced = True
                time.sleep(_POLL_SECONDS)
        finally:
            for claim in self._claims.values():
                claim.close()

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

    def _evaluate(self, trials: Sequence[int]) -> None:
        """Train those of the candidates that no other process claims, and keep their results."""
        if is_watched():
            self._watched.begin(self._candidates())
        claimed = self._claimed(trials)
        group = self._search.group(self._generation)
        for trial, evaluation in evaluate(claimed, group, self._engine, self._watched):
            result = evaluation.model_copy(update={"run": self._sweep.run_id})
            self._watched.note(trial, result)
            if self._says_nothing(result) and not self.trained:
                # Whether the candidate or the machine is to blame is not known yet.
                self._held_back[trial] = result
                continue
            self._keep(trial, result)
            self._keep_held_back()
        self._settle_failures()

    def _says_nothing(self, result: Evaluation) -> bool:
        """Return whether a result may be the fault of something else than the candidate.

        A function of a user diverges if its score is not finite, which may be a mistake in it.
        """
        if self._sweep.settings.training.function:
            return result.status != "ok"
        return result.status == "failed"

    def _claimed(self, trials: Sequence[int]) -> Iterator[Assignment]:
        """Claim the candidates that have to be trained, one by one as the engine has room."""
        for trial in trials:
            with ExitStack() as claim:
                candidate = claim.enter_context(self._search.claimed(trial))
                if candidate and self._is_pending(candidate):
                    self._claims[trial] = claim.pop_all()
                    if candidate.held_back:
                        # By a process that is gone.
                        self._search.hold_back(trial, False)
                    yield Assignment(trial, candidate.theta, self._attempts[trial])

    def _keep(self, trial: int, result: Evaluation) -> None:
        """Give a result to the study, and the claim on its candidate back."""
        self.trained.add(trial)
        if self._final:
            self._search.tell(trial, result)
        else:
            self._search.note(trial, result)
        self._claims.pop(trial).close()

    def _keep_held_back(self) -> None:
        for trial in list(self._held_back):
            self._keep(trial, self._held_back.pop(trial))

    def _settle_failures(self) -> None:
        """Blame candidates for their failed trainings, unless the machine may be the reason.

        A candidate is to blame only if another candidate of the generation trained successfully. If
        every re-trained leader fails, the machine is to blame: the leaders trained successfully
        before. As long as another process may still train a candidate, nothing is decided.

        Raises:
            TaylorgloError: every training failed.
        """
        if not self._held_back:
            return
        failed = self._held_back.keys()
        candidates = self._search.candidates(self._generation)
        results = {c.trial: c.result for c in candidates if c.result is not None}
        trained = {trial for trial, result in results.items() if not self._says_nothing(result)}
        if trained and not failed <= trained:
            self._keep_held_back()
            return
        if any(not c.held_back for c in self._pending() if c.trial not in failed):
            for trial in failed:
                self._search.hold_back(trial)
            return
        reason = next(iter(self._held_back.values())).reason
        raise TaylorgloError(
            f"generation {self._generation}: every training failed, the first with: {reason}; none "
            "of them counts, so put that right and run it again"
        )

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
