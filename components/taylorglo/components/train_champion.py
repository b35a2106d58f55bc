"""Trains the champion and the tuned baselines in full, over seeds, and tests them."""

from typing import List  # noqa: UP035

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from taylorglo.components import component


@component
def train_champion(
    sweep: Input[Artifact],
    search_data: Input[Dataset],
    full_data: Input[Dataset],
    tuning: Input[Artifact],
    results: Input[List[Artifact]],  # noqa: UP006
    comparison: Output[Artifact],
    loss: Output[Artifact],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Write all trainings (comparison), the champion's loss as JSON (loss) and one network trained with it (model)."""
    from taylorglo import environment
    from taylorglo.stages import crown

    with environment.task():
        context = environment.Sweep.read(sweep.path)
        outcome = crown(context, search_data.path, full_data.path, environment.read_json(tuning.path))
        environment.write_json(comparison.path, outcome.as_dict())
        outcome.loss.save(loss.path)
        outcome.save_network(model.path)
        model.metadata["accuracy"] = outcome.mean_accuracy
        comparison.metadata["follows"] = [shard.uri for shard in results]
        metrics.log_metric("champion_test_accuracy", outcome.mean_accuracy)
