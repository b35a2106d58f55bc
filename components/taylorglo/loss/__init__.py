"""The method: the Taylor loss, its dynamics, and the filters that judge it before any training."""

from importlib import import_module

_LOSSES = ("Baikal", "CrossEntropy", "Loss", "SquaredError", "TaylorLoss")


def __getattr__(name: str) -> object:
    """Import a loss when it is first used, because dynamics and filters need no PyTorch."""
    if name not in _LOSSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("taylorglo.loss.functions"), name)
