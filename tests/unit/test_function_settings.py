"""The settings of a training by a function of a user: what they need, and what contradicts them."""

from pathlib import Path
from typing import Any

import pytest

from taylorglo.errors import InputError
from taylorglo.search.study import Search
from taylorglo.settings import SweepSettings, TrainingSettings, validated
from taylorglo.tasks.open import identity_of

OWN: dict[str, Any] = {
    "data": {"name": "own", "classes": 3},
    "training": {"function": "train:train"},
}


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    """Return the settings ``OWN`` with other values."""
    return {**OWN, **{name: {**OWN.get(name, {}), **values} for name, values in sections.items()}}


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"data": {"name": "own", "classes": 3}},
            "training.function: the data set 'own' needs one, which reads it",
        ),
        (
            {**OWN, "data": {"name": "own"}},
            "data.classes: data set 'own' needs the number of classes, at least 2",
        ),
        (
            {"data": {"classes": 3}},
            "data.classes: is for the data set 'own'; others have their own number",
        ),
        (
            changed(data={"label_noise": 0.1}),
            "data.label_noise: has no effect on the data set 'own'; leave it out",
        ),
        (
            changed(training={"batch_size": 32}),
            "training.batch_size: has no effect with a training.function; leave it out",
        ),
        *(
            (
                changed(training={key: value}),
                f"training.{key}: has no effect with a training.function; leave it out",
            )
            for key, value in (
                ("optimizer", "adamw"),
                ("weight_decay_on", "weights"),
                ("clip_norm", 1.0),
                ("ema", 0.999),
                ("warmup_steps", 5),
            )
        ),
        (
            changed(training={"precision": "float32"}),
            "training.precision: has no effect with a training.function; leave it out",
        ),
        (
            changed(training={"engine": "fused"}),
            "training.engine: has no effect with a training.function; leave it out",
        ),
        (
            changed(augmentation={"cutmix": 0.5}),
            "augmentation.cutmix: has no effect with a training.function; leave it out",
        ),
        (
            changed(evaluation={"give_up_step": 10}),
            "evaluation.give_up_step: has no effect with a training.function; leave it out",
        ),
        (
            changed(evaluation={"adversarial_weight": 0.5}),
            "evaluation.adversarial_weight: has no effect with a training.function; leave it out",
        ),
        (
            changed(search={"objectives": "accuracy-and-robustness"}),
            "search.objectives: has no effect with a training.function; leave it out",
        ),
        (
            changed(model={"name": "cnn"}),
            "model.name: has no effect with a training.function; leave it out",
        ),
        (
            changed(evaluation={"score": "likelihood"}, search={"on_reject": "penalize"}),
            "search.on_reject: penalize gives fitness 0, which need not be the worst likelihood; "
            "use resample",
        ),
        ({"training": {"timeout": 5}}, "training.timeout: is for a training.function"),
        (
            changed(training={"timeout": 5, "engine": "sequential"}),
            "training.timeout: needs a process for each training; engine should be auto",
        ),
        (
            changed(training={"function": "train"}),
            "training.function: should be the name of a function that can be imported, such as "
            "package.module:train, or empty (got 'train')",
        ),
        (
            {"evaluation": {"score": "F1"}},
            "evaluation.score: should be 'accuracy', 'balanced-accuracy', 'macro-f1', "
            "'negative-log-likelihood' or 'ece', unless training.function measures it (got 'F1')",
        ),
        (
            changed(evaluation={"score": " F1"}),
            "evaluation.score: should be the name of a score, of at most 40 characters, such as "
            "F1 (got ' F1')",
        ),
    ],
)
def test_what_contradicts_is_refused_in_one_line(sections: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(SweepSettings, sections, "sweep.yaml")
    assert str(caught.value) == f"sweep.yaml: {problem}"


def test_what_the_function_gets_may_be_set() -> None:
    given = {"steps": 9, "learning_rate": 1e-4, "device": "cpu", "workers": 3, "threads": 2}
    sections = changed(training={**given, "timeout": 60}, evaluation={"steps": 9, "folds": 3})
    settings = validated(SweepSettings, sections, "sweep.yaml")
    assert settings.training.timeout == 60
    # The function stops by itself, so that the default is no error with few steps.
    assert settings.evaluation.give_up_step == 0
    assert validated(SweepSettings, {}, "sweep.yaml").evaluation.give_up_step == 100


@pytest.mark.parametrize("score", ["F1", "ece", "negative-log-likelihood", "log likelihood"])
def test_the_function_may_measure_any_score(score: str) -> None:
    settings = validated(SweepSettings, changed(evaluation={"score": score}), "sweep.yaml")
    assert settings.evaluation.score == score


def test_on_images_the_model_may_be_named() -> None:
    sections = {"training": OWN["training"], "model": {"name": "cnn"}}
    assert validated(SweepSettings, sections, "sweep.yaml").model.name == "cnn"


def test_the_function_decides_what_a_training_computes_and_its_timeout_does_not() -> None:
    decisive = TrainingSettings(function="train:train", timeout=5).decisive()
    assert decisive == {**TrainingSettings().decisive(), "function": "train:train"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module with a training, which can be imported in this test."""
    path = tmp_path / "mutable_training.py"
    path.write_text("def train(loss, **_):\n    return 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    return path


def test_a_search_is_not_gone_on_with_after_its_file_was_changed(
    module: Path, tmp_path: Path
) -> None:
    sections = changed(training={"function": "mutable_training:train"})
    settings = validated(SweepSettings, sections, "sweep.yaml")
    before = identity_of(settings, "0123456789abcdef")
    assert before.flat()["training_function"] == "mutable_training:train"
    search = Search(
        f"sqlite:///{tmp_path}/study.db", "digits", settings.search, 0, before, num_classes=3
    )
    assert search.changes(identity_of(settings, "0123456789abcdef")) == []
    module.write_text("def train(loss, **_):\n    return 0.75\n")
    after = identity_of(settings, "0123456789abcdef")
    assert {k for k in after.flat() if after.flat()[k] != before.flat()[k]} == {
        "training_function_revision"
    }


def test_a_built_in_training_has_no_revision_in_its_identity() -> None:
    settings = SweepSettings()
    assert identity_of(settings, "0" * 64) == settings.identity(f"digits {'0' * 12}")
