"""``taylorglo compile``: a sweep as a file for Kubeflow Pipelines."""

from collections.abc import Sequence
from pathlib import Path

import click

from taylorglo_pipelines.commands.options import FILE, echo_json, json_option, sweep_options


@click.command("compile")
@sweep_options
@click.option(
    "-o", "--output", type=FILE, required=True, metavar="FILE", help="The pipeline, a .yaml file."
)
@json_option
def command(path: Path, overrides: Sequence[str], output: Path, as_json: bool) -> None:
    """Compile a sweep for Kubeflow Pipelines.

    CONFIG is a YAML file, such as pipelines/configs/digits.yaml.
    """
    from taylorglo_pipelines import config
    from taylorglo_pipelines.pipeline.compile import compile_sweep
    from taylorglo_pipelines.pipeline.size import LIMIT

    content, size = compile_sweep(config.load(path, overrides), output)
    if as_json:
        state = {"plain": size.plain, "compressed": size.packed, "most": LIMIT}
        echo_json({"output": str(output), "bytes": len(content), "state_bytes": state})
        return
    click.echo(
        f"{output}: {len(content) / 1000:.0f} kB; Argo's state of a run will be about "
        f"{size.plain / 1000:.0f} kB, compressed {size.packed / 1000:.0f} kB "
        f"(at most {LIMIT / 1000:.0f} kB)"
    )
