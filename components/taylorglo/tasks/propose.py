"""The task that draws the candidates of a generation."""

from taylorglo.tasks.console import task
from taylorglo.tasks.context import Sweep


@task
def run(previous_path: str, generation: int, candidates_path: str) -> None:
    """Draw ``popsize`` candidates from CMA-ES's distribution and write them.

    Args:
        previous_path: what the generation before passed on, or the task that opened the sweep.
        generation: number of the generation within this run, from 1.
        candidates_path: where to write the candidates.
    """
    sweep = Sweep.read(previous_path)
    sweep.write(candidates_path, sweep.search.propose(sweep.generation(generation)))
