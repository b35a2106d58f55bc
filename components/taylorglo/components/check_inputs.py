"""Checks every setting before anything is computed, and which version of the data there is."""

from typing import Any

from kfp.dsl import Artifact, Output

from taylorglo.components import component


@component
def check_inputs(
    name: str,
    seed: int,
    data: dict[str, Any],
    model: dict[str, Any],
    training: dict[str, Any],
    augmentation: dict[str, Any],
    evaluation: dict[str, Any],
    search: dict[str, Any],
    baselines: dict[str, Any],
    champion: dict[str, Any],
    attack: dict[str, Any],
    settings: Output[Artifact],
) -> str:
    """Write the checked settings; return the version of the data, which the cache depends on."""
    sections = {key: value for key, value in locals().items() if key != "settings"}

    from taylorglo.tasks import check

    return check.run(sections, settings.path)
