"""Several trainings as one program: the networks' weights stacked on a first axis, and one step for all of them.

With ``torch.func`` a step costs the overhead of one, and the device sees larger products. Each training sees the
batches, the dropout and the schedule that it would see alone; one that diverges or is given up leaves the others as
they are. Equal to :func:`taylorglo.training.train`, one after another, up to rounding. Only PyTorch's own dropout on
feature maps, in a network of the user's, draws other masks here, since they follow the layout of the images in memory.
"""

import copy
import math
import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from taylorglo.batches import Batches, stacked
from taylorglo.data import Dataset, Split
from taylorglo.devices import computing
from taylorglo.loss import Loss, TaylorLoss, taylor
from taylorglo.models import ImageShape
from taylorglo.settings import SweepSettings
from taylorglo.training import (
    Recipe,
    Result,
    Status,
    Training,
    build_network,
    evaluation_batches,
    finished,
    not_learned,
    ran_off,
    schedule_of,
    seeded,
    sgd,
)

# Networks in a stack: of one matrix, the product is computed in another way than of several, with other rounding.
FEWEST = 2
_VECTOR = 16  # values that the fused optimizer takes at a time, or a multiple of them


def qualifies(network: nn.Module, image_shape: ImageShape) -> bool:
    """Whether networks of this kind can be stacked: as :func:`taylorglo.models.build` gives it, on the CPU.

    They may have no buffers, which would be updated in training (the running statistics of batch normalisation), and
    nothing that ``vmap`` has no rule for.
    """
    if list(network.get_submodule("network").buffers()):
        return False
    base = copy.deepcopy(network).to("meta")
    _stackable(base)
    state = {name: value.expand(2, *value.shape) for name, value in base.state_dict().items()}
    try:
        images = torch.zeros(2, *image_shape, device="meta")
        vmap(lambda own: functional_call(base, (own,), (images,)), randomness="same")(state)
    except Exception:  # of a network of the user's own: whatever it is, one network after another is the way then
        return False
    return True


