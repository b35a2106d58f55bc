"""Reports what the sweep found: an HTML page, a table in the log, the end of the MLflow run."""

from kfp.dsl import HTML, Artifact, ClassificationMetrics, Input, Markdown, Metrics, Model, Output

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
    champion_answers: Output[ClassificationMetrics],
    cross_entropy_answers: Output[ClassificationMetrics],
) -> None:
    """Write the report (page), and what Kubeflow's pages show of it.

    These are a summary, metrics, and confusion matrix and ROC curve (over all classes,
    micro-average) of champion and cross-entropy.
    """
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
    answers = {"champion": champion_answers, "cross-entropy": cross_entropy_answers}
    for loss, output in answers.items():
        counts = report.answers_of(comparison.path, loss)
        if counts is None:
            continue
        if counts.confusion:
            classes = report.classes_of(comparison.path)
            output.log_confusion_matrix(classes, counts.confusion)
        output.log_roc_curve(*counts.roc())
