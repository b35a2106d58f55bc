"""``taylorglo attack``: a suite of attacks on a trained network, outside a sweep."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import click

from taylorglo.errors import InputError, first_line
from taylorglo.reading import check_regular
from taylorglo.services import layout
from taylorglo_pipelines.commands.options import echo_json, json_option

if TYPE_CHECKING:
    from pyarrow import Table
    from torch import nn

    from taylorglo.data.dataset import Dataset

_TRIED = 100  # images whose logits are looked at before the attacks


@click.command("attack")
@click.argument("model", metavar="MODEL")
@click.option(
    "--data",
    metavar="DATA",
    show_default="the one beside the champion",
    help="Prepared data set (.safetensors), a folder of images by class, or the configuration of a "
    "sweep (.yaml), whose test images are attacked. A path or an s3:// URI.",
)
@click.option(
    "--model-name",
    metavar="NAME",
    show_default="the one that the weights name",
    help="Network that the weights belong to.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a value of the section attack, such as suite=standard, norm=l2 or "
    "epsilons=[0.1,8/255]. "
    "May be given again.",
)
@click.option(
    "--per-image",
    metavar="FILE",
    help="Parquet file to write: what the attacks found for each sample.",
)
@json_option
def command(
    model: str,
    data: str | None,
    model_name: str | None,
    overrides: Sequence[str],
    *,
    per_image: str | None,
    as_json: bool,
) -> None:
    """Attack a trained network with FGSM, PGD and APGD, or as hard as AutoAttack does.

    MODEL is a champion's folder, weights (.safetensors) or a program of images in [0, 1] (.pt2 of
    torch.export, .pt of torch.jit), a path or an s3:// URI. A program needs --data.
    """
    attacked = attack(model, data, model_name, overrides, per_image=per_image)
    if as_json:
        echo_json(attacked._asdict())
    else:
        click.echo(_table(attacked))
        if per_image:
            click.echo(f"what the attacks found for each sample: {per_image}")


class Attacked(NamedTuple):
    """What attacks left of the accuracy of a network.

    Attributes:
        accuracies: in [0, 1], by attack and epsilon.
        epsilon_unit: norm and unit of epsilon, in words.
        most_frequent_class: the share of the most frequent class in the test split.
        suspicions: signs that an attack went astray, a sentence each.
        corruptions: accuracies in [0, 1] by corruption, in the order of the strengths from 1.
    """

    accuracies: Mapping[str, Mapping[float, float]]
    epsilon_unit: str
    most_frequent_class: float
    suspicions: Sequence[str]
    corruptions: Mapping[str, Sequence[float]]


def attack(
    model: str,
    data: str | None,
    model_name: str | None,
    overrides: Sequence[str],
    *,
    per_image: str | None = None,
) -> Attacked:
    """Attack a network on the test split; return the accuracy that is left.

    Args:
        model: a champion's folder (or the weights in it), as a sweep left it; or other weights,
            ``.safetensors``, of the bare network or of the network with its normalisation; or a
            program that ``torch.export.save`` (``.pt2``) or ``torch.jit.save`` (``.pt``) wrote,
            from images in [0, 1] to logits. A path or an s3:// URI.
        data: a prepared data set, a folder of images, or a sweep's configuration; None:
            ``../data.safetensors``, seen from the champion's folder.
        model_name: the network that the weights belong to; None: the one that they name.
        overrides: ``key=value`` for :class:`~taylorglo.settings.AttackSettings`.
        per_image: the Parquet file to write the results by image to.

    Raises:
        InputError: something is missing, or does not fit together.
    """
    from taylorglo.evaluation.attacked_images import NetworkImages, table_of
    from taylorglo.evaluation.robustness import attack_network
    from taylorglo.networks.programs import SUFFIXES
    from taylorglo.results import epsilon_unit
    from taylorglo.settings import AttackSettings, TrainingSettings, validated
    from taylorglo.training.devices import device_of
    from taylorglo.training.loop import resident
    from taylorglo_pipelines.config import origins, with_overrides

    given = with_overrides({}, overrides)
    settings = validated(AttackSettings, given, "--set", origins(overrides))
    if per_image is not None:
        _check_writable(per_image)
    weights = model
    # What is a file and no network is refused as such.
    if not (model.endswith((".safetensors", *SUFFIXES)) or Path(model).is_file()):
        weights = f"{model.rstrip('/')}/{layout.NETWORK}"
    network, dataset = _network_and_data(weights, data, model_name)
    _check_finite(network, dataset, weights)
    dataset = resident(dataset, device_of(TrainingSettings()))
    attacked = attack_network(network, dataset, settings, seed=0)
    if unknown := sum(image.predicted < 0 for image in attacked.images):
        raise InputError(
            f"{weights}: the network returns NaN for {unknown} of {len(attacked.images)} samples"
        )
    unit = epsilon_unit(dataset.provenance)
    if per_image is not None:
        networks = [NetworkImages(weights, None, attacked.images)]
        epsilon = max(attacked.accuracies["worst"])
        table = table_of(networks, sweep="", epsilon=epsilon, norm=settings.norm, unit=unit)
        _write(table, per_image)
    norm = {"linf": "L∞", "l2": "L2"}[settings.norm]
    return Attacked(
        attacked.accuracies,
        f"{norm}, {unit}",
        dataset.guessing.accuracy,
        attacked.suspicions,
        attacked.corruptions,
    )


def _network_and_data(
    weights: str, data: str | None, model_name: str | None
) -> "tuple[nn.Module, Dataset]":
    """Read the network and the data set that it is attacked on, which has a test split."""
    from taylorglo.evaluation.comparison import restore_network
    from taylorglo.networks.programs import SUFFIXES, load_program
    from taylorglo.networks.weights import origin_of, trusted_name
    from taylorglo.services.storage import fetch

    is_program = weights.endswith(SUFFIXES)
    if is_program and data is None:
        raise InputError(f"{weights}: a program needs --data, a prepared data set to attack it on")
    with tempfile.TemporaryDirectory() as folder:
        path = fetch(weights, Path(folder) / "model")
        if not is_program:
            origin = origin_of(path)
            model_name = model_name or trusted_name(origin, str(path), "--model-name")
        data = data or _data_beside(weights)
        dataset = _read_data(data, Path(folder) / "data")
        if dataset.test is None:
            raise InputError(f"{data}: has no test split to attack")
        if is_program:
            return load_program(path, weights), dataset
        for what, known, found in (
            ("samples of shape", origin.image_shape, dataset.image_shape),
            ("classes:", origin.classes, dataset.num_classes),
        ):
            if known is not None and known != found:
                raise InputError(
                    f"{data}: has {what} {found}, and {weights} was trained for {known}; --data "
                    "may be the configuration of its sweep, which prepares samples in its way"
                )
        return restore_network(_content(path), model_name or "", dataset), dataset


def _read_data(data: str, folder: Path) -> "Dataset":
    """Read a data set: a prepared one, a folder of images, or the one of a configuration.

    Args:
        data: a path or an s3:// URI.
        folder: where to copy what is in S3.
    """
    from taylorglo.data import dataset as datasets
    from taylorglo.data.unsplit import read_unsplit
    from taylorglo.services.storage import fetch
    from taylorglo_pipelines import config

    path = fetch(data, folder)
    if path.is_dir():
        return read_unsplit(path)
    if not data.endswith((".yaml", ".yml")):
        return datasets.read(path)
    settings = config.load(path)
    if settings.data.name == "own":
        raise InputError(f"{data}: its data set 'own' is read by its training alone")
    root = settings.data.root
    local = fetch(root, folder / "root") if "://" in root else None
    return datasets.load(settings.data, settings.seed, local)


def _check_writable(file: str) -> None:
    """Refuse a file that cannot be written before the attacks, which may take hours."""
    path = Path(file)
    if path.suffix != ".parquet":
        raise InputError(f"--per-image: should be a .parquet file, is {file}")
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"--per-image: {file} cannot be written: should be a file in a folder")


def _write(table: "Table", file: str) -> None:
    from taylorglo.evaluation.attacked_images import write_parquet

    try:
        write_parquet(table, Path(file))
    except OSError as error:
        raise InputError(f"--per-image: {file} cannot be written: {error.strerror}") from None


def _content(weights: Path) -> bytes:
    """Return the content of a file of weights."""
    try:
        check_regular(weights)
        return weights.read_bytes()
    except OSError as error:
        raise InputError(f"{weights}: cannot be read: {error.strerror}") from None


def _check_finite(network: "nn.Module", dataset: "Dataset", weights: str) -> None:
    """Refuse a network that computes no numbers: it would seem to withstand nothing.

    Raises:
        InputError: weights or logits are infinite or NaN.
    """
    import torch

    from taylorglo.data.batches import scaled

    assert dataset.test is not None
    for name, values in network.state_dict().items():
        if not values.isfinite().all():
            raise InputError(
                f"{weights}: {name} has NaN or infinite numbers, as after a training that diverged"
            )
    images = scaled(dataset.test.images[:_TRIED])
    try:
        with torch.no_grad():
            logits = network(images)
    except Exception as error:
        raise InputError(
            f"{weights}: the network does not take a batch of {len(images)} samples of shape "
            f"{tuple(images.shape[1:])}: {first_line(error)}"
        ) from None
    if isinstance(logits, torch.Tensor) and not logits.isfinite().all():
        raise InputError(f"{weights}: the network returns NaN or infinite logits for test samples")


def _table(attacked: Attacked) -> str:
    """Return a table of accuracies by attack and epsilon, as percentages, and remarks on it."""
    from taylorglo.results import epsilon_text

    epsilons = list(next(iter(attacked.accuracies.values())))
    head = "".join(f"{epsilon_text(epsilon):>8}" for epsilon in epsilons)
    lines = [f"{'accuracy (%) at epsilon':24}{head}"]
    for attack_name, row in attacked.accuracies.items():
        cells = "".join(f"{row[epsilon]:>8.2%}".replace("%", " ") for epsilon in epsilons)
        lines.append(f"{attack_name:24}{cells}".rstrip())
    lines.append("each attack gets the samples that those above it left")
    most_frequent = f"{100 * attacked.most_frequent_class:.2f} %"
    lines.append(
        f"epsilon: {attacked.epsilon_unit}; always the most frequent class: {most_frequent}"
    )
    means = {name: fmean(by_strength) for name, by_strength in attacked.corruptions.items()}
    corrupted = ", ".join(f"{name} {100 * mean:.2f} %" for name, mean in means.items())
    lines.append(f"corrupted samples, mean of five strengths: {corrupted}")
    return "\n".join([*lines, *(f"suspect: {sentence}" for sentence in attacked.suspicions)])


def _data_beside(weights: str) -> str:
    """Return the data set of the sweep that left the weights.

    A sweep keeps NAME/data.safetensors and NAME/champion/model.safetensors.
    """
    if "://" not in weights:
        weights = str(Path(weights).absolute())
    return layout.dataset(weights.rsplit("/", 2)[0])
