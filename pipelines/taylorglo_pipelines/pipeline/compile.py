"""The pipeline as a file for Kubeflow Pipelines."""

import logging
import os
import tempfile
from pathlib import Path

from taylorglo.errors import InputError
from taylorglo_pipelines.config import Config

_ARGO_LIMIT = (
    700_000  # bytes; past about this, Argo's workflow no longer fits into one Kubernetes object
)
# Argo keeps the state of every task in that object too: 475 iterations of a loop were too many
# (kubeflow/pipelines issue 12131), whatever the size of the compiled file.
_ARGO_TASKS = 400
_FAR_TOO_MANY = (
    5 * _ARGO_TASKS
)  # refused before they are compiled, which takes a time that grows with their square


def warnings(config: Config) -> list[str]:
    """What is legal in a configuration, but may not work on Kubeflow Pipelines; a line each."""
    return [_advice(config)] if _tasks(config) > _ARGO_TASKS else []


def _tasks(config: Config) -> int:
    return config.pipeline.generations * (config.pipeline.shards + 2)


def _advice(config: Config) -> str:
    layout = config.pipeline
    whole, fitting = (
        max(config.search.generations, layout.generations),
        max(1, _ARGO_TASKS // (layout.shards + 2)),
    )
    return (
        f"{layout.generations} generations of {layout.shards} shards are {_tasks(config)} tasks, and Argo fails at "
        f"about {_ARGO_TASKS}: chain runs with search.generations={whole} and pipeline.generations={fitting}; each run "
        "of the pipeline then goes on where the last one stopped"
    )


def compile_sweep(config: Config, output: Path) -> int:
    """Compile the sweep to ``output``, which appears only when it is whole; returns its size in bytes.

    Raises:
        InputError: the file cannot be written, or the pipeline is too large for Argo.
    """
    from kfp import compiler

    from taylorglo_pipelines.pipeline.sweep import sweep_pipeline

    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output}: a compiled pipeline should be a .yaml file")
    if _tasks(config) > _FAR_TOO_MANY:
        raise InputError(_advice(config))
    logging.getLogger("kfp").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(sweep_pipeline(config), str(draft))
        content = draft.read_bytes()
    if len(content) > _ARGO_LIMIT:
        raise InputError(
            f"the pipeline is {len(content) / 1000:.0f} kB, and Argo takes about {_ARGO_LIMIT / 1000:.0f}; "
            f"lower pipeline.generations ({config.pipeline.generations}), and chain runs with search.generations"
        )
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{output}: cannot be written: {error.strerror}") from None
    return len(content)
