"""A server that speaks KFP's v2beta1 REST API, and the part of the Kubernetes API that shows pods.

Requests and answers are checked against the models of kfp-server-api: unknown fields, wrong types
and unknown values are refused. As far as the tests need it, the server behaves as KFP's API server:
names have to be unique, lists have pages and filters, namespaces are for several users only,
uploaded pipelines are parsed, and parameters of runs have to exist.
"""

import functools
import json
import re
import secrets
import ssl
import threading
import types
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import yaml
from google.protobuf import json_format, struct_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_cluster import NO_RESOURCE, Kubernetes, KubernetesError
from kfp_scheduler import Scheduler

PREFIX = "/apis/v2beta1"
PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
CLIENT = kfp_server_api.ApiClient()
NATIVE = {"str": str, "int": int, "float": float, "bool": bool, "datetime": str}

Thing = dict[str, Any]  # an experiment, a pipeline, a version, a run or a recurring run, as JSON
Store = dict[str, Thing]  # things of one kind by their id


class Refusal(Exception):  # noqa: N818
    """An answer that is not 2xx."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check(data: Any, kind: str) -> None:
    """Compare data with a model of kfp-server-api, and let that make an object of them."""
    _check_text(json.dumps(data), kind)


# A run that is followed has the same answer again and again.
@functools.lru_cache(maxsize=1000)
def _check_text(text: str, kind: str) -> None:
    _compare(json.loads(text), kind)
    CLIENT.deserialize(types.SimpleNamespace(data=text), kind)


def _compare(data: Any, kind: str) -> None:
    """Compare data with a type of kfp-server-api, a plain one or a model with its fields."""
    if data is None or kind == "object":
        return
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        assert isinstance(data, list), f"{data!r} should be a list"
        for item in data:
            _compare(item, match[1])
    elif match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        assert isinstance(data, dict), f"{data!r} should be a mapping"
        for item in data.values():
            _compare(item, match[1])
    elif kind in NATIVE:
        assert type(data) is NATIVE[kind], f"{data!r} should be a {kind}"
        if kind == "datetime":
            datetime.fromisoformat(data)
    else:
        _compare_model(data, kind)


def _compare_model(data: Any, kind: str) -> None:
    model = getattr(kfp_server_api, kind)
    if not model.openapi_types:
        # An enumeration.
        assert data in model.allowable_values, f"{data!r} is no {kind}"
        return
    types_ = {model.attribute_map[name]: type_ for name, type_ in model.openapi_types.items()}
    assert isinstance(data, dict), f"{data!r} should be a {kind}"
    assert set(data) <= set(types_), f"{kind} has no {set(data) - set(types_)}"
    for key, value in data.items():
        _compare(value, types_[key])


@dataclass
class Fault:
    """A failure of the next requests that match.

    Attributes:
        method: of the requests.
        path: regular expression for the path after the API's prefix.
        status: of the answer; 0: the connection is dropped instead.
        times: number of requests that fail.
        done: whether the requests are carried out all the same.
        body: of the answer.
    """

    method: str
    path: str
    status: int = 0
    times: int = 1
    done: bool = False
    body: bytes = b'{"code": 13, "message": "as the test wants it"}'


@dataclass
class Request:
    """A request; ``proxied``: it came through the Kubernetes API; headers in lower case."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]
    proxied: bool


