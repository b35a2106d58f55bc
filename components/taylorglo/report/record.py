"""The record of a sweep: all that its report says, built from the results of its tasks."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np

from taylorglo import scores
from taylorglo.loss.dynamics import collapse_rate, learning_drive
from taylorglo.pareto import fronts
from taylorglo.results import (
    Candidate,
    Champion,
    Comparison,
    CorruptionRow,
    Counts,
    Evaluation,
    Example,
    Execution,
    FullTraining,
    GenerationSummary,
    Guessing,
    Robustness,
    RobustnessRow,
    StandingChampion,
    by_contender,
    epsilon_text,
    epsilon_unit,
    mean_curve,
)
from taylorglo.settings import Scalar, SweepSettings
from taylorglo.stats import covered, finite, paired, welch

Spans = list[tuple[float, float]]
Points = dict[str, list[tuple[float, list[float]]]]  # (x, accuracies of the networks) by loss
Fate = Literal["rejected", "failed", "diverged", "stopped", "trained", "finalist", "champion"]


@dataclass(frozen=True)
class GenerationRecord:
    """One generation of the search.

    Attributes:
        number: its number in the search, from 1.
        fitnesses: in [0, 1], of the candidates that were trained.
        drawn: number of candidates that the search drew.
        rejected: number of candidates that the filters rejected.
        diverged: number of candidates whose training diverged.
        failed: number of candidates whose training ended with an error.
        trained: number of candidates that were trained, in whatever way the training ended.
        seconds: wall time in which at least one candidate was being trained.
    """

    number: int
    fitnesses: list[float]
    drawn: int
    rejected: int
    diverged: int
    failed: int
    trained: int
    seconds: float

    @property
    def best(self) -> float | None:
        """The highest finite fitness, if there is one."""
        scored = finite(self.fitnesses)
        return float(scored.max()) if scored.size else None

    @property
    def median(self) -> float | None:
        """The median of the finite fitnesses, if there are any."""
        scored = finite(self.fitnesses)
        return float(np.median(scored)) if scored.size else None


@dataclass(frozen=True)
class CandidateRecord:
    """A candidate by its dynamics: learning drive A, collapse rate B, and what became of it."""

    drive: float
    collapse: float
    fate: Fate


@dataclass(frozen=True)
class TradeOff:
    """A candidate that was trained to the end and attacked, by its scores on validation images.

    Attributes:
        trial: number of the candidate in the study.
        generation: number of its generation, from 1.
        score: its score, such as the accuracy in [0, 1], the mean over its attempts.
        robust_score: the same under attack.
        on_front: whether no candidate is better in one of the two, and no worse in the other.
        champion: whether it is the champion.
    """

    trial: int
    generation: int
    score: float
    robust_score: float
    on_front: bool
    champion: bool

    @property
    def scores(self) -> tuple[float, float]:
        """Both scores."""
        return self.score, self.robust_score


@dataclass(frozen=True)
class Savings:
    """What was not computed, in seconds of training, if each candidate had cost the mean.

    Attributes:
        spent: seconds of all trainings of candidates.
        rejected: seconds that the rejected candidates would have taken in addition.
        stopped: seconds that the candidates which were stopped early would have taken in addition.
    """

    spent: float
    rejected: float
    stopped: float


@dataclass(frozen=True)
class TuningRow:
    """A baseline trained with one learning rate: validation accuracies in [0, 1] by attempt.

    ``label_smoothing`` is the alpha that it was trained with, 0 for a loss without.
    """

    loss: str
    learning_rate: float
    accuracies: list[float]
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class ComparisonRow:
    """A loss in the final comparison.

    Attributes:
        loss: its name.
        learning_rate: the learning rate that it was trained with.
        accuracies: test accuracies in [0, 1], one for each seed.
        curve: (step, validation accuracy), the mean over the seeds.
        p_value: p value of Welch's two-sided test against the champion; None for the champion
            itself, also if it is a baseline, or if no test is possible.
        label_smoothing: the alpha that it was trained with, 0 for a loss without.
        measures: other measures on the test split by name (see
            :class:`taylorglo.results.Training`), one for each seed; NaN if it was not measured.
        counts: the answers to the test split, summed over the seeds; None if they are not known.
    """

    loss: str
    learning_rate: float
    accuracies: list[float]
    curve: list[tuple[int, float]]
    p_value: float | None
    label_smoothing: float = 0.0
    measures: Mapping[str, list[float]] = field(default_factory=dict)
    counts: Counts | None = None


@dataclass(frozen=True)
class StandingRecord:
    """The champion of an earlier search, trained and tested again beside the new one.

    Attributes:
        version: its version in MLflow's model registry.
        study: the study that found it.
        accuracies: test accuracies in [0, 1], in the order of the champion's and from the same
            seeds, on the same data; NaN for a training without a score.
        p_value: p value of the two-sided paired t-test; NaN if no test is possible.
    """

    version: str
    study: str
    accuracies: list[float]
    p_value: float


@dataclass(frozen=True)
class SweepRecord:
    """All that a report says.

    Attributes:
        name: name of the sweep.
        created: when the record was made, in ISO format.
        settings: all settings by name.
        provenance: where the images come from.
        environment: software, hardware, and how trainings were computed.
        num_classes: number of classes of the data.
        guessing: what a network reaches that looks at no image, if it is known.
        generations: the generations of the search.
        champion: the candidate that won.
        tuning: the baselines, with each learning rate that was tried.
        comparison: the final comparison; its first row is the champion.
        robustness: accuracies under attack.
        seconds: wall time by stage.
        wall_seconds: wall time of the run.
        training_share: part of the wall time, in [0, 1], that was spent inside trainings.
        notes: facts that a reader needs to judge the numbers.
        standing: the champion of an earlier search, if there was one to compare with.
        not_attacked: why no network was attacked, if none was.
        suspicions: signs that attacks went astray, by loss.
        corruptions: accuracies on corrupted images, of the attacked networks.
        examples: attacked images of a network of each loss.
        attacked_images: the address of the table with the results of the attacks by image; empty if
            there is none.
        candidates: the candidates that have an end, by their dynamics.
        savings: what filters and early stops saved; None if no candidate was trained to the end.
        trade_offs: the candidates with their scores under attack; empty if none was attacked.
        command: shell commands that repeat the sweep; empty if they are not known.
        classes: the names of the classes in the order of the labels; empty if they have none.
    """

    name: str
    created: str
    settings: Mapping[str, Scalar]
    provenance: Mapping[str, str]
    environment: Mapping[str, str]
    num_classes: int
    guessing: Guessing | None
    generations: list[GenerationRecord]
    champion: Champion
    tuning: list[TuningRow]
    comparison: list[ComparisonRow]
    robustness: list[RobustnessRow]
    seconds: dict[str, float]
    wall_seconds: float
    training_share: float
    notes: list[str]
    standing: StandingRecord | None = None
    not_attacked: str = ""
    suspicions: list[str] = field(default_factory=list)
    corruptions: list[CorruptionRow] = field(default_factory=list)
    examples: Mapping[str, list[Example]] = field(default_factory=dict)
    attacked_images: str = ""
    candidates: list[CandidateRecord] = field(default_factory=list)
    savings: Savings | None = None
    trade_offs: list[TradeOff] = field(default_factory=list)
    command: str = ""
    classes: Sequence[str] = ()

    @property
    def front(self) -> list[TradeOff]:
        """The Pareto front of the candidates, the one of the highest score first."""
        front = [one for one in self.trade_offs if one.on_front]
        return sorted(front, key=lambda one: (-one.score, one.trial))

    @property
    def chosen(self) -> TradeOff | None:
        """The champion, if it is one of the candidates that were attacked."""
        return next((one for one in self.trade_offs if one.champion), None)

    @property
    def short_attack(self) -> str:
        """The attack on the candidates, in words."""
        steps = self.settings.get("evaluation_adversarial_steps", 1)
        epsilon = float(self.settings.get("evaluation_adversarial_epsilon", 0.0))
        name = "FGSM" if steps == 1 else f"FGSM and PGD of {steps} steps"
        return f"{name}, ε = {epsilon_text(epsilon)}"

    @property
    def score(self) -> str:
        """What was measured on validation and test images, in words: the name of the score."""
        return scores.words(self._score)

    @property
    def share(self) -> bool:
        """Whether the score is in [0, 1], and is shown in percent."""
        return scores.is_share(self._score)

    @property
    def metric(self) -> str:
        """The name of the score among metrics."""
        return scores.metric(self._score)

    @property
    def by_function(self) -> bool:
        """Whether a function of the user trained and measured."""
        return bool(self.settings.get("training_function"))

    @property
    def beside_accuracy(self) -> bool:
        """Whether a network may have a high score that has learned nothing, but not its accuracy.

        A function of the user returns its score alone.
        """
        return self._score in scores.BESIDE_ACCURACY and not self.by_function

    @property
    def epsilon_unit(self) -> str:
        """The norm and the unit of the attacks' epsilon, in words."""
        norm = {"linf": "L∞", "l2": "L2"}[str(self.settings.get("attack_norm", "linf"))]
        return f"{norm}, {epsilon_unit(self.provenance)}"

    @property
    def losses(self) -> list[str]:
        """All losses, in the order that gives them their colours: those of the comparison first."""
        losses = [row.loss for row in self.comparison] + [row.loss for row in self.robustness]
        return list(dict.fromkeys(losses))

    def worst(self) -> Points:
        """Return what the worst of all attacks left: (epsilon, accuracies) by loss."""
        points: Points = {}
        for row in self.robustness:
            if row.attack == "worst":
                points.setdefault(row.loss, []).append((row.epsilon, row.accuracies))
        return points

    def corrupted(self) -> dict[str, Points]:
        """Return (strength, accuracies) by corruption and loss, from the clean images, strength 0.

        The clean ones are those that were attacked, as the corrupted ones are.
        """
        worst = self.worst()
        clean = {loss: [point for point in curve if not point[0]] for loss, curve in worst.items()}
        panels: dict[str, Points] = {}
        for row in self.corruptions:
            panel = panels.setdefault(row.corruption, {})
            curve = panel.setdefault(row.loss, list(clean.get(row.loss, [])))
            curve.append((float(row.strength), row.accuracies))
        return panels

    @property
    def _score(self) -> str:
        return str(self.settings.get("evaluation_score", "accuracy"))


