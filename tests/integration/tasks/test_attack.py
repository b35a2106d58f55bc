"""The task that attacks networks of champion and baselines."""

import pytest
import torch
from safetensors.torch import save as saved
from small_sweeps import Work, small_settings

from taylorglo.data import dataset as datasets
from taylorglo.evaluation.robustness import Attacked, attack_all, attack_network
from taylorglo.networks.factory import build
from taylorglo.settings import AttackSettings
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
