"""The task that attacks networks of champion and baselines."""

import re
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save as saved
from small_sweeps import Work, changed, full_training, small_settings

from taylorglo.data import dataset as datasets
from taylorglo.evaluation.robustness import attack_all, attack_network
from taylorglo.networks.factory import build
from taylorglo.results import Attacked, FullTraining, Robustness
from taylorglo.services import layout
from taylorglo.settings import AttackSettings
from taylorglo.tasks.attack import attack_networks
from taylorglo.variables import CPUS


def test_an_attack_computes_in_float32_even_if_convolutions_may_use_tf32(
    prepared: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)  # PyTorch's default
    seen: set[tuple[bool, bool]] = set()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    network.register_forward_hook(
        lambda *_: seen.add((cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
    )
    settings = AttackSettings(images=20, pgd_steps=2)
    dataset = datasets.read(prepared.folder / "full_data")
    robust = attack_network(network, dataset, settings, seed=0)
    assert list(robust.accuracies["worst"]) == [0.0, 0.02, 0.05, 0.1]  # usual with digits
    assert seen == {(False, False)}
    assert cudnn.allow_tf32


def test_networks_that_are_attacked_side_by_side_lose_as_much_as_one_after_another(
    prepared: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CPUS, "2")
    dataset = datasets.read(prepared.folder / "full_data")
    networks = []
    for seed in range(3):
        network = build("mlp", (1, 8, 8), 10, mean=dataset.mean, std=dataset.std, seed=seed)
        networks.append(saved(network.state_dict()))

    def left(workers: int) -> list[Attacked]:
        settings = small_settings(
            training={"workers": workers}, attack={"images": 150, "pgd_steps": 3}
        )
        return list(attack_all(networks, prepared.full_data, dataset, settings))

    assert left(2) == left(1)
    assert len({str(attacked) for attacked in left(2)}) == 3


class Trained:
    """Networks of three contenders, in the store of a sweep; they are not trained."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.sweep = work.open(attack={"images": 50, "pgd_steps": 2})
        self.trainings: list[FullTraining] = []
        dataset = datasets.read(work.folder / "full_data")
        for number, name in enumerate(("champion", "cross-entropy", "Baikal")):
            network = build("mlp", (1, 8, 8), 10, mean=dataset.mean, std=dataset.std, seed=number)
            named = full_training(name, 0.5).model_copy(update={"key": f"{number}" * 64})
            self.sweep.full_trainings.record(named, saved(network.state_dict()))
            self.trainings.append(named)

    def attack(self, **settings: int) -> Robustness:
        """Attack the networks with some other settings."""
        other = {**self.sweep.settings.attack.model_dump(), **settings}
        sections = {**self.sweep.settings.model_dump(), "attack": other}
        sweep = changed(self.sweep, settings=sections)
        return attack_networks(sweep, self.work.full_data, self.trainings)

    def files(self) -> list[str]:
        """Return the keys of the remembered attacks."""
        return [file.key for file in self.sweep.store.files(layout.attacks("digits"))]


def known(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what a task said of attacks that are known: how many, and of how many."""
    said = r"taylorglo: the attacks on (\d of \d) networks are known from before"
    return re.findall(said, capsys.readouterr().out)


def test_networks_that_were_attacked_before_are_not_attacked_again(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = Trained(work)
    first = trained.attack()
    assert known(capsys) == []
    again = trained.attack()
    assert known(capsys) == ["3 of 3"]
    assert again.rows == first.rows
    assert again.suspicions == first.suspicions
    # The result of the second network is lost, and the file of the third is damaged.
    files, store = trained.files(), trained.sweep.store
    assert len(files) == 3
    store.delete(files[1])
    store.write(files[2], b"{}")
    assert trained.attack().rows == first.rows
    assert known(capsys) == ["1 of 3"]
    assert trained.attack().rows == first.rows
    assert known(capsys) == ["3 of 3"]


def test_whatever_decides_an_attack_is_a_reason_to_attack_again(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = Trained(work)
    trained.attack()
    trained.attack(pgd_steps=3)
    trained.attack(images=49)
    trained.sweep = changed(
        trained.sweep, settings={**trained.sweep.settings.model_dump(), "seed": 7}
    )
    trained.attack()
    # Another network may have the key of a training, if its files were written again.
    dataset = datasets.read(work.folder / "full_data")
    other = build("mlp", (1, 8, 8), 10, mean=dataset.mean, std=dataset.std, seed=9)
    trained.sweep.full_trainings.record(trained.trainings[0], saved(other.state_dict()))
    trained.attack()
    assert known(capsys) == ["2 of 3"]
    # The network of cross-entropy is the twin that checks the attacks on the others.
    trained.sweep.full_trainings.record(trained.trainings[1], saved(other.state_dict()))
    trained.attack()
    assert known(capsys) == []
    assert len(trained.files()) == 16


def test_the_results_by_image_agree_with_the_accuracies_to_the_digit(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = Trained(work)
    found = trained.attack()
    store, path = trained.sweep.store, tmp_path / "images.parquet"
    store.download(layout.attacked_images("digits"), path)
    assert found.images == f"{store.uri}/digits/attacked-images.parquet"
    said = "what the attacks found for each sample is in the store: digits/attacked-images.parquet"
    assert f"{said}\n" in capsys.readouterr().out
    rows = parquet.read_table(path).to_pylist()
    assert len(rows) == 3 * 50
    assert {row["unit"] for row in rows} == {"pixels in [0, 1]"}
    worst = [row for row in found.rows if row.attack == "worst"]
    assert len(worst) == 3 * 4
    for row in worst:
        sizes = [each["perturbation"] for each in rows if each["loss"] == row.loss]
        left = sum(size is None or size > row.epsilon for size in sizes)
        assert [left / 50] == row.accuracies
    for row in worst[3::4]:
        counted = sum(each["withstood"] for each in rows if each["loss"] == row.loss)
        assert [counted / 50] == row.accuracies


def test_networks_are_measured_with_corruptions_beside_the_attacks(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Trained(work).attack()
    (line,) = re.findall("mean accuracy with noise, blur, contrast .*", capsys.readouterr().out)
    for loss in ("champion", "cross-entropy", "Baikal"):
        rows = [row for row in found.corruptions if row.loss == loss]
        places = [(row.corruption, row.strength) for row in rows]
        assert places == list(product(("noise", "blur", "contrast"), range(1, 6)))
        assert f"{loss} {fmean(row.accuracies[0] for row in rows):.1%}" in line
        assert [len(row.accuracies) for row in rows] == [1] * 15
    assert list(found.examples) == ["champion", "cross-entropy", "Baikal"]
    assert {example.found.image for example in found.examples["champion"]} == {
        example.found.image for example in found.examples["Baikal"]
    }
