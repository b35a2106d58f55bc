"""The overlays of k8s/, rendered: rules, schemas, secrets, network policies, and the scripts."""

import base64
import copy
import runpy
import secrets
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import boto3
import kubectl
import manifests
import pytest
from manifests import (
    K8S,
    OVERLAYS,
    PIPELINES,
    SERVICES,
    VERSIONS,
    Object,
    faults,
    name_of,
    pods,
    reachable,
    render,
)

from taylorglo_pipelines.config import PipelineSettings, load
from taylorglo_pipelines.pipeline import resources

pytestmark = pytest.mark.skipif(
    kubectl.find() is None, reason="needs kubectl 1.27 or newer (make .venv/bin/kubectl)"
)

Overlays = dict[str, list[Object]]


@pytest.fixture(scope="module")
def rendered() -> Overlays:
    return {overlay: render(overlay) for overlay in OVERLAYS}


def named(objects: list[Object], name: str) -> Object:
    """Return the one object of this name, as :func:`manifests.name_of` gives it."""
    (thing,) = [thing for thing in objects if name_of(thing) == name]
    return thing


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_the_objects(rendered: Overlays, overlay: str, version: str) -> None:
    assert manifests.schema_faults(rendered[overlay], version) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rules_of_the_project_hold(rendered: Overlays, overlay: str) -> None:
    assert faults(rendered[overlay]) == []
    particular = {
        "local": {
            f"StatefulSet {SERVICES}/postgresql",
            f"StatefulSet {SERVICES}/seaweedfs",
            f"Job {SERVICES}/databases",
        },
        "gpu": {f"Job {PIPELINES}/gpu-check", f"CronJob {SERVICES}/bucket-backup"},
    }
    assert {name_of(thing) for thing, _ in pods(rendered[overlay])} == {
        f"Deployment {SERVICES}/mlflow",
        f"Job {SERVICES}/bucket",
        f"CronJob {SERVICES}/backup",
        f"CronJob {SERVICES}/restore-drill",
        *particular[overlay],
    }


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        (f"Deployment {SERVICES}/mlflow", ("securityContext", "runAsUser", 0), "runs as root"),
        (f"Deployment {SERVICES}/mlflow", ("securityContext", "seccompProfile", None), "seccomp"),
        (
            f"Deployment {SERVICES}/mlflow",
            ("containers", 0, "image", "mlflow"),
            "no fixed version: mlflow",
        ),
        (
            f"Deployment {SERVICES}/mlflow",
            ("containers", 0, "securityContext", "privileged", True),
            "security context",
        ),
        (
            f"Deployment {SERVICES}/mlflow",
            ("containers", 0, "resources", "limits", {}),
            "no limits",
        ),
        (
            f"Deployment {SERVICES}/mlflow",
            ("containers", 0, "envFrom", 0, "configMapRef", "name", "other"),
            "'other'",
        ),
        (
            f"Deployment {SERVICES}/mlflow",
            ("containers", 0, "env", 0, {"name": "PGPASSWORD", "value": "x"}),
            "plain",
        ),
        (
            f"StatefulSet {SERVICES}/postgresql",
            ("serviceAccountName", "other"),
            "no ServiceAccount 'other'",
        ),
        (f"StatefulSet {SERVICES}/postgresql", ("automountServiceAccountToken", True), "token"),
    ],
)
def test_a_broken_pod_is_noticed(
    rendered: Overlays, name: str, change: tuple[Any, ...], fault: str
) -> None:
    objects = copy.deepcopy(rendered["local"])
    place = named(objects, name)["spec"]["template"]["spec"]
    *path, key, value = change
    for step in path:
        place = place[step]
    place[key] = value
    assert [message for message in faults(objects) if fault in message]


