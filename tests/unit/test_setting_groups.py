"""The groups of values that a pipeline hands over: they carry every setting."""

import inspect
from typing import Any

from google.protobuf import json_format, struct_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorglo.components.check_inputs import check_inputs
from taylorglo.components.prepare_dataset import prepare_dataset
from taylorglo.loss.dynamics import CLASSIC
from taylorglo.settings import Section, SweepSettings, validated
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


def one_of(*values: str) -> st.SearchStrategy[str]:
    return st.sampled_from(values)


@st.composite
def data_sections(draw: st.DrawFn) -> dict[str, Any]:
    names = ("digits", "mnist", "cifar10", "image-folder", "safetensors", "numpy", "table")
    name = draw(one_of(*names, "hugging-face"))
    files = name in ("image-folder", "hugging-face")
    size = draw(st.integers(0, 4096)) if files else 0
    columns = name in ("table", "hugging-face")
    values = st.fixed_dictionaries(
        {
            "name": st.just(name),
            "classes": st.just(0),
            "root": PATH,
            "label": PATH if columns else st.just("label"),
            "image_size": st.just(size),
            "interpolation": one_of(
                *(("bilinear", "bicubic", "nearest") if size else ("bilinear",))
            ),
            "color": one_of(*(("rgb", "gray", "auto") if files else ("rgb",))),
            "download": st.booleans(),
            "sha256": st.just("") | st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
            "validation_fraction": open_unit(),
            "test_fraction": open_unit(),
            "train_fraction": finite(0, 1, exclude_min=True),
            "imbalance": finite(1, 1e6),
            "label_noise": finite(0, 0.499),
            "label_noise_kind": one_of("symmetric", "pair-flip"),
        }
    )
    return draw(values)


@st.composite
def training_sections(draw: st.DrawFn, steps: int) -> dict[str, Any]:
    schedule = draw(one_of("constant", "step", "cosine", "one-cycle"))
    optimizer = draw(one_of("sgd", "adam", "adamw"))
    momentum = draw(finite(0, 0.99)) if optimizer == "sgd" else 0.9
    decays = st.lists(finite(0, 0.9999), min_size=2, max_size=2)
    engine = draw(one_of("auto", "sequential", "parallel", "fused"))
    return {
        "function": "",
        "timeout": 0,
        "steps": steps,
        "batch_size": draw(st.integers(1, 10**6)),
        "learning_rate": draw(finite(0, 100, exclude_min=True)),
        "optimizer": optimizer,
        "momentum": momentum,
        "nesterov": (optimizer != "sgd" or draw(st.booleans())) if momentum else False,
        "betas": [0.9, 0.999] if optimizer == "sgd" else draw(decays),
        "weight_decay": draw(finite(0, 10)),
        "weight_decay_on": draw(one_of("all", "weights")),
        "clip_norm": draw(finite(0, 1e6)),
        "ema": draw(finite(0, 0.9999)),
        "warmup_steps": draw(st.integers(0, steps - 1)),
        "schedule": schedule,
        "milestones": draw(ascending(open_unit(), 1)) if schedule == "step" else [],
        "decay": draw(open_unit()),
        "device": draw(one_of("auto", "cpu", "cuda")),
        "precision": draw(one_of("auto", "float32", "tf32", "bfloat16")),
        "engine": engine,
        "workers": draw(st.integers(0, 1024)),
        "threads": draw(st.integers(1, 64)),
        "compile": draw(st.booleans()) if engine != "fused" else False,
    }


def augmentation_sections() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "crop_padding": st.integers(0, 64),
            "flip": st.booleans(),
            "cutout": st.integers(0, 64),
            "cutmix": finite(0, 1),
        }
    )


@st.composite
def evaluation_sections(draw: st.DrawFn, most_steps: int) -> dict[str, Any]:
    steps, attempts = draw(st.integers(1, most_steps)), draw(st.integers(1, 100))
    give_up_step = draw(st.integers(0, steps))
    return {
        "steps": steps,
        "attempts": attempts,
        "anneal": draw(st.booleans()),
        "give_up_step": give_up_step,
        "give_up_gain": draw(finite(0, 0.999)),
        "max_attempts": draw(st.just(0) | st.integers(attempts, 100)) if attempts > 1 else 0,
        "adversarial_weight": draw(finite(0, 1)),
        "adversarial_epsilon": draw(finite(0, 1, exclude_min=True)),
        "folds": draw(st.just(0) | st.integers(2, 100)),
        "score": draw(one_of("accuracy", "balanced-accuracy", "macro-f1", "ece"))
        if give_up_step
        else draw(one_of("accuracy", "negative-log-likelihood")),
    }


