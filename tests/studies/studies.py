"""The frame of a study: cells that are computed once, tables and a figure, one command.

A study asks one question of the product, by many small computations (cells). A script of this
folder defines the cells, the function that computes one, and the tables that answer the question:

    def main(study: Study, full: bool) -> None:
        rows = study.rows(cells, compute)
        study.table("ranks", header, lines, caption="Medians, n = 10")
        study.figure("ranks", figure)

    if __name__ == "__main__":
        command("fitness", 1, main)

A study that was killed goes on where it was. Its folder has ``meta.json``, ``rows.csv``, and a file
for each table and each figure.
"""

import argparse
import contextlib
import csv
import fcntl
import io
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version as installed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from taylorglo.errors import InputError, one_line
from taylorglo.files import replacing
from taylorglo.results import NUMERICS
from taylorglo.training.machine import cpus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = str | int | float | bool
Cell = dict[str, Value]
Row = dict[str, Value]

RESULTS = Path(__file__).parents[2] / "runs" / "studies"

_LOCK = "lock"
_LAST = "last"  # the column that marks the last row of a cell
_PROGRESS_SECONDS = 15
_DOCS_WIDTH = 120  # columns of a line of the documentation


class Study:
    """A study in its folder.

    Args:
        name: of the study, as in ``make study-NAME``.
        version: of what its cells compute. Cells of two versions are never mixed.
        folder: of its files; it is made if need be.

    Raises:
        InputError: the folder has the files of something else, or another process uses it.
    """

    def __init__(self, name: str, version: int, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self._lock = _locked(folder, name, version)
        self._meta = _meta_of(folder, name, version)
        with replacing(folder / "meta.json") as file:
            file.write(json.dumps(self._meta, indent=2).encode() + b"\n")

    def rows(
        self,
        cells: Sequence[Cell],
        compute: Callable[[Cell], list[Row]],
        part: str = "rows",
    ) -> list[Row]:
        """Compute the cells that are not in ``FOLDER/PART.csv``; return the rows of all cells.

        The cells are computed in as many processes as there are CPUs, each with one thread. The
        rows of a cell are written at once, together, as soon as they are known.

        Args:
            cells: the values that tell a cell from the others, by column; the same columns for all.
            compute: returns the rows of a cell, at least one, without the cell's own columns. It
                runs in another process and is passed there by ``pickle``: a function of a module,
                or a ``functools.partial`` of one. A constant that a test changes is not changed
                there, so what decides a result has to be in the cell or in the ``partial``.
            part: name of the file, for a study with cells of several kinds.

        Returns:
            The values of the cell and of the row together, in the order of the cells.

        Raises:
            InputError: the file has other columns, or a computation refused its input.
        """
        table = _Table(self.folder / f"{part}.csv", list(cells[0]) if cells else [])
        missing = [cell for cell in cells if _key(cell) not in table.known]
        if missing:
            print(f"{self.name}, {part}: {len(cells)} cells, {len(missing)} to compute", flush=True)
            self._compute(missing, compute, table)
        return [dict(row) for cell in cells for row in table.known[_key(cell)]]

    def _compute(
        self, cells: Sequence[Cell], compute: Callable[[Cell], list[Row]], table: "_Table"
    ) -> None:
        # One thread for each process, also in the libraries that read this when they are imported.
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        reader, writer = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(
            min(cpus(), len(cells)), context, initializer=_begin_worker, initargs=(reader,)
        )
        progress = _Progress(len(cells))
        try:
            # The workers start here, and inherit it: Ctrl-C reaches all processes of a terminal,
            # and the study's own one decides what follows.
            former = signal.signal(signal.SIGINT, signal.SIG_IGN)
            futures = {pool.submit(compute, cell): cell for cell in cells}
            signal.signal(signal.SIGINT, former)
            for future in as_completed(futures):
                table.append(futures[future], future.result())
                progress.show()
        except BaseException:
            # The workers end at once, in the middle of their cells.
            writer.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            writer.close()
            reader.close()

    def table(
        self,
        name: str,
        header: Sequence[str],
        lines: Iterable[Sequence[object]],
        caption: str = "",
    ) -> None:
        """Write ``FOLDER/NAME.md`` and print it.

        The line below the table has the caption, the command, the hardware and the versions.

        Args:
            name: of the table.
            header: a title for each column.
            lines: a value for each column, as it should be printed.
            caption: what a number is, n and the spread.
        """
        rows = [[str(value) for value in line] for line in [header, *lines]]
        facts = [f"`make study-{self.name}`", *self._meta["hardware"], *self._meta["software"]]
        below = f"({'. '.join(filter(None, [caption.rstrip('.'), '; '.join(facts)]))}.)"
        rule = ["---"] * len(header)
        text = [f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]]]
        paragraph = textwrap.fill(below, _DOCS_WIDTH, break_on_hyphens=False)
        with replacing(self.folder / f"{name}.md") as file:
            file.write("\n".join([*text, "", paragraph, ""]).encode())
        widths = [max(len(row[index]) for row in rows) for index in range(len(header))]
        print(f"\n{self.name}: {name}")
        for row in rows:
            print("  " + "  ".join(map(str.ljust, row, widths)).rstrip())
        print(textwrap.fill(below, 100, initial_indent="  ", subsequent_indent="  "), flush=True)

    def figure(self, name: str, figure: "Figure") -> None:
        """Write ``FOLDER/NAME.svg``."""
        with replacing(self.folder / f"{name}.svg") as file:
            figure.savefig(file, format="svg", bbox_inches="tight")


