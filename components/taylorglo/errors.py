"""The errors a user is meant to read: one line each, without a traceback."""


class TaylorgloError(Exception):
    """Base of every error whose message alone tells the user what to do."""

    exit_status = 2  # of the command that it ends


class InputError(TaylorgloError, ValueError):
    """Bad input: the message says what is wrong, where, and what would be right."""


class ServiceError(TaylorgloError, RuntimeError):
    """A service (database, object store, tracking server) still fails after a bounded number of tries."""
