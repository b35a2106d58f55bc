"""Residual networks for small images, as published: PreResNet-20, Wide ResNets and PyramidNet-110.

All begin with a 3x3 convolution of 16 filters, continue with three stages of equally many residual units of two 3x3
convolutions each, of which the second and the third stage begin with a stride of 2, and end with batch normalisation,
ReLU, the average over the image and a linear layer. They take any number of channels and images of any size.

Initialisation, as in the code that the papers were published with: convolutions without bias, normal with variance
2 / (k^2 outputs) (He et al. 2015, arXiv 1502.01852, equation 14), and no bias to begin with in the linear layer. None
has dropout: the tables whose numbers of parameters these networks match are without.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_FILTERS = 16


class PreActivationUnit(nn.Module):
    """A residual unit with batch normalisation and ReLU before each of its convolutions.

    He et al. 2016 (arXiv 1603.05027), figure 4 e; the widened one of Zagoruyko & Komodakis 2016 (arXiv 1605.07146),
    figure 1 c, is the same. Where the number of filters changes, the shortcut is a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shared: bool) -> None:
        """``shared``: the shortcut too begins after the first normalisation and ReLU, as in the network's first unit.

        So it does wherever it is a convolution.
        """
        super().__init__()
        self.shared = shared or inputs != outputs
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.branch = nn.Sequential(
            _convolution(inputs, outputs, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            _convolution(outputs, outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        activated = self.activation(images)
        return torch.add(
            self.branch(activated), self.shortcut(activated if self.shared else images)
        )


class PyramidalUnit(nn.Module):
    """A residual unit without its first ReLU and with a last normalisation, and a shortcut without parameters.

    Han et al. 2017 (arXiv 1610.02915), figure 6 d. The shortcut averages 2x2 where the branch has a stride of 2, and is
    padded with zeros to the number of the branch's filters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """``outputs`` is at least ``inputs``."""
        super().__init__()
        self.added = outputs - inputs
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            _convolution(inputs, outputs, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            _convolution(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )
        # An odd side is halved upwards, as the convolution of stride 2 does.
        self.shortcut = nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True)

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        shortcut = functional.pad(self.shortcut(images), (0, 0, 0, 0, 0, self.added))
        return torch.add(self.branch(images), shortcut)


def preresnet_20(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """PreResNet-20: the 20-layer network of He et al. 2015 (arXiv 1512.03385, section 4.2) with pre-activation units.

    The units are those of He et al. 2016, the first and the last as in its appendix; shortcuts that change the number
    of filters are 1x1 convolutions, as in that paper's code. 3 units a stage, 16, 32 and 64 filters.
    """
    return _pre_activation_network(image_shape[0], units=3, width=1, num_classes=num_classes)


def wide_resnet(
    image_shape: tuple[int, int, int], num_classes: int, *, depth: int, width: int
) -> nn.Module:
    """WRN-depth-width of Zagoruyko & Komodakis 2016 (table 1): (depth - 4) / 6 units a stage, 16, 32 and 64 x width."""
    return _pre_activation_network(
        image_shape[0], units=(depth - 4) // 6, width=width, num_classes=num_classes
    )


def pyramidnet_110_48(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """PyramidNet-110 (additive, alpha = 48) of Han et al. 2017 (table 1 and equation 2).

    18 units a stage; the k-th of the 54 units has 16 + 48 k / 54 filters, so that the last has 64. They are rounded to
    the nearest, as in the code that the paper was published with.
    """
    units, alpha = 18, 48
    count = 3 * units
    widths = [round(_FILTERS + alpha * unit / count) for unit in range(count + 1)]
    return _initialised(
        nn.Sequential(
            _convolution(image_shape[0], _FILTERS),
            nn.BatchNorm2d(_FILTERS),
            *(
                PyramidalUnit(inputs, outputs, stride=2 if unit in (units, 2 * units) else 1)
                for unit, (inputs, outputs) in enumerate(pairwise(widths))
            ),
            *_classifier(widths[-1], num_classes),
        )
    )


def _pre_activation_network(
    channels: int, *, units: int, width: int, num_classes: int
) -> nn.Module:
    layers: list[nn.Module] = [_convolution(channels, _FILTERS)]
    inputs = _FILTERS
    for stage in range(3):
        outputs = _FILTERS * width * 2**stage
        for unit in range(units):
            stride = 2 if stage > 0 and unit == 0 else 1
            layers.append(PreActivationUnit(inputs, outputs, stride, shared=len(layers) == 1))
            inputs = outputs
    return _initialised(nn.Sequential(*layers, *_classifier(inputs, num_classes)))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _classifier(inputs: int, num_classes: int) -> list[nn.Module]:
    pooled = [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return [*pooled, nn.Linear(inputs, num_classes)]


@torch.no_grad()
def _initialised(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return network
