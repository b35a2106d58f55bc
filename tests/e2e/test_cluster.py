"""The local overlay applied to a real cluster, and a sweep in it; run with ``make e2e-cluster``.

The tests need KUBECONFIG, a cluster without a namespace ``taylorglo``, and both images in it
(``make images``; ``kind load ...``). If the cluster cannot pull the images of PostgreSQL and
SeaweedFS, TAYLORGLO_E2E_BUILD_IMAGE is a command that builds stand-ins for them, and an image with
a training of its own; it is called as ``COMMAND TAG CONTEXT DOCKERFILE [--build-arg A=B]``.
TAYLORGLO_E2E_IMAGE is the component image, unless it is ``taylorglo:VERSION``.
"""

import base64
import io
import json
import os
import re
import secrets
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from cluster import Cluster, Object, program, reason_for_none
from jobs import RESTRICTED, Jobs
from manifests import K8S, PIPELINES, SERVICES, containers, pods, render
from mlflow import MlflowClient
from sweeps import CONFIG, SMALL, SMALL_OF_OWN_TRAINING, merged

from taylorglo.components import IMAGE as DEFAULT_IMAGE
from taylorglo_pipelines.config import load
from taylorglo_pipelines.pipeline.compile import compile_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
HERE = Path(__file__).parent
IMAGE = os.environ.get("TAYLORGLO_E2E_IMAGE") or DEFAULT_IMAGE
BUILD = os.environ.get("TAYLORGLO_E2E_BUILD_IMAGE", "")
ACCOUNT = "taylorglo-pipeline"
OWN = {"taylorglo-e2e": "true"}  # the label of the namespaces that these tests may delete


@dataclass(frozen=True)
class Installed:
    """The overlay in the cluster, and the secrets that it was given."""

    cluster: Cluster
    objects: list[Object]
    values: dict[str, str]

    def s3(self, address: str, **changed: str) -> Any:
        """Return a client for the in-cluster store behind this forwarded address."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=f"http://{address}",
            region_name="us-east-1",
            aws_access_key_id=self.values["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=changed.get("secret", self.values["AWS_SECRET_ACCESS_KEY"]),
        )

    def psql(self, user: str, database: str, statement: str, password: str = "") -> str:
        """Run a statement over TCP with a password, as a client would; return psql's output."""
        password = password or self.values[f"{user.upper()}_PASSWORD"]
        psql = ["psql", "-h", "127.0.0.1", "-U", user, "-d", database, "-At", "-c", statement]
        command = f"PGPASSWORD={password} {shlex.join(psql)}"
        words = ("-n", SERVICES, "exec", "postgresql-0", "--", "sh", "-c", command)
        return self.cluster.kubectl(*words).strip()


def own_namespace(cluster: Cluster, name: str) -> bool:
    """Return whether there is a namespace of this name, and these tests made it."""
    if not cluster.exists("namespace", name):
        return False
    return bool(OWN.items() <= cluster.get("namespace", name)["metadata"].get("labels", {}).items())


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    if reason := reason_for_none():
        pytest.skip(reason)
    cluster = Cluster()
    if cluster.exists("namespace", SERVICES) and not own_namespace(cluster, SERVICES):
        pytest.fail(
            f"the cluster has a namespace {SERVICES} already, which these tests would delete"
        )
    remove(cluster)
    example = (K8S / "overlays/local/secrets/example.env").read_text()
    values = {name: secrets.token_hex(16) for name in re.findall(r"^(\w+)=", example, re.M)}
    served = cluster.kubectl("get", "--raw", "/apis/batch/v1")
    objects = render("local", None if "cronjobs" in served else HERE / "kubernetes-1.20", values)
    build_stand_ins(objects)
    if not cluster.exists("namespace", PIPELINES):
        namespace = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": PIPELINES, "labels": OWN},
        }
        cluster.apply([namespace])
    for thing in objects:
        if thing["kind"] == "Namespace":
            thing["metadata"]["labels"].update(OWN)
    cluster.apply(objects)
    try:
        for name in ("statefulset/postgresql", "statefulset/seaweedfs", "deployment/mlflow"):
            cluster.rolled_out(SERVICES, name)
        yield Installed(cluster, objects, values)
    finally:
        remove(cluster)


