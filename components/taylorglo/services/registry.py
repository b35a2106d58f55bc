"""A found loss, loaded from a file, an object store, or MLflow's model registry.

A local file needs no package of the extra ``pipeline``.
"""

import os
import tempfile
from pathlib import Path

from taylorglo.errors import InputError
from taylorglo.extras import missing
from taylorglo.loss.functions import TaylorLoss
from taylorglo.services.storage import fetch


def load_loss(source: str | os.PathLike[str]) -> TaylorLoss:
    """Load a loss that a sweep found, as an ``nn.Module`` to train with.

    Args:
        source: a saved loss (``loss.json``), by its path or as ``s3://BUCKET/KEY``; or a version in
            MLflow's model registry, ``models:/NAME@champion`` or ``models:/NAME/VERSION``.
            MLFLOW_TRACKING_URI or ``mlflow.set_tracking_uri`` names the MLflow.

    Raises:
        InputError: there is no saved loss at the source, or the package that the source needs is
            not installed.
        ServiceError: MLflow or the object store still fails after a few tries.
    """
    with tempfile.TemporaryDirectory(prefix="taylorglo-") as name:
        folder = Path(name)
        if str(source).startswith("models:/"):
            return TaylorLoss.load(_from_registry(str(source), folder))
        return TaylorLoss.load(fetch(str(source), folder))


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