def sweep_record(
    settings: SweepSettings,
    *,
    candidates: Sequence[Candidate],
    tuning: Sequence[FullTraining],
    comparison: Comparison,
    robustness: Robustness,
    generations: int,
    num_classes: int,
    provenance: Mapping[str, str],
    guessing: Guessing | None,
    software: Mapping[str, str],
    started: float,
    standing: StandingChampion | None,
    classes: Sequence[str] = (),
) -> SweepRecord:
    """Build the record of a sweep.

    Args:
        settings: the settings of the sweep.
        candidates: all candidates of the study.
        tuning: the trainings that tuned the baselines.
        comparison: the trainings of champion and baselines.
        robustness: the accuracies under attack.
        generations: number of generations of the whole search.
        num_classes: number of classes of the data.
        provenance: where the images come from.
        guessing: what a network reaches that looks at no image, if it is known.
        software: versions and hardware.
        started: when the run began, in seconds since the epoch.
        standing: the champion in MLflow's registry when the run began.
        classes: the names of the classes in the order of the labels, if they have some.
    """
    results = [c.result for c in candidates if c.result is not None]
    spent = _time_spent(started, results, tuning, _full_trainings(comparison), attack=robustness)
    return SweepRecord(
        name=settings.name,
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        settings={**settings.flat(), "generations": generations},
        provenance=provenance,
        environment={**software, **_methods(results, [*tuning, *comparison.trainings])},
        num_classes=num_classes,
        guessing=_guessing(guessing, settings, num_classes),
        generations=_generations(candidates),
        champion=comparison.champion,
        tuning=_tuning(tuning),
        comparison=_comparison(comparison.trainings, comparison.champion.baseline),
        robustness=robustness.rows,
        seconds=spent.by_stage,
        wall_seconds=spent.wall,
        training_share=spent.training / spent.wall,
        notes=_notes(settings, started, results, [*tuning, *_full_trainings(comparison)]),
        standing=_standing(standing, comparison),
        not_attacked=robustness.reason,
        suspicions=robustness.suspicions,
        corruptions=robustness.corruptions,
        examples=robustness.examples,
        attacked_images=robustness.images,
        candidates=_fates(candidates, comparison, num_classes),
        savings=_savings(candidates),
        trade_offs=_trade_offs(candidates, comparison.champion),
        command=_command(settings, generations),
        classes=classes,
    )


