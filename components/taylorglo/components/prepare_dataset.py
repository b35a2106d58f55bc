"""Reads and splits the data. Its result depends on its parameters alone, so Kubeflow may take it from its cache."""

from kfp.dsl import Artifact, Dataset, Output

from taylorglo.components import component


@component
def prepare_dataset(
    version: str,
    seed: int,
    model_name: str,
    data_name: str,
    data_root: str,
    data_download: bool,
    data_sha256: str,
    data_validation_fraction: float,
    data_test_fraction: float,
    data_train_fraction: float,
    description: Output[Artifact],
    search_data: Output[Dataset],
    full_data: Output[Dataset],
) -> None:
    """Write the data with (full_data) and without (search_data) the test split, and what they are (description)."""
    parameters = {k.removeprefix("data_"): v for k, v in locals().items() if k.startswith("data_")}

    from taylorglo import environment
    from taylorglo.settings import DataSettings
    from taylorglo.stages import prepare

    with environment.task():
        settings = DataSettings.model_validate(parameters)
        prepare(settings, seed, model_name, description.path, search_data.path, full_data.path)
