"""The overlays of k8s/, rendered: rules, schemas, who gets which secret, who can reach whom, and
the two scripts."""

import base64
import copy
import re
import runpy
import shutil
import subprocess
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


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[dict[str, Any]]]:
    return {overlay: render(overlay) for overlay in OVERLAYS}


def found(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (thing,) = [thing for thing in objects if name_of(thing) == name]
    return thing


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_the_objects(rendered, overlay, version):
    assert manifests.schema_faults(rendered[overlay], version) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rules_of_the_project_hold(rendered, overlay):
    assert faults(rendered[overlay]) == []
    assert {name_of(thing) for thing, _ in pods(rendered[overlay])} == {
        f"Deployment {SERVICES}/mlflow",
        f"Job {SERVICES}/bucket",
        f"CronJob {SERVICES}/backup",
        *(
            (
                f"StatefulSet {SERVICES}/postgresql",
                f"StatefulSet {SERVICES}/seaweedfs",
                f"Job {SERVICES}/databases",
            )
            if overlay == "local"
            else (f"Job {PIPELINES}/gpu-check",)
        ),
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
def test_a_broken_pod_is_noticed(rendered, name, change, fault):
    objects = copy.deepcopy(rendered["local"])
    place = found(objects, name)["spec"]["template"]["spec"]
    *path, key, value = change
    for step in path:
        place = place[step]
    place[key] = value
    assert [each for each in faults(objects) if fault in each]


def test_a_namespace_that_is_open_is_noticed(rendered):
    objects = [
        thing
        for thing in rendered["local"]
        if name_of(thing) != f"NetworkPolicy {SERVICES}/default-deny"
    ]
    assert [each for each in faults(objects) if "not denied by default" in each]
    assert manifests.schema_faults([{**rendered["local"][0], "sepc": {}}], VERSIONS[0])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_secret_goes_where_it_is_needed_and_nowhere_else(rendered, overlay):
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
    databases, s3, pipelines = (
        f"Secret {SERVICES}/databases",
        f"Secret {SERVICES}/s3",
        f"Secret {PIPELINES}/taylorglo",
    )
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
    assert holders == expected


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pipeline_finds_the_keys_that_it_refers_to(rendered, overlay):
    config = found(rendered[overlay], f"ConfigMap {PIPELINES}/taylorglo")["data"]
    secret = found(rendered[overlay], f"Secret {PIPELINES}/taylorglo")
    assert set(config) == {*resources.CONFIG_KEYS, *resources.OPTIONAL_CONFIG_KEYS}
    assert {*secret["data"], *secret["stringData"]} == set(resources.SECRET_KEYS)
    assert PipelineSettings().config_map == PipelineSettings().secret == "taylorglo"
    hosts = found(rendered[overlay], f"ConfigMap {SERVICES}/services")["data"]
    assert re.search(r"//([^/]+)$", config["MLFLOW_TRACKING_URI"])[1] in hosts[
        "MLFLOW_SERVER_ALLOWED_HOSTS"
    ].split(",")
    assert config["TAYLORGLO_STORE_URI"].startswith(f"s3://{hosts['S3_BUCKET']}/")
    assert hosts["MLFLOW_ARTIFACTS_DESTINATION"].startswith(f"s3://{hosts['S3_BUCKET']}/")


def test_who_reaches_whom(rendered):
    objects = rendered["local"]
    own = {
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
        for source, pod in {**own, "pipeline": pipeline, **strangers}.items()
        for target, port in ports.items()
        if source != target and reachable(objects, pod, own[target], port)
    }
    assert ways == {
        ("mlflow", "postgresql"),
        ("mlflow", "seaweedfs"),
        ("bucket", "seaweedfs"),
        ("databases", "postgresql"),
        ("backup", "postgresql"),
        ("backup", "seaweedfs"),
        ("pipeline", "mlflow"),
        ("pipeline", "postgresql"),
        ("pipeline", "seaweedfs"),
    }
    assert not reachable(objects, own["mlflow"], ("default", {}), 443)
    assert reachable(objects, own["mlflow"], ("kube-system", {"k8s-app": "kube-dns"}), 53)
    assert not any(
        reachable(objects, pod, pipeline, 8080) for pod in [*own.values(), *strangers.values()]
    )


def test_rights_of_the_pipelines_account(rendered):
    for objects in rendered.values():
        rules = [
            rule
            for thing in objects
            if thing["kind"] in ("Role", "ClusterRole")
            for rule in thing["rules"]
        ]
        granted = {
            (verb, resource, name)
            for rule in rules
            for verb in rule["verbs"]
            for resource in rule["resources"]
            for name in rule.get("resourceNames", ["*"])
        }
        assert granted == {
            ("create", "workflowtaskresults", "*"),
            ("patch", "workflowtaskresults", "*"),
            ("get", "configmaps", "kfp-launcher"),
            ("get", "secrets", "mlpipeline-minio-artifact"),
            ("get", "pods", "*"),
            ("list", "pods", "*"),
        }
        (binding,) = [
            thing for thing in objects if thing["kind"] in ("RoleBinding", "ClusterRoleBinding")
        ]
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "taylorglo-pipeline", "namespace": PIPELINES}
        ]


