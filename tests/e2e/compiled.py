"""A compiled pipeline, walked task by task; a subclass decides how a task is run.

The executor input of a task is made as KFP's driver makes it. Artifacts are files in one folder per
task.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

NUMBERS = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float}


@dataclass(frozen=True)
class Task:
    """One task, as KFP's driver hands it to an executor.

    Attributes:
        name: unique in the pipeline run, with at most letters, digits and hyphens in it.
        path: its name in the pipeline, such as ``search-candidates-2``.
        label: the label of its executor in the compiled pipeline.
        folder: where its outputs go.
        executor_input: with parameters, artifacts, and the paths of the outputs.
        parameters: names of the output parameters.

    The executor writes the values of the output parameters to ``folder/executor_output.json``.
    """

    name: str
    path: str
    label: str
    folder: str
    executor_input: Object
    parameters: list[str]


class CompiledPipeline(ABC):
    """The pipeline of a file that ``taylorglo compile`` wrote.

    Attributes:
        spec: the pipeline, without what is particular to Kubernetes.
        platform: settings for Kubernetes by the label of the executor.
        root: the folder of the tasks' folders.
    """

    def __init__(self, path: Path, root: str) -> None:
        """Read the file; the outputs of the tasks go below the folder ``root``."""
        self.spec, *platform = yaml.load_all(path.read_text(), yaml.CSafeLoader)
        self.platform: Object = {}
        if platform:
            deployment = platform[0]["platforms"]["kubernetes"]["deploymentSpec"]
            self.platform = deployment["executors"]
        self.root = root
        self._count = 0

    @abstractmethod
    def execute(self, task: Task) -> Object:
        """Run a task; return the values of its output parameters."""

    def run(self, parameters: Mapping[str, Any] | None = None) -> None:
        """Run all tasks, each after its predecessors; the error of the first that fails ends it."""
        root = self.spec["root"]
        declared = root.get("inputDefinitions", {}).get("parameters", {})
        defaults = {
            name: value["defaultValue"]
            for name, value in declared.items()
            if "defaultValue" in value
        }
        given = {**defaults, **(parameters or {})}
        waiting = dict(root["dag"]["tasks"])
        outputs: dict[str, Object] = {}
        while waiting:
            name = next(
                name
                for name, task in waiting.items()
                if not set(task.get("dependentTasks", [])) & set(waiting)
            )
            task = waiting.pop(name)
            component = self.spec["components"][task["componentRef"]["name"]]
            inputs = _inputs(task.get("inputs", {}), given, outputs)
            outputs[name] = self._container(component, *inputs, name)

    def container_of(self, task: Task) -> Object:
        """Return the container of a task as the compiled pipeline describes it."""
        container: Object = self.spec["deploymentSpec"]["executors"][task.label]["container"]
        return container

    def arguments_of(self, task: Task) -> list[str]:
        """Return the arguments of a task's container, with the executor input in its place."""
        encoded = json.dumps(task.executor_input)
        return [encoded if word == "{{$}}" else word for word in self.container_of(task)["args"]]

    def _container(
        self, component: Object, parameters: Object, artifacts: Object, name: str
    ) -> Object:
        """Run one task; return the outputs of its component: parameters and artifacts."""
        self._count += 1
        label = component["executorLabel"]
        stem = label.removeprefix("exec-")
        folder = f"{self.root}/{self._count:02}-{stem}"
        produced = component.get("outputDefinitions", {})
        outputs: Object = {
            name: {
                "name": name,
                "type": declaration["artifactType"],
                "uri": f"{folder}/{name}",
                "metadata": {},
            }
            for name, declaration in produced.get("artifacts", {}).items()
        }
        declared = produced.get("parameters", {})
        executor_input = {
            "inputs": {
                "parameterValues": _values(component, parameters),
                "artifacts": {name: {"artifacts": [value]} for name, value in artifacts.items()},
            },
            "outputs": {
                "parameters": {name: {"outputFile": f"{folder}/{name}"} for name in declared},
                "artifacts": {name: {"artifacts": [value]} for name, value in outputs.items()},
                "outputFile": f"{folder}/executor_output.json",
            },
        }
        job = re.sub("[^a-z0-9]+", "-", f"{self._count:02}-{stem}")
        task = Task(job, name, label, folder, executor_input, list(declared))
        return {**outputs, **self.execute(task)}


def _inputs(inputs: Object, given: Object, outputs: Object) -> tuple[Object, Object]:
    """Return the input parameters and the input artifacts of a task."""
    values: Object = {}
    for name, source in inputs.get("parameters", {}).items():
        if "runtimeValue" in source:
            values[name] = source["runtimeValue"]["constant"]
        elif "componentInputParameter" in source:
            values[name] = given[source["componentInputParameter"]]
        else:
            produced = source["taskOutputParameter"]
            values[name] = outputs[produced["producerTask"]][produced["outputParameterKey"]]
    files: Object = {}
    for name, source in inputs.get("artifacts", {}).items():
        produced = source["taskOutputArtifact"]
        files[name] = outputs[produced["producerTask"]][produced["outputArtifactKey"]]
    return values, files


def _values(component: Object, parameters: Object) -> Object:
    """Return the input parameters of a component, of the declared types."""
    values: Object = {}
    declared = component.get("inputDefinitions", {}).get("parameters", {})
    for name, declaration in declared.items():
        if name not in parameters and "defaultValue" not in declaration:
            continue
        value = parameters.get(name, declaration.get("defaultValue"))
        kind = declaration["parameterType"]
        if kind in NUMBERS:
            value = NUMBERS[kind](value)
        elif kind == "STRUCT":
            # A protobuf Struct has no integers, so that a component is given 64.0 for 64.
            value = json.loads(json.dumps(value), parse_int=float)
        values[name] = value
    return values
