"""A found loss, loaded from the zoo, a file, an object store, or MLflow's model registry.

The zoo is the losses that come with the package, in the folder ``zoo``. They and a local file need
PyTorch alone.
"""

import os
import tempfile
from pathlib import Path
from typing import Unpack

from taylorglo.errors import InputError, quoted
from taylorglo.extras import missing
from taylorglo.loss.conventions import Options
from taylorglo.loss.functions import TaylorLoss
from taylorglo.services.storage import fetch

ZOO = "zoo:"  # what the name of a loss of the zoo begins with
_ZOO_FOLDER = Path(__file__).parents[1] / "zoo"


def load_loss(source: str | os.PathLike[str], **options: Unpack[Options]) -> TaylorLoss:
    """Load a loss that a sweep found, as an ``nn.Module`` to train with.

    Args:
        source: a loss of the zoo, ``zoo:NAME``; a saved loss (``loss.json``), by its path or as
            ``s3://BUCKET/KEY``; or a version in MLflow's model registry, ``models:/NAME@champion``
            or ``models:/NAME/VERSION``. MLFLOW_TRACKING_URI or ``mlflow.set_tracking_uri`` names
            the MLflow.
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
            return TaylorLoss.load(_from_registry(str(source), folder), **options)
        return TaylorLoss.load(fetch(str(source), folder), **options)


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
        known = ", ".join(f"{ZOO}{other}" for other in names)
        raise InputError(f"unknown loss {quoted(source)}; the zoo has {known}")
    return _ZOO_FOLDER / f"{name}.json"


def _from_registry(uri: str, folder: Path) -> Path:
    """Copy the file of a model version into a folder, and return its path."""
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
    return Connection(mlflow.get_tracking_uri()).download_loss(uri, folder)
