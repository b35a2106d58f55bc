"""Searches through all generations, together with other workers."""

from kfp.dsl import Artifact, Input, Metrics, Output

from taylorglo.components import component


@component
def search_candidates(sweep: Input[Artifact], worker: int, metrics: Output[Metrics]) -> None:
    """Draw, filter and evaluate candidates until the last generation is complete."""
    from taylorglo.tasks import search

    counts = search.run(sweep.path, worker)
    for name, count in counts.items():
        metrics.log_metric(name, count)
