"""The identity of a study: the settings that cannot change within a search."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from taylorglo.errors import InputError
from taylorglo.results import Evaluation
from taylorglo.search.study import Search
from taylorglo.settings import (
    Decides,
    Scalar,
    Section,
    SweepSettings,
    TrainingSettings,
    former_values,
    validated,
)

# This is what version 0.1.0 kept of the default settings in a study, in its form and order.
STORED: dict[str, Scalar] = {
    "seed": 0,
    "model_name": "mlp",
    "training_steps": 1500,
    "training_batch_size": 64,
    "training_learning_rate": 0.1,
    "training_momentum": 0.9,
    "training_nesterov": True,
    "training_weight_decay": 0.0005,
    "training_schedule": "cosine",
    "training_milestones": "",
    "training_decay": 0.1,
    "training_precision": "auto",
    "augmentation_crop_padding": 0,
    "augmentation_flip": False,
    "augmentation_cutout": 0,
    "augmentation_cutmix": 0.0,
    "evaluation_steps": 300,
    "evaluation_attempts": 2,
    "evaluation_anneal": True,
    "evaluation_give_up_step": 100,
    "evaluation_give_up_gain": 0.05,
    "evaluation_max_attempts": 0,
    "evaluation_adversarial_weight": 0.0,
    "evaluation_adversarial_epsilon": 0.03,
    "search_coordinates": "reduced",
    "search_order": 3,
    "search_popsize": 12,
    "search_sigma": 1.2,
    "search_mean": "",
    "search_filters": "learnable, stable",
    "search_on_reject": "resample",
    "data": "digits 0123456789ab",
}
DATA = "digits 0123456789ab"


# The settings whose defaults were other ones in version 0.1.0.
FORMER = {
    "search": {"family": "taylor", "coordinates": "reduced", "popsize": 12},
    "evaluation": {"folds": 0, "attempts": 2},
}


def former(**sections: Any) -> SweepSettings:
    """Return settings with the defaults of version 0.1.0, and other values by section."""
    values: dict[str, Any] = {**FORMER}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return SweepSettings.model_validate(values)


def flat(sweep: SweepSettings) -> dict[str, Scalar]:
    return sweep.identity(DATA).flat()


def test_the_identity_of_its_defaults_is_the_one_that_version_0_1_0_stored() -> None:
    identity = flat(former())
    assert identity == STORED
    # 0 equals 0.0 and False, but JSON keeps them apart.
    assert {k: type(v) for k, v in identity.items()} == {k: type(v) for k, v in STORED.items()}


def test_lists_are_stored_as_texts_with_commas() -> None:
    sweep = former(
        training={"schedule": "step", "milestones": [0.5, 0.75]},
        search={"mean": [4, -4, -1, 0.5], "filters": ["stable"]},
    )
    assert flat(sweep) == {
        **STORED,
        "training_schedule": "step",
        "training_milestones": "0.5, 0.75",
        "search_mean": "4.0, -4.0, -1.0, 0.5",
        "search_filters": "stable",
    }


def opened(path: Path, sweep: SweepSettings) -> Search:
    url, name, identity = f"sqlite:///{path}", sweep.name, sweep.identity(DATA)
    return Search(url, name, sweep.search, sweep.seed, identity, num_classes=10)


def test_a_study_of_version_0_1_0_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    study = optuna.create_study(
        storage=f"sqlite:///{path}", study_name="digits", direction="maximize"
    )
    study.set_user_attr("identity", STORED)
    assert opened(path, former()).changes(former().identity(DATA)) == []
    other = former(seed=1)
    with pytest.raises(InputError, match="sweep 'digits' was begun with seed 0, now 1: "):
        opened(path, other)


def names_by_decision() -> dict[Decides, set[str]]:
    """Return what the settings are declared to decide, by their flat names."""
    sweep, names = SweepSettings(), {decision: set[str]() for decision in Decides}
    for section in SweepSettings.model_fields:
        group = getattr(sweep, section)
        if isinstance(group, Section):
            for key in type(group).model_fields:
                names[group.decision(key)].add(f"{section}_{key}")
        else:
            names[sweep.decision(section)].add(section)
    return names


def test_every_setting_declares_what_it_decides() -> None:
    names = names_by_decision()
    assert set.union(*names.values()) == set(SweepSettings().flat())
    assert names[Decides.PRECISION] == {"training_precision"}
    assert names[Decides.EFFORT] == {
        "training_device",
        "training_engine",
        "training_workers",
        "training_threads",
        "training_compile",
        "training_timeout",
        "search_max_draws",
        "search_generations",
        "search_renew",
    }
    outcome = {name.partition("_")[0] for name in names[Decides.OUTCOME]}
    assert outcome == {"name", "data", "baselines", "champion", "attack"}


def test_the_identity_has_the_settings_that_are_declared_to_decide_it() -> None:
    names, identity = names_by_decision(), SweepSettings().identity(DATA)
    former = former_values()
    assert former == {
        **{decision: {} for decision in Decides},
        Decides.CANDIDATES: {"search_family": "taylor", "data_classes": 0},
        Decides.FITNESS: {
            "training_function": "",
            "training_optimizer": "sgd",
            "training_betas": "0.9, 0.999",
            "training_weight_decay_on": "all",
            "training_clip_norm": 0.0,
            "training_ema": 0.0,
            "training_warmup_steps": 0,
            "evaluation_adversarial_steps": 1,
            "evaluation_folds": 0,
            "evaluation_score": "accuracy",
        },
    }
    named = {*identity.candidates, *former[Decides.CANDIDATES]}
    assert named == names[Decides.CANDIDATES] | {"data"}
    assert {*identity.fitness, *former[Decides.FITNESS]} == names[Decides.FITNESS]
    assert identity.precision == "auto"


def test_the_decisive_settings_of_a_training_are_those_of_version_0_1_0() -> None:
    expected: dict[str, Any] = {
        "steps": 1500,
        "batch_size": 64,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.0005,
        "schedule": "cosine",
        "milestones": [],
        "decay": 0.1,
    }
    assert TrainingSettings().decisive() == expected


USED: dict[str, Any] = {
    "optimizer": "adamw",
    "betas": [0.9, 0.95],
    "weight_decay_on": "weights",
    "clip_norm": 1.0,
    "ema": 0.999,
    "warmup_steps": 100,
}


@pytest.mark.parametrize("key", USED)
def test_a_new_setting_of_the_training_is_decisive_if_it_is_used(key: str) -> None:
    chosen = {key: USED[key]} | ({"optimizer": "adamw"} if key == "betas" else {})
    training = TrainingSettings.model_validate(chosen)
    assert training.decisive() == {**TrainingSettings().decisive(), **chosen}
    used = flat(SweepSettings.model_validate({"training": chosen}))
    texts = {name: ", ".join(map(str, v)) if name == "betas" else v for name, v in chosen.items()}
    new = {f"training_{name}": value for name, value in texts.items()}
    assert used == {**flat(SweepSettings()), **new}


def with_evaluation(**changes: Scalar) -> SweepSettings:
    return SweepSettings.model_validate({"evaluation": changes})


def test_a_setting_that_version_0_1_0_had_not_is_stored_if_it_is_used() -> None:
    used = flat(with_evaluation(folds=5, score="balanced-accuracy"))
    as_before = flat(with_evaluation(folds=0, score="accuracy"))
    new = {"evaluation_folds": 5, "evaluation_score": "balanced-accuracy"}
    assert used == {**as_before, **new}
    assert not as_before.keys() & new.keys()


def trained(search: Search) -> Search:
    """Let a candidate of the search be trained."""
    times = {"started": 0.0, "ended": 1.0, "seconds": 1.0}
    values = {"status": "ok", "fitness": 0.5, "accuracies": [0.5], "robust_accuracies": []}
    search.propose(1)
    search.screen(1)
    accepted = next(c for c in search.candidates(1) if not c.rejected)
    search.tell(accepted.trial, Evaluation.model_validate({**values, "curve": [], **times}))
    return search


@pytest.mark.parametrize(("begun", "now"), [(0, 5), (5, 0)])
def test_the_folds_cannot_change_once_a_candidate_was_trained(
    tmp_path: Path, begun: int, now: int
) -> None:
    path = tmp_path / "study.db"
    opened(path, with_evaluation(folds=begun))
    # Nothing was trained yet.
    search = trained(opened(path, with_evaluation(folds=now)))
    assert opened(path, with_evaluation(folds=now)).study == search.study
    message = f"sweep 'digits' was begun with evaluation_folds {now}, now {begun}: "
    with pytest.raises(InputError, match=message):
        opened(path, with_evaluation(folds=begun))


def test_one_fold_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        validated(SweepSettings, {"evaluation": {"folds": 1}}, "sweep.yaml")
    assert str(caught.value) == (
        "sweep.yaml: evaluation.folds: should be 0, or 2 to 100: one fold would be one split"
    )
