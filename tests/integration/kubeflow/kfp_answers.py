"""The generated client of Kubeflow Pipelines, which reads answers faster in a large process."""

from functools import partial
from typing import Any

import kfp_server_api


class Client(kfp_server_api.ApiClient):  # type: ignore[misc]  # it has no types
    """The generated client, with one configuration for all objects of an answer.

    The generated code makes a configuration for each object. Each of them sets up loggers anew, and
    with that clears what all loggers of the process remember. In a process of pytest, which has
    imported everything, this took nine tenths of the time of these tests.
    """

    def _ApiClient__deserialize_model(self, data: Any, klass: Any) -> Any:  # noqa: N802
        model: Any = partial(klass, local_vars_configuration=self.configuration)
        model.openapi_types, model.attribute_map = klass.openapi_types, klass.attribute_map
        return super()._ApiClient__deserialize_model(data, model)
