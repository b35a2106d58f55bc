"""What the tasks of a run are called: as the pipeline's specification names them for people."""

import re
from collections.abc import Mapping
from typing import Any

from taylorglo_pipelines.kubeflow.nodes import Path, Place

_ITERATION = re.compile(r"iteration-iterations\((\d+)\b.*")
# Names that kfp makes for loops and conditions which have none of their own.
_UNNAMED = re.compile(r"(for-loop|condition|condition-branches)-\d+")


class Names:
    """The display names of a pipeline's tasks.

    Args:
        specification: the compiled pipeline, or None if it cannot be had: then tasks are called by
            their keys.
    """

    def __init__(self, specification: Mapping[str, Any] | None) -> None:
        content = specification or {}
        # With settings for Kubernetes, the pipeline is one part of the specification.
        content = content.get("pipeline_spec") or content.get("pipelineSpec") or content
        self._components: Mapping[str, Any] = content.get("components") or {}
        self._root: Mapping[str, Any] = content.get("root") or {}

    def of(self, path: Path) -> str:
        """Return the display name of a task, with those of the nested pipelines around it.

        An empty path is that of the whole run.
        """
        component = self._root
        parts: list[str] = []
        for key in path:
            if match := _ITERATION.fullmatch(key):
                # Takes the place of the loop's name.
                parts[-1:] = [f"iteration {int(match[1]) + 1}"]
            elif not key.startswith("iteration"):
                task = ((component.get("dag") or {}).get("tasks") or {}).get(key) or {}
                parts.append((task.get("taskInfo") or {}).get("name") or key)
                reference = (task.get("componentRef") or {}).get("name", "")
                component = self._components.get(reference) or {}
        if not parts:
            return "the run"
        *around, name = parts
        around = [_lowered(part) for part in around if not _UNNAMED.fullmatch(part)]
        return f"{name}: {', '.join(around)}" if around else name

    def subject(self, place: Place) -> str:
        """Return how a sentence calls the one whose pod a node is."""
        name = self.of(place.path)
        if not place.path:
            return name
        return f"the driver of task {name}" if place.is_driver else f"task {name}"


def _lowered(name: str) -> str:
    """Return a name as it stands within a sentence; an abbreviation such as GPU stays."""
    return name[:1].lower() + name[1:] if name[1:2].islower() else name
