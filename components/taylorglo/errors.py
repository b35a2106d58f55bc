"""The errors that a user is meant to read: one line each, without a traceback."""

MAX_REASON = 300  # characters of another library's message that are worth showing


class TaylorgloError(Exception):
    """Base of every error whose message alone tells the user what to do."""

    exit_status = 2  # of the command that the error ends


class InputError(TaylorgloError, ValueError):
    """Bad input: the message says what is wrong, where, and what would be right."""


class ServiceError(TaylorgloError, RuntimeError):
    """A service (database, object store, tracking server) still fails after bounded retries."""


def one_line(error: BaseException, limit: int = MAX_REASON) -> str:
    """Return the message of an error in one line, at most ``limit`` characters long.

    An error without a message is described by the name of its type.
    """
    return shortened(str(error), limit) or type(error).__name__


def shortened(text: str, limit: int = MAX_REASON) -> str:
    """Return a text in one line, at most ``limit`` characters long."""
    return " ".join(text.split())[:limit]


def described(error: BaseException) -> str:
    """Return the type and the message of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def first_line(error: BaseException, limit: int = MAX_REASON) -> str:
    """Return the first line of an error's message: PyTorch goes on with its own stack trace."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__
