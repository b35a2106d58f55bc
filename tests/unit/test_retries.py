"""Retries: how often an action is tried, and which errors end it."""

import pytest
from clocks import Clock

from taylorglo import retries
from taylorglo.retries import doubling, retry


class Action:
    """An action that raises the given errors in turn, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.calls = 0
        self._errors = list(errors)

    def __call__(self) -> str:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def is_os_error(error: Exception) -> bool:
    return isinstance(error, OSError)


def test_an_action_that_succeeds_is_called_once() -> None:
    action = Action()
    assert retry(action, [0, 0], retryable=is_os_error) == "done"
    assert action.calls == 1


def test_an_action_is_called_again_until_it_succeeds() -> None:
    action = Action(OSError("first"), OSError("second"))
    assert retry(action, [0, 0, 0], retryable=is_os_error) == "done"
    assert action.calls == 3


def test_the_error_of_the_last_try_is_raised() -> None:
    action = Action(OSError("first"), OSError("second"), OSError("third"), OSError("fourth"))
    with pytest.raises(OSError, match="third"):
        retry(action, [0, 0], retryable=is_os_error)
    assert action.calls == 3


def test_without_pauses_there_is_one_try() -> None:
    action = Action(OSError("first"))
    with pytest.raises(OSError, match="first"):
        retry(action, [], retryable=is_os_error)
    assert action.calls == 1


def test_an_error_that_is_not_retryable_is_raised_at_once() -> None:
    action = Action(OSError("first"), ValueError("second"))
    with pytest.raises(ValueError, match="second"):
        retry(action, [0, 0, 0], retryable=is_os_error)
    assert action.calls == 2


def test_an_interrupt_is_never_retried() -> None:
    calls = []

    def interrupted() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retry(interrupted, [0, 0], retryable=lambda error: True)
    assert len(calls) == 1


def test_each_error_is_reported_before_its_pause() -> None:
    reports: list[str] = []
    action = Action(OSError("first"), OSError("second"))
    retry(
        action,
        [0, 0],
        retryable=is_os_error,
        before_pause=lambda error: reports.append(f"{error}, after {action.calls} calls"),
    )
    assert reports == ["first, after 1 calls", "second, after 2 calls"]


def test_the_last_error_is_not_reported_but_raised() -> None:
    reports: list[Exception] = []
    action = Action(OSError("first"), OSError("second"))
    with pytest.raises(OSError, match="second"):
        retry(action, [0], retryable=is_os_error, before_pause=reports.append)
    assert [str(error) for error in reports] == ["first"]


def test_the_pauses_are_those_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)
    retry(Action(OSError("first"), OSError("second")), [0.5, 2, 8], retryable=is_os_error)
    assert clock.pauses == [0.5, 2]


@pytest.mark.parametrize(
    ("first", "tries", "longest", "pauses"),
    [
        (1, 1, 60, []),
        (1, 2, 60, [1]),
        (0.5, 5, 60, [0.5, 1, 2, 4]),
        (10, 6, 60, [10, 20, 40, 60, 60]),
        (0, 3, 60, [0, 0]),
    ],
)
def test_doubling_pauses(first: float, tries: int, longest: float, pauses: list[float]) -> None:
    assert doubling(first, tries, longest) == pauses


def test_doubling_pauses_are_unlimited_by_default() -> None:
    assert doubling(1, 12)[-1] == 2**10
