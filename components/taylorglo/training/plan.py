"""The plan of the engine: by which method, in how many processes and how many at once."""

from dataclasses import dataclass

import torch
from torch import nn

from taylorglo.data.dataset import Dataset
from taylorglo.data.folds import views_in_memory
from taylorglo.errors import InputError
from taylorglo.networks.factory import BFLOAT16
from taylorglo.settings import SweepSettings, TrainingSettings
from taylorglo.training.devices import precision_of
from taylorglo.training.loop import build_network
from taylorglo.training.machine import cpus
from taylorglo.training.memory import PROCESS, check_memory, copies_of, free_memory
from taylorglo.training.stacked import FEWEST, draws, qualifies

_LARGEST_STACK = 256


@dataclass(frozen=True)
class Plan:
    """How trainings are done.

    Attributes:
        engine: ``sequential``, ``parallel`` or ``fused``.
        workers: number of processes that train.
        chunk: largest number of trainings in one program; 1 unless fused.
        same_seed_only: whether one program can hold trainings of one seed only.
        same_rate_only: whether one program can hold trainings of one learning rate only.
        threads: CPU threads of each process.
        precision: ``float32``, ``tf32`` or ``bfloat16``; empty if a function of a user trains,
            which has its own.
        device: ``cpu`` or ``cuda``.
    """

    engine: str
    workers: int
    chunk: int
    same_seed_only: bool
    same_rate_only: bool
    threads: int
    precision: str
    device: str

    def __str__(self) -> str:
        """Describe the plan to a person."""
        processes = f"{self.workers} process{'es' if self.workers > 1 else ''}"
        if self.device == "cpu":
            processes += f" of {self.threads} thread{'s' if self.threads > 1 else ''}"
        return ", ".join(
            filter(None, (f"{self.engine} engine", processes, self.precision, self.device))
        )


@dataclass(frozen=True)
class _Memory:
    """Bytes that trainings may take, and that they need.

    ``free`` is what can be allocated on the device, ``process`` what a process beside this one
    takes before it trains, ``folds`` what the images of its folds take in every process that
    trains, and ``training`` what one training takes.
    """

    free: int
    process: int
    folds: int
    training: int

    @property
    def fits_stack(self) -> bool:
        """Whether the smallest stack of networks fits."""
        return self.free >= self.folds + FEWEST * self.training


def plan(settings: SweepSettings, dataset: Dataset) -> Plan:
    """Choose how to train: by the settings, and by device and network if they leave it open.

    - On CUDA: fused, if the network can be stacked and several fit, else one after another; in
      one process.
    - On a CPU: fused, if the network can be stacked and has no convolutions (stacked convolutions
      are slower there), else parallel; with a process for every ``training.threads`` CPUs.
    - A function of a user: in as many processes, however many there are, so that a training which
      dies or hangs takes nothing with it; or in this process, if the engine is sequential.

    Args:
        settings: of the sweep.
        dataset: resident on the device to train on.

    Raises:
        InputError: the machine has not what the settings ask for: a precision, a fused engine, as
            many images as a batch, or enough memory for the network.
    """
    training = settings.training
    device = dataset.train.images.device
    if training.function:
        return _plan_for_function(training, device)
    training.check_data(len(dataset.train))
    precision = precision_of(training, device, measured=settings.model.name in BFLOAT16)
    memory = _memory(settings, dataset)
    network = build_network(settings, dataset, seed=0)
    engine = _choose_engine(settings, dataset, network, memory)
    workers = _fit_workers(engine, training, device, memory)
    if engine == "parallel" and workers == 1:
        engine = "sequential"
    fused = engine == "fused"
    return Plan(
        engine=engine,
        workers=workers,
        chunk=_fit_chunk(workers, memory) if fused else 1,
        same_seed_only=fused and draws(network, dataset.image_shape),
        same_rate_only=fused and not training.adaptive,
        threads=training.threads,
        precision=precision,
        device=device.type,
    )


def _plan_for_function(training: TrainingSettings, device: torch.device) -> Plan:
    """Return the plan for a function of a user. The memory that it takes is not known."""
    sequential = training.engine == "sequential"
    return Plan(
        engine="sequential" if sequential else "parallel",
        workers=1 if sequential else training.workers or _default_workers(training, device),
        chunk=1,
        same_seed_only=False,
        same_rate_only=False,
        threads=training.threads,
        precision="",
        device=device.type,
    )


def _memory(settings: SweepSettings, dataset: Dataset) -> _Memory:
    """Return the memory that there is and is needed; refuse a network that is too large."""
    device = dataset.train.images.device
    footprint = check_memory(
        settings.model.name,
        dataset.image_shape,
        dataset.num_classes,
        batch_size=settings.training.batch_size,
        device=device,
        copies=copies_of(settings.training),
    )
    splits = (dataset.train, dataset.validation)
    copy = sum(split.images.nbytes + split.labels.nbytes for split in splits)
    views = views_in_memory(settings, dataset.provenance)
    return _Memory(
        free=free_memory(device),
        process=PROCESS + copy,
        # While a fold is made, there are the oldest one and the parts of the new one, too.
        folds=(views + 2) * copy if views else 0,
        training=footprint.training,
    )


def _choose_engine(
    settings: SweepSettings, dataset: Dataset, network: nn.Module, memory: _Memory
) -> str:
    """Return the engine that the settings name, or the one that suits device and network."""
    training, name = settings.training, settings.model.name
    if training.engine not in ("auto", "fused"):
        return training.engine
    stackable = not training.compile and qualifies(network, dataset.image_shape)
    if training.engine == "fused":
        if not stackable:
            raise InputError(
                f"training.engine is fused, and networks like {name!r} cannot be stacked: they "
                "keep buffers, such as the running statistics of batch normalisation, or compute "
                "what vmap cannot; use auto"
            )
        if not memory.fits_stack:
            raise InputError(
                f"training.engine is fused, and there is no memory for {FEWEST} networks like "
                f"{name!r} in one program; use auto"
            )
        return "fused"
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in network.modules())
    pays = dataset.train.images.device.type == "cuda" or not convolves
    return "fused" if stackable and pays and memory.fits_stack else "parallel"


def _fit_workers(
    engine: str, training: TrainingSettings, device: torch.device, memory: _Memory
) -> int:
    """Return the largest number of processes that is configured and fits into memory."""
    if engine == "sequential":
        return 1
    smallest = FEWEST * memory.training if engine == "fused" else memory.training
    one = memory.process + memory.folds + smallest
    return max(1, min(training.workers or _default_workers(training, device), memory.free // one))


def _default_workers(training: TrainingSettings, device: torch.device) -> int:
    """Return the number of processes if none is configured."""
    return max(1, cpus() // training.threads) if device.type == "cpu" else 1


def _fit_chunk(workers: int, memory: _Memory) -> int:
    """Return the largest number of trainings in one program that fits into memory."""
    share = memory.free if workers == 1 else memory.free // workers - memory.process
    return max(1, min(_LARGEST_STACK, (share - memory.folds) // memory.training))
