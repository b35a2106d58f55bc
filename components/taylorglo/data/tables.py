"""Tables: CSV and Parquet files, whose columns become features.

A column of numbers is standardised, and a column of texts or truth values is encoded one-hot, both
by the training split alone (:mod:`taylorglo.data.encoding`). So a table is read into codes here,
and encoded after it was split.
"""

import csv
import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from taylorglo.data.split_names import TEST, TRAIN, VALIDATION, by_split, split_named
from taylorglo.data.splits import Column, Source, Split
from taylorglo.errors import InputError, one_line, quoted
from taylorglo.extras import missing
from taylorglo.reading import check_regular

if TYPE_CHECKING:
    import pyarrow as pa

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_SEPARATORS, ".parquet")
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")
# How a whole number is written. With zeros before it, as in 007, it is a name.
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,99})(\.[0-9]{0,99})?([eE][+-]?[0-9]{1,2})?")
# How a missing number is written.
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
_MOST_CATEGORIES = 1000
_MOST_CLASSES = 10_000
_MOST_NAMED = 5  # classes, and ways of writing one, that are named in a remark
_LONGEST_HEADER = 2**20  # bytes


class Part(NamedTuple):
    """The table of a split.

    Attributes:
        table: the rows.
        place: the file, for an error.
        headed: whether the first row of the file is the names of the columns.
    """

    table: "pa.Table"
    place: str
    headed: bool = False

    def row(self, index: int) -> str:
        """Return the place of a row, counted from 0, in words."""
        return f"{self.place}: row {index + 1}{' below the names' if self.headed else ''}"


def without_lists(table: "pa.Table", place: str) -> "pa.Table":
    """Return a table in which each column of lists of one length is a column for each place.

    Args:
        table: of any columns.
        place: of the table, for an error.

    Raises:
        InputError: the lists of a column have several lengths, or one is missing.
    """
    import pyarrow as pa
    from pyarrow import compute, types

    _check_different(table.column_names, place)
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        kind = column.type
        if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
            columns[name] = column
            continue
        lengths = compute.unique(compute.list_value_length(column)).to_pylist()
        if len(lengths) != 1 or not lengths[0]:
            raise InputError(
                f"{place}: column {quoted(name)} has lists of the lengths "
                f"{', '.join(map(str, lengths[:5]))}: should be of one length, without missing ones"
            )
        values = compute.list_flatten(column)
        for number in range(lengths[0]):
            rows = pa.array(range(number, len(values), lengths[0]), pa.int64())
            columns[f"{name}[{number}]"] = values.take(rows)
    return pa.table(columns)


def read_table(root: Path, label: str) -> Source:
    """Read a file, or the files of the splits in a folder.

    The samples of the source are codes, float64 (N, columns): numbers as they are, and of a column
    of texts the number of the text among all in ascending order.

    Args:
        root: a .csv, .tsv or .parquet file, or a folder with such files that are named for splits.
        label: name of the column with the classes.

    Raises:
        InputError: a file is damaged or of another kind, or a column is unfit.
        OSError: a file cannot be read.
    """
    files, left_out = _files(root)
    parts = {split: _read(paths) for split, paths in files.items()}
    sha256 = _sha256(root) if root.is_file() else None
    return source_of(parts, label, sha256=sha256, left_out=left_out)


def source_of(
    parts: Mapping[str, Part],
    label: str,
    *,
    order: Sequence[str] = (),
    sha256: str | None = None,
    left_out: str = "",
) -> Source:
    """Return the source of the tables of splits, the training split among them.

    Args:
        parts: by split.
        label: name of the column with the classes.
        order: names of the classes, if their order is known; else it is ascending.
        sha256: checksum of the file; without one it is that of the tensors.
        left_out: what was not read, and why.

    Raises:
        InputError: a column is missing or unfit.
    """
    train = parts[TRAIN]
    names = train.table.column_names
    for part in parts.values():
        _check_columns(part, train, label)
    features = [name for name in names if name != label]
    classes, labels, merged = labels_of(parts, label, order)
    columns, values = [], []
    for name in features:
        column, codes = _codes(parts, name)
        columns.append(column)
        values.append(codes)
    splits = {
        split: Split(
            torch.from_numpy(np.stack([codes[split] for codes in values], axis=1)),
            torch.from_numpy(labels[split]),
        )
        for split in parts
    }
    remarks = {"spellings": merged, "left_out": left_out}
    source = Source.of_tensors(
        splits[TRAIN],
        splits.get(VALIDATION),
        splits.get(TEST),
        remarks={name: text for name, text in remarks.items() if text},
        classes=classes,
        columns=columns,
    )
    return source if sha256 is None else source._replace(sha256=sha256, checksum_of="file")


