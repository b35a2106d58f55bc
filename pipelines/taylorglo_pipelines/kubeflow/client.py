"""The way to Kubeflow Pipelines: where it is, who asks, and calls that are tried again; upload a sweep and run it.

kfp's own client finds the server and the credentials. Its methods print, wait without end and see one page only, so
the generated API beneath it is what is called. It takes a second to import and is imported only to connect.
"""

import hashlib
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from taylorglo.errors import InputError, ServiceError
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.pipeline.compile import compile_sweep

_T = TypeVar("_T")

_TIMEOUT = (10, 30)  # seconds to connect and to answer
_RETRY_DELAYS: tuple[float, ...] = (1.0, 2.0, 4.0)  # seconds
_TRANSIENT = (429, 500, 502, 503, 504)
_PAGE = 100
_MAX_REASON = 300
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Access:
    """Where Kubeflow Pipelines is, and who asks; what is empty is looked for in the environment."""

    host: str = ""
    namespace: str = ""
    token_file: Path | None = None
    ca_cert: Path | None = None


class Connection:
    """Kubeflow Pipelines; every call is bounded in time and tried again a bounded number of times.

    Attributes:
        namespace: of the runs' pods.
        tenant: the namespace to name in calls: None where Kubeflow serves a single user.
        delays: seconds between one try and the next.
    """

    def __init__(self, access: Access) -> None:
        import kfp_server_api

        self._answered = False
        self._api: Any = None
        self.name, self.delays = "Kubeflow Pipelines", _RETRY_DELAYS
        host = access.host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
        if host:
            _check_host(host)
        elif os.environ.get("KUBERNETES_SERVICE_HOST") and (_SERVICE_ACCOUNT / "token").exists():
            host = f"http://ml-pipeline.{access.namespace or 'kubeflow'}.svc.cluster.local:8888"
        else:
            _check_kubeconfig(access)
        self._api = _api_client(host, access)
        self.name = f"Kubeflow Pipelines at {self._api.configuration.host}"
        ui = (
            os.environ.get("KF_PIPELINES_UI_ENDPOINT")
            or access.host
            or os.environ.get("KF_PIPELINES_ENDPOINT")
        )
        self._ui = (ui or "http://localhost:8080").rstrip("/")
        self.experiments = kfp_server_api.ExperimentServiceApi(self._api)
        self.pipelines = kfp_server_api.PipelineServiceApi(self._api)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(self._api)
        self.runs = kfp_server_api.RunServiceApi(self._api)
        self.recurring_runs = kfp_server_api.RecurringRunServiceApi(self._api)
        health = self.call(kfp_server_api.HealthzServiceApi(self._api).healthz_service_get_healthz)
        self._answered = False  # that one anybody may ask
        self.tenant = _tenant(access) if health.multi_user else None
        self.namespace = self.tenant or access.namespace or "kubeflow"
        self.hint = (
            ""
            if ui
            else f" (after kubectl port-forward -n {self.namespace} svc/ml-pipeline-ui 8080:80)"
        )

    def link(self, page: str) -> str:
        """The address of a page of the user interface."""
        return f"{self._ui}/#/{page}{self.hint}"

    def call(self, method: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Call a method that may be called twice.

        Raises:
            InputError: the server refuses, or there is no such thing.
            ServiceError: it still cannot be reached, or fails, after the last try.
        """
        for delay in self.delays:
            try:
                return self._once(method, *args, **kwargs)
            except ServiceError:
                time.sleep(delay)
        return self._once(method, *args, **kwargs)

    def create(
        self, find: Callable[[], _T | None], method: Callable[..., _T], *args: Any, **kwargs: Any
    ) -> _T:
        """Create a thing once: after a try whose outcome is unknown, or that came second, it is looked for first."""
        for delay in self.delays:
            try:
                return self._once(method, *args, **kwargs)
            except (ServiceError, _ExistsError):
                time.sleep(delay)
                if (found := find()) is not None:
                    return found
        return self._once(method, *args, **kwargs)

    def pages(self, method: Callable[..., Any], items: str, **kwargs: Any) -> Iterator[Any]:
        """All that a listing lists, page after page; ``items``: their field in its answer."""
        token = ""
        while True:
            page = self.call(method, page_token=token, page_size=_PAGE, **kwargs)
            yield from getattr(page, items) or ()
            token = page.next_page_token
            if not token:
                return

    def _once(self, method: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = method(*args, _request_timeout=_TIMEOUT, **kwargs)
        except ApiException as error:
            raise self._refusal(error.status, error.body or error.reason) from None
        except HTTPError as error:
            raise self._failure(error) from None
        except (
            ValueError,
            AttributeError,
        ):  # not chained: it quotes a malformed header, with the token in it
            raise ServiceError(
                f"{self.name}: its answer is not one of Kubeflow Pipelines"
            ) from None
        except OSError as error:  # the token's file, which is read anew for every call
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None
        if "json" not in (self._api.last_response.getheader("content-type") or ""):
            # A page for people, such as the one to log in on: the generated client makes an empty
            # answer of it.
            raise InputError(
                f"{self.name}: answers with a web page; the address is wrong, or a login is needed (--token-file)"
            )
        self._answered = True
        return answer

    def _refusal(self, status: int, body: str | None) -> InputError | ServiceError:
        reason = self._reason(body)
        if status == 401:
            what = (
                "the token has expired"
                if self._answered
                else "unauthorised; give a good token with --token-file"
            )
            return InputError(f"{self.name}: {what} (401{reason and ': '}{reason})")
        if status == 403:
            return InputError(f"{self.name}: forbidden (403{reason and ': '}{reason})")
        if status == 404:
            return MissingError(f"{self.name}: not found (404{reason and ': '}{reason})")
        if status == 409:
            return _ExistsError(f"{self.name}: is there already (409{reason and ': '}{reason})")
        kind = ServiceError if status in _TRANSIENT else InputError
        return kind(f"{self.name}: {reason or 'failed'} ({status})")

    def _reason(self, body: str | None) -> str:
        """The message of an answer, in one line, without the token that was sent."""
        try:
            content = json.loads(body or "")
        except ValueError:
            content = body or ""
        if isinstance(content, dict):
            content = content.get("message") or content.get("error") or ""
        line = " ".join(str(content).split())
        if line.startswith("<"):  # a proxy's page
            return ""
        keys = self._api.configuration.api_key.values() if self._api else ()
        for secret in filter(None, keys):
            line = line.replace(secret.removeprefix("Bearer "), "...")
        return line[:_MAX_REASON]

    def _failure(self, error: Exception) -> InputError | ServiceError:
        from urllib3.exceptions import LocationValueError, NameResolutionError, SSLError

        cause = getattr(error, "reason", None) or error
        if isinstance(cause, SSLError):
            reason = str(cause).partition("] ")[2].partition(" (_ssl")[0] or str(cause)
            kind = (
                ServiceError if self._answered else InputError
            )  # a connection may also break off in TLS
            return kind(
                f"{self.name}: TLS: {reason}; a certificate authority of your own is given with --ca-cert"
            )
        if isinstance(cause, LocationValueError):
            return InputError(f"{self.name}: the address is malformed")
        if isinstance(cause, NameResolutionError):
            return ServiceError(f"{self.name}: there is no host of this name")
        reason = (
            re.sub(r"^\[Errno \d+\] ", "", str(cause).rpartition(": ")[2]) or type(cause).__name__
        )
        return ServiceError(f"{self.name}: cannot be reached: {reason[:_MAX_REASON]}")


class _ExistsError(InputError):
    """409: somebody else was first."""


class MissingError(InputError):
    """404: there is no such thing."""


def submit(config: Config, connection: Connection, experiment: str) -> Any:
    """Upload the sweep, if it is not there yet, and start a run of it; returns the run."""
    import kfp_server_api

    version = upload(config, connection)
    experiment_id = experiment_of(connection, experiment_name(experiment, config.name))
    return start_run(
        connection,
        config.name,
        kfp_server_api.V2beta1Run(
            experiment_id=experiment_id,
            pipeline_version_reference=version,
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters={}),
            service_account=config.pipeline.service_account or None,
        ),
    )


def experiment_name(given: str, default: str) -> str:
    """The experiment to use: the variables are those of kfp's own client."""
    overriding = os.environ.get("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME")
    return overriding or given or os.environ.get("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME") or default


def start_run(connection: Connection, name: str, run: Any) -> Any:
    """Create a run, named after the sweep and the time; returns it as Kubeflow has it."""
    run.display_name = (
        f"{name} {datetime.now(UTC).isoformat(' ', 'milliseconds').removesuffix('+00:00')}"
    )

    def find() -> Any:
        listing = connection.runs.run_service_list_runs
        wanted = {"experiment_id": run.experiment_id, "filter": named(run.display_name)}
        return next(connection.pages(listing, "runs", **wanted), None)

    return connection.create(find, connection.runs.run_service_create_run, run)


def upload(config: Config, connection: Connection) -> Any:
    """The sweep as a version of its pipeline, uploaded under the hash of its content or found there: a reference."""
    import kfp_server_api

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_sweep(config, path)
        name = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        pipeline = kfp_server_api.V2beta1Pipeline(
            name=f"taylorglo-{config.name}",
            display_name=f"taylorglo-{config.name}",
            namespace=connection.tenant,
        )
        pipeline_id = (
            _pipeline(connection, pipeline.name)
            or connection.create(
                lambda: _pipeline(connection, pipeline.name),
                connection.pipelines.pipeline_service_create_pipeline,
                pipeline,
            )
        ).pipeline_id
        version = _version(connection, pipeline_id, name) or connection.create(
            lambda: _version(connection, pipeline_id, name),
            connection.uploads.upload_pipeline_version,
            str(path),
            name=name,
            display_name=name,
            pipelineid=pipeline_id,
        )
    return kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=pipeline_id, pipeline_version_id=version.pipeline_version_id
    )


