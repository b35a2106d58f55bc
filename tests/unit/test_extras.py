"""The error for a missing package of the extra ``pipeline``."""

import importlib

import pytest

from taylorglo.errors import InputError
from taylorglo.extras import MissingExtraError, missing


def error_of_import(name: str) -> ModuleNotFoundError:
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(name)
    return caught.value


def test_the_error_names_feature_package_and_command() -> None:
    error = missing("taylorglo.Search", error_of_import("no_such_package"))
    assert str(error) == (
        "taylorglo.Search needs the package no_such_package, which is not installed: "
        "pip install 'taylorglo[pipeline]'"
    )


def test_the_error_is_one_for_users_and_one_of_an_import() -> None:
    error = missing("taylorglo.Search", error_of_import("no_such_package"))
    assert isinstance(error, MissingExtraError)
    assert isinstance(error, InputError)
    assert isinstance(error, ImportError)
    assert error.exit_status == 2
