"""The plan of the engine: its choices by device, network and memory, and what it refuses."""

from dataclasses import replace

import pytest
from trainings import sweep, synthetic

from taylorglo.data.dataset import Dataset, Split
from taylorglo.errors import InputError
from taylorglo.networks.factory import skeleton
from taylorglo.settings import SweepSettings
from taylorglo.training import devices, memory
from taylorglo.training import plan as planning
from taylorglo.training.plan import Plan, plan
from taylorglo.variables import CPUS

COLOUR = synthetic((3, 32, 32))


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 4 CPUs and 64 GiB of free memory."""
    monkeypatch.setenv(CPUS, "4")
    set_memory(monkeypatch, 2**36)


def set_memory(monkeypatch: pytest.MonkeyPatch, available: float) -> None:
    """Let the machine have this many bytes of free memory."""
    monkeypatch.setattr(memory, "available_memory", lambda device: int(available))


def settings_of(model: str = "mlp", **training: object) -> SweepSettings:
    """Return settings that leave engine and number of processes to the plan."""
    values = {"batch_size": 32, "engine": "auto", "workers": 0, **training}
    return sweep(model=model, training=values)


def planned(dataset: Dataset, model: str, **training: object) -> Plan:
    return plan(settings_of(model, **training), dataset)


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        ("mlp", "fused"),
        ("cnn", "parallel"),
        ("mnist-cnn", "parallel"),
        ("preresnet-20", "parallel"),
    ],
)
def test_the_choice_on_a_cpu(model: str, engine: str) -> None:
    chosen = planned(COLOUR, model)
    assert (chosen.engine, chosen.workers, chosen.device) == (engine, 4, "cpu")
    assert chosen.chunk == (256 if engine == "fused" else 1)
    assert str(chosen) == f"{engine} engine, 4 processes of 1 thread, {chosen.precision}, cpu"


@pytest.mark.parametrize(
    ("cpus", "model", "training", "workers"),
    [
        (7, "cnn", {"threads": 2}, 3),
        (7, "cnn", {"workers": 5}, 5),
        # Fewer CPUs than threads are no reason for having no process.
        (1, "cnn", {"threads": 2}, 1),
        (4, "cnn", {"engine": "sequential"}, 1),
        (3, "mlp", {"engine": "fused"}, 3),
    ],
)
def test_how_many_processes(
    digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    model: str,
    training: dict[str, object],
    workers: int,
) -> None:
    monkeypatch.setenv(CPUS, str(cpus))
    assert planned(digits, model, **training).workers == workers


def test_one_process_trains_one_after_another(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CPUS, "1")
    chosen = planned(digits, "cnn")
    assert (chosen.engine, chosen.workers) == ("sequential", 1)
    assert str(chosen).startswith("sequential engine, 1 process of 1 thread, ")


def test_a_network_that_can_be_stacked_is_trained_in_parallel_if_that_is_asked_for(
    digits: Dataset,
) -> None:
    assert planned(digits, "mlp", engine="parallel").engine == "parallel"


def needed(dataset: Dataset) -> int:
    """Return the bytes of one training of the multi-layer perceptron."""
    shape = dataset.image_shape
    return memory.footprint(skeleton("mlp", shape, 10), shape, 32).training


def process_of(dataset: Dataset) -> int:
    """Return the bytes that a process takes which is started beside this one."""
    tensors = [(s.images, s.labels) for s in (dataset.train, dataset.validation)]
    return memory.PROCESS + sum(images.nbytes + labels.nbytes for images, labels in tensors)


def usable(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Let the trainings have this many bytes: nine tenths of the free memory."""
    set_memory(monkeypatch, size / 0.9)


