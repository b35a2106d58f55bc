"""The connection to Kubeflow: its address, the credentials, retries, and errors in one line."""

import json
import socket
import ssl
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kfp_answers import Client
from kfp_samples import SHORT, TOKEN, certificate, only, recorded, write_kubeconfig
from kfp_server import Fault, KubeflowServer
from kfp_server_api import V2beta1Experiment

from taylorglo.errors import InputError, ServiceError, TaylorgloError
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.kubeflow.client import Access, Connection, MissingError
from taylorglo_pipelines.kubeflow.runs import find_experiment, submit


def connect(access: Access) -> Connection:
    """Connect, with short pauses."""
    return Connection.open(access, delays=SHORT)


def ask(access: Access) -> None:
    """Connect, and make a call that needs good credentials."""
    assert find_experiment(connect(access), "none") is None


def error_of(action: Callable[[], object], kind: type[TaylorgloError] = InputError) -> str:
    """Return the line with which an action fails, and check that the token is nowhere in it."""
    with pytest.raises(kind) as caught:
        action()
    error = caught.value
    assert type(error) is kind
    assert error.exit_status == 2
    assert "\n" not in str(error)
    assert TOKEN not in "".join(traceback.format_exception(error))
    return str(error)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("V2beta1Run", recorded("run-succeeded")),
        ("V2beta1Run", recorded("run-out-of-memory-failed")),
        ("V2beta1ListRunsResponse", {"runs": [recorded("run-running-early"), None]}),
        ("V2beta1PipelineVersion", {"pipeline_spec": recorded("pipeline-0.1.0")}),
        ("V2beta1RecurringRun", {"max_concurrency": "3", "mode": "ENABLE", "no_catchup": True}),
        ("V2beta1Run", {"created_at": "2026-11-24T21:30:00.123456789Z", "state": None}),
        ("V2beta1Run", {"plugins_output": {"mlflow": {"entries": {"run": {"value": 1}}}}}),
        ("V2beta1Run", ["no", "mapping"]),
    ],
)
def test_an_answer_is_read_as_the_generated_client_reads_it(kind: str, content: Any) -> None:
    answer = SimpleNamespace(data=json.dumps(content))
    read = Client().deserialize(answer, kind)
    (generated,) = Client.__bases__
    assert read == generated().deserialize(answer, kind)