def _fates(
    candidates: Sequence[Candidate], comparison: Comparison, num_classes: int
) -> list[CandidateRecord]:
    """Return the candidates that were rejected or evaluated, in the order of the search."""
    finalists = {tuple(full.contender.theta) for full in comparison.finalists}
    records = []
    for candidate in candidates:
        fate: Fate
        if candidate.rejected:
            fate = "rejected"
        elif candidate.result is None or not candidate.finished:
            continue
        elif candidate.trial == comparison.champion.trial:
            fate = "champion"
        elif tuple(candidate.theta) in finalists:
            fate = "finalist"
        else:
            fate = _ending(candidate.result)
        drive = learning_drive(candidate.theta, num_classes)
        collapse = collapse_rate(candidate.theta, num_classes)
        records.append(CandidateRecord(drive, collapse, fate))
    return records


def _ending(result: Evaluation) -> Fate:
    """Return how the training of a candidate ended."""
    if result.status == "failed":
        return "failed"
    if result.status == "ok":
        return "trained"
    return "stopped" if result.reason.endswith("no learning") else "diverged"


def _trade_offs(candidates: Sequence[Candidate], champion: Champion) -> list[TradeOff]:
    """Return the candidates that were attacked, by accuracy and accuracy under attack."""
    attacked = [
        (candidate, candidate.result.objectives)
        for candidate in candidates
        if candidate.finished
        and candidate.result is not None
        and candidate.result.status == "ok"
        and candidate.result.robust_accuracies
    ]
    front = set(next(iter(fronts([point for _, point in attacked])), []))
    return [
        TradeOff(
            trial=candidate.trial,
            generation=candidate.generation,
            score=score,
            robust_score=robust,
            on_front=place in front,
            champion=candidate.trial == champion.trial,
        )
        for place, (candidate, (score, robust)) in enumerate(attacked)
    ]


