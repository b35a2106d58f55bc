"""The task that draws the candidates of a generation."""

from taylorglo.results import write_json
from taylorglo.tasks.console import task
from taylorglo.tasks.context import Sweep


@task
def run(sweep_path: str, generation: int, candidates_path: str) -> None:
    """Draw ``popsize`` candidates from CMA-ES's distribution and write them.

    Args:
        sweep_path: the context of the sweep.
        generation: number of the generation within this run, from 1.
        candidates_path: where to write the candidates.
    """
    sweep = Sweep.read(sweep_path)
    write_json(candidates_path, sweep.search.propose(sweep.generation(generation)))