def test_a_token_file_is_read_anew(server: KubeflowServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    access = Access(server.url, token_file=token)
    token.write_text("old")
    server.token = TOKEN
    assert (
        f"{server.url}: unauthorised; give a good token with --token-file "
        "(401: Request header error" in error_of(lambda: ask(access))
    )
    token.write_text(TOKEN + "\n")
    connection = connect(access)
    find_experiment(connection, "none")
    server.token = "new"
    assert "the token has expired" in error_of(lambda: find_experiment(connection, "none"))
    token.write_text("new")
    find_experiment(connection, "none")
    token.unlink()
    assert error_of(lambda: find_experiment(connection, "none")) == (
        f"{token}: the token cannot be read: No such file or directory"
    )


def test_the_token_of_a_pod(
    server: KubeflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    server.token = TOKEN
    assert "unauthorised" in error_of(lambda: ask(Access(server.url)))
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    ask(Access(server.url))


def test_a_server_that_repeats_the_token_is_not_quoted(
    server: KubeflowServer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    body = json.dumps({"message": f"token {TOKEN} is not of this realm"}).encode()
    server.faults = [Fault("GET", "/healthz", 403, body=body)]
    assert error_of(lambda: connect(Access(server.url, token_file=tmp_path / "token"))) == (
        f"Kubeflow Pipelines at {server.url}: forbidden (403: token ... is not of this realm)"
    )


@pytest.mark.parametrize("content", ["", " \n", "two words", f"{TOKEN}\n{TOKEN}", "gehe\u00efm"])
def test_a_file_that_holds_no_token(content: str, server: KubeflowServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content)
    assert error_of(lambda: connect(Access(server.url, token_file=tmp_path / "token"))) == (
        f"{tmp_path}/token: should hold one token, and nothing else"
    )


def test_a_file_that_is_no_text(server: KubeflowServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    assert error_of(lambda: connect(Access(server.url, token_file=tmp_path / "token"))) == (
        f"{tmp_path}/token: the token cannot be read: not text"
    )


def test_no_token_file(server: KubeflowServer, tmp_path: Path) -> None:
    assert error_of(lambda: connect(Access(server.url, token_file=tmp_path / "token"))) == (
        f"{tmp_path}/token: the token cannot be read: No such file or directory"
    )


def test_the_login_of_kfps_own_client(server: KubeflowServer, tmp_path: Path) -> None:
    """Its file may hold a cookie and a header, which are sent with every call."""
    path = tmp_path / ".config/kfp/context.json"
    path.parent.mkdir(parents=True)
    login = {
        "namespace": "",
        "client_authentication_cookie": "authservice_session=1",
        "client_authentication_header_name": "x-user",
        "client_authentication_header_value": "ann",
    }
    path.write_text(json.dumps(login))
    ask(Access(server.url))
    assert len(server.requests) == 2
    for request in server.requests:
        assert request.headers["cookie"] == "authservice_session=1"
        assert request.headers["x-user"] == "ann"
    assert json.loads(path.read_text()) == login


@pytest.mark.parametrize("content", ["{}", "[]", "namespace", "\x00"])
def test_a_broken_login_of_kfps_own_client(
    content: str, server: KubeflowServer, tmp_path: Path
) -> None:
    path = tmp_path / ".config/kfp/context.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert error_of(lambda: connect(Access(server.url))) == (
        f"{path}: is not what kfp's client writes; remove it"
    )


def test_nothing_is_written(server: KubeflowServer, tmp_path: Path) -> None:
    server.multi_user = True
    connect(Access(server.url, "ann"))
    assert list(tmp_path.iterdir()) == []


def test_through_the_kubernetes_api(server: KubeflowServer, config: Config, tmp_path: Path) -> None:
    server.token = TOKEN
    write_kubeconfig(tmp_path / "kubeconfig", server.url)
    connection = connect(Access())
    submit(config, connection, "")
    only(server.runs)
    assert connection.link("runs/details/1") == (
        "http://localhost:8080/#/runs/details/1"
        " (after kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80)"
    )
    assert all(request.proxied for request in server.requests)
    problem = error_of(lambda: connect(Access(namespace="elsewhere")), MissingError)
    assert problem == (
        f"Kubeflow Pipelines at {server.url}/api/v1/namespaces/elsewhere/services/"
        "ml-pipeline:http/proxy: not found (404: no such resource)"
    )


def test_a_command_of_the_kubeconfig_makes_the_tokens(
    server: KubeflowServer, tmp_path: Path
) -> None:
    """It is run again once a token has expired; here, every token has expired when it is made."""
    token = tmp_path / "token"
    program = tmp_path / "make_token.py"
    program.write_text(
        "import json, pathlib\n"
        f"status = {{'token': pathlib.Path({str(token)!r}).read_text()}}\n"
        "status['expirationTimestamp'] = '2020-01-01T00:00:00Z'\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1beta1', "
        "'kind': 'ExecCredential', 'status': status}))\n"
    )
    command = {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "command": sys.executable,
        "args": [str(program)],
    }
    write_kubeconfig(tmp_path / "kubeconfig", server.url, user={"exec": command})
    server.token = "first"
    token.write_text("first")
    connection = connect(Access())
    find_experiment(connection, "none")
    server.token = "second"
    token.write_text("second")
    find_experiment(connection, "none")
    assert all(request.proxied for request in server.requests)


def test_a_token_of_the_kubeconfig_that_cannot_be_renewed(
    server: KubeflowServer, tmp_path: Path
) -> None:
    program = tmp_path / "make_token"
    token = {"access_token": TOKEN, "token_expiry": "2020-01-01T00:00:00Z"}
    answer = json.dumps({"credential": token})
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    user = {"auth-provider": {"name": "gcp", "config": {"cmd-path": str(program)}}}
    write_kubeconfig(tmp_path / "kubeconfig", server.url, user=user)
    server.token = TOKEN
    connection = connect(Access())
    find_experiment(connection, "none")
    program.unlink()
    assert error_of(lambda: find_experiment(connection, "none")).startswith(
        "the kubeconfig's token cannot be renewed: "
    )


def test_a_name_and_a_password_in_the_kubeconfig(server: KubeflowServer, tmp_path: Path) -> None:
    user = {"username": "ann", "password": "secret"}
    write_kubeconfig(tmp_path / "kubeconfig", server.url, user=user)
    ask(Access())
    assert {request.headers["authorization"] for request in server.requests} == {
        "Basic YW5uOnNlY3JldA=="
    }


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_the_certificates_of_the_kubeconfig(tmp_path: Path) -> None:
    context = certificate(tmp_path)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tmp_path / "ca.pem")
    path, ca = tmp_path / "kubeconfig", {"certificate-authority": str(tmp_path / "ca.pem")}
    user = {
        "client-certificate": str(tmp_path / "ca.pem"),
        "client-key": str(tmp_path / "key.pem"),
    }
    with KubeflowServer(tls=context) as server:
        write_kubeconfig(path, server.url, user=user, **ca)
        ask(Access())
        write_kubeconfig(path, server.url, user=user, **{"insecure-skip-tls-verify": True})
        ask(Access())
        write_kubeconfig(path, server.url, user=user)
        assert "TLS: certificate verify failed" in error_of(lambda: ask(Access()))
        ask(Access(ca_cert=tmp_path / "ca.pem"))
        write_kubeconfig(path, server.url, **ca)
        with pytest.raises(TaylorgloError):
            ask(Access())


def test_no_address(tmp_path: Path) -> None:
    assert (
        "no --host is given, nor KF_PIPELINES_ENDPOINT, and there is no good kubeconfig: Invalid"
        in error_of(lambda: connect(Access()))
    )
    (tmp_path / "kubeconfig").write_text("clusters: [")
    assert "there is no good kubeconfig" in error_of(lambda: connect(Access()))
    access = Access(token_file=tmp_path / "kubeconfig")
    assert "--token-file is only for one of these" in error_of(lambda: connect(access))


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        (
            "kubeflow.example.org",
            "should be like https://kubeflow.example.org, or that with a path",
        ),
        ("ftp://kubeflow", "should be like"),
        ("http://", "should be like"),
        ("http://localhost:8080/#/runs", "should be like"),
        ("http://localhost:port", "is malformed"),
        ("http://[::1", "is malformed"),
        ("https://me:secret@kubeflow", "should have no user or password in it"),
    ],
)
def test_malformed_hosts(host: str, problem: str) -> None:
    line = error_of(lambda: connect(Access(host)))
    assert problem in line
    assert "secret" not in line


