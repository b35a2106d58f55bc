"""Whatever a file or an option holds, there is a result or our own error, in bounded time.

What hypothesis draws by default is the same each time. ``make test-long`` draws more, and anew.
"""

import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from bounded import memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.errors import MAX_LINE, MAX_LINES, TaylorgloError
from taylorglo.loss.functions import TaylorLoss
from taylorglo.networks.factory import build
from taylorglo.networks.weights import Origin, weights_of
from taylorglo.settings import SweepSettings, validated
from taylorglo_pipelines.commands.attack import attack
from taylorglo_pipelines.commands.inspect import inspect
from taylorglo_pipelines.config import Config, load
from taylorglo_pipelines.kubeflow.cron import interval, next_times, parse

# A hang is ended by this alarm; what is bounded takes seconds.
pytestmark = pytest.mark.timeout(120)

NOW = datetime(2026, 11, 24, 21, 30, tzinfo=UTC)
FIELDS = {
    name: list(section.default.__class__.model_fields)
    for name, section in Config.model_fields.items()
    if hasattr(section.default, "model_fields_set")
}
KEYS = [*Config.model_fields, *(key for keys in FIELDS.values() for key in keys)]

numbers = (
    st.integers()
    | st.sampled_from([0, 1, 2, 3, 10**9, 2**63, 10**30, 10**400, -1])
    | st.floats()
    | st.sampled_from([1e308, 5e-324, 0.5])
)
texts = st.text(max_size=30) | st.sampled_from(
    ["1e3", "1Gi", "0x10", "1:30", "2024-01-01", "~", "yes", "a" * 5000, "\x1b[31m", "1" * 5000]
)
scalars = st.none() | st.booleans() | numbers | texts


