"""A compiled pipeline, run task by task as plain Jobs: for a cluster without Argo Workflows and
KFP.

Each Job has the image, command, arguments, environment, volumes, labels and limits that the
compiled pipeline says, and the security context that KFP gives to every pod; the executor input is
made as KFP's driver makes it. Artifacts pass through a volume, which is mounted where KFP's
launcher would have put them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from cluster import Cluster, Object

ROOT = "/pipeline"
CLAIM = "pipeline"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
SHOW = 'for each; do echo "OUTPUT $each $(cat "$0/$each")"; done'
NUMBERS = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float}


@dataclass
class Jobs:
    """Runs the pipeline of a compiled file in one namespace, under one service account."""

    cluster: Cluster
    namespace: str
    account: str
    spec: Object
    platform: Object
    logs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    _count: int = 0

    @classmethod
    def read(cls, cluster: Cluster, namespace: str, account: str, path: Path) -> "Jobs":
        """The pipeline of a file that ``taylorglo compile`` wrote."""
        spec, *platform = yaml.safe_load_all(path.read_text())
        executors = (
            platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
            if platform
            else {}
        )
        return cls(cluster, namespace, account, spec, executors)

    def run(self, parameters: Mapping[str, Any] | None = None) -> None:
        """The whole pipeline, to its end; fails with the log of the first task that fails."""
        self.cluster.apply(
            [
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {"name": CLAIM, "namespace": self.namespace},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "1Gi"}},
                    },
                }
            ]
        )
        self._dag(self.spec["root"], dict(parameters or {}), {}, "")

    def overhead(self) -> str:
        """Seconds from the start of a task's Job to its end, by component; what does not train is
        overhead."""
        return "\n".join(
            f"{label:<22} n = {len(own)}, {fmean(own):.1f} s, {min(own):.0f} to {max(own):.0f}"
            for label, own in self.seconds.items()
        )

    def _dag(
        self, component: Object, parameters: dict[str, Any], artifacts: dict[str, Any], prefix: str
    ) -> Object:
        """The tasks of a DAG, each after those it depends on; returns the DAG's outputs by name."""
        for name, each in component.get("inputDefinitions", {}).get("parameters", {}).items():
            if name not in parameters and "defaultValue" in each:
                parameters[name] = each["defaultValue"]
        waiting = dict(component["dag"]["tasks"])
        outputs: dict[str, Object] = {}
        while waiting:
            name = next(
                name
                for name, task in waiting.items()
                if not set(task.get("dependentTasks", [])) & set(waiting)
            )
            task = waiting.pop(name)
            given = self._inputs(task.get("inputs", {}), parameters, artifacts, outputs)
            outputs[name] = self._task(task, *given, f"{prefix}{name}")
        produced = component["dag"].get("outputs", {})
        found: Object = {}
        for name, output in produced.get("artifacts", {}).items():
            chosen = [
                outputs[s["producerSubtask"]][s["outputArtifactKey"]]
                for s in output["artifactSelectors"]
            ]
            found[name] = chosen[0] if len(chosen) == 1 else chosen
        for name, output in produced.get("parameters", {}).items():
            selector = output["valueFromParameter"]
            found[name] = outputs[selector["producerSubtask"]][selector["outputParameterKey"]]
        return found

    def _inputs(
        self, inputs: Object, parameters: Object, artifacts: Object, outputs: Object
    ) -> tuple[Object, Object]:
        values: Object = {}
        for name, source in inputs.get("parameters", {}).items():
            if "runtimeValue" in source:
                values[name] = source["runtimeValue"]["constant"]
            elif "componentInputParameter" in source:
                if source["componentInputParameter"] in parameters:
                    values[name] = parameters[source["componentInputParameter"]]
            else:
                produced = source["taskOutputParameter"]
                values[name] = outputs[produced["producerTask"]][produced["outputParameterKey"]]
        things: Object = {}
        for name, source in inputs.get("artifacts", {}).items():
            if "componentInputArtifact" in source:
                if source["componentInputArtifact"] in artifacts:
                    things[name] = artifacts[source["componentInputArtifact"]]
            else:
                produced = source["taskOutputArtifact"]
                things[name] = outputs[produced["producerTask"]][produced["outputArtifactKey"]]
        return values, things

    def _task(self, task: Object, parameters: Object, artifacts: Object, path: str) -> Object:
        if "triggerPolicy" in task:
            raise ValueError(f"{path}: has a condition, which is KFP's to follow")
        component = self.spec["components"][task["componentRef"]["name"]]
        run = self._dag if "dag" in component else self._container
        iterator = task.get("parameterIterator")
        if iterator is None:
            separator = "/" if "dag" in component else ""
            return run(component, parameters, artifacts, path + separator)
        items = iterator["items"]
        values = json.loads(items["raw"]) if "raw" in items else parameters[items["inputParameter"]]
        each = [
            run(
                component,
                {**parameters, iterator["itemInput"]: value},
                dict(artifacts),
                f"{path}/{number}/",
            )
            for number, value in enumerate(values)
        ]
        return {name: [outputs[name] for outputs in each] for name in (each[0] if each else {})}

    def _container(
        self, component: Object, parameters: Object, artifacts: Object, path: str
    ) -> Object:
        """One Job; returns the outputs of its component: values of parameters, and artifacts."""
        self._count += 1
        folder = f"{ROOT}/{self._count:02}-{path.strip('/').rpartition('/')[2]}"
        declared = component.get("inputDefinitions", {}).get("parameters", {})
        values = {
            name: parameters.get(name, each.get("defaultValue"))
            for name, each in declared.items()
            if name in parameters or "defaultValue" in each
        }
        for name, value in values.items():
            kind = declared[name]["parameterType"]
            values[name] = NUMBERS[kind](value) if kind in NUMBERS else value
        produced = component.get("outputDefinitions", {})
        outputs = {
            name: {
                "name": name,
                "type": each["artifactType"],
                "uri": f"{folder}/{name}",
                "metadata": {},
            }
            for name, each in produced.get("artifacts", {}).items()
        }
        executor_input = {
            "inputs": {
                "parameterValues": values,
                "artifacts": {
                    name: {"artifacts": thing if isinstance(thing, list) else [thing]}
                    for name, thing in artifacts.items()
                },
            },
            "outputs": {
                "parameters": {
                    name: {"outputFile": f"{folder}/{name}"}
                    for name in produced.get("parameters", {})
                },
                "artifacts": {name: {"artifacts": [thing]} for name, thing in outputs.items()},
                "outputFile": f"{folder}/executor_output.json",
            },
        }
        label = component["executorLabel"]
        name = re.sub("[^a-z0-9]+", "-", f"sweep-{self._count:02}-{label.removeprefix('exec-')}")
        wanted = list(produced.get("parameters", {}))
        self.cluster.apply([self._job(name, label, executor_input, folder, wanted)])
        log = self.cluster.finished(self.namespace, name, seconds=600)
        self.logs[path.strip("/")] = log
        status = self.cluster.get("-n", self.namespace, "job", name)["status"]
        started, ended = (
            datetime.fromisoformat(status[key]) for key in ("startTime", "completionTime")
        )
        self.seconds.setdefault(label.removeprefix("exec-"), []).append(
            (ended - started).total_seconds()
        )
        told = dict(re.findall(r"^OUTPUT (\S+) (.*)$", log, re.MULTILINE))
        for key, each in produced.get("parameters", {}).items():
            kind = each["parameterType"]
            outputs[key] = told[key] if kind == "STRING" else json.loads(told[key])
        return outputs

    def _job(
        self, name: str, label: str, executor_input: Object, folder: str, wanted: list[str]
    ) -> Object:
        container = self.spec["deploymentSpec"]["executors"][label]["container"]
        platform = self.platform.get(label, {})
        args = [json.dumps(executor_input) if arg == "{{$}}" else arg for arg in container["args"]]
        volumes, mounts = [], []
        for each in platform.get("emptyDirMounts", []):
            kind = {key: each[key] for key in ("medium", "sizeLimit") if key in each}
            volumes.append({"name": each["volumeName"], "emptyDir": kind})
            mounts.append({"name": each["volumeName"], "mountPath": each["mountPath"]})
        volumes.append({"name": "pipeline", "persistentVolumeClaim": {"claimName": CLAIM}})
        mounts.append({"name": "pipeline", "mountPath": ROOT})
        pod_labels = platform.get("podMetadata", {}).get("labels", {})
        spec: Object = {
            "restartPolicy": "Never",
            "serviceAccountName": self.account,
            "enableServiceLinks": False,
            "securityContext": {"fsGroup": 10001, "fsGroupChangePolicy": "OnRootMismatch"},
            "initContainers": [
                {
                    # KFP's launcher makes the folder, in an emptyDir of its own.
                    **self._settled(container, platform),
                    "name": "folder",
                    "command": ["mkdir", "-p", folder],
                    "volumeMounts": mounts,
                }
            ],
            "containers": [
                {
                    **self._settled(container, platform),
                    "name": "main",
                    "command": container["command"],
                    "args": args,
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
            "nodeSelector": platform.get("nodeSelector", {}).get("labels", {}),
            "tolerations": platform.get("tolerations", []),
        }
        if wanted:
            # Output parameters, which KFP's launcher reads from their files after the task.
            spec["initContainers"].append(spec["containers"][0])
            spec["containers"] = [
                {
                    **self._settled(container, platform),
                    "name": "outputs",
                    "command": [
                        "sh",
                        "-ec",
                        'for each; do echo "OUTPUT $each $(cat "$0/$each")"; done',
                        folder,
                        *wanted,
                    ],
                    "volumeMounts": mounts,
                }
            ]
        if "activeDeadlineSeconds" in platform:
            spec["activeDeadlineSeconds"] = int(platform["activeDeadlineSeconds"])
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "backoffLimit": 0,
                "template": {"metadata": {"labels": pod_labels}, "spec": spec},
            },
        }

    def _settled(self, container: Object, platform: Object) -> Object:
        """What all containers of a task's pod have in common: image, environment, resources,
        security context."""
        environment = [
            *({"name": each["name"], "value": each["value"]} for each in container.get("env", [])),
            *_references(
                platform.get("secretAsEnv", []), "secretKeyRef", "secretName", "secretKey"
            ),
            *_references(
                platform.get("configMapAsEnv", []),
                "configMapKeyRef",
                "configMapName",
                "configMapKey",
            ),
        ]
        return {
            "image": container["image"],
            "imagePullPolicy": "IfNotPresent",
            "env": environment,
            "resources": _resources(container.get("resources", {})),
            "securityContext": {**RESTRICTED, **platform.get("securityContext", {})},
        }


def _references(sources: list[Object], kind: str, name: str, key: str) -> list[Object]:
    return [
        {
            "name": pair["envVar"],
            "valueFrom": {
                kind: {
                    "name": each[name],
                    "key": pair[key],
                    "optional": each.get("optional", False),
                }
            },
        }
        for each in sources
        for pair in each["keyToEnv"]
    ]


def _resources(resources: Object) -> Object:
    """The requests and limits that KFP's driver would set."""
    found: Object = {"requests": {}, "limits": {}}
    for source, kind, resource in (
        ("resourceCpuRequest", "requests", "cpu"),
        ("resourceMemoryRequest", "requests", "memory"),
        ("resourceCpuLimit", "limits", "cpu"),
        ("resourceMemoryLimit", "limits", "memory"),
    ):
        if source in resources:
            found[kind][resource] = resources[source]
    if "accelerator" in resources:
        found["limits"][resources["accelerator"]["resourceType"]] = resources["accelerator"][
            "resourceCount"
        ]
    return found
