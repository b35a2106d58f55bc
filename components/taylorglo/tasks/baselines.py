"""The task that tunes the learning rate of every baseline on the validation split."""

from taylorglo.evaluation.comparison import baselines, tune_baselines
from taylorglo.tasks.console import say, task
from taylorglo.tasks.context import Sweep
from taylorglo.tasks.progress import WatchedTrainings
from taylorglo.training.engine import Engine


@task
def run(sweep_path: str, search_data_path: str, tuning_path: str) -> None:
    """Train every baseline with every learning rate of the grid, and write the trainings.

    Args:
        sweep_path: the context of the sweep.
        search_data_path: the data without the test split.
        tuning_path: where to write the trainings.
    """
    sweep = Sweep.read(sweep_path)
    settings = sweep.settings
    rates = settings.baselines.learning_rates
    number = sum(len(baselines(settings, rate)) for rate in rates) * settings.baselines.attempts
    memo = WatchedTrainings(sweep.full_trainings, "tuning the baselines", "baselines", number)
    with Engine.open(sweep.settings, search_data_path) as engine:
        trainings = tune_baselines(engine, memo)
        say(f"baselines tuned: {len(trainings)} trainings in full ({engine.plan})")
    sweep.write(tuning_path, trainings)
