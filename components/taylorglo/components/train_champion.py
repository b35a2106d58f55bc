"""Trains the champion and the tuned baselines in full, over seeds, and tests them."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from taylorglo.components import component


@component
def train_champion(
    search_data: Input[Dataset],
    full_data: Input[Dataset],
    tuning: Input[Artifact],
    comparison: Output[Artifact],
    loss: Output[Artifact],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Write all trainings (comparison), the champion's loss as JSON and one network (model)."""
    from taylorglo.tasks import champion

    scores = champion.run(
        search_data_path=search_data.path,
        full_data_path=full_data.path,
        tuning_path=tuning.path,
        comparison_path=comparison.path,
        loss_path=loss.path,
        model_path=model.path,
    )
    for name, value in scores.items():
        metrics.log_metric(f"champion_test_{name}", value)
        model.metadata[name] = value
