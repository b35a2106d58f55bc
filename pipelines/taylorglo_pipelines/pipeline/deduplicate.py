"""One copy of equal parts of a compiled pipeline, whose size then hardly grows with generations.

kfp writes a component and an executor for every task. The format lets tasks share a component, and
components an executor. Both readers of the format support this: kfp's local runner, and the
backend, which visits each component once (backend/src/v2/compiler/visitor.go). The exception are
loops, which need a component each (argocompiler/dag.go, iteratorTask); a sweep has none.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any


def deduplicated(pipeline: Any) -> Any:
    """Return a compiled pipeline after equal executors and equal components were made one.

    Args:
        pipeline: a ``dsl.pipeline``, which is changed.
    """
    spec = pipeline.pipeline_spec
    _merge_executors(spec, pipeline.platform_spec.platforms.values())
    _merge_components(spec)
    return pipeline


def _merge_executors(spec: Any, platforms: Iterable[Any]) -> None:
    """Keep one of the executors that are equal, with equal requests of each platform."""
    executors = spec.deployment_spec["executors"].fields
    tables = [executors, *(platform.deployment_spec.executors for platform in platforms)]
    contents = {
        label: tuple(_bytes(table[label]) for table in tables if label in table)
        for label in executors
    }
    substitutes = _substitutes(contents)
    for component in spec.components.values():
        label = component.executor_label
        if label:
            component.executor_label = substitutes.get(label, label)
    for label in substitutes:
        for table in tables:
            if label in table:
                del table[label]


def _merge_components(spec: Any) -> None:
    """Keep one of the components that are equal; some are equal only once others were merged."""
    while substitutes := _substitutes({n: _bytes(c) for n, c in spec.components.items()}):
        for component in (spec.root, *spec.components.values()):
            for task in component.dag.tasks.values():
                name = task.component_ref.name
                task.component_ref.name = substitutes.get(name, name)
        for name in substitutes:
            del spec.components[name]


def _substitutes(contents: Mapping[str, Hashable]) -> dict[str, str]:
    """Return the first name with the same content, for each name that is not the first itself.

    Args:
        contents: contents by name. ``x`` counts as earlier than ``x-2``, and that than ``x-10``.
    """
    first: dict[Hashable, str] = {}
    substitutes = {}
    for name in sorted(contents, key=lambda name: (len(name), name)):
        earliest = first.setdefault(contents[name], name)
        if earliest != name:
            substitutes[name] = earliest
    return substitutes


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))
