"""Requests of Kubernetes: image, resources, credentials and limits of the tasks, in one place."""

from collections.abc import Sequence

from kfp import dsl, kubernetes

from taylorglo.variables import STORE_URI, STUDY_URL, TRACKING_URI
from taylorglo_pipelines.config import PipelineSettings

# Keys of the Secret and of the ConfigMap. Each has the name of the environment variable that it
# becomes.
SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PGUSER", "PGPASSWORD")
OPTIONAL_SECRET_KEYS = ("AWS_SESSION_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
CONFIG_KEYS = (STUDY_URL, STORE_URI, TRACKING_URI)
OPTIONAL_CONFIG_KEYS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
# Network policies admit pods with these labels to the services.
LABELS = {"app.kubernetes.io/part-of": "taylorglo"}


def uncached(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """Name a task, and never reuse its result: it depends on the study, or changes it."""
    return task.set_display_name(name).set_caching_options(False)


def place(
    task: dsl.PipelineTask,
    name: str,
    settings: PipelineSettings,
    *,
    cached: bool = False,
    retried: bool = True,
) -> dsl.PipelineTask:
    """Name a task, and give it its image, credentials, URIs, labels and limits.

    Args:
        task: a task that is one container.
        name: the name that people see.
        settings: the layout of the pipeline.
        cached: whether Kubeflow may reuse the result of an earlier task with the same inputs.
        retried: whether Kubeflow tries the task again if it fails.
    """
    task.set_display_name(name).set_caching_options(cached)
    if settings.image:
        task.set_container_image(settings.image)
    if settings.retries and retried:
        task.set_retry(
            settings.retries,
            backoff_duration="30s",
            backoff_factor=2.0,
            backoff_max_duration="300s",
        )
    _add_variables(task, settings)
    for key, value in LABELS.items():
        kubernetes.add_pod_label(task, key, value)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.empty_dir_mount(task, "tmp", "/tmp")
    if settings.timeout:
        kubernetes.set_timeout(task, settings.timeout)
    return task


def _add_variables(task: dsl.PipelineTask, settings: PipelineSettings) -> None:
    """Give a task the credentials and the URIs of the services as environment variables."""
    kubernetes.use_secret_as_env(task, settings.secret, _same(SECRET_KEYS))
    kubernetes.use_secret_as_env(task, settings.secret, _same(OPTIONAL_SECRET_KEYS), optional=True)
    kubernetes.use_config_map_as_env(task, settings.config_map, _same(CONFIG_KEYS))
    kubernetes.use_config_map_as_env(
        task, settings.config_map, _same(OPTIONAL_CONFIG_KEYS), optional=True
    )


def _same(keys: Sequence[str]) -> dict[str, str]:
    """Return the variable that each key becomes, which has the same name."""
    return {key: key for key in keys}


def place_training(
    task: dsl.PipelineTask, name: str, settings: PipelineSettings
) -> dsl.PipelineTask:
    """Name and place a task that trains networks, with CPU, memory, accelerator and nodes too."""
    place(task, name, settings)
    for amount, request in (
        (settings.cpu, task.set_cpu_request),
        (settings.cpu_limit, task.set_cpu_limit),
        (settings.memory, task.set_memory_request),
        (settings.memory_limit, task.set_memory_limit),
    ):
        if amount:
            request(amount)
    if settings.accelerator:
        task.set_accelerator_type(settings.accelerator).set_accelerator_limit(1)
    if settings.shared_memory:
        kubernetes.empty_dir_mount(
            task, "shm", "/dev/shm", medium="Memory", size_limit=settings.shared_memory
        )
    for key, value in settings.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for taint in settings.tolerations:
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value, taint.effect)
    return task
