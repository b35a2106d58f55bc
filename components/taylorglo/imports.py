"""Functions of a user by their names, ``package.module:function``."""

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taylorglo.errors import InputError, described

# A user's code may raise anything. SystemExit and KeyboardInterrupt are no Exceptions.
FROM_USERS = (Exception, SystemExit, KeyboardInterrupt)

# The functions that were lent, by their names, and their revisions.
_lent: dict[str, tuple[Callable[..., Any], str]] = {}


def imported(name: str, subject: str, call: str) -> Callable[..., Any]:
    """Return the function that a name stands for.

    Args:
        name: ``package.module:function``, or the name of a function that was lent.
        subject: what has this name, for an error, such as ``model 'my_networks:small'``.
        call: how it is called, for an error.

    Raises:
        InputError: there is no such function.
    """
    if name in _lent:
        return _lent[name][0]
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except FROM_USERS as error:
        place = getattr(sys.modules.get(module), "__file__", None)
        source = f" from {place}" if place else ""
        raise InputError(f"{subject}: cannot be imported{source}: {described(error)}") from error
    if not callable(function):
        raise InputError(f"{subject}: should be callable as {call}")
    return function  # type: ignore[no-any-return]


def revision_of(name: str) -> str:
    """Return a text that changes if the same name stands for other code.

    It is the SHA-256 of the file of the module, which has to be imported already; empty if the
    module has no file. What the file imports has no part in it.
    """
    if name in _lent:
        return _lent[name][1]
    source = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""


@contextmanager
def lent(name: str, function: Callable[..., Any], revision: str) -> Iterator[None]:
    """Let a name stand for a function in this process alone, until the end of the block.

    This is for a function that cannot be imported, such as one of a notebook.

    Raises:
        InputError: the name stands for another function already.
    """
    if name in _lent:
        raise InputError(f"{name}: another search with a function of this name is going on here")
    _lent[name] = function, revision
    try:
        yield
    finally:
        del _lent[name]
