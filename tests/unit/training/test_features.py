"""Trainings on features: the engines agree, and the units of the data do not matter."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from trainings import GOOD, OTHER, sweep

from taylorglo.data import dataset as data
from taylorglo.data.dataset import Dataset
from taylorglo.data.folds import Fold, fold_of
from taylorglo.errors import InputError
from taylorglo.evaluation.comparison import restore_network
from taylorglo.evaluation.robustness import attack_network
from taylorglo.loss.classic import CrossEntropy
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.networks.factory import BUILT_IN, build, check, skeleton
from taylorglo.settings import AugmentationSettings, DataSettings, SweepSettings
from taylorglo.training.loop import Recipe, TrainedNetwork, build_network, train_network
from taylorglo.training.plan import plan
from taylorglo.training.stacked import qualifies, train_stack

CLASSES, FEATURES = 3, 6


def clouds(spread: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return normal clouds around three means that are at least 5 apart, and their labels."""
    random = np.random.default_rng(0)
    labels = np.arange(240) % CLASSES
    means = 5 * np.eye(FEATURES)[:CLASSES]
    return means[labels] + spread * random.normal(size=(240, FEATURES)), labels


def dataset_of(folder: Any, features: NDArray[Any], labels: NDArray[Any]) -> Dataset:
    path = folder / "x.safetensors"
    save_file({"features": features, "labels": labels}, path)
    return data.load(DataSettings(name="safetensors", root=str(path)), 0)


def recipe(loss: Loss, seed: int = 3, **options: Any) -> Recipe:
    values = {"steps": 40, "horizon": 40, "validations": 2, "kept": True, **options}
    return Recipe(loss, 0.05, seed, **values)


SETTINGS: SweepSettings = sweep(model="mlp", training={"batch_size": 16})


def trained(dataset: Dataset, one: Recipe) -> TrainedNetwork:
    return train_network(build_network(SETTINGS, dataset, one.seed), one, dataset, SETTINGS)


def test_clouds_that_are_far_apart_are_told_apart(tmp_path: Any) -> None:
    dataset = dataset_of(tmp_path, *clouds(spread=0.3))
    result = trained(dataset, recipe(TaylorLoss(GOOD))).training
    assert (result.status, result.accuracy, result.test_accuracy) == ("ok", 1.0, 1.0)


def test_networks_that_are_trained_together_are_those_that_are_trained_alone(
    tmp_path: Any,
) -> None:
    dataset = dataset_of(tmp_path, *clouds(spread=2.0))
    losses: tuple[Loss, ...] = (TaylorLoss(GOOD), CrossEntropy(), TaylorLoss(OTHER))
    # One with a fold and one with another seed have batches of their own.
    recipes = [
        *(recipe(loss, epsilon=0.2, attack_steps=3) for loss in losses),
        recipe(CrossEntropy(), seed=4),
        recipe(CrossEntropy(), fold=Fold(seed=7, count=5, index=2)),
    ]
    together = train_stack(recipes, dataset, SETTINGS)
    for one, many in zip(recipes, together, strict=True):
        alone, stacked = trained(dataset, one).training, many.training
        assert alone.status == stacked.status == "ok"
        assert 0.5 < alone.accuracy < 1
        assert stacked.accuracy == pytest.approx(alone.accuracy, abs=0.021)
        assert stacked.curve[-1][2] == pytest.approx(alone.curve[-1][2], rel=1e-3)
        if one.epsilon:
            assert alone.robust_accuracy is not None
            assert alone.robust_accuracy < alone.accuracy
            assert stacked.robust_accuracy == pytest.approx(alone.robust_accuracy, abs=0.021)