def _savings(candidates: Sequence[Candidate]) -> Savings | None:
    """Return what the filters and the early stops saved, by the mean of the whole trainings."""
    ended = [c.result for c in candidates if c.result is not None and c.finished]
    whole = [result.seconds for result in ended if result.status == "ok"]
    if not whole:
        return None
    mean = math.fsum(whole) / len(whole)
    stopped = [result.seconds for result in ended if result.status == "diverged"]
    return Savings(
        spent=math.fsum(result.seconds for result in ended),
        rejected=mean * sum(candidate.rejected for candidate in candidates),
        stopped=math.fsum(max(mean - seconds, 0.0) for seconds in stopped),
    )


def _command(settings: SweepSettings, generations: int) -> str:
    """Return shell commands that write the settings as a file and run the sweep again.

    A value of JSON is one of YAML, too. Settings at their default are left out.
    """
    values = settings.model_dump(mode="json", exclude_defaults=True)
    values |= {"name": settings.name, "seed": settings.seed}
    values["pipeline"] = {"generations": generations}
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    file = f"{settings.name}.yaml"
    return "\n".join([f"cat > {file} <<'END'", *lines, "END", f"taylorglo run {file}"])


def _guessing(
    guessing: Guessing | None, settings: SweepSettings, num_classes: int
) -> Guessing | None:
    """Return what a network reaches that looks at no image, by the score of the sweep.

    Whichever class it always names, it is right in one of the n classes that have test images, and
    never in the others. So its balanced accuracy is 1/n. Its macro F1 is 2 p / (1 + p) / n if the
    class has the share p of the images, because all of them are named so. The highest macro F1 that
    it can expect is 1/n: that of naming each class as often as it occurs. Likelihood and
    calibration say nothing of what was learned, so the accuracy counts for them. It is not known
    for a score that a function of a user measures on data of its own choice.
    """
    if guessing is None or settings.training.function:
        return None
    score = settings.evaluation.score
    if score == "accuracy" or score in scores.BESIDE_ACCURACY:
        return guessing
    share, of_classes = guessing.accuracy, 1 / (guessing.classes or num_classes)
    if score == "macro-f1":
        f1 = 2 * share / (1 + share) * of_classes
        return guessing.model_copy(update={"accuracy": f1, "share": share, "highest": of_classes})
    return guessing.model_copy(update={"accuracy": of_classes, "share": share})


