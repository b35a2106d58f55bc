"""Trains a shard of a generation's candidates, and tells the study each result at once."""

from kfp.dsl import Artifact, Input

from taylorglo.components import component


@component
def evaluate_candidates(screened: Input[Artifact], shard: int) -> None:
    """Evaluate the accepted candidates of a shard."""
    from taylorglo.tasks import evaluate

    evaluate.run(screened.path, shard)
