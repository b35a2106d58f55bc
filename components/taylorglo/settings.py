"""The settings of a sweep: typed, validated sections with defaults that suit the digits data set.

The same models validate the YAML file of the command line and the parameters of a pipeline, which
are one group of values for each section. A setting is declared here and nowhere else: its type, its
range, what it means, and what it decides in a search.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from taylorglo import scores
from taylorglo.errors import MAX_QUOTE, InputError, meant, printable, quoted

Scalar = str | int | float | bool

# Limits that no real sweep meets. Beyond them, numbers overflow, in Kubernetes or in a training.
YEAR = 366 * 86_400  # seconds
_MOST_STEPS = 100_000_000
HIGHEST_RATE = 1_000_000
_FARTHEST = 1_000_000  # a coordinate of the search at its beginning
_MOST_ITEMS = 100  # of a list
_LONGEST_TEXT = 4096  # characters; that of a path

# The defaults of SGD and of Adam. With the other optimizer they have no meaning, and no other value
# is accepted.
_MOMENTUM = 0.9
_BETAS = (0.9, 0.999)

# Control characters, and halves of characters, which no encoding can write.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# A part of a pixel's range, as it is usual for images of 8 bits.
_FRACTION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?\s*/\s*[0-9]{1,9}", re.ASCII)
# How pydantic begins its messages, which stand after the path of the setting here.
_SUBJECT = re.compile(r"^(Input|String|List|Dictionary) should")
_UNKNOWN = "unknown key"
# What a setting should be, by pydantic's name of the error, whose message is for programmers.
_WORDS = {
    "extra_forbidden": _UNKNOWN,
    "invalid_key": "should have texts as keys",
    "model_type": "should be a group of settings",
    "dict_type": "should be keys with values",
    "list_type": "should be a list",
    "string_type": "should be a text",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_parsing_size": "should be a whole number, of fewer digits",
    "int_from_float": "should be a whole number",
}


class Decides(Enum):
    """What a setting decides in a search. It is given to a section, or to a field in its type."""

    CANDIDATES = "which candidates are drawn and accepted; it cannot change within a search"
    FITNESS = "what the training of a candidate computes; it cannot change within a search"
    PRECISION = "the precision, together with the device; results of two cannot be compared"
    OUTCOME = "what is done after the search"
    EFFORT = "where, how long and how hard is computed, but not the results"


@dataclass(frozen=True)
class Former:
    """The value of a setting in all searches that were begun before there was the setting.

    It is given to the field in its type. The identity of a search leaves the setting out if it has
    this value, so that such a search goes on.
    """

    value: Scalar


def _split(value: object) -> object:
    """Accept one value or a comma-separated text in place of a list, as on a command line."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return [value] if isinstance(value, int | float) else value


def _split_numbers(value: object) -> object:
    """Do the same for numbers. In a list, a text is no number."""
    if isinstance(value, list) and any(isinstance(item, str) for item in value):
        raise ValueError("should be numbers, without quotes")
    return _split(value)


def _split_radii(value: object) -> object:
    """Accept fractions, too, such as 8/255, which YAML reads as texts."""
    if isinstance(value, list):
        _split_numbers([item for item in value if not _is_fraction(item)])
    items = _split(value)
    if not isinstance(items, list):
        return items
    return [_quotient(str(item)) if _is_fraction(item) else item for item in items]


def _is_fraction(item: object) -> bool:
    return isinstance(item, str) and _FRACTION.fullmatch(item) is not None


def _quotient(text: str) -> float:
    above, _, below = text.partition("/")
    if not float(below):
        raise ValueError(f"{text} divides by zero")
    return float(above) / float(below)


def _within_norm(radius: float, info: ValidationInfo) -> float:
    """Refuse a radius beyond the range of a pixel, in the norm that measures single pixels."""
    if radius > 1 and info.data.get("norm", "linf") == "linf":
        raise ValueError("should be less than or equal to 1")
    return radius


def like(pattern: str, words: str) -> AfterValidator:
    """Return a check that a text has a form, with an error that a person understands.

    Args:
        pattern: regular expression of the whole text, without other than ASCII characters.
        words: what the text should be, with an example, for the error.
    """
    expression = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if expression.fullmatch(text) is None:
            raise ValueError(f"should be {words}")
        return text

    return AfterValidator(check)


def _ascending(values: list[Any]) -> list[Any]:
    if any(b <= a for a, b in pairwise(values)):
        raise ValueError("should be in ascending order, without repeats")
    return values


# The settings of a training that a function of a user gets, or that are about its processes.
_OF_FUNCTION = (
    "function",
    "timeout",
    "steps",
    "learning_rate",
    "device",
    "engine",
    "workers",
    "threads",
)