def nested(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Draw values in lists and groups, in one another."""
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=6),
        max_leaves=20,
    )


anything = nested(scalars, texts | st.sampled_from(KEYS))
sections = st.fixed_dictionaries(
    {},
    optional={
        name: st.dictionaries(st.sampled_from(keys) | texts, anything, max_size=4) | anything
        for name, keys in FIELDS.items()
    },
)
# One setting of any value, so that many of them are accepted.
one_setting = st.sampled_from(
    [(name, key) for name, keys in FIELDS.items() for key in keys]
).flatmap(
    lambda path: (numbers | scalars | anything).map(lambda value: {path[0]: {path[1]: value}})
)
yaml_text = st.text(
    st.sampled_from("&*[]{}:-#!|>'\"\\\n ,<?%@ab1.e~\t\0\x1b\ufeff") | st.characters(), max_size=80
)


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a function returns, or None if it raises an error that a person can read."""
    try:
        with memory():
            return call()
    except TaylorgloError as error:
        lines = str(error).split("\n")
        assert 1 <= len(lines) <= MAX_LINES
        for line in lines:
            assert line.strip()
            assert len(line) <= MAX_LINE
            assert not any(ord(character) < 32 or ord(character) == 127 for character in line)
        return None


class Fuzz:
    """A way to draw bad input, and what is done with it."""

    def __init__(self, drawn: st.SearchStrategy[Any], check: Callable[[Any, Path], None]) -> None:
        self.drawn = drawn
        self.check = check

    def run(self, folder: Path, examples: int, *, anew: bool = False) -> None:
        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=not anew,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(self.drawn)
        def run(value: Any) -> None:
            self.check(value, folder)

        run()


def loaded(content: str | bytes, folder: Path, *overrides: str) -> None:
    path = folder / "sweep.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="replace"))
    config = outcome(lambda: load(path, overrides))
    if config is not None:
        # Whatever is accepted can be handed over, and written.
        json.dumps(config.model_dump(mode="json"), allow_nan=False)
        json.dumps(config.sweep.flat(), allow_nan=False)


def check_values(values: Any, folder: Path) -> None:
    loaded(yaml.safe_dump(values, allow_unicode=True), folder)
    outcome(lambda: validated(SweepSettings, values, "parameters"))


def check_overrides(overrides: list[tuple[str, str]], folder: Path) -> None:
    loaded("", folder, *(f"{path}={value}" for path, value in overrides))


paths = st.sampled_from([f"{name}.{key}" for name, keys in FIELDS.items() for key in keys] + KEYS)
values_in_yaml = numbers.map(str) | yaml_text | anything.map(json.dumps)

LOSS = {
    "format": "taylorglo.loss/1",
    "theta": [0.0, 0.0, 0.0, -2.0, 0.0, 4.0, -1.0, 0.5],
    "order": 3,
    "classes": 10,
    "provenance": {"sweep": "digits"},
}


def check_loss(content: bytes, folder: Path) -> None:
    path = folder / "loss.json"
    path.write_bytes(content)
    loss = outcome(lambda: TaylorLoss.load(path))
    if loss is not None:
        loss.save(folder / "again.json")
        assert outcome(lambda: inspect([str(path)], None, None))


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


thetas = st.lists(scalars, max_size=40) | st.lists(st.floats(), min_size=8, max_size=9)
losses = (
    st.fixed_dictionaries(
        {"format": st.sampled_from(["taylorglo.loss/1", "taylorglo.loss/2"])},
        optional={
            "family": st.sampled_from(["taylor", "taylor-log"]) | anything,
            "theta": thetas | anything | st.just(LOSS["theta"]),
            "order": st.integers(2, 9) | scalars,
            "classes": st.integers(2, 100) | scalars,
            "provenance": anything | st.just({}),
        },
    )
    .map(lambda changes: {**LOSS, **changes})
    .map(encoded)
)


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Draw changes of some bytes, most of them near the beginning, and a length to cut off at."""
    place = st.integers(0, min(len(content), 400) - 1) | st.integers(0, len(content) - 1)
    changes = st.dictionaries(place, st.integers(0, 255), max_size=8)

    def changed(changes: dict[int, int], length: int) -> bytes:
        copy = bytearray(content)
        for index, byte in changes.items():
            copy[index] = byte
        return bytes(copy[:length])

    lengths = st.just(len(content)) | st.integers(0, len(content))
    return st.builds(changed, changes, lengths)


def with_header(content: bytes, header: bytes, length: int | None = None) -> bytes:
    """Return the bytes of a .safetensors file with another header."""
    (old,) = struct.unpack("<Q", content[:8])
    size = len(header) if length is None else length
    return struct.pack("<Q", size % 2**64) + header + content[8 + old :]


def header_of(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", content[:8])
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return header


sizes = st.integers(0, 10) | st.sampled_from([-1, 2**31, 2**40, 2**63, 2**64, 10**30])
tensors = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(
            ["F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F4", "F8_E8M0", "U64", "x"]
        ),
        "shape": st.lists(sizes, max_size=5),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    },
)


def headers(content: bytes, key: str) -> st.SearchStrategy[bytes]:
    """Draw .safetensors files whose header is changed, in its tensors or in its metadata."""
    header = header_of(content)
    description = json.loads(header["__metadata__"][key])

    def build(
        changes: dict[str, dict[str, Any]], described: Any, text: str | None, length: int | None
    ) -> bytes:
        changed = {
            name: {**value, **changes.get(name, {})} if name != "__metadata__" else value
            for name, value in header.items()
        }
        whole = {**description, **described} if isinstance(described, dict) else described
        changed["__metadata__"] = {key: json.dumps(whole) if text is None else text}
        return with_header(content, json.dumps(changed).encode(), length)

    names = st.sampled_from(sorted(header))
    return st.builds(
        build,
        st.just({}) | st.dictionaries(names, tensors, max_size=3),
        st.dictionaries(st.sampled_from(sorted(description)), anything, max_size=3) | anything,
        st.none() | st.sampled_from(["", "{", "[" * 100_000, "NaN", "{}", "1" * 5000]) | texts,
        st.none() | st.none() | sizes,
    )


@pytest.fixture(scope="module")
def champion(saved_digits: Path, digits: Dataset) -> bytes:
    """The weights of a network for the digits."""
    network = build(
        "mlp", digits.image_shape, digits.num_classes, mean=digits.mean, std=digits.std, seed=0
    )
    return weights_of(network, Origin("mlp", digits.image_shape, digits.num_classes))


def check_dataset(content: bytes, folder: Path) -> None:
    path = folder / "data.safetensors"
    path.write_bytes(content)
    outcome(lambda: datasets.read(path))


FEW = ["epsilons=[0.1]", "images=2", "pgd_steps=1", "pgd_restarts=1"]


def check_champion(data: Path) -> Callable[[bytes, Path], None]:
    def check(content: bytes, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(content)
        for name in (None, "mlp"):
            attacked = outcome(lambda name=name: attack(str(path), str(data), name, FEW))
            assert attacked is None or "worst" in attacked.accuracies

    return check


def check_cron(text: str, _: Path) -> None:
    cron = outcome(lambda: parse(text, NOW))
    if cron is not None:
        assert next_times(cron, NOW, now=NOW)
    outcome(lambda: interval(text))


items = st.text("0123456789*?/-,jandecsuLW#", min_size=1, max_size=12)
crons = (
    st.lists(items, min_size=4, max_size=7).map(" ".join)
    | st.lists(
        st.sampled_from(["*", "0", "29", "30", "31", "2", "*/7", "1-5/2"]), min_size=5, max_size=6
    ).map(" ".join)
    | st.text(max_size=40)
    | st.integers(1, 10**6).map(lambda count: "1," * count + "1 * * * *")
    | st.integers(1, 10**400).map(lambda number: f"*/{number} {number} * * *")
)

FUZZES = {
    "a configuration of other values": Fuzz(one_setting | sections | anything, check_values),
    "a configuration of other characters": Fuzz(yaml_text, loaded),
    "a configuration of other bytes": Fuzz(
        st.binary(max_size=60) | damaged(b"training: &a {steps: 60}\nsearch: {<<: *a}\n"), loaded
    ),
    "options --set": Fuzz(
        st.lists(st.tuples(paths | texts, values_in_yaml), min_size=1, max_size=2),
        check_overrides,
    ),
    "a loss of other values": Fuzz(losses, check_loss),
    "a loss of other JSON": Fuzz(anything.map(encoded), check_loss),
    "a loss of other bytes": Fuzz(damaged(encoded(LOSS)), check_loss),
    "cron": Fuzz(crons, check_cron),
}
QUICK, LONG = 150, 5000
AMOUNTS = [
    pytest.param(QUICK, id="quick"),
    pytest.param(LONG, id="long", marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
]


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize("name", FUZZES)
def test_input_of_any_kind(name: str, examples: int, tmp_path: Path) -> None:
    FUZZES[name].run(tmp_path, examples, anew=examples == LONG)


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize("ways", [damaged, lambda content: headers(content, "dataset")])
def test_data_sets_of_any_kind(
    ways: Callable[[bytes], st.SearchStrategy[bytes]],
    examples: int,
    saved_digits: Path,
    tmp_path: Path,
) -> None:
    drawn = ways(saved_digits.read_bytes())
    Fuzz(drawn, check_dataset).run(tmp_path, examples, anew=examples == LONG)


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize("ways", [damaged, lambda content: headers(content, "taylorglo")])
def test_networks_of_any_kind(
    ways: Callable[[bytes], st.SearchStrategy[bytes]],
    examples: int,
    champion: bytes,
    saved_digits: Path,
    tmp_path: Path,
) -> None:
    check = check_champion(saved_digits)
    Fuzz(ways(champion), check).run(tmp_path, examples, anew=examples == LONG)


def test_what_is_drawn_from_is_accepted(
    champion: bytes, saved_digits: Path, tmp_path: Path
) -> None:
    """Without this test, the others would pass too if everything were refused."""
    path = tmp_path / "loss.json"
    path.write_bytes(encoded(LOSS))
    assert TaylorLoss.load(path).order == 3
    assert datasets.read(saved_digits).num_classes == 10
    path = tmp_path / "model.safetensors"
    path.write_bytes(champion)
    assert "worst" in attack(str(path), str(saved_digits), None, FEW).accuracies
