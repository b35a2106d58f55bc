"""Trains a shard of a generation's candidates, and tells the study each result at once."""

from kfp.dsl import Artifact, Dataset, Input, Output

from taylorglo.components import component


@component
def evaluate_candidates(
    sweep: Input[Artifact],
    search_data: Input[Dataset],
    generation: int,
    screened: Input[Artifact],
    shard: int,
    shards: int,
    retries: int,
    results: Output[Artifact],
) -> None:
    """Evaluate the accepted candidates of a shard, and write them with their results."""
    from taylorglo.tasks import evaluate

    evaluate.run(
        sweep_path=sweep.path,
        search_data_path=search_data.path,
        generation=generation,
        screened_path=screened.path,
        shard=shard,
        shards=shards,
        retries=retries,
        results_path=results.path,
    )