def _generations(candidates: Sequence[Candidate]) -> list[GenerationRecord]:
    """Summarise each generation of the search."""
    records = []
    for number in sorted({candidate.generation for candidate in candidates}):
        members = [c for c in candidates if c.generation == number]
        summary = GenerationSummary.of(members)
        spans = [(c.result.started, c.result.ended) for c in members if c.result is not None]
        record = GenerationRecord(
            number=number,
            fitnesses=_known(c.fitness for c in members if c.result and c.fitness is not None),
            drawn=summary.drawn,
            rejected=summary.rejected,
            diverged=summary.diverged,
            failed=summary.failed,
            trained=summary.trained,
            seconds=covered(spans),
        )
        records.append(record)
    return records


def _tuning(trainings: Sequence[FullTraining]) -> list[TuningRow]:
    """Return a row for each baseline, label smoothing and learning rate."""
    return [
        TuningRow(
            loss=group[0].contender.name,
            learning_rate=group[0].contender.learning_rate,
            accuracies=_known(full.training.accuracy for full in group),
            label_smoothing=group[0].contender.label_smoothing,
        )
        for group in by_contender(trainings)
    ]


def _comparison(trainings: Sequence[FullTraining], itself: str) -> list[ComparisonRow]:
    """Return a row for each loss, with its test against the champion.

    Args:
        trainings: of all losses, with those of the champion.
        itself: the baseline that the champion is, which is not compared with itself; or empty.
    """
    groups = by_contender(trainings)
    champion = next(group for group in groups if group[0].contender.name == "champion")
    reference = _known(full.test_accuracy for full in champion)
    rows = []
    for group in groups:
        contender = group[0].contender
        accuracies = _known(full.test_accuracy for full in group)
        curve = mean_curve([full.training.curve for full in group])
        same = group is champion or contender.name == itself
        row = ComparisonRow(
            loss=contender.name,
            learning_rate=contender.learning_rate,
            accuracies=accuracies,
            curve=[(step, accuracy) for step, accuracy, _ in curve],
            p_value=None if same else welch(reference, accuracies),
            label_smoothing=contender.label_smoothing,
            measures=_measures(group),
            counts=answers(group),
        )
        rows.append(row)
    return rows


def _measures(group: Sequence[FullTraining]) -> dict[str, list[float]]:
    """Return what was measured on the test split beside the score, by name and seed."""
    by_seed = [full.training.test_measures for full in group]
    names = {name for measures in by_seed for name in measures}
    return {name: [m.get(name, math.nan) for m in by_seed] for name in sorted(names)}


def answers(group: Sequence[FullTraining]) -> Counts | None:
    """Return the answers of all networks of a loss; None if those of one are not known."""
    counts = [full.training.test_counts for full in group]
    known = [count for count in counts if count is not None]
    return Counts.total(known) if known and len(known) == len(counts) else None


