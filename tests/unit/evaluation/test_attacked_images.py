"""Results of attacks image by image: their table, read back, and the pictures of examples."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import nn

from taylorglo.attacks import Strength, withstood
from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.evaluation.attacked_images import NetworkImages, examples_of, table_of, write_parquet
from taylorglo.evaluation.robustness import attack_network
from taylorglo.networks.factory import build
from taylorglo.results import Attacked
from taylorglo.settings import AttackSettings, DataSettings
from taylorglo.training.loop import resident

EPSILONS = [0.0, 8 / 255, 0.1]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return resident(datasets.load(DataSettings(), seed=0), torch.device("cpu"))


def trained(dataset: Dataset) -> nn.Module:
    """Return a linear network after a few steps on the training split."""
    network = build("mlp", (1, 8, 8), 10, mean=dataset.mean, std=dataset.std, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    images = dataset.train.images.float() / 255
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), dataset.train.labels).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def attacked(digits: Dataset) -> Attacked:
    settings = AttackSettings(
        suite="quick", images=120, pgd_steps=5, pgd_restarts=1, epsilons=EPSILONS
    )
    return attack_network(trained(digits), digits, settings, seed=3)


def test_a_table_of_images_agrees_with_the_accuracies_to_the_digit(
    attacked: Attacked, digits: Dataset, tmp_path: Path
) -> None:
    networks = [NetworkImages("champion", 7, attacked.images)]
    table = table_of(networks, sweep="digits", epsilon=0.1, norm="linf", unit="pixels in [0, 1]")
    path = tmp_path / "images.parquet"
    write_parquet(table, path)
    rows = parquet.read_table(path)
    assert rows.column_names == [
        *("sweep", "loss", "seed", "image", "label", "predicted", "perturbation", "norm", "unit"),
        *("attack", "withstood"),
    ]
    image, label, predicted = (rows[name].to_numpy() for name in ("image", "label", "predicted"))
    assert len(set(image)) == 120
    assert digits.test is not None
    assert np.array_equal(label, digits.test.labels.numpy()[image])
    worst = attacked.accuracies["worst"]
    assert (label == predicted).mean() == worst[0.0]
    assert rows["withstood"].to_numpy(zero_copy_only=False).mean() == worst[0.1]
    sizes = rows["perturbation"].to_numpy()
    for epsilon in EPSILONS:
        # NumPy reads a null as NaN, which is not at most epsilon.
        assert 1 - (sizes <= epsilon).mean() == pytest.approx(worst[epsilon], abs=1e-15)
    assert 0 < worst[0.1] < worst[8 / 255] < worst[0.0] < 1
    by = rows["attack"].to_pylist()
    assert {"fgsm", "clean", None} <= set(by) <= {"fgsm", "pgd-ce", "pgd-dlr", "clean", None}
    assert [attack is None for attack in by] == np.isnan(sizes).tolist()
    assert [attack == "clean" for attack in by] == (label != predicted).tolist()
    constant = {name: set(rows[name].to_pylist()) for name in ("sweep", "loss", "seed", "norm")}
    assert constant == {"sweep": {"digits"}, "loss": {"champion"}, "seed": {7}, "norm": {"linf"}}


def test_the_nearest_points_have_the_distances_and_are_misclassified(digits: Dataset) -> None:
    network = trained(digits)
    assert digits.test is not None
    images, labels = digits.test.images[:100].float() / 255, digits.test.labels[:100]
    result = withstood(network, images, labels, [0.05, 0.1], strength=Strength(pgd_steps=5))
    sizes = (result.nearest - images).flatten(1).abs().amax(dim=1)
    found = (result.distances > 0) & result.distances.isfinite()
    assert found.any()
    assert not found.all()
    torch.testing.assert_close(sizes[found], result.distances[found])
    assert not sizes[~found].any()
    wrong = network(result.nearest).argmax(dim=1) != labels
    assert torch.equal(wrong, result.distances.isfinite())
    assert torch.equal(result.predicted, network(images).argmax(dim=1))


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), dtype=float)


def test_examples_are_of_several_classes_and_show_what_was_found(
    attacked: Attacked, digits: Dataset
) -> None:
    assert digits.test is not None
    assert len({example.found.label for example in attacked.examples}) == 4
    for example in attacked.examples:
        assert example.found in attacked.images
        clean, change, after = map(pixels, (example.clean, example.change, example.attacked))
        assert np.array_equal(clean, digits.test.images[example.found.image, 0].numpy())
        magnified = np.clip(127.5 + 10 * (after - clean), 0, 255)
        # Each picture is rounded to a level, and the difference is magnified.
        assert np.abs(change - magnified).max() <= 6
        fooled = example.found.perturbation is not None
        assert (example.taken_for != example.found.label) == fooled


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [((1, 6, 9), "L", (9, 6)), ((3, 96, 48), "RGB", (24, 48)), ((4, 8, 8), "L", (8, 8))],
)
def test_pictures_are_small_and_gray_unless_there_are_three_channels(
    shape: tuple[int, int, int], mode: str, size: tuple[int, int]
) -> None:
    images = torch.rand(2, *shape)
    network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 2))
    labels = torch.tensor([0, 1])
    result = withstood(network, images, labels, [0.1], strength=Strength(pgd_steps=1))
    found = Attacked(
        accuracies={}, suspicions=[], images=[(0, 0, 0, None, ""), (1, 1, 1, 0.1, "fgsm")]
    ).images
    (example, _) = examples_of(network, images, result, found)
    picture = Image.open(io.BytesIO(base64.b64decode(example.clean)))
    assert (picture.mode, picture.size) == (mode, size)


def test_data_without_pixels_have_no_examples_and_noise_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator)
    split = datasets.Split(features, (features[:, 0] > 0).long())
    dataset = Dataset(*("table", 2, split, split, split, (0.0,) * 5, (1.0,) * 5, {}), pixels=False)
    network = nn.Linear(5, 2)
    left = attack_network(network, dataset, AttackSettings(images=50, pgd_steps=2), seed=0)
    assert left.examples == []
    assert list(left.corruptions) == ["noise"]
    assert len(left.images) == 50
