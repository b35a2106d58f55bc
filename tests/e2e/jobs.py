"""A compiled pipeline, run as plain Jobs: for a cluster without Argo Workflows and KFP.

Each Job has the image, command, arguments, environment, volumes, labels and limits that the
compiled pipeline names, and the security context that KFP gives to every pod. Artifacts pass
through a volume, which is mounted at the place where KFP's launcher would have put them.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster import Cluster
from compiled import CompiledPipeline, Object, Task

ROOT = "/pipeline"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
TASK_SECONDS = 600
RESOURCES = {
    "resourceCpuRequest": ("requests", "cpu"),
    "resourceMemoryRequest": ("requests", "memory"),
    "resourceCpuLimit": ("limits", "cpu"),
    "resourceMemoryLimit": ("limits", "memory"),
}


class Jobs(CompiledPipeline):
    """Runs the tasks of a compiled pipeline in one namespace, under one service account.

    The Jobs and the volume of a pipeline are named after its file.

    Attributes:
        logs: what the containers of each task printed, by the task's path.
        seconds: from start to end of each Job, by component.
    """

    def __init__(self, cluster: Cluster, namespace: str, account: str, path: Path) -> None:
        super().__init__(path, ROOT)
        self._cluster = cluster
        self._namespace = namespace
        self._account = account
        self._name = path.stem
        self.logs: dict[str, str] = {}
        self.seconds: dict[str, list[float]] = {}

    def run(self, parameters: Mapping[str, Any] | None = None) -> None:
        """Run the whole pipeline to its end; fail with the log of the first task that fails."""
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
        self._cluster.apply([claim])
        super().run(parameters)

    def overhead(self) -> str:
        """Return the seconds from start to end of the Jobs, by component.

        The seconds of a component that does not train are overhead.
        """
        return "\n".join(
            f"{component:<22} n = {len(seconds)}, {fmean(seconds):.1f} s, "
            f"{min(seconds):.0f} to {max(seconds):.0f}"
            for component, seconds in self.seconds.items()
        )

    def execute(self, task: Task) -> Object:
        job = self._job(task)
        name = job["metadata"]["name"]
        self._cluster.apply([job])
        log = self._cluster.finished(self._namespace, name, seconds=TASK_SECONDS)
        self.logs[task.path] = log
        status = self._cluster.get("-n", self._namespace, "job", name)["status"]
        started = datetime.fromisoformat(status["startTime"])
        ended = datetime.fromisoformat(status["completionTime"])
        component = task.label.removeprefix("exec-")
        self.seconds.setdefault(component, []).append((ended - started).total_seconds())
        if not task.parameters:
            return {}
        (output,) = re.findall(r"^OUTPUT (.*)$", log, re.MULTILINE)
        values = json.loads(output)["parameterValues"]
        return {name: values[name] for name in task.parameters}

    def _job(self, task: Task) -> Object:
        platform = self.platform.get(task.label, {})
        volumes, mounts = _volumes(platform, self._name)
        container = {**self._settled(task), "volumeMounts": mounts}
        main = {
            **container,
            "name": "main",
            "command": self.container_of(task)["command"],
            "args": self.arguments_of(task),
        }
        # KFP's launcher makes the folder, in an emptyDir of the pod.
        folder = {**container, "name": "folder", "command": ["mkdir", "-p", task.folder]}
        # KFP's launcher reads the output parameters after the task.
        output = f'echo "OUTPUT $(cat {task.folder}/executor_output.json)"'
        outputs = {**container, "name": "outputs", "command": ["sh", "-ec", output]}
        in_order = [folder, main, outputs] if task.parameters else [folder, main]
        spec: Object = {
            "restartPolicy": "Never",
            "serviceAccountName": self._account,
            "enableServiceLinks": False,
            "securityContext": {"fsGroup": 10001, "fsGroupChangePolicy": "OnRootMismatch"},
            "initContainers": in_order[:-1],
            "containers": in_order[-1:],
            "volumes": volumes,
            "nodeSelector": platform.get("nodeSelector", {}).get("labels", {}),
            "tolerations": platform.get("tolerations", []),
        }
        if "activeDeadlineSeconds" in platform:
            spec["activeDeadlineSeconds"] = int(platform["activeDeadlineSeconds"])
        labels = platform.get("podMetadata", {}).get("labels", {})
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"{self._name}-{task.name}", "namespace": self._namespace},
            "spec": {
                "backoffLimit": 0,
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        }

    def _settled(self, task: Task) -> Object:
        """Return the part that all containers of a task's pod have in common.

        These are image, environment, resources and security context.
        """
        container = self.container_of(task)
        platform = self.platform.get(task.label, {})
        secrets = platform.get("secretAsEnv", [])
        config_maps = platform.get("configMapAsEnv", [])
        environment = [
            *({"name": v["name"], "value": v["value"]} for v in container.get("env", [])),
            *_references(secrets, "secretKeyRef", "secretName", "secretKey"),
            *_references(config_maps, "configMapKeyRef", "configMapName", "configMapKey"),
        ]
        return {
            "image": container["image"],
            "imagePullPolicy": "IfNotPresent",
            "env": environment,
            "resources": _resources(container.get("resources", {})),
            "securityContext": {**RESTRICTED, **platform.get("securityContext", {})},
        }


def _volumes(platform: Object, claim: str) -> tuple[list[Object], list[Object]]:
    """Return the volumes of a task's pod and their mounts; artifacts are in the claim's volume."""
    volumes: list[Object] = []
    mounts: list[Object] = []
    for mount in platform.get("emptyDirMounts", []):
        kind = {key: mount[key] for key in ("medium", "sizeLimit") if key in mount}
        volumes.append({"name": mount["volumeName"], "emptyDir": kind})
        mounts.append({"name": mount["volumeName"], "mountPath": mount["mountPath"]})
    volumes.append({"name": "pipeline", "persistentVolumeClaim": {"claimName": claim}})
    mounts.append({"name": "pipeline", "mountPath": ROOT})
    return volumes, mounts


def _references(sources: list[Object], kind: str, name: str, key: str) -> list[Object]:
    """Return environment variables whose values are in Secrets or ConfigMaps."""
    return [
        {
            "name": pair["envVar"],
            "valueFrom": {
                kind: {
                    "name": source[name],
                    "key": pair[key],
                    "optional": source.get("optional", False),
                }
            },
        }
        for source in sources
        for pair in source["keyToEnv"]
    ]


def _resources(described: Object) -> Object:
    """Return the requests and limits that KFP's driver would set."""
    resources: Object = {"requests": {}, "limits": {}}
    for source, (kind, resource) in RESOURCES.items():
        if source in described:
            resources[kind][resource] = described[source]
    if "accelerator" in described:
        accelerator = described["accelerator"]
        resources["limits"][accelerator["resourceType"]] = accelerator["resourceCount"]
    return resources
