"""Settings: what is accepted, and what is refused and how."""

import math
import re
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from taylorglo.attacks import SUITES
from taylorglo.attacks.ball import NORMS
from taylorglo.attacks.radii import usual_radii
from taylorglo.errors import InputError
from taylorglo.loss.dynamics import CLASSIC
from taylorglo.loss.filters import FILTERS
from taylorglo.loss.polynomial import length
from taylorglo.settings import (
    AttackSettings,
    BaselineSettings,
    SearchSettings,
    SweepSettings,
    validated,
)
from taylorglo_pipelines.config import Config


def test_the_defaults_are_valid() -> None:
    assert SweepSettings.model_validate(SweepSettings().model_dump()) == SweepSettings()
    assert SweepSettings.model_validate({}) == SweepSettings()


def test_lists_are_texts_with_commas_in_the_flat_form() -> None:
    flat = SweepSettings().flat()
    assert flat["search_filters"] == "learnable, stable"
    assert flat["search_mean"] == ""
    assert flat["baselines_learning_rates"] == "0.01, 0.03, 0.1, 0.3"
    assert flat["baselines_label_smoothing"] == "0.1"
    assert flat["baselines_losses"] == "cross-entropy, label-smoothing, squared-error"


def test_a_list_can_be_given_as_a_text_or_as_one_value() -> None:
    values = {
        "search": {"mean": " 4,-4 , -1e0,0 ", "family": "taylor"},
        "attack": {"epsilons": 0.5},
        "baselines": {"label_smoothing": 0.2, "losses": "label-smoothing, mean-absolute-error"},
    }
    sweep = SweepSettings.model_validate(values)
    assert sweep.baselines.label_smoothing == [0.2]
    assert sweep.baselines.losses == ["label-smoothing", "mean-absolute-error"]
    assert sweep.search.mean == [4.0, -4.0, -1.0, 0.0]
    assert sweep.attack.epsilons == [0.0, 0.5]


def test_yes_and_no_are_truth_values() -> None:
    """YAML reads them so."""
    content = yaml.safe_load("training: {nesterov: no}\nsearch: {renew: yes}")
    sweep = validated(SweepSettings, content, "sweep.yaml")
    assert (sweep.training.nesterov, sweep.search.renew) == (False, True)


