"""What ``make e2e-kfp`` does with a Kubeflow, tried on the server of these tests."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from kfp_cluster import Kubernetes, KubernetesError
from kfp_samples import Cli, only, pod, tasks, write_kubeconfig
from kfp_server import Fault, KubeflowServer
from mlflow import MlflowClient
from servers import mlflow_database

sys.path.append(str(Path(__file__).parents[2] / "e2e"))
from calls import Commands, Ended, StoppedError
from installation import ACCOUNT, Case, Installation
from kfp_cases import CASES, MISSED, TWO_SHARDS, compare, job, next_firing

from taylorglo.errors import TaylorgloError

pytestmark = pytest.mark.usefixtures("clock", "kubeconfig")

TABLE = """loss           learning rate  test accuracy (%)
-----------------------------------------------
champion                 0.1       {}
cross-entropy            0.3       91.00 ± 0.47
"""
STRICT = ("CI", "TAYLORGLO_TESTS_REQUIRE_ALL")  # with them, no test may be skipped
JOBS = "/apis/batch/v1/namespaces/kubeflow/jobs"


class Site(Kubernetes):
    """A cluster with more kinds of objects.

    Attributes:
        found: what there is, by the ends of the paths.
    """

    found: dict[str, Any]

    def answer(self, server: Any, path: str, query: dict[str, str]) -> Any:
        match = re.fullmatch(r"/(api|apis/batch)/v1/namespaces/kubeflow/([\w/-]+)", path)
        kind = match[2].partition("/")[0] if match else ""
        if kind not in ("configmaps", "secrets", "serviceaccounts", "jobs"):
            return super().answer(server, path, query)
        self._check(kind)
        if path not in (JOBS, *self.found):
            raise KubernetesError(404, f"{path} not found")
        return self.found.get(path, {})


class Here(Commands):
    """Commands in this process, and pauses that take no time.

    Attributes:
        during: is called in each pause, with the seconds.
    """

    def __init__(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.during: Callable[[float], object] = lambda seconds: None
        self._cli = cli
        self._monkeypatch = monkeypatch

    def run(self, *words: str, seconds: float, see: Any = str, without: Any = ()) -> Ended:
        with self._monkeypatch.context() as patch:
            for name in without:
                patch.delenv(name)
            status, out, err = self._cli(*words)
        for line in out.splitlines():
            see(line)
        return Ended(status, out.splitlines(), err)

    def pause(self, seconds: float) -> None:
        super().pause(0)
        self.during(seconds)


@pytest.fixture
def cluster(server: KubeflowServer) -> Site:
    """The cluster of the server, with what docs/cluster.md puts into it."""
    site = server.cluster = Site()
    core = "/api/v1/namespaces/kubeflow"
    names = ("configmaps/taylorglo", "secrets/taylorglo", f"serviceaccounts/{ACCOUNT}")
    site.found = {f"{core}/{name}": {"kind": "PartialObjectMetadata"} for name in names}
    server.experiments["d"] = {"experiment_id": "d", "display_name": "Default"}
    return site


@pytest.fixture
def installed(
    server: KubeflowServer,
    cluster: Site,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[[], Installation]:
    """Look at the installation."""
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    return lambda: Installation(tmp_path, Here(cli, monkeypatch))


@pytest.fixture
def installation(installed: Callable[[], Installation]) -> Installation:
    return installed()


def attempt(installation: Installation, name: str) -> str:
    """Run a case; return the line about what was seen."""
    installation.attempt(name, *CASES[name])
    return installation.rows[-1].reason


def ended_pod(node: str, *, status: dict[str, Any] | None = None, **end: Any) -> dict[str, Any]:
    """Return the pod of a task that has failed."""
    end = {"exitCode": 1, "reason": "Error", "finishedAt": "2026-11-24T21:31:00Z", **end}
    return pod("Failed", node=f"taylorglo-e(0).root(0).{node}(0).executor(0)", status=status) | (
        {} if status else {"status": {"phase": "Failed", "containerStatuses": [_main(end)]}}
    )


def _main(terminated: dict[str, Any]) -> dict[str, Any]:
    return {"name": "main", "state": {"terminated": terminated}}


def waiting_pod(node: str, reason: str, message: str) -> dict[str, Any]:
    """Return the pod of a task that does not start."""
    name = f"taylorglo-e(0).root(0).{node}(0).executor(0)"
    return pod("Pending", node=name, waiting={"reason": reason, "message": message})


def unscheduled_pod(node: str) -> dict[str, Any]:
    """Return the pod of a task that no node takes."""
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
    }
    name = f"taylorglo-e(0).root(0).{node}(0).executor(0)"
    return pod("Pending", node=name, status={"conditions": [condition]})


PODS = {
    "image": (
        waiting_pod("check-inputs", "ImagePullBackOff", 'Back-off pulling image "taylorglo:e2e"'),
        "task Check inputs does not start: ImagePullBackOff: Back-off pulling image",
    ),
    "secret": (
        waiting_pod(
            "check-inputs", "CreateContainerConfigError", 'secret "e2e-no-such-secret" not found'
        ),
        "task Check inputs does not start: CreateContainerConfigError: secret",
    ),
    "node": (
        unscheduled_pod("search-candidates"),
        "task Search does not start: Unschedulable: 0/3 nodes are available",
    ),
    "memory": (
        ended_pod("evaluate-baselines", reason="OOMKilled", exitCode=137),
        "the run failed: task Tune baselines: OOMKilled (exit status 137)",
    ),
    "data": (
        ended_pod("prepare-dataset"),
        "the run failed: task Prepare data set: data.root: /nowhere should be a folder",
    ),
    "deadline": (
        ended_pod(
            "search-candidates",
            status={"reason": "DeadlineExceeded", "message": "longer than the deadline"},
        ),
        "the run failed: task Search: DeadlineExceeded: longer than the deadline",
    ),
}


def prepare(server: KubeflowServer, name: str) -> str:
    """Let the next run fail as in a case; return the start of its line."""
    one, line = PODS[name]
    state = "RUNNING" if one["status"]["phase"] == "Pending" else "FAILED"
    server.script = [{"state": state}]
    server.pods = [json.loads(json.dumps(one))]
    server.logs["pod-1"] = (
        "taylorglo: error: data.root: /nowhere should be a folder\n" if name == "data" else ""
    )
    return line


def test_what_can_be_seen(installed: Callable[[], Installation], server: KubeflowServer) -> None:
    seen = installed()
    assert (seen.is_cluster_of_kubeflow, seen.reads_pods, seen.missing()) == (True, True, "")
    server.cluster.forbidden = {"pods/log", "services", "configmaps", "secrets"}
    seen = installed()
    assert (seen.is_cluster_of_kubeflow, seen.reads_pods, seen.missing()) == (None, False, "")


def test_the_kubeconfig_of_another_cluster(
    installed: Callable[[], Installation], kubeconfig: Path
) -> None:
    with KubeflowServer() as other:
        write_kubeconfig(kubeconfig, other.url)
        seen = installed()
        assert (seen.is_cluster_of_kubeflow, seen.reads_pods, seen.missing()) == (False, False, "")
        for name in ("kubeconfig", "pod", "image"):
            with pytest.raises(pytest.skip.Exception):
                attempt(seen, name)
        assert [row.outcome for row in seen.rows] == ["skipped"] * 3
        assert {request.method for request in other.requests} == {"GET"}


@pytest.mark.parametrize(("plural", "kind"), [("configmaps", "ConfigMap"), ("secrets", "Secret")])
def test_what_the_namespace_lacks(
    installation: Installation, cluster: Site, plural: str, kind: str
) -> None:
    del cluster.found[f"/api/v1/namespaces/kubeflow/{plural}/taylorglo"]
    assert installation.missing().startswith(f"namespace kubeflow has no {kind} taylorglo; see ")


def test_no_kubeflow(
    installed: Callable[[], Installation], closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(TaylorgloError, match="cannot be reached: Connection refused"):
        installed()


@pytest.mark.parametrize("name", PODS)
def test_a_sweep_that_cannot_succeed(
    installation: Installation, server: KubeflowServer, name: str
) -> None:
    line = prepare(server, name)
    assert attempt(installation, name).startswith(line)
    cancelled = server.asked("POST", "/runs/.*:terminate")
    assert len(cancelled) == (name in ("image", "secret", "node"))


@pytest.mark.parametrize(
    ("name", "happens"), [("memory", "deadline"), ("deadline", "memory"), ("image", "secret")]
)
def test_another_reason_is_a_failure(
    installation: Installation, server: KubeflowServer, name: str, happens: str
) -> None:
    prepare(server, happens)
    with pytest.raises(AssertionError, match="should have"):
        attempt(installation, name)
    assert installation.rows[-1].outcome == "FAILED"


def test_a_sweep_that_succeeds_after_all_is_a_failure(
    installation: Installation, server: KubeflowServer
) -> None:
    server.script = [{"state": "SUCCEEDED"}]
    with pytest.raises(AssertionError, match="exit status 0"):
        attempt(installation, "data")


def test_a_run_that_is_cancelled(installation: Installation, server: KubeflowServer) -> None:
    task = tasks(check_inputs="RUNNING")
    server.script = [{"state": s, **task} for s in ("RUNNING", "RUNNING", "CANCELING")]
    server.script.append({"state": "FAILED", "state_history": [{"state": "CANCELING"}]})
    assert attempt(installation, "cancelled") == "the run was cancelled"
    assert len(server.asked("POST", "/runs/.*:terminate")) == 1


def schedule_is_tried(
    installation: Installation, server: KubeflowServer, *, early: timedelta = timedelta(0)
) -> str:
    """Let the schedule of the case fire when it should, or earlier the second time."""

    def during(seconds: float) -> None:
        if seconds == MISSED.total_seconds():
            server.scheduler.now = lambda: datetime.now(UTC) + MISSED
            return
        schedule = only(server.recurring_runs)
        if server.runs:
            due = datetime.fromisoformat(schedule["created_at"]) + timedelta(minutes=2) - early
            server.scheduler.now = lambda: due
            server.script = [{"state": "SUCCEEDED"}]
        server.scheduler.fire(server, schedule)

    installation.commands.during = during
    return attempt(installation, "schedule")


def test_a_schedule(installation: Installation, server: KubeflowServer) -> None:
    assert "both runs succeeded" in schedule_is_tried(installation, server)
    assert (len(server.runs), server.recurring_runs) == (2, {})


def test_a_schedule_that_fires_before_the_time_that_was_printed(
    installation: Installation, server: KubeflowServer
) -> None:
    with pytest.raises(AssertionError, match="before the time that was printed"):
        schedule_is_tried(installation, server, early=timedelta(seconds=30))


def test_a_schedule_of_an_older_kubeflow(installation: Installation) -> None:
    installation.version = "2.15.2"
    with pytest.raises(pytest.skip.Exception, match="Pipelines before"):
        attempt(installation, "schedule")


def test_the_next_firing_is_read() -> None:
    lines = "state     active\nnext      2026-11-27 03:00:00 UTC\n          2026-11-28 03:00:00 UTC"
    assert next_firing(lines) == datetime(2026, 11, 27, 3, tzinfo=UTC)


@pytest.fixture
def swept(server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A sweep that has succeeded, and on this machine, too."""
    report = pod("Succeeded", node="taylorglo-e(0).root(0).report(0).executor(0)")
    server.script = [{"state": "RUNNING"}, {"state": "SUCCEEDED", **tasks(report="SUCCEEDED")}]
    server.pods = [report]
    lines = TABLE.format("93.78 ± 0.63").splitlines()
    server.logs["pod-1"] = "I1126 launcher\n" + "".join(f"taylorglo: {line}\n" for line in lines)
    output = TABLE.format("93.78 ± 0.63")
    monkeypatch.setattr(Case, "local", lambda self, *settings: (output, tmp_path))


