"""The engine that trains: one training after another, in several processes, or many as one program.

It is given recipes, takes as many at a time as it can work on, and gives back each result as soon as it is known.
"""

import contextlib
import gc
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from taylorglo.data import Dataset
from taylorglo.devices import is_broken, is_out_of_memory, precision_of, reuse_memory
from taylorglo.errors import InputError, TaylorgloError
from taylorglo.fused import FEWEST, draws, kind_of, qualifies, train_together
from taylorglo.loss import Loss
from taylorglo.machine import cpus
from taylorglo.memory import PROCESS, check_memory, free_memory
from taylorglo.models import BFLOAT16
from taylorglo.settings import SweepSettings
from taylorglo.training import Objective, Recipe, Result, Training, build_network, train

_TRIES = 2
_MOST_FUSED = 256

Key = TypeVar("Key", bound=Hashable)


class OutOfMemoryError(TaylorgloError):
    """A device had no memory left for what was being trained."""


class BrokenDeviceError(TaylorgloError):
    """A GPU failed, and this process can compute nothing on it any more."""


@dataclass(frozen=True)
class Plan:
    """How trainings are done: by which engine, in how many processes, how many at most in one program.

    ``alone`` is whether only trainings of one seed can be in one program.
    """

    engine: str
    workers: int
    chunk: int
    alone: bool
    threads: int
    precision: str
    device: str

    @property
    def method(self) -> str:
        """What a result remembers of it."""
        return f"{self.engine}, {self.precision}, {self.device}"

    def __str__(self) -> str:
        """The whole of it, for a person."""
        processes = f"{self.workers} process{'es' if self.workers > 1 else ''}"
        threads = f" of {self.threads} thread{'s' if self.threads > 1 else ''}" if self.device == "cpu" else ""
        return f"{self.engine} engine, {processes}{threads}, {self.precision}, {self.device}"


