"""Parts of Fashion-MNIST and trainings on them, for the studies of the filters and the fitness."""

import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from taylorglo.data import dataset as datasets
from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.sources import read_source
from taylorglo.data.splits import Source
from taylorglo.errors import InputError, TaylorgloError
from taylorglo.loss.filters import all_of
from taylorglo.results import Training
from taylorglo.search.space import Space
from taylorglo.settings import DataSettings, SearchSettings, SweepSettings
from taylorglo.training.engine import Engine
from taylorglo.training.loop import Recipe

ROOT = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@lru_cache(1)
def _fashion_mnist() -> Source:
    return read_source(DataSettings(name="fashion-mnist", root=str(ROOT)), ROOT)


def pool(size: int, number: int, classes: int = 10) -> Split:
    """Return some of Fashion-MNIST's training images; pools of one size have no image in common.

    Args:
        size: number of images.
        number: of the pool, from 0.
        classes: number of classes, the first ones.

    Raises:
        InputError: the data set is not there, or has not so many images of these classes.
    """
    whole = _of_classes(_fashion_mnist().train, classes)
    if (number + 1) * size > len(whole):
        raise InputError(
            f"Fashion-MNIST has {len(whole)} images of {classes} classes, too few for "
            f"{number + 1} pools of {size}"
        )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    rows = order[number * size : (number + 1) * size]
    return Split(whole.images[rows], whole.labels[rows])


def dataset_of(images: Split, tested: int, seed: int, **data: Any) -> Dataset:
    """Return a pool as the product makes a data set of it, with Fashion-MNIST's test images.

    Args:
        images: the pool.
        tested: number of test images.
        seed: decides the validation split, and which labels are replaced.
        data: other settings of the section ``data``.
    """
    test = _of_classes(_fashion_mnist().test, int(images.labels.max()) + 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.safetensors"
        tensors = {
            "images": images.images,
            "labels": images.labels,
            "test_images": test.images[:tested].clone(),
            "test_labels": test.labels[:tested].clone(),
        }
        save_file(tensors, path)
        return datasets.load(DataSettings(name="safetensors", root=str(path), **data), seed)


def _of_classes(split: Split | None, classes: int) -> Split:
    assert split is not None
    own = split.labels < classes
    return Split(split.images[own], split.labels[own])


def first_generation(settings: SearchSettings, num_classes: int, seed: int) -> list[list[float]]:
    """Return ``popsize`` accepted candidates, distributed as in the first generation of a search.

    The search itself would take half a minute for the draws of 200, each of which it records.
    """
    space, accept = Space.of(settings, num_classes), all_of(settings.filters)
    draws = np.random.default_rng(seed)
    thetas: list[list[float]] = []
    while len(thetas) < settings.popsize:
        point = draws.normal(space.mean, space.sigmas).tolist()
        theta = space.theta(dict(zip(space.names, point, strict=True)))
        if accept(theta, num_classes).accepted:
            thetas.append(theta)
    return thetas


def trained(settings: SweepSettings, dataset: Dataset, recipes: Iterable[Recipe]) -> list[Training]:
    """Do trainings in this process; return their results in the order of the recipes.

    Raises:
        TaylorgloError: a training ended with an error, which says nothing of its loss.
    """
    with Engine(settings, lambda: dataset) as engine:
        results = dict(engine.run(enumerate(recipes)))
    trainings = [results[number].training for number in sorted(results)]
    for training in trainings:
        if training.status == "failed":
            raise TaylorgloError(f"a training failed: {training.reason}")
    return trainings