def remove(cluster: Cluster) -> None:
    """Remove the namespaces that these tests made, in every state that they may be in."""
    for name in (SERVICES, PIPELINES):
        if own_namespace(cluster, name):
            cluster.kubectl("delete", "namespace", name, "--timeout=180s", seconds=200)


def build_stand_ins(objects: list[Object]) -> None:
    """Build images in place of those that the cluster cannot pull, if there is a command for it."""
    if not BUILD:
        return
    images = {
        container["image"] for _, template in pods(objects) for container in containers(template)
    }
    for folder, name in (
        ("postgresql", "library/postgres:"),
        ("seaweedfs", "chrislusf/seaweedfs:"),
    ):
        (tag,) = [image for image in images if name in image]
        context = HERE / "images" / folder
        build_image(tag, context)


def build_image(tag: str, context: Path, *words: str) -> None:
    """Build the image of the Dockerfile in a folder, and bring it into the cluster."""
    dockerfile = str(context / "Dockerfile")
    subprocess.run([*shlex.split(BUILD), tag, str(context), dockerfile, *words], check=True)


def job_like_a_task(name: str, source: str) -> Object:
    """Return a Job that runs Python code in a pod like that of a sweep's task.

    Account, Secret, ConfigMap, security context and label are those of a task.
    """
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": PIPELINES},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/part-of": "taylorglo"}},
                "spec": {
                    "restartPolicy": "Never",
                    "serviceAccountName": ACCOUNT,
                    "containers": [
                        {
                            "name": "task",
                            "image": IMAGE,
                            "imagePullPolicy": "IfNotPresent",
                            "command": ["python3", "-c", source],
                            "envFrom": [
                                {"configMapRef": {"name": "taylorglo"}},
                                {"secretRef": {"name": "taylorglo"}},
                            ],
                            "securityContext": {**RESTRICTED, "runAsNonRoot": True},
                            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                        }
                    ],
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                },
            },
        },
    }


LOG_A_RUN = """
import os
import pathlib
from mlflow import MlflowClient

client = MlflowClient()
store = os.environ["TAYLORGLO_STORE_URI"]
for name, place in (("through-the-server", None), ("to-the-store", store + "/mlflow")):
    run = client.create_run(client.create_experiment(name, artifact_location=place))
    client.log_metric(run.info.run_id, "fitness", 0.75, step=3)
    path = pathlib.Path("/tmp/note.txt")
    path.write_text(name)
    client.log_artifact(run.info.run_id, str(path))
    client.set_terminated(run.info.run_id)
    print("RUN", name, run.info.run_id)
"""

LOOK_AROUND = """
import os
import pathlib

lines = pathlib.Path("/proc/self/status").read_text().splitlines()
status = dict(line.split(":", 1) for line in lines if ":" in line)
print("UID", os.getuid() != 0, "CAPS", int(status["CapEff"], 16))
print("NNP", int(status["NoNewPrivs"]), "SECCOMP", int(status["Seccomp"]))
for folder in ("/", "/opt", "/usr/local", "/var/tmp", os.path.dirname(os.__file__)):
    try:
        pathlib.Path(folder, "x").write_text("x")
        print("WRITTEN", folder)
    except OSError as error:
        print("REFUSED", folder, error.strerror)
"""


@pytest.fixture(scope="module")
def logged(installed: Installed) -> dict[str, str]:
    """The ids of the runs that a component pod logged, by experiment."""
    installed.cluster.apply([job_like_a_task("log-a-run", LOG_A_RUN)])
    log = installed.cluster.finished(PIPELINES, "log-a-run")
    return dict(re.findall(r"^RUN (\S+) (\S+)$", log, re.M))