def test_the_environment_names_the_server(
    server: KubeflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url + "/")
    assert connect(Access()).link("runs/details/1") == f"{server.url}/#/runs/details/1"
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example.org/pipeline")
    assert connect(Access()).link("runs/details/1") == (
        "https://kubeflow.example.org/pipeline/#/runs/details/1"
    )
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://kubeflow.invalid")
    ask(Access(server.url))


def test_the_namespace_of_a_user(server: KubeflowServer, tmp_path: Path) -> None:
    access = Access(server.url, pod_account=tmp_path)
    assert (connect(access).tenant, connect(access).namespace) == (None, "kubeflow")
    server.multi_user = True
    assert error_of(lambda: connect(access)) == (
        "this Kubeflow has several users; say with --namespace whose runs these are"
    )
    (tmp_path / "namespace").write_text("bob\n")
    assert (connect(access).tenant, connect(access).namespace) == ("bob", "bob")
    assert connect(Access(server.url, "ann", pod_account=tmp_path)).tenant == "ann"


@pytest.mark.parametrize("namespace", ["", "ml"])
def test_in_the_cluster(namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    access = Access(namespace=namespace, pod_account=tmp_path)
    host = f"http://ml-pipeline.{namespace or 'kubeflow'}.svc.cluster.local:8888"
    assert error_of(lambda: connect(access), ServiceError) == (
        f"Kubeflow Pipelines at {host}: there is no host of this name"
    )


def test_no_such_host() -> None:
    access = Access("http://kubeflow.invalid")
    assert error_of(lambda: connect(access), ServiceError) == (
        "Kubeflow Pipelines at http://kubeflow.invalid: there is no host of this name"
    )


def test_a_closed_port() -> None:
    with KubeflowServer() as gone:
        url = gone.url
    assert error_of(lambda: connect(Access(url)), ServiceError) == (
        f"Kubeflow Pipelines at {url}: cannot be reached: Connection refused"
    )


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        line = error_of(
            lambda: Connection.open(Access(url), delays=SHORT, timeout=(1.0, 0.1)), ServiceError
        )
    assert line.startswith(f"Kubeflow Pipelines at {url}: cannot be reached: Read timed out")


def test_a_server_that_hangs_up(server: KubeflowServer) -> None:
    server.faults = [Fault("GET", "/.*", 0, 10**6)]
    line = error_of(lambda: connect(Access(server.url)), ServiceError)
    assert f"{server.url}: cannot be reached: " in line


def test_a_server_that_keeps_failing(
    server: KubeflowServer, connection: Connection, config: Config
) -> None:
    server.faults = [Fault("POST", "/runs", 500, 10**6)]
    assert error_of(lambda: submit(config, connection, ""), ServiceError) == (
        f"Kubeflow Pipelines at {server.url}: as the test wants it (500)"
    )
    assert len(server.asked("POST", "/runs")) == 4


def test_a_proxy_that_keeps_failing(server: KubeflowServer) -> None:
    server.faults = [Fault("GET", "/healthz", 502, 10**6, body=b"<html>\xff\xfe</html>")]
    assert error_of(lambda: connect(Access(server.url)), ServiceError)
    server.faults = [Fault("GET", "/healthz", 502, 10**6, body=b"<html>Bad gateway</html>")]
    assert error_of(lambda: connect(Access(server.url)), ServiceError) == (
        f"Kubeflow Pipelines at {server.url}: failed (502)"
    )


@pytest.mark.parametrize("body", [b"null", b"3", b"true", b"[null]", b'"ok'])
def test_an_answer_that_is_none_of_kubeflow(body: bytes, server: KubeflowServer) -> None:
    server.faults = [
        Fault("GET", path, 200, 10**6, body=body) for path in ("/healthz", "/experiments")
    ]
    assert "is not one of Kubeflow Pipelines" in error_of(
        lambda: ask(Access(server.url)), ServiceError
    )


def test_a_list_of_nothing_is_none_of_kubeflow(server: KubeflowServer) -> None:
    connection = connect(Access(server.url))
    server.faults = [Fault("GET", "/experiments", 200, 10**6, body=b'{"experiments": [null]}')]
    page = connection.pages(
        connection.experiments.experiment_service_list_experiments, "experiments"
    )
    assert "is not one of Kubeflow Pipelines" in error_of(lambda: list(page), ServiceError)


def test_a_page_to_log_in_on(server: KubeflowServer) -> None:
    server.login_page = True
    assert error_of(lambda: connect(Access(server.url))).endswith(
        "answers with a web page; the address is wrong, or a login is needed (--token-file)"
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_a_proxy_that_redirects_to_a_page_to_log_in_on(
    status: int, server: KubeflowServer, connection: Connection
) -> None:
    """Nobody follows, and no try is repeated, whether something is read or created."""
    with KubeflowServer() as login:
        server.redirect = (status, f"{login.url}/dex/auth?state=secret")
        problem = (
            f"Kubeflow Pipelines at {server.url}: redirects to {login.url} ({status}); a login is "
            "needed (--token-file), or the address is wrong"
        )
        assert error_of(lambda: connect(Access(server.url))) == problem
        asked = len(server.requests)
        assert error_of(lambda: find_experiment(connection, "none")) == problem
        experiment = V2beta1Experiment(display_name="mine")
        create = connection.experiments.experiment_service_create_experiment
        assert error_of(lambda: connection.create(lambda: None, create, experiment)) == problem
        assert len(server.requests) - asked == 2
        assert login.requests == []


def test_a_server_that_has_moved_to_https(server: KubeflowServer) -> None:
    server.redirect = (301, "https://127.0.0.1/pipeline/")
    assert error_of(lambda: connect(Access(server.url))).endswith(
        "redirects to https://127.0.0.1 (301); give an address of https, and if a login is needed, "
        "--token-file"
    )


def test_tls(tmp_path: Path, config_path: Path) -> None:
    with KubeflowServer(tls=certificate(tmp_path)) as server:
        assert (
            f"{server.url}: TLS: certificate verify failed: self-signed certificate; a certificate"
            in error_of(lambda: connect(Access(server.url)))
        )
        ask(Access(server.url, ca_cert=tmp_path / "ca.pem"))
        missing = Access(server.url, ca_cert=tmp_path / "none.pem")
        assert error_of(lambda: connect(missing)) == (
            f"--ca-cert {tmp_path}/none.pem: there is no such file"
        )
        malformed = Access(server.url, ca_cert=config_path)
        assert "TLS: " in error_of(lambda: connect(malformed))
        plain = Access(server.url.replace("https", "http"))
        assert error_of(lambda: connect(plain), ServiceError)
    with KubeflowServer() as server:
        encrypted = Access(server.url.replace("http", "https"))
        assert "TLS: wrong version number" in error_of(lambda: connect(encrypted))
