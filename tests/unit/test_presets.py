"""Presets: the published trainings, and that what a file says itself comes before them."""

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorglo.errors import InputError
from taylorglo.networks import factory as models
from taylorglo.presets import PRESETS, Name, with_preset
from taylorglo.settings import AugmentationSettings, TrainingSettings, validated
from taylorglo_pipelines.config import Config, load

CONFIGS = Path(__file__).parents[2] / "pipelines" / "configs"
DATA = {"name": "cifar10", "root": "data"}
# By epochs of 351 batches of 128: 45 000 training images of CIFAR-10, and 72 that an epoch leaves
# out.
EPOCH = 351


def config(content: dict[str, Any]) -> Config:
    return validated(Config, {"data": DATA, **content}, "sweep.yaml")


def test_every_preset_is_of_a_network_that_there_is_and_can_be_chosen() -> None:
    assert set(PRESETS) == set(get_args(Name))
    assert set(PRESETS) <= set(models.BUILT_IN)
    assert set(get_args(Config.model_fields["preset"].annotation)) == {"", *PRESETS}


@pytest.mark.parametrize(
    ("name", "steps", "drops", "times", "rate", "momentum", "weight_decay", "augmented"),
    [
        (
            "allcnn-c",
            350 * EPOCH,
            [200 * EPOCH, 250 * EPOCH, 300 * EPOCH],
            0.1,
            0.01,
            0.9,
            1e-3,
            False,
        ),
        ("alexnet", 164 * EPOCH, [81 * EPOCH, 122 * EPOCH], 0.1, 0.1, 0.9, 5e-4, True),
        ("preresnet-20", 64_000, [32_000, 48_000], 0.1, 0.1, 0.9, 1e-4, True),
        (
            "wrn-16-8",
            200 * EPOCH,
            [60 * EPOCH, 120 * EPOCH, 160 * EPOCH],
            0.2,
            0.1,
            "nesterov",
            5e-4,
            True,
        ),
        (
            "wrn-28-5",
            200 * EPOCH,
            [60 * EPOCH, 120 * EPOCH, 160 * EPOCH],
            0.2,
            0.1,
            "nesterov",
            5e-4,
            True,
        ),
        (
            "pyramidnet-110-48",
            300 * EPOCH,
            [150 * EPOCH, 225 * EPOCH],
            0.1,
            0.1,
            "nesterov",
            1e-4,
            True,
        ),
    ],
)
def test_a_preset_and_data_are_a_configuration(
    name: str,
    steps: int,
    drops: list[int],
    times: float,
    rate: float,
    momentum: float | str,
    weight_decay: float,
    augmented: bool,
) -> None:
    found = config({"preset": name})
    training = found.training
    assert found.model.name == name
    assert (training.steps, training.batch_size, training.learning_rate) == (steps, 128, rate)
    assert (training.momentum, training.nesterov) == (0.9, momentum == "nesterov")
    assert (training.weight_decay, training.schedule, training.decay) == (
        weight_decay,
        "step",
        times,
    )
    assert [
        round(each * steps) for each in training.milestones
    ] == drops  # as the training loop places them
    assert found.augmentation == AugmentationSettings(crop_padding=4 * augmented, flip=augmented)
    # Nothing else is touched.
    others = found.model_dump(exclude={"preset", "model", "training", "augmentation"})
    assert others == config({}).model_dump(exclude={"preset", "model", "training", "augmentation"})
    assert (training.device, training.threads) == ("auto", 1)


def test_the_preset_of_mnist() -> None:
    found = config({"preset": "mnist-cnn"})
    assert found.model.name == "mnist-cnn"
    assert found.training == TrainingSettings(
        steps=20_000,
        batch_size=100,
        learning_rate=0.01,
        momentum=0,
        nesterov=False,
        weight_decay=0,
        schedule="constant",
    )
    assert found.augmentation == AugmentationSettings()