def check_runs(installed: Installed, logged: dict[str, str]) -> None:
    """Check every run with its figures, status and artifact, from outside of the cluster."""
    cluster = installed.cluster
    with (
        cluster.forwarded(SERVICES, "mlflow", 5000) as mlflow,
        cluster.forwarded(SERVICES, "seaweedfs", 8333) as s3,
    ):
        client = MlflowClient(tracking_uri=f"http://{mlflow}")
        for name, run_id in logged.items():
            run = client.get_run(run_id)
            assert run.info.status == "FINISHED"
            history = client.get_metric_history(run_id, "fitness")
            assert [(point.step, point.value) for point in history] == [(3, 0.75)]
            if name == "through-the-server":
                assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
                address = f"http://{mlflow}/get-artifact?path=note.txt&run_uuid={run_id}"
                assert urllib.request.urlopen(address, timeout=20).read().decode() == name
                prefix = "mlflow-artifacts/"
            else:
                prefix = "sweeps/mlflow/"
            store = installed.s3(s3)
            listed = store.list_objects_v2(Bucket="taylorglo", Prefix=prefix)["Contents"]
            (key,) = [entry["Key"] for entry in listed if run_id in entry["Key"]]
            assert key.rpartition("/")[2] == "note.txt"
            note = store.get_object(Bucket="taylorglo", Key=key)["Body"].read()
            assert note.decode() == name


def test_the_services_come_up(installed: Installed) -> None:
    for job in ("bucket", "databases"):
        # A Job removes itself ten minutes after its end.
        if installed.cluster.exists("-n", SERVICES, "job", job):
            installed.cluster.finished(SERVICES, job)
    assert int(installed.psql("mlflow", "mlflow", "SELECT count(*) FROM experiments")) >= 1
    assert installed.psql("optuna", "optuna", "SELECT current_user") == "optuna"
    assert {pod["spec"]["serviceAccountName"] for pod in running(installed)} == {
        "mlflow",
        "postgresql",
        "seaweedfs",
    }


def running(installed: Installed) -> list[Object]:
    """Return the running pods of the services."""
    listed: list[Object] = installed.cluster.get(
        "-n", SERVICES, "pods", "--field-selector=status.phase=Running"
    )["items"]
    return listed


def test_a_pipeline_pod_logs_to_mlflow(installed: Installed, logged: dict[str, str]) -> None:
    assert set(logged) == {"through-the-server", "to-the-store"}
    check_runs(installed, logged)


@pytest.mark.parametrize("name", ["mlflow", "postgresql", "seaweedfs"])
def test_runs_survive_the_end_of_a_pod(
    installed: Installed, logged: dict[str, str], name: str
) -> None:
    cluster = installed.cluster
    former = cluster.pod(SERVICES, name)
    uid = cluster.get("-n", SERVICES, "pod", former)["metadata"]["uid"]
    cluster.kubectl("-n", SERVICES, "delete", "pod", former, "--wait=true")
    for workload in ("statefulset/postgresql", "statefulset/seaweedfs", "deployment/mlflow"):
        cluster.rolled_out(SERVICES, workload)
    assert cluster.get("-n", SERVICES, "pod", cluster.pod(SERVICES, name))["metadata"]["uid"] != uid
    check_runs(installed, logged)


def test_wrong_credentials_are_refused(installed: Installed) -> None:
    with installed.cluster.forwarded(SERVICES, "seaweedfs", 8333) as address:
        assert installed.s3(address).list_objects_v2(Bucket="taylorglo")["KeyCount"] > 0
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            installed.s3(address, secret="wrong").list_objects_v2(Bucket="taylorglo")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://{address}/taylorglo", timeout=10)
    with pytest.raises(AssertionError, match="password authentication failed"):
        installed.psql("mlflow", "mlflow", "SELECT 1", password="wrong")
    with pytest.raises(AssertionError, match="permission denied for database"):
        installed.psql("optuna", "mlflow", "SELECT 1")
    with pytest.raises(AssertionError, match="permission denied for database"):
        installed.psql("mlflow", "optuna", "SELECT 1")


def test_a_changed_password_is_set_by_applying_anew(installed: Installed) -> None:
    cluster = installed.cluster
    databases = {
        thing["kind"]: thing
        for thing in installed.objects
        if thing["metadata"]["name"] == "databases"
    }
    job, secret = databases["Job"], databases["Secret"]
    former, changed = installed.values["OPTUNA_PASSWORD"], "another"
    for password, refused in ((changed, former), (former, changed)):
        data = {**secret["data"], "OPTUNA_PASSWORD": base64.b64encode(password.encode()).decode()}
        cluster.kubectl("-n", SERVICES, "delete", "job", "databases", "--ignore-not-found")
        cluster.apply([{**secret, "data": data}, job])
        cluster.finished(SERVICES, "databases")
        assert installed.psql("optuna", "optuna", "SELECT 1", password=password) == "1"
        with pytest.raises(AssertionError, match="password authentication failed"):
            installed.psql("optuna", "optuna", "SELECT 1", password=refused)


