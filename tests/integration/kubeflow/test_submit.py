"""``taylorglo submit``: a sweep is uploaded once, and a run of it is started."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clocks import Clock
from google.protobuf import json_format
from kfp_samples import TOKEN, Cli, certificate, only, tasks
from kfp_server import Fault, KubeflowServer


def test_the_sweep_is_uploaded_and_run(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    account = ["--set", "pipeline.service_account=taylorglo"]
    status, out, err = cli(
        "submit", config_path, "--host", server.url, "--experiment", "trials", *account
    )
    run, version = only(server.runs), only(server.versions)
    assert (status, err) == (0, "")
    assert out == f"{server.url}/#/runs/details/{run['run_id']}\n"
    assert re.fullmatch(r"tiny 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", run["display_name"])
    assert run["service_account"] == "taylorglo"
    assert run["runtime_config"] == {"parameters": {"name": "tiny"}}
    assert run["plugins_input"] == {"mlflow": {"disabled": True}}
    assert (
        run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    )
    assert only(server.pipelines)["name"] == "taylorglo-tiny"
    assert re.fullmatch("tiny-workers-[0-9a-f]{24}", version["name"])
    assert version["display_name"] == f"tiny workers {version['name'][-24:-16]}"
    assert only(server.experiments)["display_name"] == "trials"


def test_the_same_sweep_is_uploaded_once(
    cli: Cli, server: KubeflowServer, config_path: Path
) -> None:
    for _ in range(2):
        assert cli("submit", config_path, "--host", server.url)[0] == 0
    assert len(server.asked("POST", "/pipelines/upload_version")) == 1
    # More versions than a page has.
    for seed in (1, 2, 3):
        assert cli("submit", config_path, "--host", server.url, "--set", f"seed={seed}")[0] == 0
    assert cli("submit", config_path, "--host", server.url, "--set", "seed=3")[0] == 0
    assert len(server.versions) == len(server.asked("POST", "/pipelines/upload_version")) == 4
    assert len(server.runs) == 6
    assert only(server.experiments)["display_name"] == "tiny"


def test_versions_that_look_alike_are_told_apart(
    cli: Cli, server: KubeflowServer, config_path: Path
) -> None:
    """People see the start of the hash, which says little of the content."""
    cli("submit", config_path, "--host", server.url)
    only(server.versions)["name"] = f"tiny-workers-{'0' * 24}"
    cli("submit", config_path, "--host", server.url)
    versions = list(server.versions.values())
    assert len({version["name"] for version in versions}) == 2
    assert len({version["display_name"] for version in versions}) == 1


def test_an_older_kubeflow_has_display_names_only(
    cli: Cli, server: KubeflowServer, config_path: Path
) -> None:
    server.unknown_fields = ("plugins_input",)
    assert cli("submit", config_path, "--host", server.url)[0] == 0
    version = only(server.versions)
    version["display_name"] = version.pop("name")
    assert cli("submit", config_path, "--host", server.url)[0] == 0
    only(server.versions)
    assert [run.get("plugins_input") for run in server.runs.values()] == [None, None]


def test_another_refusal_is_not_answered_by_another_try(
    cli: Cli, server: KubeflowServer, config_path: Path
) -> None:
    server.faults = [Fault("POST", "/runs", 400)]
    assert cli("submit", config_path, "--host", server.url)[0] == 2
    assert len(server.asked("POST", "/runs")) == 1


def test_the_run_shows_what_was_set(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    settings = ("seed=7", "search.popsize=9", "training.learning_rate=0.25")
    words = [word for setting in settings for word in ("--set", setting)]
    cli("submit", config_path, "--host", server.url, *words)
    run, version = only(server.runs), only(server.versions)
    parameters = run["runtime_config"]["parameters"]
    assert set(parameters) == {"name", "seed", "search", "training"}
    inputs = server.specs[version["pipeline_version_id"]].root.input_definitions.parameters
    for name, value in parameters.items():
        assert json_format.MessageToDict(inputs[name].default_value) == value
    assert parameters["search"]["popsize"] == 9
    assert run["description"] == (
        "sweep tiny: data digits, network mlp, layout workers, 1 generation x 9 candidates"
    )


@pytest.mark.parametrize(
    ("setting", "variable", "page"),
    [
        ("https://mlflow.example.org/", "http://elsewhere", ", MLflow https://mlflow.example.org/"),
        ("", "http://ann:se/cret@host:5000/x?t=1", ", MLflow http://host:5000/x"),
        ("", "sqlite:///mlruns.db", ""),
        ("", "", ""),
        ("", f"https://mlflow.example.org/{'x' * 200}", ""),
    ],
)
def test_the_run_names_the_page_of_mlflow(
    setting: str,
    variable: str,
    page: str,
    cli: Cli,
    server: KubeflowServer,
    config_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    words = ("--set", f"services.tracking_uri={setting}", "--set", "pipeline.generations=2")
    cli("submit", config_path, "--host", server.url, *words)
    assert only(server.runs)["description"].endswith(f", 2 generations x 8 candidates{page}")


def test_a_description_fits_into_kubeflows_database(
    cli: Cli, server: KubeflowServer, config_path: Path
) -> None:
    words = ("--host", server.url, "--set", f"model.name=pack.mod:{'f' * 300}")
    assert cli("submit", config_path, *words)[0] == 0
    cli("schedule", "create", config_path, *words, "--every", "12h")
    cli("schedule", "run-now", "tiny", "--host", server.url)
    things = [*server.runs.values(), *server.recurring_runs.values()]
    assert [len(thing["description"]) <= 255 for thing in things] == [True] * 3


@pytest.mark.parametrize(
    "path", ["/experiments", "/pipelines", "/pipelines/upload_version", "/runs"]
)
@pytest.mark.parametrize("status", [0, 409, 502], ids=["dropped", "409", "502"])
def test_a_thing_whose_creation_was_not_answered_is_found(
    status: int, path: str, cli: Cli, server: KubeflowServer, config_path: Path
) -> None:
    server.faults = [Fault("POST", path, status, done=True)]
    assert cli("submit", config_path, "--host", server.url)[0] == 0
    for things in (server.experiments, server.pipelines, server.versions, server.runs):
        only(things)


def test_two_processes_upload_the_sweep_once(
    server: KubeflowServer, config_path: Path, tmp_path: Path
) -> None:
    """Their hash seeds differ, and with them the order of kfp's comments, which are left out."""
    program = [sys.executable, "-m", "taylorglo_pipelines.cli"]
    command = [*program, "submit", str(config_path), "--host", server.url]
    environment = {**os.environ, "HOME": str(tmp_path), "KUBECONFIG": os.devnull}
    processes = [
        subprocess.Popen(command, env={**environment, "PYTHONHASHSEED": seed}, cwd=tmp_path)
        for seed in ("1", "2")
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    for things in (server.experiments, server.pipelines, server.versions):
        only(things)
    assert len(server.runs) == 2


def test_passing_failures_are_survived(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    server.faults = [
        Fault("GET", "/healthz", 503, 2),
        Fault("GET", "/pipelines/.*", 500),
        Fault("POST", "/runs", 504),
    ]
    assert cli("submit", config_path, "--host", server.url)[0] == 0
    only(server.runs)


def test_a_server_that_keeps_failing(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    server.faults = [Fault("POST", "/runs", 500, 10**6)]
    status, _, err = cli("submit", config_path, "--host", server.url)
    assert (status, len(server.asked("POST", "/runs"))) == (2, 4)
    assert err == (
        f"taylorglo: error: Kubeflow Pipelines at {server.url}: as the test wants it (500)\n"
    )


def test_the_environment_names_the_server_and_the_experiment(
    cli: Cli, server: KubeflowServer, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url + "/")
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example.org/pipeline")
    monkeypatch.setenv("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", "of the team")
    status, out, _ = cli("submit", config_path)
    assert status == 0
    assert out.startswith("https://kubeflow.example.org/pipeline/#/runs/details/")
    monkeypatch.setenv("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME", "of the company")
    assert cli("submit", config_path, "--experiment", "mine")[0] == 0
    names = {experiment["display_name"] for experiment in server.experiments.values()}
    assert names == {"of the team", "of the company"}


def test_several_users_have_namespaces(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    server.multi_user = True
    assert cli("submit", config_path, "--host", server.url)[::2] == (
        2,
        "taylorglo: error: this Kubeflow has several users; say with --namespace whose runs "
        "these are\n",
    )
    for namespace in ("ann", "bob"):
        words = ("--host", server.url, "--namespace", namespace)
        assert cli("submit", config_path, *words)[0] == 0
    for things in (server.pipelines, server.experiments):
        assert [thing["namespace"] for thing in things.values()] == ["ann", "bob"]


def test_a_token_and_a_certificate(cli: Cli, config_path: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with KubeflowServer(tls=certificate(tmp_path), token=TOKEN) as server:
        words = ("submit", config_path, "--host", server.url)
        options = ("--ca-cert", tmp_path / "ca.pem", "--token-file", tmp_path / "token")
        assert cli(*words, *options)[0] == 0
        status, _, err = cli(*words, *options[:2])
        assert (status, err.count("\n")) == (2, 1)
        assert "unauthorised" in err
        status, _, err = cli(*words, *options[2:])
        assert (status, err.count("\n")) == (2, 1)
        assert "TLS: " in err


def test_the_kubeconfig_is_wrong(cli: Cli, config_path: Path, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("clusters: [")
    status, _, err = cli("submit", config_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "there is no good kubeconfig" in err


def test_a_bad_configuration_is_reported_before_anything_is_sent(
    cli: Cli, server: KubeflowServer, config_path: Path
) -> None:
    status, _, err = cli("submit", config_path, "--host", server.url, "--set", "search.popsize=0")
    assert (status, server.requests) == (2, [])
    assert "search.popsize" in err


def test_wait_for_a_run_that_succeeds(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    server.script = [{"state": "SUCCEEDED", **tasks(prepare_dataset="SUCCEEDED")}]
    status, out, err = cli("submit", config_path, "--host", server.url, "--wait")
    assert (status, err) == (0, "")
    page, task, end = out.splitlines()
    assert page == f"{server.url}/#/runs/details/{only(server.runs)['run_id']}"
    assert re.fullmatch(r"\d\d:\d\d:\d\d  succeeded  Prepare data set", task)
    assert end == "the run has succeeded"


def test_wait_for_a_run_that_fails(cli: Cli, server: KubeflowServer, config_path: Path) -> None:
    server.script = [{"state": "FAILED", **tasks(evaluate="FAILED")}]
    status, _, err = cli("submit", config_path, "--host", server.url, "--wait")
    assert (status, err) == (
        1,
        "taylorglo: error: the run failed: task evaluate: Kubeflow gives no reason; see the log "
        "of the task\n",
    )


def test_wait_for_a_server_that_is_away_for_long(
    cli: Cli, server: KubeflowServer, config_path: Path
) -> None:
    server.script = [{"state": "RUNNING"}]
    server.faults = [Fault("GET", "/runs/.*", 503, 10**6)]
    status, out, err = cli("submit", config_path, "--host", server.url, "--wait")
    assert (status, err) == (
        2,
        f"taylorglo: error: Kubeflow Pipelines at {server.url}: as the test wants it (503)\n",
    )
    assert "/#/runs/details/" in out
    assert len(server.asked("GET", "/runs/.*")) == 15


def test_ctrl_c_ends_the_waiting_and_not_the_run(
    cli: Cli, server: KubeflowServer, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taylorglo.retries.time", Clock(during=interrupt))
    server.faults = [Fault("GET", "/runs/.*", 503)]
    status, _, err = cli("submit", config_path, "--host", server.url, "--wait")
    assert (status, err) == (130, "taylorglo: interrupted; the run goes on\n")
    assert not server.asked("POST", "/runs/.*")
