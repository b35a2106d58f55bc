"""``taylorglo schedule``: sweeps that recur, created, changed, paused and deleted by their name."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_samples import Cli, only, recorded
from kfp_server import Fault, KubeflowServer

from taylorglo_pipelines.kubeflow.firings import IF_UTC

SECONDS_OF_2_DAYS = "172800"
RESUMED = "schedule 'tiny' is active\nstate     active\n"


@pytest.fixture
def schedule(cli: Cli, server: KubeflowServer) -> Cli:
    """The command ``taylorglo schedule`` with the test server as host."""
    return lambda verb, *words: cli("schedule", verb, *words, "--host", server.url)


@pytest.fixture
def old_schedule(schedule: Cli, server: KubeflowServer, config_path: Path) -> dict[str, Any]:
    """A schedule of taylorglo 0.1.0, whose pipeline had a scalar parameter for each setting."""
    schedule("create", config_path, "--every", "12h")
    recurring_run = only(server.recurring_runs)
    recurring_run["description"] = "taylorglo schedule of sweep tiny"
    del recurring_run["plugins_input"]
    recurring_run["runtime_config"] = {"parameters": {"search_renew": True}}
    version = only(server.versions)
    version["name"] = version["display_name"] = "0" * 32
    spec = server.specs[version["pipeline_version_id"]]
    parameters = spec.root.input_definitions.parameters
    del parameters["search"]
    json_format.ParseDict({"parameterType": "BOOLEAN"}, parameters["search_renew"])
    return recurring_run


def default_of_search(server: KubeflowServer, recurring_run: dict[str, Any]) -> dict[str, Any]:
    """Return the parameter ``search`` of a recurring run's pipeline, as the pipeline has it."""
    version = recurring_run["pipeline_version_reference"]["pipeline_version_id"]
    parameters = server.specs[version].root.input_definitions.parameters
    default: dict[str, Any] = json_format.MessageToDict(parameters["search"].default_value)
    return default


def missed(server: KubeflowServer) -> None:
    """Let a day and an hour pass for the server."""
    server.scheduler.now = lambda: datetime.now(UTC) + timedelta(hours=25)


def modes(server: KubeflowServer) -> list[str]:
    return sorted(recurring_run["mode"] for recurring_run in server.recurring_runs.values())


