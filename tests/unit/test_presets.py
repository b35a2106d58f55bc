"""Presets: the published trainings, and that the values of a file come before those of a preset."""

import copy
from dataclasses import dataclass
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
# An epoch has 351 batches of 128 of the 45 000 training images of CIFAR-10, and leaves out 72
# images.
EPOCH = 351


@dataclass
class Published:
    """A training with drops of the learning rate, as a paper describes it."""

    preset: str
    steps: int
    drops: list[int]
    decay: float
    learning_rate: float
    nesterov: bool
    weight_decay: float
    augmented: bool


def config(content: dict[str, Any]) -> Config:
    return validated(Config, {"data": DATA, **content}, "sweep.yaml")


def test_every_preset_is_of_a_built_in_network_and_can_be_chosen() -> None:
    assert set(PRESETS) == set(get_args(Name))
    assert set(PRESETS) <= set(models.BUILT_IN)
    assert set(get_args(Config.model_fields["preset"].annotation)) == {"", *PRESETS}


WIDE_RESNET_DROPS = [60 * EPOCH, 120 * EPOCH, 160 * EPOCH]


@pytest.mark.parametrize(
    "published",
    [
        Published(
            preset="allcnn-c",
            steps=350 * EPOCH,
            drops=[200 * EPOCH, 250 * EPOCH, 300 * EPOCH],
            decay=0.1,
            learning_rate=0.01,
            nesterov=False,
            weight_decay=1e-3,
            augmented=False,
        ),
        Published(
            preset="alexnet",
            steps=164 * EPOCH,
            drops=[81 * EPOCH, 122 * EPOCH],
            decay=0.1,
            learning_rate=0.1,
            nesterov=False,
            weight_decay=5e-4,
            augmented=True,
        ),
        Published(
            preset="preresnet-20",
            steps=64_000,
            drops=[32_000, 48_000],
            decay=0.1,
            learning_rate=0.1,
            nesterov=False,
            weight_decay=1e-4,
            augmented=True,
        ),
        Published(
            preset="wrn-16-8",
            steps=200 * EPOCH,
            drops=WIDE_RESNET_DROPS,
            decay=0.2,
            learning_rate=0.1,
            nesterov=True,
            weight_decay=5e-4,
            augmented=True,
        ),
        Published(
            preset="wrn-28-5",
            steps=200 * EPOCH,
            drops=WIDE_RESNET_DROPS,
            decay=0.2,
            learning_rate=0.1,
            nesterov=True,
            weight_decay=5e-4,
            augmented=True,
        ),
        Published(
            preset="pyramidnet-110-48",
            steps=300 * EPOCH,
            drops=[150 * EPOCH, 225 * EPOCH],
            decay=0.1,
            learning_rate=0.1,
            nesterov=True,
            weight_decay=1e-4,
            augmented=True,
        ),
    ],
    ids=lambda published: published.preset,
)
def test_a_preset_and_data_are_a_configuration(published: Published) -> None:
    sweep = config({"preset": published.preset})
    training = sweep.training
    assert sweep.model.name == published.preset
    assert training.steps == published.steps
    assert training.batch_size == 128
    assert training.learning_rate == published.learning_rate
    assert training.momentum == 0.9
    assert training.nesterov == published.nesterov
    assert training.weight_decay == published.weight_decay
    assert training.schedule == "step"
    assert training.decay == published.decay
    # The training loop rounds in the same way.
    assert [round(share * training.steps) for share in training.milestones] == published.drops
    augmented = published.augmented
    assert sweep.augmentation == AugmentationSettings(crop_padding=4 * augmented, flip=augmented)
    # Nothing else is changed.
    changed = {"preset", "model", "training", "augmentation"}
    assert sweep.model_dump(exclude=changed) == config({}).model_dump(exclude=changed)
    assert training.device == "auto"
    assert training.threads == 1


def test_the_preset_of_mnist() -> None:
    sweep = config({"preset": "mnist-cnn"})
    assert sweep.model.name == "mnist-cnn"
    assert sweep.training == TrainingSettings(
        steps=20_000,
        batch_size=100,
        learning_rate=0.01,
        momentum=0,
        nesterov=False,
        weight_decay=0,
        schedule="constant",
    )
    assert sweep.augmentation == AugmentationSettings()


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
    assert mnist.training.steps == 20_000
    assert mnist.training.batch_size == 100
    assert mnist.training.momentum == 0
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
def test_values_of_a_file_are_kept_and_the_rest_is_the_presets(
    name: Name, training: dict[str, Any], augmentation: dict[str, Any], model: dict[str, Any]
) -> None:
    content = {"training": training, "augmentation": augmentation, "model": model}
    sweep = config({"preset": name, **content})
    plain = config({"preset": name})
    for section, values in content.items():
        expected = {**getattr(plain, section).model_dump(), **values}
        assert getattr(sweep, section).model_dump() == expected


