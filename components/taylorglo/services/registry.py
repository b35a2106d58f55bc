"""A found loss or a trained network, from a file, an object store, or MLflow's model registry.

The zoo is the losses that come with the package, in the folder ``zoo``. They and a local file need
PyTorch alone.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from taylorglo.errors import InputError, meant, quoted
from taylorglo.extras import missing
from taylorglo.loss.conventions import Options
from taylorglo.loss.functions import TaylorLoss
from taylorglo.services import layout
from taylorglo.services.storage import fetch

if TYPE_CHECKING:
    from torch import nn

ZOO = "zoo:"  # what the name of a loss of the zoo begins with
_ZOO_FOLDER = Path(__file__).parents[1] / "zoo"


def load_loss(source: str | os.PathLike[str], **options: Unpack[Options]) -> TaylorLoss:
    """Load a loss that a sweep found, as an ``nn.Module`` to train with.

    Args:
        source: a loss of the zoo, ``zoo:NAME``; a champion's folder or the loss in it
            (``loss.json``), by its path or as ``s3://BUCKET/KEY``; or a version in MLflow's model
            registry, ``models:/NAME@champion`` or ``models:/NAME/VERSION``. MLFLOW_TRACKING_URI or
            ``mlflow.set_tracking_uri`` names the MLflow.
        **options: ``weight``, ``ignore_index``, ``reduction`` and ``label_smoothing``, as
            ``nn.CrossEntropyLoss`` has them.

    Raises:
        InputError: there is no saved loss at the source, an option is wrong, or the package that
            the source needs is not installed.
        ServiceError: MLflow or the object store still fails after a few tries.
    """
    if str(source).startswith(ZOO):
        return TaylorLoss.load(_in_zoo(str(source)), **options)
    with tempfile.TemporaryDirectory(prefix="taylorglo-") as name:
        folder = Path(name)
        if str(source).startswith("models:/"):
            path = _from_registry(str(source), layout.LOSS, folder)
            return TaylorLoss.load(path, **options)
        path = fetch(str(source), folder)
        return TaylorLoss.load(path / layout.LOSS if path.is_dir() else path, **options)


def load_network(source: str | os.PathLike[str], model: str | None = None) -> "nn.Module":
    """Load a network that a sweep trained with its champion, in evaluation mode, on the CPU.

    Args:
        source: a champion's folder or the weights in it (``model.safetensors``), by its path or as
            ``s3://BUCKET/KEY``; or a version in MLflow's model registry, ``models:/NAME@champion``
            or ``models:/NAME/VERSION``.
        model: name of the network, as in the settings. It is needed only for a network of
            somebody's own, ``package.module:factory``: a file must not choose the code that is run.

    Returns:
        From samples to logits (N, n). Images (N, C, H, W) are in [0, 1], or as they were read if
        they have no pixels. Features (N, F) of tensors are as they were read. The network
        normalises all of these itself. Features of a table are as the prepared data set has them,
        standardised and one-hot: the network does not encode columns.

    Raises:
        InputError: there are no such weights, they are damaged, or they do not fit the network.
        ServiceError: MLflow or the object store still fails after a few tries.
    """
    from taylorglo.networks.weights import origin_of, restored, trusted_name

    place = str(source)
    with tempfile.TemporaryDirectory(prefix="taylorglo-") as name:
        if place.startswith("models:/"):
            path = _from_registry(place, layout.NETWORK, Path(name))
        else:
            path = fetch(place, Path(name))
            path = path / layout.NETWORK if path.is_dir() else path
        origin = origin_of(path)
        weights = path.read_bytes()
    chosen = model or trusted_name(origin, place, "model=")
    if origin.image_shape is None or origin.classes is None:
        raise InputError(
            f"{place}: do not say what samples and how many classes they are for; they should be "
            f"weights that a sweep of version 0.2 or later wrote, {layout.NETWORK}"
        )
    try:
        return restored(weights, chosen, origin.image_shape, origin.classes)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{place}: do not fit model {chosen!r}: {error}") from None


def zoo() -> list[str]:
    """Return the names of the losses in the zoo, in alphabetical order."""
    return sorted(path.stem for path in _ZOO_FOLDER.glob("*.json"))


def _in_zoo(source: str) -> Path:
    """Return the file of a loss of the zoo.

    Raises:
        InputError: there is no loss of this name.
    """
    name, names = source.removeprefix(ZOO), zoo()
    # The name may be any text, also a path that leads out of the folder.
    if name not in names:
        known = [f"{ZOO}{other}" for other in names]
        raise InputError(
            f"unknown loss {quoted(source)}; the zoo has {', '.join(known)}{meant(source, known)}"
        )
    return _ZOO_FOLDER / f"{name}.json"


def _from_registry(uri: str, file: str, folder: Path) -> Path:
    """Copy a file of a model version into a folder, and return its path."""
    # MLflow takes over a second to import, and only this source needs it.
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise missing(uri, error) from None
    from taylorglo.services.mlflow import Connection

    is_set: bool = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    if not (os.environ.get("MLFLOW_TRACKING_URI") or is_set):
        raise InputError(
            f"{uri}: MLFLOW_TRACKING_URI is not set; it should name the MLflow that has this model"
        )
    return Connection(mlflow.get_tracking_uri()).download(uri, file, folder)
