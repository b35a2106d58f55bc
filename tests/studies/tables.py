"""Write the tables of the studies in docs/results.md anew (`make study-tables`).

A table stands between two lines of the document:

    <!-- study NAME/TABLE -->
    <!-- end -->

It is taken from FOLDER/NAME/TABLE.md. A table whose study has not been done here stays as it is.
"""

import argparse
import re
import sys
from pathlib import Path

from studies import RESULTS

from taylorglo.errors import InputError, one_line
from taylorglo.files import replacing

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"

_BEGIN = re.compile(r"^<!-- study ([\w-]+)/([\w-]+) -->$")
_END = "<!-- end -->"


def with_tables(text: str, folder: Path) -> tuple[str, list[str]]:
    """Return a document with its tables as the studies gave them.

    Args:
        text: the document, in Markdown.
        folder: with a folder for each study.

    Returns:
        The document; and the tables, as NAME/TABLE, that stay as they are.

    Raises:
        InputError: a table has no end.
    """
    written: list[str] = []
    missing: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        written.append(line)
        begin = _BEGIN.match(line)
        if begin is None:
            continue
        former: list[str] = []
        for inner in lines:
            if inner == _END:
                break
            if _BEGIN.match(inner):
                raise InputError(f"the table {line} has no {_END} before the next table")
            former.append(inner)
        else:
            raise InputError(f"the table {line} has no {_END}")
        path = folder / begin[1] / f"{begin[2]}.md"
        if path.exists():
            # Blank lines, so that Markdown does not take the table for a part of the comment.
            written += ["", *path.read_text().strip().splitlines(), ""]
        else:
            missing.append(f"{begin[1]}/{begin[2]}")
            written += former
        written.append(_END)
    return "\n".join(written) + "\n", missing


def main() -> None:
    """Write the tables, as the command line asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        try:
            text, missing = with_tables(arguments.document.read_text(), arguments.folder)
            with replacing(arguments.document) as file:
                file.write(text.encode())
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}") from None
    except InputError as error:
        print(f"study-tables: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    for table in missing:
        print(f"{table} stays as it is: there is no {arguments.folder / table}.md")


if __name__ == "__main__":
    main()
