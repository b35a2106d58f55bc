"""How large Argo's Workflow object of a pipeline gets, predicted from the compiled pipeline.

Argo keeps the state of all nodes of a run in the Workflow object. When the object is larger than
1 MiB, Argo compresses the nodes; when it is still larger, the run fails. KFP 2.17 makes six nodes
of a task: its driver, its executor's DAG and its executor, and for each of the three a node that
retries it. The patch of the pod's specification (command, inputs, component, environment) stands in
all six of them. Here nodes of this form are made and compressed as Argo compresses them. The tests
compare the result with sizes that were measured on a real Kubeflow.
"""

import base64
import gzip
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from uuid import UUID

LIMIT = 1_048_576  # bytes of a Workflow, in Argo and in Kubernetes

# Parts of a Workflow that do not depend on the pipeline: KFP's own templates, labels, and the like.
_FRAME = 36_000  # bytes
# The arguments of a task's two templates, beside the specification of the task.
_ARGUMENTS = 700  # bytes
# What KFP puts into each patch of a pod, whatever the task: certificates, metadata, more variables.
_REST = "a part of the patch that is the same for every task " * 33

_Object = Mapping[str, Any]


class Size(NamedTuple):
    """The size of a Workflow when all tasks are done, in bytes.

    Attributes:
        specification: the part that is never compressed.
        nodes: the state of the nodes.
        compressed: the same, compressed.
    """

    specification: int
    nodes: int
    compressed: int

    @property
    def plain(self) -> int:
        """The whole Workflow without compression."""
        return self.specification + self.nodes

    @property
    def packed(self) -> int:
        """The whole Workflow with its nodes compressed, as Argo keeps it if it is too large."""
        return self.specification + self.compressed


def workflow_size(pipeline: _Object, kubernetes: _Object) -> Size:
    """Predict the size of the Workflow of a pipeline.

    Args:
        pipeline: the pipeline's specification, as compiled.
        kubernetes: the settings for Kubernetes by the label of the executor.
    """
    nodes = dict(sorted(_Nodes(pipeline, kubernetes).all()))
    state = _json(nodes).encode()
    tasks = [task for component in _graphs(pipeline) for task in component["tasks"].values()]
    parts = [pipeline["components"], pipeline["deploymentSpec"], kubernetes, pipeline["root"]]
    return Size(
        specification=_FRAME
        + sum(len(_json(part)) for part in parts)
        + sum(len(_json(task)) + _ARGUMENTS for task in tasks),
        nodes=len(state),
        compressed=len(base64.b64encode(gzip.compress(state, mtime=0))),
    )


def _graphs(pipeline: _Object) -> Iterator[Any]:
    for component in (pipeline["root"], *pipeline["components"].values()):
        if "dag" in component:
            yield component["dag"]


