"""Reads and splits the data.

The result depends on the parameters alone, so Kubeflow may take it from its cache.
"""

from typing import Any

from kfp.dsl import Artifact, Dataset, Output

from taylorglo.components import component


@component
def prepare_dataset(
    version: str,
    seed: int,
    data: dict[str, Any],
    model: dict[str, Any],
    description: Output[Artifact],
    search_data: Output[Dataset],
    full_data: Output[Dataset],
) -> None:
    """Write the data with (full_data) and without (search_data) the test split."""
    from taylorglo.tasks import prepare

    prepare.run(
        data=data,
        model=model,
        seed=seed,
        description_path=description.path,
        search_data_path=search_data.path,
        full_data_path=full_data.path,
    )