@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize("layout", ["workers", "generations"])
def test_a_sweep(installation: Installation, server: KubeflowServer, layout: str) -> None:
    assert attempt(installation, layout) == (
        "the table in the log of the report is that of this machine; the ends of 1 tasks were told"
    )
    run = only(server.runs)
    assert run["display_name"].startswith(f"{installation.prefix}-{layout} ")
    assert f"-{layout}-" in only(server.versions)["name"]


@pytest.mark.usefixtures("swept")
def test_another_table_is_a_failure(installation: Installation, server: KubeflowServer) -> None:
    server.logs["pod-1"] = server.logs["pod-1"].replace("93.78", "93.77")
    with pytest.raises(AssertionError, match="the final tables differ"):
        attempt(installation, "workers")


@pytest.mark.usefixtures("swept")
def test_a_table_that_cannot_be_read(
    installed: Callable[[], Installation], cluster: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cluster.forbidden = {"pods/log"}
    assert attempt(installed(), "workers").startswith("NOT COMPARED with this machine: ")


def test_metrics_in_place_of_the_table(installation: Installation, tmp_path: Path) -> None:
    installation.reads_pods = False
    case = Case(installation, "workers", 60)
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
        (folder / "mlruns.db").write_bytes(mlflow_database())
        client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlruns.db'}")
        experiment = client.create_experiment(case.sweep)
        sweep = client.create_run(experiment, run_name=case.sweep).info.run_id
        tags = {"mlflow.parentRunId": sweep}
        champion = client.create_run(experiment, run_name="champion", tags=tags).info.run_id
        client.log_metric(champion, "test_accuracy", 0.9377777777 + 1e-10 * len(folder.name))
        client.log_metric(sweep, "seconds", len(folder.name))
    installation.mlflow = f"sqlite:///{folders[1] / 'mlruns.db'}"
    assert compare(case, "r", "", folders[0]) == "1 metrics in MLflow are those of this machine"
    client.log_metric(champion, "test_accuracy", 0.938)
    with pytest.raises(AssertionError, match=r"these differ: \['champion: test_accuracy'\]"):
        compare(case, "r", "", folders[0])


def test_submission_through_the_kubeconfig(
    installation: Installation, server: KubeflowServer
) -> None:
    run = attempt(installation, "kubeconfig")
    assert run == f"run {only(server.runs)['run_id']} was started"
    assert [request.proxied for request in server.asked("POST", "/runs")] == [True]
    assert len(server.asked("POST", "/runs/.*:terminate")) == 1


def test_submission_from_a_pod(
    installation: Installation, server: KubeflowServer, cluster: Site, cli: Cli, tmp_path: Path
) -> None:
    prepare(server, "data")
    path = f"{JOBS}/{installation.prefix}-pod"

    def work(seconds: float) -> None:
        (made,) = [r.body for r in server.requests if (r.method, r.path) == ("POST", JOBS)]
        (container,) = made["spec"]["template"]["spec"]["containers"]
        (sweep,) = container["env"]
        (tmp_path / "sweep.yaml").write_text(sweep["value"])
        words = [
            str(tmp_path / "sweep.yaml") if w == "/tmp/sweep.yaml" else w for w in container["args"]
        ]
        _, _, server.logs["pod-of-job"] = cli(*words)
        only(server.runs)["state"] = "FAILED"
        submitter = pod("Failed", name="pod-of-job")
        submitter["metadata"]["labels"] = {"job-name": f"{installation.prefix}-pod"}
        server.pods.append(submitter)
        cluster.found[path] = {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}

    installation.commands.during = work
    cluster.found[path] = {"status": {}}
    assert attempt(installation, "pod").startswith(PODS["data"][1])


def test_what_a_pod_may_not_do(
    installed: Callable[[], Installation], cluster: Site, server: KubeflowServer
) -> None:
    cluster.forbidden = {"jobs"}
    with pytest.raises(pytest.skip.Exception, match="no Job can be created: jobs is forbidden"):
        attempt(installed(), "pod")
    del cluster.found[f"/api/v1/namespaces/kubeflow/serviceaccounts/{ACCOUNT}"]
    with pytest.raises(pytest.skip.Exception, match=f"has no service account {ACCOUNT}"):
        attempt(installed(), "pod")


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_the_job_is_valid(installation: Installation, version: str) -> None:
    kubernetes_validate.validate(job(Case(installation, "pod", 60)), version, strict=True)


def test_everything_is_removed_that_was_created_and_nothing_else(
    installation: Installation, server: KubeflowServer, cli: Cli, config_path: Path
) -> None:
    for verb in (["submit"], ["schedule", "create", "--every", "12h"]):
        assert cli(*verb, config_path)[0] == 0
    kept = [set(store) for store in stores(server)]
    case = Case(installation, "schedule", 60)
    case.run("schedule", "create", *case.words(), "--every", "12h").succeeded()
    case.run("submit", *case.words()).succeeded()
    ours = next(s for s in server.recurring_runs.values() if s["display_name"] == case.sweep)
    pauses: list[float] = []

    def during(seconds: float) -> None:
        # Kubeflow hears late of a run that the schedule has started.
        if not pauses:
            server.scheduler.fire(server, ours)
        pauses.append(seconds)

    assert installation.remove(["schedule", "workers"], during) == ""
    assert [set(store) for store in stores(server)] == kept
    assert len(pauses) == 4
    jobs = [
        r.path for r in server.requests if (r.method, r.path[:5]) == ("DELETE", "/apis/batch"[:5])
    ]
    assert f"{JOBS}/{case.sweep}" in jobs


def stores(server: KubeflowServer) -> Iterator[dict[str, Any]]:
    """Yield everything that the server has."""
    yield from (
        server.experiments,
        server.pipelines,
        server.versions,
        server.runs,
        server.recurring_runs,
    )


def test_what_cannot_be_removed_is_said(installation: Installation, server: KubeflowServer) -> None:
    case = Case(installation, "data", 60)
    case.run("submit", *case.words()).succeeded()
    server.faults = [Fault("DELETE", "/runs/.*", 403, times=100)]
    left = f"experiment {case.sweep} still has runs or schedules"
    assert installation.remove(["data"], lambda seconds: None) == left


def test_a_command_is_followed_and_ended(
    server: KubeflowServer, installation: Installation
) -> None:
    case = Case(installation, "data", 60)
    case.run("submit", *case.words()).succeeded()
    server.script = [{"state": "RUNNING", **tasks(check_inputs="RUNNING")}]
    run_id, commands = only(server.runs)["run_id"], Commands()
    with pytest.raises(StoppedError):
        commands.run("wait", run_id, seconds=60, see=lambda line: commands.end())
    with pytest.raises(StoppedError):
        commands.run("wait", run_id, seconds=60)


def test_a_command_that_takes_too_long() -> None:
    with pytest.raises(AssertionError, match="has not ended after 0 s; its last line: nothing"):
        Commands().run("--version", seconds=0.01)


def started(server: KubeflowServer, kubeconfig: Path, *cases: str) -> subprocess.Popen[str]:
    """Start ``make e2e-kfp`` with some of its cases."""
    command = [sys.executable, "-m", "pytest", "-m", "kfp", "--capture=no", "test_kfp.py"]
    inherited = {k: v for k, v in os.environ.items() if k not in STRICT}
    return subprocess.Popen(
        [*command, "-k", " or ".join(cases)],
        cwd=Path(__file__).parents[2] / "e2e",
        env={**inherited, "KF_PIPELINES_ENDPOINT": server.url, "KUBECONFIG": str(kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.long
def test_the_same_metrics_in_both_layouts_on_this_machine(
    installation: Installation, tmp_path: Path
) -> None:
    installation.reads_pods = False
    case = Case(installation, "workers", 600)
    _, other = case.local(*TWO_SHARDS["generations"])
    other = other.rename(tmp_path / "other")
    installation.mlflow = f"sqlite:///{other / 'mlruns.db'}"
    output, work = case.local(*TWO_SHARDS["workers"])
    compared = compare(case, "r", output, work)
    assert re.fullmatch(r"\d\d metrics in MLflow are those of this machine", compared)


@pytest.mark.long
def test_the_whole_of_it(server: KubeflowServer, cluster: Site, kubeconfig: Path) -> None:
    prepare(server, "data")
    cluster.forbidden = {"jobs"}
    with started(server, kubeconfig, "data", "pod") as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert re.search(r"  data +\d+  passed   the run failed: task Prepare data set: ", output)
    assert re.search(r"  pod +\d+  skipped  no Job can be created: jobs is forbidden", output)
    assert [experiment["display_name"] for experiment in server.experiments.values()] == ["Default"]
    assert not any((server.runs, server.pipelines, server.versions))


@pytest.mark.long
def test_ctrl_c(server: KubeflowServer, cluster: Site, kubeconfig: Path) -> None:
    server.script = [{"state": "RUNNING", **tasks(check_inputs="RUNNING")}]
    with started(server, kubeconfig, "data") as process:
        assert process.stdout is not None
        assert any("running Check inputs" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 2, output
    assert re.search(r"  data +\d+  stopped  the tests were interrupted", output)
    assert not any((server.runs, server.pipelines, server.versions))
