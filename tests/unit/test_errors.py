"""Errors for users, and the messages of other libraries in one line."""

import pytest

from taylorglo.errors import (
    MAX_LINE,
    MAX_LINES,
    MAX_QUOTE,
    MAX_REASON,
    InputError,
    ServiceError,
    TaylorgloError,
    described,
    first_line,
    meant,
    one_line,
    printable,
    quoted,
    readable,
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


def test_a_message_of_many_lines_says_how_many_more_there_are() -> None:
    lines = [f"problem {number}" for number in range(10_000)]
    message = str(InputError("\n".join(lines)))
    assert message.split("\n") == [*lines[:19], "problem 19 ... and 9 980 more"]
    assert str(InputError("\n".join(lines[:MAX_LINES]))) == "\n".join(lines[:MAX_LINES])
    # An error that another one quotes is the same text.
    assert str(InputError(message)) == message


@pytest.mark.parametrize(
    "middle", ["x" * 10_000_000, "\x1b[31m" * 1000, "\0" * 300], ids=["long", "escapes", "nulls"]
)
def test_a_long_line_loses_its_middle(middle: str) -> None:
    (line,) = readable(f"/data/sweep.yaml: {middle}: should be a number")
    assert line.startswith("/data/sweep.yaml: ")
    assert line.endswith(": should be a number")
    assert " ... " in line
    assert len(line) <= MAX_LINE
    assert line.isprintable()


def test_the_last_of_many_long_lines_is_not_longer() -> None:
    lines = readable("\n".join(["x" * 1000] * 30))
    assert [len(line) for line in lines] == [MAX_LINE] * MAX_LINES
    assert lines[-1].endswith(" ... and 10 more")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 汉\xa0 text", "plain ä 汉\xa0 text"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\tc\x9b31m", r"a\rb\tc\x9b31m"),
        ("\u202eright to left\u2028", r"\u202eright to left\u2028"),
        ("\udcff", r"\udcff"),
    ],
)
def test_nothing_that_is_shown_steers_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(ServiceError(text)) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.5, "1.5"),
        ("it's", '"it\'s"'),
        ("a\nb\x1b", r"'a\nb\x1b'"),
        ([1, "a"], "[1, 'a']"),
    ],
)
def test_values_are_quoted_as_python_writes_them(value: object, shown: str) -> None:
    assert quoted(value) == shown


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, b"x" * 10**6, 10**1000, [1] * 10**6, {str(i): i for i in range(1000)}],
    ids=["text", "bytes", "number", "list", "group"],
)
def test_a_long_value_is_quoted_without_its_middle(value: object) -> None:
    assert "..." in quoted(value)
    assert len(quoted(value)) <= MAX_QUOTE


def test_values_that_python_does_not_write_are_quoted() -> None:
    assert quoted(10**5000) == "a number of 16610 bits"
    value: list[object] = []
    for _ in range(500):
        value = [value] * 10
    assert len(quoted(value)) <= MAX_QUOTE


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("mpl", "; did you mean 'mlp'?"),
        ("MLP", "; did you mean 'mlp'?"),
        ("wrn_16_8", "; did you mean 'WRN-16-8'?"),
        ("transformer", ""),
        ("", ""),
        (3, ""),
        ("mlp" * 10**7, ""),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_unknown_name_is_followed_by_the_one_that_was_meant(name: object, end: str) -> None:
    assert meant(name, ["mlp", "cnn", "WRN-16-8"]) == end