Names = Annotated[list[str], BeforeValidator(_split)]
Numbers = Annotated[list[float], BeforeValidator(_split_numbers), Field(max_length=_MOST_ITEMS)]
Radius = Annotated[float, Field(ge=0, le=1000), AfterValidator(_within_norm)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A group of settings: immutable, closed to unknown keys, with finite numbers only."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=_LONGEST_TEXT
    )

    decides: ClassVar[Decides] = Decides.OUTCOME

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Reject truth values that pydantic would take for 0 or 1: YAML reads yes and no so."""
        items = value if isinstance(value, list) else [value]
        annotation = cls.model_fields[info.field_name].annotation if info.field_name else None
        if annotation is not bool and any(isinstance(item, bool) for item in items):
            raise ValueError("should not be true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _texts_have_no_controls(cls, value: object) -> object:
        """Reject control characters: no path, name or address has them."""
        if isinstance(value, str) and _CONTROLS.search(value):
            raise ValueError("should have no control characters")
        return value

    @classmethod
    def decision(cls, key: str) -> Decides:
        """Return what a setting of this section decides."""
        marks = [m for m in cls.model_fields[key].metadata if isinstance(m, Decides)]
        return marks[0] if marks else cls.decides

    @classmethod
    def former(cls, key: str) -> Former | None:
        """Return the value that a setting had before there was the setting, if it is newer."""
        marks = [m for m in cls.model_fields[key].metadata if isinstance(m, Former)]
        return marks[0] if marks else None

    def changed(self) -> list[str]:
        """Return the settings of this section that have not their defaults, in their order."""
        fields = type(self).model_fields
        return [key for key, value in self if value != fields[key].default]


class DataSettings(Section):
    """The images or features, and how they are split (fractions are stratified by class)."""

    name: Literal[
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "svhn",
        "image-folder",
        "safetensors",
        "numpy",
        "table",
        "hugging-face",
        "own",
    ] = Field(
        "digits",
        description="Data set: scikit-learn's digits, one of torchvision's, or your own: images "
        "(`image-folder`), images or features in tensors (`safetensors`, or `numpy` for `.npz` and "
        "`.npy`), a `table` (CSV or Parquet), a folder of Hugging Face's `save_to_disk` "
        "(`hugging-face`), or `own`: data of any kind that `training.function` reads itself.",
    )
    classes: Annotated[int, Decides.CANDIDATES, Former(0)] = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Number of classes, at least 2, of the data set `own`; 0 for all others, which "
        "have it in their labels.",
    )
    root: str = Field(
        "",
        description="Folder, file or `s3://` URI of the data. Every data set but `digits` and "
        "`own` needs it.",
    )
    download: bool = Field(
        False, description="Let torchvision download the files that are missing in `root`."
    )
    sha256: Annotated[
        str,
        like(
            r"([0-9a-f]{64})?",
            "64 hexadecimal digits (0 to 9 and a to f), as sha256sum prints them, or empty",
        ),
    ] = Field(
        "",
        description="Expected checksum of the source, 64 hexadecimal digits. The report names the "
        "actual one.",
    )
    label: str = Field(
        "label",
        min_length=1,
        description="Name of the column with the classes, of a table or of Hugging Face's data.",
    )
    image_size: int = Field(
        0,
        ge=0,
        le=4096,
        description="Side in pixels to which image files are resized: the largest square in the "
        "middle of an image is cut out and resized; 0: images stay as they are, and have to be of "
        "one size.",
    )
    interpolation: Literal["bilinear", "bicubic", "nearest"] = Field(
        "bilinear",
        description="Interpolation of this resize. `bilinear` and `bicubic` are with antialias.",
    )
    color: Literal["rgb", "gray", "auto"] = Field(
        "rgb",
        description="Channels of image files: three (`rgb`), one (`gray`, the luma of ITU-R 601), "
        "or one if all images are gray (`auto`).",
    )
    validation_fraction: Fraction = Field(
        0.2,
        description="Part of the training images that is held out for the fitness of candidates "
        "and for tuning, if the source has no validation split.",
    )
    test_fraction: Fraction = Field(
        0.25,
        description="Part of all images that is held out for the final test, if the source has no "
        "test split.",
    )
    train_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Part of the remaining training images that is used, for studies with little "
        "data.",
    )
    imbalance: float = Field(
        1.0,
        ge=1,
        le=1_000_000,
        description="Size of the largest class divided by that of the smallest: the training and "
        "validation images are cut to long-tailed classes, class 0 the largest. 1: they stay as "
        "they are. The test images always do.",
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Part of the training and validation labels that is replaced by wrong ones. "
        "The test labels stay as they are.",
    )
    label_noise_kind: Literal["symmetric", "pair-flip"] = Field(
        "symmetric",
        description="What replaces a label. `symmetric`: another class, drawn at random, at a "
        "`label_noise` below (n-1)/n for n classes; `pair-flip`: the next class, for the same part "
        "of each class, below 0.5 and with at least 3 classes.",
    )

    @property
    def published(self) -> bool:
        """Whether it is a data set that others have published."""
        return self.name in ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn")

    @model_validator(mode="after")
    def _root_is_given(self) -> "DataSettings":
        if self.name not in ("digits", "own") and not self.root:
            raise ValueError(f"root: data set {self.name!r} needs a folder, a file or an s3:// URI")
        return self

    @model_validator(mode="after")
    def _settings_of_files_have_files(self) -> "DataSettings":
        readers = {
            "label": ("table", "hugging-face"),
            **dict.fromkeys(
                ("image_size", "interpolation", "color"), ("image-folder", "hugging-face")
            ),
        }
        for key, names in readers.items():
            if self.name not in names and key in self.changed():
                raise ValueError(
                    f"{key}: is for the data sets {' and '.join(names)}, and data.name is "
                    f"{self.name}"
                )
        if self.interpolation != "bilinear" and not self.image_size:
            raise ValueError("interpolation: needs an image_size")
        return self

    @model_validator(mode="after")
    def _own_data_have_classes_and_nothing_else(self) -> "DataSettings":
        if self.name != "own":
            if self.classes:
                raise ValueError("classes: is for the data set 'own'; others have their own number")
            return self
        if self.classes < 2:
            raise ValueError("classes: data set 'own' needs the number of classes, at least 2")
        for key in self.changed():
            if key not in ("name", "classes"):
                raise ValueError(f"{key}: has no effect on the data set 'own'; leave it out")
        return self

    @model_validator(mode="after")
    def _pairs_keep_a_majority(self) -> "DataSettings":
        if self.label_noise_kind == "pair-flip" and self.label_noise >= 0.5:
            raise ValueError(
                "label_noise: pair-flip noise should be below 0.5, because right labels would be "
                f"no majority (got {self.label_noise:g})"
            )
        return self


class ModelSettings(Section):
    """The network: a built-in one, one of torchvision's, or your own."""

    decides = Decides.FITNESS

    name: str = Field(
        "mlp",
        min_length=1,
        description="Network: `mlp`, `cnn`, `mnist-cnn`, `allcnn-c`, `alexnet`, `preresnet-20`, "
        "`wrn-16-8`, `wrn-28-5` or `pyramidnet-110-48`; a classifier of torchvision, such as "
        "`torchvision:resnet18`; or a function of your own, `package.module:factory`.",
    )


