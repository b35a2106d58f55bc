"""``taylorglo attack``: a suite of attacks on a trained network, outside a sweep."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from taylorglo.errors import InputError, first_line
from taylorglo.reading import check_regular
from taylorglo.services import layout
from taylorglo_pipelines.commands.options import echo_json, json_option

if TYPE_CHECKING:
    from torch import nn

    from taylorglo.data.dataset import Dataset

_TRIED = 100  # images whose logits are looked at before the attacks


@click.command("attack")
@click.argument("model", metavar="MODEL")
@click.option(
    "--data",
    metavar="FILE",
    show_default="the one beside the champion",
    help="Prepared data set, a path or an s3:// URI.",
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
@json_option
def command(
    model: str,
    data: str | None,
    model_name: str | None,
    overrides: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Attack a trained network with FGSM and PGD, or as hard as AutoAttack does.

    MODEL is a champion's folder, weights (.safetensors) or a program of images in [0, 1] (.pt2 of
    torch.export, .pt of torch.jit), a path or an s3:// URI. A program needs --data.
    """
    attacked = attack(model, data, model_name, overrides)
    if as_json:
        echo_json(attacked._asdict())
    else:
        click.echo(_table(attacked))


class Attacked(NamedTuple):
    """What attacks left of the accuracy of a network.

    Attributes:
        accuracies: in [0, 1], by attack and epsilon.
        epsilon_unit: norm and unit of epsilon, in words.
        most_frequent_class: the share of the most frequent class in the test split.
        suspicions: signs that an attack went astray, a sentence each.
    """

    accuracies: Mapping[str, Mapping[float, float]]
    epsilon_unit: str
    most_frequent_class: float
    suspicions: Sequence[str]


def attack(
    model: str, data: str | None, model_name: str | None, overrides: Sequence[str]
) -> Attacked:
    """Attack a network on the test split; return the accuracy that is left.

    Args:
        model: a champion's folder (or the weights in it), as a sweep left it; or other weights,
            ``.safetensors``, of the bare network or of the network with its normalisation; or a
            program that ``torch.export.save`` (``.pt2``) or ``torch.jit.save`` (``.pt``) wrote,
            from images in [0, 1] to logits. A path or an s3:// URI.
        data: a prepared data set; None: ``../data.safetensors``, seen from the champion's folder.
        model_name: the network that the weights belong to; None: the one that they name.
        overrides: ``key=value`` for :class:`~taylorglo.settings.AttackSettings`.

    Raises:
        InputError: something is missing, or does not fit together.
    """
    from taylorglo.data import dataset as datasets
    from taylorglo.evaluation.comparison import restore_network
    from taylorglo.evaluation.robustness import attack_network
    from taylorglo.networks.programs import SUFFIXES, load_program
    from taylorglo.networks.weights import origin_of, trusted_name
    from taylorglo.results import epsilon_unit
    from taylorglo.services.storage import fetch
    from taylorglo.settings import AttackSettings, TrainingSettings, validated
    from taylorglo.training.devices import device_of
    from taylorglo.training.loop import resident
    from taylorglo_pipelines.config import origins, with_overrides

    given = with_overrides({}, overrides)
    settings = validated(AttackSettings, given, "--set", origins(overrides))
    weights = model
    if not model.endswith((".safetensors", *SUFFIXES)):
        weights = f"{model.rstrip('/')}/{layout.NETWORK}"
    is_program = weights.endswith(SUFFIXES)
    if is_program and data is None:
        raise InputError(f"{model}: a program needs --data, a prepared data set to attack it on")
    with tempfile.TemporaryDirectory() as folder:
        path = fetch(weights, Path(folder) / "model")
        if not is_program:
            model_name = model_name or trusted_name(origin_of(path), str(path), "--model-name")
        data = data or _data_beside(weights)
        dataset = datasets.read(fetch(data, Path(folder) / "data"))
        if is_program:
            network = load_program(path, model)
        else:
            network = restore_network(_content(path), model_name or "", dataset)
    if dataset.test is None:
        raise InputError(f"{data}: has no test split to attack")
    _check_finite(network, dataset, weights)
    dataset = resident(dataset, device_of(TrainingSettings()))
    attacked = attack_network(network, dataset, settings, seed=0)
    norm = {"linf": "L∞", "l2": "L2"}[settings.norm]
    return Attacked(
        attacked.accuracies,
        f"{norm}, {epsilon_unit(dataset.provenance)}",
        dataset.guessing.accuracy,
        attacked.suspicions,
    )


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
    return "\n".join([*lines, *(f"suspect: {sentence}" for sentence in attacked.suspicions)])


def _data_beside(weights: str) -> str:
    """Return the data set of the sweep that left the weights.

    A sweep keeps NAME/data.safetensors and NAME/champion/model.safetensors.
    """
    if "://" not in weights:
        weights = str(Path(weights).absolute())
    return layout.dataset(weights.rsplit("/", 2)[0])
