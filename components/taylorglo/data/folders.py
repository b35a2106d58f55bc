"""Folders of images: which folders are splits and which are classes, and the images in them."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from taylorglo.data.pictures import (
    Picture,
    Stack,
    in_gray,
    is_picture,
    read_picture,
    said_of,
)
from taylorglo.data.split_names import SPLITS, TEST, TRAIN, VALIDATION, by_split, split_named
from taylorglo.data.splits import Source, Split
from taylorglo.errors import InputError
from taylorglo.settings import DataSettings

_AS_THEY_ARE = DataSettings()
_RENAME = "a folder of a class needs another name"
# What systems and programs leave in folders, beside names that begin with a dot.
_LITTER = frozenset(
    (
        "__macosx",
        "@eadir",
        "lost+found",
        "$recycle.bin",
        "#recycle",
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    )
)


def read_image_folder(root: Path, settings: DataSettings = _AS_THEY_ARE) -> Source:
    """Read the images of ``root``: of its class folders, or of the class folders of its splits.

    What is hidden, or was left by a system, is not read. Every other folder is read once.

    Args:
        root: the folder.
        settings: size and colours of the images.

    Raises:
        InputError: the folders leave a choice, or an image is unfit.
        OSError: a folder cannot be read.
    """
    folders = _folders_of_splits(root)
    reader = _Reader(settings)
    if root not in folders.values():
        reader.pass_over(root)
    splits: dict[str, Split] = {}
    names: list[str] = []
    for kind, folder in folders.items():
        splits[kind], classes = reader.read(folder)
        names = names or classes
        if classes != names:
            different = ", ".join(sorted(set(names) ^ set(classes)))
            raise InputError(
                f"{root}: {TRAIN} and {kind} should have the same class folders; only one of them "
                f"has {different}"
            )
    if settings.color == "auto":
        splits = in_gray(splits)
    return Source.of_tensors(
        splits[TRAIN],
        splits.get(VALIDATION),
        splits.get(TEST),
        remarks=reader.remarks(root),
        classes=names,
    )


class _Reader:
    """Reads the class folders of a source, and notes what a person should know of them."""

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        self._hidden: list[Path] = []
        self._entered: dict[str, Path] = {}
        self._outside: list[Path] = []
        self._unread: list[Path] = []
        self._conversions: Counter[str] = Counter()
        self._largest: int | None = None

    def read(self, folder: Path) -> tuple[Split, list[str]]:
        """Read every image of the class folders of a folder, and the names of the classes."""
        classes, files = self._enter(folder)
        self._outside += filter(is_picture, files)
        names = [path.name for path in classes]
        _check_classes(folder, names)
        stack = Stack()
        labels: list[int] = []
        for label, path in enumerate(classes):
            for file, picture in self._pictures(path):
                stack.add(picture, file)
                labels.append(label)
        _check_all_have_images(folder, names, labels)
        split = Split(stack.images(folder), torch.tensor(labels))
        if stack.largest is not None:
            self._largest = max(self._largest or 0, stack.largest)
        return split, names

    def pass_over(self, folder: Path) -> None:
        """Enter a folder of splits, whose own images are in no class."""
        _, files = self._enter(folder)
        self._outside += filter(is_picture, files)

    def remarks(self, root: Path) -> dict[str, str]:
        """Return what was converted and what was left out."""
        left_out = [
            f"{what}: {len(paths)}, the first is {paths[0].relative_to(root)}"
            for what, paths in (
                ("images in no class folder", self._outside),
                ("files of class folders that are no images that can be read", self._unread),
                ("hidden files and folders", self._hidden),
            )
            if paths
        ]
        remarks = {
            "conversions": said_of(self._conversions, self._largest),
            "left_out": "; ".join(left_out),
        }
        return {name: text for name, text in remarks.items() if text}

    def _enter(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the folders and the files in a folder that was not entered by any name before."""
        real = os.path.realpath(folder)
        if folder.is_symlink() and Path(os.path.realpath(folder.parent)).is_relative_to(real):
            raise InputError(f"{folder}: is a link to a folder that it is in: remove the link")
        other = self._entered.get(real)
        if other is not None:
            raise InputError(
                f"{folder} and {other} are one folder under two names, by a link: every folder "
                "should be there once"
            )
        self._entered[real] = folder
        self._hidden += _hidden(folder)
        return _entries(folder)

    def _pictures(self, folder: Path) -> Iterator[tuple[Path, Picture]]:
        """Read the images of a class folder and of all folders in it, in the order of names."""
        for path in sorted(self._files(folder), key=lambda path: (str(path.parent), path.name)):
            picture = read_picture(path, self._settings) if _may_be_read(path) else None
            if picture is None:
                self._unread.append(path)
            else:
                self._conversions.update(picture.conversions)
                yield path, picture

    def _files(self, folder: Path) -> Iterator[Path]:
        folders, files = self._enter(folder)
        yield from files
        for path in folders:
            if split_named(path.name):
                raise InputError(
                    f"{path}: has the name of a split inside of a class: should be a folder of "
                    f"each split, with a folder of each class in it; {_RENAME}"
                )
            yield from self._files(path)


