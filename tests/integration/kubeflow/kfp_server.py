"""A server that speaks KFP's v2beta1 REST API, and the little of the Kubernetes API that is asked
beside it.

What is sent to it, and what it answers, is checked against the models of kfp-server-api: unknown
fields, wrong types and unknown values are refused. As far as it matters here it behaves as KFP's
API server does: names that have to be unique, pages, filters, namespaces with several users only,
pipelines that are parsed, parameters that have to exist.
"""

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
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

PREFIX = "/apis/v2beta1"
PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
NATIVE = {"str": str, "int": int, "float": float, "bool": bool, "datetime": str}


class Refusal(Exception):  # noqa: N818
    """An answer that is none of 2xx."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check(data: Any, kind: str) -> None:
    """Compare with a type of kfp-server-api's: a model, whose fields are all known and right, or a
    plain one."""
    if data is None or kind == "object":
        return
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        assert isinstance(data, list), f"{data!r} should be a list"
        for item in data:
            check(item, match[1])
    elif match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        assert isinstance(data, dict), f"{data!r} should be a mapping"
        for item in data.values():
            check(item, match[1])
    elif kind in NATIVE:
        assert type(data) is NATIVE[kind], f"{data!r} should be a {kind}"
        if kind == "datetime":
            datetime.fromisoformat(data)
    else:
        model = getattr(kfp_server_api, kind)
        if not model.openapi_types:  # an enumeration
            assert data in model.allowable_values, f"{data!r} is no {kind}"
            return
        keys = {model.attribute_map[name]: type_ for name, type_ in model.openapi_types.items()}
        assert isinstance(data, dict), f"{data!r} should be a {kind}"
        assert set(data) <= set(keys), f"{kind} has no {set(data) - set(keys)}"
        for key, value in data.items():
            check(value, keys[key])
        kfp_server_api.ApiClient().deserialize(types.SimpleNamespace(data=json.dumps(data)), kind)


@dataclass
class Fault:
    """What goes wrong with the next requests that match."""

    method: str
    path: str
    status: int = 0  # 0: the connection is dropped
    times: int = 1
    done: bool = False  # whether the request is carried out all the same
    body: bytes = b'{"code": 13, "message": "as the test wants it"}'


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    proxied: bool  # through the Kubernetes API


@dataclass
class KubeflowServer:
    """State, and what is to go wrong; ``url`` is where it listens."""

    token: str | None = None
    multi_user: bool = False
    login_page: bool = False
    page_size: int = 2
    faults: list[Fault] = field(default_factory=list)
    script: list[dict[str, Any]] = field(
        default_factory=list
    )  # what a run becomes, one look after another
    pods: list[dict[str, Any]] = field(default_factory=list)  # of the next run
    logs: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring_runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    specs: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)  # requests or answers that the models refuse
    tls: ssl.SSLContext | None = None
    lock: Any = field(default_factory=threading.Lock)

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
        """The requests of a kind, so far."""
        return [
            each
            for each in self.requests
            if each.method == method and re.fullmatch(PREFIX + path, each.path)
        ]

    def answer(self, request: Request) -> tuple[str, Any]:
        """The model's name and the content of the answer."""
        parts = [unquote(part) for part in request.path.removeprefix(f"{PREFIX}/").split("/")]
        route = (request.method, parts[0], len(parts))
        if route == ("GET", "healthz", 1):
            return "V2beta1GetHealthzResponse", {"multi_user": self.multi_user}
        if request.method == "POST" and parts == ["pipelines", "upload_version"]:
            return "V2beta1PipelineVersion", self._upload(request)
        if parts[:2] == ["pipelines", "names"]:
            return "V2beta1Pipeline", self._by_name(parts[2], request.query.get("namespace", ""))
        if len(parts) == 3 and parts[2] == "versions":
            self._get(self.pipelines, parts[1])
            found = [each for each in self.versions.values() if each["pipeline_id"] == parts[1]]
            return "V2beta1ListPipelineVersionsResponse", self._page(
                request, "pipeline_versions", found
            )
        store: dict[str, dict[str, Any]] = getattr(
            self, {"recurringruns": "recurring_runs"}.get(parts[0], parts[0])
        )
        kind = {
            "experiments": "V2beta1Experiment",
            "pipelines": "V2beta1Pipeline",
            "runs": "V2beta1Run",
            "recurringruns": "V2beta1RecurringRun",
        }[parts[0]]
        if route[0] == "POST" and len(parts) == 1:
            check(request.body, kind)
            return kind, self._create(parts[0], store, request.body)
        if route[0] == "GET" and len(parts) == 1:
            model = f"V2beta1List{'RecurringRuns' if parts[0] == 'recurringruns' else parts[0].capitalize()}Response"
            items = next(
                key
                for key in getattr(kfp_server_api, model).attribute_map.values()
                if key.lower() == parts[0]
            )
            return model, self._page(request, items, self._visible(request, store))
        identity, _, verb = parts[1].partition(":")
        thing = self._get(store, identity)
        if verb in ("enable", "disable"):
            thing["mode"], thing["status"] = verb.upper(), f"{verb.upper()}D"
            return "object", {}
        if request.method == "DELETE":
            del store[identity]
            return "object", {}
        if parts[0] == "runs" and self.script:
            thing.update(self.script[0])
            del self.script[: len(self.script) > 1]
        return kind, thing

    def _get(self, store: dict[str, dict[str, Any]], identity: str) -> dict[str, Any]:
        if identity not in store:
            raise Refusal(404, f"{identity} not found")
        return store[identity]

    def _by_name(self, name: str, namespace: str) -> dict[str, Any]:
        for each in self.pipelines.values():
            if each["name"] == name and each.get("namespace", "") == namespace:
                return each
        raise Refusal(404, f"pipeline {name} not found")

    def _visible(self, request: Request, store: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        query, found = request.query, list(store.values())
        if query.get("namespace") and not self.multi_user:
            raise Refusal(400, "In single-user mode, cannot filter by namespace.")
        if self.multi_user and not (query.get("namespace") or query.get("experiment_id")):
            raise Refusal(400, "Invalid input error: namespace is empty")
        if self.multi_user and query.get("namespace"):
            found = [each for each in found if each.get("namespace") == query["namespace"]]
        if query.get("experiment_id"):
            found = [each for each in found if each["experiment_id"] == query["experiment_id"]]
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            assert predicate["operation"] == "EQUALS", predicate
            found = [each for each in found if each[predicate["key"]] == predicate["stringValue"]]
        return found

    def _page(self, request: Request, items: str, found: list[dict[str, Any]]) -> dict[str, Any]:
        start = int(request.query.get("page_token") or 0)
        end = start + min(self.page_size, int(request.query["page_size"]))
        more = {"next_page_token": str(end)} if end < len(found) else {}
        return {items: found[start:end], "total_size": len(found), **more}

    def _create(
        self, kind: str, store: dict[str, dict[str, Any]], body: dict[str, Any]
    ) -> dict[str, Any]:
        if not body.get("display_name"):
            raise Refusal(400, "display_name is empty")
        thing = {**body, "created_at": datetime.now(UTC).isoformat()}
        identity = secrets.token_hex(8)
        if kind in ("experiments", "pipelines"):
            if bool(body.get("namespace")) != self.multi_user:
                raise Refusal(400, "namespace: only with several users, and then always")
            key = "name" if kind == "pipelines" else "display_name"
            if any(
                (each[key], each.get("namespace")) == (body[key], body.get("namespace"))
                for each in store.values()
            ):
                raise Refusal(409, f"{body[key]} already exists")
            thing["pipeline_id" if kind == "pipelines" else "experiment_id"] = identity
        else:
            thing |= self._checked(kind, body)
            thing["run_id" if kind == "runs" else "recurring_run_id"] = identity
        if kind == "runs":
            for pod in self.pods:
                pod["metadata"]["labels"]["pipeline/runid"] = identity
        store[identity] = thing
        return thing

    def _checked(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        experiment = self._get(self.experiments, body["experiment_id"])
        version = self._get(
            self.versions, body["pipeline_version_reference"]["pipeline_version_id"]
        )
        assert version["pipeline_id"] == body["pipeline_version_reference"]["pipeline_id"]
        inputs = self.specs[version["pipeline_version_id"]].root.input_definitions.parameters
        unknown = set(body["runtime_config"].get("parameters", {})) - set(inputs)
        if unknown:
            raise Refusal(400, f"unknown parameters {unknown}")
        more = {
            "service_account": body.get("service_account") or "pipeline-runner",
            **(
                {"namespace": experiment["namespace"]}
                if kind != "runs" and "namespace" in experiment
                else {}
            ),
        }
        if kind == "runs":
            return {**more, "state": "PENDING"}
        trigger = body["trigger"]
        assert len(trigger) == 1, trigger
        if "cron_schedule" in trigger:
            assert len(trigger["cron_schedule"]["cron"].split()) == 6, trigger
        else:
            assert int(trigger["periodic_schedule"]["interval_second"]) >= 1, trigger
        assert 1 <= int(body["max_concurrency"]) <= 10
        return {**more, "status": f"{body['mode']}D"}

    def _upload(self, request: Request) -> dict[str, Any]:
        pipeline_id, name = request.query["pipelineid"], request.query["name"]
        self._get(self.pipelines, pipeline_id)
        if any(
            (each["pipeline_id"], each["name"]) == (pipeline_id, name)
            for each in self.versions.values()
        ):
            raise Refusal(409, f"version {name} already exists")
        documents = list(yaml.safe_load_all(request.body["uploadfile"]))
        spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        assert len(documents) < 3
        if len(documents) == 2:
            json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
        assert spec.pipeline_info.name == self.pipelines[pipeline_id]["name"]
        identity = secrets.token_hex(8)
        self.specs[identity] = spec
        self.versions[identity] = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": identity,
            "name": name,
            "display_name": request.query.get("display_name", name),
            "created_at": datetime.now(UTC).isoformat(),
        }
        return self.versions[identity]

    def kubernetes(self, path: str, query: dict[str, str]) -> Any:
        """Pods, and their logs."""
        match = re.fullmatch(r"/api/v1/namespaces/([\w-]+)/pods(?:/([\w-]+)/log)?", path)
        if not match:
            raise Refusal(404, "no such resource")
        if match[2]:
            return self.logs[match[2]]
        key, _, value = query["labelSelector"].partition("=")
        phase = query["fieldSelector"].removeprefix("status.phase=")
        found = [
            each
            for each in self.pods
            if each["metadata"]["namespace"] == match[1]
            and each["metadata"]["labels"].get(key) == value
            and each["status"]["phase"] == phase
        ]
        return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found}


