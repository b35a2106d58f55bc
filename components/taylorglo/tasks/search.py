"""The task of a worker, of which several share the search through the study.

Each worker goes through all generations of the run. Whoever comes first draws a generation and
filters it. Each worker trains its share of the candidates, then those that nobody else trains, and
waits for the end of the generation. A worker that is killed leaves nothing behind but candidates
that others train; a worker that comes late, or comes back, joins in.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from taylorglo.results import Candidate
from taylorglo.tasks.console import task
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.evaluate import Shard, accepted, last_result, train_leaders
from taylorglo.tasks.progress import report_generation
from taylorglo.training.engine import Engine


@task
def run(sweep_path: str, worker: int) -> dict[str, float]:
    """Search until all generations of this run are complete, together with the other workers.

    Args:
        sweep_path: the context of the sweep.
        worker: number of this worker, from 0.

    Returns:
        The number of candidates that this worker trained, and the best fitness of the search.
    """
    sweep = Sweep.read(sweep_path)
    with sweep.search_data() as search_data:
        trained = search(sweep, search_data, worker)
    best = max((c.fitness or 0.0 for c in sweep.search.best(1)), default=0.0)
    return {"trained": trained, "best_fitness": best}


def search(sweep: Sweep, search_data: str, worker: int = 0) -> int:
    """Go through all generations of this run.

    Args:
        sweep: the context of the sweep.
        search_data: path of the data without the test split.
        worker: number of this worker, from 0.

    Returns:
        The number of candidates whose results came from this worker.

    Raises:
        InputError: the search was trained in another precision so far, the filters reject too
            many candidates, or no candidate was trained to the end.
        TaylorgloError: every training of a generation failed.
    """
    trained = 0
    first = sweep.first
    if worker > 0:
        # What is known already, the first worker tells.
        first = max(first, sweep.search.complete_generations() + 1)
    with ExitStack() as stack:
        engine: Engine | None = None
        for number in range(first, sweep.last + 1):
            candidates = _screened(sweep, number)
            if all(candidate.finished for candidate in candidates):
                if worker == 0:
                    report_generation(sweep, number, candidates, new=False)
                continue
            # Nothing is read, and no device is taken, before there is something to train.
            engine = engine or stack.enter_context(Engine.open(sweep.settings, search_data))
            own = _evaluate(sweep, number, accepted(candidates), engine, worker)
            trained += len(own)
            candidates = sweep.search.candidates(number)
            if last_result(candidates) in own:
                report_generation(sweep, number, candidates, new=True)
    sweep.search.check_trained()
    return trained


def _screened(sweep: Sweep, number: int) -> list[Candidate]:
    """Return the candidates of a generation, which are drawn and filtered if they are not yet."""
    candidates = sweep.search.candidates(number)
    if sweep.search.is_screened(candidates):
        return candidates
    sweep.search.propose(number)
    return sweep.search.screen(number)


def _evaluate(
    sweep: Sweep, number: int, trials: Sequence[int], engine: Engine, worker: int
) -> set[int]:
    """Train candidates until the generation is complete; return those that were trained here."""
    settings = sweep.settings
    attempts = dict.fromkeys(trials, settings.evaluation.attempts)
    shard = Shard(sweep, number, attempts, engine, trials[worker :: sweep.shards])
    shard.run()
    if settings.evaluation.max_attempts:
        train_leaders(sweep, number, shard.trained, engine)
    return shard.trained
