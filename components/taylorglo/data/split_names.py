"""The names of splits: of folders, of files and of tensors."""

import re
from collections.abc import Mapping, Sequence

from taylorglo.errors import InputError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
EITHER = "validation or test"
_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating"), VALIDATION),
    **dict.fromkeys(("dev", "devel", "development"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
    **dict.fromkeys(("eval", "evaluation", "evaluate", "holdout", "heldout"), EITHER),
}
_FILLERS = ("", "data", "dataset", "set", "subset", "split", "image", "images", "imgs", "samples")
# The names of splits without case, digits and separators: Train, train_set, TestImages, val2017.
SPLITS = {
    name: split
    for word, split in _WORDS.items()
    for filler in _FILLERS
    for name in (f"{word}{filler}", f"{filler}{word}")
}


def split_named(name: str) -> str | None:
    """Return the split that a folder or file of this name is usually meant for, or None."""
    return SPLITS.get(re.sub(r"[\W\d_]+", "", name).lower())


def by_split(names: Sequence[str], place: object, *, kind: str, advice: str = "") -> dict[str, str]:
    """Return the name of each split, training first, among names that all are of splits.

    Args:
        names: of folders or files; each is the name of a split.
        place: where they are, for the error.
        kind: what they are the names of, ``folder`` or ``file``.
        advice: what else would be right, for the end of the error.

    Raises:
        InputError: it is open which is which split, or there is none to train on.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(split_named(name) or "", []).append(name)
    for split, same in found.items():
        if len(same) > 1:
            raise InputError(
                f"{place}: {', '.join(same)} are names of one split ({split}): should be one "
                f"{kind}{advice}"
            )
    if EITHER in found:
        raise InputError(
            f"{place}/{found[EITHER][0]}: should be named {EITHER}, so that it is clear which "
            f"split it is{advice}"
        )
    if TRAIN not in found:
        raise InputError(
            f"{place}: beside {', '.join(sorted(names))} should be a {kind} {TRAIN}{advice}"
        )
    return in_order({split: same[0] for split, same in found.items()})


def in_order(splits: Mapping[str, str]) -> dict[str, str]:
    """Return a mapping by splits in the order of training, validation, test."""
    return {split: splits[split] for split in (TRAIN, VALIDATION, TEST) if split in splits}
