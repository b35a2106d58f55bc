"""What to install if a package of an extra is missing."""

from taylorglo.errors import InputError


class MissingExtraError(InputError, ImportError):
    """A package that only an extra of taylorglo installs is not there."""


def missing(what: str, error: ModuleNotFoundError) -> MissingExtraError:
    """Return the error for something that needs a package which is not installed.

    Args:
        what: the thing that needs the package.
        error: that was raised by the import.
    """
    return MissingExtraError(
        f"{what} needs the package {error.name}, which is not installed: "
        "pip install 'taylorglo[pipeline]'"
    )