BAD: list[tuple[str, object, str]] = [
    ("name", "Upper", "should be 1 to 63 of a-z, 0-9 and hyphens"),
    ("name", "", "should be 1 to 63"),
    ("name", "a" * 64, "should be 1 to 63"),
    ("name", "-a", "no hyphen at either end, such as cifar10-wrn"),
    ("name", "a\n", "no control characters"),
    ("name", "٣", "should be 1 to 63"),
    ("seed", -1, "greater than or equal to 0"),
    ("seed", 2**31, "less than 2147483648"),
    ("seed", 1.5, "should be a whole number"),
    ("seed", True, "should not be true or false"),
    ("data.name", "imagenet", "should be 'digits'"),
    ("data.name", "mnist", ""),
    ("data.sha256", "abc", "should be 64 hexadecimal digits"),
    ("data.root", "/data/\x1b[31m", "no control characters"),
    ("data.root", "a\0b", "no control characters"),
    ("data.root", "a" * 4097, "should have at most 4096 characters"),
    ("data.validation_fraction", 0, "greater than 0"),
    ("data.validation_fraction", 1, "less than 1"),
    ("data.test_fraction", 1.5, "less than 1"),
    ("data.train_fraction", 0, "greater than 0"),
    ("data.train_fraction", 1.01, "less than or equal to 1"),
    ("data.label", "", "at least 1 character"),
    ("data.image_size", -1, "greater than or equal to 0"),
    ("data.image_size", 4097, "less than or equal to 4096"),
    ("data.interpolation", "lanczos", "should be 'bilinear'"),
    ("data.color", "bgr", "should be 'rgb'"),
    ("data.download", "perhaps", "should be true or false"),
    ("model.name", "", "at least 1 character"),
    ("training.steps", 0, "greater than or equal to 1"),
    ("training.steps", True, "should not be true or false"),
    ("training.steps", 10**30, "less than or equal to 100000000"),
    ("training.steps", 10**400, "less than or equal to 100000000"),
    ("training.learning_rate", 1e308, "less than or equal to 1000000"),
    ("training.threads", 10**9, "less than or equal to 1024"),
    ("training.milestones", [0.001 * i for i in range(1, 200)], "at most 100 items"),
    ("search.sigma", 1e308, "less than or equal to 1000"),
    ("search.mean", [1e300, 0, 0, 0], "numbers between -1,000,000 and 1,000,000"),
    ("baselines.learning_rates", [0.1, 1e300], "at most 1,000,000"),
    ("training.batch_size", 0, "greater than or equal to 1"),
    ("training.batch_size", 64.5, "should be a whole number"),
    ("training.learning_rate", 0, "greater than 0"),
    ("training.learning_rate", math.nan, "finite number"),
    ("training.learning_rate", math.inf, "finite number"),
    ("training.learning_rate", "fast", "should be a number"),
    ("training.momentum", 1, "less than 1"),
    ("training.momentum", -0.1, "greater than or equal to 0"),
    ("training.weight_decay", -1e-9, "greater than or equal to 0"),
    ("training.schedule", "exponential", "should be 'constant'"),
    ("training.decay", 1, "less than 1"),
    ("training.milestones", [0.5, 1.0], "fractions between 0 and 1"),
    ("training.milestones", [0.5, 0.5], "ascending order"),
    ("training.milestones", [0.7, 0.5], "ascending order"),
    ("training.device", "tpu", "should be 'auto'"),
    ("training.threads", 0, "greater than or equal to 1"),
    ("augmentation.crop_padding", -1, "greater than or equal to 0"),
    ("augmentation.crop_padding", True, "should not be true or false"),
    ("augmentation.flip", "perhaps", "should be true or false"),
    ("augmentation.cutout", -1, "greater than or equal to 0"),
    ("augmentation.cutout", 0.5, "should be a whole number"),
    ("augmentation.cutmix", -0.1, "greater than or equal to 0"),
    ("augmentation.cutmix", 1.1, "less than or equal to 1"),
    ("evaluation.steps", 0, "greater than or equal to 1"),
    ("evaluation.attempts", 0, "greater than or equal to 1"),
    ("evaluation.attempts", 101, "less than or equal to 100"),
    ("evaluation.give_up_step", -1, "greater than or equal to 0"),
    ("evaluation.give_up_gain", 1, "less than 1"),
    ("search.coordinates", "polar", "should be 'dynamics', 'reduced' or 'theta'"),
    ("search.family", "fourier", "should be 'taylor' or 'taylor-log'"),
    ("search.order", 1, "greater than or equal to 2"),
    ("search.order", 9, "less than or equal to 8"),
    ("search.popsize", 1, "greater than or equal to 2"),
    ("search.sigma", 0, "greater than 0"),
    ("search.sigma", -1.2, "greater than 0"),
    ("search.mean", [1, math.nan, 1, 1], "finite number"),
    ("search.mean", [True, 1, 1, 1], "should not be true or false"),
    ("search.mean", ["4", "-4", "-1", "0"], "should be numbers, without quotes"),
    ("attack.epsilons", ["0.1"], "should be numbers, without quotes"),
    ("attack.epsilons", ["8/0"], "8/0 divides by zero"),
    ("attack.epsilons", ["1/2/3"], "should be numbers, without quotes"),
    ("attack.norm", "l1", "should be 'linf' or 'l2'"),
    (
        "search.filters",
        ["lernable"],
        "unknown filter 'lernable'; there are published, learnable, stable, none",
    ),
    ("search.filters", [], "one or more different ones"),
    ("search.filters", ["none", "stable"], "should be none, or"),
    ("search.filters", "stable, stable", "one or more different ones"),
    ("search.on_reject", "ignore", "should be 'resample'"),
    ("search.max_draws", 1, "greater than or equal to 2"),
    ("baselines.learning_rates", [], "one or more positive numbers"),
    ("baselines.learning_rates", [0, 0.1], "one or more positive numbers"),
    ("baselines.learning_rates", [0.1, 0.01], "ascending order"),
    ("baselines.learning_rates", [True], "should not be true or false"),
    ("baselines.label_smoothing", 0, "greater than 0"),
    ("baselines.label_smoothing", 1, "less than 1"),
    ("baselines.label_smoothing", [0.1, 1.0], "less than 1"),
    ("baselines.label_smoothing", [0.2, 0.1], "ascending order"),
    ("baselines.label_smoothing", [0.1, 0.1], "without repeats"),
    ("baselines.label_smoothing", [], "should be one or more numbers between 0 and 1"),
    ("baselines.label_smoothing", ["0.1"], "should be numbers, without quotes"),
    ("baselines.label_smoothing", True, "should not be true or false"),
    ("baselines.label_smoothing", [i / 200 for i in range(1, 150)], "at most 100 items"),
    (
        "baselines.losses",
        ["cross-entropy", "hinge"],
        "unknown loss 'hinge'; there are cross-entropy, label-smoothing, squared-error, baikal, "
        "generalised-cross-entropy, symmetric-cross-entropy, mean-absolute-error",
    ),
    ("baselines.losses", "generalized-cross-entropy", "unknown loss 'generalized-cross-entropy'"),
    ("baselines.losses", [], "one or more different ones of cross-entropy, label-smoothing"),
    ("baselines.losses", "baikal, baikal", "one or more different ones"),
    ("baselines.losses", [1], "should be a text"),
    ("champion.finalists", 0, "greater than or equal to 1"),
    ("champion.seeds", 1, "greater than or equal to 2"),
    ("attack.epsilons", [0.1, 2], "less than or equal to 1"),
    ("attack.epsilons", 2, "less than or equal to 1"),
    ("attack.epsilons", "-0.1", "greater than or equal to 0"),
    ("attack.pgd_steps", 0, "greater than or equal to 1"),
    ("attack.images", 0, "greater than or equal to 1"),
    ("attack.seeds", 0, "greater than or equal to 1"),
    ("data.folder", "x", "unknown key"),
    ("serach", {"popsize": 4}, "unknown key"),
    ("training", None, "should be a group of settings"),
    ("model", "mlp", "should be a group of settings"),
]


