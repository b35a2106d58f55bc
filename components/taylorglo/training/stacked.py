"""Many trainings in one program: stacked weights, and one step for all networks.

The weights of the networks are stacked on a first axis (``torch.func``), so that a step costs the
overhead of one network, and the device sees larger products. Each training sees the batches, the
dropout and the schedule that it would see alone; a training that diverges or is given up leaves
the others as they are. The results equal those of :func:`taylorglo.training.loop.train_network`,
one network after another, up to rounding. There is one exception: PyTorch's own dropout on feature
maps, in a user's network, draws other masks here, because they follow the layout of the images in
memory.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from taylorglo.data.batches import Batches, stacked
from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.folds import Fold, fold_of
from taylorglo.loss.formula import taylor
from taylorglo.loss.functions import Loss, TaylorLoss
from taylorglo.networks.factory import ImageShape
from taylorglo.settings import SweepSettings
from taylorglo.training.devices import computing
from taylorglo.training.loop import (
    Checks,
    Look,
    Recipe,
    TrainedNetwork,
    View,
    build_network,
    evaluation_batches,
    looks,
    measured,
    seeded,
)
from taylorglo.training.scores import Tally
from taylorglo.training.updates import (
    Average,
    Groups,
    by_decay,
    clip,
    optimizer_of,
    schedule_of,
)

# The smallest stack: the product with one matrix is computed in another way than the product with
# several, and rounds differently.
FEWEST = 2
_VECTOR = 16  # the fused optimizer takes this many values at a time, or a multiple of them


def qualifies(network: nn.Module, image_shape: ImageShape) -> bool:
    """Return whether networks of this kind can be stacked.

    They may have no buffers that are updated in training (the running statistics of batch
    normalisation), and nothing that ``vmap`` has no rule for.

    Args:
        network: as :func:`taylorglo.networks.factory.build` returns it, on the CPU.
        image_shape: (C, H, W).
    """
    if list(network.get_submodule("network").buffers()):
        return False
    base = copy.deepcopy(network).to("meta")
    _use_stackable_products(base)
    state = {name: value.expand(2, *value.shape) for name, value in base.state_dict().items()}
    images = torch.zeros(2, *image_shape, device="meta")
    try:
        vmap(lambda own: functional_call(base, (own,), (images,)), randomness="same")(state)
    except Exception:
        # A user's own network may raise anything; networks are trained one by one then.
        return False
    return True


def draws(network: nn.Module, image_shape: ImageShape) -> bool:
    """Return whether the network draws random numbers in training.

    Only trainings of one seed can be stacked then.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        network.train()(torch.zeros(2, *image_shape))
        return not torch.equal(before, torch.get_rng_state())


def train_stack(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    settings: SweepSettings,
    precision: str = "float32",
    view: View = fold_of,
) -> list[TrainedNetwork]:
    """Train one network for each recipe.

    Args:
        recipes: alike in all but loss, seed and fold, and learning rate if the optimizer is an
            adaptive one; of one seed, if the network draws random numbers.
        dataset: resident on the device to train on.
        settings: as for :func:`taylorglo.training.loop.train_network`.
        precision: as for :func:`taylorglo.training.loop.train_network`.
        view: as for :func:`taylorglo.training.loop.train_network`.

    Returns:
        A result for each recipe, in their order.
    """
    return _Stack(recipes, dataset, settings, precision, view).run()