def test_a_namespace_that_is_open_is_noticed(rendered: Overlays) -> None:
    objects = [
        thing
        for thing in rendered["local"]
        if name_of(thing) != f"NetworkPolicy {SERVICES}/default-deny"
    ]
    assert [message for message in faults(objects) if "not denied by default" in message]
    assert manifests.schema_faults([{**rendered["local"][0], "sepc": {}}], VERSIONS[0])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_secret_goes_where_it_is_needed_and_nowhere_else(
    rendered: Overlays, overlay: str
) -> None:
    holders: dict[str, set[str]] = {}
    for thing in rendered[overlay]:
        if thing["kind"] == "Secret":
            for key, value in thing.get("data", {}).items():
                content = base64.b64decode(value).decode()
                if content.startswith("secret-"):
                    holders.setdefault(content.removeprefix("secret-"), set()).add(
                        f"{name_of(thing)} {key}"
                    )
        else:
            assert "secret-" not in str(thing)
            assert base64.b64encode(b"secret-").decode()[:8] not in str(thing)
    databases = f"Secret {SERVICES}/databases"
    s3 = f"Secret {SERVICES}/s3"
    pipelines = f"Secret {PIPELINES}/taylorglo"
    expected = {
        "MLFLOW_PASSWORD": {f"{databases} MLFLOW_PASSWORD"},
        "OPTUNA_PASSWORD": {f"{databases} OPTUNA_PASSWORD", f"{pipelines} PGPASSWORD"},
        "AWS_ACCESS_KEY_ID": {f"{s3} AWS_ACCESS_KEY_ID", f"{pipelines} AWS_ACCESS_KEY_ID"},
        "AWS_SECRET_ACCESS_KEY": {
            f"{s3} AWS_SECRET_ACCESS_KEY",
            f"{pipelines} AWS_SECRET_ACCESS_KEY",
        },
    }
    if overlay == "local":
        expected["POSTGRES_PASSWORD"] = {f"Secret {SERVICES}/postgresql POSTGRES_PASSWORD"}
    else:
        login, backup = f"Secret {SERVICES}/mlflow-login", f"Secret {SERVICES}/bucket-backup"
        rclone = "RCLONE_CONFIG_BACKUP"
        expected |= {
            "MLFLOW_ADMIN_PASSWORD": {f"{login} MLFLOW_AUTH_ADMIN_PASSWORD"},
            "MLFLOW_SESSION_KEY": {f"{login} MLFLOW_FLASK_SERVER_SECRET_KEY"},
            "MLFLOW_TRACKING_USERNAME": {f"{pipelines} MLFLOW_TRACKING_USERNAME"},
            "MLFLOW_TRACKING_PASSWORD": {f"{pipelines} MLFLOW_TRACKING_PASSWORD"},
            "BACKUP_ACCESS_KEY_ID": {f"{backup} {rclone}_ACCESS_KEY_ID"},
            "BACKUP_SECRET_ACCESS_KEY": {f"{backup} {rclone}_SECRET_ACCESS_KEY"},
        }
    assert holders == expected


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pipeline_finds_the_keys_that_it_refers_to(rendered: Overlays, overlay: str) -> None:
    config = named(rendered[overlay], f"ConfigMap {PIPELINES}/taylorglo")["data"]
    secret = named(rendered[overlay], f"Secret {PIPELINES}/taylorglo")
    services = resources.ALL_SERVICES
    assert set(config) == {*services.config.values(), *services.optional_config.values()}
    keys = {*secret["data"], *secret["stringData"]}
    assert set(services.secret.values()) <= keys
    assert keys - set(services.secret.values()) <= set(services.optional_secret.values())
    assert PipelineSettings().config_map == PipelineSettings().secret == "taylorglo"
    own = named(rendered[overlay], f"ConfigMap {SERVICES}/services")["data"]
    _, _, mlflow = config["MLFLOW_TRACKING_URI"].partition("//")
    assert mlflow in own["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert config["TAYLORGLO_STORE_URI"].startswith(f"s3://{own['S3_BUCKET']}/")
    assert own["MLFLOW_ARTIFACTS_DESTINATION"].startswith(f"s3://{own['S3_BUCKET']}/")


def test_the_network_policies_allow_the_needed_connections_alone(rendered: Overlays) -> None:
    objects = rendered["local"]
    services = {
        thing["metadata"]["name"]: (SERVICES, template["metadata"]["labels"])
        for thing, template in pods(objects)
        if thing["metadata"]["namespace"] == SERVICES
    }
    pipeline = (PIPELINES, resources.LABELS)
    strangers = {
        "a neighbour of the pipelines": (PIPELINES, {}),
        "another namespace": ("default", pipeline[1]),
    }
    ports = {"mlflow": 5000, "postgresql": 5432, "seaweedfs": 8333}
    ways = {
        (source, target)
        for source, pod in {**services, "pipeline": pipeline, **strangers}.items()
        for target, port in ports.items()
        if source != target and reachable(objects, pod, services[target], port)
    }
    assert ways == {
        ("mlflow", "postgresql"),
        ("mlflow", "seaweedfs"),
        ("bucket", "seaweedfs"),
        ("databases", "postgresql"),
        ("backup", "postgresql"),
        ("backup", "seaweedfs"),
        ("restore-drill", "seaweedfs"),
        ("pipeline", "mlflow"),
        ("pipeline", "postgresql"),
        ("pipeline", "seaweedfs"),
    }
    assert not reachable(objects, services["mlflow"], ("default", {}), 443)
    assert reachable(objects, services["mlflow"], ("kube-system", {"k8s-app": "kube-dns"}), 53)
    others = [*services.values(), *strangers.values()]
    assert not any(reachable(objects, pod, pipeline, 8080) for pod in others)


def rights(objects: list[Any], account: str) -> set[tuple[str, str, str]]:
    """Return the rights of an account, which one role gives: verb, resource and name of each."""
    (binding,) = [
        thing
        for thing in objects
        if thing["kind"] in ("RoleBinding", "ClusterRoleBinding")
        and thing["metadata"]["name"] == account
    ]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account, "namespace": PIPELINES}
    ]
    assert binding["roleRef"]["kind"] == "Role"
    role = named(objects, f"Role {PIPELINES}/{binding['roleRef']['name']}")
    return {
        (verb, resource, name)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
    }


