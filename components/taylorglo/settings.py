"""What a sweep is told: typed, validated sections with defaults that suit the digits data set.

The same models validate the YAML file of the command line and the run-time parameters of a pipeline, where every
field is one scalar (``SweepSettings.parameters``): a list is written with commas, a section and its key are joined
by an underscore.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from taylorglo.errors import InputError

Scalar = str | int | float | bool

CPUS = "TAYLORGLO_CPUS"  # the environment variable that says how many CPUs a task may use, where tasks share a machine


def _split(value: object) -> object:
    """Accept one value, or a comma-separated string, wherever a list is expected (pipeline parameters are scalars)."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return [value] if isinstance(value, int | float) else value


def _ascending(values: list[Any]) -> list[Any]:
    if any(b <= a for a, b in pairwise(values)):
        raise ValueError("should be in ascending order, without repeats")
    return values


Names = Annotated[list[str], BeforeValidator(_split)]
Numbers = Annotated[list[float], BeforeValidator(_split)]
Epsilon = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A group of settings: immutable, closed to unknown keys, finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Reject what pydantic takes for 0 or 1, and YAML makes of a plain yes or no."""
        items = value if isinstance(value, list) else [value]
        annotation = cls.model_fields[info.field_name].annotation if info.field_name else None
        if annotation is not bool and any(isinstance(item, bool) for item in items):
            raise ValueError("should not be true or false")
        return value


class DataSettings(Section):
    """Which images, and how they are split (fractions are stratified by class)."""

    name: Literal["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "image-folder", "safetensors"] = (
        Field("digits", description="scikit-learn's digits, one of torchvision's, or your own (the last two)")
    )
    root: str = Field("", description="folder, file or `s3://` URI of the data; needed by all but `digits`")
    download: bool = Field(False, description="let torchvision download what is not under `root`")
    sha256: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="expected checksum of the source, 64 hexadecimal digits; the report names the one found",
    )
    validation_fraction: Fraction = Field(0.2, description="held out of the training images, for fitness and tuning")
    test_fraction: Fraction = Field(0.25, description="held out first, where the source has no test split")
    train_fraction: float = Field(
        1.0, gt=0, le=1, description="of the remaining training images, how many are used (studies with little data)"
    )

    @model_validator(mode="after")
    def _root_is_given(self) -> "DataSettings":
        if self.name != "digits" and not self.root:
            raise ValueError(f"root: data set {self.name!r} needs a folder, a file or an s3:// URI")
        return self


class ModelSettings(Section):
    """The network: a built-in name, torchvision:NAME, or the user's own package.module:factory."""

    name: str = Field(
        "mlp",
        min_length=1,
        description="`mlp`, `cnn`, `mnist-cnn`, `allcnn-c`, `alexnet`, `preresnet-20`, `wrn-16-8`, `wrn-28-5`, "
        "`pyramidnet-110-48`; torchvision's classifiers, such as `torchvision:resnet18`; or `package.module:factory`",
    )


