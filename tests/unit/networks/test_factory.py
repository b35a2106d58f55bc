"""The networks: shapes, seeds, normalisation, and what is refused."""

import textwrap

import pytest
import torch

from taylorglo.errors import InputError
from taylorglo.networks import factory as models

DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
RESIDUAL = ("preresnet-20", "wrn-16-8", "wrn-28-5", "pyramidnet-110-48")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A user's package on sys.path, with good and bad factories."""
    (tmp_path / "user_networks.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn

        def linear(image_shape, num_classes):
            channels, height, width = image_shape
            return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))

        def failing(image_shape, num_classes):
            raise RuntimeError("no such\\nlayer")

        def no_module(image_shape, num_classes):
            return "network"

        def too_many(image_shape, num_classes):
            return linear(image_shape, num_classes + 1)

        def bad_forward(image_shape, num_classes):
            return nn.Linear(3, 3)

        class Labels(nn.Module):
            def forward(self, images):
                return torch.zeros(len(images), 10, dtype=torch.int64)

        class Auxiliary(nn.Module):
            def forward(self, images):
                logits = torch.zeros(len(images), 10)
                return (logits, logits) if self.training else logits

        def labels(image_shape, num_classes):
            return Labels()

        def auxiliary(image_shape, num_classes):
            return Auxiliary()

        number = 3
        """)
    )
    (tmp_path / "user_broken.py").write_text("import torch\nraise LookupError('half installed')\n")
    monkeypatch.syspath_prepend(tmp_path)


def _built(name, shape, num_classes=10, seed=0):
    return models.build(name, shape, num_classes, (0.5,) * shape[0], (0.25,) * shape[0], seed)


def _parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(
            (name, shape)
            for name in ("mlp", "cnn", "mnist-cnn")
            for shape in (DIGITS, MNIST, CIFAR)
        ),
        *(("allcnn-c", shape) for shape in ((1, 9, 9), MNIST, CIFAR)),
        *(("alexnet", shape) for shape in ((1, 29, 29), CIFAR, (3, 64, 40))),
        *((name, shape) for name in RESIDUAL for shape in (DIGITS, (3, 1, 1), CIFAR)),
        *((name, (1, 9, 13)) for name in ("preresnet-20", "pyramidnet-110-48")),
        *(("torchvision:resnet18", shape) for shape in (DIGITS, CIFAR)),
    ],
)
@pytest.mark.parametrize("num_classes", [2, 10])
def test_a_network_takes_images_and_returns_logits(name, shape, num_classes):
    models.check(name, shape, num_classes)
    logits = _built(name, shape, num_classes)(torch.rand(3, *shape))
    assert logits.shape == (3, num_classes)
    assert logits.isfinite().all()


def test_every_built_in_network_is_covered_above():
    assert set(models.BUILT_IN) == {"mlp", "cnn", "mnist-cnn", "allcnn-c", "alexnet", *RESIDUAL}


@pytest.mark.parametrize("name", [*models.BUILT_IN, "torchvision:resnet18"])
def test_the_seed_decides_the_weights_and_nothing_else_does(name):
    torch.manual_seed(1)
    first = _built(name, CIFAR, seed=7).state_dict()
    torch.manual_seed(2)
    again = _built(name, CIFAR, seed=7).state_dict()
    other = _built(name, CIFAR, seed=8).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["cnn", "allcnn-c"])
def test_the_global_generator_is_left_alone(name):
    before = torch.get_rng_state()
    models.check(name, CIFAR, 10)
    _built(name, CIFAR)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", CIFAR), ("cnn", DIGITS), ("torchvision:resnet18", DIGITS)]
)
def test_the_first_stage_normalises_each_channel(name, shape):
    mean, std = (0.2, 0.4, 0.6)[: shape[0]], (0.1, 0.3, 0.5)[: shape[0]]
    plain = models.build(name, shape, 10, (0.0,) * shape[0], (1.0,) * shape[0], seed=3).eval()
    normalising = models.build(name, shape, 10, mean, std, seed=3).eval()
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(shape[0])], dim=1)
    torch.testing.assert_close(normalising(images), plain(by_hand))
    torch.testing.assert_close(next(normalising.children())(images), by_hand)


def test_mean_and_std_travel_with_the_weights_and_are_not_trained():
    network = models.build("mlp", DIGITS, 10, (0.3,), (0.4,), seed=0)
    other = _built("mlp", DIGITS, seed=5)
    other.load_state_dict(network.state_dict())
    images = torch.rand(2, *DIGITS)
    assert torch.equal(network(images), other(images))
    assert {"normalize.mean", "normalize.std"} == {name for name, _ in network.named_buffers()}


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_number_of_parameters_is_that_of_the_layers(num_classes):
    n = num_classes
    assert _parameters(_built("mlp", MNIST, n)) == (784 + 1) * 128 + 129 * n
    assert _parameters(_built("cnn", DIGITS, n)) == 10 * 16 + (16 * 9 + 1) * 32 + (32 * 4 + 1) * n
    assert (
        _parameters(_built("mnist-cnn", MNIST, n))
        == 26 * 32 + 801 * 64 + (64 * 49 + 1) * 1024 + 1025 * n
    )
    # Springenberg et al. 2015, table 1 (C) and 2: seven 3x3 convolutions, two 1x1
    allcnn_c = (
        (27 + 1) * 96
        + 2 * (864 + 1) * 96
        + (864 + 1) * 192
        + 3 * (1728 + 1) * 192
        + 193 * 192
        + 193 * n
    )
    assert _parameters(_built("allcnn-c", CIFAR, n)) == allcnn_c
    if n == 10:
        assert allcnn_c == 1_369_738
        assert _parameters(_built("mnist-cnn", MNIST, n)) == 3_274_634


def test_allcnn_c_averages_over_6x6_and_drops_0_2_then_0_5():
    network = _built("allcnn-c", CIFAR)
    sizes = []
    pooling = next(
        module for module in network.modules() if isinstance(module, torch.nn.AdaptiveAvgPool2d)
    )
    pooling.register_forward_hook(lambda _module, inputs, _output: sizes.append(inputs[0].shape))
    network(torch.rand(1, *CIFAR))
    assert sizes == [(1, 10, 6, 6)]
    assert [module.p for module in network.modules() if isinstance(module, models.Dropout)] == [
        0.2,
        0.5,
        0.5,
    ]


def test_gray_images_are_repeated_for_torchvision():
    gray = models.build("torchvision:resnet18", (1, 32, 32), 10, (0.5,), (0.25,), seed=0).eval()
    colour = models.build("torchvision:resnet18", CIFAR, 10, (0.5,) * 3, (0.25,) * 3, seed=0).eval()
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(gray(images), colour(images.repeat(1, 3, 1, 1)))


def test_a_users_factory_is_built_from_the_seed(factories):
    models.check("user_networks:linear", CIFAR, 7)
    first, again = (_built("user_networks:linear", CIFAR, 7, seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "user_networks:failing",
            r"cannot be built for images \(3, 32, 32\): RuntimeError: no such layer$",
        ),
        ("user_networks:no_module", r"should return a torch.nn.Module, returned str"),
        (
            "user_networks:too_many",
            r"should return .* \(2, 10\) .* evaluation mode it returned torch.float32 \(2, 11\)",
        ),
        ("user_networks:labels", r"evaluation mode it returned torch.int64 \(2, 10\)"),
        ("user_networks:auxiliary", r"training mode it returned tuple"),
        (
            "user_networks:bad_forward",
            r"fails on images \(3, 32, 32\) in evaluation mode: RuntimeError: ",
        ),
        ("user_networks:number", r"should be callable as factory\(image_shape, num_classes\)"),
        ("user_networks:absent", r"cannot be imported: AttributeError: .*'absent'"),
        ("user_broken:network", r"cannot be imported: LookupError: half installed"),
        (
            "no_such_package.networks:linear",
            r"cannot be imported: ModuleNotFoundError: .*no_such_package",
        ),
        (
            "resnet18",
            r"unknown; there are mlp, cnn, mnist-cnn, allcnn-c, alexnet, preresnet-20, wrn-16-8, wrn-28-5, "
            r"pyramidnet-110-48, torchvision:NAME and package.module:factory",
        ),
        ("user_networks:", r"unknown; there are"),
        (":linear", r"unknown; there are"),
        ("torchvision:resnet19", r"there are alexnet, .*resnet18, resnet34"),
        ("torchvision:googlenet", r"no torchvision classifier with one output"),
        ("torchvision:fcn_resnet50", r"no torchvision classifier with one output"),
        ("torchvision:vit_b_16", r"in evaluation mode: AssertionError: Wrong image height"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_in_one_line(factories, name, message):
    with pytest.raises(InputError, match=message) as caught:
        models.check(name, CIFAR, 10)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"model {name!r}: ")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("allcnn-c", (1, 8, 8), "fails on images"),
        ("alexnet", MNIST, "^model 'alexnet': takes images of 29x29 and larger, these are 28x28$"),
        (
            "alexnet",
            (3, 32, 28),
            "^model 'alexnet': takes images of 29x29 and larger, these are 32x28$",
        ),
        ("torchvision:resnet18", (2, 32, 32), "takes 1 or 3 channels, the images have 2"),
    ],
)
def test_images_of_an_unfit_shape_are_refused(name, shape, message):
    with pytest.raises(InputError, match=message):
        models.check(name, shape, 10)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.2,) * 3), ((0.5,) * 3, (0.2,)), ((0.5,) * 3, (0.2, 0.0, 0.2))]
)
def test_normalisation_needs_a_mean_and_a_positive_std_per_channel(mean, std):
    with pytest.raises(InputError, match="3 channels need"):
        models.build("mlp", CIFAR, 10, mean, std, seed=0)


# Dropout


def _dropped(p: float, values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    result: torch.Tensor = models.Dropout(p)(values)
    return result


@pytest.mark.parametrize("p", [0.0, 0.2, 0.4, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(p):
    values = torch.ones(1000, 1001)
    found = _dropped(p, values)
    scale = 1 / (1 - round(p * 2**16) / 2**16)
    assert set(found.unique().tolist()) <= {0.0, torch.tensor(scale).item()}
    kept, deviation = (found > 0).double().mean().item(), (p * (1 - p) / values.numel()) ** 0.5
    assert abs(kept - (1 - p)) <= 5 * deviation + 2**-17
    assert found.double().mean().item() == pytest.approx(1, abs=5 * deviation * scale + 1e-6)


def test_dropout_draws_each_value_of_its_own():
    """Neither the four values of one random number go together, nor the images of a batch."""
    kept = (_dropped(0.5, torch.ones(64, 4096)) > 0).double()
    for shift in (1, 2, 3, 64, 64 * 2, 64 * 3):
        flat = kept.t().flatten()  # the order of the draws: the images of a batch last
        assert (
            abs(torch.corrcoef(torch.stack([flat[:-shift], flat[shift:]]))[0, 1].item())
            < 5 / len(flat) ** 0.5
        )


@pytest.mark.parametrize(
    ("p", "expected"), [(2**-16, 1), (2**-18, 0), (1.4 * 2**-16, 1), (1.6 * 2**-16, 2)]
)
def test_dropout_rounds_its_probability(p, expected):
    found = _dropped(p, torch.ones(1, 4))
    assert found.max().item() == torch.tensor(2**16 / (2**16 - expected)).item()


def test_dropout_is_nothing_in_evaluation_and_passes_gradients_of_what_it_keeps():
    values = torch.rand(5, 3, 7, 9, requires_grad=True)
    layer = models.Dropout(0.4)
    state = torch.get_rng_state()
    assert layer.eval()(values) is values
    assert torch.equal(torch.get_rng_state(), state)
    found = layer.train()(values)
    found.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values, found)
    assert repr(layer) == "Dropout(p=0.4)"


@pytest.mark.parametrize("shape", [(6, 5, 7, 3), (6, 11), (4, 3, 5), (1, 1, 1, 1)])
def test_dropout_draws_the_same_in_every_memory_format(shape):
    values = torch.rand(shape) + 0.1
    found = _dropped(0.5, values)
    assert torch.equal(_dropped(0.5, values), found)
    assert not torch.equal(_dropped(0.5, values, seed=1), found) or values.numel() == 1
    turned = values.movedim(0, -1).contiguous().movedim(-1, 0)
    assert torch.equal(_dropped(0.5, turned), found)
    if len(shape) == 4:
        other = values.contiguous(memory_format=torch.channels_last)
        assert torch.equal(_dropped(0.5, other), found)
    assert torch.equal(_dropped(0.5, values.bfloat16()) > 0, found > 0)
    assert _dropped(0.5, values.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "shape"), [("cnn", (1, 8, 8)), ("cnn", (3, 9, 10)), ("mnist-cnn", (1, 12, 12))]
)
def test_pooling_before_relu_is_relu_before_pooling(model, shape):
    network = models.build(model, shape, 10, (0.5,) * shape[0], (0.25,) * shape[0], seed=0).eval()
    layers = list(network.get_submodule("network").children())
    for index, layer in enumerate(layers[:-1]):
        if isinstance(layer, torch.nn.MaxPool2d):
            assert isinstance(layers[index + 1], torch.nn.ReLU)
            layers[index], layers[index + 1] = layers[index + 1], layer
    turned = torch.nn.Sequential(network.get_submodule("normalize"), *layers)
    images, labels = torch.rand(16, *shape), torch.arange(16) % 10
    gradients = []
    for each in (network, turned):
        logits = each(images)
        network.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        gradients.append([logits, *(parameter.grad.clone() for parameter in network.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
