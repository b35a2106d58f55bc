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
    """Write popsize candidates (candidates); they follow from the results of the former generation (previous).

    ``generation`` counts from 1 in every pipeline run; in the search, a run goes on where the last one stopped.
    """
    from taylorglo import environment

    with environment.task():
        context = environment.Sweep.read(sweep.path)
        proposed = context.search.propose(context.generation(generation))
        environment.write_json(candidates.path, [candidate.as_dict() for candidate in proposed])
        if previous:
            candidates.metadata["follows"] = [results.uri for results in previous]
