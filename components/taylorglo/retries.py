"""Retries: one loop for every service, bounded by the pauses that it is given, and by time."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from taylorglo.errors import ServiceError
from taylorglo.variables import service_timeout

Result = TypeVar("Result")

# The seconds that all tries together may take, the pauses left out, for another one to begin. The
# last one may take as long as it does: a person waits for a minute at most.
_PATIENCE = 35.0

_PAUSE = 15.0  # seconds between the tries while a service is waited for
_NEWS = 60.0  # seconds between two lines about it

_logger = logging.getLogger(__name__)
_waits: ContextVar[bool] = ContextVar("waits", default=True)


def doubling(first: float, tries: int, longest: float = float("inf")) -> list[float]:
    """Return the pauses between ``tries`` tries, in seconds: each twice the one before it.

    Args:
        first: the first pause.
        tries: how many tries there are in all, at least 1.
        longest: no pause is longer than this.
    """
    return [min(first * 2**retry, longest) for retry in range(tries - 1)]


def retry(
    action: Callable[[], Result],
    pauses: Iterable[float],
    *,
    retryable: Callable[[Exception], bool],
) -> Result:
    """Call ``action``, and call it again after each pause as long as it fails in a retryable way.

    Args:
        action: what is done; it has to be safe to do twice.
        pauses: seconds to wait before the second try, the third, and so on. Their number bounds
            the retries.
        retryable: whether an error may be gone after a pause.

    Raises:
        Exception: the error of the last try, or the first one that is not retryable.
    """
    left = _PATIENCE
    for pause in pauses:
        begun = time.monotonic()
        try:
            return action()
        except Exception as error:
            left -= time.monotonic() - begun
            if not retryable(error) or left <= 0:
                raise
        time.sleep(pause)
    return action()


def waiting(action: Callable[[], Result], pause: float = _PAUSE, news: float = _NEWS) -> Result:
    """Call ``action``, and wait for the service that it needs as long as this fails.

    A task on a cluster waits for a service inside, for TAYLORGLO_SERVICE_TIMEOUT seconds, because
    Kubeflow does not try a container again that ends with an error. Elsewhere nothing is waited
    for: a person at a terminal reads the error and repeats the command.

    Args:
        action: what is done, with its own few tries; it has to be safe to do twice.
        pause: seconds between one call and the next.
        news: seconds between the lines that are logged about the waiting.

    Raises:
        ServiceError: the service still fails when the time is up.
    """
    begun, told = 0.0, 0.0
    while True:
        try:
            return action()
        except ServiceError as error:
            now = time.monotonic()
            begun = begun or now
            left = begun + service_timeout() - now
            if left <= 0 or not _waits.get():
                raise
            if not told or now - told >= news:
                told = now
                minutes = max(1, round(left / 60))
                _logger.warning("%s; waiting for it, up to %d more minutes", error, minutes)
        time.sleep(min(pause, left))


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Let a service that fails be an error at once, for work that can be done later as well."""
    token = _waits.set(False)
    try:
        yield
    finally:
        _waits.reset(token)
