"""What k8s/ has for a team: its overlay, optional components, and the list of all images."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import click
import kubectl
import pytest
import yaml
from manifests import (
    K8S,
    OVERLAYS,
    PIPELINES,
    SERVICES,
    TEAM,
    VERSIONS,
    Object,
    containers,
    faults_of_a_team,
    name_of,
    pods,
    reachable,
    render,
    schema_faults,
)

from taylorglo_pipelines.cli import group
from taylorglo_pipelines.commands.gc import command as gc_command
from taylorglo_pipelines.commands.gc import threshold
from taylorglo_pipelines.config import load
from taylorglo_pipelines.pipeline import resources

pytestmark = pytest.mark.skipif(
    kubectl.find() is None, reason="needs kubectl 1.27 or newer (make .venv/bin/kubectl)"
)


@pytest.fixture(scope="module")
def team() -> list[Object]:
    return render(TEAM)


def named(objects: list[Object], name: str) -> Object:
    (thing,) = [thing for thing in objects if name_of(thing) == name]
    return thing


def with_components(folder: Path, overlay: str, *components: str) -> list[Object]:
    """Return the objects of an overlay with further components."""
    kustomization = {
        "resources": ["overlay"],
        "components": [f"../../components/{name}" for name in components],
    }
    (folder / "patch").mkdir()
    (folder / "patch/kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(overlay, folder / "patch")


class TestTeam:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_kubernetes_takes_the_objects(self, team: list[Object], version: str) -> None:
        assert schema_faults(team, version) == []

    def test_the_rules_hold(self, team: list[Object]) -> None:
        assert faults_of_a_team(team) == []

    def test_everything_is_in_the_namespace_of_the_team_but_the_way_to_the_services(
        self, team: list[Object]
    ) -> None:
        elsewhere = {
            name_of(thing)
            for thing in team
            if thing["metadata"].get("namespace", TEAM) != TEAM or PIPELINES in str(thing)
        }
        # Two of the rules for reading are of an API group of Kubeflow's.
        assert elsewhere == {
            f"NetworkPolicy {SERVICES}/{name}-{TEAM}"
            for name in ("mlflow", "postgresql", "seaweedfs")
        } | {f"Role {TEAM}/taylorglo-submitter"}
        assert all(
            thing["metadata"]["labels"]["app.kubernetes.io/part-of"] == "taylorglo"
            for thing in team
        )

    def test_its_sweeps_have_places_and_credentials_of_their_own(self, team: list[Object]) -> None:
        config = named(team, f"ConfigMap {TEAM}/taylorglo")["data"]
        services = resources.ALL_SERVICES
        assert set(config) == {*services.config.values(), *services.optional_config.values()}
        assert config["TAYLORGLO_STORE_URI"] == f"s3://taylorglo/teams/{TEAM}"
        assert config["TAYLORGLO_STUDY_URL"].endswith(":5432/team_a")
        secret = named(team, f"Secret {TEAM}/taylorglo")
        assert secret["stringData"] == {"PGUSER": "team_a"}
        assert set(secret["data"]) == {
            *("PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
        }

    def test_its_members_may_look_and_its_accounts_are_its_own(self, team: list[Object]) -> None:
        bindings = {
            thing["metadata"]["name"]: (thing["roleRef"], thing["subjects"])
            for thing in team
            if thing["kind"] == "RoleBinding"
        }
        role, (members,) = bindings.pop("taylorglo-members")
        assert role["name"] == "taylorglo-submitter"
        assert (members["kind"], members["name"]) == ("Group", TEAM)
        for name, (_, (account,)) in bindings.items():
            assert account == {"kind": "ServiceAccount", "name": name, "namespace": TEAM}

    def test_its_sweeps_alone_reach_the_services(self, team: list[Object]) -> None:
        objects = [*render("local"), *team]
        services = {
            thing["metadata"]["name"]: (SERVICES, template["metadata"]["labels"])
            for thing, template in pods(objects)
            if thing["metadata"]["namespace"] == SERVICES
        }
        sweep = (TEAM, resources.LABELS)
        collector = named(objects, f"CronJob {TEAM}/taylorglo-gc")["spec"]["jobTemplate"]
        labels = collector["spec"]["template"]["metadata"]["labels"]
        for name, port in {"mlflow": 5000, "postgresql": 5432, "seaweedfs": 8333}.items():
            assert reachable(objects, sweep, services[name], port)
            assert reachable(objects, (TEAM, labels), services[name], port)
            assert not reachable(objects, (TEAM, {}), services[name], port)
            assert not reachable(objects, ("team-b", resources.LABELS), services[name], port)
        assert not reachable(objects, services["mlflow"], sweep, 8080)

    def test_no_pod_is_refused_for_saying_nothing(self, team: list[Object]) -> None:
        quota = named(team, f"ResourceQuota {TEAM}/taylorglo")["spec"]["hard"]
        assert {"requests.nvidia.com/gpu", "requests.storage", "persistentvolumeclaims"} <= set(
            quota
        )
        limits = named(team, f"LimitRange {TEAM}/taylorglo")["spec"]["limits"]
        (container,) = [limit for limit in limits if limit["type"] == "Container"]
        for field, default in (("requests", "defaultRequest"), ("limits", "default")):
            asked = {key.partition(".")[2] for key in quota if key.startswith(f"{field}.")}
            needed = asked & {"cpu", "memory"}
            assert needed <= set(container[default]), f"{field} of a pod of Kubeflow"
        # A limit of CPU for all that say nothing would slow down the trainings.
        assert "cpu" not in container["default"]

    def test_the_pods_of_all_overlays_say_what_a_quota_asks_for(self) -> None:
        for overlay in (*OVERLAYS, TEAM):
            for thing, template in pods(render(overlay)):
                for container in containers(template):
                    for field in ("requests", "limits"):
                        assert {"cpu", "memory"} <= set(container["resources"][field]), (
                            f"{name_of(thing)}: {container['name']}"
                        )


@pytest.mark.parametrize("overlay", [*OVERLAYS, TEAM])
def test_the_collector_only_shows_until_it_is_told_to_delete(overlay: str, tmp_path: Path) -> None:
    objects = render(TEAM) if overlay == TEAM else with_components(tmp_path, overlay, "retention")
    (job,) = [
        thing
        for thing in objects
        if thing["kind"] == "CronJob" and thing["metadata"]["name"] == "taylorglo-gc"
    ]
    assert schema_faults([job], VERSIONS[-1]) == []
    assert faults_of_a_team(objects) == []
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["taylorglo", "gc"]
    # As the group calls it: click remembers the options for help that the first call had.
    parent = click.Context(group, **group.context_settings)
    context = gc_command.make_context("gc", list(container["args"]), parent)
    assert context.params["delete"] is False
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert threshold(context.params["older_than"], now) < now


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_alerts_are_about_the_backups_that_there_are(overlay: str, tmp_path: Path) -> None:
    objects = with_components(tmp_path, overlay, "alerts")
    rule = named(objects, f"PrometheusRule {SERVICES}/taylorglo-backups")
    jobs = {
        thing["metadata"]["name"]: thing["spec"]["schedule"]
        for thing in objects
        if thing["kind"] == "CronJob" and thing["metadata"]["namespace"] == SERVICES
    }
    (group,) = rule["spec"]["groups"]
    watched: set[str] = set()
    for alert in group["rules"]:
        assert {"alert", "expr", "for", "labels", "annotations"} == set(alert)
        assert set(re.findall(r"kube_\w+", alert["expr"])) <= {
            "kube_cronjob_created",
            "kube_cronjob_spec_suspend",
            "kube_cronjob_status_last_successful_time",
        }
        assert set(re.findall(r'namespace="([^"]+)"', alert["expr"])) == {SERVICES}
        named_jobs = re.findall(r'cronjob=~?"([^"]+)"', alert["expr"])
        watched |= {name for names in named_jobs for name in names.split("|")}
    assert set(jobs) <= watched <= {*jobs, "bucket-backup"}
    # A day and a half, and 33 days: what is due every night, and on the first of a month.
    limits = [int(number) for a in group["rules"] for number in re.findall(r"> (\d+)", a["expr"])]
    assert limits == [36 * 3600, 33 * 86400]
    assert jobs["backup"].split()[2:] == ["*", "*", "*"]
    assert jobs["restore-drill"].split()[2:] == ["1", "*", "*"]


class TestDocumentedCommands:
    """The commands of docs/cluster.md that change files or objects."""

    PAGE = (K8S.parent / "docs/cluster.md").read_text()

    def test_the_copy_for_another_team_is_a_team_of_its_own(self, tmp_path: Path) -> None:
        lines = re.findall(r"^((?:cp|find) .*vision.*)$", self.PAGE, re.MULTILINE)
        assert len(lines) == 3
        shutil.copytree(K8S, tmp_path / "k8s")
        subprocess.run(["sh", "-ec", "\n".join(lines)], cwd=tmp_path, check=True)
        command = [str(kubectl.find()), "kustomize", str(tmp_path / "k8s/overlays/vision")]
        made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert not re.search("team[-_]a", made)
        objects = list(yaml.load_all(made, yaml.CSafeLoader))
        assert len(objects) == len(render(TEAM))
        assert faults_of_a_team(objects) == []
        config = named(objects, "ConfigMap vision/taylorglo")["data"]
        assert config["TAYLORGLO_STORE_URI"] == "s3://taylorglo/teams/vision"
        assert config["TAYLORGLO_STUDY_URL"].endswith("/vision")

    def test_the_drill_of_the_bucket_is_the_backup_with_another_word(self) -> None:
        (expression,) = re.findall(r"sed '(s/.*drill/)'", self.PAGE)
        backup = named(render("gpu"), f"CronJob {SERVICES}/bucket-backup")
        job = {"kind": "Job", "spec": backup["spec"]["jobTemplate"]["spec"]}
        changed = subprocess.run(
            ["sed", expression],
            input=yaml.safe_dump(job),
            capture_output=True,
            text=True,
            check=True,
        )
        drill = yaml.safe_load(changed.stdout)
        (container,) = drill["spec"]["template"]["spec"]["containers"]
        assert container.pop("args") == ["drill"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container.pop("args") == ["backup"]
        assert drill == job


class TestLogin:
    def test_the_server_asks_for_a_login(self) -> None:
        objects = render("gpu")
        mlflow = named(objects, f"Deployment {SERVICES}/mlflow")["spec"]["template"]["spec"]
        (server,) = mlflow["containers"]
        assert server["command"][:2] == ["mlflow", "server"]
        assert server["args"] == ["--app-name=basic-auth"]
        given = {variable["name"] for variable in server["env"]}
        assert {"MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_FLASK_SERVER_SECRET_KEY", "PGPASSWORD"} <= given

    def test_the_schema_is_brought_up_to_date_before_the_server_starts(self) -> None:
        for overlay in OVERLAYS:
            objects = render(overlay)
            mlflow = named(objects, f"Deployment {SERVICES}/mlflow")["spec"]["template"]["spec"]
            (schema,) = mlflow["initContainers"]
            assert schema["command"] == ["mlflow", "db", "upgrade", "$(MLFLOW_BACKEND_STORE_URI)"]
            assert schema["image"] == mlflow["containers"][0]["image"]


class TestImages:
    LISTED = tuple(
        line
        for line in (K8S / "images.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )

    def test_the_list_has_every_image_and_no_other(self) -> None:
        text = [path.read_text() for path in sorted(K8S.rglob("*.yaml"))]
        used = {
            image
            for content in text
            for image in re.findall(r"^\s+(?:- )?image: (\S+)", content, re.MULTILINE)
        }
        layout = load(K8S / "overlays/gpu/sweep.yaml").pipeline
        used.discard(layout.image)
        bases = {
            base
            for path in K8S.parent.glob("images/*/Dockerfile")
            for base in re.findall(r"^ARG BASE_IMAGE=(\S+)", path.read_text(), re.MULTILINE)
        }
        assert set(self.LISTED) == used | {f"docker.io/library/{base}" for base in bases}
        assert len(self.LISTED) == len(set(self.LISTED))

    def test_the_rendered_images_are_those_of_the_list_or_their_copies(self) -> None:
        copies = {image.rpartition("/")[2] for image in self.LISTED}
        for overlay in (*OVERLAYS, TEAM):
            for _, template in pods(render(overlay)):
                for container in containers(template):
                    assert container["image"].rpartition("/")[2] in copies

    def test_an_overlay_can_pin_them_by_digest(self, tmp_path: Path) -> None:
        digest = f"sha256:{'0' * 64}"
        own = [image for image in self.LISTED if "python" not in image]
        pins = [
            {
                "name": image.rpartition(":")[0],
                "newName": f"registry.example.org/mirror/{image.rpartition('/')[2].split(':')[0]}",
                "digest": digest,
            }
            for image in own
        ]
        (tmp_path / "patch").mkdir()
        kustomization = {"resources": ["overlay"], "images": pins}
        (tmp_path / "patch/kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        objects = render("local", tmp_path / "patch")
        images = {c["image"] for _, template in pods(objects) for c in containers(template)}
        assert images == {
            f"registry.example.org/mirror/{name}@{digest}"
            for name in ("postgres", "seaweedfs", "taylorglo-mlflow")
        }
        assert faults_of_a_team(objects) == []