class TrainingSettings(Section):
    """A training in full: SGD, as it is done for the champion and the baselines."""

    steps: int = Field(1500, ge=1, description="of a training in full")
    batch_size: int = Field(64, ge=1, description="samples per step")
    learning_rate: float = Field(0.1, gt=0, description="of candidates and champion; a loss's scale acts on it too")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(True, description="Nesterov's form of the momentum, which has to be above 0 then")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD")
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = Field("cosine", description="of the learning rate")
    milestones: Numbers = Field(
        [], description="of `step`, which needs them: where the rate drops, as fractions of the training, ascending"
    )
    decay: float = Field(0.1, gt=0, lt=1, description="of `step`: what the rate is multiplied by")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto`: CUDA where there is a GPU, else the CPU"
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = Field(
        "auto",
        description="of matrix products and convolutions; `auto`: bfloat16 for the networks for which no difference in "
        "accuracy was found (docs/results.md), where the device has arithmetic for it, else float32. Attacks are "
        "computed in float32",
    )
    engine: Literal["auto", "sequential", "parallel", "fused"] = Field(
        "auto",
        description="`sequential`: one training after another; `parallel`: in `workers` processes; `fused`: many as "
        "one program, in `workers` processes; `auto` chooses by device and network, and the report says what it chose",
    )
    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="processes of a task that trains; 0: one per `threads` CPUs, or a single one on a GPU. All are on "
        "the same GPU, however many there are",
    )
    threads: int = Field(1, ge=1, description="CPU threads per process; results on CPU are exact for a given number")
    compile: bool = Field(
        False, description="`sequential`, `parallel`: torch.compile the step, once for all candidates of a process"
    )

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what is computed, but for the precision, which a device chooses with them."""
        return self.model_dump(exclude={"device", "precision", "engine", "workers", "threads", "compile"})

    def check_data(self, images: int) -> None:
        """Refuse a batch that is larger than the training images.

        Raises:
            InputError: it is.
        """
        if self.batch_size > images:
            raise InputError(f"training.batch_size: {self.batch_size} is more than the {images} training images")

    @field_validator("milestones")
    @classmethod
    def _milestones_are_fractions(cls, values: list[float]) -> list[float]:
        if not all(0 < value < 1 for value in values):
            raise ValueError("should be fractions between 0 and 1")
        return [float(v) for v in _ascending(values)]

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSettings":
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("milestones: are needed by the step schedule, and by no other")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0")
        if self.compile and self.engine == "fused":
            raise ValueError("compile: is for the engines sequential and parallel")
        return self


class AugmentationSettings(Section):
    """Random changes of the training images, in this order, of candidates, champion and baselines alike."""

    crop_padding: int = Field(
        0, ge=0, description="black pixels around an image, of which a window of its size is cut at random; 0: no crop"
    )
    flip: bool = Field(False, description="mirror an image left to right, or do not, at random")
    cutout: int = Field(
        0, ge=0, description="side in pixels of a square that is blanked at a random place (Cutout); 0: none"
    )
    cutmix: float = Field(
        0.0, ge=0, le=1, description="probability that the images of a batch, and their targets, are mixed (CutMix)"
    )


class EvaluationSettings(Section):
    """The short training that gives a candidate its fitness."""

    steps: int = Field(300, ge=1, description="of the short training, at most `training.steps`")
    attempts: int = Field(
        2, ge=1, le=100, description="such trainings per candidate, averaged; a generation's candidates share the seeds"
    )
    anneal: bool = Field(True, description="the whole schedule in these steps; `false`: its first steps, as published")
    give_up_step: int = Field(
        100, ge=0, description="stop a candidate that has not learned by this step, at most `steps`; 0: never"
    )
    give_up_gain: float = Field(
        0.05, ge=0, lt=1, description="what counts as learned: validation accuracy above chance by this much"
    )
    max_attempts: int = Field(
        0,
        ge=0,
        le=100,
        description="trainings of the leading half of a generation, at most, as long as the noise of their fitness "
        "exceeds its spread; 0: no more than `attempts`",
    )
    adversarial_weight: float = Field(
        0.0, ge=0, le=1, description="share of the accuracy under FGSM, on the validation split, in the fitness"
    )
    adversarial_epsilon: float = Field(0.03, gt=0, le=1, description="radius of that FGSM, in pixel space")

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluationSettings":
        if self.give_up_step > self.steps:
            raise ValueError(f"give_up_step: should be at most steps ({self.steps}), or 0")
        if 0 < self.max_attempts < max(2, self.attempts):
            raise ValueError(f"max_attempts: should be 0, or at least attempts ({self.attempts}) and 2")
        if self.max_attempts and self.attempts == 1:
            raise ValueError("attempts: should be at least 2 with max_attempts: noise is seen in their spread")
        return self


class SearchSettings(Section):
    """CMA-ES over the coefficients of the loss."""

    coordinates: Literal["reduced", "theta"] = Field(
        "reduced",
        description="`reduced`: the four numbers that decide a training (cy', chy, ch, chh); "
        "`theta`: all k(k+1)/2 + 2 of theta for order k, as published",
    )
    order: int = Field(3, ge=2, le=8, description="of the polynomial; `reduced` is for order 3")
    popsize: int = Field(12, ge=2, le=10_000, description="evaluated candidates per generation")
    sigma: float = Field(1.2, gt=0, description="of the first generation")
    mean: Numbers = Field(
        [],
        description="of the first generation, a number per coordinate; "
        "empty: near cross-entropy (`reduced`: 4, -4, -1, 0) or 0 (`theta`)",
    )
    filters: Names = Field(
        ["learnable", "stable"], description="one or more of `learnable`, `stable`, `published`; or `none`"
    )
    on_reject: Literal["resample", "penalize"] = Field(
        "resample",
        description="`resample`: draw again, up to `max_draws`; `penalize`: count it with fitness 0, as published",
    )
    max_draws: int = Field(1000, ge=2, description="most candidates drawn for one generation, at least `popsize`")
    generations: int = Field(
        0,
        ge=0,
        description="of the whole search, in as many runs as it takes; 0: `pipeline.generations`, else no fewer",
    )
    renew: bool = Field(
        False, description="when the search is finished, the next run begins another one, warm-started from it"
    )

    @field_validator("filters")
    @classmethod
    def _filters_exist(cls, values: list[str]) -> list[str]:
        known = ("published", "learnable", "stable", "none")
        for value in values:
            if value not in known:
                raise ValueError(f"unknown filter {value!r}; there are {', '.join(known)}")
        if not values or ("none" in values and len(values) > 1) or len(set(values)) < len(values):
            raise ValueError("should be none, or one or more different ones of published, learnable, stable")
        return values

    @property
    def dimensions(self) -> int:
        """How many numbers are searched: 4 reduced coefficients, or k(k+1)/2 + 2 thetas for order k."""
        return 4 if self.coordinates == "reduced" else self.order * (self.order + 1) // 2 + 2

    @model_validator(mode="after")
    def _consistent(self) -> "SearchSettings":
        if self.coordinates == "reduced" and self.order != 3:
            raise ValueError("order: the reduced coordinates are those of order 3; use coordinates: theta")
        if self.mean and len(self.mean) != self.dimensions:
            raise ValueError(f"mean: should have {self.dimensions} numbers, has {len(self.mean)}")
        if self.max_draws < self.popsize:
            raise ValueError(f"max_draws: should be at least popsize ({self.popsize})")
        return self


class BaselineSettings(Section):
    """The losses to beat, each with its learning rate tuned on the validation split."""

    learning_rates: Numbers = Field(
        [0.01, 0.03, 0.1, 0.3], description="the grid that every baseline is tuned over; above 0, ascending"
    )
    attempts: int = Field(
        2, ge=1, le=100, description="trainings in full per learning rate, averaged; also for the finalists"
    )
    label_smoothing: Fraction = Field(0.1, description="alpha of the smoothed cross-entropy")

    @field_validator("learning_rates")
    @classmethod
    def _rates_are_positive(cls, values: list[float]) -> list[float]:
        if not values or min(values) <= 0:
            raise ValueError("should be one or more positive numbers")
        return [float(v) for v in _ascending(values)]


class ChampionSettings(Section):
    """The final comparison, on the test split."""

    finalists: int = Field(
        3,
        ge=1,
        le=100,
        description="best candidates that are trained in full to choose the champion, on the validation split",
    )
    seeds: int = Field(10, ge=2, le=1000, description="trainings in full of the champion and of each baseline, tested")


class AttackSettings(Section):
    """FGSM and PGD (l-infinity, pixel space) on the champion and the baselines."""

    epsilons: Annotated[list[Epsilon], BeforeValidator(_split)] = Field(
        [0.0, 0.02, 0.05, 0.1], description="radii in pixel space; 0 is always added"
    )
    pgd_steps: int = Field(20, ge=1, description="steps of PGD")
    pgd_restarts: int = Field(2, ge=1, description="starts of PGD, the first at the image itself")
    images: int = Field(500, ge=1, description="test images attacked, at most")
    seeds: int = Field(3, ge=1, description="trained networks attacked per loss, at most `champion.seeds`")

    @field_validator("epsilons")
    @classmethod
    def _with_zero(cls, values: list[float]) -> list[float]:
        return sorted({0.0, *values})


class SweepSettings(Section):
    """Everything that decides what a sweep computes."""

    name: str = Field(
        "digits",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="of the study, the MLflow experiment and the folder in the store; a-z, 0-9 and hyphens, at most 63",
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="of all randomness: splits, candidates, initial weights, order of the samples"
    )
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    search: SearchSettings = SearchSettings()
    baselines: BaselineSettings = BaselineSettings()
    champion: ChampionSettings = ChampionSettings()
    attack: AttackSettings = AttackSettings()

    @model_validator(mode="after")
    def _consistent(self) -> "SweepSettings":
        if self.evaluation.steps > self.training.steps:
            raise ValueError(f"evaluation.steps: should be at most training.steps ({self.training.steps})")
        if self.attack.seeds > self.champion.seeds:
            raise ValueError(f"attack.seeds: should be at most champion.seeds ({self.champion.seeds})")
        return self

    def parameters(self) -> dict[str, Scalar]:
        """Every setting as one scalar: the parameters of a pipeline run."""
        flat: dict[str, Scalar] = {}
        for key, value in self.model_dump().items():
            if not isinstance(value, dict):
                flat[key] = value
                continue
            for inner, leaf in value.items():
                flat[f"{key}_{inner}"] = ", ".join(str(item) for item in leaf) if isinstance(leaf, list) else leaf
        return flat

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Scalar]) -> "SweepSettings":
        """The inverse of :meth:`parameters`.

        Raises:
            InputError: naming every parameter that is wrong.
        """
        nested: dict[str, Any] = {}
        for key, value in parameters.items():
            section, _, inner = key.partition("_")
            if inner:
                nested.setdefault(section, {})[inner] = value
            else:
                nested[key] = value
        return validated(cls, nested, "parameters")


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: object, source: str) -> Model:
    """Validate ``values``, or raise one InputError that lists every problem by its path, a line each."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {line}" for line in _problems(error))) from None


def _problems(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        elif problem["type"] == "model_type":
            message = "should be a group of settings"
        elif problem["type"] == "value_error":
            head, colon, tail = message.partition(": ")
            if colon and " " not in head:  # a validator of a whole section names the key itself
                path, message = f"{path}.{head}".lstrip("."), tail
        given = problem["input"]
        shown = "" if isinstance(given, dict | BaseModel) else f" (got {given!r})"
        lines.append(f"{path}: {message}{shown}" if path else f"{message}{shown}")
    return lines
