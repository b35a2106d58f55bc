"""Opens the study and the MLflow run, before anything is trained."""

from kfp.dsl import Artifact, Dataset, Input, Output

from taylorglo.components import component


@component
def open_sweep(
    settings: Input[Artifact],
    description: Input[Artifact],
    full_data: Input[Dataset],
    generations: int,
    sweep: Output[Artifact],
) -> None:
    """Write what later tasks share (sweep): the settings, the study, the MLflow run, the generation to begin with."""
    from taylorglo import environment
    from taylorglo.stages import open_sweep as open_for_tasks

    with environment.task():
        open_for_tasks(
            environment.read_json(settings.path),
            environment.read_json(description.path),
            full_data.path,
            generations,
            sweep.path,
        )
