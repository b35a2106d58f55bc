"""Draws the candidates of a generation."""

from typing import List  # noqa: UP035

from kfp.dsl import Artifact, Input, Output

from taylorglo.components import component


@component
def propose_candidates(
    sweep: Input[Artifact],
    generation: int,
    candidates: Output[Artifact],
    previous: Input[List[Artifact]] = None,  # noqa: UP006
) -> None:
    """Write the candidates, which follow from the results of the generation before (previous)."""
    from taylorglo.tasks import propose

    propose.run(sweep.path, generation, candidates.path)
    if previous:
        candidates.metadata["follows"] = [results.uri for results in previous]