def _files(root: Path) -> tuple[dict[str, list[Path]], str]:
    """Return the files of each split, training first, and which other tables were left out."""
    if root.is_file():
        return {TRAIN: [root]}, ""
    if not root.is_dir():
        raise InputError(f"data.root: {root} should be a {_kinds()} file, or a folder with some")
    tables = sorted(
        path
        for path in root.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )
    if not tables:
        raise InputError(f"data.root: {root} has no {_kinds()} file")
    stems: dict[str, list[Path]] = {}
    for path in tables:
        stems.setdefault(_SHARD.sub("", path.stem), []).append(path)
    if len(stems) == 1:
        _check_shards(tables, root)
        return {TRAIN: tables}, ""
    named = [stem for stem in stems if split_named(stem)]
    if not named:
        raise InputError(
            f"data.root: {root} has the tables {', '.join(path.name for path in tables)}: should "
            "be one file, or files named train, validation and test"
        )
    places = by_split(named, root, kind="file")
    others = [path.name for stem, paths in stems.items() if stem not in named for path in paths]
    left_out = f"tables that are no split by their names: {', '.join(others)}" if others else ""
    for stem in named:
        _check_shards(stems[stem], root)
    return {split: stems[stem] for split, stem in places.items()}, left_out


def _check_shards(paths: Sequence[Path], root: Path) -> None:
    """Refuse several files of one split that are not its parts, each there once."""
    if len(paths) == 1:
        return
    found = [_SHARD.search(path.stem) for path in paths]
    numbers = {int(shard[1]) for shard in found if shard}
    # Of files in two formats, or of two numbers of parts, each may be the whole split.
    wholes = {
        (path.suffix, int(shard[2])) for path, shard in zip(paths, found, strict=True) if shard
    }
    if len(numbers) < len(paths) or len(wholes) > 1:
        raise InputError(
            f"data.root: {root} has the tables {', '.join(path.name for path in paths)} for one "
            "split: should be one file, or its parts in one format, named as in "
            "train-00000-of-00002.parquet"
        )