def test_create_with_a_cron_expression(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    status, out, err = schedule("create", config_path, "--cron", "0 3 * * *")
    made = only(server.recurring_runs)
    assert (status, err) == (0, "")
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert made["display_name"] == "tiny"
    lines = out.splitlines()
    assert lines[:3] == ["schedule 'tiny' created", "state     active", "when      0 0 3 * * *"]
    assert f"page      {server.url}/#/recurringrun/details/{made['recurring_run_id']}" in lines
    assert lines[-1] == f"{'':10}({IF_UTC})"
    times = [line[10:] for line in lines[-4:-1]]
    assert all(time.endswith(" 03:00:00 UTC") for time in times)
    first, second, third = (datetime.fromisoformat(time.removesuffix(" UTC")) for time in times)
    assert third - second == second - first == timedelta(days=1)


def test_create_with_an_interval(schedule: Cli, server: KubeflowServer, config_path: Path) -> None:
    _, out, _ = schedule("create", config_path, "--every", "12h", "--name", "twice-a-day")
    made = only(server.recurring_runs)
    assert made["trigger"] == {"periodic_schedule": {"interval_second": "43200"}}
    assert made["display_name"] == "twice-a-day"
    assert "when      every 12h" in out
    first = out.splitlines()[-3].removeprefix("next").strip().removesuffix(" UTC")
    waiting = datetime.fromisoformat(f"{first}Z") - datetime.fromisoformat(made["created_at"])
    assert waiting < timedelta(hours=12)


def test_each_run_of_a_schedule_renews_the_search(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h", "--set", "search.popsize=7")
    made = only(server.recurring_runs)
    default = default_of_search(server, made)
    assert (default["popsize"], default["renew"]) == (7, False)
    search = {**default, "renew": True}
    assert made["runtime_config"] == {"parameters": {"name": "tiny", "search": search}}


def test_create_again_changes_the_schedule(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    before = only(server.recurring_runs)
    _, out, _ = schedule("create", config_path, "--every", "12h")
    assert out.startswith("schedule 'tiny' unchanged\n")
    assert only(server.recurring_runs) is before
    for change in (["--every", "1d"], ["--every", "1d", "--set", "seed=7"]):
        server.enabled.clear()
        _, out, _ = schedule("create", config_path, *change)
        assert out.startswith("schedule 'tiny' updated\nstate     active\n")
        assert set(server.enabled) == {0, 1}
        assert server.enabled[-1] == 1
    after = only(server.recurring_runs)
    assert after["mode"] == "ENABLE"
    assert after["trigger"] == {"periodic_schedule": {"interval_second": "86400"}}
    assert after["pipeline_version_reference"] != before["pipeline_version_reference"]


def test_the_description_alone_is_no_change(
    schedule: Cli, server: KubeflowServer, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule("create", config_path, "--every", "12h")
    before = only(server.recurring_runs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert "unchanged" in schedule("create", config_path, "--every", "12h")[1]
    assert only(server.recurring_runs) is before


def test_a_paused_schedule_stays_paused(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    schedule("pause", "tiny")
    missed(server)
    assert "state     paused" in schedule("create", config_path, "--every", "2d")[1]
    assert only(server.recurring_runs)["mode"] == "DISABLE"
    assert server.runs == {}


@pytest.mark.parametrize("path", ["/recurringruns", "/recurringruns/.*:disable"])
@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
def test_a_change_that_fails_leaves_the_old_schedule(
    path: str, done: bool, schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    before = dict(only(server.recurring_runs))
    server.faults = [Fault("POST", path, 403, done=done)]
    status, _, err = schedule("create", config_path, "--every", "2d")
    assert (status, err.count("\n")) == (2, 1)
    assert max(server.enabled) == 1
    enabled = [
        recurring_run_id
        for recurring_run_id, recurring_run in server.recurring_runs.items()
        if recurring_run["mode"] == "ENABLE"
    ]
    assert enabled == [before["recurring_run_id"]]
    assert schedule("create", config_path, "--every", "2d")[0] == 0
    after = only(server.recurring_runs)
    assert after["trigger"] == {"periodic_schedule": {"interval_second": SECONDS_OF_2_DAYS}}


def test_an_old_schedule_that_could_not_be_deleted_is_disabled(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    server.faults = [Fault("DELETE", "/recurringruns/.*", 500, 4)]
    assert schedule("create", config_path, "--every", "2d")[0] == 2
    assert modes(server) == ["DISABLE", "ENABLE"]
    assert "when      every 2d" in schedule("show", "tiny")[1]
    assert schedule("create", config_path, "--every", "3d")[0] == 0
    only(server.recurring_runs)


def test_resume_leaves_one_of_two(schedule: Cli, server: KubeflowServer, config_path: Path) -> None:
    schedule("create", config_path, "--every", "12h")
    server.faults = [Fault("DELETE", "/recurringruns/.*", 500, 4)]
    schedule("create", config_path, "--every", "2d")
    schedule("pause", "tiny")
    assert modes(server) == ["DISABLE", "DISABLE"]
    assert "when      every 2d" in schedule("resume", "tiny")[1]
    assert only(server.recurring_runs)["mode"] == "ENABLE"


@pytest.mark.parametrize("trigger", [["--every", "12h"], ["--cron", "0 3 * * *"]])
def test_resume_starts_nothing_that_was_missed(
    trigger: list[str], schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, *trigger)
    schedule("pause", "tiny")
    before = only(server.recurring_runs)
    missed(server)
    server.enabled.clear()
    status, out, err = schedule("resume", "tiny")
    after = only(server.recurring_runs)
    assert (status, err, server.runs) == (0, "", {})
    assert out.startswith(RESUMED)
    assert max(server.enabled) == 1
    own = {"recurring_run_id", "created_at", "mode", "status"}
    assert {k: v for k, v in after.items() if k not in own} == {
        k: v for k, v in before.items() if k not in own
    }
    assert after["recurring_run_id"] != before["recurring_run_id"]
    assert (after["mode"], after["status"]) == ("ENABLE", "ENABLED")
    # The schedule would have started a run if it had been enabled.
    server.scheduler.enable(server, before)
    only(server.runs)


def test_an_interval_is_counted_anew_after_resume(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    schedule("pause", "tiny")
    missed(server)
    out = schedule("resume", "tiny")[1]
    created = datetime.fromisoformat(only(server.recurring_runs)["created_at"])
    assert f"next      {created + timedelta(hours=12):%Y-%m-%d %H:%M:%S} UTC\n" in out


def test_resume_of_an_active_schedule_changes_nothing(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    before = dict(only(server.recurring_runs))
    assert schedule("resume", "tiny")[1].startswith(RESUMED)
    assert only(server.recurring_runs) == before


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
def test_a_resume_that_fails_leaves_the_schedule_paused(
    done: bool, schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    schedule("pause", "tiny")
    server.faults = [Fault("POST", "/recurringruns", 403, done=done)]
    assert schedule("resume", "tiny")[0] == 2
    assert only(server.recurring_runs)["mode"] == "DISABLE"
    assert schedule("resume", "tiny")[0] == 0
    assert only(server.recurring_runs)["mode"] == "ENABLE"


def test_a_server_that_goes_away_during_a_change_is_reported(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    server.faults = [Fault("POST", "/recurringruns(/.*:enable)?", 503, 10**6)]
    status, _, err = schedule("create", config_path, "--every", "2d")
    assert (status, err.count("\n")) == (2, 1)
    assert err.endswith(
        "(503); taylorglo schedule show tells whether the schedule is active or paused now\n"
    )


@pytest.mark.parametrize("status", [0, 502], ids=["dropped", "502"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/recurringruns"),
        ("POST", "/recurringruns/.*:disable"),
        ("DELETE", "/recurringruns/.*"),
    ],
)
@pytest.mark.parametrize("verb", ["create", "resume"])
def test_lost_answers(
    verb: str,
    method: str,
    path: str,
    status: int,
    schedule: Cli,
    server: KubeflowServer,
    config_path: Path,
) -> None:
    schedule("create", config_path, "--every", "12h")
    if verb == "resume":
        schedule("pause", "tiny")
    server.faults = [Fault(method, path, status, done=True)]
    words = [config_path, "--every", "2d"] if verb == "create" else ["tiny"]
    assert schedule(verb, *words)[0] == 0
    assert only(server.recurring_runs)["mode"] == "ENABLE"


def test_a_change_leaves_the_running_run_alone(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    """The server deletes the workflow with a schedule, unless it is told not to."""
    schedule("create", config_path, "--every", "12h")
    run = server.scheduler.fire(server, only(server.recurring_runs))
    server.scheduler.fire(server, only(server.recurring_runs), "SUCCEEDED", minutes=720)
    page = f"{server.url}/#/runs/details/{run['run_id']}\n"
    beside = f"run {run['display_name']} is still running, and the next one does not wait for it"
    alone = f"run {run['display_name']} is still running"
    assert schedule("create", config_path, "--every", "1d")[1].endswith(f"\n{beside}: {page}")
    assert schedule("pause", "tiny")[1].endswith(f"\n{alone}: {page}")
    assert schedule("create", config_path, "--every", "2d")[1].endswith(f"\n{alone}: {page}")
    assert schedule("resume", "tiny")[1].endswith(f"\n{beside}: {page}")
    assert schedule("delete", "tiny")[1] == f"schedule 'tiny' is deleted\n{alone}: {page}"
    assert run["run_id"] in server.scheduler.workflows
    assert server.recurring_runs == {}


def test_list(schedule: Cli, server: KubeflowServer, config_path: Path) -> None:
    assert schedule("list")[1] == "there are no schedules\n"
    # More than a page has.
    for name in ("c", "a", "b"):
        schedule("create", config_path, "--cron", "0 0 3 * * *", "--name", name)
    schedule(
        "create", config_path, "--every", "90m", "--name", "rather-long", "--experiment", "other"
    )
    schedule("pause", "b")
    server.recurring_runs["x"] = {
        **next(iter(server.recurring_runs.values())),
        "recurring_run_id": "x",
        "description": "of others",
    }
    lines = schedule("list")[1].splitlines()
    assert lines[0] == "NAME         STATE    NOW      NEXT (UTC)           WHEN"
    assert lines[5:] == [f"NEXT holds for a cron expression {IF_UTC}"]
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["a", "active"],
        ["b", "paused"],
        ["c", "active"],
        ["rather-long", "active"],
    ]
    assert lines[1].endswith(" 03:00:00  0 0 3 * * *")
    assert lines[2] == "b            paused   -        -                    0 0 3 * * *"
    assert lines[4].endswith("  every 90m")
    assert schedule("list", "--experiment", "other")[1].count("\n") == 2


def test_pause_resume_show_delete(schedule: Cli, server: KubeflowServer, config_path: Path) -> None:
    schedule("create", config_path, "--every", "12h")
    assert schedule("pause", "tiny") == (0, "schedule 'tiny' is paused\n", "")
    assert only(server.recurring_runs)["mode"] == "DISABLE"
    assert "next" not in schedule("show", "tiny")[1]
    assert schedule("resume", "tiny")[1].startswith(RESUMED)
    assert only(server.recurring_runs)["mode"] == "ENABLE"
    assert schedule("show", "tiny")[1].count(" UTC\n") == 3
    assert schedule("delete", "tiny") == (0, "schedule 'tiny' is deleted\n", "")
    assert server.recurring_runs == {}


def test_run_now(schedule: Cli, server: KubeflowServer, config_path: Path) -> None:
    schedule("create", config_path, "--every", "12h", "--set", "pipeline.service_account=taylorglo")
    status, out, _ = schedule("run-now", "tiny")
    run, made = only(server.runs), only(server.recurring_runs)
    assert (status, out) == (0, f"{server.url}/#/runs/details/{run['run_id']}\n")
    for key in (
        "experiment_id",
        "pipeline_version_reference",
        "runtime_config",
        "service_account",
    ):
        assert run[key] == made[key]
    assert run["runtime_config"]["parameters"]["search"]["renew"] is True
    assert run["description"] == f"run-now of {made['description']}"


def test_kubeflows_mlflow_plugin_is_left_out(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    schedule("pause", "tiny")
    schedule("resume", "tiny")
    schedule("run-now", "tiny")
    for thing in (only(server.recurring_runs), only(server.runs)):
        assert thing["plugins_input"] == {"mlflow": {"disabled": True}}


def test_an_older_kubeflow_has_no_plugins(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    server.unknown_fields = ("plugins_input",)
    assert schedule("create", config_path, "--every", "12h")[::2] == (0, "")
    assert schedule("create", config_path, "--every", "2d")[::2] == (0, "")
    assert schedule("run-now", "tiny")[::2] == (0, "")
    assert "plugins_input" not in only(server.recurring_runs) | only(server.runs)


def test_a_schedule_has_a_description(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    assert only(server.recurring_runs)["description"] == (
        "taylorglo schedule of sweep tiny: data digits, network mlp, layout workers, 1 generation "
        "x 8 candidates"
    )


def test_a_schedule_of_0_1_0_is_shown_paused_resumed_run_and_deleted(
    schedule: Cli, server: KubeflowServer, old_schedule: dict[str, Any]
) -> None:
    assert schedule("list")[1].splitlines()[1].split()[:2] == ["tiny", "active"]
    assert schedule("show", "tiny")[1].startswith("state     active\nwhen      every 12h\n")
    assert schedule("pause", "tiny")[0] == 0
    assert old_schedule["mode"] == "DISABLE"
    assert schedule("resume", "tiny")[0] == 0
    assert only(server.recurring_runs)["mode"] == "ENABLE"
    assert schedule("run-now", "tiny")[0] == 0
    assert only(server.runs)["runtime_config"] == {"parameters": {"search_renew": True}}
    status, out, _ = schedule("delete", "tiny")
    assert (status, out.splitlines()[0]) == (0, "schedule 'tiny' is deleted")
    assert server.recurring_runs == {}


def test_a_schedule_of_0_1_0_of_a_real_kubeflow(schedule: Cli, server: KubeflowServer) -> None:
    recurring_run = recorded("schedule-shown")
    reference = recurring_run["pipeline_version_reference"]
    server.versions[reference["pipeline_version_id"]] = reference
    spec = server.specs[reference["pipeline_version_id"]] = pipeline_spec_pb2.PipelineSpec()
    parameters = spec.root.input_definitions.parameters
    json_format.ParseDict({"parameterType": "BOOLEAN"}, parameters["search_renew"])
    server.experiments[recurring_run["experiment_id"]] = {}
    server.recurring_runs[recurring_run["recurring_run_id"]] = recurring_run
    assert schedule("show", "quick")[1].startswith("state     active\nwhen      every 1m\n")
    assert schedule("pause", "quick")[::2] == (0, "")
    assert schedule("resume", "quick")[::2] == (0, "")
    assert server.runs == {}
    kept = ("display_name", "description", "trigger", "service_account", "runtime_config", "mode")
    made = only(server.recurring_runs)
    assert [made[key] for key in kept] == [recorded("schedule-shown")[key] for key in kept]


def test_a_schedule_of_0_1_0_is_replaced(
    schedule: Cli, server: KubeflowServer, old_schedule: dict[str, Any], config_path: Path
) -> None:
    server.enabled.clear()
    status, out, _ = schedule("create", config_path, "--every", "12h")
    assert status == 0
    assert out.startswith("schedule 'tiny' updated\nstate     active\n")
    assert set(server.enabled) == {0, 1}
    made = only(server.recurring_runs)
    assert made["recurring_run_id"] != old_schedule["recurring_run_id"]
    assert made["mode"] == "ENABLE"
    assert made["runtime_config"]["parameters"]["search"]["renew"] is True
    assert schedule("create", config_path, "--every", "12h")[1].startswith(
        "schedule 'tiny' unchanged\n"
    )


@pytest.mark.parametrize("verb", ["show", "pause", "resume", "delete", "run-now"])
def test_unknown_names(verb: str, schedule: Cli, server: KubeflowServer, config_path: Path) -> None:
    schedule("create", config_path, "--every", "12h")
    only(server.recurring_runs)["description"] = "of others"
    status, _, err = schedule(verb, "tiny")
    assert (status, err) == (
        2,
        "taylorglo: error: there is no schedule 'tiny'; taylorglo schedule list shows those that "
        "there are\n",
    )
    _, _, err = schedule(verb, "tiny", "--experiment", "none")
    assert err == "taylorglo: error: there is no experiment 'none'\n"
    assert only(server.recurring_runs)["mode"] == "ENABLE"


def test_one_name_in_two_experiments(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    for experiment in ("one", "two"):
        schedule("create", config_path, "--every", "12h", "--experiment", experiment)
    assert "several experiments; choose one with --experiment" in schedule("delete", "tiny")[2]
    assert schedule("delete", "tiny", "--experiment", "one")[0] == 0
    only(server.recurring_runs)


def test_several_users(schedule: Cli, server: KubeflowServer, config_path: Path) -> None:
    server.multi_user = True
    ann, bob = ("--namespace", "ann"), ("--namespace", "bob")
    assert schedule("create", config_path, "--every", "12h", *ann)[0] == 0
    assert schedule("list", *ann)[1].count("tiny") == 1
    assert schedule("list", *bob)[1] == "there are no schedules\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--cron", "0 0 30 2 *"], "never fires; there is no such day in the next 5 years"),
        (["--cron", "tomorrow"], "should have six fields, seconds first, or five; has 1"),
        (["--cron", ""], "has 0"),
        (["--every", "soon"], "should be like 30m, 12h or 2d"),
    ],
)
def test_a_malformed_time_is_reported_before_anything_is_sent(
    words: list[str], problem: str, schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    status, _, err = schedule("create", config_path, *words)
    assert (status, err.count("\n"), server.requests) == (2, 1, [])
    assert problem in err


@pytest.mark.parametrize("words", [[], ["--cron", "0 3 * * *", "--every", "1d"]])
def test_either_a_cron_expression_or_an_interval(
    words: list[str], schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    status, _, err = schedule("create", config_path, *words)
    assert (status, server.requests) == (2, [])
    assert "either --cron or --every is needed, and not both" in err


def test_the_list_as_a_json_document(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    assert json.loads(schedule("list", "--json")[1]) == []
    schedule("create", config_path, "--cron", "0 3 * * *")
    status, out, err = schedule("list", "--json")
    assert (status, err) == (0, "")
    (listed,) = json.loads(out)
    assert {key: listed[key] for key in ("name", "state", "running", "due", "when")} == {
        "name": "tiny",
        "state": "active",
        "running": False,
        "due": False,
        "when": "0 0 3 * * *",
    }
    assert datetime.fromisoformat(listed["next"]).hour == 3


def test_what_becomes_of_a_schedule_as_json_documents(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    def document(*words: object) -> dict[str, Any]:
        status, out, err = schedule(*words, "--json")
        assert (status, err) == (0, "")
        return dict(json.loads(out))

    created = document("create", config_path, "--every", "2d")
    assert (created["schedule"], created["outcome"]) == ("tiny", "created")
    assert "when      every 2d" in created["lines"]
    assert document("create", config_path, "--every", "2d")["outcome"] == "unchanged"
    assert document("pause", "tiny") == {
        "schedule": "tiny",
        "outcome": "is paused",
        "lines": [],
    }
    assert document("show", "tiny")["state"] == "paused"
    assert document("resume", "tiny")["outcome"] == "is active"
    run = document("run-now", "tiny")
    assert run["run"] in run["page"]
    shown = document("show", "tiny")
    assert (shown["name"], shown["state"], shown["when"]) == ("tiny", "active", "every 2d")
    (only,) = shown["runs"]
    assert only["run"] == run["run"]
    assert datetime.fromisoformat(only["created"]).tzinfo is not None
    assert document("delete", "tiny")["outcome"] == "is deleted"
    assert schedule("show", "tiny", "--json")[0] == 2