class _Stack:
    """The networks that are still in training, and the results of the others.

    A row of the stack is a network; ``_rows`` has the number of its recipe. If there are fewer
    recipes than ``FEWEST``, the first one fills the other rows too.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        dataset: Dataset,
        settings: SweepSettings,
        precision: str,
        view: View,
    ) -> None:
        self._started = self._counted = time.time()
        self._recipes = recipes
        self._num_classes = dataset.num_classes
        folds = dict.fromkeys(recipe.fold for recipe in recipes)
        self._folds = {fold: view(dataset, fold) for fold in folds}
        self._settings = settings
        self._precision = precision
        self._first = recipes[0]
        self._device = dataset.train.images.device
        self._sample_axes = len(dataset.image_shape)
        seeds = list(dict.fromkeys(recipe.seed for recipe in recipes))
        built = {seed: build_network(settings, dataset, seed) for seed in seeds}
        self._network = built[seeds[0]]
        self._rows = [*range(len(recipes)), *([0] * (FEWEST - len(recipes)))]
        networks = [built[recipes[number].seed] for number in self._rows]
        parameters, buffers = stack_module_state(networks)
        self._parameters = {name: self._leaf(value) for name, value in parameters.items()}
        self._singles = self._views(self._parameters)
        # Stacked, too; empty without averages.
        ema = settings.training.ema
        self._averages = _copies(self._parameters) if ema else {}
        self._average = self._averaging() if ema else None
        # Buffers, such as the normalisation, are the same in all networks. They are kept apart, or
        # every network would have a copy of the images.
        self._buffers = {name: value[0].to(self._device) for name, value in buffers.items()}
        # Not on the device meta: tied weights are no longer tied after they are moved there.
        self._base = copy.deepcopy(self._network)
        _use_stackable_products(self._base)
        origins = list(dict.fromkeys((recipe.seed, recipe.fold) for recipe in recipes))
        self._batches = [Batches(self._folds[fold], settings, seed) for seed, fold in origins]
        sources = [origins.index((recipes[n].seed, recipes[n].fold)) for n in self._rows]
        self._sources = torch.tensor(sources, device=self._device)
        self._seconds = [0.0] * len(recipes)
        self._checks = [Checks(recipe) for recipe in recipes]
        self._results: dict[int, TrainedNetwork] = {}

    def run(self) -> list[TrainedNetwork]:
        """Train all networks; return a result for each recipe."""
        recipe = self._first
        validated, checked = recipe.validated, recipe.checked
        optimizer = self._optimizer()
        schedule = schedule_of(optimizer, self._settings.training, recipe.horizon)
        objective = self._objective()
        with seeded(recipe.seed, self._device), computing(self._precision, self._device):
            for step in range(1, recipe.steps + 1):
                images, targets = self._batch()
                for parameter in self._parameters.values():
                    parameter.grad = None
                logits = self._logits(self._parameters, images, training=True)
                losses = objective(logits, targets)
                losses.sum().backward()  # type: ignore[no-untyped-call]
                self._clip()
                optimizer.step()
                schedule.step()
                if self._average:
                    self._average.update()
                if step not in checked:
                    continue
                self._share_time()
                ended = self._check(step, losses.detach(), step in validated)
                if ended and not self._remove(ended, optimizer):
                    break
                if ended:
                    objective = self._objective()
        self._share_time()
        for row, number in enumerate(self._rows):
            if number not in self._results:
                self._end(row)
        return [self._results[number] for number in range(len(self._recipes))]

    def _objective(self) -> "StackedLoss":
        losses = [self._recipes[number].loss for number in self._rows]
        return StackedLoss(losses, self._device)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of all networks.

        SGD takes them together. The fused optimizer rounds the last few values of a tensor on a CPU
        differently from the others. So it takes only the tensors in which no network has such an
        end: the result of a network must not depend on its place in the stack.

        An adaptive optimizer takes the networks one by one, because each has its learning rate.
        """
        training = self._settings.training
        groups: Groups = []
        if training.adaptive:
            for number, single in zip(self._rows, self._singles, strict=True):
                rate = self._recipes[number].learning_rate
                groups += [{**group, "lr": rate} for group in by_decay(single, training)]
            return optimizer_of(groups, training, self._first.learning_rate)
        by_end: dict[bool, list[nn.Parameter]] = {}
        for parameter in self._parameters.values():
            whole = self._device.type == "cuda" or parameter[0].numel() % _VECTOR == 0
            by_end.setdefault(whole, []).append(parameter)
        for whole, parameters in by_end.items():
            groups += [
                {**group, "fused": whole} for group in by_decay(parameters, training, stacked=1)
            ]
        return optimizer_of(groups, training, self._first.learning_rate)

    def _views(self, parameters: Mapping[str, nn.Parameter]) -> list[list[nn.Parameter]]:
        """Return the parameters of each network, as views of the stacked ones.

        They are for what is done to one network after another: empty if nothing is.
        """
        training = self._settings.training
        if not (training.adaptive or training.clip_norm or training.ema):
            return []
        stacked = parameters.values()
        return [
            [nn.Parameter(value.detach()[row], value.requires_grad) for value in stacked]
            for row in range(len(self._rows))
        ]

    def _averaging(self, steps: int = 0) -> Average:
        """Return the average of all networks, which keeps it in ``_averages``."""
        live = [parameter.detach() for single in self._singles for parameter in single]
        averages = [
            value[row] for row in range(len(self._rows)) for value in self._averages.values()
        ]
        return Average(live, averages, self._settings.training.ema, steps)

    def _clip(self) -> None:
        """Cut the gradient of each network, and let its views have it."""
        training = self._settings.training
        if not (training.adaptive or training.clip_norm):
            return
        for index, parameter in enumerate(self._parameters.values()):
            if parameter.grad is not None:
                for single, gradient in zip(self._singles, parameter.grad, strict=True):
                    single[index].grad = gradient
        for single in self._singles:
            clip(single, training)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Return samples (B, ...) and targets (B, n) for all networks, or a batch for each.

        Batches of their own have a first axis more, of length M.
        """
        images, targets = stacked(self._batches, self._num_classes)
        if len(self._batches) == 1:
            return images[0], targets[0]
        return images[self._sources], targets[self._sources]

    def _logits(
        self, parameters: Mapping[str, Tensor], images: Tensor, *, training: bool
    ) -> Tensor:
        """Return logits (M, B, n) of samples (B, ...) for all, or (M, B, ...) for each.

        ``parameters`` are those of M networks, stacked.
        """
        self._base.train(training)

        def forward(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
            state = {**parameters, **self._buffers}
            logits: Tensor = functional_call(self._base, (state,), (images,))
            return logits

        # One draw for all networks: the draw of a network that is trained alone from this seed
        # (common random numbers).
        axis = 0 if images.ndim == self._sample_axes + 2 else None
        together = vmap(forward, in_dims=(0, axis), randomness="same")
        result: Tensor = together(parameters, images)
        return result

    def _check(self, step: int, losses: Tensor, validating: bool) -> list[int]:
        """Check the networks after a step; return the rows of those whose training ends here."""
        values = losses.tolist()
        measured_looks = self._validate() if validating else None
        ended = []
        for row, number in enumerate(self._rows):
            if number in self._results or number in self._rows[:row]:
                continue
            look = measured_looks[row] if measured_looks else None
            if self._checks[number].stop(step, values[row], look):
                self._end(row)
                ended.append(row)
        return ended

    @torch.no_grad()
    def _validate(self) -> list[Look]:
        """Return what is seen of each network on its validation images."""
        shown = self._averages or self._parameters
        rows_by_fold: dict[Fold | None, list[int]] = {}
        for row, number in enumerate(self._rows):
            rows_by_fold.setdefault(self._recipes[number].fold, []).append(row)
        if len(rows_by_fold) == 1:
            ((fold, _),) = rows_by_fold.items()
            return self._validate_on(self._folds[fold].validation, shown)
        found: dict[int, Look] = {}
        for fold, rows in rows_by_fold.items():
            # A fold may have one network alone, and stacks have at least FEWEST.
            enough = torch.tensor((rows * FEWEST)[: max(FEWEST, len(rows))], device=self._device)
            parameters = {name: value[enough] for name, value in shown.items()}
            seen = self._validate_on(self._folds[fold].validation, parameters)
            found.update(zip(rows, seen, strict=False))
        return [found[row] for row in range(len(self._rows))]

    def _validate_on(self, split: Split, parameters: Mapping[str, Tensor]) -> list[Look]:
        """Return what is seen on a split of networks with stacked parameters."""
        number, score = len(next(iter(parameters.values()))), self._settings.evaluation.score
        tally = Tally(split, number, [score])
        for images, labels in evaluation_batches(split, self._settings.training.batch_size):
            logits = self._logits(parameters, images, training=False).float()
            losses = functional.cross_entropy(
                logits.flatten(0, 1), labels.repeat(number), reduction="none"
            )
            tally.add(logits, labels, losses.view(number, -1).sum(dim=1))
        return looks(tally, score)

    def _share_time(self) -> None:
        """Share the time since the last check among the networks that were in training."""
        now, training = time.time(), set(self._rows) - self._results.keys()
        for number in training:
            self._seconds[number] += (now - self._counted) / len(training)
        self._counted = now

    def _end(self, row: int) -> None:
        """End the training of a row, and measure its network."""
        number = self._rows[row]
        recipe = self._recipes[number]
        training = self._checks[number].training(self._started, time.time(), self._seconds[number])
        if recipe.kept or recipe.epsilon:
            shown = self._averages or self._parameters
            state = {name: value[row].detach() for name, value in shown.items()}
            # Not strict: tied weights are there under one of their names.
            self._network.to(self._device).load_state_dict({**state, **self._buffers}, strict=False)
        self._network.eval()
        self._results[number] = measured(
            training,
            self._network,
            recipe,
            self._folds[recipe.fold],
            self._settings,
            self._precision,
        )

    def _remove(self, ended: Sequence[int], optimizer: torch.optim.Optimizer) -> bool:
        """Take rows out of the stack, down to ``FEWEST``; return whether any network is left."""
        left = [
            row
            for row, number in enumerate(self._rows)
            if row not in ended and number not in self._results
        ]
        if not left:
            return False
        left = [*left, *ended[: max(0, FEWEST - len(left))]]
        self._rows = [self._rows[row] for row in left]
        rows = torch.tensor(left, device=self._device)
        self._sources = self._sources[rows]
        old, old_singles = self._parameters, self._singles
        self._parameters = {name: self._leaf(value, rows) for name, value in old.items()}
        self._singles = self._views(self._parameters)
        if self._average:
            self._averages = {name: value[rows] for name, value in self._averages.items()}
            self._average = self._averaging(self._average.steps)
        if self._settings.training.adaptive:
            replacements = {
                before: after
                for row, single in zip(left, self._singles, strict=True)
                for before, after in zip(old_singles[row], single, strict=True)
            }
        else:
            replacements = {old[name]: after for name, after in self._parameters.items()}
        # A group is left empty if its network is gone: the schedule knows the groups by number.
        for group in optimizer.param_groups:
            group["params"] = [replacements[p] for p in group["params"] if p in replacements]
        for before in [p for p in optimizer.state if p not in replacements]:
            del optimizer.state[before]
        for before, after in replacements.items():
            state = optimizer.state.pop(before, {})
            if not self._settings.training.adaptive:
                state = {name: v if v is None else v[rows] for name, v in state.items()}
            optimizer.state[after] = state
        return True

    def _leaf(self, value: Tensor, rows: Tensor | slice = slice(None)) -> nn.Parameter:
        """Return rows of a stacked tensor as a parameter on the device."""
        return nn.Parameter(
            value.detach()[rows].to(self._device), requires_grad=value.requires_grad
        )


def _copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in parameters.items()}


def _use_stackable_products(network: nn.Module) -> None:
    """Let the linear layers of a network compute in the way that is faster in a stack."""
    for module in network.modules():
        if type(module) is nn.Linear:
            # mypy does not allow methods to be assigned.
            setattr(module, "forward", partial(_linear, module))  # noqa: B010


def _linear(module: nn.Linear, inputs: Tensor) -> Tensor:
    """Compute ``module(inputs)`` as the transpose of weight x inputs^T, a batch of one product.

    In this order gradients have the layout of the weights, and are not copied into it. It is a
    batch because ``vmap`` would merge plain products that share their inputs, and the rounding of
    the merged product depends on the number of networks.
    """
    columns = inputs.flatten(0, -2).mT
    outputs = torch.bmm(module.weight[None], columns[None])
    if module.bias is not None:
        outputs += module.bias[:, None]
    return outputs[0].mT.reshape(*inputs.shape[:-1], module.out_features)


class StackedLoss:
    """The mean losses (M,) of M networks, from logits (M, B, n), with all kinds of loss at once."""

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
        """Return the mean losses; ``targets`` are (B, n) for all networks, or (M, B, n)."""
        single = len(self._groups) == 1
        shared = targets.ndim == 2
        values = []
        for loss, thetas, rows in self._groups:
            z = logits if single else logits[rows]
            t = targets if single or shared else targets[rows]
            if isinstance(loss, TaylorLoss):
                values.append(taylor(thetas, loss.order, z, t).mean(dim=1))
            else:
                t = t.expand(len(z), -1, -1) if shared else t
                per_sample = loss.per_sample(z.flatten(0, 1), t.flatten(0, 1))
                values.append(per_sample.view(z.shape[:2]).mean(dim=1))
        return torch.cat(values)[self._order]


def kind_of(loss: Loss) -> str:
    """Return the kind of a loss: losses of one kind differ in their theta alone."""
    return f"{loss.family} {loss.order}" if isinstance(loss, TaylorLoss) else repr(loss)


def _thetas(losses: Sequence[Loss], device: torch.device) -> Tensor:
    """Return the thetas of Taylor losses, shape (M, L); an empty tensor for other losses."""
    thetas = [loss.theta.to(device) for loss in losses if isinstance(loss, TaylorLoss)]
    return torch.stack(thetas) if thetas else torch.empty(0)