class _Handler(BaseHTTPRequestHandler):
    kubeflow: KubeflowServer

    def log_message(self, *_: object) -> None:
        """Quietly."""

    def _handle(self) -> None:
        server = self.kubeflow
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(PROXY)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(
            self.command, path, query, self._body(content), proxied=path != parts.path
        )
        server.requests.append(request)
        fault = next(
            (
                each
                for each in server.faults
                if each.times
                and each.method == self.command
                and re.fullmatch(PREFIX + each.path, path)
            ),
            None,
        )
        if fault:
            fault.times -= 1
            if not fault.done:
                self._fail(fault)
                return
        if server.login_page:
            self._send(200, b"<!doctype html><title>Log in</title>", "text/html")
            return
        is_open = path == f"{PREFIX}/healthz" and not request.proxied
        if (
            server.token
            and not is_open
            and self.headers.get("Authorization") != f"Bearer {server.token}"
        ):
            self._send(
                401,
                b'{"code": 16, "message": "Request header error: there is no user identity header."}',
            )
            return
        try:
            if not path.startswith(PREFIX):
                found = server.kubernetes(path, query)
                plain = isinstance(found, str)
                text = found if plain else json.dumps(found)
                self._send(200, text.encode(), "text/plain" if plain else "application/json")
                return
            with server.lock:
                kind, answer = server.answer(request)
            check(answer, kind)
        except Refusal as refusal:
            self._send(refusal.status, json.dumps({"code": 3, "message": str(refusal)}).encode())
            return
        except Exception as error:
            server.broken.append(f"{self.command} {self.path}: {error!r}")
            self._send(400, json.dumps({"message": f"the test server refuses: {error}"}).encode())
            return
        if fault:
            self._fail(fault)
        else:
            self._send(200, json.dumps(answer).encode())

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

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

    def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