@dataclass
class KubeflowServer:
    """The state of the server, and the failures to come; ``url`` is its address.

    Attributes:
        token: that every call has to bring, except for the question after the server's health.
        multi_user: whether each thing belongs to a namespace.
        login_page: whether a page to log in on is the only answer.
        redirect: status and place of the only answer, as of a proxy that wants a login.
        page_size: largest number of things on a page.
        unknown_fields: of runs and recurring runs, which an older server does not know.
        faults: failures to come.
        script: what a run becomes, from one look at it to the next; the last state stays.
        pods: of the next run.
        logs: what pods printed, by the pod's name.
        requests: that came so far.
        enabled: number of enabled recurring runs after each request.
        scheduler: starts the runs of recurring runs.
        cluster: what Kubernetes has of the runs, besides their pods.
        specs: the parsed pipelines, by the version's id.
        broken: requests or answers that the models refuse.
        tls: for a server that speaks HTTPS.
    """

    token: str | None = None
    multi_user: bool = False
    login_page: bool = False
    redirect: tuple[int, str] | None = None
    page_size: int = 2
    unknown_fields: tuple[str, ...] = ()
    faults: list[Fault] = field(default_factory=list)
    script: list[dict[str, Any]] = field(default_factory=list)
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    enabled: list[int] = field(default_factory=list)
    experiments: Store = field(default_factory=dict)
    pipelines: Store = field(default_factory=dict)
    versions: Store = field(default_factory=dict)
    runs: Store = field(default_factory=dict)
    recurring_runs: Store = field(default_factory=dict)
    specs: dict[str, Any] = field(default_factory=dict)
    scheduler: Scheduler = field(default_factory=Scheduler)
    cluster: Kubernetes = field(default_factory=Kubernetes)
    broken: list[str] = field(default_factory=list)
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> "KubeflowServer":
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"kubeflow": self})
        )
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if self.tls else ''}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, method: str, path: str) -> list[Request]:
        """Return the requests so far that match a method and the pattern of a path."""
        return [
            request
            for request in self.requests
            if request.method == method and re.fullmatch(PREFIX + path, request.path)
        ]

    def fault(self, method: str, path: str) -> Fault | None:
        """Return the failure of a request, and count it."""
        for fault in self.faults:
            if fault.times and fault.method == method and re.fullmatch(PREFIX + fault.path, path):
                fault.times -= 1
                return fault
        return None

    def answer(self, request: Request) -> Any:
        """Carry out a request to KFP, and return the answer.

        Raises:
            Refusal: KFP would refuse the request.
            AssertionError: request or answer do not fit the models.
        """
        with self._lock:
            kind, content = self._answer(request)
            modes = [recurring_run["mode"] for recurring_run in self.recurring_runs.values()]
            self.enabled.append(modes.count("ENABLE"))
        check(content, kind)
        return content

    def _answer(self, request: Request) -> tuple[str, Any]:
        """Return the model's name and the content of the answer."""
        parts = [unquote(part) for part in request.path.removeprefix(f"{PREFIX}/").split("/")]
        if parts == ["healthz"]:
            return "V2beta1GetHealthzResponse", {"multi_user": self.multi_user}
        if request.method == "POST" and parts == ["pipelines", "upload_version"]:
            return "V2beta1PipelineVersion", self._upload(request)
        if parts[:2] == ["pipelines", "names"]:
            return "V2beta1Pipeline", self._by_name(parts[2], request.query.get("namespace", ""))
        if len(parts) == 4 and parts[2] == "versions":
            version = self._get(self.versions, parts[3])
            if request.method == "DELETE":
                del self.versions[parts[3]]
                return "object", {}
            return "V2beta1PipelineVersion", version
        if len(parts) == 3 and parts[2] == "versions":
            self._get(self.pipelines, parts[1])
            versions = [v for v in self.versions.values() if v["pipeline_id"] == parts[1]]
            page = self._page(request, "pipeline_versions", versions)
            return "V2beta1ListPipelineVersionsResponse", page
        if len(parts) == 1:
            return self._answer_about_all(request, parts[0])
        return self._answer_about_one(request, parts[0], parts[1])

    def _answer_about_all(self, request: Request, resource: str) -> tuple[str, Any]:
        """Create a thing, or return a page of the list."""
        kind, field_ = KINDS[resource]
        store: Store = getattr(self, field_)
        if request.method == "POST":
            check(request.body, f"V2beta1{kind}")
            return f"V2beta1{kind}", self._create(resource, store, request.body)
        page = self._page(request, LISTS[resource], self._visible(request, store))
        return f"V2beta1List{kind}sResponse", page

    def _answer_about_one(self, request: Request, resource: str, name: str) -> tuple[str, Any]:
        """Return, delete, enable, disable or terminate a thing."""
        kind, field_ = KINDS[resource]
        store: Store = getattr(self, field_)
        identity, _, verb = name.partition(":")
        thing = self._get(store, identity)
        if verb in ("enable", "disable"):
            thing["mode"], thing["status"] = verb.upper(), f"{verb.upper()}D"
            if verb == "enable":
                self.scheduler.enable(self, thing)
            return "object", {}
        if verb == "terminate":
            thing["state"] = "CANCELING"
            return "object", {}
        if request.method == "DELETE":
            if any(v["pipeline_id"] == identity for v in self.versions.values()):
                raise Refusal(400, f"pipeline {identity} has versions")
            policy = request.query.get("propagation_policy", "BACKGROUND")
            check(policy, "V2beta1DeletePropagationPolicy")
            self.scheduler.delete(self, identity, policy)
            del store[identity]
            return "object", {}
        if resource == "runs" and self.script:
            thing.update(self.script[0])
            del self.script[: len(self.script) > 1]
        return f"V2beta1{kind}", thing

    def _get(self, store: Store, identity: str) -> Thing:
        if identity not in store:
            raise Refusal(404, f"{identity} not found")
        return store[identity]

    def _by_name(self, name: str, namespace: str) -> Thing:
        for pipeline in self.pipelines.values():
            if pipeline["name"] == name and pipeline.get("namespace", "") == namespace:
                return pipeline
        raise Refusal(404, f"pipeline {name} not found")

    def _visible(self, request: Request, store: Store) -> list[Thing]:
        """Return the things that the conditions of a request let through."""
        query = request.query
        things = list(store.values())
        if query.get("namespace") and not self.multi_user:
            raise Refusal(400, "In single-user mode, cannot filter by namespace.")
        if self.multi_user and not (query.get("namespace") or query.get("experiment_id")):
            raise Refusal(400, "Invalid input error: namespace is empty")
        if self.multi_user and query.get("namespace"):
            things = [thing for thing in things if thing.get("namespace") == query["namespace"]]
        if query.get("experiment_id"):
            things = [thing for thing in things if thing["experiment_id"] == query["experiment_id"]]
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            assert predicate["operation"] == "EQUALS", predicate
            key, value = predicate["key"], predicate["stringValue"]
            things = [thing for thing in things if thing[key] == value]
        return things

    def _page(self, request: Request, items: str, things: list[Thing]) -> Thing:
        key, _, order = request.query.get("sort_by", "").partition(" ")
        if key:
            times = {id(thing): datetime.fromisoformat(thing[key]) for thing in things}
            things = sorted(things, key=lambda thing: times[id(thing)], reverse=order == "desc")
        start = int(request.query.get("page_token") or 0)
        end = start + min(self.page_size, int(request.query["page_size"]))
        more = {"next_page_token": str(end)} if end < len(things) else {}
        return {items: things[start:end], "total_size": len(things), **more}

    def _create(self, resource: str, store: Store, body: Thing) -> Thing:
        if not body.get("display_name"):
            raise Refusal(400, "display_name is empty")
        for name in filter(body.get, self.unknown_fields):
            raise Refusal(400, f'proto: (line 1:321): unknown field "{name}"')
        thing = {**body, "created_at": self.scheduler.now().isoformat()}
        identity = secrets.token_hex(8)
        if resource in ("experiments", "pipelines"):
            self._check_name(store, body, "name" if resource == "pipelines" else "display_name")
        elif resource == "runs":
            thing |= {**self._checked(body), "state": "PENDING"}
            thing |= {"scheduled_at": thing["created_at"], "finished_at": "1970-01-01T00:00:00Z"}
            self.scheduler.workflows.add(identity)
            for pod in self.pods:
                pod["metadata"]["labels"]["pipeline/runid"] = identity
        else:
            thing |= self._checked(body)
            thing |= self._checked_recurrence(body)
        thing[IDENTITIES[resource]] = identity
        store[identity] = thing
        return thing

    def _check_name(self, store: Store, body: Thing, key: str) -> None:
        """Refuse a name that another thing of the namespace has."""
        if bool(body.get("namespace")) != self.multi_user:
            raise Refusal(400, "namespace: only with several users, and then always")
        if any(
            (thing[key], thing.get("namespace")) == (body[key], body.get("namespace"))
            for thing in store.values()
        ):
            raise Refusal(409, f"{body[key]} already exists")

    def _checked(self, body: Thing) -> Thing:
        """Check a run or a recurring run, and return what KFP changes in it."""
        self._get(self.experiments, body["experiment_id"])
        reference = body["pipeline_version_reference"]
        version = self._get(self.versions, reference["pipeline_version_id"])
        assert version["pipeline_id"] == reference["pipeline_id"]
        inputs = self.specs[version["pipeline_version_id"]].root.input_definitions.parameters
        parameters = body["runtime_config"].get("parameters", {})
        unknown = set(parameters) - set(inputs)
        if unknown:
            raise Refusal(400, f"unknown parameters {unknown}")
        # KFP keeps parameters as a Struct of protobuf, whose numbers are all doubles.
        struct = json_format.ParseDict(parameters, struct_pb2.Struct())
        return {
            "service_account": body.get("service_account") or "pipeline-runner",
            "runtime_config": {"parameters": json_format.MessageToDict(struct)},
        }

    def _checked_recurrence(self, body: Thing) -> Thing:
        """Check when a recurring run fires, and return what KFP adds to it."""
        trigger = body["trigger"]
        assert len(trigger) == 1, trigger
        if "cron_schedule" in trigger:
            assert len(trigger["cron_schedule"]["cron"].split()) == 6, trigger
        else:
            assert int(trigger["periodic_schedule"]["interval_second"]) >= 1, trigger
        assert 1 <= int(body["max_concurrency"]) <= 10
        experiment = self.experiments[body["experiment_id"]]
        namespace = experiment.get("namespace") or "kubeflow"
        return {"status": f"{body['mode']}D", "namespace": namespace}

    def _upload(self, request: Request) -> Thing:
        pipeline_id, name = request.query["pipelineid"], request.query["name"]
        self._get(self.pipelines, pipeline_id)
        if any(
            (version["pipeline_id"], version["name"]) == (pipeline_id, name)
            for version in self.versions.values()
        ):
            raise Refusal(409, f"version {name} already exists")
        documents = list(yaml.load_all(request.body["uploadfile"], yaml.CSafeLoader))
        spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        assert len(documents) < 3
        if len(documents) == 2:
            json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
        assert spec.pipeline_info.name == self.pipelines[pipeline_id]["name"]
        identity = secrets.token_hex(8)
        self.specs[identity] = spec
        parts = dict(zip(("pipeline_spec", "platform_spec"), documents, strict=False))
        self.versions[identity] = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": identity,
            "name": name,
            "display_name": request.query.get("display_name", name),
            "created_at": datetime.now(UTC).isoformat(),
            "pipeline_spec": parts if len(parts) == 2 else documents[0],
        }
        return self.versions[identity]

    def objects(self, request: Request) -> Thing:
        """Return what the Kubernetes API has of schedules and workflows."""
        accept = request.headers.get("accept", "")
        answer = self.scheduler.objects(self, request.path, request.query, accept)
        if isinstance(answer, int):
            raise Refusal(answer, "the Kubernetes API refuses")
        return answer

    def kubernetes(self, path: str, query: dict[str, str]) -> Any:
        """Return what the Kubernetes API has of the runs: an object, or the log of a pod."""
        try:
            return self.cluster.answer(self, path, query)
        except KubernetesError as error:
            raise Refusal(error.status, str(error)) from None


