"""The pipeline as a file for Kubeflow Pipelines."""

import logging
import os
import tempfile
from pathlib import Path

from taylorglo.errors import InputError
from taylorglo_pipelines.config import Config

_ARGO_LIMIT = 700_000  # bytes; past about this, Argo's workflow no longer fits into one Kubernetes object


def compile_sweep(config: Config, output: Path) -> int:
    """Compile the sweep to ``output``, which appears only when it is whole; returns its size in bytes.

    Raises:
        InputError: the file cannot be written, or the pipeline is too large for Argo.
    """
    from kfp import compiler

    from taylorglo_pipelines.sweep import sweep_pipeline

    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output}: a compiled pipeline should be a .yaml file")
    logging.getLogger("kfp").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(sweep_pipeline(config), str(draft))
        content = draft.read_bytes()
    if len(content) > _ARGO_LIMIT:
        raise InputError(
            f"the pipeline is {len(content) / 1000:.0f} kB, and Argo takes about {_ARGO_LIMIT / 1000:.0f}; "
            f"lower pipeline.generations ({config.pipeline.generations})"
        )
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{output}: cannot be written: {error.strerror}") from None
    return len(content)