def test_the_published_configurations_are_those_of_the_papers() -> None:
    allcnn = load(CONFIGS / "cifar10-allcnnc-published.yaml")
    assert allcnn.model.name == "allcnn-c"
    assert allcnn.training == TrainingSettings(
        steps=122_850,
        batch_size=128,
        learning_rate=0.01,
        momentum=0.9,
        nesterov=False,
        weight_decay=0.001,
        schedule="step",
        milestones=[0.571429, 0.714286, 0.857143],
        decay=0.1,
        precision="float32",
    )
    assert allcnn.evaluation.steps == 12_285
    mnist = load(CONFIGS / "mnist-published.yaml")
    assert mnist.model.name == "mnist-cnn"
    assert (mnist.training.steps, mnist.training.batch_size, mnist.training.momentum) == (
        20_000,
        100,
        0,
    )
    assert mnist.training.precision == "float32"
    assert mnist.evaluation.steps == 2_000


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(get_args(Name)),
    training=st.fixed_dictionaries(
        {},
        optional={
            "steps": st.integers(300, 10**6),
            "batch_size": st.integers(1, 1000),
            "learning_rate": st.floats(0.001, 1),
            "nesterov": st.just(False),
            "weight_decay": st.floats(0, 0.1),
            "threads": st.integers(1, 8),
            "decay": st.floats(0.01, 0.99),
        },
    ),
    augmentation=st.fixed_dictionaries(
        {},
        optional={
            "crop_padding": st.integers(0, 8),
            "flip": st.booleans(),
            "cutout": st.integers(0, 16),
        },
    ),
    model=st.fixed_dictionaries(
        {}, optional={"name": st.sampled_from(["mlp", "package.module:factory"])}
    ),
)
def test_what_a_file_says_itself_is_kept_and_the_rest_is_the_presets(
    name: Name, training: dict[str, Any], augmentation: dict[str, Any], model: dict[str, Any]
) -> None:
    own = {"training": training, "augmentation": augmentation, "model": model}
    found, plain = config({"preset": name, **own}), config({"preset": name})
    for section, values in own.items():
        expected = {**getattr(plain, section).model_dump(), **values}
        assert getattr(found, section).model_dump() == expected


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_another_schedule_does_without_the_presets_milestones(schedule: str) -> None:
    found = config({"preset": "wrn-28-5", "training": {"schedule": schedule}}).training
    assert (found.schedule, found.milestones, found.decay) == (
        schedule,
        [],
        TrainingSettings().decay,
    )
    assert (found.steps, found.learning_rate) == (200 * EPOCH, 0.1)


def test_milestones_of_ones_own() -> None:
    found = config(
        {"preset": "wrn-28-5", "training": {"schedule": "step", "milestones": [0.5]}}
    ).training
    assert (found.milestones, found.decay) == ([0.5], 0.2)
    found = config(
        {"preset": "mnist-cnn", "training": {"schedule": "step", "milestones": [0.5]}}
    ).training
    assert (found.schedule, found.milestones, found.steps) == ("step", [0.5], 20_000)


def test_it_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("training: {learning_rate: 0.05}\n")
    found = load(file, ["preset=wrn-16-8", "training.batch_size=64"])
    assert (found.model.name, found.training.steps) == ("wrn-16-8", 200 * EPOCH)
    assert (found.training.learning_rate, found.training.batch_size) == (0.05, 64)
    file.write_text("preset: alexnet\n")
    assert load(file, ["preset=''"]) == Config()


def test_it_is_no_parameter_of_a_run_but_what_it_fills_in_is() -> None:
    parameters = config({"preset": "wrn-28-5"}).sweep.parameters()
    assert "preset" not in parameters
    assert (parameters["model_name"], parameters["training_steps"]) == ("wrn-28-5", 200 * EPOCH)
    assert parameters["training_milestones"] == "0.3, 0.6, 0.8"


@pytest.mark.parametrize("value", ["wrn-28-10", "Alexnet", 3, ["alexnet"], None])
def test_an_unknown_preset_is_refused_with_a_list_of_those_there_are(value: object) -> None:
    with pytest.raises(InputError) as caught:
        config({"preset": value})
    (line,) = str(caught.value).splitlines()
    assert line.startswith("sweep.yaml: preset: should be ")
    assert all(f"'{name}'" in line for name in PRESETS)
    assert line.endswith(f"(got {value!r})")


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({"training": None}, "training: should be a group of settings (got None)"),
        ({"model": "mlp"}, "model: should be a group of settings (got 'mlp')"),
        ({"training": {"stpes": 3}}, "training.stpes: unknown key (got 3)"),
        ({"training": {"steps": 100}}, "evaluation.steps: should be at most training.steps (100)"),
    ],
)
def test_mistakes_beside_a_preset_are_reported_as_ever(own: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        config({"preset": "wrn-28-5", **own})
    assert str(caught.value) == f"sweep.yaml: {line}"


def test_whole_sections_are_kept_as_they_are() -> None:
    section = TrainingSettings(steps=500)
    assert (
        Config.model_validate({"preset": "alexnet", "data": DATA, "training": section}).training
        == section
    )


def test_neither_the_content_nor_the_preset_is_changed() -> None:
    content: dict[str, Any] = {"training": {"steps": 7}, "seed": 3}
    before, presets = copy.deepcopy(content), copy.deepcopy(PRESETS)
    assert with_preset("alexnet", content)["training"]["steps"] == 7
    assert (content, PRESETS) == (before, presets)