def nested(path: str, value: object) -> dict[str, object]:
    section, _, key = path.partition(".")
    return {section: {key: value}} if key else {section: value}


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_a_bad_value_is_refused_by_its_path(path: str, value: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(SweepSettings, nested(path, value), "sweep.yaml")
    (line,) = str(caught.value).splitlines()
    where = "data.root" if value == "mnist" else path
    assert line.startswith((f"sweep.yaml: {where}: ", f"sweep.yaml: {where}."))
    assert message in line
    assert "pydantic" not in line
    assert "Value error" not in line


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("serach", {}, "search"),
        ("training.step", 3, "steps"),
        ("data.name", "Digits", "digits"),
        ("training.optimizer", "sdg", "sgd"),
        ("search.filters", "lernable", "learnable"),
        ("baselines.losses", ["baikl"], "baikal"),
        ("evaluation.score", "acuracy", "accuracy"),
    ],
)
def test_a_misspelt_name_is_followed_by_the_one_that_was_meant(
    path: str, value: object, name: str
) -> None:
    with pytest.raises(InputError, match=rf"; did you mean '{name}'\?"):
        validated(SweepSettings, nested(path, value), "sweep.yaml")


# Some of each type that YAML has.
ODD: list[object] = [None, True, -1, 10**400, 1.5, math.inf, "", "ten", [], [[]], [{}], ["x"]]
ODD += [
    {},
    {"a": {}},
    {1: 2},
    "1" * 5000,
    "x" * 5000,
    ["a"] * 200,
    {str(n): "" for n in range(200)},
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_no_message_is_in_the_words_of_the_library_that_validates(value: object) -> None:
    words = re.compile(
        r"valid |unable|pars|instance|boolean|integer|Input|after validation|\bstring"
    )
    for section, field in Config.model_fields.items():
        keys = getattr(type(field.default), "model_fields", {})
        for path in [section, *(f"{section}.{key}" for key in keys)]:
            try:
                validated(Config, nested(path, value), "sweep.yaml")
            except InputError as error:
                message = re.sub(r"\(got .*", "", str(error))
                assert not words.search(message), message


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"evaluation": {"steps": 301}, "training": {"steps": 300}},
            "evaluation.steps: should be at most training.steps (300)",
        ),
        (
            {"attack": {"seeds": 6}, "champion": {"seeds": 5}},
            "attack.seeds: should be at most champion.seeds (5)",
        ),
        (
            {"search": {"popsize": 20, "max_draws": 19}},
            "search.max_draws: should be at least popsize (20)",
        ),
        ({"search": {"mean": [0.0] * 8}}, "search.mean: should have 5 numbers, has 8"),
        (
            {"search": {"mean": [0.0] * 8, "coordinates": "theta", "order": 4}},
            "search.mean: should have 13 numbers, has 8",
        ),
        (
            {"search": {"order": 4}},
            "search.order: the coordinates dynamics are those of order 3; use coordinates: theta",
        ),
        (
            {"training": {"schedule": "step"}},
            "training.milestones: are needed by the step schedule, and by no other",
        ),
        (
            {"training": {"milestones": [0.5]}},
            "training.milestones: are needed by the step schedule, and by no other",
        ),
        ({"training": {"momentum": 0}}, "training.nesterov: needs a momentum above 0"),
        (
            {"training": {"optimizer": "lion"}},
            "training.optimizer: should be 'sgd', 'adam' or 'adamw' (got 'lion')",
        ),
        (
            {"training": {"optimizer": "adam", "momentum": 0.8}},
            "training.momentum: is of sgd; with adam, leave it at 0.9",
        ),
        (
            {"training": {"optimizer": "adamw", "nesterov": False}},
            "training.nesterov: is of sgd; with adamw, leave it at true",
        ),
        (
            {"training": {"betas": [0.8, 0.9]}},
            "training.betas: are of adam and adamw; with sgd, leave them at 0.9, 0.999",
        ),
        (
            {"training": {"optimizer": "adam", "betas": [0.9, 1]}},
            "training.betas: should be two numbers, at least 0 and below 1 (got [0.9, 1])",
        ),
        (
            {"training": {"optimizer": "adam", "betas": [0.9]}},
            "training.betas: should be two numbers, at least 0 and below 1 (got [0.9])",
        ),
        (
            {"training": {"warmup_steps": -1}},
            "training.warmup_steps: should be greater than or equal to 0 (got -1)",
        ),
        (
            {"training": {"warmup_steps": 1500}},
            "training.warmup_steps: should be below steps (1500)",
        ),
        (
            {"training": {"warmup_steps": 300}, "evaluation": {"anneal": False}},
            "training.warmup_steps: should be below evaluation.steps (300) with "
            "evaluation.anneal: false",
        ),
        (
            {"search": {"objectives": "accuracy-and-robustness"}},
            "search.objectives: accuracy-and-robustness needs an evaluation.adversarial_weight "
            "above 0; without one, there is no attack",
        ),
        (
            {
                "search": {"objectives": "accuracy-and-robustness"},
                "evaluation": {"adversarial_weight": 0.5, "attempts": 2, "max_attempts": 4},
            },
            "evaluation.max_attempts: looks for noise in the order by fitness; with "
            "search.objectives accuracy-and-robustness it should be 0",
        ),
        (
            {"search": {"objectives": "robustness"}},
            "search.objectives: should be 'fitness' or 'accuracy-and-robustness' (got "
            "'robustness'); did you mean 'accuracy-and-robustness'?",
        ),
        ({"training": {"ema": 1}}, "training.ema: should be less than 1 (got 1)"),
        (
            {"evaluation": {"adversarial_steps": 5}},
            "evaluation.adversarial_steps: needs an adversarial_weight above 0; without one, there "
            "is no attack",
        ),
        (
            {"evaluation": {"score": "auc"}},
            "evaluation.score: should be 'accuracy', 'balanced-accuracy', 'macro-f1', "
            "'negative-log-likelihood' or 'ece', unless training.function measures it (got 'auc')",
        ),
        (
            {"evaluation": {"score": "ece", "give_up_step": 0}},
            "evaluation.give_up_step: should be above 0 with score ece: a network that has learned "
            "nothing is well calibrated",
        ),
        (
            {"data": {"name": "safetensors", "root": "x", "image_size": 8}},
            "data.image_size: is for the data sets image-folder and hugging-face, and data.name is "
            "safetensors",
        ),
        (
            {"data": {"color": "gray"}},
            "data.color: is for the data sets image-folder and hugging-face, and data.name is "
            "digits",
        ),
        (
            {"data": {"name": "image-folder", "root": "x", "label": "class"}},
            "data.label: is for the data sets table and hugging-face, and data.name is "
            "image-folder",
        ),
        (
            {"data": {"name": "image-folder", "root": "x", "interpolation": "nearest"}},
            "data.interpolation: needs an image_size",
        ),
        (
            {"data": {"name": "svhn"}},
            "data.root: data set 'svhn' needs a folder, a file or an s3:// URI",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    values: dict[str, object], line: str
) -> None:
    with pytest.raises(InputError) as caught:
        validated(SweepSettings, values, "sweep.yaml")
    assert str(caught.value) == f"sweep.yaml: {line}"


