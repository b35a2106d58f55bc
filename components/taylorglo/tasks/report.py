"""The task that reports what a sweep found: one page, a table in the log, and MLflow."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from taylorglo.loss.source import python_source
from taylorglo.reading import parse_json
from taylorglo.report.page import render
from taylorglo.report.record import SweepRecord, answers, sweep_record
from taylorglo.report.verdict import (
    headline,
    losses,
    markdown,
    standing_verdict,
    table,
    verdict,
)
from taylorglo.results import (
    Comparison,
    Counts,
    FullTraining,
    Robustness,
    SweepResult,
    by_contender,
    read_json,
)
from taylorglo.services import layout
from taylorglo.services.memo import References, write_result
from taylorglo.tasks.console import say, task
from taylorglo.tasks.context import Passed, Sweep, software
from taylorglo.tasks.outcome import Outcome
from taylorglo.tasks.progress import track_generations


@task
def run(
    *,
    tuning_path: str,
    comparison_path: str,
    robustness_path: str,
    loss_path: str,
    model_path: str,
    page_path: str,
    summary_path: str,
) -> dict[str, float]:
    """Write the report and a summary, log the outcome to MLflow, and print the table.

    Args:
        tuning_path: the trainings that tuned the baselines.
        comparison_path: the trainings of champion and baselines.
        robustness_path: the accuracies under attack.
        loss_path: the champion's loss.
        model_path: a network trained with the champion's loss.
        page_path: where to write the report.
        summary_path: where to write the summary, in Markdown.

    Returns:
        The outcome in three numbers; see :func:`taylorglo.report.verdict.headline`.
    """
    sweep, comparison = read_json(comparison_path, Passed[Comparison]).both
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / layout.PROGRAM
        program.write_text(program_of(Path(loss_path)))
        record = write_report(
            sweep,
            tuning=read_json(tuning_path, Passed[list[FullTraining]]).content,
            comparison=comparison,
            robustness=read_json(robustness_path, Robustness),
            champion={
                layout.LOSS: Path(loss_path),
                layout.PROGRAM: program,
                **_network(Path(model_path)),
            },
            page=Path(page_path),
        )
    links = {
        "MLflow": sweep.tracker.page,
        "report": f"{sweep.store.uri}/{layout.report(sweep.settings.name)}",
        "champion": f"{sweep.store.uri}/{layout.champion(sweep.settings.name)}",
    }
    Path(summary_path).write_text(markdown(record, links))
    return headline(record)


def answers_of(comparison_path: str, loss: str) -> Counts | None:
    """Return the answers of a loss to the test split over all seeds; None if not all are known."""
    trainings = read_json(comparison_path, Passed[Comparison]).content.trainings
    return answers([training for training in trainings if training.contender.name == loss])


def classes_of(comparison_path: str) -> list[str]:
    """Return the names of the classes in the order of the labels; numbers if they have none."""
    sweep, _ = read_json(comparison_path, Passed[Comparison]).both
    return [*sweep.classes] or [str(label) for label in range(sweep.num_classes)]


def program_of(path: Path) -> str:
    """Return a saved loss as a Python program, without a need for PyTorch."""
    saved = parse_json(path.read_bytes())
    return python_source(
        saved["theta"], saved["order"], classes=saved["classes"], provenance=saved["provenance"]
    )


def _network(path: Path) -> dict[str, Path]:
    """Return the champion's network by its name; a function of a user may have returned none."""
    return {layout.NETWORK: path} if path.stat().st_size else {}


def write_report(
    sweep: Sweep,
    *,
    tuning: Sequence[FullTraining],
    comparison: Comparison,
    robustness: Robustness,
    champion: Mapping[str, Path],
    page: Path,
) -> SweepRecord:
    """Write the report, keep it in the store, log the outcome to MLflow, and print the table.

    Args:
        sweep: the context of the sweep.
        tuning: the trainings that tuned the baselines.
        comparison: the trainings of champion and baselines.
        robustness: the accuracies under attack.
        champion: files of the champion by their names in MLflow.
        page: where to write the report.
    """
    record = sweep_record(
        sweep.settings,
        candidates=sweep.search.candidates(),
        tuning=tuning,
        comparison=comparison,
        robustness=robustness,
        generations=sweep.generations,
        num_classes=sweep.num_classes,
        provenance=sweep.provenance,
        guessing=sweep.guessing,
        software=software(),
        started=sweep.started,
        standing=sweep.standing,
        classes=sweep.classes,
    )
    page.write_text(render(record))
    sweep.store.upload(page, layout.report(sweep.settings.name))
    References.of(tuning, comparison).write(sweep.store, sweep.settings.name, sweep.study)
    track_generations(sweep, sweep.generations)
    with sweep.search.exclusively():
        outcome = Outcome(record, comparison, robustness.ended, champion)
        outcome.log(sweep, page)
        ending = _ending(sweep, outcome)
    write_result(sweep.store, result_of(sweep, record, comparison))
    sweep.finish(search=comparison.complete)
    say("\n" + "\n\n".join([table(record), verdict(record), ending]))
    say(f"{record.training_share:.0%} of {record.wall_seconds:.0f} s were spent inside trainings")
    return record


def result_of(sweep: Sweep, record: SweepRecord, comparison: Comparison) -> SweepResult:
    """Return what the command line shows of a finished run.

    Args:
        sweep: the context of the sweep.
        record: of the sweep.
        comparison: the trainings of champion and baselines.
    """
    return SweepResult(
        sweep=record.name,
        study=sweep.study,
        created=record.created,
        complete=comparison.complete,
        seed=sweep.settings.seed,
        seeds=[training.seed for training in by_contender(comparison.trainings)[0]],
        data=sweep.settings.data.name,
        fingerprint=sweep.fingerprint,
        score=sweep.settings.evaluation.score,
        table=table(record),
        verdict=verdict(record),
        champion=record.champion,
        losses=losses(record),
        seconds=record.wall_seconds,
    )


def _ending(sweep: Sweep, outcome: Outcome) -> str:
    """Register the champion of a complete search; return what the search has come to."""
    if not outcome.comparison.complete:
        done = sweep.search.complete_generations()
        return (
            f"The search goes on: {done} of {sweep.generations} generations are done; run it again."
        )
    sentences = (standing_verdict(outcome.record), outcome.register(sweep))
    return "\n".join(filter(None, sentences))
