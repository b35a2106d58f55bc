"""What an attack raises: functions of logits and labels, one value for each sample.

A loss that flattens the confidences also flattens the gradients of cross-entropy, and looks robust
to an attack that follows them. The difference of logits ratio (DLR) has no scale, and no such flat
parts. It is of Croce & Hein 2020 (arXiv 2003.01690).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from taylorglo.attacks.problem import Objective, Problem


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, (N,)."""
    return functional.cross_entropy(logits, labels, reduction="none")


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio of each sample (Croce & Hein 2020, equation 6).

    With two classes the ratio has no denominator, and the plain margin of the logits is returned.

    Args:
        logits: (N, n), n >= 2.
        labels: (N,), int64, the true classes.

    Returns:
        (N,), above 0 if the sample is misclassified.
    """
    if logits.shape[1] == 2:
        return -margin(logits, labels)
    ordered = logits.topk(3, dim=1).values
    return -margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the logit of the true class exceeds the largest other one, (N,)."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return _of(logits, labels) - others.amax(dim=1)


def difference(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return by how much the logit of a target class exceeds that of the true class, (N,)."""
    return _of(logits, targets) - _of(logits, labels)


def targeted_dlr(logits: Tensor, own: Problem) -> Tensor:
    """Return the DLR towards the targets of a problem (Croce & Hein 2020, equation 7), (N,).

    Its denominator takes four classes. With three it is that of :func:`dlr`, and with two there is
    none, as in :func:`dlr`.
    """
    assert own.targets is not None
    towards = difference(logits, own.labels, own.targets)
    if logits.shape[1] == 2:
        return towards
    ordered = logits.topk(min(4, logits.shape[1]), dim=1).values
    return towards / (ordered[:, 0] - ordered[:, 2:].mean(dim=1) + 1e-12)


def likeliest_targets(logits: Tensor, labels: Tensor, most: int) -> Tensor:
    """Return the classes to attack towards, the likeliest first, (N, at most ``most``).

    Args:
        logits: of the images before the attack, (N, n).
        labels: the true classes, which are no targets.
        most: number of targets; there are at most n - 1.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.topk(min(most, logits.shape[1] - 1), dim=1).indices


def targets_of(logits: Tensor, labels: Tensor, ranks: Tensor) -> Tensor:
    """Return for each sample the class to attack towards, (N,).

    Args:
        logits: of the images before the attack, (N, n).
        labels: the true classes, which are no targets.
        ranks: of the targets, (N,), below n - 1; 0 is the likeliest.
    """
    targets = likeliest_targets(logits, labels, int(ranks.max()) + 1)
    return _of(targets, ranks)


def untargeted(name: str) -> Objective:
    """Return an objective without targets by its name among ``UNTARGETED``."""
    objective = UNTARGETED[name]
    return lambda logits, own: objective(logits, own.labels)


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


UNTARGETED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "dlr": dlr}