def command(study_name: str, version: int, main: Callable[[Study, bool], None]) -> None:
    """Run a study as the command line asks for it.

    Args:
        study_name: as for :class:`Study`.
        version: as for :class:`Study`.
        main: does the study; it is told whether the full size was asked for.

    Raises:
        SystemExit: with status 2 after bad input, 1 if a process was killed, and 130 after Ctrl-C.
    """
    module = sys.modules[main.__module__]
    parser = argparse.ArgumentParser(
        description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="do all of it, which takes hours")
    parser.add_argument(
        "--folder", type=Path, default=RESULTS / study_name, help="default: %(default)s"
    )
    arguments = parser.parse_args()
    # A study that is piped into a file or a program shows its progress, too.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        main(Study(study_name, version, arguments.folder), arguments.full)
    except InputError as error:
        print(f"study-{study_name}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenProcessPool:
        print(
            f"study-{study_name}: error: the system killed a process, out of memory? The same "
            "command goes on from here",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"study-{study_name}: stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def _locked(folder: Path, name: str, version: int) -> TextIO:
    """Return the file that is locked as long as it is open, in a folder that fits the study."""
    meta = folder / "meta.json"
    try:
        files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        # A study that was killed when it began has left its lock only.
        if files - {_LOCK} and not meta.exists():
            raise InputError(
                f"{folder} has files, but no meta.json of a study; give an empty or a new folder "
                "with --folder"
            )
        if meta.exists():
            found = _read_meta(meta)
            known = found.get("study"), found.get("version")
            if known != (name, version):
                raise InputError(
                    f"{folder} has study {known[0]!r} of version {known[1]!r}, and this is "
                    f"{name!r} of version {version}; remove the folder, or give another one with "
                    "--folder"
                )
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("w")
    except OSError as error:
        raise InputError(f"{folder} cannot be used: {error.strerror or error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(f"another process is doing a study in {folder}; wait for it") from None
    return file


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path} is no file of a study; give another folder with --folder")
    return found


def _meta_of(folder: Path, name: str, version: int) -> dict[str, Any]:
    """Return the contents of ``meta.json``: what it has, and this machine and its software."""
    path = folder / "meta.json"
    found = _read_meta(path) if path.exists() else {}
    packages = ", ".join(f"{package} {installed(package)}" for package in ("torch", "optuna"))
    software = f"taylorglo {installed('taylorglo')} (numerics {NUMERICS})"
    now = {
        "hardware": f"{cpus()} cores of {_processor()}",
        "software": f"{software}, Python {platform.python_version()}, {packages}",
    }
    # A study may go on on another machine: all of them are named.
    lists = {key: list(dict.fromkeys([*found.get(key, []), value])) for key, value in now.items()}
    return {"study": name, "version": version, **lists}


def _processor() -> str:
    """Return the model of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1].strip() if model else platform.machine()


class _Table:
    """The CSV file of a study, and what it has.

    Attributes:
        known: the rows of each complete cell, with the cell's own values.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.known: dict[tuple[str, ...], list[Row]] = {}
        self._path = path
        self._columns = list(columns)
        self._header: list[str] | None = None
        if path.exists() and columns:
            self._read()

    def _read(self) -> None:
        """Read the complete cells, and cut off what a killed process wrote of another one."""
        text = self._path.read_text()
        header, *lines = list(csv.reader(io.StringIO(text))) or [[]]
        number = len(self._columns)
        if not text.endswith("\n") and not lines:
            # Killed in the header, before any row.
            self._path.write_text("")
            return
        if header[:number] != self._columns or header[-1:] != [_LAST]:
            raise InputError(
                f"{self._path} has columns of something else ({', '.join(header)}); remove it, or "
                "give another folder with --folder"
            )
        self._header = header
        rows: list[list[str]] = []
        complete = [header]
        for line in lines if text.endswith("\n") else lines[:-1]:
            rows.append(line)
            if len(line) != len(header):
                raise InputError(
                    f"{self._path} is damaged: a line has {len(line)} values, and the header "
                    f"{len(header)}; remove it, or give another folder with --folder"
                )
            if line[-1] == "True":
                read = [dict(zip(header[:-1], map(_value, row[:-1]), strict=True)) for row in rows]
                self.known[tuple(line[:number])] = read
                complete += rows
                rows = []
        if rows or not text.endswith("\n"):
            with replacing(self._path) as file:
                file.write(_csv(complete))

    def append(self, cell: Cell, rows: Sequence[Row]) -> None:
        """Write the rows of a cell at once."""
        if not rows:
            raise ValueError(f"cell {cell} has no rows; at least one tells that it was computed")
        whole = [{**cell, **row} for row in rows]
        header = [*whole[0], _LAST]
        if self._header is None:
            lines = [header]
        elif self._header == header:
            lines = []
        else:
            raise InputError(
                f"{self._path} has columns {', '.join(self._header)}, and cell {cell} has "
                f"{', '.join(header)}; remove the file, or give another folder with --folder"
            )
        for index, row in enumerate(whole):
            if list(row) != header[:-1]:
                raise ValueError(f"the rows of cell {cell} have different columns")
            last = str(index == len(whole) - 1)
            lines.append([*(_text(value) for value in row.values()), last])
        with self._path.open("ab") as file:
            file.write(_csv(lines))
            file.flush()
            os.fsync(file.fileno())
        self._header = header
        # As they are read again, so that a resumed study has the same values.
        self.known[_key(cell)] = [
            {name: _value(_text(value)) for name, value in row.items()} for row in whole
        ]


def _csv(lines: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _key(cell: Cell) -> tuple[str, ...]:
    return tuple(_text(value) for value in cell.values())


def _text(value: Value) -> str:
    """Return a value as it stands in the file; :func:`_value` reads it again."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        # Numbers of numpy, too, whose own representations name their types.
        return repr(int(value)) if isinstance(value, int) else repr(float(value))
    text = str(value)
    if isinstance(value, str) and (_value(text) != text or "\n" in text or "\r" in text):
        raise ValueError(f"the text {text!r} would be read as something else; use another one")
    return text


def _value(text: str) -> Value:
    """Return the value that a text of the file stands for."""
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"-?\d+", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"-?(\d+\.?\d*(e[+-]?\d+)?|inf|nan)", text, re.ASCII):
        return float(text)
    return text


class _Progress:
    """Prints how far a computation is, and how long it will take."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._started = self._shown = time.monotonic()

    def show(self) -> None:
        """Count a cell, and print a line if the last one is some seconds old."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown < _PROGRESS_SECONDS and self._done < self._total:
            return
        self._shown = now
        spent = now - self._started
        left = spent / self._done * (self._total - self._done)
        print(
            f"  {self._done} of {self._total} cells, {_duration(spent)}; about {_duration(left)} "
            "left",
            flush=True,
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _begin_worker(lifeline: Connection) -> None:
    """Let a worker process end together with the study's process.

    Nothing is sent through the pipe ``lifeline``. Its other end is closed by the study, or by the
    system when the study's process ends.
    """

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
