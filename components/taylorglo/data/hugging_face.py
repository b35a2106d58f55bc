"""Folders that Hugging Face's ``datasets`` writes with ``save_to_disk``.

A folder of one split has its rows in Arrow files, and JSON that names these and describes the
columns. A folder of several splits has a folder for each. Arrow's own library reads them, so that
``datasets`` is not needed. A column of images is decoded as the files of an image folder are; any
other data are a table.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from taylorglo.data.pictures import Stack, in_gray, picture_in, said_of
from taylorglo.data.split_names import TEST, TRAIN, VALIDATION, by_split, split_named
from taylorglo.data.splits import Source, Split
from taylorglo.data.tables import Part, checked, labels_of, source_of, whole, without_lists
from taylorglo.errors import InputError, one_line, quoted
from taylorglo.extras import missing
from taylorglo.reading import check_regular, parse_json, read_bytes
from taylorglo.settings import DataSettings

if TYPE_CHECKING:
    import pyarrow as pa

_SPLITS, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_LARGEST_JSON = 2**26  # bytes
_HALF = re.compile("[\ud800-\udfff]")  # of a character, in UTF-16


def read_hugging_face(root: Path, settings: DataSettings) -> Source:
    """Read the splits of a folder that ``save_to_disk`` wrote.

    Args:
        root: the folder.
        settings: the name of the column of labels; size and colours of images.

    Raises:
        InputError: it is no such folder, or is damaged, or a column is unfit.
        OSError: a file cannot be read.
    """
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing("data.name hugging-face", error) from error
    folders, left_out = _folders(root)
    # Each split numbers its classes by its own description: the order of names may differ.
    described = {split: _features(folder) for split, folder in folders.items()}
    parts = {
        split: Part(_named(_rows(folder), described[split], folder), str(folder))
        for split, folder in folders.items()
    }
    features = described[TRAIN]
    order = _names_of(features.get(settings.label, {}))
    images = [name for name, kind in features.items() if kind.get("_type") == "Image"]
    if images:
        return _images(parts, images, settings, order, left_out)
    flat = {
        split: part._replace(table=without_lists(part.table, part.place))
        for split, part in parts.items()
    }
    return source_of(flat, settings.label, order=order, left_out=left_out)


def _folders(root: Path) -> tuple[dict[str, Path], str]:
    """Return the folder of each split, training first, and which splits were left out."""
    if (root / _STATE).is_file():
        return {TRAIN: root}, ""
    if not (root / _SPLITS).is_file():
        raise InputError(
            f"data.root: {root} should be a folder that save_to_disk of Hugging Face's datasets "
            f"wrote, with {_SPLITS} or {_STATE}"
        )
    names = _json(root / _SPLITS).get("splits")
    if not isinstance(names, list) or not all(map(_is_name, names)):
        raise _damaged(root / _SPLITS, "it should name the folders of the splits")
    known = [name for name in names if split_named(name)]
    if not known:
        raise InputError(
            f"{root}: has the splits {', '.join(names) or 'none'}: should have train, and may have "
            "validation and test"
        )
    others = [name for name in names if name not in known]
    left_out = f"splits of other names: {', '.join(others)}" if others else ""
    places = by_split(known, root, kind="split")
    return {split: root / name for split, name in places.items()}, left_out


def _is_name(name: object) -> bool:
    """Return whether this is the name of a file in its folder, and not a path elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(path, _LARGEST_JSON))
    except ValueError as error:
        raise _damaged(path, one_line(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it should be a group of values")
    return content


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: should be as save_to_disk writes it: {reason}")


def _features(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the description of each column of a split."""
    features = _json(folder / _INFO).get("features")
    if not isinstance(features, dict) or not features:
        raise _damaged(folder / _INFO, "it should describe the columns under features")
    # A list of a column's type is described by a list in older versions.
    kinds = {name: kind if isinstance(kind, dict) else {} for name, kind in features.items()}
    for name, kind in kinds.items():
        _check_names(kind, name, folder)
    return kinds


def _names_of(kind: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the classes that the numbers of a column stand for; it may have none."""
    return (kind.get("names") or ()) if kind.get("_type") == "ClassLabel" else ()


def _check_names(kind: Mapping[str, Any], column: str, folder: Path) -> None:
    """Refuse names of classes that are no different texts."""
    names: object = _names_of(kind)
    if not isinstance(names, list | tuple) or not all(map(_is_text, names)):
        raise _damaged(folder / _INFO, f"the names of column {quoted(column)} should be texts")
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise _damaged(
            folder / _INFO,
            f"the names of column {quoted(column)} should be different, and {quoted(twice[0])} is "
            "there twice",
        )


def _is_text(value: object) -> bool:
    """Return whether this is a text that UTF-8 can write: JSON may have halves of characters."""
    return isinstance(value, str) and not _HALF.search(value)


def _rows(folder: Path) -> "pa.Table":
    """Return the rows of a split, from all of its Arrow files."""
    import pyarrow as pa

    files = _json(folder / _STATE).get("_data_files")
    files = files if isinstance(files, list) else []
    names = [file.get("filename") if isinstance(file, dict) else None for file in files]
    if not names or not all(map(_is_name, names)):
        raise _damaged(folder / _STATE, "it should name the .arrow files")
    tables = []
    for name in names:
        path = folder / str(name)
        check_regular(path)
        with whole(path, "Arrow file"), pa.ipc.open_stream(path.read_bytes()) as reader:
            tables.append(checked(reader.read_all()))
    with whole(folder, "split, with the same columns in all of its files"):
        rows = pa.concat_tables(tables)
    if not rows.num_rows:
        raise InputError(f"{folder}: has no rows: should have some, or be left out of the splits")
    return rows


def _named(
    table: "pa.Table", features: Mapping[str, Mapping[str, Any]], folder: Path
) -> "pa.Table":
    """Return a table with the names of classes in place of their numbers."""
    import pyarrow as pa
    from pyarrow import compute, types

    for name, kind in features.items():
        names = _names_of(kind)
        if not names or name not in table.column_names:
            continue
        column = table[name]
        if not types.is_integer(column.type):
            raise InputError(
                f"{folder}: column {quoted(name)} should have the numbers of classes, as {_INFO} "
                f"says, and is of the type {column.type}"
            )
        bounds = compute.min_max(column).as_py()
        if column.null_count or not 0 <= bounds["min"] <= bounds["max"] < len(names):
            raise InputError(
                f"{folder}: column {quoted(name)} should have the number of a class in every row, "
                f"0 to {len(names) - 1}; it has {bounds['min']} to {bounds['max']}, and no value "
                f"in {column.null_count} rows"
            )
        texts = compute.take(pa.array(names, pa.string()), column)
        table = table.set_column(table.column_names.index(name), name, texts)
    return table


def _images(
    parts: Mapping[str, Part],
    columns: Sequence[str],
    settings: DataSettings,
    order: Sequence[str],
    left_out: str,
) -> Source:
    """Return the images of the one column that has images."""
    place = parts[TRAIN].place
    if len(columns) > 1:
        raise InputError(
            f"{place}: has several columns of images, {', '.join(columns)}: should have one"
        )
    for part in parts.values():
        if columns[0] not in part.table.column_names:
            raise InputError(
                f"{part.place}: should have the column {quoted(columns[0])}, which has the images "
                f"by the {_INFO} of {place}"
            )
    classes, labels, merged = labels_of(parts, settings.label, order)
    conversions: Counter[str] = Counter()
    splits, largest = {}, None
    for split, part in parts.items():
        stack = Stack()
        for index, cell in enumerate(part.table[columns[0]].to_pylist()):
            content = cell.get("bytes") if isinstance(cell, dict) else None
            if not isinstance(content, bytes) or not content:
                raise InputError(
                    f"{part.row(index)}: column {quoted(columns[0])} has no image in the file: "
                    "should be saved with the images in it"
                )
            picture = picture_in(content, part.row(index), settings)
            conversions.update(picture.conversions)
            stack.add(picture, part.row(index))
        splits[split] = Split(stack.images(part.place), torch.from_numpy(labels[split]))
        if stack.largest is not None:
            largest = max(largest or 0, stack.largest)
    if settings.color == "auto":
        splits = in_gray(splits)
    others = [n for n in parts[TRAIN].table.column_names if n not in (columns[0], settings.label)]
    unread = [left_out, f"columns beside image and label: {', '.join(others)}" if others else ""]
    remarks = {
        "conversions": said_of(conversions, largest),
        "spellings": merged,
        "left_out": "; ".join(filter(None, unread)),
    }
    return Source.of_tensors(
        splits[TRAIN],
        splits.get(VALIDATION),
        splits.get(TEST),
        remarks={name: text for name, text in remarks.items() if text},
        classes=classes,
    )
