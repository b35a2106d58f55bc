"""``taylorglo schedule show`` and ``list``: the runs of schedules, and the times that come next."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from kfp_samples import Cli, only, write_kubeconfig
from kfp_server import KubeflowServer

from taylorglo_pipelines.kubeflow.firings import IF_UTC

STUCK = "its workflow was deleted, and Kubeflow goes on to show it as running; delete the run: "


@pytest.fixture
def schedule(cli: Cli, server: KubeflowServer) -> Cli:
    """The command ``taylorglo schedule`` with the test server as host."""
    return lambda verb, *words: cli("schedule", verb, *words, "--host", server.url)


@pytest.fixture
def made(schedule: Cli, server: KubeflowServer, config_path: Path) -> dict[str, Any]:
    """A schedule that fires at three o'clock, and nobody may read Kubernetes."""
    schedule("create", config_path, "--cron", "0 3 * * *")
    return only(server.recurring_runs)


@pytest.fixture
def another_cluster(tmp_path: Path) -> Iterator[None]:
    """A kubeconfig of a cluster that has nothing to do with the test server."""
    with KubeflowServer() as another:
        write_kubeconfig(tmp_path / "kubeconfig", another.url)
        yield


def next_of(out: str) -> list[str]:
    """Return the lines about the next firings."""
    lines = out[out.index("next ") :].splitlines()
    end = next((n for n, line in enumerate(lines) if line.startswith("runs")), len(lines))
    return [line[10:] for line in lines[:end]]


def runs_of(out: str) -> list[str]:
    """Return the lines about the runs."""
    return [line[10:] for line in out[out.index("runs ") :].splitlines() if line[10:]]


def test_the_last_runs_are_shown(schedule: Cli, server: KubeflowServer, config_path: Path) -> None:
    schedule("create", config_path, "--every", "12h")
    assert runs_of(schedule("show", "tiny")[1]) == ["none yet"]
    replaced = only(server.recurring_runs)
    old = [
        server.scheduler.fire(server, replaced, "FAILED", minutes=minutes)
        for minutes in (600, 500, 400)
    ]
    schedule("create", config_path, "--every", "1d")
    recurring_run = only(server.recurring_runs)
    new = [
        server.scheduler.fire(server, recurring_run, state, minutes=minutes)
        for state, minutes in (("SUCCEEDED", 300), ("RUNNING", 150))
    ]
    schedule("run-now", "tiny")
    by_hand = next(run for run in server.runs.values() if run["display_name"].startswith("tiny 2"))
    lines = runs_of(schedule("show", "tiny")[1])
    runs = [by_hand, *reversed(new), *reversed(old)][:5]
    assert [line.split()[0] for line in lines] == [run["state"].lower() for run in runs]
    started = [datetime.fromisoformat(run["created_at"]) for run in runs]
    assert [line[11:34] for line in lines] == [f"{time:%Y-%m-%d %H:%M:%S} UTC" for time in started]
    assert [line[36:43].strip() for line in lines[1:]] == ["2h 30m", "1m 0s", "1m 0s", "1m 0s"]
    assert [line[45:] for line in lines] == [
        f"{run['display_name']}  {server.url}/#/runs/details/{run['run_id']}" for run in runs
    ]


def test_runs_of_others_are_not_shown(
    schedule: Cli, cli: Cli, server: KubeflowServer, config_path: Path
) -> None:
    # Kubeflow names the runs of all of these alike.
    names = ("a-name-of-25-characters-or-more", "a-name-of-25-characters-or-less", "other")
    for name in names:
        schedule("create", config_path, "--every", "12h", "--name", name)
    for recurring_run in server.recurring_runs.values():
        server.scheduler.fire(server, recurring_run, "SUCCEEDED")
    cli("submit", config_path, "--host", server.url)
    for name, recurring_run in zip(names, server.recurring_runs.values(), strict=True):
        (line,) = runs_of(schedule("show", name)[1])
        assert f"{recurring_run['recurring_run_id'][:5]}-1-" in line


def test_only_the_newest_runs_are_looked_through(
    schedule: Cli, server: KubeflowServer, made: dict[str, Any]
) -> None:
    server.page_size = 100
    for minutes in range(130, 0, -1):
        server.scheduler.fire(server, made, "SUCCEEDED", minutes=minutes)
    server.requests.clear()
    lines = runs_of(schedule("show", "tiny")[1])
    assert [line.split()[-2].split("-")[1] for line in lines] == ["130", "129", "128", "127", "126"]
    assert len(server.asked("GET", "/runs")) == 5


