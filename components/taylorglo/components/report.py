"""Reports what the sweep found: an HTML page, a table in the log, the end of the MLflow run."""

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
    from taylorglo.tasks import report

    report.run(
        sweep_path=sweep.path,
        tuning_path=tuning.path,
        comparison_path=comparison.path,
        robustness_path=robustness.path,
        loss_path=loss.path,
        model_path=model.path,
        page_path=page.path,
    )
