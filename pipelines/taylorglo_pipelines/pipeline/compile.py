"""The pipeline as a file for Kubeflow Pipelines."""

import logging
import tempfile
from itertools import dropwhile
from pathlib import Path

from kfp import compiler

from taylorglo.errors import InputError
from taylorglo.files import replacing
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.pipeline.sweep import sweep_pipeline

# Argo keeps a workflow in one Kubernetes object, which a larger pipeline does not fit into.
_LARGEST = 700_000  # bytes
# Argo keeps the state of every task in that object too. 475 iterations of a loop were too many
# (kubeflow/pipelines issue 12131), whatever the size of the compiled file.
_MOST_TASKS = 400
# The time to compile a pipeline grows with the square of its tasks. A pipeline with more tasks than
# these is refused before it is compiled.
_HOPELESS = 5 * _MOST_TASKS


def warnings(config: Config) -> list[str]:
    """Return a line for each problem that Kubeflow may have with a valid configuration."""
    return [_advice(config)] if _tasks(config) > _MOST_TASKS else []


def compile_sweep(config: Config, output: Path, largest: int = _LARGEST) -> int:
    """Compile the sweep to a file, which appears whole or not at all, and return its size in bytes.

    Args:
        config: the sweep.
        output: the file, ``.yaml``.
        largest: a larger pipeline, in bytes, is refused.

    Raises:
        InputError: the file cannot be written, or the pipeline is too large for Argo.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output}: a compiled pipeline should be a .yaml file")
    if _tasks(config) > _HOPELESS:
        raise InputError(_advice(config))
    content = _compiled(config)
    if len(content) > largest:
        raise InputError(
            f"the pipeline is {len(content) / 1000:.0f} kB, and Argo takes about "
            f"{largest / 1000:.0f}; lower pipeline.generations ({config.pipeline.generations}), "
            "and chain runs with search.generations"
        )
    try:
        with replacing(output) as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from None
    return len(content)


def _compiled(config: Config) -> bytes:
    """Return the compiled pipeline; the same configuration gives the same bytes.

    kfp begins the file with comments, in which it lists the keys of each parameter in an order that
    changes from process to process. They are left out.
    """
    logging.getLogger("kfp").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(sweep_pipeline(config), str(path))
        lines = path.read_text().splitlines(keepends=True)
    return "".join(dropwhile(lambda line: line.startswith("#"), lines)).encode()


def _tasks(config: Config) -> int:
    """Return the number of tasks of all generations: propose, filter, and one for each shard."""
    return config.pipeline.generations * (config.pipeline.shards + 2)


def _advice(config: Config) -> str:
    layout = config.pipeline
    generations = max(config.search.generations, layout.generations)
    generations_of_a_run = max(1, _MOST_TASKS // (layout.shards + 2))
    return (
        f"{layout.generations} generations of {layout.shards} shards are {_tasks(config)} tasks, "
        f"and Argo fails at about {_MOST_TASKS}: chain runs with "
        f"search.generations={generations} and pipeline.generations={generations_of_a_run}; each "
        "run of the pipeline then goes on where the last one stopped"
    )
