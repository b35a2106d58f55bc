"""The models of a parent run in MLflow: the champion's network and its loss, and their versions.

A network is logged as an exported program of PyTorch (``.pt2``), which has no pickled objects.
``mlflow.pytorch.load_model`` and pyfunc load it without this package. They take programs of other
people, too, which may have some, unless ``MLFLOW_ALLOW_PICKLE_DESERIALIZATION`` is ``false``.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taylorglo.errors import InputError, one_line
from taylorglo.services import layout
from taylorglo.services.mlflow import Connection

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from torch import nn

# The names of the logged models of a run.
NETWORK = "network"
LOSS = "loss"

_DIGEST = "taylorglo.digest"
# The tag from which MLflow's table of logged models knows the versions.
_VERSIONS = "mlflow.modelVersions"
# The function of MLflow that compares requirements with what is installed.
_WARN = "warn_dependency_requirement_mismatches"
# An example has several samples, because PyTorch would take a single one for the only batch size.
_EXAMPLES = 2


class Models:
    """The logged models of a parent run, and the versions that are registered of them."""

    def __init__(self, connection: Connection, experiment_id: str, run_id: str) -> None:
        """Keep the connection and the ids of an existing run."""
        self._connection = connection
        self._client = connection.client
        self._experiment_id = experiment_id
        self._run_id = run_id

    def log(self, name: str, folder: Path, *, digest: str, tags: Mapping[str, str]) -> str:
        """Log the files of a folder as a model of the run, and return the id of the model.

        A model of the run with this name and digest is kept; one with another digest is replaced.

        Args:
            name: ``NETWORK`` or ``LOSS``.
            folder: has the file ``MLmodel``.
            digest: of all that decides the model.
            tags: of the model.

        Raises:
            ServiceError: the server, the database or the artifact store fails.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        call, client = self._connection.call, self._client
        earlier = self._all(name)
        for model in earlier:
            if model.tags.get(_DIGEST) == digest and model.status == "READY":
                return str(model.model_id)
        model = call(
            client.create_logged_model,
            self._experiment_id,
            name=name,
            source_run_id=self._run_id,
            tags={**tags, _DIGEST: digest},
            model_type=f"taylorglo {name}",
        )
        described = Model.load(str(folder))
        described.model_id, described.run_id = model.model_id, self._run_id
        described.artifact_path = model.artifact_location
        described.save(str(folder / "MLmodel"))
        self._connection.upload_model(model.model_id, folder)
        call(client.finalize_logged_model, model.model_id, "READY")
        output = LoggedModelOutput(model.model_id, step=0)
        call(client.log_outputs, self._run_id, [output])
        # The earlier ones are deleted at the end, so that there is always one.
        for former in earlier:
            call(client.delete_logged_model, former.model_id)
        return str(model.model_id)

    def log_loss(self, files: Mapping[str, Path], *, digest: str, tags: Mapping[str, str]) -> str:
        """Log the files of a loss as a model of the run; arguments and errors as for :meth:`log`.

        Args:
            files: local file by its name in the model.
            digest: of the loss.
            tags: of the model.
        """
        from mlflow.models import Model

        with tempfile.TemporaryDirectory(prefix="taylorglo-") as name:
            folder = Path(name)
            for file, source in files.items():
                shutil.copyfile(source, folder / file)
            Model().save(str(folder / "MLmodel"))
            return self.log(LOSS, folder, digest=digest, tags=tags)

    def find(self, name: str) -> str | None:
        """Return the id of the model of the run with this name, or None if there is none."""
        ready = [model for model in self._all(name) if model.status == "READY"]
        return str(ready[0].model_id) if ready else None

    def register(
        self, name: str, model_id: str, *, tags: Mapping[str, str], description: str
    ) -> str:
        """Register a logged model as a version, and return the version.

        A version of the same files, or with the same tags, is the version already.

        Args:
            name: name of the registered model.
            model_id: id of the logged model.
            tags: of the version, which say what it is.
            description: Markdown for its page.
        """
        call, client = self._connection.call, self._client
        self.create(name)
        model = call(client.get_logged_model, model_id)
        # By the source: a server does not tell the id of a version's model.
        for version in call(client.search_model_versions, f"name = '{name}'"):
            is_known = all(version.tags.get(tag) == value for tag, value in tags.items())
            if is_known or version.source == model.artifact_location:
                return str(version.version)
        return self.add_version(name, model_id, tags=tags, description=description)

    def add_version(
        self, name: str, model_id: str, *, tags: Mapping[str, str], description: str
    ) -> str:
        """Add a version to a registered model, and return it; arguments as for :meth:`register`."""
        call, client = self._connection.call, self._client
        # A registry in a file would look for ``models:/ID`` in the MLflow that the process names,
        # which may be another one. So the source is the place of the files.
        version = call(
            client.create_model_version,
            name,
            call(client.get_logged_model, model_id).artifact_location,
            self._run_id,
            tags=dict(tags),
            description=description,
            model_id=model_id,
        )
        known = json.dumps([{"name": name, "version": version.version}])
        call(client.set_logged_model_tags, model_id, {_VERSIONS: known})
        return str(version.version)

    def create(self, name: str) -> None:
        """Create a registered model, if there is none of this name."""
        call, client = self._connection.call, self._client
        try:
            call(client.create_registered_model, name)
        except InputError:
            # The model may exist already. If there is another reason, this call fails for it, too.
            call(client.get_registered_model, name)

    def delete(self) -> None:
        """Delete the logged models of the run."""
        for model in [*self._all(NETWORK), *self._all(LOSS)]:
            self._connection.call(self._client.delete_logged_model, model.model_id)

    def _all(self, name: str) -> "list[LoggedModel]":
        """Return the models of the run with this name, the newest first."""
        query = f"source_run_id = '{self._run_id}' AND name = '{name}'"
        found: Any = self._connection.call(
            self._client.search_logged_models, [self._experiment_id], query
        )
        return list(found)


