"""Retries: one loop for every service, bounded by the pauses that it is given."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

Result = TypeVar("Result")


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
    before_pause: Callable[[Exception], None] = lambda error: None,
) -> Result:
    """Call ``action``, and call it again after each pause as long as it fails in a retryable way.

    Args:
        action: what is done; it has to be safe to do twice.
        pauses: seconds to wait before the second try, the third, and so on. Their number bounds
            the retries.
        retryable: whether an error may be gone after a pause.
        before_pause: called with the error before each pause, for example to print it.

    Raises:
        Exception: the error of the last try, or the first one that is not retryable.
    """
    for pause in pauses:
        try:
            return action()
        except Exception as error:
            if not retryable(error):
                raise
            before_pause(error)
        time.sleep(pause)
    return action()
