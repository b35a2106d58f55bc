"""``taylorglo attack``: FGSM and PGD on a trained network, outside a sweep."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from taylorglo.errors import InputError
from taylorglo.settings import AttackSettings, TrainingSettings, validated
from taylorglo_pipelines.config import with_overrides


def attack(model: str, data: str | None, model_name: str | None, overrides: Sequence[str]) -> str:
    """Attack a network on the test split; returns a table of the accuracy left, by attack and epsilon.

    Args:
        model: a champion's folder (or the weights in it), as a sweep left it; or weights of your own, ``.safetensors``,
            of the bare network or of the network with its normalisation. A path or an s3:// URI.
        data: a prepared data set; None: ``../data.safetensors``, seen from the champion's folder.
        model_name: the network that the weights belong to, where they do not name it themselves.
        overrides: ``key=value`` for :class:`~taylorglo.settings.AttackSettings`.

    Raises:
        InputError: something is missing, or does not fit together.
    """
    from taylorglo.data import dataset as datasets
    from taylorglo.evaluation.comparison import attack_network, restore_network
    from taylorglo.services.storage import fetch
    from taylorglo.training.devices import device_of
    from taylorglo.training.loop import resident

    settings = validated(AttackSettings, with_overrides({}, overrides), "--set")
    weights = model if model.endswith(".safetensors") else f"{model.rstrip('/')}/model.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        path = fetch(weights, Path(folder) / "model")
        model_name = model_name or _named_by(path)
        dataset = datasets.read(fetch(data or _beside(weights), Path(folder) / "data"))
        network = restore_network(path.read_bytes(), model_name, dataset)
    if dataset.test is None:
        raise InputError(f"{data}: has no test split to attack")
    dataset = resident(dataset, device_of(TrainingSettings()))
    robust = attack_network(network, dataset, settings, seed=0)
    epsilons = list(next(iter(robust.values())))
    lines = [
        "accuracy (%) at epsilon".ljust(24) + "".join(f"{epsilon:>8g}" for epsilon in epsilons)
    ]
    for name, row in robust.items():
        lines.append(
            name.ljust(24)
            + "".join(f"{row[epsilon]:>8.2%}".replace("%", " ") for epsilon in epsilons)
        )
    return "\n".join(lines)


def _beside(weights: str) -> str:
    """A sweep keeps NAME/data.safetensors and NAME/champion/model.safetensors."""
    if "://" not in weights:
        return str(Path(weights).absolute().parent.parent / "data.safetensors")
    return f"{weights.rsplit('/', 2)[0]}/data.safetensors"


def _named_by(weights: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights}: are not weights in safetensors: {error}") from None
    if "taylorglo" not in metadata:
        raise InputError(f"{weights}: do not name their network; give it with --model-name")
    name = str(json.loads(metadata["taylorglo"])["model"])
    if ":" in name and not name.startswith(
        "torchvision:"
    ):  # a file that was handed over must not choose what is run
        raise InputError(
            f"{weights}: belong to a network of somebody's own; if you trust it, --model-name {name}"
        )
    return name