def test_the_gpu_overlay_keeps_no_server_and_pulls_with_a_login(rendered):
    objects = rendered["gpu"]
    assert "StatefulSet" not in {thing["kind"] for thing in objects}
    for thing in objects:
        if thing["kind"] == "ServiceAccount":
            assert thing["imagePullSecrets"] == [{"name": "registry"}]
    # The pod that checks for a GPU is placed as the tasks of a sweep with the sample of a
    # configuration are.
    check = found(objects, f"Job {PIPELINES}/gpu-check")["spec"]["template"]["spec"]
    layout = load(K8S / "overlays/gpu/sweep.yaml").pipeline
    assert check["nodeSelector"] == layout.node_selector != {}
    assert (
        check["tolerations"]
        == [each.model_dump(exclude_defaults=True) for each in layout.tolerations]
        != []
    )
    assert check["containers"][0]["resources"]["limits"][layout.accelerator] == "1"
    assert check["containers"][0]["image"] == layout.image
    assert check["serviceAccountName"] == layout.service_account
    quota = found(objects, f"ResourceQuota {PIPELINES}/gpus")["spec"]["hard"]
    assert list(quota) == [f"requests.{layout.accelerator}"]


def test_without_a_secrets_file_nothing_is_rendered(tmp_path):
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


def test_the_images_that_a_developer_builds_are_those_of_this_version(rendered):
    version = re.search(r'^version = "(.+)"', (K8S.parent / "pyproject.toml").read_text(), re.M)[1]
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


# The scripts, against a real store


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(K8S / "base/services" / name))


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        boto3, "DEFAULT_SESSION", None
    )  # it keeps the first credentials that it saw
    for name, value in {**s3.env(), "S3_BUCKET": f"k8s-{id(monkeypatch)}"}.items():
        monkeypatch.setenv(name, value)
    return boto3.session.Session().resource("s3").Bucket(f"k8s-{id(monkeypatch)}")


def test_the_bucket_is_created_once(bucket, monkeypatch, capsys):
    main = script("bucket.py")["main"]
    assert main() == 0
    bucket.put_object(Key="x", Body=b"kept")
    assert main() == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "created",
        "is there",
    ]
    assert [each.key for each in bucket.objects.all()] == ["x"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert main() == 1
    assert "wrong" not in capsys.readouterr().err


def test_a_backup_keeps_the_newest_fourteen(bucket, tmp_path: Path, capsys):
    bucket.create()
    for day in range(10, 30):
        bucket.put_object(Key=f"backups/202001{day}T000000Z/mlflow.dump", Body=b"old")
    bucket.put_object(Key="sweeps/digits/run.json", Body=b"{}")
    (tmp_path / "mlflow.dump").write_bytes(b"new")
    main = script("backup.py")["main"]
    main.__globals__["DUMPS"] = tmp_path
    main()
    kept = [each.key for each in bucket.objects.all()]
    assert [key for key in kept if key.startswith("backups/2020")] == [
        f"backups/202001{day}T000000Z/mlflow.dump" for day in range(17, 30)
    ]
    (newest,) = [key for key in kept if key.startswith("backups/") and "/2020" not in key]
    assert bucket.Object(newest).get()["Body"].read() == b"new"
    assert "sweeps/digits/run.json" in kept
    assert capsys.readouterr().out.count("removed") == 7