class TrainingSettings(Section):
    """A training in full, built-in or a function of your own.

    The champion and the baselines get it.
    """

    decides = Decides.FITNESS

    function: Annotated[
        str,
        like(
            r"([^:\s]+:[^:\s]+)?",
            "the name of a function that can be imported, such as package.module:train, or empty",
        ),
        Former(""),
    ] = Field(
        "",
        description="A training of your own, `package.module:train`, in place of the built-in one "
        "([your own training](training.md)). `steps`, `learning_rate` and `device` are passed on "
        "to it; the batch size, the optimizer and the schedule are its own. Empty: the built-in "
        "training.",
    )
    timeout: Annotated[int, Decides.EFFORT] = Field(
        0,
        ge=0,
        le=YEAR,
        description="Seconds after which a training by `function` is ended. It is tried once more, "
        "and then counts as failed. 0: never.",
    )
    steps: int = Field(
        1500, ge=1, le=_MOST_STEPS, description="Number of steps of a training in full."
    )
    batch_size: int = Field(64, ge=1, le=1_000_000, description="Number of images in a step.")
    learning_rate: float = Field(
        0.1,
        gt=0,
        le=HIGHEST_RATE,
        description="Learning rate of candidates and champion. The scale of a loss multiplies it.",
    )
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], Former("sgd")] = Field(
        "sgd",
        description="Optimizer, as PyTorch computes it. `adam` and `adamw` usually need rates of a "
        "hundredth of those of `sgd`, so the defaults of `learning_rate` and of "
        "`baselines.learning_rates` are refused with them. With them, the scale of a candidate's "
        "loss multiplies its learning rate, because they undo that of the gradient.",
    )
    momentum: float = Field(_MOMENTUM, ge=0, lt=1, description="Momentum of `sgd`.")
    nesterov: bool = Field(
        True,
        description="Use Nesterov's form of the momentum of `sgd`, which has to be above 0 then.",
    )
    betas: Annotated[Numbers, Former(", ".join(map(str, _BETAS)))] = Field(
        list(_BETAS),
        description="Decays of the moving averages of the gradient and of its square, of `adam` "
        "and `adamw`: two numbers, at least 0 and below 1.",
    )
    weight_decay: float = Field(
        5e-4,
        ge=0,
        le=1000,
        description="Weight decay. `sgd` and `adam` add it, times the weights, to the gradient; "
        "`adamw` takes it, times the learning rate, from the weights.",
    )
    weight_decay_on: Annotated[Literal["all", "weights"], Former("all")] = Field(
        "all",
        description="Parameters that decay. `weights`: not biases and the parameters of "
        "normalisations, which are those with fewer than two axes.",
    )
    clip_norm: Annotated[float, Former(0.0)] = Field(
        0.0,
        ge=0,
        le=HIGHEST_RATE,
        description="Largest norm of the gradient of all parameters together; a longer gradient is "
        "cut to it. 0: none is cut.",
    )
    ema: Annotated[float, Former(0.0)] = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, such as 0.999. The "
        "average is what is validated, tested, attacked and kept. 0: the weights themselves are.",
    )
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = Field(
        "cosine", description="Schedule of the learning rate."
    )
    warmup_steps: Annotated[int, Former(0)] = Field(
        0,
        ge=0,
        le=_MOST_STEPS,
        description="Number of steps at the beginning in which the learning rate rises linearly to "
        "that of the schedule, below `steps`. A short training with the whole schedule has them "
        "in proportion.",
    )
    milestones: Numbers = Field(
        [],
        description="Where the schedule `step` drops the rate, as ascending fractions of the "
        "training. Only this schedule has milestones, and it needs them.",
    )
    decay: float = Field(0.1, gt=0, lt=1, description="Factor of each drop of the schedule `step`.")
    device: Annotated[Literal["auto", "cpu", "cuda"], Decides.EFFORT] = Field(
        "auto", description="Device to train on. `auto`: CUDA if there is a GPU, else the CPU."
    )
    precision: Annotated[Literal["auto", "float32", "tf32", "bfloat16"], Decides.PRECISION] = Field(
        "auto",
        description="Precision of matrix products and convolutions. `auto`: bfloat16 if the device "
        "has arithmetic for it and no loss of accuracy was found with the network "
        "(docs/results.md), else float32. Attacks are always computed in float32.",
    )
    engine: Annotated[Literal["auto", "sequential", "parallel", "fused"], Decides.EFFORT] = Field(
        "auto",
        description="How trainings are done. `sequential`: one after another; `parallel`: in "
        "`workers` processes; `fused`: many as one program, in `workers` processes; `auto`: chosen "
        "by device and network. The report names the choice.",
    )
    workers: Annotated[int, Decides.EFFORT] = Field(
        0,
        ge=0,
        le=1024,
        description="Number of processes in a task that trains; 0: one for each `threads` CPUs, or "
        "one on a GPU. All processes of a task share its GPU.",
    )
    threads: Annotated[int, Decides.EFFORT] = Field(
        1,
        ge=1,
        le=1024,
        description="Number of CPU threads of each process. Results on a CPU are exact for a given "
        "number.",
    )
    compile: Annotated[bool, Decides.EFFORT] = Field(
        False,
        description="Compile the step with torch.compile, once for all candidates of a process. "
        "Only for the engines `sequential` and `parallel`.",
    )

    @property
    def adaptive(self) -> bool:
        """Whether the optimizer undoes the scale of the gradient, and so that of the loss."""
        return self.optimizer != "sgd"

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide what a training computes, except for the precision.

        A setting is left out if it has the value that it had before there was the setting.
        """
        return {
            key: value
            for key, value in self.model_dump().items()
            if self.decision(key) is Decides.FITNESS and Former(_scalar(value)) != self.former(key)
        }

    def check_data(self, samples: int) -> None:
        """Refuse a batch that is larger than the training split.

        Args:
            samples: number of training samples.

        Raises:
            InputError: the batch is larger.
        """
        if self.batch_size > samples:
            raise InputError(
                f"training.batch_size: {self.batch_size} is more than the {samples} training "
                "samples"
            )

    @field_validator("betas")
    @classmethod
    def _betas_are_decays(cls, values: list[float]) -> list[float]:
        if len(values) != 2 or not all(0 <= value < 1 for value in values):
            raise ValueError("should be two numbers, at least 0 and below 1")
        return [float(value) for value in values]

    @field_validator("milestones")
    @classmethod
    def _milestones_are_fractions(cls, values: list[float]) -> list[float]:
        if not all(0 < value < 1 for value in values):
            raise ValueError("should be fractions between 0 and 1")
        return [float(value) for value in _ascending(values)]

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSettings":
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("milestones: are needed by the step schedule, and by no other")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: should be below steps ({self.steps})")
        self._check_optimizer()
        if self.compile and self.engine == "fused":
            raise ValueError("compile: is for the engines sequential and parallel")
        if self.timeout and not self.function:
            raise ValueError("timeout: is for a training.function")
        if self.timeout and self.engine == "sequential":
            raise ValueError("timeout: needs a process for each training; engine should be auto")
        return self

    def _check_optimizer(self) -> None:
        """Refuse settings of another optimizer than the one that trains."""
        if self.adaptive and self.momentum != _MOMENTUM:
            raise ValueError(f"momentum: is of sgd; with {self.optimizer}, leave it at {_MOMENTUM}")
        if self.adaptive and not self.nesterov:
            raise ValueError(f"nesterov: is of sgd; with {self.optimizer}, leave it at true")
        if not self.adaptive and tuple(self.betas) != _BETAS:
            defaults = ", ".join(map(str, _BETAS))
            raise ValueError(f"betas: are of adam and adamw; with sgd, leave them at {defaults}")


class AugmentationSettings(Section):
    """Random changes of the training images, in this order, for candidates and baselines alike."""

    decides = Decides.FITNESS

    crop_padding: int = Field(
        0,
        ge=0,
        le=256,
        description="Number of black pixels (zeros) around an image, from which a window of the "
        "image's size is cut at random; 0: no crop.",
    )
    flip: bool = Field(
        False, description="Mirror an image left to right with a probability of one half."
    )
    cutout: int = Field(
        0,
        ge=0,
        le=4096,
        description="Side in pixels of a square that is blanked at a random place (Cutout); "
        "0: none.",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability that the images of a batch and their targets are mixed (CutMix).",
    )

    def check_data(self, features: int) -> None:
        """Refuse changes of images for data that are features.

        Args:
            features: number of features; 0 for images.

        Raises:
            InputError: a change is configured, and the data are features.
        """
        changes = [key for key, value in self if value]
        if features and changes:
            raise InputError(
                f"augmentation.{changes[0]}: changes images, and the data have {features} features "
                "and no images: should be left out"
            )


class EvaluationSettings(Section):
    """The short training that gives a candidate its fitness."""

    decides = Decides.FITNESS

    steps: int = Field(
        300,
        ge=1,
        le=_MOST_STEPS,
        description="Number of steps of a short training, at most `training.steps`.",
    )
    attempts: int = Field(
        1,
        ge=1,
        le=100,
        description="Number of short trainings of a candidate, which are averaged. All candidates "
        "of a generation share the seeds.",
    )
    anneal: bool = Field(
        True,
        description="Run the whole schedule of the learning rate in a short training. `false`: run "
        "its first steps, as published.",
    )
    give_up_step: int = Field(
        100,
        ge=0,
        le=_MOST_STEPS,
        description="Step at which a candidate that has not learned is given up, at most `steps`; "
        "0: never.",
    )
    give_up_gain: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Gain of validation accuracy above chance that counts as having learned.",
    )
    max_attempts: int = Field(
        0,
        ge=0,
        le=100,
        description="Largest number of short trainings for the leading half of a generation, which "
        "gets more of them as long as the noise of their fitness exceeds its spread; 0: no more "
        "than `attempts`.",
    )
    adversarial_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Weight in the fitness of the validation accuracy under attack.",
    )
    adversarial_epsilon: float = Field(
        0.03,
        gt=0,
        le=1,
        description="Radius of this attack in l-infinity, in the units of `attack.epsilons`.",
    )
    adversarial_steps: Annotated[int, Former(1)] = Field(
        1,
        ge=1,
        le=1000,
        description="Number of steps of this attack. 1: FGSM. More: FGSM, and then PGD of so many "
        "steps on DLR and on cross-entropy, on the images that are left.",
    )
    folds: Annotated[int, Former(0)] = Field(
        5,
        ge=0,
        le=100,
        description="Number of ways (folds) in which training and validation images are divided "
        "anew, by class, into parts of the same sizes. Each attempt of a candidate, of a baseline "
        "that is tuned and of a finalist has another fold; all losses share the folds. 0: every "
        "attempt has the one training and the one validation split. A validation split of the "
        "source is always kept, without folds.",
    )
    score: Annotated[
        str,
        like("[^ ].{0,38}[^ ]|[^ ]", "the name of a score, of at most 40 characters, such as F1"),
        Former("accuracy"),
    ] = Field(
        "accuracy",
        description="What is measured on validation and test images: the fitness of a candidate is "
        "its score, and the losses are compared by it. `balanced-accuracy` and `macro-f1`: means "
        "over the classes, for classes of different sizes. `negative-log-likelihood`: the score is "
        "exp(-NLL), the geometric mean of the probability of the right class. `ece`: the score is "
        "1 - ECE, the expected calibration error (15 bins); see docs/method.md before using it. "
        "Attacks after the search are always measured by accuracy. With `training.function`: any "
        "name for what it returns. These names, and those that end with `accuracy`, `F1`, `IoU`, "
        "`Dice`, `precision` or `recall`, are of a score in [0, 1], shown in percent.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluationSettings":
        if self.folds == 1:
            raise ValueError("folds: should be 0, or 2 to 100: one fold would be one split")
        if self.give_up_step > self.steps:
            raise ValueError(f"give_up_step: should be at most steps ({self.steps}), or 0")
        if 0 < self.max_attempts < max(2, self.attempts):
            raise ValueError(
                f"max_attempts: should be 0, or at least attempts ({self.attempts}) and 2"
            )
        if self.max_attempts and self.attempts == 1:
            raise ValueError(
                "attempts: should be at least 2 with max_attempts: noise is seen in their spread"
            )
        if self.adversarial_steps > 1 and not self.adversarial_weight:
            raise ValueError(
                "adversarial_steps: needs an adversarial_weight above 0; without one, there is no "
                "attack"
            )
        return self

    def folds_on(self, provenance: Mapping[str, str]) -> int:
        """Return the number of folds of a data set; 0 if every attempt has the validation split.

        A validation split of the source is the user's choice. It is kept, and there are no folds.

        Args:
            provenance: of the data set.
        """
        return 0 if provenance.get("validation_split") == "of the source" else self.folds


class SearchSettings(Section):
    """CMA-ES over the coefficients of the loss."""

    decides = Decides.CANDIDATES

    family: Annotated[Literal["taylor", "taylor-log"], Former("taylor")] = Field(
        "taylor-log",
        description="Losses that are searched. `taylor`: the polynomial, as published; "
        "`taylor-log`: the polynomial and a weight of cross-entropy, which is one coordinate more.",
    )
    coordinates: Literal["dynamics", "reduced", "theta"] = Field(
        "dynamics",
        description="Coordinates of the search. `dynamics`: what a loss does in training (scale, "
        "end, bend, collapse, log_share; docs/method.md); `reduced`: the four numbers that decide "
        "a training (cy', chy, ch, chh); `theta`: all k(k+1)/2 + 2 numbers of theta for order k, "
        "as published. In the last two, the coordinate of `taylor-log` is the logarithm of the "
        "weight.",
    )
    order: int = Field(
        3,
        ge=2,
        le=8,
        description="Order of the polynomial. All coordinates but `theta` need order 3.",
    )
    objectives: Annotated[Literal["fitness", "accuracy-and-robustness"], Former("fitness")] = Field(
        "fitness",
        description="What CMA-ES ranks candidates by. `fitness`: one number; "
        "`accuracy-and-robustness`: the validation accuracy and that under attack, by Pareto "
        "fronts (docs/method.md). It needs `evaluation.adversarial_weight`, which still decides "
        "who is a finalist and who the champion.",
    )
    popsize: int = Field(
        8, ge=2, le=10_000, description="Number of candidates of a generation that are evaluated."
    )
    sigma: float = Field(
        1.2,
        gt=0,
        le=1000,
        description="Step size of CMA-ES in the first generation, in the units of the "
        "coordinates: the widths of the axes in `dynamics`, 1 in the others.",
    )
    mean: Numbers = Field(
        [],
        description="Mean of CMA-ES in the first generation, a number for each coordinate. Empty: "
        "the better of two starts (`dynamics`; docs/method.md), near cross-entropy (`reduced`: 4, "
        "-4, -1, 0) or 0 (`theta`).",
    )
    filters: Names = Field(
        ["learnable", "stable"],
        description="Filters that candidates have to pass: one or more of `learnable`, `stable` "
        "and `published`, or `none`.",
    )
    on_reject: Literal["resample", "penalize"] = Field(
        "resample",
        description="What follows on a rejected candidate. `resample`: another one is drawn, up to "
        "`max_draws`; `penalize`: the candidate counts with fitness 0, as published.",
    )
    max_draws: Annotated[int, Decides.EFFORT] = Field(
        1000,
        ge=2,
        le=1_000_000,
        description="Largest number of candidates drawn for one generation, at least `popsize`.",
    )
    generations: Annotated[int, Decides.EFFORT] = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Number of generations of the whole search, in as many runs as it takes, at "
        "least `pipeline.generations`; 0: those of one run.",
    )
    renew: Annotated[bool, Decides.EFFORT] = Field(
        False,
        description="Begin another search, warm-started from the last one, when a run finds the "
        "last one finished.",
    )

    @field_validator("filters")
    @classmethod
    def _filters_exist(cls, values: list[str]) -> list[str]:
        known = ("published", "learnable", "stable", "none")
        for value in values:
            if value not in known:
                raise ValueError(
                    f"unknown filter {value!r}; there are {', '.join(known)}{meant(value, known)}"
                )
        if not values or ("none" in values and len(values) > 1) or len(set(values)) < len(values):
            raise ValueError(
                "should be none, or one or more different ones of published, learnable, stable"
            )
        return values

    @field_validator("mean")
    @classmethod
    def _mean_is_near(cls, values: list[float]) -> list[float]:
        if any(abs(value) > _FARTHEST for value in values):
            raise ValueError(f"should be numbers between -{_FARTHEST:,} and {_FARTHEST:,}")
        return values

    @property
    def two_objectives(self) -> bool:
        """Whether candidates are ranked by accuracy and robustness."""
        return self.objectives != "fitness"

    @property
    def dimensions(self) -> int:
        """The number of coordinates; with two classes, ``dynamics`` uses two of them less.

        It is k(k+1)/2 + 2 for a theta of order k, else 4, and one more in the family
        ``taylor-log``.
        """
        polynomial = self.order * (self.order + 1) // 2 + 2 if self.coordinates == "theta" else 4
        return polynomial + (self.family == "taylor-log")

    @model_validator(mode="after")
    def _consistent(self) -> "SearchSettings":
        if self.coordinates != "theta" and self.order != 3:
            raise ValueError(
                f"order: the coordinates {self.coordinates} are those of order 3; use "
                "coordinates: theta"
            )
        if self.mean and len(self.mean) != self.dimensions:
            raise ValueError(f"mean: should have {self.dimensions} numbers, has {len(self.mean)}")
        if self.max_draws < self.popsize:
            raise ValueError(f"max_draws: should be at least popsize ({self.popsize})")
        return self


class BaselineSettings(Section):
    """The losses to beat; the learning rate of each is tuned on the validation split."""

    losses: Names = Field(
        ["cross-entropy", "label-smoothing", "squared-error"],
        description="Losses that the champion is compared with: one or more of `cross-entropy`, "
        "`label-smoothing` (cross-entropy with smoothed labels), `squared-error`, `baikal`, "
        "`generalised-cross-entropy` (q = 0.7), `symmetric-cross-entropy` (alpha = 0.1, beta = 1) "
        "and `mean-absolute-error`.",
    )
    learning_rates: Numbers = Field(
        [0.01, 0.03, 0.1, 0.3],
        description="Learning rates that every baseline is tuned over, above 0 and ascending.",
    )
    attempts: int = Field(
        5,
        ge=1,
        le=100,
        description="Number of trainings in full for each learning rate, and for each finalist; "
        "they are averaged.",
    )
    label_smoothing: Annotated[list[Fraction], BeforeValidator(_split_numbers)] = Field(
        [0.1],
        max_length=_MOST_ITEMS,
        description="Alphas that label smoothing is tuned over, together with the learning rates, "
        "ascending.",
    )

    @field_validator("losses")
    @classmethod
    def _losses_exist(cls, values: list[str]) -> list[str]:
        known = (
            "cross-entropy",
            "label-smoothing",
            "squared-error",
            "baikal",
            "generalised-cross-entropy",
            "symmetric-cross-entropy",
            "mean-absolute-error",
        )
        for value in values:
            if value not in known:
                raise ValueError(
                    f"unknown loss {value!r}; there are {', '.join(known)}{meant(value, known)}"
                )
        if not values or len(set(values)) < len(values):
            raise ValueError(f"should be one or more different ones of {', '.join(known)}")
        return values

    @field_validator("label_smoothing")
    @classmethod
    def _alphas_ascend(cls, values: list[float]) -> list[float]:
        if not values:
            raise ValueError("should be one or more numbers between 0 and 1")
        return _ascending(values)

    @field_validator("learning_rates")
    @classmethod
    def _rates_are_positive(cls, values: list[float]) -> list[float]:
        if not values or min(values) <= 0 or max(values) > HIGHEST_RATE:
            raise ValueError(f"should be one or more positive numbers, at most {HIGHEST_RATE:,}")
        return [float(value) for value in _ascending(values)]


class ChampionSettings(Section):
    """The final comparison, on the test split."""

    finalists: int = Field(
        4,
        ge=1,
        le=100,
        description="Number of losses that are trained in full to choose the champion, "
        "`baselines.attempts` times each: the mean of the search's last distribution, and the best "
        "candidates of the last generations. The best tuned baseline that is a Taylor loss, too, "
        "is one more. 1: the best candidate is the champion, as published.",
    )
    seeds: int = Field(
        10,
        ge=2,
        le=1000,
        description="Number of trainings in full of the champion and of each baseline that are "
        "tested.",
    )


class AttackSettings(Section):
    """A suite of attacks on networks of the champion and the baselines."""

    suite: Literal["quick", "apgd", "standard"] = Field(
        "apgd",
        description="Attacks, which take turns on the images that are left. `quick`: FGSM and PGD, "
        "on cross-entropy and on DLR; it leaves up to 5 points too many. `apgd`: these, and two "
        "attacks of AutoAttack, APGD on cross-entropy and towards targets. `standard`: these, and "
        "its other two, FAB and Square. A claim of robustness needs `standard`, which takes about "
        "five times as long as `apgd`.",
    )
    norm: Literal["linf", "l2"] = Field(
        "linf", description="Norm that perturbations are measured in: l-infinity or l2."
    )
    epsilons: Annotated[list[Radius], BeforeValidator(_split_radii)] = Field(
        [],
        max_length=_MOST_ITEMS,
        description="Radii of the attacks, such as 0.1 or 8/255; 0 is always added. Their unit is "
        "the full range of a pixel, or the standard deviation of a feature or channel if the data "
        "have no pixels; in `linf` at most 1. Empty: those that are usual with the data set and "
        "the norm (`taylorglo/attacks/radii.py`).",
    )
    pgd_steps: int = Field(20, ge=1, le=100_000, description="Number of steps of PGD.")
    pgd_restarts: int = Field(
        2,
        ge=1,
        le=10_000,
        description="Number of starts of PGD, the first one at the image itself.",
    )
    images: int = Field(
        500, ge=1, le=10_000_000, description="Largest number of test images to attack."
    )
    seeds: int = Field(
        3,
        ge=1,
        le=1000,
        description="Number of trained networks to attack for each loss, at most `champion.seeds`; "
        "by default fewer if that is below 3.",
    )

    @field_validator("epsilons")
    @classmethod
    def _with_zero(cls, values: list[float]) -> list[float]:
        return sorted({0.0, *values}) if values else []


@dataclass(frozen=True)
class Identity:
    """The settings that a study is begun with, by name: they cannot change within a search.

    ``candidates`` decide which candidates are drawn, before any is trained; ``fitness`` decide what
    a training computes; ``precision`` is the configured one, which ``auto`` leaves to the device.
    """

    PRECISION: ClassVar[str] = "training_precision"

    candidates: dict[str, Scalar]
    fitness: dict[str, Scalar]
    precision: str

    def flat(self) -> dict[str, Scalar]:
        """Return all settings in one mapping, as the study keeps them."""
        return {**self.candidates, **self.fitness, self.PRECISION: self.precision}


class SweepSettings(Section):
    """Everything that decides what a sweep computes."""

    name: Annotated[
        str,
        like(
            r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            "1 to 63 of a-z, 0-9 and hyphens, with no hyphen at either end, such as cifar10-wrn",
        ),
    ] = Field(
        "digits",
        description="Name of the sweep: of its study, its MLflow experiment and its folder in the "
        "store. At most 63 of a-z, 0-9 and hyphens.",
    )
    seed: Annotated[int, Decides.CANDIDATES] = Field(
        0,
        ge=0,
        lt=2**31,
        description="Seed of all randomness: splits, candidates, initial weights, order of the "
        "images.",
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

    @model_validator(mode="before")
    @classmethod
    def _functions_stop_themselves(cls, content: Any) -> Any:
        """Let the default of ``evaluation.give_up_step`` be 0 with a function of a user."""
        if not isinstance(content, dict):
            return content
        training, evaluation = content.get("training"), content.get("evaluation", {})
        # Anything else is a whole section already, or an error that the validation reports.
        if isinstance(training, dict) and isinstance(evaluation, dict) and training.get("function"):
            return {**content, "evaluation": {"give_up_step": 0, **evaluation}}
        return content

    @model_validator(mode="after")
    def _function_fits(self) -> "SweepSettings":
        if not self.training.function:
            if self.data.name == "own":
                raise ValueError("training.function: the data set 'own' needs one, which reads it")
            self._check_score()
            return self
        for path in self._without_effect():
            raise ValueError(f"{path}: has no effect with a training.function; leave it out")
        if self.search.on_reject == "penalize" and not scores.is_share(self.evaluation.score):
            raise ValueError(
                "search.on_reject: penalize gives fitness 0, which need not be the worst "
                f"{self.evaluation.score}; use resample"
            )
        return self

    def _check_score(self) -> None:
        """Refuse a score that the built-in training does not measure, or that misleads it."""
        score = self.evaluation.score
        if score not in scores.SCORES:
            *first, last = map(repr, scores.SCORES)
            raise ValueError(
                f"evaluation.score: should be {', '.join(first)} or {last}, unless "
                f"training.function measures it (got {quoted(score)}){meant(score, scores.SCORES)}"
            )
        if score == "ece" and not self.evaluation.give_up_step:
            raise ValueError(
                "evaluation.give_up_step: should be above 0 with score ece: a network that has "
                "learned nothing is well calibrated"
            )

    def _without_effect(self) -> Iterator[str]:
        """Yield the paths of settings that were given, and that a function of a user ignores."""
        ignored = (key for key in self.training.changed() if key not in _OF_FUNCTION)
        yield from (f"training.{key}" for key in ignored)
        if self.training.engine == "fused":
            yield "training.engine"
        yield from (f"augmentation.{key}" for key in self.augmentation.changed())
        for key in ("anneal", "adversarial_weight"):
            if key in self.evaluation.changed():
                yield f"evaluation.{key}"
        if self.search.two_objectives:
            yield "search.objectives"
        if self.evaluation.give_up_step:
            yield "evaluation.give_up_step"
        # On other data, the network that the function returns is attacked.
        if self.data.name == "own" and self.model.changed():
            yield "model.name"

    @model_validator(mode="before")
    @classmethod
    def _no_more_attacks_than_seeds(cls, values: Any) -> Any:
        """Attack as many networks of a loss as there are, if nobody says how many."""
        if not isinstance(values, Mapping):
            return values
        attack, champion = values.get("attack", {}), values.get("champion", {})
        if not isinstance(attack, Mapping) or not isinstance(champion, Mapping):
            return values
        seeds = champion.get("seeds")
        usual = AttackSettings.model_fields["seeds"].default
        if "seeds" in attack or type(seeds) is not int or not 0 < seeds < usual:
            return values
        return {**values, "attack": {**attack, "seeds": seeds}}

    @model_validator(mode="after")
    def _objectives_are_measured(self) -> "SweepSettings":
        if not self.search.two_objectives:
            return self
        if not self.evaluation.adversarial_weight:
            raise ValueError(
                "search.objectives: accuracy-and-robustness needs an evaluation.adversarial_weight "
                "above 0; without one, there is no attack"
            )
        if self.evaluation.max_attempts:
            raise ValueError(
                "evaluation.max_attempts: looks for noise in the order by fitness; with "
                "search.objectives accuracy-and-robustness it should be 0"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "SweepSettings":
        if self.evaluation.steps > self.training.steps:
            raise ValueError(
                f"evaluation.steps: should be at most training.steps ({self.training.steps})"
            )
        if not self.evaluation.anneal and self.training.warmup_steps >= self.evaluation.steps:
            raise ValueError(
                "training.warmup_steps: should be below evaluation.steps "
                f"({self.evaluation.steps}) with evaluation.anneal: false"
            )
        if self.attack.seeds > self.champion.seeds:
            raise ValueError(
                f"attack.seeds: should be at most champion.seeds ({self.champion.seeds})"
            )
        return self

    def check_rates(self) -> None:
        """Refuse the default learning rates, which are those of SGD, with another optimizer.

        Baselines that are tuned over them would all be weak, and no loss to beat.

        Raises:
            InputError: a learning rate is missing.
        """
        training, baselines = self.training, self.baselines
        if not training.adaptive:
            return
        defaults = TrainingSettings().learning_rate, BaselineSettings().learning_rates
        for name, value, default, example in (
            ("training.learning_rate", training.learning_rate, defaults[0], "0.001"),
            (
                "baselines.learning_rates",
                baselines.learning_rates,
                defaults[1],
                "[0.0003, 0.001, 0.003, 0.01]",
            ),
        ):
            if value == default:
                raise InputError(
                    f"{name}: the default is for sgd; {training.optimizer} needs another value, "
                    f"such as {example}"
                )

    def flat(self) -> dict[str, Scalar]:
        """Return every setting as one scalar by ``section_key``, as MLflow's parameters are."""
        return {name: value for name, value, _ in self._leaves()}

    def identity(self, data: str) -> Identity:
        """Return the settings that cannot change within a search.

        Args:
            data: the name and the checksum of the data.
        """
        leaves = list(self._leaves())
        former = former_values()

        def deciding(what: Decides) -> dict[str, Scalar]:
            return {
                name: value
                for name, value, decision in leaves
                if decision is what and (name, value) not in former[what].items()
            }

        candidates = {**deciding(Decides.CANDIDATES), "data": data}
        return Identity(candidates, deciding(Decides.FITNESS), self.training.precision)

    def _leaves(self) -> Iterator[tuple[str, Scalar, Decides]]:
        """Yield name, value and decision of every setting; a list becomes a text with commas."""
        for key, value in self:
            if not isinstance(value, Section):
                yield key, value, self.decision(key)
                continue
            for inner, leaf in value.model_dump().items():
                yield f"{key}_{inner}", _scalar(leaf), value.decision(inner)


