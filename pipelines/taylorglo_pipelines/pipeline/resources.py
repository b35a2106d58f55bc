"""What Kubernetes is asked for: image, resources, credentials and limits of the tasks, in one place."""

from kfp import dsl, kubernetes

from taylorglo.services.variables import STORE_URI, STUDY_URL, TRACKING_URI
from taylorglo_pipelines.config import PipelineSettings

# The keys of the Secret and of the ConfigMap; each is the environment variable that it becomes.
SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PGUSER", "PGPASSWORD")
OPTIONAL_SECRET_KEYS = ("AWS_SESSION_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
CONFIG_KEYS = (STUDY_URL, STORE_URI, TRACKING_URI)
OPTIONAL_CONFIG_KEYS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
LABELS = {
    "app.kubernetes.io/part-of": "taylorglo"
}  # what network policies let through to the services


def uncached(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """Name a task, and never cache it: it depends on the study, or changes it."""
    return task.set_display_name(name).set_caching_options(False)


def place(
    task: dsl.PipelineTask,
    name: str,
    settings: PipelineSettings,
    *,
    cached: bool = False,
    retried: bool = True,
) -> dsl.PipelineTask:
    """Name a task that is one container, and give it image, credentials, URIs, labels and limits."""
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
    for use, source, needed, optional in (
        (kubernetes.use_secret_as_env, settings.secret, SECRET_KEYS, OPTIONAL_SECRET_KEYS),
        (kubernetes.use_config_map_as_env, settings.config_map, CONFIG_KEYS, OPTIONAL_CONFIG_KEYS),
    ):
        use(task, source, {key: key for key in needed})
        use(task, source, {key: key for key in optional}, optional=True)
    for key, value in LABELS.items():
        kubernetes.add_pod_label(task, key, value)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.empty_dir_mount(task, "tmp", "/tmp")
    if settings.timeout:
        kubernetes.set_timeout(task, settings.timeout)
    return task


def place_training(
    task: dsl.PipelineTask, name: str, settings: PipelineSettings
) -> dsl.PipelineTask:
    """The same for a task that trains networks, with CPU, memory, accelerator and nodes."""
    place(task, name, settings)
    for amount, ask in (
        (settings.cpu, task.set_cpu_request),
        (settings.cpu_limit, task.set_cpu_limit),
        (settings.memory, task.set_memory_request),
        (settings.memory_limit, task.set_memory_limit),
    ):
        if amount:
            ask(amount)
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
