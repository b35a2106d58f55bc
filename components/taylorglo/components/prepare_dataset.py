"""The front door of a sweep: checks every parameter, prepares the data, opens the study and the MLflow run."""

from kfp.dsl import Artifact, Dataset, Output

from taylorglo.components import component


@component
def prepare_dataset(
    generations: int,
    name: str,
    seed: int,
    data_name: str,
    data_root: str,
    data_download: bool,
    data_sha256: str,
    data_validation_fraction: float,
    data_test_fraction: float,
    data_train_fraction: float,
    model_name: str,
    training_steps: int,
    training_batch_size: int,
    training_learning_rate: float,
    training_momentum: float,
    training_nesterov: bool,
    training_weight_decay: float,
    training_schedule: str,
    training_milestones: str,
    training_decay: float,
    training_device: str,
    training_threads: int,
    evaluation_steps: int,
    evaluation_attempts: int,
    evaluation_anneal: bool,
    evaluation_give_up_step: int,
    evaluation_give_up_gain: float,
    search_coordinates: str,
    search_order: int,
    search_popsize: int,
    search_sigma: float,
    search_mean: str,
    search_filters: str,
    search_on_reject: str,
    search_max_draws: int,
    baselines_learning_rates: str,
    baselines_attempts: int,
    baselines_label_smoothing: float,
    champion_finalists: int,
    champion_seeds: int,
    attack_epsilons: str,
    attack_pgd_steps: int,
    attack_pgd_restarts: int,
    attack_images: int,
    attack_seeds: int,
    sweep: Output[Artifact],
    search_data: Output[Dataset],
    full_data: Output[Dataset],
) -> None:
    """Write the data with (full_data) and without (search_data) the test split, and what later tasks share (sweep)."""
    parameters = {k: v for k, v in locals().items() if k not in ("generations", "sweep", "search_data", "full_data")}

    from taylorglo import environment
    from taylorglo.stages import prepare

    with environment.task():
        prepare(parameters, generations, sweep.path, search_data.path, full_data.path)
