"""Attacks on a classifier in l-infinity and l2, and the accuracy that withstands them.

The contract of all of them is in :mod:`taylorglo.attacks.contract`: images are floats in [0, 1],
labels int64, and the model returns logits. They are pure functions on tensors, and a seed decides
all their random numbers, on every device.
"""

from taylorglo.attacks.auto_pgd import apgd
from taylorglo.attacks.boundary import fab
from taylorglo.attacks.corruptions import corrupted_accuracy
from taylorglo.attacks.gradient import fgsm, pgd
from taylorglo.attacks.objectives import dlr
from taylorglo.attacks.squares import square
from taylorglo.attacks.suite import SUITES, Strength, Withstood, robust_accuracy, withstood

__all__ = [
    "SUITES",
    "Strength",
    "Withstood",
    "apgd",
    "corrupted_accuracy",
    "dlr",
    "fab",
    "fgsm",
    "pgd",
    "robust_accuracy",
    "square",
    "withstood",
]