class _Nodes:
    """The nodes that Argo makes of a pipeline, as (id, node)."""

    def __init__(self, pipeline: _Object, kubernetes: _Object) -> None:
        self._pipeline = pipeline
        self._kubernetes = kubernetes
        self._executors = pipeline["deploymentSpec"]["executors"]
        # Ids are hashes, which do not compress.
        self._random = random.Random(0)
        self._name = pipeline["pipelineInfo"]["name"]
        self._workflow = f"{self._name}-abcde"

    def all(self) -> Iterator[tuple[str, _Object]]:
        """Yield the nodes of the whole pipeline."""
        yield from self._twice(self._workflow, "DAG", "entrypoint", {}, {})
        yield from self._graph(f"{self._workflow}(0).root", self._pipeline["root"])

    def _graph(self, path: str, component: _Object) -> Iterator[tuple[str, _Object]]:
        inputs = {"component": _json(component), "parent-dag-id": "3", "iteration-index": "-1"}
        outputs = {"execution-id": "7", "iteration-count": "2", "condition": "true"}
        yield from self._twice(f"{path}-driver", "Pod", "system-dag-driver", inputs, outputs)
        yield from self._twice(path, "DAG", "root", {"parent-dag-id": "7"}, {})
        for name, task in component["dag"]["tasks"].items():
            of_task = self._pipeline["components"][task["componentRef"]["name"]]
            place = f"{path}(0).{name}"
            if "dag" not in of_task:
                yield from self._task(place, name, task, of_task)
            elif "parameterIterator" in task:
                yield from self._loop(place, task, of_task)
            else:
                yield from self._graph(place, of_task)

    def _loop(self, path: str, task: _Object, component: _Object) -> Iterator[tuple[str, _Object]]:
        yield from self._graph(path, {**component, "dag": {"tasks": {}}})
        for item in range(len(json.loads(task["parameterIterator"]["items"]["raw"]))):
            iteration = f"{path}(0).iteration-iterations({item}:{item})"
            yield from self._twice(iteration, "DAG", "iteration", {}, {})
            yield from self._graph(f"{iteration}(0).iteration-item", component)

    def _task(
        self, path: str, name: str, task: _Object, component: _Object
    ) -> Iterator[tuple[str, _Object]]:
        label = component["executorLabel"]
        container = self._executors[label]["container"]
        kubernetes = self._kubernetes.get(label, {})
        patch = self._patch(task, component, container, kubernetes)
        inputs = {
            "component": _json(component),
            "task": _json(task),
            "container": _json(container),
            "task-name": name,
            "parent-dag-id": "7",
            "iteration-index": "-1",
            "kubernetes-config": _json(kubernetes),
        }
        decided = {"pod-spec-patch": patch, "cached-decision": "false"}
        condition = {**decided, "condition": "true"}
        yield from self._twice(
            f"{path}-driver", "Pod", "system-container-driver", inputs, condition
        )
        # KFP has a template for each set of options that a pod's metadata and a retry need.
        executor = "metadata-0-1-retry-system-container-executor"
        yield from self._twice(path, "DAG", executor, decided, {})
        pod = "metadata-0-1-retry-system-container-impl"
        yield from self._twice(f"{path}(0).executor", "Pod", pod, decided, {})

    def _patch(
        self, task: _Object, component: _Object, container: _Object, kubernetes: _Object
    ) -> str:
        """Return the patch of a pod's specification that KFP's driver makes."""
        inputs = component.get("inputDefinitions", {})
        outputs = component.get("outputDefinitions", {})
        given = {
            name: value.get("runtimeValue", {}).get("constant", 1)
            for name, value in task.get("inputs", {}).get("parameters", {}).items()
        }
        executor_input = _json(
            {
                "inputs": {
                    "parameterValues": {
                        name: given.get(name) for name in inputs.get("parameters", {})
                    },
                    "artifacts": {
                        name: self._artifact(name) for name in inputs.get("artifacts", {})
                    },
                },
                "outputs": {
                    "artifacts": {
                        name: self._artifact(name) for name in outputs.get("artifacts", {})
                    },
                    "outputFile": "/tmp/kfp_outputs/output_metadata.json",
                },
            }
        )
        launcher = {
            "pipeline_name": self._name,
            "run_id": self._uuid(),
            "execution_id": "12",
            "executor_input": executor_input,
            "component_spec": _json(component),
            "pod_name": "$(KFP_POD_NAME)",
            "pod_uid": "$(KFP_POD_UID)",
            "ml_pipeline_server_address": "ml-pipeline.kubeflow.svc.cluster.local",
            "ml_pipeline_server_port": "8887",
            "mlmd_server_address": "metadata-grpc-service.kubeflow.svc.cluster.local",
            "mlmd_server_port": "8080",
            "publish_logs": "true",
        }
        options = [word for key, value in launcher.items() for word in (f"--{key}", value)]
        return _json(
            {
                "volumes": [
                    {"name": mount["volumeName"], "emptyDir": mount}
                    for mount in kubernetes.get("emptyDirMounts", [])
                ],
                "containers": [
                    {
                        "name": "main",
                        "image": container["image"],
                        "command": ["/kfp-launcher/launch", *options, "--", *container["command"]],
                        "args": container.get("args", []),
                        "env": [*container.get("env", []), *_variables(kubernetes)],
                        "resources": container.get("resources", {}),
                        "securityContext": kubernetes.get("securityContext", {}),
                    }
                ],
                "activeDeadlineSeconds": 86_400,
                "rest": _REST,
            }
        )

    def _artifact(self, name: str) -> _Object:
        """Return an artifact of an executor's input."""
        folder = f"minio://mlpipeline/v2/artifacts/{self._name}/{self._uuid()}"
        artifact = {
            "name": name,
            "type": {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"},
            "uri": f"{folder}/{name}/{self._uuid()}/{name}",
            "metadata": {"display_name": name},
            "artifactId": str(self._random.randrange(9999)),
        }
        return {"artifacts": [artifact]}

    def _twice(
        self, path: str, kind: str, template: str, inputs: _Object, outputs: _Object
    ) -> Iterator[tuple[str, _Object]]:
        """Yield a node and the one that retries it."""
        yield self._node(path, "Retry", template, inputs, outputs)
        yield self._node(f"{path}(0)", kind, template, inputs, outputs)

    def _node(
        self, path: str, kind: str, template: str, inputs: _Object, outputs: _Object
    ) -> tuple[str, _Object]:
        key = f"{self._workflow}-{self._random.getrandbits(32)}"
        log = f"private-artifacts/kubeflow/{self._workflow}/2026/11/26/{key}/main.log"
        return key, {
            "id": key,
            "name": path,
            "displayName": path.rsplit(".", 1)[-1],
            "type": kind,
            "templateName": template,
            "templateScope": f"local/{self._workflow}",
            "phase": "Succeeded",
            "boundaryID": self._id(),
            "startedAt": "2026-11-26T15:00:00Z",
            "finishedAt": "2026-11-26T15:00:30Z",
            "progress": "1/1",
            "resourcesDuration": {"cpu": 1, "memory": 20},
            "nodeFlag": {"retried": True},
            "inputs": {"parameters": [{"name": k, "value": v} for k, v in inputs.items()]},
            "outputs": {
                "parameters": [
                    {"name": k, "value": v, "valueFrom": {"path": f"/tmp/outputs/{k}"}}
                    for k, v in outputs.items()
                ],
                "exitCode": "0",
                "artifacts": [{"name": "main-logs", "s3": {"key": log}}],
            },
            "children": [self._id()],
            "outboundNodes": [self._id()],
        }

    def _id(self) -> str:
        return f"{self._workflow}-{self._random.getrandbits(32)}"

    def _uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128)))


def _variables(kubernetes: _Object) -> Iterator[_Object]:
    """Yield the environment variables that a pod gets from Secrets and ConfigMaps."""
    for kind, reference, name in (
        ("secretAsEnv", "secretKeyRef", "secretName"),
        ("configMapAsEnv", "configMapKeyRef", "configMapName"),
    ):
        for source in kubernetes.get(kind, []):
            for variable in source["keyToEnv"]:
                key = variable.get("secretKey") or variable.get("configMapKey")
                place = {
                    "name": source[name],
                    "key": key,
                    "optional": source.get("optional", False),
                }
                yield {"name": variable["envVar"], "valueFrom": {reference: place}}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
