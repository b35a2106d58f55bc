"""Settings: what is accepted, what is refused and how, and how a pipeline carries all of them."""

import inspect
import math
from typing import Any

import pytest
import yaml
from google.protobuf import json_format, struct_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from taylorglo.components.check_inputs import check_inputs
from taylorglo.components.prepare_dataset import prepare_dataset
from taylorglo.errors import InputError
from taylorglo.loss.filters import FILTERS
from taylorglo.loss.polynomial import length
from taylorglo.settings import SearchSettings, Section, SweepSettings, validated
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.pipeline.sweep import sweep_pipeline

PATH = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30
)


def finite(low: float, high: float, **options: Any) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, **options)


def open_unit() -> st.SearchStrategy[float]:
    return finite(0, 1, exclude_min=True, exclude_max=True)


def ascending(
    values: st.SearchStrategy[float], least: int, most: int = 5
) -> st.SearchStrategy[list[float]]:
    return st.lists(values, min_size=least, max_size=most, unique=True).map(sorted)


@st.composite
def valid(draw: st.DrawFn) -> dict[str, Any]:
    """The values of a whole sweep, away from the defaults."""
    schedule = draw(st.sampled_from(["constant", "step", "cosine", "one-cycle"]))
    momentum = draw(finite(0, 0.99))
    engine = draw(st.sampled_from(["auto", "sequential", "parallel", "fused"]))
    steps = draw(st.integers(1, 10**6))
    short = draw(st.integers(1, steps))
    attempts = draw(st.integers(1, 100))
    coordinates = draw(st.sampled_from(["reduced", "theta"]))
    order = 3 if coordinates == "reduced" else draw(st.integers(2, 8))
    dimensions = 4 if coordinates == "reduced" else order * (order + 1) // 2 + 2
    popsize = draw(st.integers(2, 10_000))
    seeds = draw(st.integers(2, 1000))
    dataset = draw(st.sampled_from(["digits", "mnist", "cifar10", "image-folder", "safetensors"]))
    named = st.sampled_from(["published", "learnable", "stable"])
    return {
        "name": draw(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)),
        "seed": draw(st.integers(0, 2**31 - 1)),
        "data": {
            "name": dataset,
            "root": draw(PATH),
            "download": draw(st.booleans()),
            "sha256": draw(st.just("") | st.from_regex(r"[0-9a-f]{64}", fullmatch=True)),
            "validation_fraction": draw(open_unit()),
            "test_fraction": draw(open_unit()),
            "train_fraction": draw(finite(0, 1, exclude_min=True)),
        },
        "model": {"name": draw(PATH)},
        "training": {
            "steps": steps,
            "batch_size": draw(st.integers(1, 10**6)),
            "learning_rate": draw(finite(0, 100, exclude_min=True)),
            "momentum": momentum,
            "nesterov": draw(st.booleans()) if momentum else False,
            "weight_decay": draw(finite(0, 10)),
            "schedule": schedule,
            "milestones": draw(ascending(open_unit(), 1)) if schedule == "step" else [],
            "decay": draw(open_unit()),
            "device": draw(st.sampled_from(["auto", "cpu", "cuda"])),
            "precision": draw(st.sampled_from(["auto", "float32", "tf32", "bfloat16"])),
            "engine": engine,
            "workers": draw(st.integers(0, 1024)),
            "threads": draw(st.integers(1, 64)),
            "compile": draw(st.booleans()) if engine != "fused" else False,
        },
        "augmentation": {
            "crop_padding": draw(st.integers(0, 64)),
            "flip": draw(st.booleans()),
            "cutout": draw(st.integers(0, 64)),
            "cutmix": draw(finite(0, 1)),
        },
        "evaluation": {
            "steps": short,
            "attempts": attempts,
            "anneal": draw(st.booleans()),
            "give_up_step": draw(st.integers(0, short)),
            "give_up_gain": draw(finite(0, 0.999)),
            "max_attempts": draw(st.just(0) | st.integers(attempts, 100)) if attempts > 1 else 0,
            "adversarial_weight": draw(finite(0, 1)),
            "adversarial_epsilon": draw(finite(0, 1, exclude_min=True)),
        },
        "search": {
            "coordinates": coordinates,
            "order": order,
            "popsize": popsize,
            "sigma": draw(finite(0, 100, exclude_min=True)),
            "mean": draw(
                st.just([]) | st.lists(finite(-1e6, 1e6), min_size=dimensions, max_size=dimensions)
            ),
            "filters": draw(st.just(["none"]) | st.lists(named, min_size=1, unique=True)),
            "on_reject": draw(st.sampled_from(["resample", "penalize"])),
            "max_draws": draw(st.integers(popsize, 10**6)),
            "generations": draw(st.integers(0, 10**6)),
            "renew": draw(st.booleans()),
        },
        "baselines": {
            "learning_rates": draw(ascending(finite(0, 10, exclude_min=True), 1)),
            "attempts": draw(st.integers(1, 100)),
            "label_smoothing": draw(open_unit()),
        },
        "champion": {"finalists": draw(st.integers(1, 100)), "seeds": seeds},
        "attack": {
            "epsilons": draw(ascending(finite(0, 1), 0)),
            "pgd_steps": draw(st.integers(1, 1000)),
            "pgd_restarts": draw(st.integers(1, 100)),
            "images": draw(st.integers(1, 10**6)),
            "seeds": draw(st.integers(1, seeds)),
        },
    }


