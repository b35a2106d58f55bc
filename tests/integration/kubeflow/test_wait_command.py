"""``taylorglo wait`` and ``submit --wait``: the run that is meant, the output, the exit status."""

import json
from pathlib import Path
from typing import Any

import pytest
from clocks import Clock
from kfp_samples import Cli, only, recorded, show, tasks
from kfp_server import Fault, KubeflowServer

pytestmark = pytest.mark.usefixtures("clock")

NAME = "real 2026-11-26 15:14:56.700"


def events(out: str) -> list[dict[str, Any]]:
    """Return the events that were printed, each a JSON object on a line of its own."""
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    "run",
    [
        "{id}",
        NAME,
        "https://kubeflow.example.org/_/pipeline/?ns=ann#/runs/details/{id}",
        "http://localhost:8080/#/runs/details/{id}?tab=graph",
    ],
)
def test_a_run_is_meant(run: str, cli: Cli, server: KubeflowServer) -> None:
    run_id = show(server, "run-succeeded")
    status, out, err = cli("wait", run.format(id=run_id), "--host", server.url)
    lines = out.splitlines()
    assert (status, err, lines[-1]) == (0, "", "the run has succeeded")
    assert lines[0] == "15:15:27  succeeded  Check inputs (10 s)"


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        ("nobody", "there is no run of the id or name 'nobody'"),
        ("no body", "there is no run of the id or name 'no body'"),
        (NAME, f"2 runs are called {NAME!r}; give the id of one: "),
        (
            "http://localhost:8080/#/recurringrun/details/1",
            "should be the address of a run's page, .../#/runs/details/ID",
        ),
    ],
)
def test_no_run_is_meant(run: str, problem: str, cli: Cli, server: KubeflowServer) -> None:
    show(server, "run-succeeded")
    server.runs["2"] = {**recorded("run-succeeded"), "run_id": "2"}
    status, out, err = cli("wait", run, "--host", server.url)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert problem in err


def test_a_name_in_an_experiment(cli: Cli, server: KubeflowServer) -> None:
    show(server, "run-succeeded")
    server.runs["2"] = {**recorded("run-succeeded"), "run_id": "2", "experiment_id": "e2"}
    server.experiments["e2"] = {"experiment_id": "e2", "display_name": "mine"}
    words = ("wait", NAME, "--host", server.url, "--experiment")
    assert cli(*words, "mine")[0] == 0
    assert cli(*words, "other")[::2] == (2, "taylorglo: error: there is no experiment 'other'\n")


def test_a_run_that_fails(cli: Cli, server: KubeflowServer) -> None:
    run_id = show(server, "run-terminated-failed")
    status, out, err = cli("wait", run_id, "--host", server.url)
    assert (status, err) == (1, "taylorglo: error: the run was cancelled\n")
    assert out == "15:31:12  failed     Check inputs (attempt 18, 1 s)\n"


def test_events_for_programs(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    server.script = [
        {"state": "RUNNING", **tasks(prepare_dataset="RUNNING")},
        {"state": "SUCCEEDED", **tasks(prepare_dataset="RUNNING")},
    ]
    words = ("submit", config_path, "--host", server.url, "--wait", "--json")
    status, out, err = cli(*words)
    submitted, running, outcome = events(out)
    run_id = only(server.runs)["run_id"]
    assert (status, err) == (0, "")
    assert submitted["event"] == "submitted"
    assert submitted["message"] == f"{server.url}/#/runs/details/{run_id}"
    assert running == {
        "time": "2026-11-24T21:30:01Z",
        "event": "task",
        "task": "Prepare data set",
        "state": "RUNNING",
        "attempt": 1,
        "seconds": None,
        "message": "",
        "run": run_id,
    }
    assert (outcome["event"], outcome["state"]) == ("outcome", "SUCCEEDED")
    assert {event["run"] for event in (submitted, running, outcome)} == {run_id}


def test_a_failure_for_programs(cli: Cli, server: KubeflowServer) -> None:
    run_id = show(server, "run-terminated-failed")
    status, out, err = cli("wait", run_id, "--host", server.url, "--json")
    assert (status, err) == (1, "taylorglo: error: the run was cancelled\n")
    assert events(out)[-1] == {
        "time": "2026-11-26T15:33:03Z",
        "event": "outcome",
        "task": None,
        "state": "CANCELED",
        "attempt": None,
        "seconds": 146.0,
        "message": "the run was cancelled",
        "run": run_id,
    }


def test_errors_for_programs(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    status, out, err = cli("wait", "nobody", "--host", server.url, "--json")
    (event,) = events(out)
    assert (status, event["event"]) == (2, "error")
    assert err == f"taylorglo: error: {event['message']}\n"
    status, out, _ = cli("submit", config_path, "--wait", "--json", "--set", "search.popsize=0")
    (event,) = events(out)
    assert status == 2
    assert "search.popsize" in event["message"]


def test_json_without_wait(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    status, out, err = cli("submit", config_path, "--host", server.url, "--json")
    assert (status, err) == (0, "")
    (event,) = events(out)
    assert event["event"] == "submitted"
    assert event["run"] in event["message"]


def test_ctrl_c(cli: Cli, server: KubeflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taylorglo.retries.time", Clock(during=interrupt))
    run_id = show(server, "run-running-early")
    server.faults = [Fault("GET", "/pipelines/.*", 503)]
    status, out, err = cli("wait", run_id, "--host", server.url, "--json")
    assert (status, err) == (130, "taylorglo: interrupted; the run goes on\n")
    assert events(out)[-1]["message"] == "the run goes on"
