"""The method: the Taylor loss, its dynamics, and the filters that judge it before any training."""

from importlib import import_module

_MODULES = {
    "classic": (
        "Baikal",
        "CrossEntropy",
        "GeneralisedCrossEntropy",
        "MeanAbsoluteError",
        "SquaredError",
        "SymmetricCrossEntropy",
    ),
    "functions": ("Loss", "TaylorLoss"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a loss when it is first used, because dynamics and filters need no PyTorch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