def _known(values: Iterable[float]) -> list[float]:
    """Return scores, with NaN in place of one that stands for a training without a score."""
    return [value if scores.is_known(value) else math.nan for value in values]


def _full_trainings(comparison: Comparison) -> list[FullTraining]:
    """Return the trainings in full of the finalists, the contenders and the standing champion."""
    return [*comparison.finalists, *comparison.trainings, *comparison.standing]


@dataclass(frozen=True)
class _TimeSpent:
    """Seconds of wall time: in all, inside trainings, and by stage."""

    wall: float
    training: float
    by_stage: dict[str, float]


def _time_spent(
    started: float,
    results: Sequence[Evaluation],
    tuning: Sequence[FullTraining],
    final: Sequence[FullTraining],
    *,
    attack: Robustness,
) -> _TimeSpent:
    """Return how the wall time of this run was spent; earlier runs do not count."""

    def spans_of(results: Iterable[Execution | Robustness]) -> Spans:
        return [(max(r.started, started), r.ended) for r in results if r.ended > started]

    trainings = {
        "candidate training": spans_of(results),
        "baseline tuning": spans_of(training.training for training in tuning),
        "final training": spans_of(training.training for training in final),
    }
    stages = {**trainings, "attack": spans_of([attack])}
    seconds = {name: covered(spans) for name, spans in stages.items()}
    wall = time.time() - started
    # The stages overlap on a cluster, so the sum over them would be too long.
    busy = covered(span for spans in stages.values() for span in spans)
    seconds["everything else: task starts, imports, proposing, tracking"] = wall - busy
    inside = covered(span for spans in trainings.values() for span in spans)
    return _TimeSpent(wall=wall, training=inside, by_stage=seconds)


def _methods(results: Iterable[Evaluation], trainings: Iterable[FullTraining]) -> dict[str, str]:
    """Return how candidates and trainings in full were computed: engine, precision, device."""
    groups = {
        "candidates": {result.method for result in results},
        "trainings in full": {full.training.method for full in trainings},
    }
    return {name: "; ".join(sorted(methods)) for name, methods in groups.items()}


def _standing(standing: StandingChampion | None, comparison: Comparison) -> StandingRecord | None:
    """Compare the champion with the standing one, if that was trained too."""
    if standing is None or not comparison.standing:
        return None
    trainings = comparison.trainings
    champion = _known(t.test_accuracy for t in trainings if t.contender.name == "champion")
    accuracies = _known(training.test_accuracy for training in comparison.standing)
    p_value = paired(champion, accuracies)
    return StandingRecord(standing.version, standing.study, accuracies, p_value)


def _notes(
    settings: SweepSettings,
    started: float,
    results: Sequence[Evaluation],
    trainings: Sequence[FullTraining],
) -> list[str]:
    """Return the facts that a reader needs to judge the numbers."""
    notes = [
        "All seeds share one split of one data set: p is about the randomness of training, not "
        "about the choice of test samples."
    ]
    if settings.training.function:
        notes = [
            f"{settings.training.function} trained, and every score is the one that it returned. "
            "p is about the randomness of training, if the test data are the same for all seeds."
        ]
    executions: list[Execution] = [*results, *(full.training for full in trainings)]
    earlier = sum(execution.ended < started for execution in executions)
    if earlier:
        notes.append(
            f"Trainings known from an earlier run: {earlier}. The wall time is that of the last "
            "run alone."
        )
    for group in by_contender(trainings):
        diverged = sum(full.training.status != "ok" for full in group)
        if diverged:
            contender = group[0].contender
            alpha = contender.label_smoothing
            notes.append(
                f"{diverged} of {len(group)} trainings in full of {contender.name} at learning "
                f"rate {contender.learning_rate:g}{f' and alpha {alpha:g}' if alpha else ''} "
                "diverged."
            )
    return notes