def test_mlflow_answers_to_its_own_names_only(installed: Installed) -> None:
    with installed.cluster.forwarded(SERVICES, "mlflow", 5000) as address:
        path = f"http://{address}/api/2.0/mlflow/experiments/search?max_results=1"
        request = urllib.request.Request(path, headers={"Host": "mlflow.taylorglo:5000"})
        assert urllib.request.urlopen(request, timeout=10).status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(
                urllib.request.Request(path, headers={"Host": "evil.example.org"}), timeout=10
            )


def test_rights_of_the_pipelines_account(installed: Installed) -> None:
    def may(
        verb: str, resource: str, name: str = "", group: str = "", subresource: str = ""
    ) -> bool:
        attributes = {
            "namespace": PIPELINES,
            "verb": verb,
            "resource": resource,
            "name": name,
            "group": group,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{PIPELINES}:{ACCOUNT}",
                "groups": [
                    "system:serviceaccounts",
                    f"system:serviceaccounts:{PIPELINES}",
                    "system:authenticated",
                ],
                "resourceAttributes": {**attributes, "subresource": subresource},
            },
        }
        answer = installed.cluster.kubectl(
            "create", "-f", "-", "-o", "json", text=json.dumps(review)
        )
        return bool(json.loads(answer)["status"]["allowed"])

    assert may("create", "workflowtaskresults", group="argoproj.io")
    assert may("get", "configmaps", "kfp-launcher")
    assert may("get", "secrets", "mlpipeline-minio-artifact")
    assert not may("get", "secrets", "taylorglo")
    assert not may("list", "secrets")
    assert not may("get", "configmaps", "taylorglo")
    assert not may("create", "pods")
    assert not may("create", "pods", subresource="exec")
    assert not may("delete", "pods")
    assert not may("patch", "workflows", group="argoproj.io")


def test_pods_can_neither_write_nor_rise(installed: Installed) -> None:
    cluster = installed.cluster
    cluster.apply([job_like_a_task("look-around", LOOK_AROUND)])
    log = cluster.finished(PIPELINES, "look-around")
    assert "UID True CAPS 0\nNNP 1 SECCOMP 2\n" in log
    assert "WRITTEN" not in log
    assert log.count("Read-only file system") >= 4
    for pod in running(installed):
        name = pod["metadata"]["name"]
        shown = cluster.kubectl("-n", SERVICES, "exec", name, "--", "cat", "/proc/1/status")
        status = dict(line.split(":", 1) for line in shown.splitlines())
        assert int(status["Uid"].split()[0]) > 0
        assert int(status["CapBnd"], 16) == 0
        assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
        refused = cluster.attempt(
            "-n", SERVICES, "exec", name, "--", "sh", "-c", "echo x >/usr/x; echo x >/x"
        )
        assert refused.stderr.count("Read-only file system") == 2
        assert not any(
            "serviceaccount" in mount["mountPath"]
            for mount in pod["spec"]["containers"][0]["volumeMounts"]
        )