def plan(settings: SweepSettings, dataset: Dataset) -> Plan:
    """Choose how to train: by the settings and, where they leave it open, by device and network.

    - CUDA: fused, if the network can be stacked and several fit, else one after another; in one process.
    - CPU: fused, if the network can be stacked and has no convolutions, which are slower so; else
      parallel, with a process for every ``training.threads`` CPUs.

    Raises:
        InputError: what is asked for cannot be had here: a precision, a fused engine, a batch that is larger than the
            data, or a network for which the memory is too small.
    """
    training = settings.training
    device = dataset.train.images.device
    training.check_data(len(dataset.train))
    precision = precision_of(training, device, measured=settings.model.name in BFLOAT16)
    needed = check_memory(
        settings.model.name, dataset.image_shape, dataset.num_classes, training.batch_size, device
    ).training
    free = free_memory(device)
    # What a process beside this one takes before it trains: PyTorch, and the data set once more.
    apart = PROCESS + sum(split.images.nbytes + split.labels.nbytes for split in (dataset.train, dataset.validation))
    network = build_network(settings, dataset, seed=0)
    fusing = training.engine in ("auto", "fused") and not training.compile
    stackable = fusing and qualifies(network, dataset.image_shape)
    engine = training.engine
    if engine == "fused" and not stackable:
        raise InputError(
            f"training.engine is fused, and networks like {settings.model.name!r} cannot be stacked: they keep "
            "buffers, such as the running statistics of batch normalisation, or compute what vmap cannot; use auto"
        )
    if engine == "fused" and free < FEWEST * needed:
        raise InputError(
            f"training.engine is fused, and there is no memory for {FEWEST} networks like {settings.model.name!r} in "
            "one program; use auto"
        )
    convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in network.modules())
    if engine == "auto":
        pays = device.type == "cuda" or not convolves
        engine = "fused" if stackable and pays and free >= FEWEST * needed else "parallel"
    workers = 1
    if engine != "sequential":
        workers = training.workers or (max(1, cpus() // training.threads) if device.type == "cpu" else 1)
        workers = max(1, min(workers, free // (apart + (FEWEST * needed if engine == "fused" else needed))))
    if engine == "parallel" and workers == 1:
        engine = "sequential"
    own = free if workers == 1 else free // workers - apart
    chunk = max(1, min(_MOST_FUSED, own // needed)) if engine == "fused" else 1
    alone = engine == "fused" and draws(network, dataset.image_shape)
    return Plan(engine, workers, chunk, alone, training.threads, precision, device.type)


class Engine:
    """Trains what it is given, in the way that :func:`plan` chose; a context, which ends its processes.

    Args:
        settings: of the sweep.
        read: gives the data set, resident on the device to train on; called in every process, so it has to be what
            ``pickle`` can pass to another process of ours.
    """

    def __init__(self, settings: SweepSettings, read: Callable[[], Dataset]) -> None:
        self.settings = settings
        self._read = read
        self._executor: Executor | None = None
        self._life: Connection | None = None  # while it is open, the processes live
        self._apart = False  # whether it trains in processes of its own: a process may die, this one may not

    @cached_property
    def dataset(self) -> Dataset:
        """The data set."""
        return self._read()

    @cached_property
    def plan(self) -> Plan:
        """How it trains; out of memory, it goes on with a smaller one."""
        return plan(self.settings, self.dataset)

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End the processes; after an error, without waiting for what they train."""
        self._stop(wait=error is None)

    def train(self, recipes: Iterable[tuple[Key, Recipe]]) -> Iterator[tuple[Key, Result]]:
        """Do every training; the results come as they are known, with the keys that the recipes came with.

        Recipes are taken one by one when there is room for them. An error of the machine, such as a full GPU, halves
        what is done at a time, or is tried once more; a training that fails again has the status ``failed``.

        Raises:
            InputError: of a recipe or the settings.
        """
        source = iter(recipes)
        waiting: deque[_Unit[Key]] = deque()
        running: dict[Future[list[Result]], tuple[_Unit[Key], Executor]] = {}
        while True:
            # Nothing is planned, and no data are read, before there is something to train.
            while (not running or len(running) < self.plan.workers) and (
                waiting or self._take(source, waiting, len(running))
            ):
                unit = waiting.popleft()
                executor = self._executor = self._executor or self._start()
                running[self._submit(unit, executor)] = unit, executor
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                unit, executor = running.pop(future)
                try:
                    results = future.result()
                except (InputError, BrokenDeviceError):
                    raise
                except BrokenProcessPool:
                    if executor is not self._executor:  # it is known of another unit already
                        waiting.appendleft(unit)
                    elif self.plan.workers == 1:  # nothing else was done there: its process died of it
                        self._stop()
                        yield from self._again(unit, TaylorgloError("the process that trained it was killed"), waiting)
                    else:
                        waiting.appendleft(unit)
                        self._fewer()
                except OutOfMemoryError as error:
                    yield from self._smaller(unit, executor, error, waiting)
                except Exception as error:  # of a network of the user's own, ...: one training fails, not the search
                    yield from self._again(unit, error, waiting)
                else:
                    for key, result in zip(unit.keys, results, strict=True):
                        yield key, replace(result, training=replace(result.training, method=self.plan.method))

    def _take(self, source: Iterator[tuple[Key, Recipe]], waiting: "deque[_Unit[Key]]", running: int) -> bool:
        taken = list(islice(source, 1))
        if not taken:
            return False
        workers = self.plan.workers - running
        if self.plan.chunk > 1:
            taken.extend(islice(source, self.plan.chunk * workers - 1))
        waiting.extend(_units(taken, self.plan, workers))
        return True

    def _smaller(
        self, unit: "_Unit[Key]", executor: Executor, error: OutOfMemoryError, waiting: "deque[_Unit[Key]]"
    ) -> Iterator[tuple[Key, Result]]:
        """Go on with less at a time, where a device is full."""
        if len(unit.keys) == 1 and (self.plan.workers > 1 or executor is not self._executor):
            waiting.appendleft(unit)
            if executor is self._executor:  # or it is known of another unit already
                self._fewer()
            return
        if len(unit.keys) > 1:
            self.plan = replace(self.plan, chunk=max(1, min(self.plan.chunk, len(unit.keys)) // 2))
        yield from self._again(unit, error, waiting)

    def _fewer(self) -> None:
        """Go on in half as many processes, when those that still work have done what they were given.

        A process that was killed may have been so by a full machine.
        """
        self._stop(cancel=False)
        self.plan = replace(self.plan, workers=max(1, self.plan.workers // 2))

    def _again(
        self, unit: "_Unit[Key]", error: Exception, waiting: "deque[_Unit[Key]]"
    ) -> Iterator[tuple[Key, Result]]:
        """Halve a unit, so that one training that fails does not take others with it; try a single one again."""
        if len(unit.keys) > 1:
            waiting.extendleft(reversed(unit.halves()))
        elif unit.tries + 1 < _TRIES:
            waiting.appendleft(replace(unit, tries=unit.tries + 1))
        else:
            now = time.time()
            training = Training("failed", 0.0, [], now, now, 0.0, _first_line(error), method=self.plan.method)
            yield unit.keys[0], Result(training)

    def _submit(self, unit: "_Unit[Key]", executor: Executor) -> "Future[list[Result]]":
        alone = unit.tries > 0 or self.plan.chunk < FEWEST  # a stack is never smaller, and takes more memory than one
        if isinstance(executor, _Here):
            return executor.submit(executor.trainer.train, unit.recipes, alone)
        try:
            return executor.submit(_train, unit.recipes, alone)
        except BrokenProcessPool as error:  # since the last result came
            future: Future[list[Result]] = Future()
            future.set_exception(error)
            return future

    def _start(self) -> Executor:
        if self.plan.workers == 1 and not self._apart:
            return _Here(_Trainer(self.settings, self.dataset, self.plan))
        self._apart = True
        context = multiprocessing.get_context("forkserver")
        # Not a fork of this process, which has threads, locks of the study, and a GPU perhaps.
        forkserver.set_forkserver_preload([__name__])
        life, self._life = context.Pipe(duplex=False)
        executor = ProcessPoolExecutor(
            self.plan.workers, context, initializer=_begin, initargs=(self.settings, self._read, self.plan, life)
        )
        if self.plan.workers == 1:  # others were killed: is it a training that kills them, or the machine?
            try:
                executor.submit(_ready).result()
            except BrokenProcessPool as error:
                raise TaylorgloError("no process can be started to train in, each is killed: out of memory?") from error
        return executor

    def _stop(self, *, wait: bool = True, cancel: bool = True) -> None:
        """End the processes, when they have done what they are at, or at once."""
        if self._life is not None and not wait:
            self._life.close()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=cancel)
            self._executor = None
        if self._life is not None:
            self._life.close()
            self._life = None


@dataclass(frozen=True)
class _Unit(Generic[Key]):
    """Trainings that are done together, and how often that was tried."""

    keys: list[Key]
    recipes: list[Recipe]
    tries: int = 0

    def halves(self) -> "list[_Unit[Key]]":
        middle = len(self.keys) // 2
        return [
            _Unit(self.keys[part], self.recipes[part]) for part in (slice(0, middle), slice(middle, len(self.keys)))
        ]


def _units(taken: list[tuple[Key, Recipe]], plan: Plan, workers: int) -> list[_Unit[Key]]:
    """Group what can be one program, in parts of one size that keep so many workers busy."""
    if plan.chunk == 1:
        return [_Unit([key], [recipe]) for key, recipe in taken]
    groups: dict[Any, list[tuple[Key, Recipe]]] = {}
    for key, recipe in taken:
        alike = (
            recipe.learning_rate,
            recipe.steps,
            recipe.horizon,
            recipe.validations,
            recipe.give_up,
            recipe.seed if plan.alone else None,
        )
        groups.setdefault(alike, []).append((key, recipe))
    size = min(plan.chunk, -(-len(taken) // workers))
    units = []
    for group in groups.values():
        parts = -(-len(group) // size)
        for part in range(parts):
            own = group[len(group) * part // parts : len(group) * (part + 1) // parts]
            units.append(_Unit([key for key, _ in own], [recipe for _, recipe in own]))
    return units


class _Here(Executor):
    """An executor in this process: what is submitted is done at once."""

    def __init__(self, trainer: "_Trainer") -> None:
        self.trainer = trainer

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            # Without its frames, which hold on to all the tensors of what failed.
            future.set_exception(error.with_traceback(None))
        return future


class _Trainer:
    """What trains, in one process."""

    def __init__(self, settings: SweepSettings, dataset: Dataset, plan: Plan) -> None:
        self._settings, self._dataset, self._plan = settings, dataset, plan
        self._compiled: dict[str, tuple[nn.Module, Loss, Objective]] = {}
        torch.set_num_threads(plan.threads)
        if plan.device == "cuda":
            torch.backends.cudnn.benchmark = True  # every batch has the same shape
        else:
            reuse_memory()

    def train(self, recipes: list[Recipe], alone: bool) -> list[Result]:
        try:
            if self._plan.engine == "fused" and not alone:
                return train_together(recipes, self._dataset, self._settings, self._plan.precision)
            return [self._train(recipe) for recipe in recipes]
        except Exception as error:
            if is_out_of_memory(error):
                failure: TaylorgloError = OutOfMemoryError(f"out of memory: {_first_line(error)}")
            elif is_broken(error):
                failure = BrokenDeviceError(f"the GPU failed, start this task again: {_first_line(error)}")
            else:
                raise
        # Not while the other one is handled, which would be its context, and hold on to all the tensors of its frames.
        gc.collect()
        if self._plan.device == "cuda" and isinstance(failure, OutOfMemoryError):
            torch.cuda.empty_cache()
        raise failure

    def _train(self, recipe: Recipe) -> Result:
        network = build_network(self._settings, self._dataset, recipe.seed)
        if not self._settings.training.compile:
            return train(network, recipe, self._dataset, self._settings, self._plan.precision)
        network, loss, objective = self._compile(network, recipe.loss)
        return train(
            network, replace(recipe, loss=loss), self._dataset, self._settings, self._plan.precision, objective
        )

    def _compile(self, network: nn.Module, loss: Loss) -> tuple[nn.Module, Loss, Objective]:
        """A network with these weights and a loss with this theta, in one compiled graph for all losses of its kind."""
        kind = kind_of(loss)
        if kind not in self._compiled:

            def objective(images: Tensor, targets: Tensor) -> Tensor:
                value: Tensor = loss(network(images), targets)
                return value

            # On a GPU, CUDA graphs too, which take the host out of the step.
            mode = "reduce-overhead" if self._plan.device == "cuda" else "default"
            self._compiled[kind] = (
                network.to(self._plan.device),
                loss.to(self._plan.device),
                torch.compile(objective, mode=mode),
            )
        kept, own, _ = self._compiled[kind]
        kept.load_state_dict(network.state_dict())
        own.load_state_dict(loss.state_dict())
        return self._compiled[kind]


_trainer: _Trainer | None = None  # of a worker process


def _begin(settings: SweepSettings, read: Callable[[], Dataset], plan: Plan, life: Connection) -> None:
    """Prepare a worker, which ends with the engine that it works for, in whatever way that ends.

    ``life`` is a pipe that nothing is sent through: the engine closes its other end, or the end of its process does.
    """
    global _trainer

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            life.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _trainer = _Trainer(settings, read(), plan)


def _ready() -> None:
    """Nothing, for which a worker has to be prepared."""


def _train(recipes: list[Recipe], alone: bool) -> list[Result]:
    assert _trainer is not None
    try:
        return _trainer.train(recipes, alone)
    except TaylorgloError:
        raise
    except Exception as error:  # of any class, also such that cannot be passed on to another process
        raise RuntimeError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