def test_rights_of_the_accounts(rendered: Overlays) -> None:
    for objects in rendered.values():
        roles = {thing["metadata"]["name"] for thing in objects if "Role" in thing["kind"]}
        assert roles == {"taylorglo-pipeline", "taylorglo-submitter"}
        assert rights(objects, "taylorglo-pipeline") == {
            ("create", "workflowtaskresults", "*"),
            ("patch", "workflowtaskresults", "*"),
            ("get", "configmaps", "kfp-launcher"),
            ("get", "secrets", "mlpipeline-minio-artifact"),
            ("get", "pods", "*"),
            ("list", "pods", "*"),
        }
        read = ("pods", "pods/log", "events", "workflows", "scheduledworkflows")
        assert rights(objects, "taylorglo-submitter") == {
            (verb, resource, "*") for verb in ("get", "list") for resource in read
        }


def test_the_gpu_overlay_keeps_no_server_and_pulls_with_a_login(rendered: Overlays) -> None:
    objects = rendered["gpu"]
    assert "StatefulSet" not in {thing["kind"] for thing in objects}
    for thing in objects:
        if thing["kind"] == "ServiceAccount":
            assert thing["imagePullSecrets"] == [{"name": "registry"}]
    # The pod that checks for a GPU is placed like the tasks of a sweep with the sample
    # configuration.
    check = named(objects, f"Job {PIPELINES}/gpu-check")["spec"]["template"]["spec"]
    layout = load(K8S / "overlays/gpu/sweep.yaml").pipeline
    assert check["nodeSelector"] == layout.node_selector != {}
    tolerations = [
        toleration.model_dump(exclude_defaults=True) for toleration in layout.tolerations
    ]
    assert check["tolerations"] == tolerations != []
    assert check["containers"][0]["resources"]["limits"][layout.accelerator] == "1"
    assert check["containers"][0]["image"] == layout.image
    assert check["serviceAccountName"] == layout.service_account
    quota = named(objects, f"ResourceQuota {PIPELINES}/gpus")["spec"]["hard"]
    assert list(quota) == [f"requests.{layout.accelerator}"]


def test_without_a_secrets_file_nothing_is_rendered(tmp_path: Path) -> None:
    root = shutil.copytree(K8S, tmp_path / "k8s", ignore=shutil.ignore_patterns("secrets.env"))
    process = subprocess.run(
        [str(kubectl.find()), "kustomize", str(root / "overlays/local")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode != 0
    assert process.stdout == ""
    assert "secrets.env" in process.stderr


def test_the_images_that_a_developer_builds_are_those_of_this_version(rendered: Overlays) -> None:
    project = tomllib.loads((K8S.parent / "pyproject.toml").read_text())["project"]
    version = project["version"]
    images = {
        container["image"]
        for objects in rendered.values()
        for _, template in pods(objects)
        for container in manifests.containers(template)
    }
    assert {image for image in images if "taylorglo" in image} == {
        f"taylorglo-mlflow:{version}",
        f"registry.example.org/taylorglo-mlflow:{version}",
        f"registry.example.org/taylorglo:{version}",
    }


def script(name: str) -> dict[str, Any]:
    """Run a script of the services; return its names."""
    return runpy.run_path(str(K8S / "base/services" / name))


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket on the real S3 server that the scripts find, and that is not there yet."""
    # boto3's session keeps the first credentials that it saw.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    name = f"k8s-{secrets.token_hex(6)}"
    for variable, value in {**s3.env(), "S3_BUCKET": name}.items():
        monkeypatch.setenv(variable, value)
    return boto3.session.Session().resource("s3").Bucket(name)


def test_the_bucket_is_created_once(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script("bucket.py")["main"]
    assert main() == 0
    bucket.put_object(Key="x", Body=b"kept")
    assert main() == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "created",
        "is there",
    ]
    assert [stored.key for stored in bucket.objects.all()] == ["x"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert main() == 1
    assert "wrong" not in capsys.readouterr().err


def test_a_backup_keeps_the_newest_fourteen(
    bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.create()
    for day in range(10, 30):
        bucket.put_object(Key=f"backups/202001{day}T000000Z/mlflow.dump", Body=b"old")
    bucket.put_object(Key="sweeps/digits/run.json", Body=b"{}")
    (tmp_path / "mlflow.dump").write_bytes(b"new")
    main = script("backup.py")["main"]
    main.__globals__["DUMPS"] = tmp_path
    main()
    kept = [stored.key for stored in bucket.objects.all()]
    assert [key for key in kept if key.startswith("backups/2020")] == [
        f"backups/202001{day}T000000Z/mlflow.dump" for day in range(17, 30)
    ]
    (newest,) = [key for key in kept if key.startswith("backups/") and "/2020" not in key]
    assert bucket.Object(newest).get()["Body"].read() == b"new"
    assert "sweeps/digits/run.json" in kept
    assert capsys.readouterr().out.count("removed") == 7
