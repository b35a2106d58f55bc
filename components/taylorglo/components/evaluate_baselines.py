"""Tunes the learning rate of every baseline on the validation split."""

from kfp.dsl import Artifact, Dataset, Input, Output

from taylorglo.components import component


@component
def evaluate_baselines(
    sweep: Input[Artifact], search_data: Input[Dataset], tuning: Output[Artifact]
) -> None:
    """Write the trainings of all baselines with all learning rates (tuning)."""
    from taylorglo.tasks import baselines

    baselines.run(sweep.path, search_data.path, tuning.path)
