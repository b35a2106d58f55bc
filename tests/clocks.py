"""A clock that does not wait, for code that pauses between its tries."""

from collections.abc import Callable


class Clock:
    """In place of the module ``time`` of the code under test: its pauses are recorded, not slept.

    Attributes:
        pauses: the pauses so far, in seconds.
        during: is called in each pause.
    """

    def __init__(self, during: Callable[[], object] = lambda: None) -> None:
        self.pauses: list[float] = []
        self.during = during

    def monotonic(self) -> float:
        return 1000 + sum(self.pauses)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.during()