def _scalar(value: Any) -> Scalar:
    """Return a setting as one scalar: a list as a text with commas."""
    scalar: Scalar = ", ".join(map(str, value)) if isinstance(value, list) else value
    return scalar


def former_values() -> dict[Decides, dict[str, Scalar]]:
    """Return the settings that studies of older versions do not name, by what they decide.

    Such a study was begun with these values. An identity leaves them out.
    """
    values: dict[Decides, dict[str, Scalar]] = {decision: {} for decision in Decides}
    sections = {key: value for key, value in SweepSettings() if isinstance(value, Section)}
    for key, section in sections.items():
        for inner in type(section).model_fields:
            if former := section.former(inner):
                values[section.decision(inner)][f"{key}_{inner}"] = former.value
    return values


Model = TypeVar("Model", bound=BaseModel)


def validated(
    model: type[Model], values: object, source: str, origins: Mapping[str, str] | None = None
) -> Model:
    """Validate ``values``.

    Args:
        model: the settings that they should be.
        values: nested mappings.
        source: where they come from, for the error.
        origins: where some of them come from instead, by their paths (``section.key``).

    Raises:
        InputError: listing every problem by its path, a line each.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for path, message in _problems(error, model):
            unknown = message.startswith(_UNKNOWN)
            place = [_origin(path, origins or {}, unknown=unknown) or source, *filter(None, [path])]
            lines.append(": ".join([*place, message]))
        raise InputError("\n".join(lines)) from None


def _origin(path: str, origins: Mapping[str, str], *, unknown: bool) -> str | None:
    """Return where the setting of a path comes from, or None if it is not among the origins.

    Args:
        path: of the setting.
        origins: by path.
        unknown: whether there is no such setting; then it may be the section of one that is given.
    """
    for given, origin in origins.items():
        if f"{path}.".startswith(f"{given}.") or (unknown and given.startswith(f"{path}.")):
            return origin
    return None


def _problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield the path of each setting that is wrong, and what is wrong with it."""
    for problem in error.errors(include_url=False):
        kind, place = problem["type"], problem["loc"]
        path = ".".join(_in_path(part) for part in place)
        message = _SUBJECT.sub("should", problem["msg"].removeprefix("Value error, "))
        message = _WORDS.get(kind, message).replace(" after validation", "")
        if kind == "value_error":
            head, colon, tail = message.partition(": ")
            # The validator of a whole section names the key itself.
            if colon and " " not in head:
                path, message = f"{path}.{head}".lstrip("."), tail
        given = problem["input"]
        shown = "" if isinstance(given, dict | BaseModel) else f" (got {quoted(given)})"
        hint = ""
        if kind == "extra_forbidden":
            hint = meant(place[-1], _keys(model, place[:-1]))
        elif kind == "literal_error":
            hint = meant(given, re.findall("'([^']+)'", problem["ctx"]["expected"]))
        yield path, f"{message}{shown}{hint}"


def _keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the keys of the group of settings at a path."""
    for part in path:
        annotation = None if isinstance(part, int) else model.model_fields[part].annotation
        # A list of groups has the group as the argument of its type.
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return list(model.model_fields)


def _in_path(part: str | int) -> str:
    """Return a part of a path, which may be any text in a file, as a person may see it."""
    text = printable(str(part))
    return text if len(text) <= MAX_QUOTE else quoted(text)
