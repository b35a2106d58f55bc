"""A found loss, wherever it is kept: a file, an object store, MLflow's model registry."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from taylorglo.errors import InputError

if TYPE_CHECKING:
    from taylorglo.loss.functions import TaylorLoss


def load_loss(source: str | os.PathLike[str]) -> "TaylorLoss":
    """Load a loss that a sweep found, as an ``nn.Module`` to train with.

    Args:
        source: a saved loss (``champion.json``), by its path or as ``s3://BUCKET/KEY``; or a version in MLflow's model
            registry, ``models:/NAME@champion`` or ``models:/NAME/VERSION``. MLflow is the one that MLFLOW_TRACKING_URI
            or ``mlflow.set_tracking_uri`` names.

    Raises:
        InputError: there is no saved loss there.
        ServiceError: MLflow or the object store still fails after a few tries.
    """
    from taylorglo.loss.functions import TaylorLoss
    from taylorglo.services.storage import fetch

    with tempfile.TemporaryDirectory(prefix="taylorglo-") as folder:
        if not str(source).startswith("models:/"):
            return TaylorLoss.load(fetch(str(source), Path(folder)))
        return TaylorLoss.load(_from_registry(str(source), Path(folder)))


def _from_registry(uri: str, folder: Path) -> Path:
    import mlflow

    from taylorglo.services.mlflow import Connection

    if not (os.environ.get("MLFLOW_TRACKING_URI") or mlflow.is_tracking_uri_set()):  # type: ignore[no-untyped-call]
        raise InputError(
            f"{uri}: MLFLOW_TRACKING_URI is not set; it should name the MLflow that has this model"
        )
    return Connection(mlflow.get_tracking_uri()).download_loss(uri, folder)
