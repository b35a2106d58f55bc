"""Sweeps on a real Kubeflow Pipelines, by the command line; run with ``make e2e-kfp``.

Kubeflow is the one that KF_PIPELINES_ENDPOINT or the kubeconfig leads to, with the manifests of
docs/cluster.md. TAYLORGLO_E2E_IMAGE names the image of the tasks (default: the project's own),
TAYLORGLO_E2E_NAMESPACE the namespace of the runs, and TAYLORGLO_E2E_ACCOUNT the account that
submits from a pod. All that is created in Kubeflow is removed in the end; the results of the sweeps
stay in the store, in MLflow and in the study's database, under names that begin with ``e2e-``.
"""

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from in_process import run_sweep
from installation import (
    IMAGE,
    NAMESPACE,
    PREFIX,
    Installation,
    Outcome,
    job_in_cluster,
    wait_for,
)
from kubernetes.client.exceptions import ApiException
from sweeps import final_table

from taylorglo.errors import TaylorgloError

pytestmark = [pytest.mark.kfp, pytest.mark.timeout(3600)]

LONG = ("training.steps=20000", "evaluation.steps=20000")
# The sweeps that do not depend on each other: settings beside those of the small sweep.
CASES: dict[str, tuple[str, ...]] = {
    "workers": ("pipeline.layout=workers", "pipeline.shards=2"),
    "generations": ("pipeline.layout=generations", "pipeline.shards=2"),
    "missing-image": ("pipeline.image=registry.invalid/no-such-image:1",),
    "unschedulable": ("pipeline.node_selector={taylorglo.invalid/none: 'true'}",),
    "out-of-memory": ("pipeline.memory=48Mi", "pipeline.memory_limit=64Mi"),
    "bad-data": ("data.name=image-folder", "data.root=/there/is/no/such/folder"),
    "deadline": (*LONG, "pipeline.timeout=90"),
    "missing-secret": ("pipeline.secret=there-is-no-such-secret",),
}