def _pipeline(connection: Connection, name: str) -> Any:
    space = {"namespace": connection.tenant} if connection.tenant else {}
    try:
        return connection.call(
            connection.pipelines.pipeline_service_get_pipeline_by_name, name, **space
        )
    except MissingError:
        return None


def _version(connection: Connection, pipeline_id: str, name: str) -> Any:
    listing = connection.pipelines.pipeline_service_list_pipeline_versions
    versions = connection.pages(listing, "pipeline_versions", pipeline_id=pipeline_id)
    return next(
        (version for version in versions if name in (version.name, version.display_name)), None
    )


def experiment_of(connection: Connection, name: str) -> str:
    """The id of the experiment of this name, created if need be."""
    import kfp_server_api

    experiment = kfp_server_api.V2beta1Experiment(display_name=name, namespace=connection.tenant)
    found = find_experiment(connection, name) or connection.create(
        lambda: find_experiment(connection, name),
        connection.experiments.experiment_service_create_experiment,
        experiment,
    )
    return str(found.experiment_id)


def find_experiment(connection: Connection, name: str) -> Any:
    """The experiment of this name, or None."""
    listing = connection.experiments.experiment_service_list_experiments
    space = {"namespace": connection.tenant} if connection.tenant else {}
    return next(connection.pages(listing, "experiments", filter=named(name), **space), None)