@st.composite
def search_sections(draw: st.DrawFn) -> dict[str, Any]:
    coordinates = draw(one_of("dynamics", "reduced", "theta"))
    family = draw(one_of("taylor", "taylor-log"))
    order = draw(st.integers(2, 8)) if coordinates == "theta" else 3
    polynomial = order * (order + 1) // 2 + 2 if coordinates == "theta" else 4
    dimensions = polynomial + (family == "taylor-log")
    means = st.lists(finite(-1e6, 1e6), min_size=dimensions, max_size=dimensions)
    filters = st.lists(one_of("published", "learnable", "stable"), min_size=1, unique=True)
    popsize = draw(st.integers(2, 10_000))
    return {
        "family": family,
        "coordinates": coordinates,
        "order": order,
        "popsize": popsize,
        "sigma": draw(finite(0, 100, exclude_min=True)),
        "mean": draw(st.just([]) | means),
        "filters": draw(st.just(["none"]) | filters),
        "on_reject": draw(one_of("resample", "penalize")),
        "max_draws": draw(st.integers(popsize, 10**6)),
        "generations": draw(st.integers(0, 10**6)),
        "renew": draw(st.booleans()),
    }


def baseline_sections() -> st.SearchStrategy[dict[str, Any]]:
    losses = st.sampled_from(["label-smoothing", *CLASSIC])
    return st.fixed_dictionaries(
        {
            "losses": st.lists(losses, min_size=1, unique=True),
            "learning_rates": ascending(finite(0, 10, exclude_min=True), 1),
            "attempts": st.integers(1, 100),
            "label_smoothing": ascending(open_unit(), 1),
        }
    )


def attack_sections(most_seeds: int) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "suite": st.sampled_from(["quick", "apgd", "standard"]),
            "norm": st.sampled_from(["linf", "l2"]),
            "epsilons": ascending(finite(0, 1), 1),
            "pgd_steps": st.integers(1, 1000),
            "pgd_restarts": st.integers(1, 100),
            "images": st.integers(1, 10**6),
            "seeds": st.integers(1, most_seeds),
        }
    )


@st.composite
def valid(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the values of a whole sweep, away from the defaults."""
    steps, seeds = draw(st.integers(1, 10**6)), draw(st.integers(2, 1000))
    training, evaluation = draw(training_sections(steps)), draw(evaluation_sections(steps))
    if not evaluation["anneal"]:
        training["warmup_steps"] = min(training["warmup_steps"], evaluation["steps"] - 1)
    return {
        "name": draw(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)),
        "seed": draw(st.integers(0, 2**31 - 1)),
        "data": draw(data_sections()),
        "model": {"name": draw(PATH)},
        "training": training,
        "augmentation": draw(augmentation_sections()),
        "evaluation": evaluation,
        "search": draw(search_sections()),
        "baselines": draw(baseline_sections()),
        "champion": {"finalists": draw(st.integers(1, 100)), "seeds": seeds},
        "attack": draw(attack_sections(seeds)),
    }


@st.composite
def with_function(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the values of a sweep in which a function of a user trains on its own data."""
    values, default = draw(valid()), SweepSettings().model_dump()
    engine = draw(one_of("auto", "sequential", "parallel"))
    kept = ("steps", "learning_rate", "device", "workers", "threads")
    return {
        **values,
        "data": {**default["data"], "name": "own", "classes": draw(st.integers(2, 10**6))},
        "model": default["model"],
        "training": {
            **default["training"],
            **{key: values["training"][key] for key in kept},
            "function": draw(one_of("train:train", "my.package:fit")),
            "timeout": 0 if engine == "sequential" else draw(st.integers(0, 10**6)),
            "engine": engine,
        },
        "augmentation": default["augmentation"],
        "evaluation": {
            **values["evaluation"],
            "anneal": True,
            "give_up_step": 0,
            "adversarial_weight": 0.0,
            "score": draw(one_of("F1", "accuracy", "log likelihood")),
        },
        "search": {**values["search"], "on_reject": "resample"},
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
@given(valid() | with_function())
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


def test_a_whole_number_can_be_a_double() -> None:
    """A pipeline hands over every number of a group as a double."""
    sweep = SweepSettings.model_validate(in_protobuf({"training": {"batch_size": 64}}))
    assert sweep.training.batch_size == 64
    assert type(sweep.training.batch_size) is int


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
