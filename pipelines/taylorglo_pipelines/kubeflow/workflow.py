"""The Workflow object of a run, in which Argo keeps what it did and why."""

import base64
import gzip
import json
from collections.abc import Iterator

from taylorglo_pipelines.kubeflow.nodes import Attempt, place_of
from taylorglo_pipelines.kubeflow.pods import Object, time_of

_STATES = {
    "Pending": "PENDING",
    "Running": "RUNNING",
    "Succeeded": "SUCCEEDED",
    "Failed": "FAILED",
    "Error": "FAILED",
    "Skipped": "SKIPPED",
}


class Workflow:
    """Argo's state of a run.

    Attributes:
        message: why the run ended, or empty.
        is_backing_off: whether Argo waits before another attempt.
    """

    def __init__(self, content: Object) -> None:
        status = content.get("status") or {}
        nodes = status.get("nodes") or _unpacked(status.get("compressedNodes"))
        self.message = str(status.get("message") or "")
        self._nodes = {node["name"]: node for node in nodes.values() if node.get("name")}
        self.is_backing_off = any(
            node.get("phase") == "Running" and str(node.get("message")).startswith("Backoff for")
            for node in self._nodes.values()
        )

    def attempts(self) -> list[Attempt]:
        """Return the attempts at tasks, and the drivers."""
        attempts = []
        for name, node in self._nodes.items():
            place = place_of(name)
            state = _STATES.get(node.get("phase") or "")
            if node.get("type") == "Pod" and place and state:
                start, end = time_of(node.get("startedAt")), time_of(node.get("finishedAt"))
                message = str(node.get("message") or "")
                attempts.append(Attempt(name, place, state, start, end, message))
        return attempts

    def messages(self, name: str) -> Iterator[str]:
        """Yield Argo's messages about a node and about those around it, from the inside out."""
        while name:
            if message := (self._nodes.get(name) or {}).get("message"):
                yield str(message)
            unnumbered = name.rpartition("(")[0] if name.endswith(")") else ""
            name = unnumbered or name.rpartition(".")[0]


def _unpacked(nodes: str | None) -> Object:
    """Return the nodes that Argo compressed because the object was larger than a mebibyte."""
    if not nodes:
        return {}
    unpacked: Object = json.loads(gzip.decompress(base64.b64decode(nodes)))
    return unpacked
