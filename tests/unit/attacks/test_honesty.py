"""The checks of an evaluation catch networks that fool naive attacks, and no honest ones."""

import pytest
import torch
from torch import Tensor, nn
from victims import fashion, trained

from taylorglo.attacks.honesty import suspicions

EPSILON = 0.05


class Quantised(nn.Module):
    """A network behind a step function: no gradient passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images * 16).round() / 16)


class Saturated(nn.Module):
    """A network of huge logits: the softmax is exactly 1, and its gradient 0."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.network(images)


class Shattered(nn.Module):
    """A network behind a fine wave: its gradient points anywhere, at a scale below epsilon."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images + 0.02 * (images * 2000).sin())


def signs(network: nn.Module, **options: object) -> str:
    _, _, images, labels = fashion()
    return "; ".join(suspicions(network, images, labels, EPSILON, **options))


@pytest.mark.parametrize(("name", "label_smoothing"), [("mlp", 0.0), ("mlp", 0.3), ("cnn", 0.0)])
def test_an_honest_network_is_not_suspected(name: str, label_smoothing: float) -> None:
    assert signs(trained(name, label_smoothing)) == ""


def test_an_honest_network_is_not_suspected_in_l2_or_with_a_unit() -> None:
    assert signs(trained("mlp"), norm="l2") == ""
    assert signs(trained("mlp"), unit=torch.full((1, 28, 28), 0.35)) == ""


def test_quantised_inputs_are_caught() -> None:
    found = signs(Quantised(trained("mlp")))
    assert "the gradient is exactly 0 for 100% of the images" in found
    assert "Square, without gradients, breaks" in found
    assert "PGD without a bound leaves" in found


def test_a_saturated_softmax_is_caught() -> None:
    found = signs(Saturated(trained("mlp"), 1e4))
    assert "the gradient is exactly 0 for" in found
    assert "with logits divided by 100, PGD on cross-entropy breaks" in found


def test_shattered_gradients_are_caught() -> None:
    found = signs(Shattered(trained("mlp")))
    assert "Square, without gradients, breaks" in found


def test_a_network_that_an_attack_on_a_twin_breaks_more_often_is_caught() -> None:
    twin, transferred = trained("mlp"), "an attack on a twin that cross-entropy trained breaks"
    for fooling in (Shattered(trained("mlp")), Quantised(trained("mlp", 0.3))):
        assert transferred in signs(fooling, twin=twin)
        assert transferred not in signs(fooling)


@pytest.mark.parametrize(("name", "label_smoothing"), [("mlp", 0.3), ("cnn", 0.0)])
def test_an_honest_network_is_not_suspected_for_its_twin(name: str, label_smoothing: float) -> None:
    assert signs(trained(name, label_smoothing), twin=trained("mlp")) == ""


def test_a_network_that_classifies_nothing_is_not_judged() -> None:
    _, _, images, labels = fashion()
    assert suspicions(trained("mlp"), images[:1], (labels[:1] + 1) % 10, EPSILON) == []