@pytest.mark.parametrize(
    "values",
    [
        {"evaluation": {"steps": 300}, "training": {"steps": 300}},
        {"attack": {"seeds": 5}, "champion": {"seeds": 5}},
        {"search": {"popsize": 20, "max_draws": 20}},
        {"training": {"momentum": 0, "nesterov": False}},
        {"training": {"warmup_steps": 1499, "ema": 0}},
        {"training": {"warmup_steps": 299}, "evaluation": {"anneal": False}},
        {"training": {"optimizer": "adam", "betas": [0, 0.9999]}},
        {"search": {"order": 4, "coordinates": "theta", "mean": [0.0] * 13}},
        {"attack": {"epsilons": [1]}},
    ],
)
def test_the_limits_themselves_are_valid(values: dict[str, object]) -> None:
    assert validated(SweepSettings, values, "sweep.yaml")


def test_all_problems_are_reported_at_once() -> None:
    values = {
        "seed": -1,
        "nonsense": 1,
        "search": {"popsize": 1, "sigma": 0, "filters": ["x"]},
        "attack": {"epsilons": [0.1, 2, math.nan]},
        "training": {"schedule": "step"},
    }
    with pytest.raises(InputError) as caught:
        validated(SweepSettings, values, "sweep.yaml")
    paths = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert sorted(paths) == [
        "attack.epsilons.1",
        "attack.epsilons.2",
        "nonsense",
        "search.filters",
        "search.popsize",
        "search.sigma",
        "seed",
        "training.milestones",
    ]


