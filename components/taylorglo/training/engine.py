"""The engine that trains: one training after another, in several processes, or many in one program.

It pulls recipes from an iterator, as many at a time as it can work on, and yields each result as
soon as it is known.
"""

import gc
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset
from taylorglo.data.folds import MOST_VIEWS, Fold, fold_of, views_in_memory
from taylorglo.errors import InputError, TaylorgloError, first_line
from taylorglo.loss.functions import Loss
from taylorglo.results import Training
from taylorglo.scores import worst
from taylorglo.settings import SweepSettings, TrainingSettings
from taylorglo.training import server
from taylorglo.training.devices import device_of, is_broken, is_out_of_memory, reuse_memory
from taylorglo.training.function import train_by_function
from taylorglo.training.loop import (
    Objective,
    Recipe,
    TrainedNetwork,
    build_network,
    mean_loss,
    resident,
    train_network,
)
from taylorglo.training.plan import Plan, plan
from taylorglo.training.processes import SeparateProcesses
from taylorglo.training.stacked import FEWEST, kind_of, train_stack

_TRIES = 2

Key = TypeVar("Key", bound=Hashable)


class OutOfMemoryError(TaylorgloError):
    """A device had no memory left for a training."""


class BrokenDeviceError(TaylorgloError):
    """A GPU failed, and this process can compute nothing on it any more."""


def read_resident(path: str | Path, settings: TrainingSettings) -> Dataset:
    """Read a saved data set onto the device that the settings choose.

    Raises:
        InputError: the file is damaged, or the device is not there.
    """
    return resident(datasets.read(Path(path)), device_of(settings))


