"""Asks the study for the next generation."""

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
    """Write popsize candidates (candidates); they follow from the results of the former generation (previous)."""
    from taylorglo import environment

    with environment.task():
        search = environment.Sweep.read(sweep.path).search
        environment.write_json(candidates.path, [candidate.as_dict() for candidate in search.propose(generation)])
        if previous:
            candidates.metadata["follows"] = [results.uri for results in previous]
