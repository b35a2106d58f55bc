"""``taylorglo compile``: a sweep as a file for Kubeflow Pipelines."""

from collections.abc import Sequence
from pathlib import Path

import click

from taylorglo_pipelines.commands.options import FILE, load_for_kubeflow, sweep_options


@click.command("compile")
@sweep_options
@click.option(
    "-o", "--output", type=FILE, required=True, metavar="FILE", help="The pipeline, a .yaml file."
)
def command(path: Path, overrides: Sequence[str], output: Path) -> None:
    """Compile a sweep for Kubeflow Pipelines.

    CONFIG is a YAML file, such as pipelines/configs/digits.yaml.
    """
    from taylorglo_pipelines.pipeline.compile import compile_sweep

    size = compile_sweep(load_for_kubeflow(path, overrides), output)
    click.echo(f"{output}: {size / 1000:.0f} kB")