# The names of a model and of the server's attribute, by the path of the resource.
KINDS = {
    "experiments": ("Experiment", "experiments"),
    "pipelines": ("Pipeline", "pipelines"),
    "runs": ("Run", "runs"),
    "recurringruns": ("RecurringRun", "recurring_runs"),
}
# The field of a list's answer that has its items.
LISTS = {
    "experiments": "experiments",
    "pipelines": "pipelines",
    "runs": "runs",
    "recurringruns": "recurringRuns",
}
IDENTITIES = {
    "experiments": "experiment_id",
    "pipelines": "pipeline_id",
    "runs": "run_id",
    "recurringruns": "recurring_run_id",
}


class _Handler(BaseHTTPRequestHandler):
    kubeflow: KubeflowServer

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _handle(self) -> None:
        server = self.kubeflow
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(PROXY)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(
            method=self.command,
            path=path,
            query={key: values[-1] for key, values in parse_qs(parts.query).items()},
            body=self._body(content),
            headers={name.lower(): value for name, value in self.headers.items()},
            proxied=path != parts.path,
        )
        server.requests.append(request)
        fault = server.fault(request.method, request.path)
        if fault and not fault.done:
            self._fail(fault)
        elif server.redirect:
            status, place = server.redirect
            self._send(status, b"", "text/html", location=place)
        elif server.login_page:
            self._send(200, b"<!doctype html><title>Log in</title>", "text/html")
        elif request.proxied and "services" in server.cluster.forbidden:
            self._send(403, b'{"message": "services is forbidden: you cannot proxy"}')
        elif not self._is_allowed(request):
            problem = "Request header error: there is no user identity header."
            self._send(401, json.dumps({"code": 16, "message": problem}).encode())
        else:
            self._carry_out(request, fault)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def _is_allowed(self, request: Request) -> bool:
        token = self.kubeflow.token
        is_open = request.path == f"{PREFIX}/healthz" and not request.proxied
        return is_open or not token or request.headers.get("authorization") == f"Bearer {token}"

    def _carry_out(self, request: Request, fault: Fault | None) -> None:
        server = self.kubeflow
        try:
            if request.path.startswith(PREFIX):
                answer = server.answer(request)
            elif server.scheduler.knows(request.path, request.headers.get("accept", "")):
                answer = server.objects(request)
            else:
                answer = server.kubernetes(request.path, request.query)
        except Refusal as refusal:
            if str(refusal) == NO_RESOURCE:
                self._send(refusal.status, str(refusal).encode(), "text/plain")
                return
            self._send(refusal.status, json.dumps({"code": 3, "message": str(refusal)}).encode())
            return
        except Exception as error:
            server.broken.append(f"{self.command} {self.path}: {error!r}")
            self._send(400, json.dumps({"message": f"the test server refuses: {error}"}).encode())
            return
        if fault:
            self._fail(fault)
        elif isinstance(answer, str):
            self._send(200, answer.encode(), "text/plain")
        else:
            self._send(200, json.dumps(answer).encode())

    def _body(self, content: bytes) -> Any:
        kind = self.headers.get("Content-Type") or ""
        if kind.startswith("multipart/form-data"):
            message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + content)
            return {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                for part in message.get_payload()
            }
        return json.loads(content) if content else None

    def _fail(self, fault: Fault) -> None:
        if fault.status:
            self._send(fault.status, fault.body)
        else:
            self.close_connection = True
            self.connection.close()

    def _send(
        self, status: int, content: bytes, kind: str = "application/json", location: str = ""
    ) -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
