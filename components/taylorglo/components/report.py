"""Reports what the sweep found: an HTML page, a table in the log, the end of the MLflow run."""

from kfp.dsl import HTML, Artifact, Input, Markdown, Metrics, Model, Output

from taylorglo.components import component


@component
def report(
    tuning: Input[Artifact],
    comparison: Input[Artifact],
    robustness: Input[Artifact],
    loss: Input[Artifact],
    model: Input[Model],
    page: Output[HTML],
    summary: Output[Markdown],
    metrics: Output[Metrics],
) -> None:
    """Write the report (page), and what Kubeflow's pages show of it (summary, metrics)."""
    from taylorglo.tasks import report

    outcome = report.run(
        tuning_path=tuning.path,
        comparison_path=comparison.path,
        robustness_path=robustness.path,
        loss_path=loss.path,
        model_path=model.path,
        page_path=page.path,
        summary_path=summary.path,
    )
    for name, value in outcome.items():
        metrics.log_metric(name, value)