@pytest.fixture(scope="module")
def kubeflow(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """The installation; in the end it is as it was, and a table of what was seen is printed."""
    try:
        found = Installation.find()
    except TaylorgloError as error:
        pytest.skip(f"no Kubeflow: {error}")
    try:
        yield found
    finally:
        found.remove_everything()
        reporter = request.config.pluginmanager.getplugin("terminalreporter")
        for line in ["", *found.table()]:
            reporter.write_line(line)


@pytest.fixture(scope="module")
def outcomes(kubeflow: Installation) -> Iterator[dict[str, Future[Outcome]]]:
    """What becomes of the cases, which run at a time."""
    with ThreadPoolExecutor(len(CASES)) as pool:
        yield {
            case: pool.submit(kubeflow.submitted, case, *settings)
            for case, settings in CASES.items()
        }


@pytest.fixture(scope="module")
def on_a_laptop(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The final table of the small sweep on this machine."""
    return final_table(run_sweep(tmp_path_factory.mktemp("laptop")))


@pytest.mark.parametrize("layout", ["workers", "generations"])
def test_a_sweep_ends_with_the_table_of_a_laptop(
    kubeflow: Installation,
    outcomes: dict[str, Future[Outcome]],
    on_a_laptop: list[str],
    layout: str,
) -> None:
    outcome = outcomes[layout].result()
    assert outcome.status == 0, outcome.reason
    states = outcome.states()
    assert set(states.values()) == {"SUCCEEDED"}, states
    assert not [name for name in states if re.search(r"\(\d\)|executor|driver|root", name)]
    printed = kubeflow.printed(outcome.run)
    if "loss " not in printed:
        kubeflow.seen.append((f"{layout}: table", 0, "not seen", "the pods' logs cannot be read"))
        pytest.skip("the log of the report cannot be read, so its table cannot be compared")
    assert final_table(printed) == on_a_laptop
    kubeflow.seen.append((f"{layout}: table", 0, "equal", "to that of this machine"))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("missing-image", "task Check inputs does not start: .*(Image|image)"),
        ("missing-secret", "task .* does not start: .*there-is-no-such-secret"),
        ("unschedulable", "task .* does not start: .*(node|Unschedulable)"),
        ("out-of-memory", "task .*: .*(OOMKilled|out of memory)"),
        ("bad-data", "task .*: .*/there/is/no/such/folder"),
        ("deadline", "task .*: .*([Dd]eadline)"),
    ],
)
def test_what_goes_wrong_is_named_in_one_line(
    outcomes: dict[str, Future[Outcome]], case: str, reason: str
) -> None:
    outcome = outcomes[case].result()
    assert outcome.status == 1, outcome.reason
    assert "\n" not in outcome.reason
    assert re.search(reason, outcome.reason), outcome.reason


def test_a_run_that_is_cancelled_is_not_called_failed(kubeflow: Installation) -> None:
    submitted = kubeflow.command(
        "submit", *kubeflow.sweep("cancelled", *LONG, "pipeline.layout=workers"), seconds=120
    )
    assert submitted.status == 0, submitted.errors
    (run,) = wait_for(lambda: [r for r in kubeflow.runs() if "cancelled" in r.display_name], 60)
    terminate = kubeflow.connection.runs.run_service_terminate_run
    options = ("--namespace", NAMESPACE) if NAMESPACE else ()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(kubeflow.command, "wait", run.run_id, *options, "--json", seconds=600)
        wait_for(lambda: kubeflow.run(run.run_id).state == "RUNNING", 120)
        time.sleep(20)
        kubeflow.connection.call(terminate, run.run_id)
        outcome = kubeflow.noted("cancelled", waiting.result())
    assert outcome.status == 1
    assert outcome.reason == "the run was cancelled"


def test_a_schedule_harms_no_run(kubeflow: Installation) -> None:
    """It fires, is changed during its run, paused, resumed and deleted; the run goes on."""
    name = f"{PREFIX}-schedule"
    started = time.monotonic()

    def schedule(verb: str, *words: str) -> str:
        outcome = kubeflow.command("schedule", verb, *words, seconds=180)
        assert outcome.status == 0, outcome.errors
        return outcome.errors

    def runs() -> list[Any]:
        return [run for run in kubeflow.runs() if run.display_name.startswith(name)]

    options = ("--namespace", NAMESPACE) if NAMESPACE else ()
    sweep = kubeflow.sweep("schedule", "pipeline.layout=workers")
    schedule("create", *sweep, "--every", "1m")
    assert wait_for(runs, 240), "the schedule does not fire"
    first = runs()[0].run_id
    wait_for(lambda: kubeflow.run(first).state == "RUNNING", 120)
    schedule("create", *sweep, "--every", "12h")
    assert kubeflow.run(first).state in ("RUNNING", "PENDING", "SUCCEEDED")
    schedule("pause", name, *options)
    before = {run.run_id for run in runs()}
    schedule("resume", name, *options)
    time.sleep(45)
    assert {run.run_id for run in runs()} == before
    schedule("delete", name, *options)
    ended = wait_for(lambda: kubeflow.run(first).state in ("SUCCEEDED", "FAILED"), 1500)
    state = kubeflow.run(first).state
    seconds = time.monotonic() - started
    kubeflow.seen.append(("schedule", seconds, state.lower(), "changed and deleted during its run"))
    assert ended
    assert state == "SUCCEEDED"


def test_submission_through_the_kubeconfig(
    kubeflow: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    outcome = kubeflow.command("submit", *kubeflow.sweep("kubeconfig"), seconds=180)
    if outcome.status == 2 and "kubeconfig" in outcome.errors:
        pytest.skip(f"no way through a kubeconfig: {outcome.reason}")
    kubeflow.noted("kubeconfig", outcome)
    assert outcome.status == 0, outcome.errors


def test_submission_from_a_pod(kubeflow: Installation) -> None:
    if not IMAGE:
        pytest.skip("TAYLORGLO_E2E_IMAGE does not name the image for the pod")
    name = f"{PREFIX}-pod"
    words = ["submit", "/configs/digits.yaml", *kubeflow.sweep("pod")[1:]]
    started = time.monotonic()
    try:
        with job_in_cluster(kubeflow.connection.namespace, name, words) as status:
            ended = wait_for(lambda: status().succeeded or status().failed, 300)
            succeeded = status().succeeded
    except (ApiException, AttributeError, TypeError) as error:
        pytest.skip(f"no Job may be created here: {getattr(error, 'reason', error)}")
    seconds = time.monotonic() - started
    kubeflow.seen.append(("pod", seconds, "submitted" if succeeded else "failed", ""))
    assert ended
    assert succeeded
    assert [run for run in kubeflow.runs() if run.display_name.startswith(name)]
