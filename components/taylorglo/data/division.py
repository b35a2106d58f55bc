"""How the images of a source become a training, a validation and a test split."""

import math

import torch

from taylorglo.data.corruption import long_tailed
from taylorglo.data.seeds import IMBALANCE, derived_seed
from taylorglo.data.splits import Source, Split
from taylorglo.errors import InputError
from taylorglo.settings import DataSettings

_TRAIN, _VALIDATION = 1, 2  # the numbers of the splits in the paths of their seeds


def divided(
    source: Source, settings: DataSettings, num_classes: int, seed: int
) -> tuple[Split, Split, Split]:
    """Return the training, the validation and the test split.

    The test split is held out first, so that no other setting than its fraction decides it. The
    imbalance comes next, then the validation split, then the part of the rest that is used.

    Args:
        source: images and labels, which have been checked.
        settings: the fractions and the imbalance.
        num_classes: number of classes.
        seed: decides the splits.

    Raises:
        InputError: a class has too few images for a fraction, or for the imbalance.
    """
    rest, test = source.train, source.test
    if test is None:
        rest, test = _hold_out(rest, "test_fraction", settings, num_classes, seed)
    if settings.imbalance > 1:
        _check_imbalance(rest, source.validation, settings, num_classes, seed)
    train, validation = _without_test(rest, source.validation, settings, num_classes, seed)
    return train, validation, test


def _without_test(
    train: Split, validation: Split | None, settings: DataSettings, num_classes: int, seed: int
) -> tuple[Split, Split]:
    """Return the training and the validation split; one is held out if the source has none."""
    if settings.imbalance > 1:
        train, validation = _long_tailed(train, validation, settings.imbalance, num_classes, seed)
    if validation is None:
        train, validation = _hold_out(train, "validation_fraction", settings, num_classes, seed)
    if settings.train_fraction < 1:
        _, train = _hold_out(train, "train_fraction", settings, num_classes, seed)
    return train, validation


def _long_tailed(
    train: Split, validation: Split | None, imbalance: float, num_classes: int, seed: int
) -> tuple[Split, Split | None]:
    def cut(split: Split, number: int) -> Split:
        draws = derived_seed(seed, IMBALANCE, number)
        return long_tailed(split, imbalance, num_classes, draws)

    return cut(train, _TRAIN), None if validation is None else cut(validation, _VALIDATION)


def _check_imbalance(
    train: Split, validation: Split | None, settings: DataSettings, num_classes: int, seed: int
) -> None:
    """Refuse an imbalance that leaves a class without images in one of the two splits.

    Raises:
        InputError: it does; or the fractions cannot be split off even without an imbalance.
    """
    # Labels alone decide what can be split, and they take less time and memory than the images.
    labels = Split(train.labels, train.labels)
    of_source = None if validation is None else Split(validation.labels, validation.labels)

    def divide(imbalance: float) -> tuple[Split, Split]:
        changed = settings.model_copy(update={"imbalance": imbalance})
        return _without_test(labels, of_source, changed, num_classes, seed)

    def works(imbalance: float) -> bool:
        try:
            parts = divide(imbalance)
        except InputError:
            return False
        return all(_smallest(part, num_classes) > 0 for part in parts)

    if works(settings.imbalance):
        return
    divide(1)
    # In hundredths: every imbalance up to the last one that is tried and works is taken to work.
    working, failing = 100, math.ceil(100 * settings.imbalance)
    while failing - working > 1:
        middle = (working + failing) // 2
        working, failing = (middle, failing) if works(middle / 100) else (working, middle)
    last = num_classes - 1
    cut, cut_of_source = _long_tailed(labels, of_source, settings.imbalance, num_classes, seed)

    def left(after: Split, before: Split) -> str:
        return f"{int((after.labels == last).sum())} of {int((before.labels == last).sum())}"

    kept = f"{left(cut, labels)} images of class {last} for training and validation together"
    if of_source is not None and cut_of_source is not None:
        kept = (
            f"{left(cut, labels)} training and {left(cut_of_source, of_source)} validation images "
            f"of class {last}"
        )
    raise InputError(
        f"data.imbalance: {settings.imbalance:g} leaves {kept}, too few to have every class in "
        "both splits; the largest imbalance that works for these images and fractions is "
        f"{working / 100:.2f}"
    )


def _smallest(split: Split, num_classes: int) -> int:
    """Return the number of images of the smallest class."""
    return int(torch.bincount(split.labels, minlength=num_classes).min())


def _hold_out(
    split: Split, setting: str, settings: DataSettings, num_classes: int, seed: int
) -> tuple[Split, Split]:
    """Split off a fraction of the images by class; return the remaining and the held-out images.

    Args:
        split: images with their labels.
        setting: the name of the fraction in the settings.
        settings: they have the fraction.
        num_classes: number of classes.
        seed: decides which images are split off.

    Raises:
        InputError: a class would have no image on one of the two sides.
    """
    # scikit-learn takes a second to import, and only the task that prepares the data splits them.
    from sklearn.model_selection import train_test_split

    fraction = getattr(settings, setting)
    sizes = torch.bincount(split.labels)
    problem = (
        f"data.{setting}: {fraction} of {len(split)} {split.noun} of {num_classes} classes, the "
        f"smallest of {sizes.min()} (class {sizes.argmin()}), cannot be split off by class with "
        "every class on both sides; that class should have more, or be left out"
    )
    try:
        kept, held = train_test_split(
            range(len(split)),
            test_size=fraction,
            stratify=split.labels.numpy(),
            random_state=seed,
            shuffle=True,
        )
    except ValueError as error:
        raise InputError(problem) from error
    parts = (
        Split(split.images[kept], split.labels[kept]),
        Split(split.images[held], split.labels[held]),
    )
    if any(_smallest(part, num_classes) == 0 for part in parts):
        raise InputError(problem)
    return parts
