"""CMA-ES over the coefficients of the loss, with its memory in Optuna's database.

The package can be called: ``taylorglo.search(train, classes=10)`` is the function
:func:`taylorglo.notebook.search`. Python gives the name ``taylorglo.search`` to this package as
soon as a module of it is imported, so that the package itself has to be the function, too.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that is a function, too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _search()(*args, **kwargs)

    @property
    def __signature__(self) -> Signature:
        return signature(_search())


def _search() -> Callable[..., Any]:
    # By its name, because it is above this package.
    function: Callable[..., Any] = import_module("taylorglo.notebook").search
    return function


sys.modules[__name__].__class__ = _CallablePackage
