"""Residual networks for small images, as published: PreResNet-20, Wide ResNets and PyramidNet-110.

All begin with a 3x3 convolution of 16 filters. Three stages of equally many residual units follow:
a unit has two 3x3 convolutions, and the second and the third stage begin with a stride of 2. All
end with batch normalisation, ReLU, the average over the image and a linear layer. They take any
number of channels and images of any size.

The initialisation is that of the code published with the papers: convolutions have no bias and are
normal with variance 2 / (k^2 outputs) (He et al. 2015, arXiv 1502.01852, equation 14), and the bias
of the linear layer is 0. There is no dropout, as in the published tables whose numbers of
parameters these networks match.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_FILTERS = 16


class PreActivationUnit(nn.Module):
    """A residual unit with batch normalisation and ReLU before each of its convolutions.

    It is that of He et al. 2016 (arXiv 1603.05027), figure 4 e, and the widened one of Zagoruyko &
    Komodakis 2016 (arXiv 1605.07146), figure 1 c. If the number of filters changes, the shortcut is
    a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shared: bool) -> None:
        """Build a unit.

        Args:
            inputs: number of filters of the input.
            outputs: number of filters of the output.
            stride: of the first convolution and of the shortcut.
            shared: whether the shortcut begins after the first normalisation and ReLU, too, as in
                the first unit of a network. A shortcut that is a convolution always does.
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
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        activated = self.activation(images)
        shortcut = self.shortcut(activated if self.shared else images)
        return torch.add(self.branch(activated), shortcut)


class PyramidalUnit(nn.Module):
    """A residual unit without its first ReLU, and with a normalisation at its end.

    It is that of Han et al. 2017 (arXiv 1610.02915), figure 6 d. Its shortcut has no parameters: it
    averages 2x2 pixels if the branch has a stride of 2, and it is padded with zeros to the number
    of filters of the branch.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build a unit.

        Args:
            inputs: number of filters of the input.
            outputs: number of filters of the output, at least ``inputs``.
            stride: of the first convolution and of the shortcut.
        """
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
        # An odd side is halved upwards, as the convolution of stride 2 halves it.
        self.shortcut = nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        shortcut = functional.pad(self.shortcut(images), (0, 0, 0, 0, 0, self.added))
        return torch.add(self.branch(images), shortcut)


def preresnet_20(image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build PreResNet-20: the 20 layers of He et al. 2015 with pre-activation units.

    The layers are those of arXiv 1512.03385, section 4.2, with 3 units a stage and 16, 32 and 64
    filters. The units are those of He et al. 2016, the first and the last one as in the appendix of
    that paper. Shortcuts that change the number of filters are 1x1 convolutions, as in its code.
    """
    return _pre_activation_network(image_shape[0], units=3, width=1, num_classes=num_classes)


def wide_resnet(
    image_shape: tuple[int, ...], num_classes: int, *, depth: int, width: int
) -> nn.Module:
    """Build WRN-depth-width of Zagoruyko & Komodakis 2016 (table 1).

    It has (depth - 4) / 6 units a stage, and 16, 32 and 64 times ``width`` filters.
    """
    return _pre_activation_network(
        image_shape[0], units=(depth - 4) // 6, width=width, num_classes=num_classes
    )


def pyramidnet_110_48(image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build PyramidNet-110 (additive, alpha = 48) of Han et al. 2017 (table 1 and equation 2).

    It has 18 units a stage. The k-th of the 54 units has 16 + 48 k / 54 filters, so that the last
    one has 64. They are rounded to the nearest number, as in the code published with the paper.
    """
    units = 18
    alpha = 48
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
