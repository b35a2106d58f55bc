"""Tunes the learning rate of every baseline on the validation split."""

from kfp.dsl import Artifact, Dataset, Input, Output

from taylorglo.components import component


@component
def evaluate_baselines(sweep: Input[Artifact], search_data: Input[Dataset], tuning: Output[Artifact]) -> None:
    """Write the trainings of all baselines with all learning rates (tuning)."""
    from taylorglo import environment
    from taylorglo.comparison import tune_baselines

    with environment.task():
        context = environment.Sweep.read(sweep.path)
        with environment.engine_of(search_data.path, context) as engine:
            trainings = tune_baselines(engine, context.memo)
            environment.say(f"baselines tuned: {len(trainings)} trainings in full ({engine.plan})")
        environment.write_json(tuning.path, [training.as_dict() for training in trainings])
