"""Reading the Kubernetes API, as far as this process may."""

import json
from collections.abc import Mapping
from typing import Any

_TIMEOUT = (3, 10)  # seconds to connect to Kubernetes, and for its answer
_JSON = "application/json"
# Without the specification and the state, which take up to a mebibyte for each object.
_METADATA_ONLY = f"{_JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{_JSON}"


class GoneError(Exception):
    """Kubernetes has no such object."""


class Reader:
    """The Kubernetes API.

    It is asked with the service account of the pod that this process runs in, or else with the
    kubeconfig. What cannot be read, for whatever reason, is None.
    """

    def __init__(self) -> None:
        self._api = api_client()

    def get(self, path: str, query: Mapping[str, Any] | None = None, accept: str = _JSON) -> Any:
        """Return an answer, or None if it cannot be had.

        Raises:
            GoneError: there is no such object.
        """
        return self._answer("object", path, query, accept)

    def text(self, path: str, query: Mapping[str, Any] | None = None) -> str | None:
        """Return an answer that is text, such as a log; otherwise as :meth:`get`."""
        answer: str | None = self._answer("str", path, query, "*/*")
        return answer

    def _answer(self, kind: str, path: str, query: Mapping[str, Any] | None, accept: str) -> Any:
        if self._api is None:
            return None
        try:
            return self._api.call_api(
                path,
                "GET",
                query_params=[(key, value) for key, value in (query or {}).items() if value],
                header_params={"Accept": accept},
                response_type=kind,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT,
            )
        except Exception as error:
            # It is forbidden, away or no Kubernetes API, or the login's own command fails.
            if getattr(error, "status", None) == 404 and _is_json(getattr(error, "body", "")):
                raise GoneError from None
            return None


class Objects:
    """The objects of a namespace; a resource is like ``argoproj.io/v1alpha1/workflows``."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._reader = Reader()

    def metadata(self, resource: str, selector: str = "") -> list[dict[str, Any]] | None:
        """Return the metadata of the objects of a resource, or None if they cannot be read.

        Args:
            resource: group, version and plural.
            selector: of labels, or empty for all objects.
        """
        answer = self._get(self._path(resource), {"labelSelector": selector}, _METADATA_ONLY)
        return None if answer is None else [item["metadata"] for item in answer.get("items") or ()]

    def read(self, resource: str, name: str) -> dict[str, Any] | None:
        """Return an object, or None if it cannot be read."""
        return self._get(f"{self._path(resource)}/{name}", {}, _JSON)

    def _path(self, resource: str) -> str:
        group_version, _, plural = resource.rpartition("/")
        return f"/apis/{group_version}/namespaces/{self._namespace}/{plural}"

    def _get(self, path: str, query: Mapping[str, Any], accept: str) -> dict[str, Any] | None:
        try:
            answer = self._reader.get(path, query, accept)
        except GoneError:
            return None
        return answer if isinstance(answer, dict) else None


def api_client() -> Any:
    """Return a client of the Kubernetes API, or None if there are no good credentials."""
    # Takes most of a second to import.
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        try:
            config.load_incluster_config(configuration)
        except config.ConfigException:
            config.load_kube_config(client_configuration=configuration)
    except Exception:
        # There is no kubeconfig, or it is wrong, in one of many ways.
        return None
    configuration.retries = False
    return client.ApiClient(configuration)


def _is_json(body: Any) -> bool:
    """Return whether an answer is about an object; that about a missing resource is plain text."""
    try:
        json.loads(body)
    except (TypeError, ValueError):
        return False
    return True
