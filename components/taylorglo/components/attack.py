"""Attacks networks of the champion and of each baseline with a suite of attacks."""

from kfp.dsl import Artifact, Dataset, Input, Output

from taylorglo.components import component


@component
def attack(
    full_data: Input[Dataset], comparison: Input[Artifact], robustness: Output[Artifact]
) -> None:
    """Write the accuracies under attack by loss, attack and epsilon (robustness)."""
    from taylorglo.tasks import attack

    attack.run(full_data.path, comparison.path, robustness.path)
