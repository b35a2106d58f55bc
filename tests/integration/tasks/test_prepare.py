"""The task that prepares the data, as the fixture ``prepared`` has run it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_sweeps import Work

from taylorglo.data import dataset as datasets
from taylorglo.results import DatasetDescription, read_json
from taylorglo.tasks import prepare


def test_the_description_agrees_with_the_data(prepared: Work) -> None:
    description = prepared.description()
    full = datasets.read(Path(prepared.full_data))
    assert full.test is not None
    assert description.name == "digits"
    assert description.num_classes == full.num_classes == 10
    assert description.splits == {
        "train": len(full.train),
        "validation": len(full.validation),
        "test": len(full.test),
    }
    assert description.fingerprint == full.fingerprint
    assert description.memory.weights > 0
    assert description.memory.activations_per_image > 0


def test_the_data_for_the_search_lack_the_test_split(prepared: Work) -> None:
    search = datasets.read(Path(prepared.search_data))
    assert search.test is None
    assert search.fingerprint == prepared.description().fingerprint


def test_remarks_on_the_data_are_printed_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = np.random.default_rng(0).integers(0, 2, (40, 8, 8), dtype=np.uint8)
    images, labels = torch.from_numpy(levels), torch.arange(40) % 2
    tests = {"test_images": images[:6].clone(), "test_labels": labels[:6].clone()}
    save_file({"images": images, "labels": labels, **tests}, tmp_path / "x.safetensors")
    prepare.run(
        data={"name": "safetensors", "root": str(tmp_path / "x.safetensors")},
        model={"name": "mlp"},
        seed=0,
        description_path=str(tmp_path / "description"),
        search_data_path=str(tmp_path / "search"),
        full_data_path=str(tmp_path / "full"),
    )
    said = capsys.readouterr().out.splitlines()
    warning = "warning: 6 of 6 test images are duplicates of training or validation images"
    assert f"taylorglo: data: {warning}" in said
    assert [line for line in said if "no level of the training and validation and test" in line]
    provenance = read_json(tmp_path / "description", DatasetDescription).provenance
    assert provenance["duplicates"] == warning


def test_a_table_is_described_by_its_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{index},{index * index % 7},{'ab'[index % 2]}" for index in range(40)]
    (tmp_path / "x.csv").write_text("\n".join(["size,weight,label", *lines]))
    paths = {
        name: str(tmp_path / name.partition("_")[0])
        for name in ("description_path", "search_data_path", "full_data_path")
    }
    table = {"name": "table", "root": str(tmp_path / "x.csv")}
    prepare.run(data=table, model={"name": "mlp"}, seed=0, **paths)
    assert "taylorglo: data: 40 rows of 2 columns (2 of numbers, 0 of texts), which are 2 fea" in (
        capsys.readouterr().out
    )
    description = read_json(tmp_path / "description", DatasetDescription)
    assert description.features == 2
    assert description.provenance["epsilon_unit"] == "standard deviations"
    with pytest.raises(SystemExit):
        prepare.run(data=table, model={"name": "cnn"}, seed=0, **paths)
    message = "model 'cnn': takes images (C, H, W), and the data are samples of 2 features"
    assert message in capsys.readouterr().out
