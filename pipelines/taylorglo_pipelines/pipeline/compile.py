"""The pipeline as a file for Kubeflow Pipelines."""

import logging
import tempfile
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

import yaml
from kfp import compiler

from taylorglo.errors import InputError
from taylorglo.files import replacing
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.pipeline.size import LIMIT, Size, workflow_size
from taylorglo_pipelines.pipeline.sweep import sweep_pipeline

# A prediction may be too low by this part.
_MARGIN = 0.05
# The time to compile a pipeline grows with the square of its tasks. A search with more tasks than
# these cannot fit, and is refused before it is compiled.
_MOST_TASKS = 250


class Compiled(NamedTuple):
    """A compiled pipeline: the file's content, and the size of its Workflow in Argo."""

    content: bytes
    size: Size


def compile_sweep(config: Config, output: Path) -> Compiled:
    """Compile the sweep to a file, which appears whole or not at all.

    Args:
        config: the sweep.
        output: the file, ``.yaml``.

    Raises:
        InputError: the file cannot be written, or the pipeline is too large for Argo.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output}: a compiled pipeline should be a .yaml file")
    if _tasks_of_search(config) > _MOST_TASKS:
        raise InputError(f"{_described(config)} are more tasks than Argo can keep; {_cure(config)}")
    compiled = _compiled(config)
    if compiled.size.packed > LIMIT * (1 - _MARGIN):
        raise InputError(
            f"{_described(config)} would need about {compiled.size.packed / 1000:.0f} kB of Argo's "
            f"state, which holds {LIMIT / 1000:.0f} kB; {_cure(config)}"
        )
    try:
        with replacing(output) as file:
            file.write(compiled.content)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from None
    return compiled


def _compiled(config: Config) -> Compiled:
    """Return the compiled pipeline; the same configuration gives the same bytes.

    kfp begins the file with comments, in which it lists the keys of each parameter in an order that
    changes from process to process. They are left out.
    """
    logging.getLogger("kfp").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(sweep_pipeline(config), str(path))
        lines = path.read_text().splitlines(keepends=True)
    text = "".join(dropwhile(lambda line: line.startswith("#"), lines))
    pipeline, platform = yaml.load_all(text, yaml.CSafeLoader)
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return Compiled(text.encode(), workflow_size(pipeline, kubernetes))


def _tasks_of_search(config: Config) -> int:
    layout = config.pipeline
    if layout.layout == "workers":
        return layout.shards
    return layout.generations * (layout.shards + 2)


def _described(config: Config) -> str:
    layout = config.pipeline
    if layout.layout == "workers":
        return f"{layout.shards} workers"
    return f"{layout.generations} generations of {layout.shards} shards"


def _cure(config: Config) -> str:
    if config.pipeline.layout == "workers":
        return "lower pipeline.shards"
    return "set pipeline.layout to workers, whose tasks do not grow with the generations"
