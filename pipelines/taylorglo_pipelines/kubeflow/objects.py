"""Kubernetes objects of a namespace, as far as this process may read them."""

from typing import Any

_TIMEOUT = (3, 10)  # seconds to connect to Kubernetes, and for its answer
# Without the specification and the state, which take up to a mebibyte for each object.
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


class Objects:
    """The objects of a namespace; a resource is like ``argoproj.io/v1alpha1/workflows``.

    The Kubernetes API is asked with the service account of the pod that this process runs in, or
    else with the kubeconfig. What cannot be read, for whatever reason, is None.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._api = api_client()

    def metadata(self, resource: str, selector: str = "") -> list[dict[str, Any]] | None:
        """Return the metadata of the objects of a resource.

        Args:
            resource: group, version and plural.
            selector: of labels, or empty for all objects.
        """
        query = [("labelSelector", selector)] if selector else []
        answer = self._get(self._path(resource), query, _METADATA_ONLY)
        return None if answer is None else [item["metadata"] for item in answer.get("items") or ()]

    def read(self, resource: str, name: str) -> dict[str, Any] | None:
        """Return an object."""
        return self._get(f"{self._path(resource)}/{name}", [], "application/json")

    def _path(self, resource: str) -> str:
        group_version, _, plural = resource.rpartition("/")
        return f"/apis/{group_version}/namespaces/{self._namespace}/{plural}"

    def _get(self, path: str, query: list[tuple[str, str]], accept: str) -> dict[str, Any] | None:
        if self._api is None:
            return None
        try:
            answer: dict[str, Any] = self._api.call_api(
                path,
                "GET",
                query_params=query,
                header_params={"Accept": accept},
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT,
            )
        except Exception:
            # It is forbidden, away or no Kubernetes API, or the login's own command fails.
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
