"""Results as typed records, from one training to the final comparison of a sweep.

The tasks of a sweep pass these records to each other as JSON, and the study and the store keep
them. Nothing here needs PyTorch. Records that version 0.1.0 wrote are read too.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from taylorglo.errors import InputError
from taylorglo.loss.filters import Verdict
from taylorglo.reading import check_regular
from taylorglo.scores import known

Status = Literal["ok", "diverged", "failed"]
# (step, score, cross-entropy in nats), without the latter if a function of a user trained.
Curve = list[tuple[int, float, float | None]]
Kind = TypeVar("Kind")

# The last version of taylorglo that changed what a training computes. Results are kept under keys
# that contain it, so that a release which computes the same can use what an older one kept.
# One change is not counted: the test score of a network that answers NaN was the share of class 0,
# and is 0 now. The training itself is the same, and has the status "diverged" in old records, too.
NUMERICS = "0.1.0"


# The name in a provenance of the unit of an attack's epsilon; without it, it is a pixel's range.
EPSILON_UNIT = "epsilon_unit"


def epsilon_unit(provenance: Mapping[str, str]) -> str:
    """Return the unit of an attack's epsilon on data of this provenance, in words."""
    return provenance.get(EPSILON_UNIT, "pixels in [0, 1]")


def epsilon_text(epsilon: float) -> str:
    """Return an epsilon as a person writes it: a short number, or a fraction such as 8/255."""
    levels = round(255 * epsilon)
    if round(epsilon, 4) != epsilon and abs(255 * epsilon - levels) < 1e-4:
        return f"{levels}/255"
    return f"{epsilon:g}"


class Record(BaseModel):
    """An immutable result that can be written as JSON."""

    model_config = ConfigDict(frozen=True)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return self.model_dump(mode="json")


class Execution(Record):
    """When and how something was trained.

    Attributes:
        status: ``ok``; ``diverged``, if numbers became infinite or nothing was learned by the step
            at which learning is checked; or ``failed``, if the training ended with an error.
        curve: validation accuracy and cross-entropy by training step.
        started: seconds since the epoch.
        ended: seconds since the epoch.
        seconds: this training's share of the time of the processes that did it.
        reason: why it diverged or failed.
        engine: ``sequential``, ``parallel`` or ``fused``.
        precision: ``float32``, ``tf32`` or ``bfloat16``.
        device: ``cpu`` or ``cuda``.
    """

    status: Status
    curve: Curve
    started: float
    ended: float
    seconds: float
    reason: str = ""
    engine: str = ""
    precision: str = ""
    device: str = ""

    @property
    def method(self) -> str:
        """Engine, precision and device in one text, for a person."""
        return ", ".join(filter(None, (self.engine, self.precision, self.device)))

    @model_validator(mode="before")
    @classmethod
    def _split_method(cls, values: Any) -> Any:
        """Read a record of version 0.1.0, which kept engine, precision and device as one text."""
        if not isinstance(values, Mapping) or "method" not in values:
            return values
        parts = dict(
            zip(("engine", "precision", "device"), values["method"].split(", "), strict=False)
        )
        return {key: value for key, value in values.items() if key != "method"} | parts


