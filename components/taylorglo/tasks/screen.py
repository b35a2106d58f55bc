"""The task that rejects candidates which cannot learn, before any training."""

from taylorglo.results import Candidate, read_json, write_json
from taylorglo.tasks.console import task
from taylorglo.tasks.context import Sweep


@task
def run(
    sweep_path: str, generation: int, candidates_path: str, screened_path: str
) -> dict[str, int]:
    """Filter the proposed candidates, and write them with those drawn in place of the rejected.

    Args:
        sweep_path: the context of the sweep.
        generation: number of the generation within this run, from 1.
        candidates_path: the proposed candidates.
        screened_path: where to write all candidates of the generation with their verdicts.

    Returns:
        How many candidates were proposed, drawn in all, and rejected.
    """
    sweep = Sweep.read(sweep_path)
    proposed = read_json(candidates_path, list[Candidate])
    screened = sweep.search.screen(sweep.generation(generation), sweep.num_classes)
    write_json(screened_path, screened)
    return {
        "proposed": len(proposed),
        "drawn": len(screened),
        "rejected": sum(candidate.rejected for candidate in screened),
    }