@pytest.mark.parametrize(
    ("processes", "trainings", "workers", "chunk"),
    [
        # This process trains alone, and so none is started beside it.
        (0, 2.5, 1, 2),
        (0, 40.5, 1, 40),
        (3, 2.5, 3, 2),
        (8, 6.5, 8, 6),
        (0, 10**6, 8, 256),
    ],
)
def test_the_memory_decides_how_many_are_trained_at_a_time(
    digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    trainings: float,
    workers: int,
    chunk: int,
) -> None:
    """There is memory for so many processes, each with so many trainings."""
    monkeypatch.setenv(CPUS, "8")
    size = max(1, processes) * trainings * needed(digits) + processes * process_of(digits)
    usable(monkeypatch, size)
    chosen = planned(digits, "mlp", engine="fused", precision="float32")
    assert (chosen.workers, chosen.chunk) == (workers, chunk)


def test_a_machine_with_the_memory_for_one_network_trains_one_after_another(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable(monkeypatch, 1.5 * needed(digits))
    assert planned(digits, "mlp").engine == "sequential"
    message = r"^training\.engine is fused, and there is no memory for 2 networks like 'mlp'"
    with pytest.raises(InputError, match=message):
        planned(digits, "mlp", engine="fused")


def test_a_machine_without_the_memory_for_one_network_is_refused(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable(monkeypatch, 0.99 * needed(digits))
    message = r"^model 'mlp': training it in batches of 32 takes about 0\.0 GiB, and"
    with pytest.raises(InputError, match=message):
        planned(digits, "mlp", engine="fused")


def test_a_network_that_no_memory_is_enough_for_is_refused_and_not_built(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "build_network", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(InputError) as caught:
        planned(digits, "user_networks:huge", engine="sequential", precision="float32")
    # These are (64 + 1 + 10) x 1.5 x 2^28 weights, three times, and the activations of 32 images.
    assert str(caught.value).startswith(
        "model 'user_networks:huge': training it in batches of 32 takes about 409.5 GiB, and "
        "57.6 GiB of memory can "
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["preresnet-20", "user_networks:peeking"])
def test_a_network_that_cannot_be_stacked(digits: Dataset, model: str) -> None:
    dataset = COLOUR if model == "preresnet-20" else digits
    with pytest.raises(InputError) as caught:
        planned(dataset, model, engine="fused")
    assert str(caught.value).startswith(
        f"training.engine is fused, and networks like {model!r} cannot be stacked: "
    )
    assert "\n" not in str(caught.value)
    assert planned(dataset, model).engine == "parallel"


def test_a_batch_that_is_larger_than_the_data(digits: Dataset) -> None:
    few = replace(digits, train=Split(digits.train.images[:31], digits.train.labels[:31]))
    message = r"^training\.batch_size: 32 is more than the 31 training samples$"
    with pytest.raises(InputError, match=message):
        planned(few, "mlp")
    assert planned(few, "mlp", batch_size=31).engine == "fused"


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_a_precision_that_the_cpu_does_not_have(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    with pytest.raises(InputError) as caught:
        planned(digits, "mlp", precision=precision)
    assert str(caught.value) == (
        f"training.precision is {precision}, and the CPU here has no arithmetic for it; use auto "
        "or float32"
    )
    assert planned(digits, "cnn").precision == "float32"


def test_the_memory_is_that_of_the_optimizer(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of memory for three times the weights of a stack, Adam with averages needs five."""
    training = memory.footprint(skeleton("mlp", digits.image_shape, 10), digits.image_shape, 32)
    copies = training.training - 3 * training.weights
    set_memory(monkeypatch, 20 * (3 * training.weights + copies) / 0.9)
    options = {"engine": "fused", "workers": 1}
    assert planned(digits, "mlp", **options).chunk == 20
    more = planned(digits, "mlp", **options, optimizer="adam", ema=0.9)
    assert more.chunk == 20 * (3 * training.weights + copies) // (5 * training.weights + copies)


def test_an_adaptive_optimizer_stacks_networks_of_all_rates(digits: Dataset) -> None:
    assert planned(digits, "mlp", engine="fused").same_rate_only
    assert not planned(digits, "mlp", engine="fused", optimizer="adam").same_rate_only
