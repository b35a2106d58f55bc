"""Trains a shard of a generation, each candidate shortly, and tells the study every result at once."""

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
    """Evaluate every ``shards``-th accepted candidate from number ``shard`` on; write them with their results.

    Kubeflow does not retry the tasks of a loop, so this one tries again by itself where a service fails.
    """
    from taylorglo import environment
    from taylorglo.stages import evaluate_shard

    with environment.task():
        context = environment.Sweep.read(sweep.path)
        accepted = [c["trial"] for c in environment.read_json(screened.path) if c["verdict"]["accepted"]]
        evaluated = environment.retried(
            retries,
            lambda: evaluate_shard(context, context.generation(generation), accepted[shard::shards], search_data.path),
        )
        environment.write_json(results.path, [candidate.as_dict() for candidate in evaluated])
