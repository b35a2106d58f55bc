"""What becomes known of a sweep, on the terminal, in MLflow and in its registry: each generation, the report."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from taylorglo import environment
from taylorglo.environment import Sweep, say
from taylorglo.errors import ServiceError

if TYPE_CHECKING:
    from taylorglo.report import SweepRecord
    from taylorglo.search import Candidate


def tell_generation(sweep: Sweep, generation: int, candidates: "Sequence[Candidate]", *, new: bool) -> None:
    """What the task that told the study the last result of a generation does for all of its tasks."""
    from taylorglo.search import summary
    from taylorglo.statistics import covered

    numbers = summary(candidates)
    results = [c.result for c in candidates if c.result is not None]
    failed = f"failed {numbers['failed']:.0f}  " if numbers["failed"] else ""
    spent = f"{covered((r['started'], r['ended']) for r in results):.0f} s"
    say(
        f"generation {generation:>{len(str(sweep.generations))}}/{sweep.generations}  "
        f"best {numbers['best']:7.2%}  median {numbers['median']:7.2%}  "
        f"rejected {numbers['rejected']:.0f} of {numbers['drawn']:.0f}  "
        f"diverged {numbers['diverged']:.0f}  {failed}{spent if new else 'known from before'}"
    )
    if failed:
        say(f"the first training that failed: {next(r['reason'] for r in results if r['status'] == 'failed')}")
    try:
        track_generations(sweep, generation, patience=30)
    except ServiceError as error:  # what counts is in the study
        say(f"{error}; the results are kept, and MLflow is told of them once it answers")


def track_generations(sweep: Sweep, last: int, *, patience: float = 0) -> None:
    """Tell MLflow of the candidates of this pipeline run that it does not know yet, up to generation ``last``.

    Connecting to MLflow takes a task seconds, so short generations are told together: not before the oldest news has
    waited for ``patience`` seconds.

    Raises:
        ServiceError: MLflow, the study or the store still fails after a few tries.
    """
    with sweep.search.exclusively():
        _track_generations(sweep, last, patience)


def _track_generations(sweep: Sweep, last: int, patience: float) -> None:
    from taylorglo.search import summary

    first = sweep.tracked() + 1
    candidates = [c for c in sweep.search.candidates() if first <= c.generation <= last]
    news = [c for c in candidates if c.result is not None and c.result["run"] == sweep.run_id]
    if not news or time.time() - min(c.result["ended"] for c in news if c.result) < patience:
        return
    for generation in sorted({c.generation for c in news}):
        own = [_tracked(c, sweep.num_classes) for c in news if c.generation == generation]
        sweep.tracker.log_candidates(generation, own)
        numbers = summary([c for c in candidates if c.generation == generation])
        sweep.tracker.log_metrics({f"generation_{name}": value for name, value in numbers.items()}, step=generation)
    sweep.set_tracked(max(c.generation for c in news))


def _tracked(candidate: "Candidate", num_classes: int) -> dict[str, Any]:
    from taylorglo.dynamics import collapse_rate, learning_drive

    assert candidate.result is not None
    dynamics = {"A": learning_drive(candidate.theta, num_classes), "B": collapse_rate(candidate.theta, num_classes)}
    return {**candidate.result, "trial": candidate.trial, "theta": candidate.theta, "coefficients": dynamics}


def write_report(
    sweep: Sweep,
    tuning: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any],
    robustness: Mapping[str, Any],
    champion: Mapping[str, Path],
    page: str,
) -> None:
    """Write the report, keep it in the store, tell MLflow what came out and end its run, print the table.

    Args:
        sweep: the sweep.
        tuning: as evaluate_baselines wrote it.
        comparison: as train_champion wrote it.
        robustness: as attack wrote it.
        champion: the files of this run's champion by their names, ``loss.json`` and ``model.safetensors``.
        page: where to write the report.
    """
    from taylorglo.record import sweep_record
    from taylorglo.report import render, standing_verdict, table, verdict

    record = sweep_record(sweep, tuning, comparison, robustness)
    Path(page).write_text(render(record))
    sweep.store.upload(Path(page), sweep.key("report.html"))
    track_generations(sweep, sweep.generations)
    outcome = [table(record), verdict(record)]
    with sweep.search.exclusively():
        run_id = _track_outcome(sweep, comparison["trainings"], champion)
        sweep.tracker.log_files({"report.html": Path(page)})
        sweep.tracker.log_metrics(
            {
                **{
                    f"robust_accuracy/{row.loss}/{row.attack}/{row.epsilon:g}": fmean(row.accuracies)
                    for row in record.robustness
                },
                "training_share": record.training_share,
                "wall_seconds": record.wall_seconds,
            }
        )
        if comparison["complete"]:
            outcome.append("\n".join(filter(None, [standing_verdict(record), _register(sweep, record, run_id)])))
        else:
            done = sweep.search.complete_generations()
            outcome.append(f"The search goes on: {done} of {sweep.generations} generations are done; run it again.")
    sweep.finish(search=comparison["complete"])
    say("\n" + "\n\n".join(outcome))
    say(f"{record.training_share:.0%} of {record.wall_seconds:.0f} s were spent inside trainings")


def _register(sweep: Sweep, record: "SweepRecord", run_id: str) -> str:
    """Register the champion in MLflow; it becomes the standing one if there is none, or if it beats that."""
    from taylorglo.report import beats_standing

    name = environment.registered_name(sweep.settings.name)
    version = sweep.tracker.register_loss(name, run_id, sweep.study, record.champion.theta)
    known = sweep.standing["version"] if sweep.standing else None
    if version == known:
        return f"models:/{name}@champion is version {version}, as before"
    if known is not None and not beats_standing(record):
        return f"models:/{name}/{version} is registered; models:/{name}@champion stays version {known}"
    if sweep.tracker.move_champion(name, version, former=known):
        return f"models:/{name}@champion is version {version} now"
    return f"models:/{name}/{version} is registered; models:/{name}@champion was moved by somebody else in between"


def _track_outcome(sweep: Sweep, trainings: Sequence[Mapping[str, Any]], champion: Mapping[str, Path]) -> str:
    """Tell MLflow of the champion and the baselines; returns the id of the champion's run."""
    from taylorglo.record import by_contender
    from taylorglo.statistics import mean_curve

    runs: dict[str, str] = {}
    for own in by_contender(trainings):
        contender, accuracies = own[0]["contender"], [t["test_accuracy"] for t in own]
        name = contender["name"]
        runs[name] = sweep.tracker.log_final(
            "champion" if name == "champion" else "baseline",
            name,
            params=contender,
            metrics={"test_accuracy": fmean(accuracies)},
            curves={
                "validation_accuracy": [point[:2] for point in mean_curve([t["curve"] for t in own])],
                "test_accuracy_by_seed": list(enumerate(accuracies)),
            },
            files=champion if name == "champion" else {},
        )
    return runs["champion"]
