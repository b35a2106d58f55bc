"""The networks: each takes images in [0, 1] or features, normalises them itself, returns logits.

Mean and standard deviation of the training split are buffers of the network, because attacks work
in pixel space and because weights are saved and loaded. During training, dropout draws from
PyTorch's global generator, which the training seeds.
"""

import difflib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version as release

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from taylorglo.errors import InputError, described, meant
from taylorglo.imports import FROM_USERS, imported, revision_of
from taylorglo.networks.residual import preresnet_20, pyramidnet_110_48, wide_resnet

# (C, H, W) of an image, or (F,) of a sample of F features.
ImageShape = tuple[int, ...]
Factory = Callable[[ImageShape, int], nn.Module]


class Normalize(nn.Module):
    """Normalisation of x, (N, C, H, W) or (N, F): (x - mean) / std, by channel or feature."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], axes: int = 2) -> None:
        """Keep one mean and one deviation for each channel or feature, in the units of the data.

        Args:
            mean: by channel or feature.
            std: by channel or feature, above 0.
            axes: number of axes after that of the channels: 2 for images, 0 for features.
        """
        super().__init__()
        shape = (-1, *[1] * axes)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(shape))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(shape))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise a batch."""
        return (images - self.mean) / self.std


class GrayToRGB(nn.Module):
    """A layer that repeats the channel of gray images: (N, 1, H, W) to (N, 3, H, W)."""

    def forward(self, images: Tensor) -> Tensor:
        """Repeat the channel of a batch, without a copy."""
        return images.expand(-1, 3, -1, -1)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) with probability ``p`` in [0, 1), a multiple of 2^-16.

    Other probabilities are rounded. The layer is like PyTorch's, but it draws one random number for
    four values, because drawing takes a large part of a step on a CPU. Values are drawn for in the
    order of channels_last, so that a seed gives the same result in every memory format.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """Blank values of a batch (N, ...) in training, and scale up the others."""
        if not self.training:
            return values
        dropped = round(self.p * 2**16)
        count = -(-values.numel() // 4)
        words = torch.empty(count, dtype=torch.int64, device=values.device)
        words.random_(-(2**63), None)
        kept = words.view(torch.int16)[: values.numel()] >= dropped - 2**15
        samples, *shape = values.shape
        kept = kept.view(samples, *shape[1:], shape[0]).movedim(-1, 1)
        return values * kept.to(values.dtype).mul_(2**16 / (2**16 - dropped))

    def extra_repr(self) -> str:
        """Return the probability, for ``print(network)``."""
        return f"p={self.p}"


def mlp(image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Build a network with one hidden layer of 128 ReLU units, for images or features."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(image_shape), 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, num_classes),
    )


def cnn(image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Build a network of two 3x3 convolutions and a linear layer, for images of 4x4 and larger.

    The convolutions have 16 and 32 filters, each with ReLU and 2x2 max-pooling. Here and in the
    networks below, pooling comes before ReLU: the result is the same, and ReLU has fewer values to
    compute. ReLU overwrites its input, which nothing else needs.
    """
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), num_classes),
    )


def mnist_cnn(image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Build the network for MNIST of the GLO and TaylorGLO papers (arXiv 1905.11528, 2002.00059).

    Assumed: the layers. The papers train a small network on MNIST for 20 000 steps of SGD with
    batches of 100, which is the training of TensorFlow's tutorial "A Guide to TF Layers: Building a
    Convolutional Neural Network". This is the network of that tutorial: 5x5 convolutions of 32 and
    64 filters that keep the size, each with ReLU and 2x2 max-pooling, 1024 ReLU units, dropout 0.4.
    The initialisation is PyTorch's. Images have to be 4x4 or larger.
    """
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 1024),
        nn.ReLU(inplace=True),
        Dropout(0.4),
        nn.Linear(1024, num_classes),
    )


