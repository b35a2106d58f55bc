"""The front door of a sweep: checks every parameter, and which version of the data there is."""

from kfp.dsl import Artifact, Output

from taylorglo.components import component


@component
def check_inputs(
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
    training_precision: str,
    training_engine: str,
    training_workers: int,
    training_threads: int,
    training_compile: bool,
    augmentation_crop_padding: int,
    augmentation_flip: bool,
    augmentation_cutout: int,
    augmentation_cutmix: float,
    evaluation_steps: int,
    evaluation_attempts: int,
    evaluation_anneal: bool,
    evaluation_give_up_step: int,
    evaluation_give_up_gain: float,
    evaluation_max_attempts: int,
    evaluation_adversarial_weight: float,
    evaluation_adversarial_epsilon: float,
    search_coordinates: str,
    search_order: int,
    search_popsize: int,
    search_sigma: float,
    search_mean: str,
    search_filters: str,
    search_on_reject: str,
    search_max_draws: int,
    search_generations: int,
    search_renew: bool,
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
    settings: Output[Artifact],
) -> str:
    """Write the parameters (settings); returns the version of the data, so that no cache gives an older one."""
    parameters = {k: v for k, v in locals().items() if k != "settings"}

    from taylorglo import environment
    from taylorglo.stages import check

    with environment.task():
        return check(parameters, settings.path)
