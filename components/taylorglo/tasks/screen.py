"""The task that rejects candidates which cannot learn, before any training."""

from taylorglo.results import Candidate, read_json
from taylorglo.tasks.console import task
from taylorglo.tasks.context import Passed


@task
def run(candidates_path: str, screened_path: str) -> dict[str, int]:
    """Filter the proposed candidates, and write them with those drawn in place of the rejected.

    Args:
        candidates_path: the proposed candidates.
        screened_path: where to write all candidates of the generation with their verdicts.

    Returns:
        How many candidates were proposed, drawn in all, and rejected.
    """
    sweep, proposed = read_json(candidates_path, Passed[list[Candidate]]).both
    screened = sweep.search.screen(proposed[0].generation)
    sweep.write(screened_path, screened)
    return {
        "proposed": len(proposed),
        "drawn": len(screened),
        "rejected": sum(candidate.rejected for candidate in screened),
    }