def test_problems_of_texts_are_reported_by_the_place_in_the_list() -> None:
    groups = {
        "search": {"popsize": 1},
        "attack": {"epsilons": "0.1, 2"},
        "data": {"nonsense": ""},
        "x": 1,
    }
    with pytest.raises(InputError) as caught:
        validated(SweepSettings, groups, "parameters")
    paths = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert sorted(paths) == ["attack.epsilons.1", "data.nonsense", "search.popsize", "x"]


@pytest.mark.parametrize("content", [[], "text", 3, None])
def test_what_is_no_group_of_settings_is_refused(content: object) -> None:
    with pytest.raises(InputError, match=r"^sweep\.yaml: should be a group of settings \(got "):
        validated(SweepSettings, content, "sweep.yaml")


def test_settings_cannot_be_changed() -> None:
    sweep = SweepSettings()
    with pytest.raises(ValidationError):
        sweep.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        sweep.search.popsize = 3  # type: ignore[misc]


@pytest.mark.parametrize("order", range(2, 9))
def test_the_dimensions_are_those_of_theta(order: int) -> None:
    for family in ("taylor", "taylor-log"):
        log = family == "taylor-log"
        settings = {"family": family, "order": order, "coordinates": "theta"}
        assert SearchSettings.model_validate(settings).dimensions == length(order, log=log)
        assert SearchSettings.model_validate({"family": family}).dimensions == 4 + log


def test_every_classic_loss_can_be_a_baseline() -> None:
    losses = ["label-smoothing", *CLASSIC]
    assert BaselineSettings(losses=losses).losses == losses


def test_every_filter_can_be_named() -> None:
    for name in FILTERS:
        assert SearchSettings(filters=[name]).filters == [name]


def test_epsilons_may_be_fractions_in_every_form_that_a_file_or_a_command_line_has() -> None:
    for given in (["2/255", 0.1, "8 / 255"], "2/255, 0.1, 8/255"):
        epsilons = AttackSettings.model_validate({"epsilons": given}).epsilons
        assert epsilons == [0.0, 2 / 255, 8 / 255, 0.1]
    assert AttackSettings(epsilons="8/255").epsilons == [0.0, 8 / 255]


def test_only_in_l2_may_an_epsilon_be_above_1() -> None:
    assert AttackSettings(norm="l2", epsilons=[2]).epsilons == [0.0, 2.0]
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        AttackSettings(epsilons=[2])


def test_the_settings_name_every_suite_and_norm() -> None:
    for key, names in (("suite", tuple(SUITES)), ("norm", NORMS)):
        assert get_args(AttackSettings.model_fields[key].annotation) == names
        assert all(usual_radii("digits", norm, pixels=True) for norm in NORMS)


def test_no_more_networks_are_attacked_than_are_trained_if_nobody_says_how_many() -> None:
    def attacked(**sections: object) -> int:
        return SweepSettings.model_validate(sections).attack.seeds

    usual = SweepSettings().attack.seeds
    assert attacked(champion={"seeds": 2}) == 2
    assert attacked(champion={"seeds": 2}, attack={"images": 5}) == 2
    assert attacked(champion={"seeds": usual + 1}) == usual
    assert attacked(champion={"seeds": 2}, attack={"seeds": 1}) == 1
    with pytest.raises(ValidationError, match=r"attack\.seeds: should be at most"):
        attacked(champion={"seeds": 2}, attack={"seeds": 3})
