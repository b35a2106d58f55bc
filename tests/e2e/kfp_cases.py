"""What ``make e2e-kfp`` tries: each case returns a line about what was seen, or fails."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from calls import Ended
from installation import ACCOUNT, IMAGE, KUBEFLOW, NAMESPACE, Case, Object
from jobs import RESTRICTED
from mlflow import MlflowClient
from sweeps import CONFIG, final_table, mlflow_of, runs_of

from taylorglo.tasks import console
from taylorglo_pipelines.kubeflow.cluster import Cluster
from taylorglo_pipelines.kubeflow.firings import is_running
from taylorglo_pipelines.kubeflow.nodes import Place, place_of
from taylorglo_pipelines.kubeflow.pods import node_of

TWO_SHARDS = {
    layout: (f"pipeline.layout={layout}", "pipeline.shards=2")
    for layout in ("workers", "generations")
}
# Trainings that no case waits for; one CPU is enough for them.
LONG = ("training.steps=1000000", "evaluation.steps=1000000", "pipeline.cpu_limit=1")
NO_DATA = ("data.name=mnist", "data.root=/nowhere")
REPORT = Place(("report",), is_driver=False)
TIMES = {"training_share", "seconds"}  # metrics that no two runs share
MISSED = timedelta(minutes=2, seconds=45)  # after this time, a schedule of 2 minutes is due
EARLY = timedelta(seconds=5)  # by which the clocks of two servers may differ
TRAINING = r"task (Search|Tune baselines)"
PREPARING = r"task (Check inputs|Prepare data set)"


def a_sweep(case: Case, layout: str, seed: int) -> str:
    """Run a sweep to its end; its outcome is that of the same sweep on this machine."""
    settings = (*TWO_SHARDS[layout], f"seed={seed}")
    ended, events = case.followed("submit", *case.words(*settings), "--wait")
    ended.succeeded()
    assert events[-1]["state"] == "SUCCEEDED"
    states = {event["task"]: event["state"] for event in events if event["event"] == "task"}
    told = sum(state in ("SUCCEEDED", "SKIPPED") for state in states.values())
    output, work = case.local(*settings)
    compared = compare(case, events[0]["run"], output, work)
    return f"{compared}; the ends of {told} tasks were told"


def compare(case: Case, run_id: str, output: str, work: Path) -> str:
    """Compare the outcome of a run with that on this machine; return what was compared.

    Args:
        case: of the run.
        run_id: its id.
        output: of the sweep on this machine.
        work: its folder.
    """
    hint = "a node with another kind of CPU may round otherwise"
    if printed := _printed_by_report(case, run_id):
        ours, theirs = final_table(output), final_table(printed)
        message = "\n".join(["the final tables differ", *ours, "on Kubeflow", *theirs, hint])
        assert ours == theirs, message
        return "the table in the log of the report is that of this machine"
    if case.installation.mlflow:
        expected = metrics_of(mlflow_of(work), case.sweep)
        found = metrics_of(MlflowClient(tracking_uri=case.installation.mlflow), case.sweep)
        names = sorted(expected.keys() | found.keys())
        other = [n for n in names if expected.get(n) != found.get(n)]
        assert not other, f"of {len(names)} metrics in MLflow, these differ: {other}; {hint}"
        return f"{len(names)} metrics in MLflow are those of this machine"
    return (
        "NOT COMPARED with this machine: the log of the report cannot be read from here, "
        "MLFLOW_TRACKING_URI is not set, and Kubeflow's API shows no outputs"
    )


def _printed_by_report(case: Case, run_id: str) -> str:
    """Return what the report of a run printed for people; nothing if it cannot be read."""
    if not case.installation.reads_pods:
        return ""
    cluster = Cluster(NAMESPACE, run_id, KUBEFLOW)
    cluster.look(("Succeeded",))
    logs = [cluster.log(pod) for pod in cluster.pods.values() if place_of(node_of(pod)) == REPORT]
    # Kubernetes may put a time stamp before each line.
    lines = [line[max(0, line.find(console.PREFIX)) :] for log in logs for line in log.splitlines()]
    text = "\n".join(line.text for line in map(console.parse, lines) if line)
    return text if re.search("^loss ", text, re.M) else ""


def metrics_of(client: MlflowClient, experiment: str) -> dict[str, float]:
    """Return all metrics of the one run of a sweep and of those nested in it, to six digits."""
    (parent,), nested = runs_of(client, experiment)
    return {
        f"{'sweep' if run is parent else run.info.run_name}: {name}": float(f"{value:.6g}")
        for run in (parent, *nested)
        for name, value in run.data.metrics.items()
        if name not in TIMES
    }


def fails(
    case: Case, task: str, reason: str, settings: Sequence[str], *, needs_pods: bool = False
) -> str:
    """Submit a sweep that cannot succeed; the waiting ends with one line that says why.

    Args:
        case: of the sweep.
        task: pattern of the task in the line.
        reason: pattern of the reason, which only the pods tell.
        settings: of the sweep.
        needs_pods: whether nobody hears of the failure without the pods.
    """
    reads_pods = case.installation.reads_pods
    if needs_pods and not reads_pods:
        pytest.skip(f"pods of namespace {NAMESPACE} cannot be read from here, and only they tell")
    once = ("pipeline.generations=1", *settings)
    ended, events = case.followed("submit", *case.words(*once), "--wait")
    line = ended.failed()
    assert (events[-1]["event"], events[-1]["message"]) == ("outcome", line)
    assert re.search(task, line), f"{line!r} should name {task!r}"
    assert not reads_pods or re.search(reason, line), f"{line!r} should have {reason!r}"
    # A run whose pod cannot start would wait for ever.
    if needs_pods:
        case.terminate(events[0]["run"])
    return line if reads_pods else f"{line} (the reason cannot be read from here)"


def missing_image() -> str:
    """Return an image that is not there, beside the one of the tests."""
    repository = re.sub(r"(:[\w.-]+)?(@[\w:]+)?$", "", IMAGE, count=1)
    return f"{repository}:e2e-no-such-tag"


def cancelled(case: Case) -> str:
    """Cancel a run that ``taylorglo wait`` follows."""
    submitted = case.run("submit", *case.words(*LONG)).succeeded()
    run_id = _id_in(submitted)
    asked = []

    def terminate(event: str) -> None:
        if event == "task" and not asked:
            asked.append(run_id)
            case.say("is cancelled now")
            case.terminate(run_id)

    ended, events = case.followed("wait", run_id, *case.access, see=terminate)
    line = ended.failed()
    assert asked, f"ended before it could be cancelled: {line}"
    assert "cancelled" in line, line
    assert events[-1]["state"] == "CANCELED", events[-1]
    return line


def a_schedule(case: Case) -> str:
    """Let a schedule fire; change, pause, resume and delete it: its runs go on to their ends."""
    _need_orphans(case)
    sweep = case.words("pipeline.generations=1")
    created = _schedule(case, "create", *sweep, "--every", "1m")
    assert created.startswith(f"schedule '{case.sweep}' created"), created
    first = case.until(lambda: _new_run(case, ()), "a run of the schedule")
    case.say(f"has fired: {first.display_name}")
    assert first.run_id in _schedule(case, "show", case.sweep, *case.access)

    changed = _schedule(case, "create", *sweep, "--every", "2m")
    assert changed.startswith(f"schedule '{case.sweep}' updated"), changed
    assert first.run_id in changed, f"should name the run that goes on: {changed}"
    paused = _schedule(case, "pause", case.sweep, *case.access)
    assert first.run_id in paused, f"should name the run that goes on: {paused}"
    case.say("waits for a firing that is missed")
    case.pause(MISSED.total_seconds())

    resumed = _schedule(case, "resume", case.sweep, *case.access)
    upcoming = next_firing(resumed)
    case.say(f"should fire next at {upcoming:%H:%M:%S}")
    second = case.until(lambda: _new_run(case, (first.run_id,)), "another run of the schedule")
    early = upcoming - second.created_at
    assert early <= EARLY, f"fired {early} before the time that was printed: {upcoming}"
    deleted = _schedule(case, "delete", case.sweep, *case.access)
    assert second.run_id in deleted, f"should name the run that goes on: {deleted}"
    for run in (first, second):
        case.followed("wait", run.run_id, *case.access)[0].succeeded()
    assert {run.run_id for run in case.runs()} == {first.run_id, second.run_id}
    return "fired, changed, paused, resumed, fired as printed, deleted; both runs succeeded"


def _need_orphans(case: Case) -> None:
    """Skip a Kubeflow that ends the runs of a schedule with it."""
    version = re.match(r"v?(\d+)\.(\d+)", case.installation.version)
    if version and tuple(map(int, version.groups())) < (2, 16):
        pytest.skip("Kubeflow Pipelines before 2.16 ends the runs of a schedule with it")


def _schedule(case: Case, *words: str) -> str:
    return case.run("schedule", *words).succeeded().output


def _new_run(case: Case, known: Sequence[str]) -> Any:
    """Return the first run besides the known ones, once it runs, or None."""
    new = [run for run in case.runs() if run.run_id not in known]
    if not new:
        return None
    assert is_running(new[0]), f"run {new[0].display_name} has ended as {new[0].state}"
    return new[0] if new[0].state == "RUNNING" else None


def next_firing(output: str) -> datetime:
    """Return the first of the next firings that ``taylorglo schedule`` printed."""
    match = re.search(r"^next +(\S+ \S+) UTC$", output, re.M)
    assert match, f"should print the next firing: {output}"
    return datetime.fromisoformat(match[1]).replace(tzinfo=UTC)


def through_the_kubeconfig(case: Case) -> str:
    """Submit through the API server of Kubernetes."""
    if case.installation.is_in_pod:
        pytest.skip("the tests run in a pod, where the kubeconfig is not looked for")
    if case.installation.is_cluster_of_kubeflow is not True:
        pytest.skip("Kubeflow cannot be seen through the kubeconfig")
    submitted = case.run("submit", *case.words(), without=("KF_PIPELINES_ENDPOINT",))
    run_id = _id_in(submitted.succeeded())
    (run,) = case.runs()
    assert run.run_id == run_id
    case.terminate(run_id)
    return f"run {run_id} was started"


def _id_in(submitted: Ended) -> str:
    """Return the id of the run that ``taylorglo submit`` started."""
    match = re.search(r"runs/details/([\w-]+)", submitted.output)
    assert match, f"should print the page of the run: {submitted.output}"
    return match[1]


def from_a_pod(case: Case) -> str:
    """Submit from a pod, and wait there: the run fails for want of data, and says so."""
    if case.installation.tenant:
        pytest.skip("this Kubeflow has several users, and a pod needs a token of one of them")
    if case.installation.is_cluster_of_kubeflow is False:
        pytest.skip("the kubeconfig is that of another cluster")
    ask = case.installation.kubernetes.ask
    core, jobs = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
    if ask("GET", f"{core}/serviceaccounts/{ACCOUNT}")[0] == 404:
        pytest.skip(f"namespace {NAMESPACE} has no service account {ACCOUNT}")
    status, content = ask("POST", jobs, job(case))
    if status in (0, 401, 403):
        pytest.skip(f"no Job can be created: {content}")
    assert status == 200, f"the Job cannot be created: {content}"

    def end() -> Object | None:
        found, seen = ask("GET", f"{jobs}/{case.sweep}")
        conditions = seen.get("status", {}).get("conditions") or () if found == 200 else ()
        ends = [c for c in conditions if c["type"] in ("Complete", "Failed")]
        return next((c for c in ends if c["status"] == "True"), None)

    reason = case.until(end, f"the end of Job {case.sweep}")
    runs = case.runs()
    log = _log_of_job(case)
    assert len(runs) == 1, f"the pod should have started one run: {reason}: {log}"
    assert runs[0].state == "FAILED", f"the pod should have waited: {reason}: {log}"
    if not log:
        return f"run {runs[0].run_id} was started; the pod's output cannot be read from here"
    line = Ended(1, [], log).failed()
    assert re.search(PREPARING, line), line
    return line


def job(case: Case) -> Object:
    """Return a Job that submits the sweep of a case, with the rights of the account."""
    words = case.words(*NO_DATA, "pipeline.generations=1", config="/tmp/sweep.yaml")
    container = {
        "name": "taylorglo",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-ec", 'echo "$SWEEP" >/tmp/sweep.yaml; exec taylorglo "$@"', "sh"],
        "args": ["submit", *words, "--wait"],
        "env": [{"name": "SWEEP", "value": CONFIG.read_text()}],
        "securityContext": {**RESTRICTED, "runAsNonRoot": True},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": ACCOUNT,
        "enableServiceLinks": False,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": case.sweep, "namespace": NAMESPACE},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(case.seconds),
            "template": {"spec": spec},
        },
    }


def _log_of_job(case: Case) -> str:
    """Return what the pod of the Job printed, or nothing if it cannot be read."""
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    ask = case.installation.kubernetes.ask
    status, found = ask("GET", pods, labelSelector=f"job-name={case.sweep}")
    if status != 200 or not found["items"]:
        return ""
    name = found["items"][0]["metadata"]["name"]
    status, log = ask("GET", f"{pods}/{name}/log", kind="str", accept="*/*")
    return log if status == 200 else ""


# Each case with the seconds that it may take. The longest come first.
CASES: dict[str, tuple[Callable[[Case], str], float]] = {
    "workers": (lambda case: a_sweep(case, "workers", case.installation.seed), 3600),
    "generations": (lambda case: a_sweep(case, "generations", case.installation.seed + 1), 3600),
    "schedule": (a_schedule, 3600),
    "image": (
        lambda case: fails(
            case,
            "task Check inputs does not start",
            "Err.*Image|ImagePullBackOff|InvalidImageName",
            [f"pipeline.image={missing_image()}"],
            needs_pods=True,
        ),
        1800,
    ),
    "secret": (
        lambda case: fails(
            case,
            "task Check inputs does not start",
            "e2e-no-such-secret",
            ["pipeline.secret=e2e-no-such-secret"],
            needs_pods=True,
        ),
        1800,
    ),
    "node": (
        lambda case: fails(
            case,
            f"{TRAINING}.* does not start",
            "Unschedulable",
            ["pipeline.node_selector={taylorglo.invalid/e2e: nowhere}"],
            needs_pods=True,
        ),
        1800,
    ),
    "memory": (
        lambda case: fails(
            case,
            TRAINING,
            "OOMKilled|signal: killed",
            # As little as a container can be started with, and less than PyTorch needs.
            ["pipeline.memory=128Mi", "pipeline.memory_limit=128Mi"],
        ),
        1800,
    ),
    "data": (lambda case: fails(case, PREPARING, "/nowhere", NO_DATA), 1800),
    # An image that is pulled first may cost an early task the time.
    "deadline": (
        lambda case: fails(case, r"task \w", "DeadlineExceeded", [*LONG, "pipeline.timeout=120"]),
        1800,
    ),
    "cancelled": (cancelled, 1800),
    "kubeconfig": (through_the_kubeconfig, 900),
    "pod": (from_a_pod, 1800),
}
