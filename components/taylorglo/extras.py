"""The error for a package that only an extra of taylorglo installs and that is missing."""

from taylorglo.errors import InputError


class MissingExtraError(InputError, ImportError):
    """A package that only an extra of taylorglo installs is missing."""


def missing(feature: str, error: ModuleNotFoundError) -> MissingExtraError:
    """Return the error for a feature whose package is not installed.

    Args:
        feature: the name of the feature, as the error's message names it.
        error: the error of the import.
    """
    return MissingExtraError(
        f"{feature} needs the package {error.name}, which is not installed: "
        "pip install 'taylorglo[pipeline]'"
    )
