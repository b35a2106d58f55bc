"""The task that attacks networks of champion and baselines."""

import pytest
import torch
from small_sweeps import Work

from taylorglo.data import dataset as datasets
from taylorglo.evaluation.comparison import attack_network
from taylorglo.settings import AttackSettings


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
    assert set(robust["worst"]) == set(settings.epsilons)
    assert seen == {(False, False)}
    assert cudnn.allow_tf32
