"""``taylorglo attack`` on networks and data of every kind, and what it refuses in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import nn

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.loss.functions import TaylorLoss
from taylorglo.networks.factory import build
from taylorglo.networks.weights import Origin, weights_of
from taylorglo.settings import DataSettings
from taylorglo_pipelines.cli import main

FEW = ("images=120", "pgd_steps=2", "pgd_restarts=1", "epsilons=[0.05,0.1]")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.load(DataSettings(), seed=0)


@pytest.fixture
def data(digits: Dataset, tmp_path: Path) -> str:
    datasets.save(digits, tmp_path / "data.safetensors")
    return str(tmp_path / "data.safetensors")


@pytest.fixture
def attack(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs the command, and returns what it printed: one line if it failed."""

    def run(model: str | Path, *words: str | Path) -> str:
        settings = [] if "--set" in words else [f"--set={value}" for value in FEW]
        status = main(["attack", str(model), *settings, *map(str, words)])
        output = capsys.readouterr()
        lines = output.err.splitlines()
        assert (status, len(lines), output.out == "") in ((0, 0, False), (2, 1, True))
        return output.out or lines[0]

    return run


class Linear(nn.Module):
    """A linear network on images of this shape, whose logits a function may change."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(int(np.prod(shape)), classes)

    def forward(self, images: torch.Tensor) -> Any:
        return self.layer(images.flatten(1))


def exported(network: nn.Module, folder: Path, shape: tuple[int, ...] = (1, 8, 8)) -> Path:
    """Write a network as an exported program, and return its path."""
    path = folder / "net.pt2"
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(network, (torch.rand(2, *shape),), dynamic_shapes=(batch,))
    torch.export.save(program, path)
    return path


def written(dataset: Dataset, folder: Path, each: int) -> Path:
    """Write a few test images of each class into a folder of class folders."""
    assert dataset.test is not None
    for label in range(dataset.num_classes):
        place = folder / f"digit {label}"
        place.mkdir(parents=True)
        for number, image in enumerate(dataset.test.images[dataset.test.labels == label][:each]):
            Image.fromarray(image[0].numpy()).save(place / f"{number}.png")
    return folder


def test_all_images_of_a_folder_are_attacked_and_written_by_image(
    attack: Callable[..., str], digits: Dataset, tmp_path: Path
) -> None:
    folder, table = written(digits, tmp_path / "images", 3), tmp_path / "table.parquet"
    program = exported(Linear((3, 8, 8)), tmp_path, (3, 8, 8))
    found = json.loads(attack(program, "--data", folder, "--per-image", table, "--json"))
    rows = parquet.read_table(table).to_pylist()
    # The order of the classes is that of the names of their folders.
    assert sorted(row["label"] for row in rows) == sorted([*range(10)] * 3)
    assert {row["loss"] for row in rows} == {str(program)}
    assert {(row["sweep"], row["seed"], row["norm"]) for row in rows} == {("", None, "linf")}
    worst = found["accuracies"]["worst"]
    for epsilon in ("0.0", "0.05", "0.1"):
        sizes = [row["perturbation"] for row in rows]
        left = sum(size is None or size > float(epsilon) for size in sizes)
        assert left / len(rows) == worst[epsilon]
    assert sum(row["withstood"] for row in rows) / len(rows) == worst["0.1"]
    assert list(found["corruptions"]) == ["noise", "blur", "contrast"]


def test_of_a_folder_with_splits_the_test_images_are_attacked(
    attack: Callable[..., str], digits: Dataset, tmp_path: Path
) -> None:
    written(digits, tmp_path / "images" / "train", 4)
    written(digits, tmp_path / "images" / "test", 2)
    table = tmp_path / "table.parquet"
    program = exported(Linear((3, 8, 8)), tmp_path, (3, 8, 8))
    said = attack(program, "--data", tmp_path / "images", "--per-image", table)
    assert said.endswith(f"what the attacks found for each sample: {table}\n")
    assert parquet.read_table(table).num_rows == 20


def test_the_test_images_of_a_configuration_are_those_of_its_sweep(
    attack: Callable[..., str], data: str, tmp_path: Path
) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text("name: any\nseed: 0\ndata: {name: digits}\n")
    program = exported(Linear(), tmp_path)
    assert attack(program, "--data", config) == attack(program, "--data", data)
    config.write_text("data: {name: own, classes: 3}\ntraining: {function: 'a:b'}\n")
    assert "its data set 'own' is read by its training alone" in attack(program, "--data", config)
    config.write_text("data: {name: nothing}\n")
    assert "data.name: " in attack(program, "--data", config)


def test_weights_are_attacked_on_a_folder_if_they_have_their_normalisation(
    attack: Callable[..., str], digits: Dataset, tmp_path: Path
) -> None:
    folder = written(digits, tmp_path / "images", 3)
    network = build("mlp", (3, 8, 8), 10, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0)
    path = tmp_path / "net.safetensors"
    path.write_bytes(weights_of(network, Origin("mlp", (3, 8, 8), 10)))
    assert "worst" in attack(path, "--data", folder)
    path.write_bytes(weights_of(network.get_submodule("network"), Origin("mlp", (3, 8, 8), 10)))
    line = attack(path, "--data", folder)
    assert "do not fit model 'mlp' and data set 'image-folder': they have no normal" in line


def test_weights_for_other_samples_name_both_and_the_way_out(
    attack: Callable[..., str], digits: Dataset, tmp_path: Path
) -> None:
    folder = written(digits, tmp_path / "images", 3)
    path = tmp_path / "net.safetensors"
    for shape, classes, expected in (
        ((1, 16, 16), 10, "has samples of shape (3, 8, 8), and {} was trained for (1, 16, 16); "),
        ((3, 8, 8), 4, "has classes: 10, and {} was trained for 4; "),
    ):
        network = build(
            "mlp", shape, classes, mean=(0.5,) * shape[0], std=(0.5,) * shape[0], seed=0
        )
        path.write_bytes(weights_of(network, Origin("mlp", shape, classes)))
        line = attack(path, "--data", folder)
        assert expected.format(path) in line
        assert "--data may be the configuration of its sweep" in line


def test_folders_without_images_are_refused(attack: Callable[..., str], tmp_path: Path) -> None:
    program = exported(Linear(), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "should have a folder of images per class" in attack(program, "--data", empty)
    for name in ("a", "b"):
        (empty / name).mkdir()
    assert "there is no image for the classes a, b" in attack(program, "--data", empty)


def test_images_of_another_shape_are_refused(
    attack: Callable[..., str], digits: Dataset, tmp_path: Path
) -> None:
    folder = written(digits, tmp_path / "images", 2)
    line = attack(exported(Linear(), tmp_path), "--data", folder)
    assert "does not take a batch of 20 samples of shape (3, 8, 8)" in line


def test_a_saved_loss_is_no_network(attack: Callable[..., str], tmp_path: Path) -> None:
    TaylorLoss([0.0] * 8).save(tmp_path / "loss.json")
    line = attack(tmp_path / "loss.json")
    assert "loss.json: is a saved loss, and no network: taylorglo.load_loss reads losses" in line


class Odd(Linear):
    """A network that returns something else than logits."""

    def __init__(self, change: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: torch.Tensor) -> Any:
        return self.change(super().forward(images), images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, images: (logits, logits), "a tensor of logits (N, n), got a tuple"),
        (lambda logits, images: {"logits": logits}, "a tensor of logits (N, n), got a dict"),
        (lambda logits, images: logits[:, :, None], "should return logits of shape (120, n)"),
        (lambda logits, images: logits.sum(dim=1), "should return logits of shape (120, n)"),
        (lambda logits, images: logits[:, :1], "with n >= 2, got (120, 1)"),
        (lambda logits, images: logits[:, :9], "labels: should be from 0 to 8, the classes that"),
        (lambda logits, images: logits / 0, "returns NaN or infinite logits for test samples"),
    ],
    ids=["tuple", "dict", "axis", "flat", "one", "nine", "infinite"],
)
def test_what_a_network_returns(
    attack: Callable[..., str], data: str, tmp_path: Path, change: Any, message: str
) -> None:
    assert message in attack(exported(Odd(change), tmp_path), "--data", data)


def test_a_network_that_returns_nan_for_a_single_image_is_refused(
    attack: Callable[..., str], data: str, digits: Dataset, tmp_path: Path
) -> None:
    assert digits.test is not None
    sums = (digits.test.images / 255).flatten(1).sum(dim=1)
    alone = [((sums - own).abs() < 1e-3).sum() == 1 for own in sums]
    # The first images are looked at before the attacks, and this one is not among them.
    dark = sums[alone.index(True, 200)].item()
    network = Odd(
        lambda logits, images: logits.masked_fill(
            ((images.flatten(1).sum(dim=1) - dark).abs() < 1e-4)[:, None], torch.nan
        )
    )
    line = attack(
        exported(network, tmp_path), "--data", data, "--set", "pgd_steps=1", "--set", "epsilons=[0]"
    )
    assert line.endswith("net.pt2: the network returns NaN for 1 of 450 samples")


def test_a_factory_of_a_plain_function_is_refused(
    attack: Callable[..., str], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain.py").write_text(
        "import torch\n\n"
        "def network(shape, classes):\n    return lambda images: images.flatten(1)[:, :classes]\n\n"
        "def module(shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "net.safetensors"
    path.write_bytes(weights_of(Linear(), Origin(None, None, None)))
    assert "plain:network" in attack(path, "--data", data, "--model-name=plain:network")
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    path.write_bytes(weights_of(bare, Origin(None, None, None)))
    assert "worst" in attack(path, "--data", data, "--model-name=plain:module")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epsilons=[2]", "epsilons.0: "),
        ("epsilons=[-0.1]", "epsilons.0: "),
        ("epsilons=[.nan]", "epsilons.0: "),
        ("images=0", "images: "),
        ("norm=l1", "norm: "),
        ("suite=hard", "suite: "),
    ],
)
def test_settings(attack: Callable[..., str], setting: str, message: str) -> None:
    assert message in attack("net.pt2", "--data=none", "--set", setting)


@pytest.mark.parametrize("name", ["table.csv", "none/table.parquet", "folder.parquet"])
def test_a_table_that_cannot_be_written_is_refused_before_the_attacks(
    attack: Callable[..., str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.parquet").mkdir()
    assert attack("none.pt2", "--per-image", tmp_path / name).startswith(
        "taylorglo: error: --per-image: "
    )
