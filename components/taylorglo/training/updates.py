"""The parts of a step after the gradient: clipping, optimizer, learning rate, averaged weights."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from taylorglo.settings import TrainingSettings

Groups = list[dict[str, Any]]


class Schedule(Protocol):
    """The course of the learning rate of an optimizer."""

    def step(self) -> None:
        """Set the learning rate of the next step."""


def by_decay(
    parameters: Iterable[nn.Parameter], settings: TrainingSettings, stacked: int = 0
) -> Groups:
    """Return the groups of parameters that have weight decay or have none.

    Args:
        parameters: of a network, or of several with a first axis more.
        settings: they say which parameters decay.
        stacked: number of axes that a parameter has more than that of one network.
    """
    every = list(parameters)
    if settings.weight_decay_on == "all":
        return [{"params": every}]
    weights = [parameter for parameter in every if parameter.ndim - stacked >= 2]
    others = [parameter for parameter in every if parameter.ndim - stacked < 2]
    groups: Groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def optimizer_of(
    groups: Groups, settings: TrainingSettings, learning_rate: float
) -> torch.optim.Optimizer:
    """Return the optimizer of every training, in PyTorch's fused form.

    Args:
        groups: of parameters; what they do not say themselves is as follows.
        settings: of the optimizer.
        learning_rate: the (highest) learning rate.
    """
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    first, second = settings.betas
    return kind(
        groups,
        lr=learning_rate,
        betas=(first, second),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def clip(parameters: Iterable[nn.Parameter], settings: TrainingSettings) -> None:
    """Cut the gradient of a network's parameters to ``clip_norm``, if it is longer."""
    if settings.clip_norm:
        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)


def schedule_of(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, horizon: int
) -> Schedule:
    """Return the schedule of the learning rate over ``horizon`` steps, with its warm-up.

    The warm-up has the part of these steps that it has of a training in full.
    """
    schedule = _without_warmup(optimizer, settings, horizon)
    warmup = round(settings.warmup_steps * horizon / settings.steps)
    return _Warmup(optimizer, schedule, warmup) if warmup else schedule


def _without_warmup(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, horizon: int
) -> lr_scheduler.LRScheduler:
    if settings.schedule == "step":
        milestones = [round(fraction * horizon) for fraction in settings.milestones]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=settings.decay)
    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, horizon)
    if settings.schedule == "one-cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.OneCycleLR(
            optimizer, highest, total_steps=horizon + 1, cycle_momentum=False
        )
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


class _Warmup:
    """A schedule whose first W rates are cut: that of step t, from 1, to t/(W+1) of it.

    PyTorch's schedules compute a rate from the one before, so the rates that they set are put back
    before each step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: lr_scheduler.LRScheduler, steps: int
    ) -> None:
        self._optimizer = optimizer
        self._schedule = schedule
        self._steps = steps
        self._next = 1
        self._cut()

    def step(self) -> None:
        """Set the learning rate of the next step."""
        rates = self._schedule.get_last_lr()
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._schedule.step()
        self._next += 1
        self._cut()

    def _cut(self) -> None:
        if self._next <= self._steps:
            for group in self._optimizer.param_groups:
                group["lr"] *= self._next / (self._steps + 1)


class Average:
    """The exponential moving average of weights in training.

    After step t, from 1, the average a of a weight w becomes d a + (1 - d) w with
    d = min(decay, (1 + t) / (10 + t)), as TensorFlow's ExponentialMovingAverage has it: so the
    initial weights are soon forgotten, also in a short training.

    Args:
        live: the weights in training.
        averages: where to keep their averages; they have to begin with the values of the weights.
        decay: below 1.
        steps: number of steps that were taken in already.
    """

    def __init__(
        self, live: Sequence[Tensor], averages: Sequence[Tensor], decay: float, steps: int = 0
    ) -> None:
        self._live = list(live)
        self._averages = list(averages)
        self._decay = decay
        self.steps = steps

    @classmethod
    def of(cls, network: nn.Module, decay: float) -> "Average":
        """Return the average of a network's parameters and of its floating-point buffers.

        The running statistics of batch normalisation are averaged, too, because they have to suit
        the weights.
        """
        tensors = [*network.parameters(), *network.buffers()]
        live = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        return cls(live, [tensor.clone() for tensor in live], decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step in."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._averages, self._live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their averages."""
        for live, average in zip(self._live, self._averages, strict=True):
            value = live.clone()
            live.copy_(average)
            average.copy_(value)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the network have the averages within a block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