@pytest.mark.parametrize("name", PRESETS)
def test_another_optimizer_does_without_the_rate_and_the_momentum_of_sgd(name: str) -> None:
    training = config({"preset": name, "training": {"optimizer": "adamw"}}).training
    default = TrainingSettings()
    assert training.optimizer == "adamw"
    assert (training.momentum, training.nesterov) == (default.momentum, default.nesterov)
    assert training.learning_rate == default.learning_rate
    kept = {key: value for key, value in training if key in ("steps", "schedule", "milestones")}
    same = config({"preset": name}).training
    assert kept == {key: getattr(same, key) for key in kept}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_another_schedule_does_without_the_presets_milestones(schedule: str) -> None:
    training = config({"preset": "wrn-28-5", "training": {"schedule": schedule}}).training
    assert training.schedule == schedule
    assert training.milestones == []
    assert training.decay == TrainingSettings().decay
    assert training.steps == 200 * EPOCH
    assert training.learning_rate == 0.1


def test_milestones_of_a_file_replace_those_of_a_preset() -> None:
    steps = {"schedule": "step", "milestones": [0.5]}
    training = config({"preset": "wrn-28-5", "training": steps}).training
    assert training.milestones == [0.5]
    assert training.decay == 0.2
    training = config({"preset": "mnist-cnn", "training": steps}).training
    assert training.schedule == "step"
    assert training.milestones == [0.5]
    assert training.steps == 20_000


def test_a_preset_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("training: {learning_rate: 0.05}\n")
    sweep = load(file, ["preset=wrn-16-8", "training.batch_size=64"])
    assert sweep.model.name == "wrn-16-8"
    assert sweep.training.steps == 200 * EPOCH
    assert sweep.training.learning_rate == 0.05
    assert sweep.training.batch_size == 64
    file.write_text("preset: alexnet\n")
    assert load(file, ["preset=''"]) == Config()


def test_a_preset_is_no_setting_of_a_sweep_but_its_values_are() -> None:
    settings = config({"preset": "wrn-28-5"}).sweep.flat()
    assert "preset" not in settings
    assert settings["model_name"] == "wrn-28-5"
    assert settings["training_steps"] == 200 * EPOCH
    assert settings["training_milestones"] == "0.3, 0.6, 0.8"


@pytest.mark.parametrize("value", ["wrn-28-10", "Alexnet", 3, ["alexnet"], None])
def test_an_unknown_preset_is_refused_with_a_list_of_all_presets(value: object) -> None:
    with pytest.raises(InputError) as caught:
        config({"preset": value})
    (line,) = str(caught.value).splitlines()
    assert line.startswith("sweep.yaml: preset: should be ")
    assert all(f"'{name}'" in line for name in PRESETS)
    assert line.endswith(f"(got {value!r})")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"training": None}, "training: should be a group of settings (got None)"),
        ({"model": "mlp"}, "model: should be a group of settings (got 'mlp')"),
        ({"training": {"stpes": 3}}, "training.stpes: unknown key (got 3); did you mean 'steps'?"),
        ({"training": {"steps": 100}}, "evaluation.steps: should be at most training.steps (100)"),
    ],
)
def test_mistakes_beside_a_preset_are_reported(content: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        config({"preset": "wrn-28-5", **content})
    assert str(caught.value) == f"sweep.yaml: {line}"


def test_whole_sections_are_kept_as_they_are() -> None:
    section = TrainingSettings(steps=500)
    sweep = Config.model_validate({"preset": "alexnet", "data": DATA, "training": section})
    assert sweep.training == section


def test_neither_the_content_nor_the_preset_is_changed() -> None:
    content: dict[str, Any] = {"training": {"steps": 7}, "seed": 3}
    content_before = copy.deepcopy(content)
    presets_before = copy.deepcopy(PRESETS)
    assert with_preset("alexnet", content)["training"]["steps"] == 7
    assert content == content_before
    assert presets_before == PRESETS