def _kinds() -> str:
    return f"{', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(paths: Sequence[Path]) -> Part:
    """Read the table of a split from its file, or from the shards of its file."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise missing("data.name table", error) from error
    tables = [_read_file(path) for path in paths]
    names = tables[0].column_names
    for path, table in zip(paths, tables, strict=True):
        if table.column_names != names:
            raise InputError(f"{path}: should have the columns of {paths[0]}: {', '.join(names)}")
    headed = paths[0].suffix.lower() in _SEPARATORS
    place = f"{paths[0]}{f' and the {len(paths) - 1} after it' if len(paths) > 1 else ''}"
    try:
        return Part(pa.concat_tables(tables), place, headed)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{paths[0]}: its parts should have columns of the same types: {one_line(error)}"
        ) from error


@contextmanager
def whole(path: Path, kind: str) -> Iterator[None]:
    """Turn what Arrow raises for a damaged file into an error for a user.

    Args:
        path: of the file.
        kind: what it should be.

    Raises:
        InputError: the block raised an error of Arrow.
        OSError: the file cannot be read.
    """
    import pyarrow as pa

    try:
        yield
    # Names of columns are decoded when they are first used.
    except (pa.ArrowException, UnicodeDecodeError, IndexError, csv.Error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path}: should be a whole {kind}: {one_line(error)}") from error


def checked(table: "pa.Table") -> "pa.Table":
    """Return a table of which every value can be read.

    Raises:
        ArrowException: a value cannot, because the file is damaged.
        UnicodeDecodeError: the name of a column cannot.
    """
    table.validate(full=True)
    len(table.column_names)
    return table


def _read_file(path: Path) -> "pa.Table":
    from pyarrow import parquet

    check_regular(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"{path}: should be a {_kinds()} file")
    with whole(path, f"{suffix} file{_coded(suffix)}"):
        if suffix in _SEPARATORS:
            return _read_csv(path)
        with path.open("rb") as file:
            table = checked(parquet.ParquetFile(file).read())
    return without_lists(table, str(path))


def _coded(suffix: str) -> str:
    return (
        " in UTF-8, with the names of the columns in its first row" if suffix != ".parquet" else ""
    )


def _read_csv(path: Path) -> "pa.Table":
    """Read every field of a CSV file as text: whether a column is of numbers is seen later."""
    import pyarrow as pa
    from pyarrow import csv as reader

    with path.open(newline="", encoding="utf-8-sig") as file:
        start = file.read(_LONGEST_HEADER)
    head = start.splitlines()[0] if start.strip() else ""
    if not head:
        raise InputError(f"{path}: is empty: should have the names of the columns, and rows")
    separator = max((_SEPARATORS[path.suffix.lower()], ",", ";", "\t"), key=head.count)
    names = next(csv.reader(start.splitlines(keepends=True), delimiter=separator))
    _check_different(names, str(path))
    return reader.read_csv(
        path,
        # One block, so that a number of a line is that of the whole file in an error.
        read_options=reader.ReadOptions(use_threads=False),
        parse_options=reader.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=reader.ConvertOptions(
            column_types={name: pa.string() for name in names}, strings_can_be_null=False
        ),
    )


def _check_different(names: Sequence[str], place: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{place}: the column {quoted(twice[0])} is there twice: should be once")


def _check_columns(part: Part, train: Part, label: str) -> None:
    names = part.table.column_names
    _check_label(part, label)
    expected = train.table.column_names
    if set(names) != set(expected):
        different = ", ".join(sorted(set(names) ^ set(expected)))
        raise InputError(
            f"{part.place}: should have the columns of {train.place}; only one of them has "
            f"{different}"
        )
    if len(names) < 2:
        raise InputError(f"{part.place}: should have a column of features beside {quoted(label)}")
    if not part.table.num_rows:
        raise InputError(f"{part.place}: has no rows below the names of the columns")


def _check_label(part: Part, label: str) -> None:
    names = part.table.column_names
    if label not in names:
        raise InputError(
            f"{part.place}: has no column {quoted(label)}, which data.label names for the classes"
            f"{_alike(label, names)}"
        )


def _alike(label: str, names: Sequence[str]) -> str:
    if all(_is_number(name) for name in names):
        return "; its first row should be the names of the columns, and has numbers"
    shown = ", ".join(difflib.get_close_matches(label, names, n=5, cutoff=0.0) or names[:5])
    more = f", ... ({len(names)} in all)" if len(names) > 5 else ""
    return f"; it has {shown}{more}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _whole_number(text: str) -> int | None:
    """Return the whole number that a text writes, of any size; None if it writes none."""
    if not _WHOLE.fullmatch(text):
        return None
    number = Decimal(text)
    return int(number) if number == int(number) else None


class Labels(NamedTuple):
    """The classes of the rows.

    Attributes:
        classes: their names in the order of the labels.
        labels: int64 of shape (N,) by split.
        merged: a remark on the classes that are written in several ways; empty if none is.
    """

    classes: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]
    merged: str


def labels_of(parts: Mapping[str, Part], label: str, order: Sequence[str] = ()) -> Labels:
    """Return the classes of the rows of each split.

    Texts are classes without the spaces around them, and whole numbers are one class however they
    are written, as 1 and 1.0 are. Numbers with zeros before them, such as 007, are texts.

    Args:
        parts: by split, the training split among them.
        label: name of the column with the classes.
        order: names of the classes in their order, if they are known. They are taken as they are;
            else the order is ascending.

    Raises:
        InputError: the column is missing, or has no classes.
    """
    for part in parts.values():
        _check_label(part, label)
    written = {split: _texts_of(part, label) for split, part in parts.items()}
    values = written if order else _as_classes(written)
    found = sorted(set(values[TRAIN].tolist()))
    place = parts[TRAIN].place
    rows = len(values[TRAIN])
    if not order and all(_is_number(text) for text in found):
        found.sort(key=float)
        if len(found) > max(2, rows // 2) or not all(float(text).is_integer() for text in found):
            raise InputError(
                f"{place}: column {quoted(label)} has {len(found)} different numbers in {rows} "
                "rows, such as "
                f"{found[0]}: should be classes, which are texts or whole numbers"
            )
    if len(found) < 2 or len(found) > min(_MOST_CLASSES, max(2, rows // 2)):
        raise InputError(
            f"{place}: column {quoted(label)} has {len(found)} "
            f"{'class' if len(found) == 1 else 'classes'} in {rows} rows"
            f"{f' ({quoted(found[0])})' if len(found) == 1 else ''}: should have at least 2, each "
            "with several rows"
        )
    if order:
        found.sort(key={text: number for number, text in enumerate(order)}.__getitem__)
    numbers = {text: number for number, text in enumerate(found)}
    labels = {}
    for split, texts in values.items():
        unknown = [row for row, text in enumerate(texts) if text not in numbers]
        if unknown:
            raise InputError(
                f"{parts[split].row(unknown[0])}: column {quoted(label)} has the class "
                f"{quoted(texts[unknown[0]])}, of which {place} has no row"
            )
        labels[split] = np.array([numbers[text] for text in texts], np.int64)
    return Labels(tuple(found), labels, _merged(written, values))


def _as_classes(written: Mapping[str, NDArray[np.object_]]) -> dict[str, NDArray[np.object_]]:
    """Return the names of classes for texts: whole numbers in one form, if all are such numbers."""
    values = {split: _stripped(texts) for split, texts in written.items()}
    numbers = {
        text: _whole_number(text) for texts in values.values() for text in set(texts.tolist())
    }
    if None in numbers.values():
        return values
    return {
        split: np.array([str(numbers[text]) for text in texts], object)
        for split, texts in values.items()
    }


def _stripped(texts: NDArray[np.object_]) -> NDArray[np.object_]:
    return np.array([text.strip() for text in texts], object)


def _merged(
    written: Mapping[str, NDArray[np.object_]], values: Mapping[str, NDArray[np.object_]]
) -> str:
    """Say which classes are written in several ways."""
    ways: dict[str, set[str]] = {}
    for split, texts in written.items():
        for text, name in set(zip(texts.tolist(), values[split].tolist(), strict=True)):
            ways.setdefault(name, set()).add(text)
    several = [
        " and ".join(map(quoted, sorted(same)[:_MOST_NAMED]))
        for same in ways.values()
        if len(same) > 1
    ]
    if not several:
        return ""
    more = f", ... ({len(several)} in all)" if len(several) > _MOST_NAMED else ""
    return f"one class, written in several ways: {', '.join(sorted(several)[:_MOST_NAMED])}{more}"


def _texts_of(part: Part, name: str) -> NDArray[np.object_]:
    """Return the texts of a column as they are; whole numbers and truth values are written out.

    Raises:
        InputError: a value is missing, or of a kind that no class or category is of.
    """
    from pyarrow import types

    column = part.table[name]
    kind = column.type
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    if not (
        _is_text(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
    ):
        raise _unfit(part, name, kind)
    values = column.to_pylist()
    if types.is_floating(kind) and all(value is None or value.is_integer() for value in values):
        values = [None if value is None else int(value) for value in values]
    texts = np.array(
        ["" if value is None or value != value else str(value) for value in values], object
    )
    empty = np.flatnonzero(_stripped(texts) == "")
    if empty.size:
        raise InputError(
            f"{part.row(int(empty[0]))}: column {quoted(name)} has no value, as in {empty.size} "
            f"of {len(texts)} rows: should be filled, or the row left out"
        )
    return texts


def _is_text(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _unfit(part: Part, name: str, kind: "pa.DataType") -> InputError:
    return InputError(
        f"{part.place}: column {quoted(name)} is of the type {kind}: should be numbers, texts or "
        "truth values; convert it, or leave it out"
    )


def _codes(parts: Mapping[str, Part], name: str) -> tuple[Column, dict[str, NDArray[np.float64]]]:
    """Return a column of features, and the codes of its values in each split."""
    numbers = {split: _numbers_of(part, name) for split, part in parts.items()}
    if all(values is not None for values in numbers.values()):
        found = {split: values for split, values in numbers.items() if values is not None}
        _check_varies(parts[TRAIN], name, found[TRAIN])
        return Column(name, None), found
    for split, values in numbers.items():
        if values is not None:
            other = next(parts[s].place for s, v in numbers.items() if v is None)
            raise InputError(
                f"{parts[split].place}: column {quoted(name)} has numbers, and that of {other} has "
                "texts: should be of one kind"
            )
    texts = {split: _stripped(_texts_of(part, name)) for split, part in parts.items()}
    _check_varies(parts[TRAIN], name, texts[TRAIN])
    categories = sorted({text for values in texts.values() for text in values.tolist()})
    rows = len(texts[TRAIN])
    own = len(set(texts[TRAIN].tolist()))
    if own > min(_MOST_CATEGORIES, max(10, rows // 2)):
        raise InputError(
            f"{parts[TRAIN].place}: column {quoted(name)} has {own} different texts in {rows} "
            f"rows, such as {quoted(texts[TRAIN][0])}: should be categories, or be left out"
        )
    codes = {text: float(number) for number, text in enumerate(categories)}
    return Column(name, tuple(categories)), {
        split: np.array([codes[text] for text in values]) for split, values in texts.items()
    }


def _check_varies(part: Part, name: str, values: NDArray[Any]) -> None:
    if len(values) > 1 and (values == values[0]).all():
        value = values[0] if isinstance(values[0], str) else f"{values[0]:g}"
        raise InputError(
            f"{part.place}: column {quoted(name)} is {quoted(str(value))} in all {len(values)} "
            "rows: nothing can be learned from it, and it should be left out"
        )


def _numbers_of(part: Part, name: str) -> NDArray[np.float64] | None:
    """Return the numbers of a column, or None if it is of texts or truth values.

    Raises:
        InputError: a number is missing or not finite, or there is a text among numbers.
    """
    import pyarrow as pa
    from pyarrow import types

    column = part.table[name]
    kind = column.type
    if types.is_dictionary(kind) or types.is_boolean(kind):
        return None
    if _is_text(kind):
        values = _parsed(part, name, column)
        if values is None:
            return None
    elif types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        values = column.cast(pa.float64(), safe=False).to_numpy()
    else:
        raise _unfit(part, name, kind)
    lost = np.flatnonzero(np.isnan(values))
    if lost.size:
        raise InputError(
            f"{part.row(int(lost[0]))}: column {quoted(name)} has no number, as in {lost.size} "
            f"of {len(values)} rows: should be filled, or the row left out"
        )
    # The largest number of float32, which the features are.
    endless = np.flatnonzero(np.abs(values) > np.finfo(np.float32).max)
    if endless.size:
        raise InputError(
            f"{part.row(int(endless[0]))}: column {quoted(name)} is {values[endless[0]]:g}: "
            "should be a finite number, of at most 3.4e38"
        )
    return values


def _parsed(part: Part, name: str, column: "pa.ChunkedArray") -> NDArray[np.float64] | None:
    """Return texts as numbers, NaN for a missing one; None if there is no number among them."""
    texts = ["" if text is None else text.strip() for text in column.to_pylist()]
    values = np.full(len(texts), np.nan)
    others: list[int] = []
    numbers = 0
    for row, text in enumerate(texts):
        if text.lower() in _MISSING:
            continue
        if _is_number(text):
            values[row] = float(text)
            numbers += 1
        else:
            others.append(row)
    if not numbers:
        return None
    if others:
        raise InputError(
            f"{part.row(others[0])}: column {quoted(name)} has the text "
            f"{quoted(texts[others[0]])} among {numbers} numbers: should have numbers only, or "
            "texts only"
        )
    return values
