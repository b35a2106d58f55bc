"""One copy of what is the same in a compiled pipeline, so that its size hardly grows with the generations.

kfp writes component and executor anew for every task. The format lets tasks share a component, and components an
executor, and so do both of its readers: kfp's local runner, and the backend, which visits each component once however
many tasks refer to it (backend/src/v2/compiler/visitor.go). Loops are the exception: the backend makes templates for
every task that is one, and names them after its component (argocompiler/dag.go, iteratorTask), so no two may share it.
"""

from collections.abc import Iterable, Mapping
from typing import Any


def deduplicated(pipeline: Any) -> Any:
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
    _keep_loops_apart(spec)
    return pipeline


def _keep_loops_apart(spec: Any) -> None:
    taken: set[str] = set()
    for name, component in (("root", spec.root), *sorted(spec.components.items())):
        for task in component.dag.tasks.values():
            loop = task.component_ref.name
            if task.WhichOneof("iterator") and loop in taken:
                own = f"{loop}-of-{name.removeprefix('comp-')}"
                spec.components[own].CopyFrom(spec.components[loop])
                task.component_ref.name = own
            if task.WhichOneof("iterator"):
                taken.add(task.component_ref.name)


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
