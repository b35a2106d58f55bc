"""One copy of what is the same in a compiled pipeline, so that its size hardly grows with the generations.

kfp writes component and executor anew for every task. The format lets tasks share a component, and components an
executor, and so do both of its readers: kfp's local runner, and the backend, which visits each component once however
many tasks refer to it (backend/src/v2/compiler/visitor.go).
"""

from collections.abc import Iterable, Mapping
from typing import Any


def shared(pipeline: Any) -> Any:
    """The same compiled pipeline (a ``dsl.pipeline``), in which equal executors and equal components are one."""
    spec, platforms = pipeline.pipeline_spec, pipeline.platform_spec.platforms
    executors = spec.deployment_spec["executors"]
    configured = [platform.deployment_spec.executors for platform in platforms.values()]
    same = _same(
        (label, tuple(_bytes(of[label]) for of in (executors.fields, *configured) if label in of))
        for label in executors.fields
    )
    for component in spec.components.values():
        if component.executor_label:
            component.executor_label = same.get(component.executor_label, component.executor_label)
    for label in same:
        for of in (executors.fields, *configured):
            if label in of:
                del of[label]
    while same := _same((name, _bytes(component)) for name, component in spec.components.items()):
        for component in (spec.root, *spec.components.values()):
            for task in component.dag.tasks.values():
                task.component_ref.name = same.get(task.component_ref.name, task.component_ref.name)
        for name in same:
            del spec.components[name]
    return pipeline


def _same(items: Iterable[tuple[str, Any]]) -> Mapping[str, str]:
    """For every name whose content another one has too, the first of them (``x`` before ``x-2`` before ``x-10``)."""
    first: dict[Any, str] = {}
    same = {}
    for name, content in sorted(items, key=lambda item: (len(item[0]), item[0])):
        if first.setdefault(content, name) != name:
            same[name] = first[content]
    return same


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))