def draws(network: nn.Module, image_shape: ImageShape) -> bool:
    """Whether the network draws random numbers in training, so that only trainings of one seed can be stacked."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        network.train()(torch.zeros(2, *image_shape))
        return not torch.equal(before, torch.get_rng_state())


def train_together(
    recipes: Sequence[Recipe], dataset: Dataset, settings: SweepSettings, precision: str = "float32"
) -> list[Result]:
    """Train one network per recipe.

    Args:
        recipes: alike in all but loss and seed; and of one seed, where the network draws random numbers.
        dataset: resident on the device to train on.
        settings: as for :func:`taylorglo.training.train`.
        precision: likewise.

    Returns:
        A result per recipe, in their order.
    """
    return _Stack(recipes, dataset, settings, precision).train()


class _Stack:
    """The networks that are still in training, and what became of the others."""

    def __init__(self, recipes: Sequence[Recipe], dataset: Dataset, settings: SweepSettings, precision: str) -> None:
        self._started = self._counted = time.time()
        self._recipes, self._dataset, self._settings, self._precision = recipes, dataset, settings, precision
        self._first = recipes[0]
        self._device = dataset.train.images.device
        seeds = list(dict.fromkeys(recipe.seed for recipe in recipes))
        built = {seed: build_network(settings, dataset, seed) for seed in seeds}
        self._network = built[seeds[0]]
        self._alive = [*range(len(recipes)), *([0] * (FEWEST - len(recipes)))]  # numbers of recipes, row by row
        parameters, buffers = stack_module_state([built[recipes[index].seed] for index in self._alive])
        self._parameters = {name: self._leaf(value) for name, value in parameters.items()}
        # Such as the normalisation: the same in all, and kept apart, or every network had a copy of the images.
        self._buffers = {name: value[0].to(self._device) for name, value in buffers.items()}
        self._base = copy.deepcopy(self._network)  # not on meta: moved there, tied weights are no longer tied
        _stackable(self._base)
        self._batches = [Batches(dataset, settings, seed) for seed in seeds]
        self._source = torch.tensor([seeds.index(recipes[index].seed) for index in self._alive], device=self._device)
        self._seconds = [0.0] * len(recipes)
        self._curves: list[list[tuple[int, float, float]]] = [[] for _ in recipes]
        self._results: dict[int, Result] = {}

    def train(self) -> list[Result]:
        recipe = self._first
        validated, checked = recipe.validated, recipe.checked
        optimizer = self._optimizer()
        schedule = schedule_of(optimizer, self._settings.training, recipe.horizon, recipe.learning_rate)
        objective = _Objective([self._recipes[index].loss for index in self._alive], self._device)
        with seeded(recipe.seed, self._device), computing(self._precision, self._device):
            for step in range(1, recipe.steps + 1):
                images, targets = self._batch()
                optimizer.zero_grad()
                values = objective(self._logits(images, training=True), targets)
                values.sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                if step in checked:
                    self._count()
                    gone = self._check(step, values.detach(), step in validated)
                    if gone and not self._leave(gone, optimizer):
                        break
                    if gone:
                        objective = _Objective([self._recipes[index].loss for index in self._alive], self._device)
        self._count()
        for row, index in enumerate(self._alive):
            if index not in self._results:
                self._end(row, "ok", self._curves[index][-1][1])
        return [self._results[index] for index in range(len(self._recipes))]

    def _optimizer(self) -> torch.optim.SGD:
        """The optimizer of every network.

        The fused one rounds the last few values of a tensor on a CPU in another way than the others. So it takes those
        only in which no network has such an end: what comes of a network must not depend on its place in the stack.
        """
        groups: dict[bool, list[nn.Parameter]] = {}
        for parameter in self._parameters.values():
            whole = self._device.type == "cuda" or parameter[0].numel() % _VECTOR == 0
            groups.setdefault(whole, []).append(parameter)
        return sgd(
            [{"params": parameters, "fused": whole} for whole, parameters in groups.items()],
            self._settings.training,
            self._first.learning_rate,
        )

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and targets (B, n) for all, or a batch of each network's own, (M, B, ...)."""
        images, targets = stacked(self._batches, self._dataset.num_classes)
        if len(self._batches) == 1:
            return images[0], targets[0]
        return images[self._source], targets[self._source]

    def _logits(self, images: Tensor, *, training: bool) -> Tensor:
        """Logits (M, B, n) of images (B, C, H, W) for all networks, or (M, B, C, H, W)."""
        self._base.train(training)

        def forward(parameters: dict[str, nn.Parameter], images: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._base, ({**parameters, **self._buffers},), (images,))
            return logits

        # One draw for all: that of a network which is trained alone from this seed (common random numbers).
        together = vmap(forward, in_dims=(0, 0 if images.ndim == 5 else None), randomness="same")
        result: Tensor = together(self._parameters, images)
        return result

    def _check(self, step: int, values: Tensor, validating: bool) -> list[int]:
        """Look at the networks after a step; returns the rows of those whose training ends here."""
        finite = values.isfinite().tolist()
        scores = self._validate(self._dataset.validation) if validating else None
        gone = []
        for row, index in enumerate(self._alive):
            if index in self._results or index in self._alive[:row]:
                continue
            accuracy, cross_entropy = scores[row] if scores else (0.0, 0.0)
            if not finite[row] or not math.isfinite(cross_entropy):
                self._end(row, "diverged", 0.0, ran_off(step))
            elif scores:
                self._curves[index].append((step, accuracy, cross_entropy))
                give_up = self._first.give_up
                if give_up and step == give_up[0] and accuracy <= give_up[1]:
                    self._end(row, "diverged", accuracy, not_learned(step, accuracy))
            if index in self._results:
                gone.append(row)
        return gone

    @torch.no_grad()
    def _validate(self, split: Split) -> list[tuple[float, float]]:
        rows = len(self._alive)
        correct, total = (torch.zeros(rows, device=self._device) for _ in range(2))
        for images, labels in evaluation_batches(split, self._settings.training.batch_size):
            logits = self._logits(images, training=False).float()
            correct += (logits.argmax(dim=2) == labels).sum(dim=1)
            losses = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(rows), reduction="none")
            total += losses.view(rows, -1).sum(dim=1)
        return list(zip((correct / len(split)).tolist(), (total / len(split)).tolist(), strict=True))

    def _count(self) -> None:
        """Share the time since the last count among those that were in training."""
        now, alive = time.time(), set(self._alive) - self._results.keys()
        for index in alive:
            self._seconds[index] += (now - self._counted) / len(alive)
        self._counted = now

    def _end(self, row: int, status: Status, accuracy: float, reason: str = "") -> None:
        index, now = self._alive[row], time.time()
        training = Training(status, accuracy, self._curves[index], self._started, now, self._seconds[index], reason)
        recipe = self._recipes[index]
        if recipe.kept or recipe.epsilon:
            state = {name: value[row].detach() for name, value in self._parameters.items()}
            # Not strict: tied weights are there under one of their names.
            self._network.to(self._device).load_state_dict({**state, **self._buffers}, strict=False)
        self._network.eval()
        self._results[index] = finished(training, self._network, recipe, self._dataset, self._settings, self._precision)

    def _leave(self, gone: Sequence[int], optimizer: torch.optim.SGD) -> bool:
        """Take rows out of the stack, keeping the fewest that it needs; returns whether anybody is left."""
        left = [row for row in range(len(self._alive)) if row not in gone and self._alive[row] not in self._results]
        if not left:
            return False
        left = [*left, *gone[: max(0, FEWEST - len(left))]]
        self._alive = [self._alive[row] for row in left]
        rows = torch.tensor(left, device=self._device)
        self._source = self._source[rows]
        former, self._parameters = (
            self._parameters,
            {name: self._leaf(value, rows) for name, value in self._parameters.items()},
        )
        kept = {former[name]: parameter for name, parameter in self._parameters.items()}
        for group in optimizer.param_groups:
            group["params"] = [kept[parameter] for parameter in group["params"]]
        for old, parameter in kept.items():
            buffer = optimizer.state.pop(old, {}).get("momentum_buffer")
            optimizer.state[parameter] = {"momentum_buffer": None if buffer is None else buffer[rows]}
        return True

    def _leaf(self, value: Tensor, rows: Tensor | slice = slice(None)) -> nn.Parameter:
        return nn.Parameter(value.detach()[rows].to(self._device), requires_grad=value.requires_grad)


