"""The errors that a user is meant to read: one line each, without a traceback."""

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Iterable

MAX_REASON = 300  # characters of another library's message that are worth showing
MAX_QUOTE = 80  # characters of a value that are worth showing
MAX_LINES = 20  # of a message
# Characters of a line of a message. With "taylorglo: error: " before it, it has 500 at most.
MAX_LINE = 480

_DISK_FULL = re.compile("No space left on device|Disk quota exceeded|disk is full")


class TaylorgloError(Exception):
    """Base of every error whose message alone tells the user what to do.

    The message is short and printable, whatever it quotes (:func:`readable`).
    """

    exit_status = 2  # of the command that the error ends

    def __str__(self) -> str:
        """Return the message."""
        return "\n".join(readable(super().__str__()))


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


def explained(error: BaseException) -> str:
    """Return an error that no code of ours expected, in one line, with its remedy if it has one."""
    line = described(error)
    if isinstance(error, MemoryError):
        return f"{line}; memory ran out: free some and run it again, which goes on from here"
    return with_remedy(line)


def with_remedy(message: str) -> str:
    """Return the message of an error, with the remedy if it says that a disk is full.

    The libraries tell of a full disk in as many ways as there are libraries.
    """
    if is_disk_full(message):
        return f"{message}; make room on the disk and run it again, which goes on from here"
    return message


def is_disk_full(message: str) -> bool:
    """Return whether the message of an error says that a disk or a quota is full."""
    return bool(_DISK_FULL.search(message))


def first_line(error: BaseException, limit: int = MAX_REASON) -> str:
    """Return the first line of an error's message: PyTorch goes on with its own stack trace."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def readable(text: str) -> list[str]:
    """Return the lines of a message as a person sees them.

    There are at most ``MAX_LINES``, and the last one says how many more there were. Each has at
    most ``MAX_LINE`` printable characters: a longer one loses its middle.
    """
    lines = text.split("\n")
    more = len(lines) - MAX_LINES
    rest = f" ... and {more:,} more".replace(",", " ") if more > 0 else ""
    *firsts, last = lines[:MAX_LINES]
    return [*(_cut(line, MAX_LINE) for line in firsts), _cut(last, MAX_LINE - len(rest)) + rest]


def _cut(line: str, limit: int) -> str:
    """Return a line without its middle if it is too long, and with its characters printable."""
    # A text of many megabytes is cut before its characters are looked at.
    head = printable(line[:limit])
    if len(line) <= limit and len(head) <= limit:
        return head
    half = limit // 2
    return f"{head[: half - 3]} ... {printable(line[-half:])[2 - half :]}"


def meant(name: object, names: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: a question for the name that is most alike.

    It is empty if none of the names is much alike.
    """
    if not isinstance(name, str):
        return ""
    by_lower_case = {known.lower(): known for known in names}
    alike = difflib.get_close_matches(name[:MAX_QUOTE].lower(), by_lower_case, n=1)
    return f"; did you mean {by_lower_case[alike[0]]!r}?" if alike else ""


def printable(text: str) -> str:
    """Return a text in which an escape replaces each character that would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


class _Quotes(reprlib.Repr):
    """Writes values as Python does, but leaves out the middle of long ones."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = MAX_QUOTE
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        """Write a number. Python refuses to write one of several thousand digits."""
        try:
            return super().repr_int(x, level)
        except ValueError:
            return f"a number of {x.bit_length()} bits"


def quoted(value: object) -> str:
    """Return a value as Python writes it, without the middle if it is long."""
    return _cut(_Quotes().repr(value), MAX_QUOTE)
