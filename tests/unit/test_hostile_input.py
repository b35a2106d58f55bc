"""Files and options that somebody made to hang, flood or crash the program.

Each is refused in one short message. The fuzzing of ``test_fuzzing.py`` draws others.
"""

import json
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import memory
from safetensors.torch import load_file, save_file

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.errors import MAX_LINE, MAX_LINES, InputError, printable
from taylorglo.loss.functions import TaylorLoss
from taylorglo.loss.polynomial import checked_theta
from taylorglo.networks.factory import build
from taylorglo.networks.weights import Origin, weights_of
from taylorglo.services.registry import load_loss
from taylorglo_pipelines.cli import main
from taylorglo_pipelines.config import load, with_overrides

# A hang is ended by this alarm.
pytestmark = pytest.mark.timeout(120)

MANY = 100_000
DEEP = "[" * MANY + "]" * MANY


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    with memory():
        yield


def problem(call: Callable[[], object]) -> str:
    """Return the message of our own error, which has to be short."""
    with pytest.raises(InputError) as caught:
        call()
    lines = str(caught.value).split("\n")
    assert len(lines) <= MAX_LINES
    assert all(0 < len(line) <= MAX_LINE and line.isprintable() for line in lines)
    return str(caught.value)


def no_files(folder: Path) -> dict[str, Path]:
    """Return paths that are there, but are no files."""
    os.mkfifo(folder / "fifo")
    return {
        "Is a directory": folder,
        "Not a regular file": folder / "fifo",
        # The link has no end, either.
        "Not a regular file ": linked(folder / "link", Path("/dev/zero")),
        "Not a path: it has a null byte": Path("a\0b"),
        "File name too long": Path("x" * 5000),
    }