def named(name: str) -> str:
    """Kubeflow's filter for what bears a name."""
    return json.dumps(
        {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}
    )


def _api_client(host: str, access: Access) -> Any:
    """kfp's client, connected; and of it the generated client, which is all that is used."""
    import kfp_server_api
    from kfp import client
    from urllib3 import Retry

    class Quiet(client.Client):  # type: ignore[misc]
        """Asks nothing on its own, so that nothing hangs or is written to ~/.config."""

        def get_kfp_healthz(
            self, sleep_duration: int = 0
        ) -> kfp_server_api.V2beta1GetHealthzResponse:
            return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)

    token = access.token_file or Path(
        os.environ.get(client.KF_PIPELINES_SA_TOKEN_ENV) or client.KF_PIPELINES_SA_TOKEN_PATH
    )
    credentials = None  # a kubeconfig has its own
    if host and (
        access.token_file or os.environ.get(client.KF_PIPELINES_SA_TOKEN_ENV) or token.exists()
    ):
        _check_token(token)
        credentials = client.ServiceAccountTokenVolumeCredentials(
            str(token)
        )  # read anew for every call
    if access.ca_cert and not access.ca_cert.is_file():
        raise InputError(f"--ca-cert {access.ca_cert}: there is no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            connected = Quiet(
                host=host or None,
                namespace=access.namespace or "kubeflow",
                credentials=credentials,
                ssl_ca_cert=str(access.ca_cert) if access.ca_cert else None,
            )
        except (KeyError, OSError, ValueError):
            raise InputError(
                f"{Quiet._LOCAL_KFP_CONTEXT}: is not what kfp's client writes; remove it"
            ) from None
    api = connected._healthz_api.api_client
    configuration = api.configuration
    configuration.retries = Retry(0)  # it is tried again here, and not three times more each time
    api.rest_client = kfp_server_api.rest.RESTClientObject(configuration)
    address, refresh = configuration.host.rstrip("/"), configuration.refresh_api_key_hook
    configuration.host = address
    if refresh:

        def refreshed(target: Any) -> None:
            refresh(target)
            # With a kubeconfig's token come its address, without the way on to Kubeflow, and its
            # own hook.
            target.host, target.refresh_api_key_hook = address, refreshed

        configuration.refresh_api_key_hook = refreshed
    return api


def _check_host(host: str) -> None:
    try:
        parts = urlsplit(host)
        _ = parts.port  # raises where it is not a number up to 65535
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
            f"--host {host}: should be like https://kubeflow.example.org, or that with a path"
        )


def _check_token(path: Path) -> None:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: the token cannot be read: {getattr(error, 'strerror', None) or 'not text'}"
        ) from None
    if not token or not token.isascii() or len(token.split()) != 1:
        raise InputError(f"{path}: should hold one token, and nothing else")


def _check_kubeconfig(access: Access) -> None:
    """Kubeflow through the Kubernetes API; kfp's client only prints it if that does not work."""
    import kubernetes

    where = "no --host is given, nor KF_PIPELINES_ENDPOINT"
    if access.token_file:
        raise InputError(f"{where}, and --token-file is only for one of these")
    try:
        kubernetes.config.load_kube_config(client_configuration=kubernetes.client.Configuration())
    except (
        Exception
    ) as error:  # whatever is wrong with the file, or with the command in it that makes the token
        reason = " ".join(str(error).split()).rstrip(".")[:_MAX_REASON]
        raise InputError(f"{where}, and there is no good kubeconfig: {reason}") from None


def _tenant(access: Access) -> str:
    """The namespace of a user, where Kubeflow has several."""
    namespace = access.namespace
    if not namespace:
        try:
            namespace = (_SERVICE_ACCOUNT / "namespace").read_text().strip()
        except OSError:
            raise InputError(
                "this Kubeflow has several users; say with --namespace whose runs these are"
            ) from None
    return namespace
