"""Requests of Kubernetes: image, resources, credentials and limits of the tasks, in one place."""

from collections.abc import Mapping
from typing import NamedTuple

from kfp import dsl, kubernetes

from taylorglo.variables import (
    IMAGE,
    KFP_PAGES,
    KFP_RUN,
    SERVICE_TIMEOUT,
    STORE_CREDENTIALS,
    STORE_PLACE,
    STORE_URI,
    STUDY_CREDENTIALS,
    STUDY_URL,
    TRACKING_CREDENTIALS,
    TRACKING_URI,
)
from taylorglo_pipelines.config import PipelineSettings

# Network policies admit pods with these labels to the services.
LABELS = {"app.kubernetes.io/part-of": "taylorglo"}

# Kubeflow labels each pod with the id of its run.
_RUN_LABEL = "metadata.labels['pipeline/runid']"

_WEEK = 7 * 86_400  # seconds
_FIRST_PAUSE = 30  # seconds before the first retry; each later pause is twice as long


class Service(NamedTuple):
    """What a task needs of a service: keys of the ConfigMap and of the Secret by variable.

    Attributes:
        config: keys of the ConfigMap.
        optional_config: keys that the ConfigMap may lack.
        secret: keys of the Secret.
        optional_secret: keys that the Secret may lack.
    """

    config: Mapping[str, str] = {}
    optional_config: Mapping[str, str] = {}
    secret: Mapping[str, str] = {}
    optional_secret: Mapping[str, str] = {}


# The keys have the usual names of the services' clients, as in version 0.1.0; the variables have
# names of our own (taylorglo.variables).
STUDY = Service(config={STUDY_URL: STUDY_URL}, secret=STUDY_CREDENTIALS)
# A workload identity may take the place of the keys.
STORE = Service(
    config={STORE_URI: STORE_URI}, optional_config=STORE_PLACE, optional_secret=STORE_CREDENTIALS
)
TRACKING = Service(
    config={TRACKING_URI: "MLFLOW_TRACKING_URI"}, optional_secret=TRACKING_CREDENTIALS
)


def _together(*services: Service) -> Service:
    return Service(
        *(
            {variable: key for part in parts for variable, key in part.items()}
            for parts in zip(*services, strict=True)
        )
    )


ALL_SERVICES = _together(STUDY, STORE, TRACKING)


def place(
    task: dsl.PipelineTask,
    name: str,
    settings: PipelineSettings,
    services: Service,
    *,
    cached: bool = False,
    retried: bool = True,
) -> dsl.PipelineTask:
    """Name a task, and give it its image, credentials, URIs, labels and limits.

    Args:
        task: a task that is one container.
        name: the name that people see.
        settings: the layout of the pipeline.
        services: the services that the task uses.
        cached: whether Kubeflow may reuse the result of an earlier task with the same inputs.
            Without a cache, for what depends on the study, or changes it.
        retried: whether Kubeflow tries the task again if its pod is lost.
    """
    _leave_unchecked(task)
    task.set_display_name(name).set_caching_options(cached)
    if settings.image:
        task.set_container_image(settings.image)
    if settings.retries and retried:
        task.set_retry(
            settings.retries,
            backoff_duration=f"{_FIRST_PAUSE}s",
            backoff_factor=2.0,
            backoff_max_duration=f"{retry_window(settings)}s",
        )
    _add_variables(task, settings, services)
    for key, value in LABELS.items():
        kubernetes.add_pod_label(task, key, value)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.empty_dir_mount(task, "tmp", "/tmp")
    if settings.timeout:
        kubernetes.set_timeout(task, settings.timeout)
    return task


def tell_origin(task: dsl.PipelineTask, settings: PipelineSettings) -> None:
    """Tell a placed task its image, and its run in Kubeflow, for the tags of its run in MLflow."""
    task.set_env_variable(IMAGE, task.container_spec.image)
    kubernetes.use_field_path_as_env(task, KFP_RUN, _RUN_LABEL)
    kubernetes.use_config_map_as_env(
        task, settings.config_map, {KFP_PAGES: KFP_PAGES}, optional=True
    )


def retry_window(settings: PipelineSettings) -> int:
    """Return the seconds that Argo gives all attempts of a task together.

    Argo opens a window with the first attempt. When the window closes, Argo kills the attempt that
    is running, so that it has to be long enough for all attempts and the pauses between them.
    """
    attempts = settings.retries + 1
    # The pauses double: together they are as long as one more pause, less the first one.
    pauses = _FIRST_PAUSE * ((1 << settings.retries) - 1)
    # As long again for each pod to be scheduled, and to pull its image, as the deadline begins
    # with the pod's start and the window with its creation.
    return pauses + (2 * attempts * settings.timeout or _WEEK)


def _add_variables(task: dsl.PipelineTask, settings: PipelineSettings, services: Service) -> None:
    """Give a task the credentials and the URIs of its services as environment variables."""
    secret = kubernetes.use_secret_as_env
    config_map = kubernetes.use_config_map_as_env
    for use, source, variables, optional in (
        (secret, settings.secret, services.secret, False),
        (secret, settings.secret, services.optional_secret, True),
        (config_map, settings.config_map, services.config, False),
        (config_map, settings.config_map, services.optional_config, True),
    ):
        if variables:
            use(task, source, {key: name for name, key in variables.items()}, optional=optional)
    if settings.service_timeout:
        task.set_env_variable(SERVICE_TIMEOUT, str(settings.service_timeout))


def _leave_unchecked(task: dsl.PipelineTask) -> None:
    """Let kfp's methods not check that a task is one container, as all of ours are.

    The check looks up the source of each function on the stack, for the case of an error. That took
    most of the time of a compilation.
    """
    task._ensure_container_spec_exists = lambda: None


def place_training(
    task: dsl.PipelineTask, name: str, settings: PipelineSettings
) -> dsl.PipelineTask:
    """Name and place a task that trains networks, with CPU, memory, accelerator and nodes too."""
    place(task, name, settings, ALL_SERVICES)
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