class Counts(Record):
    """How often a network answered what on the test split; the sum over networks likewise.

    An image with NaN among its logits is counted nowhere.

    Attributes:
        confusion: number of images by their class (rows) and by the class that the network named
            (columns); empty for more than 30 classes.
        reliability: number of images, of right answers, and the sum of the confidences, by
            confidence, in bins of equal width on [0, 1].
        scores: number of pairs of an image and a class by the probability that the network gave to
            the class, in bins of equal width on [0, 1]: first if it is the image's class, then if
            it is another one. The ROC curve over all classes (micro-average) follows from it.
    """

    confusion: list[list[int]]
    reliability: list[tuple[int, int, float]]
    scores: list[tuple[int, int]]

    @classmethod
    def total(cls, counts: Sequence[Self]) -> Self:
        """Return the sum over networks of the same classes, at least one."""

        def added(tables: Iterable[Sequence[Sequence[float]]]) -> list[list[float]]:
            return [[sum(c) for c in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]

        return cls.model_validate(
            {
                "confusion": added(c.confusion for c in counts),
                "reliability": added(c.reliability for c in counts),
                "scores": added(c.scores for c in counts),
            }
        )

    def roc(self) -> tuple[list[float], list[float], list[float]]:
        """Return false positive rates, true positive rates and thresholds of the ROC curve.

        It begins at (0, 0), above every probability, and ends at (1, 1).
        """
        right = sum(row[0] for row in self.scores) or 1
        wrong = sum(row[1] for row in self.scores) or 1
        points = [(0.0, 0.0, 1.0)]
        above = [0, 0]
        for index in range(len(self.scores) - 1, -1, -1):
            above = [a + b for a, b in zip(above, self.scores[index], strict=True)]
            points.append((above[1] / wrong, above[0] / right, index / len(self.scores)))
        false, true, thresholds = zip(*points, strict=True)
        return list(false), list(true), list(thresholds)

    def area(self) -> float:
        """Return the area under the ROC curve, by the trapezoidal rule."""
        false, true, _ = self.roc()
        points = list(zip(false, true, strict=True))
        return math.fsum((c - a) * (b + d) / 2 for (a, b), (c, d) in pairwise(points))


class Training(Execution):
    """The result of one training.

    Attributes:
        accuracy: validation accuracy after the last step, in [0, 1]; or another score, if the
            settings name one (``evaluation.score``). One that a function of a user returned may be
            any number, measured on the split that it was told to measure on.
        robust_accuracy: accuracy (or score) that an attack left on the validation split, if it was
            measured.
        test_accuracy: accuracy (or score) on the test split, if it was measured.
        test_measures: ``accuracy``, ``calibration_error`` and ``cross_entropy`` (in nats) on the
            test split, as far as they were measured and are finite.
        test_counts: the answers to the test split; None if they were not counted, as in records of
            older versions.
    """

    accuracy: float
    robust_accuracy: float | None = None
    test_accuracy: float | None = None
    test_measures: dict[str, float] = {}
    test_counts: Counts | None = None


class Evaluation(Execution):
    """The result of a candidate.

    Attributes:
        fitness: the mean over the attempts of the validation accuracy; with
            ``adversarial_weight`` w, of (1 - w) times that and w times the accuracy under attack.
            A candidate whose training failed has fitness 0, or a number below every score if scores
            may be negative.
        accuracies: validation accuracies of the attempts. An attempt that diverges is the last.
        robust_accuracies: accuracies of the attempts under attack, if they were measured.
        run: id of the MLflow run of the pipeline run that trained the candidate.
    """

    fitness: float
    accuracies: list[float]
    robust_accuracies: list[float]
    run: str = ""

    @property
    def objectives(self) -> tuple[float, float]:
        """The means of accuracy and accuracy under attack; twice the fitness if one is unknown."""
        if not self.accuracies or not self.robust_accuracies:
            return self.fitness, self.fitness
        return fmean(self.accuracies), fmean(self.robust_accuracies)


class Candidate(Record):
    """One theta that the search drew.

    Attributes:
        trial: number of the candidate in its study, from 0.
        generation: number of its generation, from 1.
        theta: its coefficients.
        verdict: what the filters said; None before they judged it.
        result: its evaluation; None before it was trained.
        fitness: the fitness that CMA-ES is told; None as long as it was told none.
        finished: whether the study has its last word on the candidate.
        ended: when the study was told, in ISO format, by the clock of the task that told it.
        held_back: whether its training failed, and it is not known yet whether the candidate is to
            blame.
    """

    trial: int
    generation: int
    theta: list[float]
    verdict: Verdict | None = None
    result: Evaluation | None = None
    fitness: float | None = None
    finished: bool = False
    ended: str | None = None
    held_back: bool = False

    @property
    def rejected(self) -> bool:
        """Whether the filters rejected the candidate."""
        return self.verdict is not None and not self.verdict.accepted


class GenerationSummary(Record):
    """Counts and fitnesses of a generation; best and median are 0 if nothing was trained."""

    drawn: int
    rejected: int
    trained: int
    diverged: int
    failed: int
    best: float
    median: float

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> Self:
        """Summarise the candidates of one generation."""
        results = [c.result for c in candidates if c.result is not None and c.finished]
        scores = known(
            c.fitness for c in candidates if c.fitness is not None and c.result is not None
        )
        return cls(
            drawn=len(candidates),
            rejected=sum(candidate.rejected for candidate in candidates),
            trained=len(results),
            diverged=sum(result.status == "diverged" for result in results),
            failed=sum(result.status == "failed" for result in results),
            best=max(scores, default=0.0),
            median=median(scores) if scores else 0.0,
        )


class Contender(Record):
    """A loss with its learning rate: the champion (which has a theta) or a classic loss."""

    name: str
    loss: str
    learning_rate: float
    theta: list[float] = []
    label_smoothing: float = 0.0


class FullTraining(Record):
    """One training in full of a contender from a seed.

    Attributes:
        contender: the loss and its learning rate.
        seed: decides initial weights, order of the samples, augmentation and dropout.
        key: digest of all that decides the result, under which the store keeps it.
        training: the result.
    """

    contender: Contender
    seed: int
    key: str
    training: Training

    @property
    def test_accuracy(self) -> float:
        """Accuracy on the test split; 0 if it was not measured."""
        return self.training.test_accuracy or 0.0

    @model_validator(mode="before")
    @classmethod
    def _nest_training(cls, values: Any) -> Any:
        """Read a record of version 0.1.0, which kept the fields of the training beside the key."""
        if not isinstance(values, Mapping) or "training" in values:
            return values
        own = ("contender", "seed", "key")
        training = {key: value for key, value in values.items() if key not in own}
        training.setdefault("seconds", training["ended"] - training["started"])
        return {key: values[key] for key in own} | {"training": training}


class Champion(Record):
    """The loss that a search recommends.

    Attributes:
        theta: its coefficients.
        order: of its polynomial.
        fitness: its expected fitness: the mean over those of its trainings among the finalists that
            have a score, or, if the best candidate was taken without such trainings, the fitness of
            the candidate. If none of the trainings has a score, it is that of such a training.
        interval: the 95 % interval of that mean, if it is over two trainings or more.
        trainings: number of the trainings that have a score; 0 if there were none.
        generation: number of the generation that it comes from.
        trial: number of the candidate; None if it is the mean of the distribution that CMA-ES had
            after this generation, or a baseline.
        baseline: name of the tuned baseline that it is, if it is one.
    """

    theta: list[float]
    order: int
    fitness: float
    generation: int
    trial: int | None
    interval: tuple[float, float] | None = None
    trainings: int = 0
    baseline: str = ""


class StandingChampion(Record):
    """The loss that is the champion in MLflow's model registry before a sweep ends.

    Attributes:
        version: its version in the registry.
        study: the study that found it.
        theta: its coefficients.
        learning_rate: that it was trained with; None if its file does not say.
        optimizer: that it was trained with.
        lost: why its file is gone, if it is; its theta is empty then, and nobody can use it.
    """

    version: str
    study: str
    theta: list[float]
    learning_rate: float | None
    optimizer: str = "sgd"
    lost: str = ""


class Comparison(Record):
    """The trainings in full behind the table of a sweep.

    Attributes:
        champion: the candidate that won.
        finalists: trainings that chose it among the best candidates, on the validation split.
        trainings: trainings of champion and baselines, tested.
        standing: trainings of the registry's champion on the same data and from the same seeds.
            Empty if there is none, if it is the same loss, or if the search is not complete.
        complete: whether the search has all its generations.
    """

    champion: Champion
    finalists: list[FullTraining]
    trainings: list[FullTraining]
    standing: list[FullTraining]
    complete: bool


class LossResult(Record):
    """A loss in the final comparison of a finished run.

    Attributes:
        loss: its name.
        learning_rate: that it was trained with.
        label_smoothing: the alpha that it was trained with, 0 for a loss without.
        scores: test scores, such as accuracies in [0, 1], one for each seed; None for a training
            without a score.
        n: number of known scores.
        mean: of these.
        standard_deviation: of these, with n - 1.
        difference: the mean minus that of the champion, if the loss is compared with it.
        p: of Welch's test of the scores against those of the champion.
        p_holm: the same, adjusted by Holm's method over the baselines.
    """

    loss: str
    learning_rate: float
    label_smoothing: float
    scores: list[float | None]
    # A result of an earlier version has none of these.
    n: int = 0
    mean: float | None = None
    standard_deviation: float | None = None
    difference: float | None = None
    p: float | None = None
    p_holm: float | None = None


class SweepResult(Record):
    """What the last finished run of a sweep came to, as the command line reads it from the store.

    Attributes:
        sweep: name of the sweep.
        study: name of the study that it searched in.
        created: when the report was written, in ISO format.
        complete: whether the search has all its generations.
        seed: of the sweep.
        seeds: of the trainings in full, in the order of the scores.
        data: name of the data set.
        fingerprint: checksum of the training and validation images.
        score: name of the score.
        table: the final comparison as aligned plain text.
        verdict: the outcome in a sentence.
        champion: the loss that the search recommends.
        losses: the final comparison; its first entry is the champion.
        seconds: wall time of the run.
    """

    sweep: str
    study: str
    created: str
    complete: bool
    seed: int
    seeds: list[int]
    data: str
    fingerprint: str
    score: str
    table: str
    verdict: str
    champion: Champion
    losses: list[LossResult]
    seconds: float


class RobustnessRow(Record):
    """Accuracies in [0, 1] under an attack of radius epsilon, one per attacked network."""

    loss: str
    attack: str
    epsilon: float
    accuracies: list[float]


class CorruptionRow(Record):
    """Accuracies in [0, 1] on corrupted images of a strength from 1, one per attacked network."""

    loss: str
    corruption: str
    strength: int
    accuracies: list[float]


class AttackedImage(NamedTuple):
    """What attacks found for an image.

    Attributes:
        image: its place in the test split.
        label: its class.
        predicted: the class that the network names without an attack; -1 if a logit is NaN.
        perturbation: the size of the smallest perturbation that was found: 0 if the image is
            misclassified without an attack, None if none was found.
        attack: the attack that found it; ``clean`` without an attack, empty if none was found.
    """

    image: int
    label: int
    predicted: int
    perturbation: float | None
    attack: str

    def withstands(self, epsilon: float) -> bool:
        """Return whether no attack found a perturbation of this size or a smaller one."""
        return self.perturbation is None or self.perturbation > epsilon


class Example(Record):
    """An image before and after the attacks, as three small pictures: PNG in Base64.

    Attributes:
        found: what the attacks found for it.
        taken_for: the class that the network names for the attacked image.
        clean: the image without an attack.
        change: ten times the perturbation, on grey.
        attacked: the image with the perturbation.
    """

    found: AttackedImage
    taken_for: int
    clean: str
    change: str
    attacked: str


class Attacked(Record):
    """What attacks and corruptions left of a network.

    Attributes:
        accuracies: in [0, 1], by attack and epsilon.
        suspicions: sentences that say why the network may be weaker than it looks.
        images: what was found for each image that was attacked.
        corruptions: accuracies in [0, 1] by corruption, in the order of the strengths from 1.
        examples: of images with pixels, a few before and after the attacks.
    """

    accuracies: dict[str, dict[float, float]]
    suspicions: list[str]
    images: list[AttackedImage] = []
    corruptions: dict[str, list[float]] = {}
    examples: list[Example] = []


class Robustness(Record):
    """What the attacks left of the accuracy.

    Attributes:
        rows: accuracies under attack.
        started: when the attacks began, in seconds since the epoch.
        ended: when they ended.
        reason: why nothing was attacked, if nothing was.
        suspicions: signs that attacks went astray, so that a network may be weaker than it looks.
        corruptions: accuracies on corrupted images, of the same networks.
        examples: attacked images of a network of each loss.
        images: the address of the table with the results by image; empty if there is none.
    """

    rows: list[RobustnessRow]
    started: float
    ended: float
    reason: str = ""
    suspicions: list[str] = []
    corruptions: list[CorruptionRow] = []
    examples: dict[str, list[Example]] = {}
    images: str = ""


class MemoryNeed(Record):
    """Memory of one training in bytes: weights, and activations of one image in a step."""

    weights: int
    activations_per_image: int


class Guessing(Record):
    """What a network reaches on the test split that looks at no image.

    Attributes:
        accuracy: in [0, 1], of always naming the most frequent class, by the score of the sweep.
        images: number of test images.
        share: the share in [0, 1] of the most frequent class in the test images, if the score is
            not the accuracy.
        classes: number of classes that have test images; None if an older version did not count.
        highest: the highest score in [0, 1] that such a network can expect, if always naming the
            most frequent class has a lower one.
    """

    accuracy: float
    images: int
    share: float | None = None
    classes: int | None = None
    highest: float | None = None

    @property
    def majority(self) -> float:
        """The share in [0, 1] of the most frequent class in the test images."""
        return self.accuracy if self.share is None else self.share

    @property
    def to_beat(self) -> float:
        """The score in [0, 1] above which a network has learned something."""
        return self.accuracy if self.highest is None else self.highest


class DatasetDescription(Record):
    """What later tasks have to know of a prepared data set.

    Attributes:
        name: of the data set.
        num_classes: number of classes.
        splits: number of images by split.
        memory: what training the network on it takes.
        fingerprint: checksum of the training and validation images.
        provenance: where the images come from.
        guessing: what a network reaches that looks at no image; None if no task sees the data.
        features: number of features of a sample; 0 for images.
        classes: the names of the classes in the order of the labels; empty if they have none.
    """

    name: str
    num_classes: int
    splits: dict[str, int]
    memory: MemoryNeed
    fingerprint: str
    provenance: dict[str, str]
    guessing: Guessing | None
    features: int = 0
    classes: tuple[str, ...] = ()


def by_contender(trainings: Iterable[FullTraining]) -> list[list[FullTraining]]:
    """Group trainings in full by loss and learning rate, in the order of their first one."""
    groups: dict[str, list[FullTraining]] = {}
    for training in trainings:
        groups.setdefault(training.contender.model_dump_json(), []).append(training)
    return list(groups.values())


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of several learning curves, at the steps that all of them have.

    If a curve has a step twice, its last point at this step counts.
    """
    # A function of a user may report at other steps in each training, and points whose score is
    # not finite are left out. So the place of a point in its curve does not tell its step.
    by_step = [{point[0]: point for point in curve} for curve in curves]
    shared = set.intersection(*map(set, by_step)) if by_step else set()
    return [
        (
            step,
            sum(points[step][1] for points in by_step) / len(by_step),
            _mean([points[step][2] for points in by_step]),
        )
        for step in sorted(shared)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is None."""
    present = [value for value in values if value is not None]
    return sum(present) / len(values) if len(present) == len(values) else None


def write_json(path: str | Path, value: Any) -> None:
    """Write records, or JSON values, to a file.

    Raises:
        ValueError: a number is not finite.
    """
    Path(path).write_text(json.dumps(to_jsonable_python(value), allow_nan=False))


def read_json(path: str | Path, kind: type[Kind]) -> Kind:
    """Read what :func:`write_json` wrote, as a value of this type, such as ``list[Candidate]``.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        check_regular(path)
        return TypeAdapter(kind).validate_json(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, problem["loc"]))
        reason = ": ".join(filter(None, [place, problem["msg"]]))
        raise InputError(f"{path}: is not what a task of this version writes: {reason}") from None
