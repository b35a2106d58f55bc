"""From the study and the artifacts of the tasks to what the report tells, and where the time went."""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from taylorglo import environment
from taylorglo.environment import Sweep
from taylorglo.report import (
    ChampionRecord,
    ComparisonRow,
    GenerationRecord,
    RobustnessRow,
    StandingRecord,
    SweepRecord,
    TuningRow,
)
from taylorglo.search import summary
from taylorglo.statistics import covered, mean_curve, paired, welch


def sweep_record(
    sweep: Sweep,
    tuning: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any],
    robustness: Mapping[str, Any],
) -> SweepRecord:
    """What the report tells, from the study and the artifacts of the tasks before it."""
    candidates = sweep.search.candidates()
    generations = []
    for number in sorted({c.generation for c in candidates}):
        own = [c for c in candidates if c.generation == number]
        counts = {
            k: int(v) for k, v in summary(own).items() if k in ("drawn", "rejected", "diverged", "failed", "trained")
        }
        spans = [(c.result["started"], c.result["ended"]) for c in own if c.result]
        fitnesses = [c.fitness for c in own if c.result and c.fitness is not None]
        generations.append(GenerationRecord(number, fitnesses, seconds=covered(spans), **counts))

    trainings = comparison["trainings"]
    results = [c.result for c in candidates if c.result]
    champion = [t["test_accuracy"] for t in trainings if t["contender"]["name"] == "champion"]
    rows = []
    for own_trainings in by_contender(trainings):
        contender = own_trainings[0]["contender"]
        accuracies = [t["test_accuracy"] for t in own_trainings]
        p_value = None if contender["name"] == "champion" else welch(champion, accuracies)
        curve = [point[:2] for point in mean_curve([t["curve"] for t in own_trainings])]
        rows.append(ComparisonRow(contender["name"], contender["learning_rate"], accuracies, curve, p_value))

    now = time.time()

    def spent(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(max(start, sweep.started), end) for start, end in spans if end > sweep.started]

    def spans_of(values: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
        return spent((value["started"], value["ended"]) for value in values)

    stages = {
        "candidate training": spans_of(results),
        "baseline tuning": spans_of(tuning),
        "final training": spans_of([*comparison["finalists"], *trainings, *comparison["standing"]]),
    }
    inside = covered(span for spans in stages.values() for span in spans)
    stages["attack"] = spans_of([robustness])
    seconds = {name: covered(spans) for name, spans in stages.items()}
    wall = now - sweep.started
    # Not what is left of the sum: on a cluster, the baselines are tuned while candidates are trained.
    busy = covered(span for spans in stages.values() for span in spans)
    seconds["everything else: task starts, imports, proposing, tracking"] = wall - busy
    return SweepRecord(
        name=sweep.settings.name,
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        settings={**sweep.settings.parameters(), "generations": sweep.generations},
        provenance=dict(sweep.provenance),
        environment={**environment.software(), **_methods(results, [*tuning, *trainings])},
        num_classes=sweep.num_classes,
        generations=generations,
        champion=ChampionRecord(**comparison["champion"]),
        tuning=[
            TuningRow(own[0]["contender"]["name"], own[0]["contender"]["learning_rate"], [t["accuracy"] for t in own])
            for own in by_contender(tuning)
        ],
        comparison=rows,
        robustness=[RobustnessRow(**row) for row in robustness["rows"]],
        seconds=seconds,
        wall_seconds=wall,
        training_share=inside / wall,
        notes=_notes(
            sweep,
            [*tuning, *comparison["finalists"], *trainings, *comparison["standing"]],
            results,
        ),
        standing=_standing(sweep, champion, comparison["standing"]),
    )


def _methods(results: Iterable[Mapping[str, Any]], trainings: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """How the candidates and the trainings in full were computed: engine, precision and device."""
    groups = {"candidates": results, "trainings in full": trainings}
    found = {name: sorted({own["method"] for own in group}) for name, group in groups.items()}
    return {name: "; ".join(methods) for name, methods in found.items()}


def _standing(sweep: Sweep, champion: Sequence[float], trainings: Sequence[Mapping[str, Any]]) -> StandingRecord | None:
    if not trainings or sweep.standing is None:
        return None
    accuracies = [training["test_accuracy"] for training in trainings]
    return StandingRecord(sweep.standing["version"], sweep.standing["study"], accuracies, paired(champion, accuracies))


def _notes(sweep: Sweep, trainings: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [
        "All seeds share one split of one data set: p speaks of the randomness of training, not of the choice of test "
        "images."
    ]
    former = sum(training["ended"] < sweep.started for training in [*trainings, *results])
    if former:
        notes.append(f"{former} trainings were known from an earlier run; the wall time is that of the last run alone.")
    for own in by_contender(trainings):
        diverged = sum(training["status"] != "ok" for training in own)
        if diverged:
            contender = own[0]["contender"]
            notes.append(
                f"{diverged} of {len(own)} trainings in full of {contender['name']} at learning rate "
                f"{contender['learning_rate']:g} diverged."
            )
    return notes


def by_contender(trainings: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Trainings, as comparison writes them, grouped by loss and learning rate, in their order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for training in trainings:
        groups.setdefault(repr(training["contender"]), []).append(training)
    return list(groups.values())
