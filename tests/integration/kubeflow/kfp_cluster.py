"""The part of the Kubernetes API that tells of a run: pods, their logs and events, Workflows."""

import base64
import gzip
import json
import re
from dataclasses import dataclass, field
from typing import Any

Thing = dict[str, Any]
_CORE = re.compile(
    r"/api/v1/namespaces/(?P<namespace>[\w-]+)/(?P<plural>pods|events)(/(?P<name>[\w.-]+))?(?P<log>/log)?"
)
_WORKFLOWS = re.compile(
    r"/apis/argoproj.io/v1alpha1/namespaces/(?P<namespace>[\w-]+)/workflows(/(?P<name>[\w-]+))?"
)
NO_RESOURCE = "404 page not found"


class KubernetesError(Exception):
    """An answer that is not 2xx; that about an unknown resource is no JSON."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Kubernetes:
    """What the cluster has of a run besides its pods.

    Attributes:
        forbidden: plurals of the resources that nobody may read.
        has_argo: whether there are Workflows in this cluster.
        workflow: the run's Workflow object, or None if it was deleted.
        events: of the pods.
    """

    forbidden: set[str] = field(default_factory=set)
    has_argo: bool = True
    workflow: Thing | None = field(default_factory=dict)
    events: list[Thing] = field(default_factory=list)

    def answer(self, server: Any, path: str, query: dict[str, str]) -> Any:
        """Return the answer to a request.

        Raises:
            KubernetesError: it is not 2xx.
        """
        if match := _WORKFLOWS.fullmatch(path):
            return self._workflows(match["name"])
        match = _CORE.fullmatch(path)
        if not match:
            raise KubernetesError(404, "no such resource")
        self._check("pods/log" if match["log"] else match["plural"])
        if match["plural"] == "events":
            _, _, name = query["fieldSelector"].partition("involvedObject.name=")
            found = [event for event in self.events if event["involvedObject"]["name"] == name]
            return {"kind": "EventList", "items": found}
        pods = [pod for pod in server.pods if pod["metadata"]["namespace"] == match["namespace"]]
        if match["name"]:
            named = [pod for pod in pods if pod["metadata"]["name"] == match["name"]]
            if not named:
                raise KubernetesError(404, f'pods "{match["name"]}" not found')
            return server.logs.get(match["name"], "") if match["log"] else named[0]
        return self._list(pods, query, server.page_size)

    def compress(self, nodes: Thing) -> None:
        """Keep Argo's nodes as it does if the object is larger than a mebibyte."""
        packed = base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()
        assert self.workflow is not None
        self.workflow.setdefault("status", {})["compressedNodes"] = packed

    def _workflows(self, name: str | None) -> Thing:
        if not self.has_argo:
            raise KubernetesError(404, NO_RESOURCE)
        self._check("workflows")
        if name is None:
            return {
                "kind": "WorkflowList",
                "items": [] if self.workflow is None else [self.workflow],
            }
        if self.workflow is None:
            raise KubernetesError(404, f'workflows.argoproj.io "{name}" not found')
        return self.workflow

    def _check(self, plural: str) -> None:
        if plural in self.forbidden:
            raise KubernetesError(403, f"{plural} is forbidden: you cannot do that")

    def _list(self, pods: list[Thing], query: dict[str, str], page_size: int) -> Thing:
        key, _, value = query["labelSelector"].partition("=")
        _, _, phase = query.get("fieldSelector", "").partition("status.phase=")
        found = [
            pod
            for pod in pods
            if pod["metadata"]["labels"].get(key) == value and phase in ("", pod["status"]["phase"])
        ]
        start = int(query.get("continue") or 0)
        end = start + min(page_size, int(query.get("limit") or page_size))
        metadata = {"continue": str(end)} if end < len(found) else {}
        return {"kind": "PodList", "metadata": metadata, "items": found[start:end]}