def test_list_shows_which_are_running(
    schedule: Cli, server: KubeflowServer, made: dict[str, Any], config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h", "--name", "idle")
    server.scheduler.fire(server, made)
    for recurring_run in server.recurring_runs.values():
        server.scheduler.fire(server, recurring_run, "SUCCEEDED", minutes=5)
    lines = schedule("list")[1].splitlines()[1:3]
    assert [line.split()[:3] for line in lines] == [
        ["idle", "active", "-"],
        ["tiny", "active", "running"],
    ]


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize("is_gone", [True, False])
def test_a_run_whose_workflow_was_deleted_is_reported(
    is_gone: bool, schedule: Cli, server: KubeflowServer, made: dict[str, Any]
) -> None:
    run = server.scheduler.fire(server, made, minutes=3000)
    if is_gone:
        server.scheduler.workflows.clear()
    line = f"run {run['display_name']} never ends: {STUCK}{server.url}/#/runs/details/"
    assert (f"schedule 'tiny': {line}" in schedule("list")[1]) == is_gone
    for words in (["show", "tiny"], ["list"], ["delete", "tiny"]):
        out = schedule(*words)[1]
        assert (line in out) == is_gone
        assert ("never ends" in out) == is_gone
    assert ("is still running" in out) != is_gone


@pytest.mark.parametrize(("minutes", "is_doubted"), [(3000, True), (600, False)])
@pytest.mark.parametrize("reason", ["no kubeconfig", "forbidden", "another cluster"])
def test_nothing_is_claimed_of_a_workflow_that_cannot_be_looked_for(
    reason: str,
    minutes: int,
    is_doubted: bool,
    schedule: Cli,
    server: KubeflowServer,
    made: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    if reason != "no kubeconfig":
        fixture = "kubeconfig" if reason == "forbidden" else "another_cluster"
        request.getfixturevalue(fixture)
    server.scheduler.forbidden = ("workflows",)
    run = server.scheduler.fire(server, made, minutes=minutes)
    server.scheduler.workflows.clear()
    line = (
        f"run {run['display_name']} has been running for 2d 2h; if its workflow was deleted, it "
        "never ends: kubectl get workflows -n kubeflow -l "
        f"pipeline/runid={run['run_id']} shows whether there is one\n"
    )
    for words in (["show", "tiny"], ["list"]):
        out = schedule(*words)[1]
        assert (line in out) == is_doubted
        assert STUCK not in out
    assert "is still running" in schedule("delete", "tiny")[1]


@pytest.mark.usefixtures("kubeconfig")
def test_the_next_times_are_those_of_the_scheduler(
    schedule: Cli, server: KubeflowServer, made: dict[str, Any]
) -> None:
    server.scheduler.look(server)
    times = next_of(schedule("show", "tiny")[1])
    assert [time[10:] for time in times] == [" 03:00:00 UTC"] * 3
    assert IF_UTC not in schedule("list")[1]


@pytest.mark.usefixtures("kubeconfig")
def test_a_scheduler_in_another_time_zone(
    schedule: Cli, server: KubeflowServer, made: dict[str, Any]
) -> None:
    server.scheduler.zone = ZoneInfo("Asia/Tokyo")
    server.scheduler.look(server)
    *times, remark = next_of(schedule("show", "tiny")[1])
    assert [time[10:] for time in times] == [" 18:00:00 UTC"] * 3
    days = [datetime.fromisoformat(time[:10]) for time in times]
    assert days[2] - days[1] == days[1] - days[0] == timedelta(days=1)
    assert remark == ("(Kubeflow's scheduler reads the expression in another time zone than UTC)")
    assert " 18:00:00  0 0 3 * * *" in schedule("list")[1]


@pytest.mark.parametrize("reason", ["no kubeconfig", "forbidden", "another cluster", "too early"])
def test_it_is_said_what_the_times_rest_on(
    reason: str,
    schedule: Cli,
    server: KubeflowServer,
    made: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    if reason != "no kubeconfig":
        fixture = "another_cluster" if reason == "another cluster" else "kubeconfig"
        request.getfixturevalue(fixture)
    if reason != "too early":
        server.scheduler.look(server)
    if reason == "forbidden":
        server.scheduler.forbidden = ("scheduledworkflows",)
    *times, remark = next_of(schedule("show", "tiny")[1])
    assert [time[10:] for time in times] == [" 03:00:00 UTC"] * 3
    assert remark == f"({IF_UTC})"
    assert f"NEXT holds for a cron expression {IF_UTC}" in schedule("list")[1]


@pytest.mark.usefixtures("kubeconfig")
def test_a_firing_that_waits_for_a_run(
    schedule: Cli, server: KubeflowServer, made: dict[str, Any]
) -> None:
    made["created_at"] = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    run = server.scheduler.fire(server, made, minutes=3000)
    server.scheduler.look(server)
    due, remark = next_of(schedule("show", "tiny")[1])
    assert due.startswith("due since 20")
    assert due.endswith(" 03:00:00 UTC")
    assert remark == "(a firing waits until the run of the last one has ended)"
    assert schedule("list")[1].splitlines()[1].split()[:4] == ["tiny", "active", "running", "due"]
    # Kubeflow's scheduler counts the workflows that there are.
    server.scheduler.workflows.remove(run["run_id"])
    assert "a firing waits" not in schedule("show", "tiny")[1]


@pytest.mark.usefixtures("kubeconfig")
def test_a_note_of_a_time_that_has_fired_is_not_the_next(
    schedule: Cli, server: KubeflowServer, made: dict[str, Any]
) -> None:
    """Kubeflow's scheduler puts its note right some time after it has started the run."""
    made["created_at"] = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    server.scheduler.look(server)
    note = dict(server.scheduler.notes[made["recurring_run_id"]])
    server.scheduler.fire(server, made, "SUCCEEDED")
    server.scheduler.notes[made["recurring_run_id"]] = note
    times = next_of(schedule("show", "tiny")[1])
    assert [time[10:] for time in times] == [" 03:00:00 UTC"] * 3
    assert datetime.fromisoformat(f"{times[0][:19]}Z") > datetime.now(UTC)


def test_a_run_of_a_replaced_schedule_holds_up_nothing(
    schedule: Cli, server: KubeflowServer, made: dict[str, Any], config_path: Path
) -> None:
    server.scheduler.fire(server, made)
    assert "a firing waits" in schedule("show", "tiny")[1]
    assert "a firing waits" not in schedule("create", config_path, "--cron", "0 4 * * *")[1]


@pytest.mark.parametrize("is_readable", [True, False])
def test_intervals_go_on_from_the_last_run(
    is_readable: bool,
    schedule: Cli,
    server: KubeflowServer,
    config_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Kubeflow counts from the last firing, which may have waited for the one before it."""
    schedule("create", config_path, "--every", "12h")
    recurring_run = only(server.recurring_runs)
    server.scheduler.fire(server, recurring_run, "SUCCEEDED", minutes=700)
    last = server.scheduler.fire(server, recurring_run, "SUCCEEDED", minutes=90)
    recurring_run["created_at"] = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    if is_readable:
        request.getfixturevalue("kubeconfig")
        server.scheduler.look(server)
    fired = datetime.fromisoformat(last["scheduled_at"])
    expected = [fired + timedelta(hours=12) * count for count in (1, 2, 3)]
    times = next_of(schedule("show", "tiny")[1])
    assert times == [f"{time:%Y-%m-%d %H:%M:%S} UTC" for time in expected]


def test_a_run_that_was_created_somewhat_late_shifts_no_interval(
    schedule: Cli, server: KubeflowServer, config_path: Path
) -> None:
    schedule("create", config_path, "--every", "12h")
    recurring_run = only(server.recurring_runs)
    run = server.scheduler.fire(server, recurring_run, "SUCCEEDED", minutes=90)
    fired = datetime.fromisoformat(run["scheduled_at"])
    recurring_run["created_at"] = (fired - timedelta(hours=36, seconds=20)).isoformat()
    times = next_of(schedule("show", "tiny")[1])
    first = fired - timedelta(seconds=20) + timedelta(hours=12)
    assert times[0] == f"{first:%Y-%m-%d %H:%M:%S} UTC"