class Engine:
    """Trains by the plan that :func:`taylorglo.training.plan.plan` makes; a context manager.

    Leaving the context ends the worker processes.

    Args:
        settings: of the sweep.
        read: returns the data set, resident on the device to train on. It is called in every
            process, so ``pickle`` has to be able to pass it to our own worker processes.
    """

    def __init__(self, settings: SweepSettings, read: Callable[[], Dataset]) -> None:
        self.settings = settings
        self._read = read
        self._executor: Executor | None = None
        # The workers live as long as this end of the pipe is open.
        self._lifeline: Connection | None = None
        # Once trainings run in processes of their own, they stay there: a worker may die of a
        # training, this process may not.
        self._uses_processes = False

    @classmethod
    def open(cls, settings: SweepSettings, path: str | Path) -> Self:
        """Return an engine that trains on a saved data set."""
        return cls(settings, partial(read_resident, path, settings.training))

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, which is read when it is first needed."""
        return self._read()

    @cached_property
    def plan(self) -> Plan:
        """How the engine trains; it becomes smaller if memory runs out."""
        return plan(self.settings, self.dataset)

    def __enter__(self) -> Self:
        """Return the engine; nothing is started before there is something to train."""
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End the workers; after an error, without waiting for their trainings."""
        self._stop(wait=error is None)

    def run(self, recipes: Iterable[tuple[Key, Recipe]]) -> Iterator[tuple[Key, TrainedNetwork]]:
        """Do every training; yield each result with the key of its recipe as soon as it is known.

        An error of the machine, such as a full GPU, halves the number of trainings at a time, or
        the training is tried once more. A training that fails again has the status ``failed``.

        Args:
            recipes: keys and recipes. They are taken one by one whenever there is room, so that an
                iterator may depend on the results so far.

        Raises:
            InputError: a recipe or the settings are wrong.
        """
        source = iter(recipes)
        waiting: deque[_Unit[Key]] = deque()
        running: dict[Future[list[TrainedNetwork]], tuple[_Unit[Key], Executor]] = {}
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
                yield from self._results(unit, executor, future, waiting)

    def _results(
        self,
        unit: "_Unit[Key]",
        executor: Executor,
        future: "Future[list[TrainedNetwork]]",
        waiting: "deque[_Unit[Key]]",
    ) -> Iterator[tuple[Key, TrainedNetwork]]:
        """Yield the results of a unit that is done; put it back into the queue if it failed."""
        try:
            results = future.result()
        except (InputError, BrokenDeviceError):
            raise
        except BrokenProcessPool:
            if executor is not self._executor:
                # Another unit of the same pool has been dealt with already.
                waiting.appendleft(unit)
            elif self.plan.workers == 1:
                # Nothing else ran in that process, so this unit killed it.
                self._stop(wait=False)
                killed = TaylorgloError("the process that trained it was killed")
                yield from self._retry(unit, killed, waiting)
            else:
                waiting.appendleft(unit)
                # Nothing runs in a broken pool, and a worker that was just starting would be waited
                # for without end.
                self._halve_workers(wait=False)
        except OutOfMemoryError as error:
            yield from self._retry_smaller(unit, executor, error, waiting)
        except Exception as error:
            # Of a user's own network, for example: a training fails, and not the whole search.
            yield from self._retry(unit, error, waiting)
        else:
            for key, result in zip(unit.keys, results, strict=True):
                yield key, replace(result, training=self._described(result.training))

    def _described(self, training: Training) -> Training:
        """Note in a training how it was computed."""
        chosen = self.plan
        return training.model_copy(
            update={
                "engine": chosen.engine,
                "precision": chosen.precision,
                "device": chosen.device,
            }
        )

    def _take(
        self,
        source: Iterator[tuple[Key, Recipe]],
        waiting: "deque[_Unit[Key]]",
        running: int,
    ) -> bool:
        """Move recipes for all idle workers into the queue; return whether there was any."""
        taken = list(islice(source, 1))
        if not taken:
            return False
        idle = self.plan.workers - running
        if self.plan.chunk > 1:
            taken.extend(islice(source, self.plan.chunk * idle - 1))
        waiting.extend(_units(taken, self.plan, idle))
        return True

    def _retry_smaller(
        self,
        unit: "_Unit[Key]",
        executor: Executor,
        error: OutOfMemoryError,
        waiting: "deque[_Unit[Key]]",
    ) -> Iterator[tuple[Key, TrainedNetwork]]:
        """Put a unit that did not fit back into the queue, and do less at a time from now on."""
        if len(unit.keys) == 1 and (self.plan.workers > 1 or executor is not self._executor):
            waiting.appendleft(unit)
            # If the executor is another one already, another unit has halved the workers.
            if executor is self._executor:
                self._halve_workers()
            return
        if len(unit.keys) > 1:
            smaller = min(self.plan.chunk, len(unit.keys)) // 2
            self.plan = replace(self.plan, chunk=max(1, smaller))
        yield from self._retry(unit, error, waiting)

    def _halve_workers(self, *, wait: bool = True) -> None:
        """Go on in half as many processes, after the trainings that are running, or at once.

        A process may have been killed because the machine's memory was full.
        """
        self._stop(wait=wait, cancel=False)
        self.plan = replace(self.plan, workers=max(1, self.plan.workers // 2))

    def _retry(
        self, unit: "_Unit[Key]", error: Exception, waiting: "deque[_Unit[Key]]"
    ) -> Iterator[tuple[Key, TrainedNetwork]]:
        """Put a unit that failed back into the queue, in halves; give a single training up.

        Halving finds the training that fails, so that the others are not lost with it.
        """
        if len(unit.keys) > 1:
            waiting.extendleft(reversed(unit.halves()))
        elif unit.tries + 1 < _TRIES:
            waiting.appendleft(replace(unit, tries=unit.tries + 1))
        else:
            now = time.time()
            training = Training(
                status="failed",
                accuracy=worst(self.settings.evaluation.score),
                curve=[],
                started=now,
                ended=now,
                seconds=0.0,
                reason=first_line(error),
            )
            yield unit.keys[0], TrainedNetwork(self._described(training))

    def _submit(self, unit: "_Unit[Key]", executor: Executor) -> "Future[list[TrainedNetwork]]":
        """Give a unit to the executor."""
        # A stack is never smaller than FEWEST, and takes more memory than a single network.
        unstacked = unit.tries > 0 or self.plan.chunk < FEWEST
        if isinstance(executor, _InlineExecutor):
            return executor.submit(executor.worker.run, unit.recipes, unstacked)
        try:
            return executor.submit(_run_in_worker, unit.recipes, unstacked)
        except (BrokenProcessPool, OSError) as error:
            # A worker died since the last result; the pool may be about to close its pipes.
            future: Future[list[TrainedNetwork]] = Future()
            future.set_exception(BrokenProcessPool(str(error)))
            return future

    def _start(self) -> Executor:
        """Return an executor as planned: in this process, or a pool of workers."""
        training = self.settings.training
        inline = self.plan.engine == "sequential" if training.function else self.plan.workers == 1
        if inline and not self._uses_processes:
            return _InlineExecutor(_Worker(self.settings, self.dataset, self.plan))
        self._uses_processes = True
        context = server.context()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        arguments = (self.settings, self._read, self.plan, lifeline)
        if training.function:
            return SeparateProcesses(
                self.plan.workers, context, _begin_worker, arguments, training.timeout
            )
        executor = ProcessPoolExecutor(
            self.plan.workers, context, initializer=_begin_worker, initargs=arguments
        )
        if self.plan.workers == 1:
            # Other workers were killed. Find out whether the machine kills every process.
            try:
                executor.submit(_ready).result()
            except BrokenProcessPool as error:
                raise TaylorgloError(
                    "no process can be started to train in, each is killed: out of memory?"
                ) from error
        return executor

    def _stop(self, *, wait: bool = True, cancel: bool = True) -> None:
        """End the workers, after their trainings or at once."""
        if self._lifeline is not None and not wait:
            self._lifeline.close()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=cancel)
            self._executor = None
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None


@dataclass(frozen=True)
class _Unit(Generic[Key]):
    """Trainings that are done together, and how often they were tried."""

    keys: list[Key]
    recipes: list[Recipe]
    tries: int = 0

    def halves(self) -> "list[_Unit[Key]]":
        """Return the first and the second half of the unit."""
        middle = len(self.keys) // 2
        parts = (slice(0, middle), slice(middle, len(self.keys)))
        return [_Unit(self.keys[part], self.recipes[part]) for part in parts]


def _units(taken: list[tuple[Key, Recipe]], plan: Plan, workers: int) -> list[_Unit[Key]]:
    """Group recipes that one program can do, in parts of one size that keep the workers busy."""
    if plan.chunk == 1:
        return [_Unit([key], [recipe]) for key, recipe in taken]
    groups: dict[Any, list[tuple[Key, Recipe]]] = {}
    folds: dict[Fold | None, int] = {}
    for key, recipe in taken:
        alike = (
            recipe.learning_rate if plan.same_rate_only else None,
            recipe.steps,
            recipe.horizon,
            recipe.validations,
            recipe.give_up,
            recipe.seed if plan.same_seed_only else None,
            # A program keeps a copy of the images for each of its folds.
            folds.setdefault(recipe.fold, len(folds)) // MOST_VIEWS,
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


class _InlineExecutor(Executor):
    """An executor in this process: what is submitted is done at once."""

    def __init__(self, worker: "_Worker") -> None:
        self.worker = worker

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            # Without its frames, which would keep all tensors of the failed training in memory.
            future.set_exception(error.with_traceback(None))
        return future


class _Worker:
    """The trainings of one process."""

    def __init__(self, settings: SweepSettings, dataset: Dataset, plan: Plan) -> None:
        self._settings = settings
        self._dataset = dataset
        self._plan = plan
        self._compiled: dict[str, tuple[nn.Module, Loss, Objective]] = {}
        # Of the data, with a fold or with none, as the plan counts on it.
        kept = views_in_memory(settings, dataset.provenance)
        self._view = lru_cache(max(1, kept))(fold_of)
        torch.set_num_threads(plan.threads)
        if settings.training.function:
            # Its own training decides how it uses device and memory.
            return
        if plan.device == "cuda":
            torch.backends.cudnn.benchmark = True  # every batch has the same shape
        else:
            reuse_memory()

    def run(self, recipes: list[Recipe], unstacked: bool) -> list[TrainedNetwork]:
        """Do trainings, in one program if the engine is fused and ``unstacked`` is false."""
        try:
            if self._plan.engine == "fused" and not unstacked:
                precision = self._plan.precision
                return train_stack(recipes, self._dataset, self._settings, precision, self._view)
            return [self._run_alone(recipe) for recipe in recipes]
        except Exception as error:
            failure: TaylorgloError
            if is_out_of_memory(error):
                failure = OutOfMemoryError(f"out of memory: {first_line(error)}")
            elif is_broken(error):
                failure = BrokenDeviceError(
                    f"the GPU failed, start this task again: {first_line(error)}"
                )
            else:
                raise
        # Raised outside of the handler: the handled error would be its context, and keep all
        # tensors of its frames in memory.
        gc.collect()
        if self._plan.device == "cuda" and isinstance(failure, OutOfMemoryError):
            torch.cuda.empty_cache()
        raise failure

    def _run_alone(self, recipe: Recipe) -> TrainedNetwork:
        if self._settings.training.function:
            return train_by_function(recipe, self._dataset, self._settings, self._plan.device)
        network = build_network(self._settings, self._dataset, recipe.seed)
        objective = None
        if self._settings.training.compile:
            network, loss, objective = self._compile(network, recipe.loss)
            recipe = replace(recipe, loss=loss)
        return train_network(
            network,
            recipe,
            self._dataset,
            self._settings,
            precision=self._plan.precision,
            objective=objective,
            view=self._view,
        )

    def _compile(self, network: nn.Module, loss: Loss) -> tuple[nn.Module, Loss, Objective]:
        """Put weights and theta into the compiled graph that serves all losses of this kind."""
        kind = kind_of(loss)
        if kind not in self._compiled:

            def objective(images: Tensor, targets: Tensor) -> Tensor:
                return mean_loss(loss, network(images), targets)

            # On a GPU with CUDA graphs too, which take the host out of the step.
            mode = "reduce-overhead" if self._plan.device == "cuda" else "default"
            self._compiled[kind] = (
                network.to(self._plan.device),
                loss.to(self._plan.device),
                torch.compile(objective, mode=mode),
            )
        compiled_network, compiled_loss, _ = self._compiled[kind]
        compiled_network.load_state_dict(network.state_dict())
        for theta, new in zip(compiled_loss.buffers(), loss.buffers(), strict=True):
            theta.copy_(new)
        return self._compiled[kind]


_worker: _Worker | None = None  # in a worker process


def _begin_worker(
    settings: SweepSettings, read: Callable[[], Dataset], plan: Plan, lifeline: Connection
) -> None:
    """Prepare a worker process, which ends with the engine, in whatever way that ends."""
    global _worker
    server.end_with(lifeline)
    _worker = _Worker(settings, read(), plan)


def _ready() -> None:
    """Do nothing: this succeeds once the worker has started."""


def _run_in_worker(recipes: list[Recipe], unstacked: bool) -> list[TrainedNetwork]:
    assert _worker is not None
    try:
        return _worker.run(recipes, unstacked)
    except TaylorgloError:
        raise
    except Exception as error:
        # The error may be of any class, also one that cannot be passed to another process.
        raise RuntimeError(first_line(error)) from None
