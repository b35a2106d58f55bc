"""Corruptions, against the definitions of their source computed by NumPy and SciPy."""

import pytest
import torch
from scipy import ndimage
from torch import nn

from taylorglo.attacks import corrupted_accuracy
from taylorglo.attacks.corruptions import corrupted, strengths
from taylorglo.attacks.draws import Draws

IMAGES = torch.rand(5, 3, 12, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("deviation", [0.4, 1.0, 6.0])
def test_a_blur_is_that_of_scipy_with_the_edges_repeated(deviation: float) -> None:
    # Those are the arguments of the source, skimage's gaussian, which calls SciPy.
    expected = ndimage.gaussian_filter(
        IMAGES.double().numpy(), (0, 0, deviation, deviation), mode="nearest", truncate=4
    )
    blurred = corrupted(IMAGES, "blur", deviation, draws=Draws(0, 5))
    torch.testing.assert_close(blurred.double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_low_contrast_keeps_the_mean_of_each_channel() -> None:
    means = IMAGES.numpy().mean(axis=(2, 3), keepdims=True)
    expected = (IMAGES.numpy() - means) * 0.15 + means
    faint = corrupted(IMAGES, "contrast", 0.15, draws=Draws(0, 5))
    torch.testing.assert_close(faint, torch.from_numpy(expected))


def test_noise_has_its_deviation_and_stays_within_the_range_of_pixels() -> None:
    grey = torch.full((64, 1, 20, 20), 0.5)
    noise = corrupted(grey, "noise", 0.1, draws=Draws(0, 64)) - grey
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(noise.mean().item()) < 0.002
    light = corrupted(torch.ones(4, 1, 20, 20), "noise", 0.1, draws=Draws(0, 4))
    assert light.max() == 1
    assert light.min() < 1


def test_noise_of_features_is_in_their_unit_and_has_no_bounds() -> None:
    features = torch.zeros(4000, 2)
    unit = torch.tensor([1.0, 100.0])
    noise = corrupted(features, "noise", 0.5, draws=Draws(0, 4000), unit=unit)
    assert noise.std(dim=0).tolist() == pytest.approx([0.5, 50.0], rel=0.05)
    assert noise.min() < -1


def test_small_images_get_the_strengths_of_cifar_and_large_ones_those_of_imagenet() -> None:
    small, large = torch.zeros(1, 3, 64, 32), torch.zeros(1, 3, 65, 32)
    assert strengths(small)["noise"] == (0.04, 0.06, 0.08, 0.09, 0.10)
    assert strengths(large)["noise"] == (0.08, 0.12, 0.18, 0.26, 0.38)
    assert list(strengths(small)) == list(strengths(large)) == ["noise", "blur", "contrast"]
    assert list(strengths(torch.zeros(1, 7), torch.ones(7))) == ["noise"]
    assert list(strengths(small, torch.ones(3, 1, 1))) == ["noise"]


class Faintness(nn.Module):
    """A network that names class 0 as long as the contrast of an image is above a bound."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        contrast = images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3))
        return torch.stack([contrast, torch.full_like(contrast, 0.45)], dim=1)


def test_the_accuracy_is_that_of_the_corrupted_images() -> None:
    images = torch.zeros(300, 1, 8, 8)
    images[:, :, ::2] = 1
    left = corrupted_accuracy(Faintness(), images, torch.zeros(300, dtype=torch.int64))
    # The contrast is 0.75, 0.5, 0.4, 0.3 and 0.15.
    assert left["contrast"] == [1, 1, 0, 0, 0]
    assert all(len(accuracies) == 5 for accuracies in left.values())


def test_noise_belongs_to_the_seed_and_to_the_image_and_not_to_the_batch() -> None:
    two = torch.cat([IMAGES, IMAGES])
    together = corrupted(two, "noise", 0.1, draws=Draws(0, 10))
    alone = corrupted(two[7:8], "noise", 0.1, draws=Draws(0, torch.tensor([7])))
    assert torch.equal(together[7:8], alone)
    assert not torch.equal(together[2], together[7])
    assert not torch.equal(together, corrupted(two, "noise", 0.1, draws=Draws(1, 10)))


def test_a_network_is_in_evaluation_mode_and_comes_back_as_it_was() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(324), nn.Linear(324, 2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    corrupted_accuracy(network, IMAGES, torch.tensor([0, 1, 0, 1, 1]))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