def save_network(network: "nn.Module", weights: Path, folder: Path) -> None:
    """Write a network as a model of MLflow: an exported program with signature and example.

    The example is random samples, so that no data set leaves its place.

    Args:
        network: in evaluation mode, on the CPU.
        weights: its safetensors, which say what samples it takes, and are kept beside the program.
        folder: where to write; it does not exist yet.

    Raises:
        InputError: the weights do not say what they are for, or PyTorch cannot export the network,
            which may be any code of a user.
    """
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    from taylorglo.networks.weights import origin_of

    origin = origin_of(weights)
    if origin.image_shape is None or origin.classes is None:
        raise InputError("its weights do not say what samples and how many classes they are for")
    example = np.random.default_rng(0).random((_EXAMPLES, *origin.image_shape), dtype=np.float32)
    single = np.dtype("float32")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(single, (-1, *origin.image_shape))]),
        outputs=Schema([TensorSpec(single, (-1, origin.classes))]),
    )
    try:
        with _pytorch_of_mlflow() as pytorch:
            pytorch.save_model(
                network,
                str(folder),
                signature=signature,
                input_example=example,
                serialization_format="pt2",
                # Without them, MLflow would load the model in another process to find them.
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
            )
    except Exception as error:
        # PyTorch has many errors for what it cannot export, and any code of a user may raise.
        raise InputError(f"PyTorch cannot export it: {one_line(error)}") from None
    shutil.copyfile(weights, folder / layout.NETWORK)


@contextmanager
def _pytorch_of_mlflow() -> Iterator[Any]:
    """Yield MLflow's module for PyTorch without two things that take it seconds.

    It imports Lightning, if that is installed, for a feature that is not used here. It lists the
    files of all packages to compare requirements with what is installed, which ours are taken from.
    """
    from mlflow.utils import environment

    names, imported = vars(environment), "pytorch_lightning" in sys.modules
    warn = names.get(_WARN)
    names[_WARN] = lambda requirements: None
    # A module that is None cannot be imported.
    sys.modules.setdefault("pytorch_lightning", None)  # type: ignore[arg-type]
    try:
        import mlflow.pytorch

        yield mlflow.pytorch
    finally:
        names[_WARN] = warn
        if not imported:
            del sys.modules["pytorch_lightning"]
