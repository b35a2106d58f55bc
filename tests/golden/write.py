"""Write the golden files of this folder anew, one for each NAME.config.yaml: ``make golden``.

A golden file is the compiled pipeline of its configuration in a form to be read and reviewed: what
Kubeflow Pipelines will be given, and whether a change to it was meant. These are the differences
from the compiled file:

- The version of kfp is left out.
- References are short: ``inputs.sweep`` is an input of the pipeline around the task, and
  ``open-sweep.sweep`` an output of another task. A constant stands for itself. An input or output
  is its type, with what else is declared about it; a type in front of a value has a default.
- Equal parts are written once, as YAML's anchors (``&id001``) and aliases (``*id001``).
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from taylorglo_pipelines import config
from taylorglo_pipelines.pipeline.compile import compile_sweep

FOLDER = Path(__file__).parent
CONFIGS = sorted(FOLDER.glob("*.config.yaml"))

_ALIAS_LENGTH = 200  # characters of JSON; shorter parts are repeated


def golden_of(path: Path) -> Path:
    """Return the path of the golden file of a configuration."""
    return path.with_name(path.name.replace(".config.", "."))


def golden(path: Path) -> str:
    """Return the golden file of a configuration, as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pipeline.yaml"
        compile_sweep(config.load(path), output)
        pipeline, platforms = yaml.load_all(output.read_text(), yaml.CSafeLoader)
    del pipeline["sdkVersion"]
    parts: dict[str, Any] = {}
    documents = [_shared(_short(document), parts) for document in (pipeline, platforms)]
    return yaml.dump_all(documents, Dumper=_Dumper, default_flow_style=None, width=100)


class _Dumper(yaml.SafeDumper):
    """A dumper that makes aliases of long parts alone."""

    def ignore_aliases(self, data: Any) -> bool:
        return not isinstance(data, dict | list) or len(json.dumps(data)) < _ALIAS_LENGTH


def _short(part: Any) -> Any:
    """Return a part of the compiled pipeline with short references."""
    match part:
        case {"artifactType": {"schemaTitle": kind}, **rest}:
            return ", ".join([kind, *(str(name) for name, value in rest.items() if value)])
        case {"parameterType": kind, "defaultValue": value, "isOptional": True}:
            return {kind: value}
        case {"parameterType": kind, **rest} if not rest:
            return kind
        case {"taskOutputArtifact": {"producerTask": task, "outputArtifactKey": key}}:
            return f"{task}.{key}"
        case {"taskOutputParameter": {"producerTask": task, "outputParameterKey": key}}:
            return f"{task}.{key}"
        case {"componentInputArtifact": name} | {"componentInputParameter": name}:
            return f"inputs.{name}"
        case {"runtimeValue": {"constant": value}}:
            return value
        case dict():
            return {key: _short(value) for key, value in part.items()}
        case list():
            return [_short(value) for value in part]
    return part


def _shared(part: Any, parts: dict[str, Any]) -> Any:
    """Return a part in which equal mappings and lists are the same object.

    Args:
        part: a part of the compiled pipeline.
        parts: the mappings and lists so far, by their JSON.
    """
    if isinstance(part, dict):
        part = {key: _shared(value, parts) for key, value in part.items()}
    elif isinstance(part, list):
        part = [_shared(value, parts) for value in part]
    else:
        return part
    return parts.setdefault(json.dumps(part, sort_keys=True), part)


if __name__ == "__main__":
    for path in CONFIGS:
        golden_of(path).write_text(golden(path))
        print(golden_of(path).name)
