"""What the tests give to the test server, and to the programs that call it."""

import ipaddress
import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

TOKEN = "eyJhbGciOi.a-token-that-nobody.may-see"
# Called with the words of a command, it returns exit status, output and errors.
Cli = Callable[..., tuple[int, str, str]]
# Called with the id of a run, it returns the lines that are said.
Follow = Callable[..., list[str]]
SHORT = (0.01, 0.01, 0.01)  # seconds between the tries of a call
NODE_NAME = "workflows.argoproj.io/node-name"
_RECORDED = Path(__file__).parent / "recorded"


def only(things: dict[str, Any]) -> dict[str, Any]:
    """Return the one thing that there is."""
    assert len(things) == 1
    thing: dict[str, Any] = next(iter(things.values()))
    return thing


def recorded(name: str) -> Any:
    """Return what Kubeflow Pipelines 2.17 or its Argo answered; see recorded/README.md."""
    return json.loads((_RECORDED / f"{name}.json").read_text())


def show(server: Any, *names: str, **changes: Any) -> str:
    """Let the test server have a recorded run, and return the run's id.

    Args:
        server: the test server.
        names: of the recorded answers, from one look at the run to the next; the last one stays.
        changes: of all answers.
    """
    answers = [{**recorded(name), **changes} for name in names]
    run_id: str = answers[0]["run_id"]
    reference = answers[0]["pipeline_version_reference"]
    version = {**reference, "pipeline_spec": recorded("pipeline-0.1.0"), "display_name": "0.1.0"}
    server.versions[reference["pipeline_version_id"]] = version
    server.runs[run_id] = dict(answers[0])
    server.script = answers
    return run_id


def tasks(**states: str) -> dict[str, Any]:
    """Return a run's tasks in these states as Kubeflow shows them, with Argo's own nodes."""
    times = {"start_time": "2026-11-24T21:30:00Z"}
    nodes = ("taylorglo-tiny-x7k2p", "root-driver", "root")
    details = [
        {"task_id": name, "display_name": name, "state": "RUNNING", **times} for name in nodes
    ]
    for number, (name, state) in enumerate(states.items(), 1):
        start = {"start_time": f"2026-11-24T21:30:{number:02d}Z"}
        for suffix, display in (("d", f"{name}-driver"), ("", name), ("e", "executor")):
            task = {
                "task_id": f"{number}{suffix}",
                "display_name": display.replace("_", "-"),
                "state": state,
            }
            details.append({**task, **start})
    return {"run_details": {"task_details": details}}


def pod(
    phase: str,
    *,
    node: str = "taylorglo-tiny-x7(0).root(0).prepare-dataset(0).executor(0)",
    name: str = "pod-1",
    run_id: str = "",
    status: dict[str, Any] | None = None,
    **state: Any,
) -> dict[str, Any]:
    """Return a pod as Argo makes it.

    Args:
        phase: of the pod.
        node: Argo's, the executor of prepare-dataset unless given.
        name: of the pod.
        run_id: of its run; empty: the next run that is created.
        status: more of the pod's status.
        state: of its main container.
    """
    container = {
        "name": "main",
        "ready": False,
        "restartCount": 0,
        "image": "i",
        "imageID": "",
        "state": state,
    }
    return {
        "metadata": {
            "name": name,
            "namespace": "kubeflow",
            "labels": {"pipeline/runid": run_id},
            "annotations": {NODE_NAME: node},
            "creationTimestamp": "2026-11-24T21:30:00Z",
        },
        "status": {"phase": phase, "containerStatuses": [container], **(status or {})},
    }


def write_kubeconfig(
    path: Path, url: str, *, user: dict[str, Any] | None = None, **cluster: Any
) -> None:
    """Write a kubeconfig whose only cluster is the test server.

    Args:
        path: of the file.
        url: of the test server.
        user: the credentials; None: the token.
        cluster: more keys of the cluster.
    """
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "clusters": [{"name": "tests", "cluster": {"server": url, **cluster}}],
        "users": [{"name": "tests", "user": user or {"token": TOKEN}}],
    }
    path.write_text(yaml.safe_dump(content))


def certificate(folder: Path) -> ssl.SSLContext:
    """Return a server's side of TLS on 127.0.0.1.

    Its certificate, which it has signed itself, is in ca.pem, and the key in key.pem.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context