def test_a_backup_can_be_put_back(installed: Installed, logged: dict[str, str]) -> None:
    cluster = installed.cluster
    job = cluster.get("-n", SERVICES, "cronjob", "backup")["spec"]["jobTemplate"]
    metadata = {"name": "backup-by-hand", "namespace": SERVICES}
    cluster.apply(
        [{"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job["spec"]}]
    )
    log = cluster.finished(SERVICES, "backup-by-hand")
    dumps = re.findall(r"^s3://taylorglo/(backups/\w+/(\w+)\.dump): \d+ bytes$", log, re.M)
    assert [database for _, database in dumps] == ["mlflow", "optuna"]

    # The commands are those of the comment in backup.yaml.
    backup = (K8S / "base/services/backup.yaml").read_text().splitlines()
    comment = "\n".join(line[2:] for line in backup if line.startswith("#"))
    fetch = re.search(r"python -c \\\n\s*'(.+)' \\", comment)
    put = re.search(r"pg_restore .+", comment)
    assert fetch
    assert put
    in_mlflow = [program(), "-n", SERVICES, "exec", "deploy/mlflow", "--", "python", "-c"]
    content = subprocess.run(
        [*in_mlflow, fetch[1], dumps[0][0]], capture_output=True, check=True, timeout=120
    ).stdout
    assert content.startswith(b"PGDMP")
    installed.psql("mlflow", "mlflow", "TRUNCATE runs, metrics CASCADE")
    with pytest.raises(Exception, match="not found"):
        check_runs(installed, logged)
    in_postgresql = [program(), "-n", SERVICES, "exec", "-i", "postgresql-0", "--"]
    restored = subprocess.run(
        [*in_postgresql, *put[0].split()],
        input=content,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert restored.returncode == 0, restored.stderr.decode()
    check_runs(installed, logged)


def test_a_sweep_task_by_task(
    installed: Installed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = installed.cluster
    config = load(
        CONFIG,
        merged(
            *SMALL,
            "pipeline.shards=2",
            "training.engine=auto",
            f"pipeline.image={IMAGE}",
            f"pipeline.service_account={ACCOUNT}",
            "name=cluster",
            "evaluation.attempts=1",
            "baselines.learning_rates=[0.3]",
            "champion.finalists=1",
        ),
    )
    compile_sweep(config, tmp_path / "sweep.yaml")
    jobs = Jobs(cluster, PIPELINES, ACCOUNT, tmp_path / "sweep.yaml")
    jobs.run()
    # The documentation has these figures, as the cost of a generation.
    with capsys.disabled():
        print(f"\n{jobs.overhead()}")
    everything = "\n".join(jobs.logs.values())
    assert not any(value in everything for value in installed.values.values())

    with (
        cluster.forwarded(SERVICES, "mlflow", 5000) as mlflow,
        cluster.forwarded(SERVICES, "seaweedfs", 8333) as s3,
    ):
        client = MlflowClient(tracking_uri=f"http://{mlflow}")
        experiment = client.get_experiment_by_name("cluster")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert parent.info.status == "FINISHED"
        best = client.get_metric_history(parent.info.run_id, "generation/best")
        assert sorted(point.step for point in best) == [1, 2]
        stages = [run.data.tags["taylorglo.stage"] for run in runs if run is not parent]
        assert stages.count("candidate") == 8
        assert {run.info.status for run in runs} == {"FINISHED"}
        store = installed.s3(s3)
        listed = store.list_objects_v2(Bucket="taylorglo", Prefix="sweeps/cluster/")["Contents"]
        keys = {entry["Key"].removeprefix("sweeps/cluster/") for entry in listed}
        assert {"report.html", "champion/loss.json", "champion/model.safetensors"} <= keys
        page = io.BytesIO()
        store.download_fileobj("taylorglo", "sweeps/cluster/report.html", page)
        assert b"cluster" in page.getvalue()
    complete = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
    assert int(installed.psql("optuna", "optuna", complete)) == 8


@pytest.mark.skipif(not BUILD, reason="needs TAYLORGLO_E2E_BUILD_IMAGE")
def test_a_training_of_ones_own_comes_in_an_image(installed: Installed, tmp_path: Path) -> None:
    examples, tag = HERE.parents[1] / "docs" / "examples", "own-training:1"
    build_image(tag, examples, "--build-arg", f"TAYLORGLO={IMAGE}")
    config = load(
        examples / "own_training.yaml",
        (
            f"pipeline.image={tag}",
            f"pipeline.service_account={ACCOUNT}",
            *SMALL_OF_OWN_TRAINING,
        ),
    )
    compile_sweep(config, tmp_path / "own.yaml")
    Jobs(installed.cluster, PIPELINES, ACCOUNT, tmp_path / "own.yaml").run()
    with installed.cluster.forwarded(SERVICES, "seaweedfs", 8333) as address:
        store = installed.s3(address)
        listed = store.list_objects_v2(Bucket="taylorglo", Prefix="sweeps/own-training/")
    keys = {entry["Key"].removeprefix("sweeps/own-training/") for entry in listed["Contents"]}
    assert {"report.html", "champion/loss.json", "champion/loss.py"} <= keys
