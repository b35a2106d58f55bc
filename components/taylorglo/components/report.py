"""Tells what the sweep found: one HTML page, a table in the log, and the end of the MLflow run."""

from kfp.dsl import HTML, Artifact, Input, Model, Output

from taylorglo.components import component


@component
def report(
    sweep: Input[Artifact],
    tuning: Input[Artifact],
    comparison: Input[Artifact],
    robustness: Input[Artifact],
    loss: Input[Artifact],
    model: Input[Model],
    page: Output[HTML],
) -> None:
    """Write the report (page)."""
    from pathlib import Path

    from taylorglo import environment
    from taylorglo.mlflow_connection import LOSS
    from taylorglo.stages import NETWORK
    from taylorglo.telling import write_report

    with environment.task():
        write_report(
            environment.Sweep.read(sweep.path),
            environment.read_json(tuning.path),
            environment.read_json(comparison.path),
            environment.read_json(robustness.path),
            {LOSS: Path(loss.path), NETWORK: Path(model.path)},
            page.path,
        )
