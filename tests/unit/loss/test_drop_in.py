"""A Taylor loss in the places where nn.CrossEntropyLoss may stand in PyTorch."""

import copy
import pickle
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap

from taylorglo.errors import InputError
from taylorglo.loss.dynamics import dynamics
from taylorglo.loss.functions import TaylorLoss

THETA = [0.3, -0.2, 0.1, -1.2, 0.4, 2.0, 0.5, -0.3, 0.5]
WEIGHTS = [0.5, 2.0, 0.0, 1.25, 3.0]
N = 5
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "none"},
    {"weight": WEIGHTS},
    {"weight": WEIGHTS, "reduction": "sum", "label_smoothing": 0.3},
    {"label_smoothing": 0.1},
]


def batch(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, class indices with one that is ignored by default, and distributions."""
    source = torch.Generator().manual_seed(3)
    shape = shape or (6, N)
    logits = torch.randn(shape, generator=source)
    indices = torch.randint(N, shape[:1] + shape[2:], generator=source)
    indices.view(-1)[1] = -100
    return logits, indices, torch.rand(shape, generator=source).softmax(1)


def value_and_gradient(loss: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, targets)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def assert_same(loss: Any, plain: TaylorLoss, logits: Tensor, targets: Tensor) -> None:
    found, expected = (value_and_gradient(f, logits, targets) for f in (loss, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# The options know nothing of the shape.
@pytest.mark.parametrize(
    ("shape", "options"), [((6, N), {}), *(((2, N, 3), options) for options in OPTIONS)], ids=str
)
def test_it_compiles_to_one_graph(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    loss = TaylorLoss(THETA, classes=N, **options)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    logits, indices, soft = batch(*shape)
    assert_same(compiled, loss, logits, indices)
    assert_same(compiled, loss, logits, soft)


# To compile the graph of the test above to machine code takes ten seconds.
@pytest.mark.long
def test_the_compiler_of_pytorch_gives_the_same_values() -> None:
    torch._dynamo.reset()
    loss = TaylorLoss(THETA)
    logits, indices, _ = batch()
    assert_same(torch.compile(loss, fullgraph=True), loss, logits, indices)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_exported_with_a_batch_of_any_size(options: dict[str, Any]) -> None:
    loss = TaylorLoss(THETA, **options)
    logits, indices, _ = batch()
    size = torch.export.Dim("size", min=2)
    shapes = ({0: size}, {0: size})
    program = torch.export.export(loss, (logits, indices), dynamic_shapes=shapes)
    more, targets = logits.repeat(2, 1), indices.repeat(2)
    torch.testing.assert_close(program.module()(more, targets), loss(more, targets))


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="onnxscript is not installed")
def test_it_is_exported_to_onnx(tmp_path: Path) -> None:
    logits, indices, _ = batch()
    program = torch.onnx.export(TaylorLoss(THETA), (logits, indices), dynamo=True)
    assert program is not None
    program.save(str(tmp_path / "loss.onnx"))
    assert (tmp_path / "loss.onnx").stat().st_size > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_traced_by_torchscript(options: dict[str, Any], tmp_path: Path) -> None:
    loss = TaylorLoss(THETA, **options)
    logits, indices, _ = batch()
    with warnings.catch_warnings():
        # PyTorch says that TorchScript is on its way out, and that Python's conditions are fixed.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(loss, (logits, indices))
        traced.save(str(tmp_path / "loss.pt"))
        loaded = torch.jit.load(str(tmp_path / "loss.pt"))
    assert_same(loaded, loss, logits + 1, indices.roll(2))


def test_autocast_computes_it_in_float32() -> None:
    layer = nn.Linear(8, N)
    loss = TaylorLoss(THETA)
    images, (_, indices, soft) = torch.randn(6, 8), batch()
    for targets in (indices, soft):
        with torch.autocast("cpu", torch.bfloat16):
            logits = layer(images)
            value = loss(logits, targets)
        assert (logits.dtype, value.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(value, loss(logits.float(), targets))
        value.backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_transforms_of_functions(options: dict[str, Any]) -> None:
    loss = TaylorLoss(THETA, **options)
    logits, indices, _ = batch(4, N, 3)
    expected = torch.stack(
        [loss(z[None], t[None]).sum() for z, t in zip(logits, indices, strict=True)]
    )

    def total(z: Tensor, t: Tensor) -> Tensor:
        value: Tensor = loss(z[None], t[None])
        return value.sum()

    torch.testing.assert_close(vmap(total)(logits, indices), expected)
    slopes = vmap(grad(total))(logits, indices)
    for slope, z, t in zip(slopes, logits, indices, strict=True):
        torch.testing.assert_close(slope, value_and_gradient(loss, z[None], t[None])[1][0])
    direction = torch.ones_like(logits[0])
    _, change = jvp(lambda z: total(z, indices[0]), (logits[0],), (direction,))
    torch.testing.assert_close(change, (slopes[0] * direction).sum(), rtol=1e-4, atol=1e-6)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits[0].clone().requires_grad_(), direction)
        change = forward_ad.unpack_dual(total(dual, indices[0])).tangent
    torch.testing.assert_close(change, (slopes[0] * direction).sum(), rtol=1e-4, atol=1e-6)
    curvature = hessian(total)(logits[0], indices[0])
    usual = torch.autograd.functional.hessian(lambda z: total(z, indices[0]), logits[0])
    torch.testing.assert_close(curvature, usual, rtol=1e-4, atol=1e-6)


def test_many_thetas_by_vmap() -> None:
    logits, indices, _ = batch()
    thetas = torch.tensor([THETA, [0.0] * 8 + [1.0]])
    loss = TaylorLoss(THETA)
    values = vmap(lambda theta: functional_call(loss, {"theta": theta}, (logits, indices)))(thetas)
    expected = [TaylorLoss(theta)(logits, indices) for theta in thetas.tolist()]
    torch.testing.assert_close(values, torch.stack(expected))


def pickled(loss: TaylorLoss) -> Any:
    return pickle.loads(pickle.dumps(loss))  # noqa: S301


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_is_a_loss_of_its_own(copied: Any) -> None:
    loss = TaylorLoss(THETA, weight=WEIGHTS, reduction="sum", classes=N, provenance={"sweep": "a"})
    logits, indices, _ = batch()
    expected = loss(logits, indices)
    other = copied(loss)
    assert torch.equal(other(logits, indices), expected)
    assert (other.classes, other.provenance) == (N, {"sweep": "a"})
    other.theta.zero_()
    assert torch.equal(loss(logits, indices), expected)


def test_nothing_of_it_is_in_the_state_of_a_module() -> None:
    model = nn.Module()
    model.layer, model.loss = nn.Linear(2, N), TaylorLoss(THETA, weight=WEIGHTS)
    assert list(model.state_dict()) == ["layer.weight", "layer.bias"]
    model.load_state_dict(nn.ModuleDict({"layer": nn.Linear(2, N)}).state_dict())
    assert model.loss.theta.tolist() == THETA


@pytest.mark.parametrize("change", ["half", "bfloat16", "float", "double"])
def test_a_models_precision_rounds_neither_theta_nor_the_weights(change: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), TaylorLoss(THETA, weight=[0.1] * N))
    getattr(model, change)()
    assert model[1].theta.dtype == model[1].weight.dtype == torch.float64
    assert (model[1].theta.tolist(), model[1].weight.tolist()) == (THETA, [0.1] * N)


def test_theta_and_weights_stay_on_the_cpu_beside_a_device_without_float64() -> None:
    loss = TaylorLoss(THETA, weight=WEIGHTS)
    short = TaylorLoss(torch.tensor(THETA))
    # Apple's GPUs, of which PyTorch can only pretend here that there is one.
    with FakeTensorMode() as mode:
        for name, value in [*loss.named_buffers(), *short.named_buffers()]:
            setattr(loss if value.dtype == torch.float64 else short, name, mode.from_tensor(value))
        loss.to("mps:0")
        short.to("mps:0")
        for value in (loss.theta, loss.weight):
            assert value is not None
            assert (value.device.type, value.dtype) == ("cpu", torch.float64)
        assert (short.theta.device.type, short.theta.dtype) == ("mps", torch.float32)


def test_a_change_of_theta_in_place_counts_at_once() -> None:
    logits, indices, _ = batch()
    loss = TaylorLoss(THETA)
    before = loss(logits, indices)
    # Not even PyTorch's counter of changes notices this one.
    loss.theta.data.mul_(2)
    loss.theta.data[:2] = torch.tensor(THETA[:2])
    torch.testing.assert_close(loss(logits, indices), 2 * before)


def test_another_number_of_classes_is_told_once_with_what_changes() -> None:
    logits, indices, _ = batch()
    loss = TaylorLoss(THETA, classes=10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            loss(logits, indices)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "found for 10 classes, and the logits have 5: " in str(caught[0].message)
    text = str(caught[0].message)
    for name, old, new in zip(
        ("A", "B", "p*"), dynamics(THETA, 10), dynamics(THETA, 5), strict=True
    ):
        shown = ["none" if value is None else f"{value:.3g}" for value in (old, new)]
        assert f"{name} {shown[0]} -> {shown[1]}" in text
    other = TaylorLoss(THETA, classes=10)
    with pytest.warns(UserWarning, match="found for 10 classes"):
        other(logits, indices)


def test_no_warning_without_a_reason_or_while_compiling() -> None:
    torch._dynamo.reset()
    logits, indices, _ = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        TaylorLoss(THETA, classes=N)(logits, indices)
        TaylorLoss(THETA)(logits, indices)
        other = TaylorLoss(THETA, classes=10)
        torch.compile(other, fullgraph=True, backend="eager")(logits, indices)


def test_importing_the_package_takes_no_torch_and_a_loss_takes_torch_alone(tmp_path: Path) -> None:
    TaylorLoss(THETA, classes=10).save(tmp_path / "loss.json")
    script = """if True:
        import sys
        kept = {"taylorglo", "torch", "torchgen"}
        kept |= {"typing_extensions", "sympy", "mpmath", "networkx"}  # PyTorch needs them

        class OnlyTorch:
            def find_spec(self, name, path=None, target=None):
                package = name.partition(".")[0]
                if package in sys.stdlib_module_names or package in kept or path is not None:
                    return None
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, OnlyTorch())
        import taylorglo
        assert "torch" not in sys.modules
        import torch
        for source in ("loss.json", "zoo:digits"):
            logits = torch.zeros(4, 10, requires_grad=True)
            loss = taylorglo.load_loss(source, label_smoothing=0.1)
            loss(logits, torch.arange(4)).backward()
            assert logits.grad.abs().sum() > 0
        for source in ("s3://bucket/loss.json", "models:/digits-loss@champion"):
            try:
                taylorglo.load_loss(source)
            except taylorglo.InputError as error:
                print(error)
    """
    command = [sys.executable, "-W", "ignore", "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.endswith("not installed: pip install 'taylorglo[pipeline]'") for line in lines)


def test_the_options_are_given_when_a_loss_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "loss.json"
    TaylorLoss(THETA, classes=N).save(path)
    logits, indices, _ = batch()
    options: Any = {"weight": WEIGHTS, "reduction": "none", "label_smoothing": 0.1}
    loaded = TaylorLoss.load(path, **options)
    assert torch.equal(loaded(logits, indices), TaylorLoss(THETA, **options)(logits, indices))
    with pytest.raises(InputError, match=r"^reduction should be none, mean or sum"):
        TaylorLoss.load(path, reduction="max")  # type: ignore[arg-type]
