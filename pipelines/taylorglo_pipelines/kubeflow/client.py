"""The connection to Kubeflow Pipelines: its address, the credentials, and calls that are retried.

The generated API (kfp-server-api) is called instead of kfp's own client, whose methods print, wait
without a limit and read one page of a list only. Addresses, environment variables and files are
those of that client.
"""

import copy
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import kfp_server_api
from kfp_server_api import ApiException
from urllib3 import Retry
from urllib3.exceptions import HTTPError, LocationValueError, NameResolutionError, SSLError

from taylorglo.errors import (
    MAX_REASON,
    InputError,
    ServiceError,
    TaylorgloError,
    one_line,
    shortened,
)
from taylorglo.retries import retry

Answer = TypeVar("Answer")

_DELAYS = (1.0, 2.0, 4.0)  # seconds
_TIMEOUT = (10.0, 30.0)  # seconds to connect, and to answer
_TRANSIENT = (429, 500, 502, 503, 504)
_PAGE = 100
_NAMESPACE = "kubeflow"
_TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"
_LOGIN_FILE = "~/.config/kfp/context.json"
_NO_HOST = "no --host is given, nor KF_PIPELINES_ENDPOINT"


class MissingError(InputError):
    """The server has no such thing (404)."""


class _ExistsError(InputError):
    """The server has such a thing already (409): another process created it first."""


@dataclass(frozen=True)
class Access:
    """Where Kubeflow Pipelines is, and who asks; the environment fills in what is empty.

    Attributes:
        host: URL of Kubeflow Pipelines.
        namespace: of the runs; without a host, also of Kubeflow Pipelines.
        token_file: file with a bearer token.
        ca_cert: CA certificate that signed the server's certificate.
        pod_account: folder in which Kubernetes gives a pod its service account.
    """

    host: str = ""
    namespace: str = ""
    token_file: Path | None = None
    ca_cert: Path | None = None
    pod_account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")

    @property
    def url(self) -> str:
        """URL of Kubeflow Pipelines, given or in the environment, or empty."""
        return self.host or os.environ.get("KF_PIPELINES_ENDPOINT", "")


