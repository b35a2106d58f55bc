"""What Kubernetes is asked for: image and resources of the tasks, in one place."""

from kfp import dsl

from taylorglo_pipelines.config import PipelineSettings


def uncached(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """Name a task, and never cache it: each one depends on the study, or changes it."""
    return task.set_display_name(name).set_caching_options(False)


def place(task: dsl.PipelineTask, name: str, settings: PipelineSettings) -> dsl.PipelineTask:
    """The same for a task that is one container, with the image."""
    uncached(task, name)
    if settings.image:
        task.set_container_image(settings.image)
    return task


def place_training(task: dsl.PipelineTask, name: str, settings: PipelineSettings) -> dsl.PipelineTask:
    """The same for a task that trains networks, with the CPU, memory and accelerator asked for."""
    place(task, name, settings)
    if settings.cpu:
        task.set_cpu_request(settings.cpu)
    if settings.memory:
        task.set_memory_request(settings.memory)
    if settings.accelerator:
        task.set_accelerator_type(settings.accelerator).set_accelerator_limit(1)
    return task
