"""Tells what the sweep found: one HTML page, a table in the log, and the end of the MLflow run."""

from kfp.dsl import HTML, Artifact, Input, Output

from taylorglo.components import component


@component
def report(
    sweep: Input[Artifact],
    tuning: Input[Artifact],
    comparison: Input[Artifact],
    robustness: Input[Artifact],
    page: Output[HTML],
) -> None:
    """Write the report (page)."""
    from taylorglo import environment
    from taylorglo.stages import write_report

    with environment.task():
        write_report(
            environment.Sweep.read(sweep.path),
            environment.read_json(tuning.path),
            environment.read_json(comparison.path),
            environment.read_json(robustness.path),
            page.path,
        )
