"""Retries: how often an action is tried, and which errors end it."""

import logging

import pytest
from clocks import Clock

from taylorglo import retries
from taylorglo.errors import InputError, ServiceError
from taylorglo.retries import doubling, retry, waiting, without_waiting
from taylorglo.variables import SERVICE_TIMEOUT


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


def test_slow_tries_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)
    action = Action(*[OSError("no answer")] * 9)

    def slow() -> str:
        clock.sleep(15)
        return action()

    with pytest.raises(OSError, match="no answer"):
        retry(slow, [1.0] * 8, retryable=is_os_error)
    # A fourth try would end after more than a minute.
    assert clock.pauses == [15, 1.0, 15, 1.0, 15]


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the waiting, and fifteen minutes of patience."""
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)
    monkeypatch.setenv(SERVICE_TIMEOUT, "900")
    return clock


def test_a_service_is_waited_for_with_a_line_a_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    action = Action(*[ServiceError("it is away")] * 12)
    with caplog.at_level(logging.WARNING):
        assert waiting(action) == "done"
    assert sum(clock.pauses) == 12 * 15
    assert [record.getMessage() for record in caplog.records] == [
        "it is away; waiting for it, up to 15 more minutes",
        "it is away; waiting for it, up to 14 more minutes",
        "it is away; waiting for it, up to 13 more minutes",
    ]


def test_the_waiting_ends_with_the_error_when_the_time_is_up(clock: Clock) -> None:
    with pytest.raises(ServiceError, match="it is away"):
        waiting(Action(*[ServiceError("it is away")] * 1000))
    assert sum(clock.pauses) == 900


def test_each_outage_has_the_whole_time(clock: Clock) -> None:
    action = Action(*[ServiceError("it is away")] * 50)
    assert [waiting(action), waiting(Action(*[ServiceError("again")] * 50))] == ["done"] * 2
    assert sum(clock.pauses) == 2 * 50 * 15


def test_nothing_is_waited_for_on_a_laptop(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVICE_TIMEOUT)
    with pytest.raises(ServiceError, match="it is away"):
        waiting(Action(ServiceError("it is away")))
    assert clock.pauses == []


def test_bad_input_is_not_waited_for(clock: Clock) -> None:
    with pytest.raises(InputError, match="a wrong password"):
        waiting(Action(InputError("a wrong password")))
    assert clock.pauses == []


def test_what_can_be_done_later_is_not_waited_for(clock: Clock) -> None:
    with without_waiting(), pytest.raises(ServiceError, match="it is away"):
        waiting(Action(ServiceError("it is away")))
    assert clock.pauses == []
    assert waiting(Action(ServiceError("it is away"))) == "done"
