"""Attacks trained networks of the champion and of each baseline with FGSM and PGD."""

from kfp.dsl import Artifact, Dataset, Input, Output

from taylorglo.components import component


@component
def attack(
    sweep: Input[Artifact], full_data: Input[Dataset], comparison: Input[Artifact], robustness: Output[Artifact]
) -> None:
    """Write the accuracies under attack, by loss, attack and epsilon (robustness)."""
    from taylorglo import environment
    from taylorglo.stages import attack_networks

    with environment.task():
        context = environment.Sweep.read(sweep.path)
        trainings = environment.read_json(comparison.path)["trainings"]
        environment.write_json(robustness.path, attack_networks(context, full_data.path, trainings))
