"""The task that reads and splits the data, and checks that the network fits them."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from taylorglo.data import dataset as datasets
from taylorglo.data import own, remarks
from taylorglo.networks import factory
from taylorglo.results import DatasetDescription, MemoryNeed, write_json
from taylorglo.services.storage import fetch
from taylorglo.settings import DataSettings, ModelSettings, validated
from taylorglo.tasks.console import say, task
from taylorglo.training.memory import check_memory


@task
def run(
    *,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    seed: int,
    description_path: str,
    search_data_path: str,
    full_data_path: str,
) -> None:
    """Prepare the data. The result depends on the arguments and on the data alone.

    Args:
        data: the section ``data`` of the settings.
        model: the section ``model`` of the settings.
        seed: decides the splits.
        description_path: where to write what later tasks have to know of the data.
        search_data_path: where to write the data without the test split.
        full_data_path: where to write the data with the test split.

    Raises:
        InputError: the data are missing or damaged, or the network does not fit them.
    """
    settings = validated(DataSettings, data, "data")
    if settings.name == "own":
        _prepare_own(settings.classes, description_path, search_data_path, full_data_path)
        return
    network = validated(ModelSettings, model, "model").name
    with tempfile.TemporaryDirectory() as folder:
        local = fetch(settings.root, Path(folder)) if "://" in settings.root else None
        dataset = datasets.load(settings, seed, local)
    for line in remarks.lines(dataset.provenance, known=settings.published):
        say(f"data: {line}")
    # The memory for the smallest batch, on this machine: the batch size and the machine that
    # trains are not known here.
    shape, classes = dataset.image_shape, dataset.num_classes
    cpu = torch.device("cpu")
    footprint = check_memory(network, shape, classes, batch_size=2, device=cpu)
    factory.check(network, shape, classes)
    datasets.save(datasets.without_test(dataset), Path(search_data_path))
    datasets.save(dataset, Path(full_data_path))
    splits = {"train": len(dataset.train), "validation": len(dataset.validation)}
    if dataset.test:
        splits["test"] = len(dataset.test)
    description = DatasetDescription(
        name=dataset.name,
        num_classes=classes,
        splits=splits,
        memory=MemoryNeed(
            weights=footprint.weights, activations_per_image=footprint.activations // 2
        ),
        fingerprint=dataset.fingerprint,
        provenance=dataset.provenance,
        guessing=dataset.guessing,
        features=dataset.features,
        classes=dataset.classes,
    )
    write_json(description_path, description)


def _prepare_own(
    classes: int, description_path: str, search_data_path: str, full_path: str
) -> None:
    """Write what stands for data that a function of a user reads; paths as for :func:`run`."""
    dataset = own.stand_in(classes)
    datasets.save(datasets.without_test(dataset), Path(search_data_path))
    datasets.save(dataset, Path(full_path))
    description = DatasetDescription(
        name=dataset.name,
        num_classes=classes,
        splits={},
        memory=MemoryNeed(weights=0, activations_per_image=0),
        fingerprint=dataset.fingerprint,
        provenance=dataset.provenance,
        guessing=None,
    )
    write_json(description_path, description)