def test_the_unit_of_a_feature_decides_nothing(tmp_path: Any) -> None:
    features, labels = clouds(spread=2.0)
    # Powers of two leave every digit of float32 as it is.
    scale = 2.0 ** np.array([0, 3, -5, 8, -2, 1])
    one = recipe(TaylorLoss(GOOD), epsilon=0.3)
    plain = dataset_of(tmp_path, features.astype(np.float32), labels)
    first = trained(plain, one)
    scaled = dataset_of(tmp_path, (features.astype(np.float32) * scale).astype(np.float32), labels)
    second = trained(scaled, one)
    curves = [np.array(result.training.curve) for result in (first, second)]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
    assert second.training.robust_accuracy == first.training.robust_accuracy
    settings = SETTINGS.attack.model_copy(update={"images": 40, "pgd_steps": 5})
    robust = [
        attack_network(restore_network(result.weights, "mlp", dataset), dataset, settings, seed=0)
        for result, dataset in ((first, plain), (second, scaled))
    ]
    assert robust[0].accuracies == robust[1].accuracies
    worst = robust[0].accuracies["worst"]
    assert worst[0.0] > worst[0.1] > 0


def test_a_fold_of_features_has_all_samples_once(tmp_path: Any) -> None:
    dataset = dataset_of(tmp_path, *clouds())
    whole = torch.cat([dataset.train.images, dataset.validation.images])
    seen = torch.cat([fold_of(dataset, Fold(1, 5, index)).validation.images for index in range(5)])
    fold = fold_of(dataset, Fold(1, 5, 0))
    assert len(fold.train) + len(fold.validation) == len(whole)
    assert {tuple(row) for row in seen.tolist()} == {tuple(row) for row in whole.tolist()}


def test_the_plan_stacks_networks_of_features(tmp_path: Any) -> None:
    dataset = dataset_of(tmp_path, *clouds())
    settings = sweep(model="mlp", training={"batch_size": 16, "engine": "auto", "device": "cpu"})
    assert plan(settings, dataset).engine == "fused"
    assert qualifies(build_network(SETTINGS, dataset, 0), dataset.image_shape)


def test_a_network_normalises_features_itself(tmp_path: Any) -> None:
    features, labels = clouds()
    dataset = dataset_of(tmp_path, 100 * features + 7, labels)
    normalised = build_network(SETTINGS, dataset, 0).get_submodule("normalize")
    values = normalised(dataset.train.images)
    assert values.mean(dim=0).abs().max() < 1e-4
    assert (values.std(dim=0, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("name", [*BUILT_IN, "torchvision:resnet18"])
def test_networks_of_convolutions_refuse_features(name: str) -> None:
    if name == "mlp":
        check(name, (5,), 3)
        return
    message = f"model '{name}': takes images .*samples of 5 features: should be mlp, or"
    for use in (check, skeleton):
        with pytest.raises(InputError, match=message):
            use(name, (5,), 3)


def test_a_network_of_a_user_gets_the_number_of_features(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "feature_networks.py").write_text(
        "from torch import nn\ndef linear(shape, classes):\n    return nn.Linear(*shape, classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = build("feature_networks:linear", (5,), 3, mean=[0] * 5, std=[1] * 5, seed=0)
    assert network(torch.zeros(2, 5)).shape == (2, 3)


@pytest.mark.parametrize(
    "change", [{"flip": True}, {"crop_padding": 1}, {"cutout": 2}, {"cutmix": 0.5}]
)
def test_changes_of_images_refuse_features(change: dict[str, Any]) -> None:
    augmentation = AugmentationSettings.model_validate(change)
    (key,) = change
    with pytest.raises(
        InputError, match=rf"augmentation.{key}: .* the data have 5 features and no"
    ):
        augmentation.check_data(5)
    augmentation.check_data(0)
    AugmentationSettings().check_data(5)


def test_images_of_floats_give_the_results_of_their_bytes(digits: Dataset) -> None:
    def floats(split: Any) -> Any:
        return replace(split, images=split.images.float() / 255)

    assert digits.test is not None
    same = replace(
        digits,
        train=floats(digits.train),
        validation=floats(digits.validation),
        test=floats(digits.test),
    )
    one = recipe(TaylorLoss(GOOD), epsilon=0.02)
    first, second = trained(digits, one), trained(same, one)
    assert first.weights == second.weights
    assert first.training.curve == second.training.curve
    assert first.training.robust_accuracy == second.training.robust_accuracy
