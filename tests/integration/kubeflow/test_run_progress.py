"""What is told of the tasks of a run, from recorded answers of Kubeflow: names and states."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import kfp_server_api
import pytest
from kfp_samples import recorded, tasks

from taylorglo_pipelines.kubeflow.names import Names
from taylorglo_pipelines.kubeflow.nodes import Attempt, Place, Task, place_of, tasks_of, workflow_of
from taylorglo_pipelines.kubeflow.progress import Event, Progress, as_json, as_text

START = datetime(2026, 11, 26, 15, 14, 56, tzinfo=UTC)
ITERATION = ("for-loop-2", "iteration-iterations(1:1)", "iteration-item")
FLAT = {
    "root": {
        "dag": {
            "tasks": {
                "evaluate-candidates-6": {
                    "taskInfo": {"name": "Evaluate candidates: generation 2, shard 1 of 4"},
                    "componentRef": {"name": "comp-evaluate-candidates"},
                }
            }
        }
    },
    "components": {"comp-evaluate-candidates": {"executorLabel": "exec-evaluate-candidates"}},
}


def run_of(body: dict[str, Any]) -> Any:
    """Return an answer as the generated client reads it."""
    answer = SimpleNamespace(data=json.dumps(body))
    return kfp_server_api.ApiClient().deserialize(answer, "V2beta1Run")


def run(name: str) -> Any:
    """Return a recorded run."""
    return run_of(recorded(f"run-{name}"))


def states(name: str) -> dict[str, str]:
    """Return the states of the tasks of a recorded run, by their display names."""
    names = Names(recorded("pipeline-0.1.0"))
    return {names.of(task.path): task.state for task in tasks_of(run(name))}


def lines(progress: Progress, *looks: list[Task] | list[Attempt]) -> list[str]:
    """Return the lines about tasks and pods, look after look."""
    said = []
    for look in looks:
        kubeflow = [item for item in look if isinstance(item, Task)]
        pods = [item for item in look if isinstance(item, Attempt)]
        said += [as_text(event) for event in progress.news(kubeflow, pods)]
    return said


def task(state: str, tries: int = 1, seconds: int = 0) -> Task:
    end = START + timedelta(seconds=seconds) if seconds else None
    attempts = tuple(f"w(0).root(0).evaluate(0).executor({number})" for number in range(tries))
    return Task(("evaluate",), state, START, end, attempts, tries)


def attempt(state: str, number: int = 0, seconds: int = 0) -> Attempt:
    end = START + timedelta(seconds=seconds) if seconds else None
    name = f"w(0).root(0).evaluate(0).executor({number})"
    return Attempt(name, Place(("evaluate",), is_driver=False), state, START, end)


def test_the_tasks_of_a_run_are_told_apart() -> None:
    assert states("out-of-memory-failed") == {
        "Check inputs": "SUCCEEDED",
        "Prepare data set": "SUCCEEDED",
        "Open study and MLflow run": "SUCCEEDED",
        "Tune baselines": "FAILED",
        "Propose candidates: generation 1": "SUCCEEDED",
        "Filter candidates: generation 1": "SUCCEEDED",
        "Evaluate candidates: generation 1, iteration 1": "FAILED",
        "Evaluate candidates: generation 1, iteration 2": "FAILED",
    }
    # Two generations have the tasks of the same keys.
    assert len(states("succeeded")) == 10


def test_a_task_whose_pod_has_not_started_is_pending() -> None:
    """For Kubeflow, the task is running: only the pod, which has no name of its own, is pending."""
    assert states("image-missing-running") == {"Check inputs": "PENDING"}
    assert states("running-early") == {"Check inputs": "SUCCEEDED", "Prepare data set": "RUNNING"}
    pending = {
        name for name, state in states("unschedulable-running").items() if state != "SUCCEEDED"
    }
    assert pending == {
        "Tune baselines",
        "Evaluate candidates: generation 1, iteration 1",
        "Evaluate candidates: generation 1, iteration 2",
    }


def test_the_attempts_of_a_task_are_counted() -> None:
    """Kubernetes refused each pod: what is around the task was tried again, too."""
    (refused,) = tasks_of(run("pod-refused-running"))
    assert (refused.path, refused.state, refused.tries) == (("check-inputs",), "FAILED", 18)
    assert workflow_of(run("pod-refused-running")) == "taylorglo-unsched-tfgzj"


def test_attempts_that_have_nothing_but_a_name() -> None:
    body = tasks(evaluate="RUNNING")
    times = {"state": "FAILED", "start_time": "2026-11-24T21:30:09Z"}
    body["run_details"]["task_details"] += [
        {**times, "task_id": name, "display_name": name} for name in ("evaluate(0)", "evaluate(1)")
    ]
    (found,) = tasks_of(run_of(body))
    assert (found.path, found.state, found.tries) == (("evaluate",), "RUNNING", 2)


def test_outputs_from_the_cache() -> None:
    """Argo then makes no pod."""
    body = recorded("run-bad-data-failed")
    details = body["run_details"]["task_details"]
    (executor,) = [record for record in details if record["display_name"] == "executor"]
    del executor["child_tasks"]
    for record in details:
        if record.get("state") == "FAILED":
            record["state"] = "SUCCEEDED"
    (found,) = tasks_of(run_of(body))
    assert found.is_cached
    line = "15:27:16  succeeded  check-inputs (22 s, from the cache)"
    assert lines(Progress(Names(None)), [found]) == [line]


def test_argos_nodes_of_pods_tell_their_tasks() -> None:
    nodes = recorded("argo-nodes-succeeded")
    places = {node["name"]: place_of(node["name"]) for node in nodes if node["type"] == "Pod"}
    assert len(places) == 39
    assert None not in places.values()
    around = ("next-generation", *ITERATION)
    names = {place.path for place in places.values() if place and not place.is_driver}
    assert (*around, "evaluate-candidates") in names
    assert place_of("taylorglo-x-abc(0).root-driver(0)") == Place((), is_driver=True)
    assert place_of("taylorglo-x-abc(0).root(0)") is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("check-inputs",), "Check inputs"),
        (("next-generation", "filter-candidates"), "Filter candidates: generation 2"),
        (
            ("first-generation", *ITERATION, "evaluate-candidates"),
            "Evaluate candidates: generation 1, iteration 2",
        ),
        (("another", *ITERATION, "task"), "task: another, iteration 2"),
        ((), "the run"),
    ],
)
def test_names(path: tuple[str, ...], name: str) -> None:
    specification = recorded("pipeline-0.1.0")
    assert Names(specification).of(path) == name
    assert Names({"pipeline_spec": specification, "platform_spec": {}}).of(path) == name


def test_the_names_of_tasks_that_all_stand_at_the_root() -> None:
    place = Place(("evaluate-candidates-6",), is_driver=False)
    name = "Evaluate candidates: generation 2, shard 1 of 4"
    assert Names(FLAT).subject(place) == f"task {name}"
    assert Names(FLAT).subject(place._replace(is_driver=True)) == f"the driver of task {name}"
    assert Names(None).subject(place) == "task evaluate-candidates-6"


def test_every_state_is_told_once() -> None:
    looks = [[task("PENDING")], [task("RUNNING")], [task("RUNNING")], [task("SUCCEEDED", 1, 75)]]
    assert lines(Progress(Names(None)), *looks) == [
        "15:14:56  pending    evaluate",
        "15:14:56  running    evaluate",
        "15:16:11  succeeded  evaluate (1 min 15 s)",
    ]


def test_a_second_attempt_is_told() -> None:
    looks = [[task("RUNNING")], [task("RUNNING", 2)], [task("SUCCEEDED", 2, 30)]]
    assert lines(Progress(Names(None)), *looks) == [
        "15:14:56  running    evaluate",
        "15:14:56  running    evaluate (attempt 2)",
        "15:15:26  succeeded  evaluate (attempt 2, 30 s)",
    ]


def test_pods_are_ahead_of_kubeflow() -> None:
    """What Kubeflow shows later, or goes on to show, is not told again."""
    progress = Progress(Names(None))
    looks = [
        [task("RUNNING"), attempt("PENDING")],
        [task("RUNNING"), attempt("RUNNING")],
        [task("RUNNING"), attempt("FAILED", 0, 20)],
        [task("RUNNING"), attempt("FAILED", 0, 20), attempt("RUNNING", 1)],
        [task("RUNNING"), attempt("SUCCEEDED", 1, 60)],
        [task("RUNNING", 2)],
        [task("SUCCEEDED", 2, 70)],
    ]
    assert lines(progress, *looks) == [
        "15:14:56  pending    evaluate",
        "15:14:56  running    evaluate",
        "15:15:16  failed     evaluate (20 s)",
        "15:14:56  running    evaluate (attempt 2)",
        "15:15:56  succeeded  evaluate (attempt 2, 1 min 00 s)",
    ]
    assert progress.has_succeeded(("evaluate",))


def test_kubeflow_has_the_last_word() -> None:
    looks = [[attempt("SUCCEEDED", 0, 20)], [task("FAILED", 1, 30)], [attempt("SUCCEEDED", 0, 20)]]
    assert lines(Progress(Names(None)), *looks) == [
        "15:15:16  succeeded  evaluate (20 s)",
        "15:15:26  failed     evaluate (30 s)",
    ]


def test_an_event_for_a_program() -> None:
    event = Event(START, "task", "Evaluate", "SUCCEEDED", 2, 30.0, run="1")
    assert json.loads(as_json(event)) == {
        "time": "2026-11-26T15:14:56Z",
        "event": "task",
        "task": "Evaluate",
        "state": "SUCCEEDED",
        "attempt": 2,
        "seconds": 30.0,
        "message": "",
        "run": "1",
    }
