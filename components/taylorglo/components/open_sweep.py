"""Opens the study and the MLflow run, before anything is trained."""

from kfp.dsl import Artifact, Dataset, Input, Output

from taylorglo.components import component


@component
def open_sweep(
    settings: Input[Artifact],
    description: Input[Artifact],
    search_data: Input[Dataset],
    full_data: Input[Dataset],
    generations: int,
    shards: int,
    sweep: Output[Artifact],
) -> None:
    """Write the context that later tasks share (sweep): settings, study, MLflow run."""
    from taylorglo.tasks import open

    open.run(
        settings_path=settings.path,
        description_path=description.path,
        search_data_path=search_data.path,
        full_data_path=full_data.path,
        generations=generations,
        shards=shards,
        sweep_path=sweep.path,
    )