class Connection:
    """Kubeflow Pipelines; every call is bounded in time and retried a bounded number of times.

    Attributes:
        namespace: of the runs' pods.
        tenant: namespace to name in calls, or None if Kubeflow serves a single user.
    """

    def __init__(
        self, server: "_Server", access: Access, *, tenant: str | None, delays: Sequence[float]
    ) -> None:
        self.tenant = tenant
        self.namespace = tenant or access.namespace or _NAMESPACE
        self.experiments = kfp_server_api.ExperimentServiceApi(server.api)
        self.pipelines = kfp_server_api.PipelineServiceApi(server.api)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(server.api)
        self.runs = kfp_server_api.RunServiceApi(server.api)
        self.recurring_runs = kfp_server_api.RecurringRunServiceApi(server.api)
        self._server = server
        self._delays = delays
        self._ui = (os.environ.get("KF_PIPELINES_UI_ENDPOINT") or access.url).rstrip("/")

    @classmethod
    def open(
        cls,
        access: Access,
        *,
        delays: Sequence[float] = _DELAYS,
        timeout: tuple[float, float] = _TIMEOUT,
    ) -> "Connection":
        """Connect, and ask the server whether it serves several users.

        Args:
            access: where the server is, and who asks.
            delays: seconds between one try of a call and the next.
            timeout: seconds to connect, and to answer.

        Raises:
            InputError: the address or the credentials are wrong.
            ServiceError: the server still cannot be reached, or fails, after the last try.
        """
        api = kfp_server_api.ApiClient(_configuration(access), **_login())
        server = _Server(api, timeout)
        health = kfp_server_api.HealthzServiceApi(api).healthz_service_get_healthz
        multi_user = retry(lambda: server.call(health), delays, retryable=_is_transient).multi_user
        tenant = _tenant(access) if multi_user else None
        return cls(server, access, tenant=tenant, delays=delays)

    def with_delays(self, delays: Sequence[float]) -> "Connection":
        """Return this connection with other delays, in seconds, between the tries of a call."""
        connection = copy.copy(self)
        connection._delays = delays
        return connection

    def link(self, page: str) -> str:
        """Return the address of a page of the user interface."""
        if self._ui:
            return f"{self._ui}/#/{page}"
        forward = f"kubectl port-forward -n {self.namespace} svc/ml-pipeline-ui 8080:80"
        return f"http://localhost:8080/#/{page} (after {forward})"

    def call(self, method: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
        """Call a method that may be called twice.

        Raises:
            InputError: the server refuses; MissingError: it has no such thing.
            ServiceError: the server still cannot be reached, or fails, after the last try.
        """
        return retry(
            lambda: self._call_once(method, *args, **kwargs), self._delays, retryable=_is_transient
        )

    def create(
        self,
        find: Callable[[], Answer | None],
        method: Callable[..., Answer],
        *args: Any,
        **kwargs: Any,
    ) -> Answer:
        """Create a thing once, although the method may be called more than once.

        Args:
            find: looks for the thing before every try but the first: the answer to a try may have
                been lost, or another process may have created the thing.
            method: creates the thing, with the arguments that follow.

        Raises:
            InputError: the server refuses.
            ServiceError: the server still cannot be reached, or fails, after the last try.
        """
        tries = itertools.count(1)

        def find_or_create() -> Answer:
            thing = find() if next(tries) > 1 else None
            return self._call_once(method, *args, **kwargs) if thing is None else thing

        return retry(
            find_or_create,
            self._delays,
            retryable=lambda error: _is_transient(error) or isinstance(error, _ExistsError),
        )

    def pages(self, method: Callable[..., Any], items: str, **kwargs: Any) -> Iterator[Any]:
        """Yield all items of a list, page after page.

        Args:
            method: lists a page.
            items: name of the field of the answer that has the items.
            kwargs: arguments of the method.
        """
        token = ""
        while True:
            page = self.call(method, page_token=token, page_size=_PAGE, **kwargs)
            listed = getattr(page, items) or ()
            if None in listed:
                raise self._server.foreign()
            yield from listed
            token = page.next_page_token
            if not token:
                return

    def _call_once(self, method: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
        answer = self._server.call(method, *args, **kwargs)
        self._server.accepted = True
        return answer


class _Server:
    """The server, and one try of a call to it, whose errors are lines that a user understands.

    Attributes:
        accepted: whether the server has accepted the credentials, which it need not look at when
            it is asked for its health.
    """

    def __init__(self, api: Any, timeout: tuple[float, float]) -> None:
        self.api = api
        self.accepted = False
        self._timeout = timeout
        self._name = f"Kubeflow Pipelines at {api.configuration.host}"

    def call(self, method: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
        """Call a method of the generated API once.

        Raises:
            InputError: no further try can help.
            ServiceError: the server cannot be reached, or fails.
        """
        try:
            answer = method(*args, _request_timeout=self._timeout, **kwargs)
        except TaylorgloError:
            # The token could not be read.
            raise
        except ApiException as error:
            if 300 <= (error.status or 0) < 400:
                raise self._redirect(error) from None
            raise self._refusal(error.status, error.body or error.reason) from None
        except HTTPError as error:
            raise self._failure(error) from None
        except (ValueError, AttributeError, TypeError, LookupError):
            # Not chained: the error may quote a malformed header with the token in it.
            raise self.foreign() from None
        if "json" not in (self.api.last_response.getheader("content-type") or ""):
            # The generated client makes an empty answer of a page for people.
            raise InputError(
                f"{self._name}: answers with a web page; the address is wrong, or a login is "
                "needed (--token-file)"
            )
        # The generated client makes an empty answer of what is no object, too.
        if not self.api.last_response.data.lstrip().startswith("{"):
            raise self.foreign()
        return answer

    def foreign(self) -> ServiceError:
        """Return the error for an answer that Kubeflow Pipelines does not give."""
        return ServiceError(
            f"{self._name}: its answer is not one of Kubeflow Pipelines; is the address right?"
        )

    def _redirect(self, error: ApiException) -> InputError:
        """Return the error for an answer that sends the caller elsewhere, which nobody follows."""
        here = self.api.configuration.host
        location = urlsplit(urljoin(here, (error.headers or {}).get("location") or ""))
        # Only the part that names the server: the rest may have secrets in it.
        there = f"{location.scheme}://{location.netloc.rpartition('@')[2]}"
        is_secured = (urlsplit(here).scheme, location.scheme) == ("http", "https")
        if is_secured and urlsplit(here).hostname == location.hostname:
            return InputError(
                f"{self._name}: redirects to {there} ({error.status}); give an address of https, "
                "and if a login is needed, --token-file"
            )
        return InputError(
            f"{self._name}: redirects to {there} ({error.status}); a login is needed "
            "(--token-file), or the address is wrong"
        )

    def _refusal(self, status: int, body: str | None) -> InputError | ServiceError:
        """Return the error for an answer that is not 2xx."""
        reason = self._reason(body)
        detail = f"({status}: {reason})" if reason else f"({status})"
        if status == 401 and self.accepted:
            return InputError(f"{self._name}: the token has expired {detail}")
        if status == 401:
            cure = "give a good token with --token-file"
            return InputError(f"{self._name}: unauthorised; {cure} {detail}")
        if status == 403:
            return InputError(f"{self._name}: forbidden {detail}")
        if status == 404:
            return MissingError(f"{self._name}: not found {detail}")
        if status == 409:
            return _ExistsError(f"{self._name}: is there already {detail}")
        kind = ServiceError if status in _TRANSIENT else InputError
        return kind(f"{self._name}: {reason or 'failed'} ({status})")

    def _reason(self, body: str | None) -> str:
        """Return the message of an answer in one line, without the token that was sent."""
        try:
            content = json.loads(body or "")
        except ValueError:
            content = body or ""
        if isinstance(content, dict):
            content = content.get("message") or content.get("error") or ""
        text = str(content)
        if text.lstrip().startswith("<"):
            # A proxy answers with a page for people.
            return ""
        for secret in filter(None, self.api.configuration.api_key.values()):
            text = text.replace(secret.removeprefix("Bearer "), "...")
        return shortened(text)

    def _failure(self, error: HTTPError) -> InputError | ServiceError:
        """Return the error for a call that got no answer."""
        cause = getattr(error, "reason", None) or error
        text = str(cause)
        if isinstance(cause, SSLError):
            reason = text.partition("] ")[2].partition(" (_ssl")[0] or text
            # A connection that worked may also break off in TLS.
            kind = ServiceError if self.accepted else InputError
            cure = "a certificate authority of your own is given with --ca-cert"
            return kind(f"{self._name}: TLS: {reason}; {cure}")
        if isinstance(cause, LocationValueError):
            return InputError(f"{self._name}: the address is malformed")
        if isinstance(cause, NameResolutionError):
            return ServiceError(f"{self._name}: there is no host of this name")
        reason = re.sub(r"^\[Errno \d+\] ", "", text.rpartition(": ")[2]) or type(cause).__name__
        return ServiceError(f"{self._name}: cannot be reached: {reason[:MAX_REASON]}")


def _is_transient(error: Exception) -> bool:
    return isinstance(error, ServiceError)


def _configuration(access: Access) -> Any:
    """Return the generated client's configuration: address, credentials and certificates.

    Raises:
        InputError: the address or the credentials are wrong.
    """
    namespace = access.namespace or _NAMESPACE
    host = access.url
    if host:
        _check_url(host)
    elif os.environ.get("KUBERNETES_SERVICE_HOST") and (access.pod_account / "token").exists():
        host = f"http://ml-pipeline.{namespace}.svc.cluster.local:8888"
    if host:
        configuration = kfp_server_api.Configuration(host=host.rstrip("/"))
        _add_token(configuration, access)
    else:
        configuration = _through_kubernetes(access, namespace)
    if access.ca_cert:
        if not access.ca_cert.is_file():
            raise InputError(f"--ca-cert {access.ca_cert}: there is no such file")
        configuration.ssl_ca_cert = str(access.ca_cert)
    # Calls are retried here; urllib3 would multiply the tries. It would also follow a redirect to a
    # page to log in on.
    configuration.retries = Retry(0, raise_on_redirect=False)
    return configuration


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        # Raises if the port is not a number up to 65535.
        _ = parts.port
    except ValueError:
        raise InputError(
            "--host: is malformed; should be like https://kubeflow.example.org"
        ) from None
    if parts.username or parts.password:
        raise InputError(
            "--host: should have no user or password in it; a token is given with --token-file"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(
            f"--host {url}: should be like https://kubeflow.example.org, or that with a path"
        )


def _add_token(configuration: Any, access: Access) -> None:
    """Let the generated client send the token of a file, which is read anew for every call."""
    named = access.token_file or os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")
    path = Path(named or _TOKEN_FILE)
    if not named and not path.exists():
        return

    def read_token(target: Any) -> None:
        target.api_key["authorization"] = _token(path)

    configuration.api_key_prefix["authorization"] = "Bearer"
    configuration.refresh_api_key_hook = read_token
    read_token(configuration)


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"{path}: the token cannot be read: {reason}") from None
    if not token or not token.isascii() or len(token.split()) != 1:
        raise InputError(f"{path}: should hold one token, and nothing else")
    return token


def _through_kubernetes(access: Access, namespace: str) -> Any:
    """Return the configuration that reaches Kubeflow through the kubeconfig's cluster.

    The Kubernetes API server passes calls on to the Service, with the kubeconfig's credentials.
    """
    # Takes most of a second to import, and is needed with a kubeconfig only.
    import kubernetes

    if access.token_file:
        raise InputError(f"{_NO_HOST}, and --token-file is only for one of these")
    cluster = kubernetes.client.Configuration()
    try:
        kubernetes.config.load_kube_config(client_configuration=cluster)
    except Exception as error:
        # The file may be wrong in many ways, and so may the command in it that makes the token.
        reason = one_line(error).rstrip(".")
        raise InputError(f"{_NO_HOST}, and there is no good kubeconfig: {reason}") from None
    service = f"api/v1/namespaces/{namespace}/services/ml-pipeline:http/proxy"
    configuration = kfp_server_api.Configuration(host=f"{cluster.host.rstrip('/')}/{service}")
    for name in ("ssl_ca_cert", "cert_file", "key_file", "verify_ssl"):
        setattr(configuration, name, getattr(cluster, name))

    def renew_token(target: Any) -> None:
        try:
            token = cluster.get_api_key_with_prefix("authorization")
        except Exception as error:
            raise InputError(
                f"the kubeconfig's token cannot be renewed: {one_line(error)}"
            ) from None
        target.api_key["authorization"] = token

    if "authorization" in cluster.api_key:
        configuration.refresh_api_key_hook = renew_token
        renew_token(configuration)
    return configuration


def _login() -> dict[str, str | None]:
    """Return the cookie and the header of a login that kfp's client keeps in a file.

    Raises:
        InputError: the file is none of kfp's client.
    """
    path = os.path.expanduser(_LOGIN_FILE)
    if not os.path.exists(path):
        return {}
    try:
        context = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        context = None
    if not isinstance(context, dict) or "namespace" not in context:
        raise InputError(f"{path}: is not what kfp's client writes; remove it")
    prefix = "client_authentication_"
    names = ("cookie", "header_name", "header_value")
    return {name: context.get(prefix + name) for name in names}


def _tenant(access: Access) -> str:
    """Return the namespace of the user, of whom Kubeflow has several."""
    if access.namespace:
        return access.namespace
    try:
        return (access.pod_account / "namespace").read_text().strip()
    except OSError:
        raise InputError(
            "this Kubeflow has several users; say with --namespace whose runs these are"
        ) from None
