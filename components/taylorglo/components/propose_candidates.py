"""Draws the candidates of a generation."""

from kfp.dsl import Artifact, Input, Output

from taylorglo.components import component


@component
def propose_candidates(
    previous: Input[Artifact], generation: int, candidates: Output[Artifact]
) -> None:
    """Write the candidates, which follow from the results of the generation before (previous)."""
    from taylorglo.tasks import propose

    propose.run(previous.path, generation, candidates.path)
