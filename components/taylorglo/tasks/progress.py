"""Progress of the search: a line for each generation, and its candidates in MLflow.

Whoever watches the run sees each finished training, too.
"""

import time
from collections.abc import Mapping, Sequence
from statistics import median

from taylorglo.errors import ServiceError
from taylorglo.loss.dynamics import collapse_rate, learning_drive
from taylorglo.results import Candidate, Evaluation, FullTraining, GenerationSummary, Training
from taylorglo.retries import without_waiting
from taylorglo.scores import is_share, known, metric
from taylorglo.services.memo import FullTrainings, ShortTrainings
from taylorglo.stats import covered
from taylorglo.tasks.console import Progress, say, show
from taylorglo.tasks.context import Sweep

_PATIENCE = 30  # seconds


def report_generation(
    sweep: Sweep, generation: int, candidates: Sequence[Candidate], *, new: bool
) -> None:
    """Print the summary of a generation and log its candidates to MLflow.

    Called once, by the task that reports the generation's last result.

    Args:
        sweep: the context of the sweep.
        generation: number of the generation in the search, from 1.
        candidates: all candidates of the generation.
        new: whether anything was trained for it just now.
    """
    summary = GenerationSummary.of(candidates)
    results = [candidate.result for candidate in candidates if candidate.result is not None]
    failed = f"failed {summary.failed}  " if summary.failed else ""
    seconds = covered((result.started, result.ended) for result in results)
    width = len(str(sweep.generations))
    say(
        f"generation {generation:>{width}}/{sweep.generations}  "
        f"best {_shown(summary.best, sweep)}  median {_shown(summary.median, sweep)}  "
        f"rejected {summary.rejected} of {summary.drawn}  "
        f"diverged {summary.diverged}  {failed}"
        + (f"{seconds:.0f} s" if new else "known from before")
    )
    if summary.failed:
        reason = next(result.reason for result in results if result.status == "failed")
        say(f"the first training that failed: {reason}")
    if not sweep.run_id:
        # A search in a notebook has no MLflow.
        return
    try:
        with without_waiting():
            track_generations(sweep, generation, patience=_PATIENCE)
    except ServiceError as error:
        # The study has the results; the next task that logs to MLflow logs these too.
        say(f"{error}; the results are kept, and MLflow is told of them once it answers")


def _shown(fitness: float, sweep: Sweep) -> str:
    """Return a fitness of a sweep as a generation's line shows it."""
    if is_share(sweep.settings.evaluation.score):
        return f"{fitness:7.2%}"
    return f"{fitness:10.5g}"


class WatchedGeneration:
    """The short trainings of a generation, each of which is shown when it is finished.

    It stands in for the cache of short trainings.

    Args:
        sweep: the context of the sweep.
        generation: number of the generation in the search, from 1.
        attempts: number of attempts that each candidate should have, by trial.
    """

    def __init__(self, sweep: Sweep, generation: int, attempts: Mapping[int, int]) -> None:
        self._sweep = sweep
        self._generation = generation
        self._attempts = attempts
        self._cache: ShortTrainings = sweep.short_trainings
        self._results: dict[int, Evaluation] = {}
        self._open = 0
        self._known = 0

    def begin(self, candidates: Sequence[Candidate]) -> None:
        """Note which candidates have their results already, and show that."""
        done = {c.trial: c.result for c in candidates if c.finished and c.result is not None}
        self._known += sum(
            attempts
            for trial, attempts in self._attempts.items()
            if trial in done and trial not in self._results
        )
        self._results |= done
        self._show()

    def recall(self, key: str) -> Training | None:
        """Return the training that was recorded under a key, or None."""
        training = self._cache.recall(key)
        if training is not None:
            self._known += 1
            self._count()
        return training

    def record(self, key: str, training: Training) -> None:
        """Record a training."""
        self._cache.record(key, training)
        self._count()

    def note(self, trial: int, result: Evaluation) -> None:
        """Note the result of a candidate."""
        self._open = max(0, self._open - len(result.accuracies))
        self._results[trial] = result
        self._show()

    def _count(self) -> None:
        self._open += 1
        self._show()

    def _show(self) -> None:
        """Show how many trainings are finished, and the best and the median fitness so far."""
        # A candidate that diverges has fewer attempts than it should have, and is finished.
        finished = sum(n for trial, n in self._attempts.items() if trial in self._results)
        total = sum(self._attempts.values())
        fitnesses = known(result.fitness for result in self._results.values())
        first, count = self._sweep.first, self._sweep.last - self._sweep.first + 1
        show(
            Progress(
                f"generation {self._generation}/{self._sweep.generations}",
                done=min(total, finished + self._open),
                total=total,
                known=min(total, self._known),
                part="search",
                start=(self._generation - first) / count,
                span=1 / count,
                best=_shown(max(fitnesses), self._sweep).strip() if fitnesses else "",
                median=_shown(median(fitnesses), self._sweep).strip() if fitnesses else "",
            )
        )