def allcnn_c(image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Build All-CNN-C of Springenberg et al. 2015 (arXiv 1412.6806, tables 1 and 2).

    As in section 3.1, there is dropout of 0.2 on the input and of 0.5 after each layer that
    replaces a pooling. As in table 1, the last 1x1 convolution has a ReLU before the global
    average. Assumed, because the paper gives none: He initialisation, since nine layers without
    normalisation hardly learn from PyTorch's default. Images have to be 9x9 or larger.
    """

    def convolution(
        inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0
    ) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, size, stride, padding), nn.ReLU(inplace=True)]

    network = nn.Sequential(
        Dropout(0.2),
        *convolution(image_shape[0], 96, 3, padding=1),
        *convolution(96, 96, 3, padding=1),
        *convolution(96, 96, 3, stride=2, padding=1),
        Dropout(0.5),
        *convolution(96, 192, 3, padding=1),
        *convolution(192, 192, 3, padding=1),
        *convolution(192, 192, 3, stride=2, padding=1),
        Dropout(0.5),
        *convolution(192, 192, 3),
        *convolution(192, 192, 1),
        *convolution(192, num_classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        else:
            nn.init.zeros_(parameter)
    return network


def alexnet(image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Build AlexNet for CIFAR-10: five convolutions, and one linear layer in place of three.

    The numbers of filters are those of Krizhevsky 2014 (arXiv 1404.5997). Sizes and paddings are
    those of the version for 32x32 images in bearpaw/pytorch-classification (2.47 M parameters):
    11x11 with a stride of 4, then 5x5, each with ReLU and 2x2 max-pooling, then 3x3 three times
    with ReLU and a last pooling. As in that version, there is no normalisation and no dropout, and
    the initialisation is PyTorch's. Assumed: this is the AlexNet of the TaylorGLO papers.

    Raises:
        InputError: the images are smaller than 29x29.
    """
    channels, height, width = image_shape
    if min(height, width) < 29:
        raise InputError(
            f"model 'alexnet': takes images of 29x29 and larger, these are {height}x{width}"
        )

    def pooled(side: int) -> int:
        return ((side - 1) // 4 + 1) // 8

    return nn.Sequential(
        nn.Conv2d(channels, 64, 11, stride=4, padding=5),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(256 * pooled(height) * pooled(width), num_classes),
    )


_FACTORIES: dict[str, Factory] = {
    "mlp": mlp,
    "cnn": cnn,
    "mnist-cnn": mnist_cnn,
    "allcnn-c": allcnn_c,
    "alexnet": alexnet,
    "preresnet-20": preresnet_20,
    "wrn-16-8": partial(wide_resnet, depth=16, width=8),
    "wrn-28-5": partial(wide_resnet, depth=28, width=5),
    "pyramidnet-110-48": pyramidnet_110_48,
}
BUILT_IN = tuple(_FACTORIES)

# The networks for which bfloat16 was measured to be as accurate as float32, with
# `make bench-candidates` (docs/results.md).
BFLOAT16 = ("cnn", "mnist-cnn")


def build(
    name: str,
    image_shape: ImageShape,
    num_classes: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
) -> nn.Module:
    """Build a network from images (N, C, H, W) or features (N, F) to logits (N, num_classes).

    It is on the CPU, in training mode.

    Args:
        name: one of ``BUILT_IN``; ``torchvision:NAME``, a classifier of torchvision (gray images
            are repeated to three channels); or ``package.module:factory``, which is called as
            ``factory(image_shape, num_classes)`` and returns an ``nn.Module`` from normalised
            images (N, C, H, W), or features (N, F), to logits (N, num_classes).
        image_shape: (C, H, W), or (F,) of features, which of the named networks ``mlp`` takes.
        num_classes: the number of logits.
        mean: of the training split by channel or feature; of images of 8 bits in [0, 1].
        std: its standard deviation by channel or feature, above 0.
        seed: decides the initial weights. PyTorch's global generator is left as it was.

    Raises:
        InputError: there is no such network, or it cannot be built.
    """
    if not len(mean) == len(std) == image_shape[0] or min(std) <= 0:
        raise InputError(
            f"normalisation: {image_shape[0]} channels need as many means and positive deviations"
        )
    factory = _find(name)
    _check_kind(name, image_shape)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would seed the GPUs too, and fork_rng over no devices does not
        # restore those.
        torch.default_generator.manual_seed(seed)
        try:
            network = factory(image_shape, num_classes)
            if not isinstance(network, nn.Module):
                raise InputError(
                    f"model {name!r}: should return a torch.nn.Module, returned "
                    f"{type(network).__name__}"
                )
            _initialize_lazy(network, image_shape)
        except InputError:
            raise
        except FROM_USERS as error:
            raise InputError(
                f"model {name!r}: cannot be built for {_samples(image_shape)}: {described(error)}"
            ) from error
    normalize = Normalize(mean, std, axes=len(image_shape) - 1)
    return nn.Sequential(OrderedDict(normalize=normalize, network=network))


def _check_kind(name: str, image_shape: ImageShape) -> None:
    """Refuse features for a network of convolutions, which take images."""
    named = name in _FACTORIES or name.startswith("torchvision:")
    if len(image_shape) == 1 and named and name != "mlp":
        raise InputError(
            f"model {name!r}: takes images (C, H, W), and the data are samples of "
            f"{image_shape[0]} features: should be mlp, or a network of your own for (F,)"
        )


def _samples(image_shape: ImageShape) -> str:
    """Return what a network of this shape takes, in words."""
    if len(image_shape) == 1:
        return f"samples of {image_shape[0]} features"
    return f"images {image_shape}"


def _initialize_lazy(network: nn.Module, image_shape: ImageShape) -> None:
    """Give lazy modules, such as ``nn.LazyLinear``, their parameters.

    They take their sizes from the first batch that they see.
    """
    if any(is_lazy(value) for value in (*network.parameters(), *network.buffers())):
        with torch.no_grad():
            network.eval()(torch.zeros(2, *image_shape))
        network.train()


def skeleton(name: str, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Build a network on the device ``meta``, without numbers, to measure its size.

    Raises:
        InputError: there is no such network, or it cannot be built.
    """
    try:
        with torch.device("meta"):
            return _unnormalised(name, image_shape, num_classes)
    except InputError:
        # A network of a user may compute while it is built, which it cannot do on ``meta``.
        return _unnormalised(name, image_shape, num_classes).to("meta")


def revision(name: str) -> str:
    """Return a text that changes if the same name stands for another network.

    It is the checksum of the file of a user's factory, the version of torchvision, or empty for a
    built-in network.

    Raises:
        InputError: there is no such network.
    """
    module, colon, _ = name.partition(":")
    if not colon:
        return ""
    if module == "torchvision":
        return release("torchvision")
    _find(name)
    return revision_of(name)


def check(name: str, image_shape: ImageShape, num_classes: int) -> None:
    """Build the network once, and try a batch of two images of noise in both modes.

    The training mode is tried, too, because some networks return auxiliary outputs only there. The
    images are noise, because a network may standardise each image, which a black one does not bear.

    Raises:
        InputError: the network cannot be built, raises an error, or returns anything but a
            floating-point tensor of shape (2, num_classes) with finite numbers.
    """
    network = _unnormalised(name, image_shape, num_classes)
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    for training, mode in ((False, "evaluation"), (True, "training")):
        network.train(training)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                logits = network(images)
            except FROM_USERS as error:
                raise InputError(
                    f"model {name!r}: fails on {_samples(image_shape)} in {mode} mode: "
                    f"{described(error)}"
                ) from error
        expected = (
            f"model {name!r}: should return logits, a floating-point tensor of shape "
            f"(2, {num_classes}) for 2 images"
        )
        if not isinstance(logits, Tensor):
            raise InputError(f"{expected}; in {mode} mode it returned {type(logits).__name__}")
        if tuple(logits.shape) != (2, num_classes) or not logits.is_floating_point():
            raise InputError(
                f"{expected}; in {mode} mode it returned {logits.dtype} {tuple(logits.shape)}"
            )
        if not logits.isfinite().all():
            raise InputError(
                f"model {name!r}: returns NaN or infinite logits before any training, for random "
                f"images in {mode} mode; it should return finite numbers"
            )


def _unnormalised(name: str, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Build a network that leaves the images as they are."""
    channels = image_shape[0]
    mean, std = (0.0,) * channels, (1.0,) * channels
    return build(name, image_shape, num_classes, mean=mean, std=std, seed=0)


def _find(name: str) -> Factory:
    if name in _FACTORIES:
        return _FACTORIES[name]
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise InputError(
            f"model {name!r}: unknown; there are {', '.join(BUILT_IN)}, torchvision:NAME and "
            f"package.module:factory{meant(name, BUILT_IN)}"
        )
    if module == "torchvision":
        return _torchvision(attribute)
    return imported(name, f"model {name!r}", "factory(image_shape, num_classes)")


def _torchvision(name: str) -> Factory:
    # torchvision takes a second to import, and built-in networks do without it.
    from torchvision import models

    # Only classifiers are offered, because detection and segmentation networks would fetch the
    # weights of their backbone. GoogLeNet and Inception return auxiliary outputs in training.
    names: list[str] = models.list_models(module=models, exclude=("googlenet", "inception_v3"))
    if name not in names:
        alike = ", ".join(difflib.get_close_matches(name, names, n=5, cutoff=0.0))
        raise InputError(
            f"model 'torchvision:{name}': is no torchvision classifier with one output; there are "
            f"{len(names)}, such as {alike}"
        )

    def factory(image_shape: ImageShape, num_classes: int) -> nn.Module:
        if image_shape[0] not in (1, 3):
            raise InputError(
                f"model 'torchvision:{name}': takes 1 or 3 channels, the images have "
                f"{image_shape[0]}"
            )
        network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
        return nn.Sequential(GrayToRGB(), network) if image_shape[0] == 1 else network

    return factory
