"""TaylorGLO: search for better loss functions (arXiv 2002.00059 and 2010.00788).

The names in ``__all__`` are the public interface. They are imported when they are first used, so
that ``import taylorglo`` is quick, and so that a found loss needs PyTorch alone.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taylorglo.attacks import (
        apgd,
        corrupted_accuracy,
        fab,
        fgsm,
        pgd,
        robust_accuracy,
        square,
    )
    from taylorglo.errors import InputError, ServiceError, TaylorgloError
    from taylorglo.loss.classic import (
        Baikal,
        CrossEntropy,
        GeneralisedCrossEntropy,
        MeanAbsoluteError,
        SquaredError,
        SymmetricCrossEntropy,
    )
    from taylorglo.loss.dynamics import (
        Dynamics,
        coefficients,
        collapse_rate,
        dynamics,
        equilibrium_confidence,
        label_smoothed,
        learning_drive,
        net_pull,
    )
    from taylorglo.loss.functions import Loss, TaylorLoss
    from taylorglo.notebook import Proposal, Searcher, SearchResult, search
    from taylorglo.results import Candidate, Evaluation
    from taylorglo.search.study import Search
    from taylorglo.services.registry import load_loss, load_network
    from taylorglo.settings import Identity, SearchSettings
    from taylorglo.training.contract import Result, Split

    __version__: str

__all__ = [
    "Baikal",
    "Candidate",
    "CrossEntropy",
    "Dynamics",
    "Evaluation",
    "GeneralisedCrossEntropy",
    "Identity",
    "InputError",
    "Loss",
    "MeanAbsoluteError",
    "Proposal",
    "Result",
    "Search",
    "SearchResult",
    "SearchSettings",
    "Searcher",
    "ServiceError",
    "Split",
    "SquaredError",
    "SymmetricCrossEntropy",
    "TaylorLoss",
    "TaylorgloError",
    "apgd",
    "coefficients",
    "collapse_rate",
    "corrupted_accuracy",
    "dynamics",
    "equilibrium_confidence",
    "fab",
    "fgsm",
    "label_smoothed",
    "learning_drive",
    "load_loss",
    "load_network",
    "net_pull",
    "pgd",
    "robust_accuracy",
    "search",
    "square",
]

_MODULES = {
    "attacks": (
        "apgd",
        "corrupted_accuracy",
        "fab",
        "fgsm",
        "pgd",
        "robust_accuracy",
        "square",
    ),
    "errors": ("InputError", "ServiceError", "TaylorgloError"),
    "loss.classic": (
        "Baikal",
        "CrossEntropy",
        "GeneralisedCrossEntropy",
        "MeanAbsoluteError",
        "SquaredError",
        "SymmetricCrossEntropy",
    ),
    "loss.dynamics": (
        "Dynamics",
        "coefficients",
        "collapse_rate",
        "dynamics",
        "equilibrium_confidence",
        "label_smoothed",
        "learning_drive",
        "net_pull",
    ),
    "loss.functions": ("Loss", "TaylorLoss"),
    "notebook": ("Proposal", "SearchResult", "Searcher", "search"),
    "results": ("Candidate", "Evaluation"),
    "search.study": ("Search",),
    "services.registry": ("load_loss", "load_network"),
    "settings": ("Identity", "SearchSettings"),
    "training.contract": ("Result", "Split"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name == "__version__":
        return version("taylorglo")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    except ModuleNotFoundError as error:
        from taylorglo.extras import missing

        raise missing(f"taylorglo.{name}", error) from None


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
