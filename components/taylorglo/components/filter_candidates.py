"""Rejects, before any training, the candidates that cannot learn."""

from kfp.dsl import Artifact, Input, Metrics, Output

from taylorglo.components import component


@component
def filter_candidates(
    sweep: Input[Artifact],
    generation: int,
    candidates: Input[Artifact],
    screened: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Write the candidates with their verdicts, and those drawn in place of the rejected (screened)."""
    from taylorglo import environment

    with environment.task():
        context = environment.Sweep.read(sweep.path)
        proposed = environment.read_json(candidates.path)
        judged = context.search.screen(context.generation(generation), context.num_classes)
        environment.write_json(screened.path, [candidate.as_dict() for candidate in judged])
        metrics.log_metric("proposed", len(proposed))
        metrics.log_metric("drawn", len(judged))
        metrics.log_metric("rejected", sum(candidate.rejected for candidate in judged))