def in_protobuf(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as a pipeline hands them over: every number is a double."""
    struct = json_format.ParseDict(values, struct_pb2.Struct())
    doubles: dict[str, Any] = json_format.MessageToDict(struct)
    return doubles


def as_text(sweep: SweepSettings) -> dict[str, Any]:
    """Return all settings as texts; a list is a text with commas."""
    flat = sweep.flat()
    groups: dict[str, Any] = {"name": flat.pop("name"), "seed": str(flat.pop("seed"))}
    for name, value in flat.items():
        section, _, key = name.partition("_")
        groups.setdefault(section, {})[key] = str(value)
    return groups


@settings(max_examples=40, deadline=None, derandomize=True)
@given(valid())
def test_the_groups_of_a_pipeline_carry_every_setting(values: dict[str, Any]) -> None:
    sweep = validated(SweepSettings, values, "sweep.yaml")
    groups = sweep.model_dump(mode="json")
    assert SweepSettings.model_validate(groups) == sweep
    assert all(type(value) in (str, int, float, bool) for value in sweep.flat().values())
    # The values have every setting that there is, and the sweep has all of these values.
    assert keys_of(values) == keys_of(SweepSettings().model_dump())
    for section, content in values.items():
        for key, value in content.items() if isinstance(content, dict) else []:
            setting = getattr(getattr(sweep, section), key)
            assert setting == (sorted({0.0, *value}) if key == "epsilons" else value)
    assert SweepSettings.model_validate(as_text(sweep)) == sweep
    handed_over = SweepSettings.model_validate(in_protobuf(groups))
    assert handed_over == sweep
    assert types_of(handed_over) == types_of(sweep)


def keys_of(values: dict[str, Any]) -> dict[str, set[str]]:
    """Return the keys of each section."""
    return {name: set(group) for name, group in values.items() if isinstance(group, dict)}


def types_of(sweep: SweepSettings) -> dict[str, type]:
    return {name: type(value) for name, value in sweep.flat().items()}


def test_the_defaults_are_valid() -> None:
    assert SweepSettings.model_validate(SweepSettings().model_dump()) == SweepSettings()
    assert SweepSettings.model_validate({}) == SweepSettings()


def test_lists_are_texts_with_commas_in_the_flat_form() -> None:
    flat = SweepSettings().flat()
    assert flat["search_filters"] == "learnable, stable"
    assert flat["search_mean"] == ""
    assert flat["baselines_learning_rates"] == "0.01, 0.03, 0.1, 0.3"


def test_a_list_can_be_given_as_a_text_or_as_one_value() -> None:
    values = {"search": {"mean": " 4,-4 , -1e0,0 "}, "attack": {"epsilons": 0.5}}
    sweep = SweepSettings.model_validate(values)
    assert sweep.search.mean == [4.0, -4.0, -1.0, 0.0]
    assert sweep.attack.epsilons == [0.0, 0.5]


def test_yes_and_no_are_truth_values() -> None:
    """YAML reads them so."""
    content = yaml.safe_load("training: {nesterov: no}\nsearch: {renew: yes}")
    sweep = validated(SweepSettings, content, "sweep.yaml")
    assert (sweep.training.nesterov, sweep.search.renew) == (False, True)


def test_a_whole_number_can_be_a_double() -> None:
    """A pipeline hands over every number of a group as a double."""
    sweep = SweepSettings.model_validate(in_protobuf({"training": {"batch_size": 64}}))
    assert sweep.training.batch_size == 64
    assert type(sweep.training.batch_size) is int


BAD: list[tuple[str, object, str]] = [
    ("name", "Upper", "pattern"),
    ("name", "", "pattern"),
    ("name", "a" * 64, "pattern"),
    ("name", "-a", "pattern"),
    ("seed", -1, "greater than or equal to 0"),
    ("seed", 2**31, "less than 2147483648"),
    ("seed", 1.5, "valid integer"),
    ("seed", True, "should not be true or false"),
    ("data.name", "imagenet", "should be 'digits'"),
    ("data.name", "mnist", ""),
    ("data.sha256", "abc", "pattern"),
    ("data.validation_fraction", 0, "greater than 0"),
    ("data.validation_fraction", 1, "less than 1"),
    ("data.test_fraction", 1.5, "less than 1"),
    ("data.train_fraction", 0, "greater than 0"),
    ("data.train_fraction", 1.01, "less than or equal to 1"),
    ("data.download", "perhaps", "valid boolean"),
    ("model.name", "", "at least 1 character"),
    ("training.steps", 0, "greater than or equal to 1"),
    ("training.steps", True, "should not be true or false"),
    ("training.batch_size", 0, "greater than or equal to 1"),
    ("training.batch_size", 64.5, "valid integer"),
    ("training.learning_rate", 0, "greater than 0"),
    ("training.learning_rate", math.nan, "finite number"),
    ("training.learning_rate", math.inf, "finite number"),
    ("training.learning_rate", "fast", "valid number"),
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
    ("augmentation.flip", "perhaps", "valid boolean"),
    ("augmentation.cutout", -1, "greater than or equal to 0"),
    ("augmentation.cutout", 0.5, "valid integer"),
    ("augmentation.cutmix", -0.1, "greater than or equal to 0"),
    ("augmentation.cutmix", 1.1, "less than or equal to 1"),
    ("evaluation.steps", 0, "greater than or equal to 1"),
    ("evaluation.attempts", 0, "greater than or equal to 1"),
    ("evaluation.attempts", 101, "less than or equal to 100"),
    ("evaluation.give_up_step", -1, "greater than or equal to 0"),
    ("evaluation.give_up_gain", 1, "less than 1"),
    ("search.coordinates", "polar", "should be 'reduced'"),
    ("search.order", 1, "greater than or equal to 2"),
    ("search.order", 9, "less than or equal to 8"),
    ("search.popsize", 1, "greater than or equal to 2"),
    ("search.sigma", 0, "greater than 0"),
    ("search.sigma", -1.2, "greater than 0"),
    ("search.mean", [1, math.nan, 1, 1], "finite number"),
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
        ({"search": {"mean": [0.0] * 8}}, "search.mean: should have 4 numbers, has 8"),
        (
            {"search": {"mean": [0.0] * 8, "coordinates": "theta", "order": 4}},
            "search.mean: should have 12 numbers, has 8",
        ),
        (
            {"search": {"order": 4}},
            "search.order: the reduced coordinates are those of order 3; use coordinates: theta",
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
        {"search": {"order": 4, "coordinates": "theta", "mean": [0.0] * 12}},
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
    assert SearchSettings(coordinates="theta", order=order).dimensions == length(order)
    assert SearchSettings().dimensions == 4


def test_every_filter_can_be_named() -> None:
    for name in FILTERS:
        assert SearchSettings(filters=[name]).filters == [name]


def parameters_of(component: Any, outputs: set[str]) -> dict[str, Any]:
    """Return the parameters of a component with their types, after a look at its specification."""
    signature = inspect.signature(component.python_func).parameters
    parameters = {name: p.annotation for name, p in signature.items() if name not in outputs}
    specification = component.component_spec
    assert set(specification.inputs) == set(parameters)
    assert set(specification.outputs) - {"Output"} == outputs
    # Only the settings have defaults.
    assert not any(parameter.optional for parameter in specification.inputs.values())
    return parameters


def section_parameters() -> dict[str, Any]:
    """Return a parameter for each field of a sweep: a section is a group of values."""
    types = {name: field.annotation for name, field in SweepSettings.model_fields.items()}
    return {
        name: dict[str, Any] if isinstance(kind, type) and issubclass(kind, Section) else kind
        for name, kind in types.items()
    }


def test_the_first_tasks_take_every_section_that_they_need() -> None:
    parameters = section_parameters()
    assert parameters_of(check_inputs, {"settings"}) == parameters
    prepared = {name: parameters[name] for name in ("seed", "data", "model")}
    outputs = {"description", "search_data", "full_data"}
    assert parameters_of(prepare_dataset, outputs) == {"version": str, **prepared}


def test_the_pipeline_takes_every_section_and_hands_it_to_the_first_task() -> None:
    pipeline = sweep_pipeline(Config())
    root = pipeline.pipeline_spec.root
    declared = root.input_definitions.parameters
    assert set(declared) == set(SweepSettings.model_fields)
    defaults = {name: declared[name].default_value for name in declared}
    values = {name: json_format.MessageToDict(value) for name, value in defaults.items()}
    assert SweepSettings.model_validate(values) == SweepSettings()
    handed_over = root.dag.tasks["check-inputs"].inputs.parameters
    sources = {name: handed_over[name].component_input_parameter for name in handed_over}
    assert sources == {name: name for name in SweepSettings.model_fields}