def _folders_of_splits(root: Path) -> dict[str, Path]:
    """Return the folder of each split, training first; it is the root if there are no splits.

    Raises:
        InputError: the folders are of splits and of classes, or it is open which is which split.
    """
    folders, _ = _entries(root)
    by_kind: dict[str, list[Path]] = {}
    others: list[Path] = []
    for folder in folders:
        kind = split_named(folder.name)
        (others if kind is None else by_kind.setdefault(kind, [])).append(folder)
    if not by_kind:
        return {TRAIN: root}
    names = _listed(folder for same in by_kind.values() for folder in same)
    if classes := [folder for folder in others if _has_pictures(folder)]:
        raise InputError(
            f"{root}: {names} should be folders of splits by their names, but {_listed(classes)} "
            f"beside them would be of classes: should have the one or the other; {_RENAME}"
        )
    places = by_split(
        [folder.name for same in by_kind.values() for folder in same],
        root,
        kind="folder",
        advice=f"; {_RENAME}",
    )
    return {kind: root / name for kind, name in places.items()}


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    """Refuse class folders that are fewer than two, or whose names tell that they are splits."""
    if len({split_named(name) for name in names} - {None}) > 1:
        raise InputError(
            f"{folder}: has splits inside of a split ({', '.join(names)}): should have a folder "
            f"of images per class; {_RENAME}"
        )
    if alike := _splits_of_one_thing(names):
        raise InputError(
            f"{folder}: {' and '.join(alike)} should be named train, validation or test if they "
            "are splits, and without these words if they are classes"
        )
    if len(names) < 2:
        raise InputError(
            f"{folder}: should have a folder of images per class, for at least 2 classes; it has "
            f"{', '.join(names) or 'none'}"
        )


def _check_all_have_images(folder: Path, names: Sequence[str], labels: Sequence[int]) -> None:
    if empty := [names[label] for label in sorted(set(range(len(names))) - set(labels))]:
        raise InputError(
            f"{folder}: should have a folder of images per class; there is no image for the "
            f"classes {', '.join(empty)}"
        )


def _splits_of_one_thing(names: Iterable[str]) -> list[str]:
    """Return names that differ in the word for a split only, such as seg_train and seg_test."""
    by_rest: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        words = [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]
        rest = tuple(word for word in words if word not in SPLITS)
        if 0 < len(rest) < len(words):
            by_rest.setdefault(rest, []).append(name)
    return next((alike for alike in by_rest.values() if len(alike) > 1), [])


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the other entries of a folder that are not hidden, by name."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not _is_hidden(entry.name)]
    folders = sorted(folder / entry.name for entry in visible if entry.is_dir())
    files = sorted(folder / entry.name for entry in visible if not entry.is_dir())
    return folders, files


def _hidden(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if _is_hidden(entry.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _may_be_read(path: Path) -> bool:
    """Return whether this is a file, or a broken link, and not a pipe or a device."""
    return path.is_file() or not path.exists()


def _has_pictures(folder: Path) -> bool:
    return any(
        not _is_hidden(name) and is_picture(Path(place, name))
        for place, _, names in os.walk(folder)
        for name in names
    )


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(sorted(path.name for path in paths))