def _stackable(network: nn.Module) -> None:
    """Have the linear layers of a network compute in the way that is faster when they are stacked."""
    for module in network.modules():
        if type(module) is nn.Linear:
            setattr(module, "forward", partial(_linear, module))  # noqa: B010 (to mypy, methods are not assigned)


def _linear(module: nn.Linear, inputs: Tensor) -> Tensor:
    """``module(inputs)``, computed as the transpose of weight x inputs^T, as a batch of one product.

    In this order, gradients have the layout of the weights, and are not copied into it. A batch, because ``vmap`` makes
    one product of plain ones that share their inputs, and its rounding depends on how many networks there are.
    """
    columns = inputs.flatten(0, -2).mT
    outputs = torch.bmm(module.weight[None], columns[None])
    if module.bias is not None:
        outputs += module.bias[:, None]
    return outputs[0].mT.reshape(*inputs.shape[:-1], module.out_features)


class _Objective:
    """The mean loss of each of M networks, (M,), of logits (M, B, n): every kind of loss in one go."""

    def __init__(self, losses: Sequence[Loss], device: torch.device) -> None:
        groups: dict[str, list[int]] = {}
        for row, loss in enumerate(losses):
            groups.setdefault(kind_of(loss), []).append(row)
        self._groups = [
            (
                losses[rows[0]].to(device),
                _thetas([losses[row] for row in rows], device),
                torch.tensor(rows, device=device),
            )
            for rows in groups.values()
        ]
        self._order = torch.cat([rows for _, _, rows in self._groups]).argsort()

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``targets`` are (B, n) for all networks, or (M, B, n)."""
        whole = len(self._groups) == 1
        own = targets.ndim == 3
        values = []
        for loss, thetas, rows in self._groups:
            z, t = (logits if whole else logits[rows]), (targets[rows] if own and not whole else targets)
            if isinstance(loss, TaylorLoss):
                values.append(taylor(thetas, loss.order, z, t).mean(dim=1))
            else:
                t = t if own else t.expand(len(z), -1, -1)
                values.append(loss.per_sample(z.flatten(0, 1), t.flatten(0, 1)).view(z.shape[:2]).mean(dim=1))
        return torch.cat(values)[self._order]


def kind_of(loss: Loss) -> str:
    """Losses of one kind differ in their theta alone."""
    return f"taylor {loss.order}" if isinstance(loss, TaylorLoss) else repr(loss)


def _thetas(losses: Sequence[Loss], device: torch.device) -> Tensor:
    """The thetas of Taylor losses (M, L); nothing of others."""
    thetas = [loss.theta.to(device) for loss in losses if isinstance(loss, TaylorLoss)]
    return torch.stack(thetas) if thetas else torch.empty(0)
