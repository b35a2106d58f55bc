"""Errors for users, and the messages of other libraries in one line."""

import pytest

from taylorglo.errors import (
    MAX_REASON,
    InputError,
    ServiceError,
    TaylorgloError,
    described,
    first_line,
    one_line,
    shortened,
)


@pytest.mark.parametrize("kind", [InputError, ServiceError])
def test_an_error_for_users_ends_a_command_with_status_2(kind: type[TaylorgloError]) -> None:
    assert issubclass(kind, TaylorgloError)
    assert kind("message").exit_status == 2
    assert str(kind("message")) == "message"


def test_errors_for_users_are_errors_of_python() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(ServiceError, RuntimeError)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("plain", "plain"),
        ("  two\n\n  lines\tand a tab ", "two lines and a tab"),
        ("", "LookupError"),
        (" \n ", "LookupError"),
        ("x" * 400, "x" * MAX_REASON),
    ],
)
def test_the_whole_message_in_one_line(message: str, line: str) -> None:
    assert one_line(LookupError(message)) == line


def test_one_line_has_at_most_the_given_number_of_characters() -> None:
    assert one_line(LookupError("four words of text"), limit=10) == "four words"


def test_a_text_is_shortened_to_one_line() -> None:
    assert shortened(" two\n  lines ") == "two lines"
    assert shortened("") == ""
    assert shortened("x" * 400) == "x" * MAX_REASON
    assert shortened("two\nlines", limit=5) == "two l"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("plain", "plain"),
        ("\n  first\nsecond", "first"),
        ("first  line\nsecond", "first  line"),
        ("", "LookupError"),
        (" \n ", "LookupError"),
        ("x" * 400, "x" * MAX_REASON),
    ],
)
def test_the_first_line_of_a_message(message: str, line: str) -> None:
    assert first_line(LookupError(message)) == line


def test_the_first_line_has_at_most_the_given_number_of_characters() -> None:
    assert first_line(LookupError("first\nsecond"), limit=3) == "fir"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("plain", "LookupError: plain"),
        ("two\n  lines", "LookupError: two lines"),
        ("", "LookupError:"),
        ("x" * 400, "LookupError: " + "x" * 400),
    ],
)
def test_an_error_is_described_by_type_and_message(message: str, line: str) -> None:
    assert described(LookupError(message)) == line
