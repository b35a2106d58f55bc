"""The published networks: numbers of parameters and of layers, shortcuts, and initialisation."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

from taylorglo.networks import factory
from taylorglo.networks.residual import PreActivationUnit, PyramidalUnit, wide_resnet

CIFAR = (3, 32, 32)
RESIDUAL = ("preresnet-20", "wrn-16-8", "wrn-28-5", "pyramidnet-110-48")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(name: str, num_classes: int = 10, channels: int = 3) -> nn.Module:
    mean, std = (0.5,) * channels, (0.25,) * channels
    return factory.build(name, (channels, 32, 32), num_classes, mean=mean, std=std, seed=0)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def of_type(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


# The three functions below are closed forms of the number of parameters, from the papers' tables of
# layers. A 3x3 convolution from a to b filters has 9ab weights, and a normalisation has 2a.


def pre_activation(units: int, width: int, channels: int, n: int) -> int:
    """Count the parameters of three stages of 16w, 32w and 64w filters.

    A unit has BN(a), 3x3 a to b, BN(b), 3x3 b to b, and a shortcut 1x1 a to b if a is not b.
    """
    total = 9 * channels * 16
    a = 16
    for b in (16 * width, 32 * width, 64 * width):
        total += 2 * a + 9 * a * b + 2 * b + 9 * b * b + (a * b if a != b else 0)
        total += (units - 1) * (4 * b + 18 * b * b)
        a = b
    return total + 2 * a + (a + 1) * n


def pyramid(channels: int, n: int) -> int:
    """Count the parameters of 54 units, the k-th of which has b = 16 + 8k/9 filters.

    A unit has BN(a), 3x3 a to b, BN(b), 3x3 b to b, BN(b). The numbers of filters are computed in
    ninths, and rounded.
    """
    widths = [(144 + 8 * k + 4) // 9 for k in range(55)]
    units = sum(2 * a + 9 * a * b + 2 * b + 9 * b * b + 2 * b for a, b in pairwise(widths))
    return 9 * channels * 16 + 2 * 16 + units + 2 * widths[-1] + (widths[-1] + 1) * n


def alexnet(channels: int, n: int) -> int:
    """Count the parameters of five convolutions and a linear layer."""
    filters = (121 * channels + 1) * 64 + (25 * 64 + 1) * 192
    return filters + (9 * 192 + 1) * 384 + (9 * 384 + 1) * 256 + (9 * 256 + 1) * 256 + 257 * n


@pytest.mark.parametrize(("channels", "n"), [(3, 10), (1, 10), (3, 100)])
def test_the_numbers_of_parameters_are_those_of_the_layers(channels: int, n: int) -> None:
    expected = {
        "alexnet": alexnet(channels, n),
        "preresnet-20": pre_activation(3, 1, channels, n),
        "wrn-16-8": pre_activation(2, 8, channels, n),
        "wrn-28-5": pre_activation(4, 5, channels, n),
        "pyramidnet-110-48": pyramid(channels, n),
    }
    assert {name: size(built(name, n, channels)) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "n", "published", "last_digit", "exactly"),
    [
        # Springenberg et al. 2015 (arXiv 1412.6806), table 3: about 1.4 M.
        ("allcnn-c", 10, 1.4, 0.1, 1_369_738),
        # bearpaw/pytorch-classification, its table of results on CIFAR.
        ("alexnet", 10, 2.47, 0.01, 2_472_266),
        # He et al. 2015 (arXiv 1512.03385), table 6: ResNet-20. The exact number is that of
        # preresnet20_cifar10 of osmr/imgclsmob.
        ("preresnet-20", 10, 0.27, 0.01, 272_282),
        # Zagoruyko & Komodakis 2016 (arXiv 1605.07146), table 4.
        ("wrn-16-8", 10, 11.0, 0.1, 10_961_370),
        # No number was published for 10 classes. Chrabaszcz et al. 2017 (arXiv 1707.08819) give one
        # for 1000 classes of 32x32 images.
        ("wrn-28-5", 1000, 9.5, 0.1, 9_450_424),
        # Han et al. 2017 (arXiv 1610.02915), results on CIFAR. The exact number is that of
        # pyramidnet110_a48_cifar10 of imgclsmob.
        ("pyramidnet-110-48", 10, 1.7, 0.1, 1_772_706),
    ],
)
def test_the_numbers_of_parameters_are_the_published_ones(
    name: str, n: int, published: float, last_digit: float, exactly: int
) -> None:
    parameters = size(built(name, n))
    assert parameters == exactly
    # Some published numbers are rounded, others are cut off.
    assert abs(parameters / 1e6 - published) < last_digit


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    # Zagoruyko & Komodakis 2016, table 4. The same code builds wrn-16-8 and wrn-28-5.
    [(40, 4, 8.9), (28, 10, 36.5), (22, 8, 17.2), (16, 8, 11.0), (16, 10, 17.1)],
)
def test_the_family_of_wide_resnets_has_the_published_numbers(
    depth: int, width: int, millions: float
) -> None:
    with torch.device("meta"):
        assert round(size(wide_resnet(CIFAR, 10, depth=depth, width=width)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "convolutions", "shortcuts", "linear"),
    [
        ("mnist-cnn", 2, 0, 2),
        ("allcnn-c", 9, 0, 0),
        ("alexnet", 5, 0, 1),
        # The depth 20 is 19 + 1: the two shortcuts do not count.
        ("preresnet-20", 19, 2, 1),
        # The depth 16 is 13 + 3: the shortcuts count, and the linear layer does not.
        ("wrn-16-8", 13, 3, 1),
        ("wrn-28-5", 25, 3, 1),
        ("pyramidnet-110-48", 109, 0, 1),
    ],
)
def test_the_depth_is_the_published_one(
    name: str, convolutions: int, shortcuts: int, linear: int
) -> None:
    network = built(name)
    units = of_type(network, PreActivationUnit)
    on_shortcuts = [layer for unit in units for layer in of_type(unit.shortcut, nn.Conv2d)]
    assert len(on_shortcuts) == shortcuts
    assert len(of_type(network, nn.Conv2d)) - shortcuts == convolutions
    assert len(of_type(network, nn.Linear)) == linear


@pytest.mark.parametrize("name", RESIDUAL)
def test_the_stages_work_on_32_16_and_8_pixels(name: str) -> None:
    network = built(name)
    units = [*of_type(network, PreActivationUnit), *of_type(network, PyramidalUnit)]
    sides: list[int] = []
    for unit in units:
        unit.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    network(torch.rand(2, *CIFAR))
    per_stage = len(units) // 3
    assert sides == [32] * per_stage + [16] * per_stage + [8] * per_stage


@pytest.mark.parametrize("name", RESIDUAL)
def test_convolutions_are_drawn_by_their_outputs_and_have_no_bias(name: str) -> None:
    network = built(name)
    for convolution in of_type(network, nn.Conv2d):
        weights = convolution.weight
        outputs, _, k, _ = weights.shape
        assert convolution.bias is None
        deviation = (2 / (k * k * outputs)) ** 0.5
        bound = 6 / (2 * weights.numel()) ** 0.5
        assert weights.std().item() == pytest.approx(deviation, rel=bound)
        assert weights.mean().abs().item() < 6 * deviation / weights.numel() ** 0.5
    assert all(not linear.bias.any() for linear in of_type(network, nn.Linear))


@pytest.mark.parametrize("side", [8, 7, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_pyramids_shortcut_is_the_average_padded_with_zeros(side: int, stride: int) -> None:
    unit = PyramidalUnit(3, 5, stride).eval()
    last = unit.branch[-1]
    # The branch returns zeros now.
    nn.init.zeros_(last.weight)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    shortcut = unit(images)
    half = -(-side // stride)
    assert shortcut.shape == (2, 5, half, half)
    for row in range(half):
        for column in range(half):
            rows = slice(stride * row, stride * (row + 1))
            columns = slice(stride * column, stride * (column + 1))
            average = images[:, :, rows, columns].mean(dim=(2, 3))
            torch.testing.assert_close(shortcut[:, :3, row, column], average)
    assert not shortcut[:, 3:].any()
    # The branch returns ones in all channels now.
    nn.init.ones_(last.bias)
    torch.testing.assert_close(unit(images), shortcut + 1)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 6, 1), (4, 6, 2)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_pre_activation_unit_is_the_sum_of_its_paths(
    inputs: int, outputs: int, stride: int, shared: bool
) -> None:
    unit = PreActivationUnit(inputs, outputs, stride, shared).eval()
    images = torch.randn(2, inputs, 8, 8, generator=torch.Generator().manual_seed(0))
    # The running statistics of the normalisation are as they were initialised.
    activated = (images / (1 + 1e-5) ** 0.5).relu()
    if inputs != outputs:
        shortcut = nn.functional.conv2d(activated, unit.shortcut.weight, stride=stride)
    elif shared:
        shortcut = activated
    else:
        shortcut = images
    torch.testing.assert_close(unit(images), unit.branch(activated) + shortcut)


def test_the_first_unit_of_each_stage_of_preresnet_shares_its_activation() -> None:
    units = of_type(built("preresnet-20"), PreActivationUnit)
    assert [unit.shared for unit in units] == [True, False, False] * 3


@pytest.mark.parametrize("name", ["alexnet", *RESIDUAL])
def test_there_is_no_dropout(name: str) -> None:
    assert not of_type(built(name), nn.Dropout)
    assert not of_type(built(name), factory.Dropout)


@pytest.mark.parametrize("name", ["alexnet", *RESIDUAL])
def test_every_parameter_has_a_part_in_the_logits(name: str) -> None:
    network = built(name)
    images = torch.randn(4, *CIFAR, generator=torch.Generator().manual_seed(1))
    nn.functional.cross_entropy(network(images), torch.arange(4)).backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