def linked(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


# Losses


def saved(**changes: object) -> str:
    loss = {"format": "taylorglo.loss/1", "theta": [0.5] * 8, "order": 3, "classes": 10}
    return json.dumps({**loss, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(order=10**9), "order of a Taylor loss should be at most 8, is 1000000000"),
        (saved(order=10**400), "order of a Taylor loss should be at most 8, is 1000"),
        (saved(order=9, theta=[0.5] * 47), "order of a Taylor loss should be at most 8, is 9"),
        (saved(order=-(10**9)), "order of a Taylor loss should be at least 2, is -1000000000"),
        (saved(order=True), "order and classes should be whole numbers"),
        (saved(order=3.0), "order and classes should be whole numbers"),
        (saved(classes=True), "order and classes should be whole numbers"),
        (saved(classes=10**400), "classes should be at most 1000000, is 1000"),
        (saved(theta=[0.5] * MANY), "theta has 100000 numbers; there should be 8 for order 3"),
        (saved(theta=[True] * 8), "theta should be a list of numbers"),
        (saved(theta=["0.5"] * 8), "theta should be a list of numbers"),
        (saved(theta=[None] * 8), "theta should be a list of numbers"),
        (saved(theta=[[0.5]] * 8), "theta should be a list of numbers"),
        (saved(theta=[1e31] * 8), "theta[0] is 1e+31; it should be a number between +-1e+30"),
        (saved(provenance={"fitness": float("nan")}), "all numbers finite"),
        (saved(provenance={"a": [float("inf")]}), "all numbers finite"),
        (saved().replace('"order": 3', '"order": ' + "9" * 5000), "a number has 5000 digits"),
        (saved().replace('"order": 3', '"order": 3, "order": 4'), "the key 'order' is there twice"),
        (saved(provenance=0).replace("0}", f"{DEEP}}}"), "the values are nested too deeply"),
        (DEEP, "the values are nested too deeply"),
        ('{"a":' * MANY + "1" + "}" * MANY, "the values are nested too deeply"),
        (saved(provenance={"a": "x" * 10**6}), "Too large: should have at most 1000000 bytes"),
        (saved().encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
        (b"\xef\xbb\xbf" + saved().encode(), "Unexpected UTF-8 BOM"),
        (b"\0" * 1000, "Expecting value"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) and len(value) < 100 else "",
)
def test_losses(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "loss.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (TaylorLoss.load, load_loss):
        line = problem(lambda read=read: read(path))
        assert line.startswith(f"{path}: ")
        assert message in line


def test_what_is_no_file_is_no_loss(tmp_path: Path) -> None:
    for reason, path in no_files(tmp_path).items():
        assert reason.strip() in problem(lambda path=path: TaylorLoss.load(path))


@pytest.mark.parametrize("value", [True, False, "0.5", b"1", None, [0.5], 1j, 10**400])
def test_what_is_no_number_is_none_in_a_theta(value: Any) -> None:
    assert problem(lambda: checked_theta([0.5] * 7 + [value])).startswith("theta[7] is ")
    assert problem(lambda: TaylorLoss([value] + [0.5] * 7)).startswith("theta[0] is ")


@pytest.mark.parametrize("count", [10**6, 10, 0])
def test_the_order_of_a_theta_is_looked_for_in_bounded_time(count: int) -> None:
    assert problem(lambda: checked_theta([0.5] * count)).startswith(f"theta has {count} numbers")


@pytest.mark.parametrize("classes", ["1" + "0" * 400, "1000001", "-5"])
def test_numbers_of_classes(classes: str, capsys: pytest.CaptureFixture[str]) -> None:
    for loss in ("baikal", "1 2 3 4 5"):
        assert main(["inspect", *loss.split(), "--classes", classes]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("taylorglo: error: number of classes should be at ")


# Configurations


def laughs(first: str, again: str) -> str:
    """Return a YAML text in which each of many lines has the one before it nine times."""
    names = [f"a{number}" for number in range(20)]
    lines = [f"{names[0]}: &{names[0]} {first}"]
    for name, before in zip(names[1:], names, strict=False):
        lines.append(f"{name}: &{name} {again.replace('X', ', '.join([f'*{before}'] * 9))}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (laughs("[x, x, x]", "[X]"), "there are more than 100000 values"),
        (laughs("{x: 1}", "{<<: [X]}"), "there are more than 100000 values"),
        (f"a: [{'1, ' * 200_000}]", "there are more than 100000 values"),
        ("a: &a [*a]", "the alias *a is in what it stands for"),
        ("a: &a {b: *a}", "the alias *a is in what it stands for"),
        ("a: &a {<<: *a}", "the alias *a is in what it stands for"),
        ("[" * 2000 + "]" * 2000, "there are more than 20 values in one another"),
        ("[" * MANY, "there are more than 20 values in one another"),
        ("- " * MANY, "there are more than 20 values in one another"),
        ("{a: " * MANY, "there are more than 20 values in one another"),
        (f"seed: {'9' * 5000}", "a number has 5000 characters"),
        (f"seed: 0x{'f' * MANY}", "a number has 100002 characters"),
        (f"seed: {'1.' + '0' * MANY}", "a number has 100002 characters"),
        (f"seed: {'1:' * 1000}1", "seed: should be a whole number"),
        ("seed: !!int x", "'x' is not of the kind 'int'"),
        ("seed: !!bool x", "'x' is not of the kind 'bool'"),
        ("seed: !!binary aGk=", "could not determine a constructor for the tag"),
        ("seed: !!timestamp 2024-01-01", "could not determine a constructor for the tag"),
        ("seed: !!set {1}", "could not determine a constructor for the tag"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("!!map x", "expected a mapping node"),
        ("seed: 1\n---\nseed: 2", "found another document"),
        ("\tseed: 1", r"found character '\t' that cannot start any token"),
        ("seed: \x01", "unacceptable character #x0001"),
        ("training: {steps: 1, steps: 2}", "the key 'steps' is there twice"),
        ("training: {<<: {steps: 5}, <<: {seed: 1}}", "the key '<<' is there twice"),
        ("? [a]\n: 1", "found unhashable key"),
        ("#" * 1_000_001, "Too large: should have at most 1000000 bytes"),
        ("name: digits\n".encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
        ('name: "\\e[31m"', r"name: should have no control characters (got '\x1b[31m')"),
        ('data: {root: "a\\0b"}', "data.root: should have no control characters"),
        ("training: {steps: 100000000000000000000000000000}", "less than or equal to 100000000"),
        ("training: {steps: .inf}", "training.steps: should be a finite number"),
        ('"\\e[31m": 1', r"\x1b[31m: unknown key"),
        (f"{'k' * 1000}: 1", "kkk...kkk"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) and len(value) < 100 else "",
)
def test_configurations(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = problem(lambda: load(path))
    assert line.startswith(f"{path}: ")
    assert message in line


def test_what_is_no_file_is_no_configuration(tmp_path: Path) -> None:
    for reason, path in no_files(tmp_path).items():
        assert f"cannot be read: {reason.strip()}" in problem(lambda path=path: load(path))


def test_ten_thousand_problems_are_twenty_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("\n".join(f"key{number}: {'x' * 20}" for number in range(10_000)))
    assert main(["run", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert all(line.startswith(f"taylorglo: error: {path}: key") for line in lines)
    assert lines[-1].endswith(" ... and 9 980 more")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (DEEP[:MANY], "there are more than 20 values in one another"),
        ("\x1b[2J", "unacceptable character #x001b"),
        ("&a [*a]", "the alias *a is in what it stands for"),
        ("9" * 5000, "a number has 5000 characters"),
        ("{steps: 1, steps: 2}", "the key 'steps' is there twice"),
        ("!!int x", "'x' is not of the kind 'int'"),
    ],
)
def test_options(value: str, message: str) -> None:
    line = problem(lambda: with_overrides({}, [f"training={value}"]))
    assert line.startswith(f"--set training={printable(value[:50])}")
    assert "the value is not YAML: " in line
    assert message in line


def test_a_line_of_a_command_has_at_most_500_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{{{'k' * 900}: 1, name: {'n' * 900_000}, search: {{filters: {'f' * 9000}}}}}")
    assert main(["run", str(path), "--set", f"training.steps={'s' * 100_000}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 500 and line.isprintable() for line in lines)


# Files of tensors


@pytest.fixture(scope="module")
def network(digits: Dataset) -> bytes:
    """The weights of a network for the digits."""
    built = build(
        "mlp", digits.image_shape, digits.num_classes, mean=digits.mean, std=digits.std, seed=0
    )
    return weights_of(built, Origin("mlp", digits.image_shape, digits.num_classes))


@pytest.fixture
def attacked(
    network: bytes, saved_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """A function that attacks weights, and returns the line of the error."""

    def attack(content: bytes | None, *words: str, path: Path = tmp_path / "w.safetensors") -> str:
        if content is not None:
            path.write_bytes(content)
        few = [f"--set={value}" for value in ("images=2", "pgd_steps=1", "pgd_restarts=1")]
        status = main(["attack", str(path), f"--data={saved_digits}", *few, *words])
        output = capsys.readouterr()
        assert (status, output.out == "") in ((0, False), (2, True))
        lines = output.err.splitlines()
        assert len(lines) == (status == 2)
        assert all(len(line) <= 500 and line.isprintable() for line in lines)
        return output.err

    return attack


def with_metadata(content: bytes, key: str, text: str) -> bytes:
    """Return the bytes of a .safetensors file with other metadata."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = {key: text}
    changed = json.dumps(header).encode()
    return struct.pack("<Q", len(changed)) + changed + content[8 + length :]


def test_whole_weights_are_attacked(attacked: Callable[..., str], network: bytes) -> None:
    # Without this test, the others would pass too if everything were refused.
    assert attacked(network) == ""
    assert attacked(network, "--model-name=mlp") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "are not weights in safetensors: "),
        ("{", "are not weights in safetensors: "),
        (DEEP, "the values are nested too deeply"),
        ("9" * 5000, "a number has 5000 digits"),
        ("[]", "do not name their network; give it with --model-name"),
        ("null", "do not name their network"),
        ('"mlp"', "do not name their network"),
        ("{}", "do not name their network"),
        ('{"model": 3}', "do not name their network"),
        ('{"model": ["mlp"]}', "do not name their network"),
        ('{"model": "mlp", "model": "cnn"}', "the key 'model' is there twice"),
        ('{"model": "os:getcwd"}', "belong to a network of somebody's own; if you trust it"),
        ('{"model": "' + "x" * MANY + '"}', "unknown; there are mlp"),
        (r'{"model": "\u001b[2J"}', "unknown; there are mlp"),
        ('{"model": "torchvision:nothing"}', "is no torchvision classifier"),
        ('{"model": "wrn-28-5"}', "these weights do not fit model 'wrn-28-5'"),
    ],
    ids=lambda value: value[:30] if len(value) < 100 else "",
)
def test_metadata_of_weights(
    attacked: Callable[..., str], network: bytes, text: str, message: str
) -> None:
    assert message in attacked(with_metadata(network, "taylorglo", text))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(
    attacked: Callable[..., str], network: bytes, number: float, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(network)
    state = load_file(path)
    state["network.1.weight"][0, 0] = number
    save_file(state, path)
    line = attacked(None, "--model-name=mlp", path=path)
    assert "network.1.weight has NaN or infinite numbers" in line


def test_weights_whose_logits_are_no_numbers(
    attacked: Callable[..., str], network: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(network)
    state = load_file(path)
    save_file({**state, "normalize.std": torch.zeros_like(state["normalize.std"])}, path)
    line = attacked(None, "--model-name=mlp", path=path)
    assert "returns NaN or infinite logits" in line


def test_what_is_no_file_is_no_weights(attacked: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    linked(tmp_path / "zero.safetensors", Path("/dev/zero"))
    for name, reason in (
        ("fifo", "Not a regular file"),
        ("folder", "Is a directory"),
        ("zero", "Not a regular file"),
    ):
        for words in ([], ["--model-name=mlp"]):
            assert reason in attacked(None, *words, path=tmp_path / f"{name}.safetensors")


def test_a_network_is_not_built_before_its_weights_are_known_to_fit(
    attacked: Callable[..., str], network: bytes
) -> None:
    # VGG-16 has 138 million weights, which are half a gibibyte.
    with memory(300 * 2**20):
        line = attacked(network, "--model-name=torchvision:vgg16")
    assert "these weights do not fit model 'torchvision:vgg16'" in line


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 10**9},
        {"num_classes": 9},
        {"num_classes": 1},
        {"num_classes": True},
        {"num_classes": 10.0},
        {"num_classes": "10"},
        {"num_classes": None},
        {"name": 3},
        {"mean": []},
        {"mean": [0.5] * 3},
        {"mean": ["0.5"]},
        {"mean": 0.5},
        {"mean": [float("nan")]},
        {"std": [0.0]},
        {"std": [-1.0]},
        {"std": [float("inf")]},
        {"provenance": []},
        {"provenance": {}},
        {"provenance": {"fingerprint": 3}},
        {"format": "x" * MANY},
    ],
    ids=lambda changes: str(changes)[:30],
)
def test_data_sets(changes: dict[str, Any], saved_digits: Path, tmp_path: Path) -> None:
    content = saved_digits.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    description = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["dataset"])
    path = tmp_path / "data.safetensors"
    text = json.dumps({**description, **changes})
    path.write_bytes(with_metadata(content, "dataset", text))
    line = problem(lambda: datasets.read(path))
    assert line.startswith(f"{path}: should be a data set as prepared for a sweep")


@pytest.mark.parametrize("text", ["", "{", DEEP, "[]", "null", "9" * 5000, "3"])
def test_metadata_of_data_sets(text: str, saved_digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.safetensors"
    path.write_bytes(with_metadata(saved_digits.read_bytes(), "dataset", text))
    line = problem(lambda: datasets.read(path))
    assert line.startswith(f"{path}: should be a data set as prepared for a sweep")


def test_what_is_no_file_is_no_data_set(tmp_path: Path) -> None:
    for reason, path in no_files(tmp_path).items():
        line = problem(lambda path=path: datasets.read(path))
        assert line.endswith(f": should be a whole .safetensors file: {reason.strip()}")


class TestPrograms:
    """Programs that are given to ``taylorglo attack``."""

    @pytest.fixture
    def run(
        self, saved_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., str]:
        """A function that exports a network, attacks it, and returns what was printed."""

        def attack(network: torch.nn.Module, suffix: str, fixed: bool = False) -> str:
            path = tmp_path / f"program{suffix}"
            images = torch.rand(2, 1, 8, 8)
            if suffix == ".pt2":
                shapes = None if fixed else ({0: torch.export.Dim("batch", min=1)},)
                torch.export.save(
                    torch.export.export(network, (images,), dynamic_shapes=shapes), path
                )
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # TorchScript is deprecated, and in use
                    torch.jit.save(torch.jit.trace(network, images, strict=False), path)
            few = [f"--set={value}" for value in ("images=20", "pgd_steps=2", "epsilons=0.1")]
            status = main(["attack", str(path), f"--data={saved_digits}", *few])
            output = capsys.readouterr()
            assert status == (2 if output.err else 0)
            assert len(output.err.splitlines()) <= 1
            return output.out + output.err

        return attack

    @pytest.mark.parametrize("suffix", [".pt2", ".pt"])
    def test_a_program_is_attacked(self, run: Callable[..., str], suffix: str) -> None:
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        assert "worst" in run(network, suffix)

    def test_a_program_of_too_few_classes_is_refused(self, run: Callable[..., str]) -> None:
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        assert "labels: should be from 0 to 2" in run(network, ".pt2")

    def test_a_program_of_another_shape_is_refused(self, run: Callable[..., str]) -> None:
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        assert "does not take a batch of 100 samples" in run(network, ".pt2", fixed=True)

    def test_a_program_that_returns_two_things_is_refused(self, run: Callable[..., str]) -> None:
        class Two(torch.nn.Module):
            def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return images.flatten(1), images.flatten(1)

        assert "should return a tensor of logits (N, n), got a tuple" in run(Two(), ".pt2")

    @pytest.mark.parametrize("suffix", [".pt2", ".pt"])
    def test_what_is_no_program_is_refused(
        self, attacked: Callable[..., str], tmp_path: Path, suffix: str
    ) -> None:
        path = tmp_path / f"program{suffix}"
        assert "should be a program that torch." in attacked(b"PK no program", path=path)
        assert "no such file or folder" in attacked(None, path=tmp_path / f"none{suffix}")

    def test_a_program_needs_data(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["attack", "net.pt2"]) == 2
        assert "net.pt2: a program needs --data" in capsys.readouterr().err
