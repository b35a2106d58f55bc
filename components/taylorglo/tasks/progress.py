"""Progress of the search: a line for each generation, and its candidates in MLflow."""

import time
from collections.abc import Sequence

from taylorglo.errors import ServiceError
from taylorglo.loss.dynamics import collapse_rate, learning_drive
from taylorglo.results import Candidate, GenerationSummary
from taylorglo.retries import without_waiting
from taylorglo.scores import is_share, metric
from taylorglo.stats import covered
from taylorglo.tasks.console import say
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