class WatchedTrainings:
    """The trainings in full of a stage, each of which is shown when it is finished.

    It stands in for the memory of trainings in full.

    Args:
        trainings: the memory of trainings in full.
        stage: in words.
        part: the part of the sweep that the stage is.
        total: number of trainings of the stage.
    """

    def __init__(self, trainings: FullTrainings, stage: str, part: str, total: int) -> None:
        self._trainings = trainings
        self._progress = Progress(stage, total=total, part=part)
        self._known: set[str] = set()
        self._done: set[str] = set()

    def recall(self, key: str) -> FullTraining | None:
        """Return the training that was recorded under a key, or None."""
        training = self._trainings.recall(key)
        if training is not None and key not in self._done:
            self._known.add(key)
        self._show()
        return training

    def weights(self, key: str) -> bytes:
        """Return the weights that were recorded under a key."""
        return self._trainings.weights(key)

    def record(self, training: FullTraining, weights: bytes) -> None:
        """Record a training and the weights of its network."""
        self._trainings.record(training, weights)
        self._done.add(training.key)
        self._show()

    def _show(self) -> None:
        done = min(self._progress.total, len(self._known | self._done))
        show(self._progress._replace(done=done, known=min(done, len(self._known))))


def track_generations(sweep: Sweep, last: int, *, patience: float = 0) -> None:
    """Log the candidates of this run that MLflow does not have yet, up to generation ``last``.

    Connecting to MLflow takes a task seconds, so short generations are logged together: not before
    the oldest result has waited for ``patience`` seconds.

    Raises:
        ServiceError: MLflow, the study or the store still fails after a few tries.
    """
    with sweep.search.exclusively():
        first = sweep.tracked() + 1
        candidates = [c for c in sweep.search.candidates() if first <= c.generation <= last]
        news = [c for c in candidates if c.result is not None and c.result.run == sweep.run_id]
        oldest = min((c.result.ended for c in news if c.result), default=None)
        if oldest is None:
            return
        # The clock may have been set back since then.
        if 0 <= time.time() - oldest < patience:
            return
        for generation in sorted({candidate.generation for candidate in news}):
            own = [c for c in news if c.generation == generation]
            sweep.tracker.log_candidates(
                generation,
                own,
                _dynamics(own, sweep.num_classes),
                metric(sweep.settings.evaluation.score),
            )
            summary = GenerationSummary.of([c for c in candidates if c.generation == generation])
            curves = {f"generation/{name}": [(generation, value)] for name, value in summary}
            ended = max(c.result.ended for c in own if c.result)
            sweep.tracker.log_curves(curves, ended)
        sweep.set_tracked(max(candidate.generation for candidate in news))


def _dynamics(candidates: Sequence[Candidate], num_classes: int) -> dict[int, dict[str, float]]:
    """Return learning drive A and collapse rate B of each candidate, by its trial."""
    return {
        candidate.trial: {
            "A": learning_drive(candidate.theta, num_classes),
            "B": collapse_rate(candidate.theta, num_classes),
        }
        for candidate in candidates
    }
