"""``taylorglo schedule``: sweeps that recur, created, changed, paused and deleted by their name."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp_samples import Cli, only
from kfp_server import Fault, KubeflowServer

SECONDS_OF_2_DAYS = "172800"


@pytest.fixture
def schedule(cli: Cli, server: KubeflowServer) -> Cli:
    """The command ``taylorglo schedule`` with the test server as host."""
    return lambda verb, *words: cli("schedule", verb, *words, "--host", server.url)


@pytest.fixture
def old_schedule(schedule: Cli, server: KubeflowServer, config_path: Path) -> dict[str, Any]:
    """A schedule of taylorglo 0.1.0, whose pipeline had a scalar parameter for each setting."""
    schedule("create", config_path, "--every", "12h")
    recurring_run = only(server.recurring_runs)
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
    times = [line[10:] for line in lines[-3:]]
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
    assert made["runtime_config"] == {"parameters": {"search": {**default, "renew": True}}}


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


def test_a_paused_schedule_stays_paused(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    schedule("pause", "tiny")
    assert "state     paused" in schedule("create", config_path, "--every", "2d")[1]
    assert only(server.recurring_runs)["mode"] == "DISABLE"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/recurringruns"),
        ("POST", "/recurringruns/.*:disable"),
        ("POST", "/recurringruns/.*:enable"),
    ],
)
@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
def test_a_change_that_fails_leaves_the_old_schedule(
    method: str, path: str, done: bool, schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    before = dict(only(server.recurring_runs))
    server.faults = [Fault(method, path, 403, done=done)]
    status, _, err = schedule("create", config_path, "--every", "2d")
    assert (status, err.count("\n")) == (2, 1)
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


def test_resume_enables_one_of_two(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    server.faults = [Fault("DELETE", "/recurringruns/.*", 500, 4)]
    schedule("create", config_path, "--every", "2d")
    schedule("pause", "tiny")
    assert modes(server) == ["DISABLE", "DISABLE"]
    assert "when      every 2d" in schedule("resume", "tiny")[1]
    assert modes(server) == ["DISABLE", "ENABLE"]
    schedule("delete", "tiny")
    assert server.recurring_runs == {}


def test_a_server_that_goes_away_during_a_change_is_reported(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    server.faults = [Fault("POST", "/recurringruns/.*:enable", 503, 10**6)]
    status, _, err = schedule("create", config_path, "--every", "2d")
    assert (status, err.count("\n")) == (2, 1)
    assert err.endswith("(503); schedule 'tiny' may not be active now: repeat the command\n")


@pytest.mark.parametrize("status", [0, 502], ids=["dropped", "502"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/recurringruns"),
        ("POST", "/recurringruns/.*:disable"),
        ("POST", "/recurringruns/.*:enable"),
        ("DELETE", "/recurringruns/.*"),
    ],
)
def test_lost_answers(
    method: str, path: str, status: int, schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    server.faults = [Fault(method, path, status, done=True)]
    assert schedule("create", config_path, "--every", "2d")[0] == 0
    assert only(server.recurring_runs)["mode"] == "ENABLE"


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
    assert lines[0] == "NAME         STATE    NEXT (UTC)           WHEN"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["a", "active"],
        ["b", "paused"],
        ["c", "active"],
        ["rather-long", "active"],
    ]
    assert lines[1].endswith(" 03:00:00  0 0 3 * * *")
    assert lines[2] == "b            paused   -                    0 0 3 * * *"
    assert lines[4].endswith("  every 90m")
    assert schedule("list", "--experiment", "other")[1].count("\n") == 2


def test_pause_resume_show_delete(schedule: Cli, server: KubeflowServer, config_path: Path) -> None:
    schedule("create", config_path, "--every", "12h")
    assert schedule("pause", "tiny") == (0, "schedule 'tiny' is paused\n", "")
    assert only(server.recurring_runs)["mode"] == "DISABLE"
    assert "next" not in schedule("show", "tiny")[1]
    assert schedule("resume", "tiny")[1].startswith("state     active\n")
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


def test_a_schedule_of_0_1_0_is_shown_paused_resumed_run_and_deleted(
    schedule: Cli, server: KubeflowServer, old_schedule: dict[str, Any]
) -> None:
    assert schedule("list")[1].splitlines()[1].split()[:2] == ["tiny", "active"]
    assert schedule("show", "tiny")[1].startswith("state     active\nwhen      every 12h\n")
    assert schedule("pause", "tiny")[0] == 0
    assert old_schedule["mode"] == "DISABLE"
    assert schedule("resume", "tiny")[0] == 0
    assert old_schedule["mode"] == "ENABLE"
    assert schedule("run-now", "tiny")[0] == 0
    assert only(server.runs)["runtime_config"] == {"parameters": {"search_renew": True}}
    assert schedule("delete", "tiny") == (0, "schedule 'tiny' is deleted\n", "")
    assert server.recurring_runs == {}


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
