"""Rejects, before any training, the candidates that cannot learn."""

from kfp.dsl import Artifact, Input, Metrics, Output

from taylorglo.components import component


@component
def filter_candidates(
    candidates: Input[Artifact], screened: Output[Artifact], metrics: Output[Metrics]
) -> None:
    """Write the candidates with their verdicts, and those drawn in place of rejected ones."""
    from taylorglo.tasks import screen

    counts = screen.run(candidates.path, screened.path)
    for name, count in counts.items():
        metrics.log_metric(name, count)
