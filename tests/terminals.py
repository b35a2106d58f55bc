"""A pseudo-terminal for a command, and the screen that a person sees of it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# What the commands write: text, a new line, and these escape sequences.
_TOKENS = re.compile(r"\x1b\[(\d*)([AJm])|(\r)|(\n)|([^\x1b\r\n])|(\x1b.?)", re.DOTALL)


class Screen:
    """The rows of a terminal, which wraps long lines. It understands what the live view writes."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = [""]
        self._row = self._column = 0
        self.colours = 0

    def write(self, text: str) -> None:
        for count, letter, carriage, line, character, unknown in _TOKENS.findall(text):
            assert not unknown, f"an escape sequence that the screen does not know: {unknown!r}"
            if letter == "A":
                self._row -= int(count or 1)
                assert self._row >= 0, "above the first row"
            elif letter == "J":
                self.rows = self.rows[: self._row + 1]
                self.rows[self._row] = self.rows[self._row][: self._column]
            elif letter == "m":
                self.colours += 1
            elif carriage:
                self._column = 0
            elif line:
                self._down()
            else:
                self._put(character)

    def resize(self, columns: int) -> None:
        """Change the width: rows that are too long go on in the next row, as on xterm and others.

        The cursor stays behind the last character.
        """
        self.columns = columns
        rows = []
        for row in self.rows:
            rows += [row[at : at + columns] for at in range(0, len(row), columns)] or [""]
        self.rows = rows
        self._row, self._column = len(rows) - 1, len(rows[-1])

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)

    def _put(self, character: str) -> None:
        if self._column >= self.columns:
            self._down()
            self._column = 0
        row = self.rows[self._row].ljust(self._column)
        self.rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
        self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append("")


@dataclass(frozen=True)
class Session:
    """A command that has ended: its exit status, all that it wrote, and the last screen."""

    status: int
    written: str
    screen: Screen


def in_terminal(
    command: Sequence[str],
    columns: int = 80,
    environment: Mapping[str, str] | None = None,
    see: Callable[[Screen, subprocess.Popen[bytes], Callable[[int], None]], None] | None = None,
) -> Session:
    """Run a command in a pseudo-terminal of its own.

    Args:
        command: its words.
        columns: of the terminal.
        environment: variables in place of those of the test; TERM is xterm, and CI is not set.
        see: is called after every output with the screen, the process, and a function that changes
            the columns.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS")}
    ours, theirs = pty.openpty()
    screen = Screen(columns)

    def resize(number: int) -> None:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, number, 0, 0))
        screen.resize(number)

    resize(columns)
    written = b""
    encoding = (environment or {}).get("PYTHONIOENCODING", "utf-8")
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**inherited, "TERM": "xterm", **(environment or {})},
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            while True:
                # The end of a pseudo-terminal is an error.
                try:
                    new = os.read(ours, 65536)
                except OSError:
                    break
                if not new:
                    break
                written += new
                # A character may be cut in two at the end of what was read.
                if new.endswith(b"\n") or len(new) < 65536:
                    screen.write(new.decode(encoding, "replace"))
                if see:
                    see(screen, process, resize)
        finally:
            os.close(ours)
    return Session(process.returncode, written.decode(encoding, "replace"), screen)
