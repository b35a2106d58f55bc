"""Taylorglo submit and schedule, through the command line, against a server that speaks KFP's REST
API."""

import ipaddress
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_server import Fault, KubeflowServer

from taylorglo_pipelines.cli import main

TOKEN = "eyJhbGciOi.a-token-that-nobody.may-see"

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Cli]:
    """The command line, away from the developer's own clusters, and in no mood to wait."""
    for name in (
        "ENDPOINT",
        "UI_ENDPOINT",
        "SA_TOKEN_PATH",
        "DEFAULT_EXPERIMENT_NAME",
        "OVERRIDE_EXPERIMENT_NAME",
    ):
        monkeypatch.delenv(f"KF_PIPELINES_{name}", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )
    monkeypatch.setattr("kfp.client.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr("taylorglo_pipelines.kubeflow.client._RETRY_DELAYS", (0.01, 0.01, 0.01))
    monkeypatch.setattr("taylorglo_pipelines.kubeflow.wait._PATIENCE", (0.01,) * 5)
    monkeypatch.setattr("taylorglo_pipelines.kubeflow.wait._POLL", 0.02)
    monkeypatch.setattr("taylorglo_pipelines.kubeflow.wait._STUCK", 0.1)

    def run(*words: object) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert TOKEN not in captured.out + captured.err
        return status, captured.out, captured.err

    yield run
    assert not (tmp_path / "context.json").exists()


@pytest.fixture
def server() -> Iterator[KubeflowServer]:
    with KubeflowServer() as running:
        yield running
        assert running.broken == []


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("name: tiny\npipeline: {generations: 1, shards: 1}\n")
    return path


def tasks(**states: str) -> dict[str, Any]:
    """What Kubeflow shows of a run's tasks, Argo's own nodes and all."""
    times = {"start_time": "2026-11-24T21:30:00Z"}
    around = ("taylorglo-tiny-x7k2p", "root-driver", "root")
    details = [
        {"task_id": name, "display_name": name, "state": "RUNNING", **times} for name in around
    ]
    for number, (name, state) in enumerate(states.items(), 1):
        start = {"start_time": f"2026-11-24T21:30:{number:02d}Z"}
        for suffix, display in (("d", f"{name}-driver"), ("", name), ("e", "executor")):
            shown = {
                "task_id": f"{number}{suffix}",
                "display_name": display.replace("_", "-"),
                "state": state,
            }
            details.append({**shown, **start})
    return {"run_details": {"task_details": details}}


def only(things: dict[str, Any]) -> dict[str, Any]:
    assert len(things) == 1
    found: dict[str, Any] = next(iter(things.values()))
    return found


class TestSubmit:
    def test_uploads_and_runs_the_sweep(
        self, cli: Cli, server: KubeflowServer, config: Path
    ) -> None:
        account = ["--set", "pipeline.service_account=taylorglo"]
        status, out, err = cli(
            "submit", config, "--host", server.url, "--experiment", "trials", *account
        )
        run, version = only(server.runs), only(server.versions)
        assert (status, err) == (0, "")
        assert out == f"{server.url}/#/runs/details/{run['run_id']}\n"
        assert re.fullmatch(r"tiny 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", run["display_name"])
        assert run["service_account"] == "taylorglo"
        assert run["runtime_config"] == {"parameters": {}}
        assert (
            run["pipeline_version_reference"]["pipeline_version_id"]
            == version["pipeline_version_id"]
        )
        assert only(server.pipelines)["name"] == "taylorglo-tiny"
        assert re.fullmatch("[0-9a-f]{32}", version["name"])
        assert only(server.experiments)["display_name"] == "trials"

    def test_the_same_sweep_is_uploaded_once(
        self, cli: Cli, server: KubeflowServer, config: Path
    ) -> None:
        for _ in range(2):
            assert cli("submit", config, "--host", server.url)[0] == 0
        assert len(server.asked("POST", "/pipelines/upload_version")) == 1
        for seed in (1, 2, 3):  # past the first page of versions
            assert cli("submit", config, "--host", server.url, "--set", f"seed={seed}")[0] == 0
        assert cli("submit", config, "--host", server.url, "--set", "seed=3")[0] == 0
        assert len(server.versions) == len(server.asked("POST", "/pipelines/upload_version")) == 4
        assert len(server.runs) == 6
        assert only(server.experiments)["display_name"] == "tiny"

    @pytest.mark.parametrize(
        "path", ["/experiments", "/pipelines", "/pipelines/upload_version", "/runs"]
    )
    @pytest.mark.parametrize("status", [0, 409, 502], ids=["dropped", "409", "502"])
    def test_what_was_created_although_the_answer_was_lost_is_found(
        self, status: int, path: str, cli: Cli, server: KubeflowServer, config: Path
    ) -> None:
        server.faults = [Fault("POST", path, status, done=True)]
        assert cli("submit", config, "--host", server.url)[0] == 0
        for things in (server.experiments, server.pipelines, server.versions, server.runs):
            only(things)

    def test_two_at_once(self, server: KubeflowServer, config: Path, tmp_path: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "taylorglo_pipelines.cli",
            "submit",
            str(config),
            "--host",
            server.url,
        ]
        # A home of its own: nothing of the developer's is read.
        environment = {**os.environ, "HOME": str(tmp_path), "KUBECONFIG": os.devnull}
        processes = [subprocess.Popen(command, env=environment, cwd=tmp_path) for _ in range(2)]
        assert [process.wait(60) for process in processes] == [0, 0]
        for things in (server.experiments, server.pipelines, server.versions):
            only(things)
        assert len(server.runs) == 2

    def test_passing_failures_are_survived(
        self, cli: Cli, server: KubeflowServer, config: Path
    ) -> None:
        server.faults = [
            Fault("GET", "/healthz", 503, 2),
            Fault("GET", "/pipelines/.*", 500),
            Fault("POST", "/runs", 504),
        ]
        assert cli("submit", config, "--host", server.url)[0] == 0
        only(server.runs)

    def test_the_environment_names_the_server_and_the_experiment(
        self, cli: Cli, server: KubeflowServer, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url + "/")
        monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example.org/pipeline")
        monkeypatch.setenv("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", "of the team")
        status, out, _ = cli("submit", config)
        assert status == 0
        assert out.startswith("https://kubeflow.example.org/pipeline/#/runs/details/")
        monkeypatch.setenv("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME", "of the company")
        assert cli("submit", config, "--experiment", "mine")[0] == 0
        assert {each["display_name"] for each in server.experiments.values()} == {
            "of the team",
            "of the company",
        }

    def test_several_users_have_namespaces(
        self,
        cli: Cli,
        server: KubeflowServer,
        config: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        server.multi_user = True
        assert cli("submit", config, "--host", server.url)[::2] == (
            2,
            "taylorglo: error: this Kubeflow has several users; say with --namespace whose runs these are\n",
        )
        assert cli("submit", config, "--host", server.url, "--namespace", "ann")[0] == 0
        assert only(server.pipelines)["namespace"] == only(server.experiments)["namespace"] == "ann"
        account = tmp_path / "account"
        account.mkdir()
        (account / "namespace").write_text("bob")
        monkeypatch.setattr(
            "taylorglo_pipelines.kubeflow.client._SERVICE_ACCOUNT", account
        )  # of the pod that this is
        assert cli("submit", config, "--host", server.url)[0] == 0
        assert [each["namespace"] for each in server.experiments.values()] == ["ann", "bob"]


class TestAccess:
    def test_a_token_file_is_read_anew(
        self, cli: Cli, server: KubeflowServer, config: Path, tmp_path: Path
    ) -> None:
        token = tmp_path / "token"
        token.write_text("old")
        server.token = TOKEN
        words = ("submit", config, "--host", server.url, "--token-file", token)
        status, _, err = cli(*words)
        assert (status, err.count("\n")) == (2, 1)
        assert (
            f"{server.url}: unauthorised; give a good token with --token-file (401: Request header error"
            in err
        )
        token.write_text(TOKEN + "\n")
        assert cli(*words)[0] == 0

    def test_the_token_of_a_pod(
        self,
        cli: Cli,
        server: KubeflowServer,
        config: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "token").write_text(TOKEN)
        server.token = TOKEN
        assert cli("submit", config, "--host", server.url)[0] == 2
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
        assert cli("submit", config, "--host", server.url)[0] == 0

    def test_a_server_that_repeats_the_token_is_not_quoted(
        self, cli: Cli, server: KubeflowServer, config: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "token").write_text(TOKEN)
        body = json.dumps({"message": f"token {TOKEN} is not of this realm"}).encode()
        server.faults = [Fault("GET", "/healthz", 403, body=body)]
        _, _, err = cli("submit", config, "--host", server.url, "--token-file", tmp_path / "token")
        assert err == (
            f"taylorglo: error: Kubeflow Pipelines at {server.url}: forbidden (403: token ... is not of this realm)\n"
        )

    @pytest.mark.parametrize(
        "content", ["", " \n", "two words", f"{TOKEN}\n{TOKEN}", "gehe\u00efm"]
    )
    def test_a_file_that_holds_no_token(
        self, content: str, cli: Cli, server: KubeflowServer, config: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "token").write_text(content)
        status, _, err = cli(
            "submit", config, "--host", server.url, "--token-file", tmp_path / "token"
        )
        assert (status, err) == (
            2,
            f"taylorglo: error: {tmp_path}/token: should hold one token, and nothing else\n",
        )

    def test_no_token_file(
        self, cli: Cli, server: KubeflowServer, config: Path, tmp_path: Path
    ) -> None:
        _, _, err = cli("submit", config, "--host", server.url, "--token-file", tmp_path / "token")
        assert (
            err
            == f"taylorglo: error: {tmp_path}/token: the token cannot be read: No such file or directory\n"
        )

    def test_through_the_kubernetes_api(
        self, cli: Cli, server: KubeflowServer, config: Path, tmp_path: Path
    ) -> None:
        server.token = TOKEN
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        status, out, _ = cli("submit", config)
        assert status == 0
        assert out == (
            f"http://localhost:8080/#/runs/details/{only(server.runs)['run_id']}"
            " (after kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80)\n"
        )
        assert all(request.proxied for request in server.requests)
        status, _, err = cli("submit", config, "--namespace", "elsewhere")
        assert (status, err.count("\n")) == (2, 1)
        assert "not found (404: no such resource)" in err

    def test_what_kfp_remembers_is_broken(
        self, cli: Cli, server: KubeflowServer, config: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "context.json").write_text("{}")
        _, _, err = cli("submit", config, "--host", server.url)
        assert (
            err
            == f"taylorglo: error: {tmp_path}/context.json: is not what kfp's client writes; remove it\n"
        )
        (tmp_path / "context.json").unlink()

    def test_nowhere(self, cli: Cli, config: Path, tmp_path: Path) -> None:
        status, _, err = cli("submit", config)
        assert (status, err.count("\n")) == (2, 1)
        assert (
            "no --host is given, nor KF_PIPELINES_ENDPOINT, and there is no good kubeconfig: Invalid"
            in err
        )
        (tmp_path / "kubeconfig").write_text("clusters: [")
        assert cli("submit", config)[0] == 2
        _, _, err = cli("submit", config, "--token-file", tmp_path / "kubeconfig")
        assert "--token-file is only for one of these" in err

    @pytest.mark.parametrize(
        ("host", "problem"),
        [
            (
                "kubeflow.example.org",
                "should be like https://kubeflow.example.org, or that with a path",
            ),
            ("ftp://kubeflow", "should be like"),
            ("http://", "should be like"),
            ("http://localhost:8080/#/runs", "should be like"),
            ("http://localhost:port", "is malformed"),
            ("http://[::1", "is malformed"),
            ("https://me:secret@kubeflow", "should have no user or password in it"),
        ],
    )
    def test_malformed_hosts(self, host: str, problem: str, cli: Cli, config: Path) -> None:
        status, _, err = cli("submit", config, "--host", host)
        assert (status, err.count("\n")) == (2, 1)
        assert problem in err
        assert "secret" not in err

    def test_a_closed_port(self, cli: Cli, config: Path) -> None:
        with KubeflowServer() as gone:
            url = gone.url
        status, _, err = cli("submit", config, "--host", url)
        assert status == 2
        assert (
            err
            == f"taylorglo: error: Kubeflow Pipelines at {url}: cannot be reached: Connection refused\n"
        )

    def test_a_server_that_never_answers(
        self, cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("taylorglo_pipelines.kubeflow.client._TIMEOUT", (1, 0.1))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            status, _, err = cli("submit", config, "--host", url)
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith(
            f"taylorglo: error: Kubeflow Pipelines at {url}: cannot be reached: Read timed out"
        )

    def test_in_the_cluster(
        self, cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "account").mkdir()
        (tmp_path / "account/token").write_text(TOKEN)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setattr(
            "taylorglo_pipelines.kubeflow.client._SERVICE_ACCOUNT", tmp_path / "account"
        )
        for words, namespace in (([], "kubeflow"), (["--namespace", "ml"], "ml")):
            status, _, err = cli("submit", config, *words)
            assert status == 2
            host = f"http://ml-pipeline.{namespace}.svc.cluster.local:8888"
            assert (
                err
                == f"taylorglo: error: Kubeflow Pipelines at {host}: there is no host of this name\n"
            )

    def test_no_such_host(self, cli: Cli, config: Path) -> None:
        status, _, err = cli("submit", config, "--host", "http://kubeflow.invalid")
        assert status == 2
        assert err == (
            "taylorglo: error: Kubeflow Pipelines at http://kubeflow.invalid: there is no host of this name\n"
        )

    def test_a_server_that_hangs_up(self, cli: Cli, server: KubeflowServer, config: Path) -> None:
        server.faults = [Fault("GET", "/.*", 0, 10**6)]
        status, _, err = cli("submit", config, "--host", server.url)
        assert (status, err.count("\n")) == (2, 1)
        assert f"{server.url}: cannot be reached: " in err

    def test_a_server_that_keeps_failing(
        self, cli: Cli, server: KubeflowServer, config: Path
    ) -> None:
        server.faults = [Fault("POST", "/runs", 500, 10**6)]
        status, _, err = cli("submit", config, "--host", server.url)
        assert (status, len(server.asked("POST", "/runs"))) == (2, 4)
        assert (
            err
            == f"taylorglo: error: Kubeflow Pipelines at {server.url}: as the test wants it (500)\n"
        )

    def test_a_proxy_that_keeps_failing(
        self, cli: Cli, server: KubeflowServer, config: Path
    ) -> None:
        server.faults = [Fault("GET", "/healthz", 502, 10**6, body=b"<html>\xff\xfe</html>")]
        status, _, err = cli("submit", config, "--host", server.url)
        assert (status, err.count("\n")) == (2, 1)
        server.faults = [Fault("GET", "/healthz", 502, 10**6, body=b"<html>Bad gateway</html>")]
        _, _, err = cli("submit", config, "--host", server.url)
        assert err == f"taylorglo: error: Kubeflow Pipelines at {server.url}: failed (502)\n"

    def test_a_page_to_log_in_on(self, cli: Cli, server: KubeflowServer, config: Path) -> None:
        server.login_page = True
        status, _, err = cli("submit", config, "--host", server.url)
        assert (status, err.count("\n")) == (2, 1)
        assert (
            "answers with a web page; the address is wrong, or a login is needed (--token-file)"
            in err
        )

    def test_tls(self, cli: Cli, config: Path, tmp_path: Path) -> None:
        context = certificate(tmp_path)
        with KubeflowServer(tls=context) as server:
            status, _, err = cli("submit", config, "--host", server.url)
            assert (status, err.count("\n")) == (2, 1)
            assert (
                f"{server.url}: TLS: certificate verify failed: self-signed certificate; a certificate"
                in err
            )
            assert (
                cli("submit", config, "--host", server.url, "--ca-cert", tmp_path / "ca.pem")[0]
                == 0
            )
            _, _, err = cli(
                "submit", config, "--host", server.url, "--ca-cert", tmp_path / "none.pem"
            )
            assert (
                err == f"taylorglo: error: --ca-cert {tmp_path}/none.pem: there is no such file\n"
            )
            _, _, err = cli("submit", config, "--host", server.url, "--ca-cert", config)
            assert "TLS: " in err
            _, _, err = cli("submit", config, "--host", server.url.replace("https", "http"))
            assert err.count("\n") == 1
        with KubeflowServer() as plain:
            _, _, err = cli("submit", config, "--host", plain.url.replace("http", "https"))
            assert "TLS: wrong version number" in err

    def test_a_bad_configuration_is_told_before_anything_is_sent(
        self, cli: Cli, server: KubeflowServer, config: Path
    ) -> None:
        status, _, err = cli("submit", config, "--host", server.url, "--set", "search.popsize=0")
        assert (status, server.requests) == (2, [])
        assert "search.popsize" in err


class TestWait:
    def test_to_the_end(self, cli: Cli, server: KubeflowServer, config: Path) -> None:
        server.script = [
            {"state": "RUNNING", **tasks(prepare_dataset="RUNNING")},
            {"state": "RUNNING", **tasks(prepare_dataset="RUNNING")},
            {"state": "RUNNING", **tasks(prepare_dataset="SUCCEEDED", propose="PENDING")},
            {"state": "SUCCEEDED", **tasks(prepare_dataset="SUCCEEDED", propose="SUCCEEDED")},
        ]
        status, out, err = cli("submit", config, "--host", server.url, "--wait")
        assert (status, err) == (0, "")
        assert out.splitlines()[1:] == [
            "running    prepare-dataset",
            "succeeded  prepare-dataset",
            "pending    propose",
            "succeeded  propose",
            "the run has succeeded",
        ]

    def test_a_failed_task_is_named(self, cli: Cli, server: KubeflowServer, config: Path) -> None:
        end = tasks(generation_1="FAILED", evaluate="FAILED")
        end["run_details"]["task_details"][-1]["error"] = {"code": 2, "message": "out of\nmemory"}
        server.script = [{"state": "FAILED", **end}]
        status, _, err = cli("submit", config, "--host", server.url, "--wait")
        assert (status, err) == (
            1,
            "taylorglo: error: the run failed: task evaluate: out of memory\n",
        )

    def test_what_a_failed_pod_said(
        self, cli: Cli, server: KubeflowServer, config: Path, tmp_path: Path
    ) -> None:
        """Kubeflow does not know it; the pod's log does."""
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        server.script = [{"state": "FAILED", **tasks(prepare_dataset="FAILED")}]
        server.logs["pod-1"] = (
            "I1124 launcher\ntaylorglo: error: the bucket 'x' is not for you\nexit status 1\n"
        )
        server.pods = [pod("Failed", terminated={"reason": "Error", "exitCode": 1})]
        words = ("submit", config, "--host", server.url, "--wait")
        status, _, err = cli(*words)
        assert (status, err) == (
            1,
            "taylorglo: error: the run failed: task prepare-dataset: the bucket 'x' is not for you\n",
        )
        server.logs["pod-1"] = "Killed\n"
        server.pods = [pod("Failed", terminated={"reason": "OOMKilled", "exitCode": 137})]
        assert cli(*words)[2].endswith("task prepare-dataset: OOMKilled (exit status 137)\n")

    @pytest.mark.parametrize(
        ("state", "words"),
        [
            ("CANCELED", "the run was cancelled"),
            ("SKIPPED", "the run was skipped"),
            ("FAILED", "the run failed: Kubeflow gives no reason; see the log of the task"),
        ],
    )
    def test_other_ends(
        self, state: str, words: str, cli: Cli, server: KubeflowServer, config: Path
    ) -> None:
        server.script = [{"state": state}]
        assert cli("submit", config, "--host", server.url, "--wait")[::2] == (
            1,
            f"taylorglo: error: {words}\n",
        )

    @pytest.mark.parametrize(
        ("reason", "message"),
        [
            ("ImagePullBackOff", 'Back-off pulling image "nobody/nothing:1"'),
            ("ErrImagePull", "not found"),
            ("CreateContainerConfigError", 'secret "taylorglo" not found'),
        ],
    )
    def test_a_pod_that_cannot_start(
        self,
        reason: str,
        message: str,
        cli: Cli,
        server: KubeflowServer,
        config: Path,
        tmp_path: Path,
    ) -> None:
        """For Kubeflow the task is pending for ever."""
        server.token = TOKEN
        (tmp_path / "token").write_text(TOKEN)
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        server.script = [{"state": "RUNNING", **tasks(prepare_dataset="PENDING")}]
        server.pods = [pod("Pending", waiting={"reason": reason, "message": message})]
        words = (
            "submit",
            config,
            "--host",
            server.url,
            "--token-file",
            tmp_path / "token",
            "--wait",
        )
        status, _, err = cli(*words)
        assert (status, err) == (
            1,
            f"taylorglo: error: task prepare-dataset does not start: {reason}: {message}; "
            "no longer waiting, but the run goes on: it starts by itself once that is mended, "
            "or end it in the user interface\n",
        )

    def test_a_pod_that_starts_after_all(
        self,
        cli: Cli,
        server: KubeflowServer,
        config: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("taylorglo_pipelines.kubeflow.wait._STUCK", 30.0)
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        server.script = [*({"state": "RUNNING"} for _ in range(3)), {"state": "SUCCEEDED"}]
        server.pods = [pod("Pending", waiting={"reason": "ErrImagePull"})]
        assert cli("submit", config, "--host", server.url, "--wait")[0] == 0

    def test_a_cluster_that_does_not_show_its_pods(
        self, cli: Cli, server: KubeflowServer, config: Path, tmp_path: Path
    ) -> None:
        with KubeflowServer() as gone:
            write_kubeconfig(tmp_path / "kubeconfig", gone.url)
        server.script = [{"state": "RUNNING"}, {"state": "SUCCEEDED"}]
        assert cli("submit", config, "--host", server.url, "--wait")[0] == 0

    @pytest.mark.parametrize("status", [0, 503], ids=["dropped", "503"])
    def test_an_absence_is_survived(
        self, status: int, cli: Cli, server: KubeflowServer, config: Path
    ) -> None:
        server.script = [{"state": "RUNNING"}, {"state": "SUCCEEDED"}]
        server.faults = [Fault("GET", "/runs/.*", status, 4)]
        assert cli("submit", config, "--host", server.url, "--wait")[0] == 0

    def test_a_long_absence_is_told(self, cli: Cli, server: KubeflowServer, config: Path) -> None:
        server.script = [{"state": "RUNNING"}]
        server.faults = [Fault("GET", "/runs/.*", 503, 10**6)]
        status, out, err = cli("submit", config, "--host", server.url, "--wait")
        assert (status, err) == (
            2,
            f"taylorglo: error: Kubeflow Pipelines at {server.url}: as the test wants it (503)\n",
        )
        assert "/#/runs/details/" in out

    def test_a_token_that_expires(
        self, cli: Cli, server: KubeflowServer, config: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "token").write_text(TOKEN)
        server.token = TOKEN
        server.script = [{"state": "RUNNING"}]
        server.faults = [Fault("GET", "/runs/.*", 401, body=b'{"message": "expired"}')]
        status, _, err = cli(
            "submit", config, "--host", server.url, "--token-file", tmp_path / "token", "--wait"
        )
        assert (status, err) == (
            2,
            f"taylorglo: error: Kubeflow Pipelines at {server.url}: the token has expired (401: expired)\n",
        )

    def test_ctrl_c(
        self, cli: Cli, server: KubeflowServer, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        server.script = [{"state": "RUNNING"}]
        monkeypatch.setattr("taylorglo_pipelines.kubeflow.wait.time.sleep", interrupt)
        status, _, err = cli("submit", config, "--host", server.url, "--wait")
        assert (status, err) == (130, "taylorglo: interrupted; the run goes on\n")
        assert not server.asked("POST", "/runs/.*")


class TestSchedule:
    @pytest.fixture
    def schedule(self, cli: Cli, server: KubeflowServer) -> Cli:
        return lambda verb, *words: cli("schedule", verb, *words, "--host", server.url)

    def test_create(self, schedule: Cli, server: KubeflowServer, config: Path) -> None:
        status, out, err = schedule("create", config, "--cron", "0 3 * * *")
        made = only(server.recurring_runs)
        assert (status, err) == (0, "")
        assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
        assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
        assert made["runtime_config"] == {"parameters": {"search_renew": True}}
        assert made["display_name"] == "tiny"
        lines = out.splitlines()
        assert lines[:3] == ["schedule 'tiny' created", "state     active", "when      0 0 3 * * *"]
        assert f"page      {server.url}/#/recurringrun/details/{made['recurring_run_id']}" in lines
        times = [line[10:] for line in lines[-3:]]
        assert all(time.endswith(" 03:00:00 UTC") for time in times)
        first, second, third = (datetime.fromisoformat(time.removesuffix(" UTC")) for time in times)
        assert third - second == second - first == timedelta(days=1)

    def test_every(self, schedule: Cli, server: KubeflowServer, config: Path) -> None:
        _, out, _ = schedule("create", config, "--every", "12h", "--name", "twice-a-day")
        made = only(server.recurring_runs)
        assert made["trigger"] == {"periodic_schedule": {"interval_second": "43200"}}
        assert made["display_name"] == "twice-a-day"
        assert "when      every 12h" in out
        first = datetime.fromisoformat(
            out.splitlines()[-3].removeprefix("next").strip().removesuffix(" UTC") + "Z"
        )
        assert first - datetime.fromisoformat(made["created_at"]) < timedelta(hours=12)

    def test_create_again_changes_it(
        self, schedule: Cli, server: KubeflowServer, config: Path
    ) -> None:
        schedule("create", config, "--every", "12h")
        before = only(server.recurring_runs)
        _, out, _ = schedule("create", config, "--every", "12h")
        assert out.startswith("schedule 'tiny' unchanged\n")
        assert only(server.recurring_runs) is before
        for change in (["--every", "1d"], ["--every", "1d", "--set", "seed=7"]):
            enabled: list[int] = []
            watch_enabled(server, enabled)
            _, out, _ = schedule("create", config, *change)
            assert out.startswith("schedule 'tiny' updated\nstate     active\n")
            assert set(enabled) <= {0, 1}
            assert enabled[-1] == 1
        after = only(server.recurring_runs)
        assert after["mode"] == "ENABLE"
        assert after["trigger"] == {"periodic_schedule": {"interval_second": "86400"}}
        assert after["pipeline_version_reference"] != before["pipeline_version_reference"]

    def test_a_paused_schedule_stays_paused(
        self, schedule: Cli, server: KubeflowServer, config: Path
    ) -> None:
        schedule("create", config, "--every", "12h")
        schedule("pause", "tiny")
        assert "state     paused" in schedule("create", config, "--every", "2d")[1]
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
    def test_a_change_that_fails_leaves_the_old_one(
        self,
        method: str,
        path: str,
        done: bool,
        schedule: Cli,
        server: KubeflowServer,
        config: Path,
    ) -> None:
        schedule("create", config, "--every", "12h")
        before = dict(only(server.recurring_runs))
        server.faults = [Fault(method, path, 403, done=done)]
        status, _, err = schedule("create", config, "--every", "2d")
        assert (status, err.count("\n")) == (2, 1)
        enabled = [each for each in server.recurring_runs.values() if each["mode"] == "ENABLE"]
        assert [each["recurring_run_id"] for each in enabled] == [before["recurring_run_id"]]
        assert schedule("create", config, "--every", "2d")[0] == 0
        assert only(server.recurring_runs)["trigger"] == {
            "periodic_schedule": {"interval_second": "172800"}
        }

    def test_an_old_one_that_could_not_be_deleted_is_disabled(
        self, schedule: Cli, server: KubeflowServer, config: Path
    ) -> None:
        schedule("create", config, "--every", "12h")
        server.faults = [Fault("DELETE", "/recurringruns/.*", 500, 4)]
        assert schedule("create", config, "--every", "2d")[0] == 2
        assert sorted(each["mode"] for each in server.recurring_runs.values()) == [
            "DISABLE",
            "ENABLE",
        ]
        assert "when      every 2d" in schedule("show", "tiny")[1]
        assert schedule("create", config, "--every", "3d")[0] == 0
        only(server.recurring_runs)

    def test_a_server_that_goes_away_in_the_middle_is_told(
        self, schedule: Cli, server: KubeflowServer, config: Path
    ) -> None:
        schedule("create", config, "--every", "12h")
        server.faults = [Fault("POST", "/recurringruns/.*:enable", 503, 10**6)]
        status, _, err = schedule("create", config, "--every", "2d")
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
        self,
        method: str,
        path: str,
        status: int,
        schedule: Cli,
        server: KubeflowServer,
        config: Path,
    ) -> None:
        schedule("create", config, "--every", "12h")
        server.faults = [Fault(method, path, status, done=True)]
        assert schedule("create", config, "--every", "2d")[0] == 0
        assert only(server.recurring_runs)["mode"] == "ENABLE"

    def test_list(self, schedule: Cli, server: KubeflowServer, config: Path) -> None:
        assert schedule("list")[1] == "there are no schedules\n"
        for name in ("c", "a", "b"):  # more than a page
            schedule("create", config, "--cron", "0 0 3 * * *", "--name", name)
        schedule(
            "create", config, "--every", "90m", "--name", "rather-long", "--experiment", "other"
        )
        schedule("pause", "b")
        foreign = {
            **next(iter(server.recurring_runs.values())),
            "recurring_run_id": "x",
            "description": "of others",
        }
        server.recurring_runs["x"] = foreign
        lines = schedule("list")[1].splitlines()
        assert lines[0].split() == ["NAME", "STATE", "NEXT", "(UTC)", "WHEN"]
        assert [line.split()[:2] for line in lines[1:]] == [
            ["a", "active"],
            ["b", "paused"],
            ["c", "active"],
            ["rather-long", "active"],
        ]
        assert lines[2].split() == ["b", "paused", "-", "0", "0", "3", "*", "*", "*"]
        assert lines[4].endswith("  every 90m")
        assert schedule("list", "--experiment", "other")[1].count("\n") == 2

    def test_pause_resume_show_delete(
        self, schedule: Cli, server: KubeflowServer, config: Path
    ) -> None:
        schedule("create", config, "--every", "12h")
        assert schedule("pause", "tiny") == (0, "schedule 'tiny' is paused\n", "")
        assert only(server.recurring_runs)["mode"] == "DISABLE"
        assert "next" not in schedule("show", "tiny")[1]
        assert schedule("resume", "tiny")[1].startswith("state     active\n")
        assert only(server.recurring_runs)["mode"] == "ENABLE"
        assert schedule("show", "tiny")[1].count(" UTC\n") == 3
        assert schedule("delete", "tiny") == (0, "schedule 'tiny' is deleted\n", "")
        assert server.recurring_runs == {}

    def test_run_now(self, schedule: Cli, server: KubeflowServer, config: Path) -> None:
        schedule("create", config, "--every", "12h", "--set", "pipeline.service_account=taylorglo")
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
        assert run["runtime_config"] == {"parameters": {"search_renew": True}}

    @pytest.mark.parametrize("verb", ["show", "pause", "resume", "delete", "run-now"])
    def test_unknown_names(
        self, verb: str, schedule: Cli, server: KubeflowServer, config: Path
    ) -> None:
        schedule("create", config, "--every", "12h")
        next(iter(server.recurring_runs.values()))["description"] = "of others"
        status, _, err = schedule(verb, "tiny")
        assert (status, err) == (
            2,
            "taylorglo: error: there is no schedule 'tiny'; taylorglo schedule list shows those that there are\n",
        )
        assert (
            schedule(verb, "tiny", "--experiment", "none")[2]
            == "taylorglo: error: there is no experiment 'none'\n"
        )
        assert only(server.recurring_runs)["mode"] == "ENABLE"

    def test_one_name_in_two_experiments(
        self, schedule: Cli, server: KubeflowServer, config: Path
    ) -> None:
        for experiment in ("one", "two"):
            schedule("create", config, "--every", "12h", "--experiment", experiment)
        assert "several experiments; choose one with --experiment" in schedule("delete", "tiny")[2]
        assert schedule("delete", "tiny", "--experiment", "one")[0] == 0
        only(server.recurring_runs)

    def test_several_users(self, cli: Cli, server: KubeflowServer, config: Path) -> None:
        server.multi_user = True
        where = ("--host", server.url, "--namespace", "ann")
        assert cli("schedule", "create", config, "--every", "12h", *where)[0] == 0
        assert cli("schedule", "list", *where)[1].count("tiny") == 1
        assert (
            cli("schedule", "list", "--host", server.url, "--namespace", "bob")[1]
            == "there are no schedules\n"
        )

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (["--cron", "0 0 30 2 *"], "never fires; there is no such day in the next 5 years"),
            (["--cron", "tomorrow"], "should have six fields, seconds first, or five; has 1"),
            (["--cron", ""], "has 0"),
            (["--every", "soon"], "should be like 30m, 12h or 2d"),
        ],
    )
    def test_nonsense(
        self, words: list[str], problem: str, schedule: Cli, server: KubeflowServer, config: Path
    ) -> None:
        status, _, err = schedule("create", config, *words)
        assert (status, err.count("\n"), server.requests) == (2, 1, [])
        assert problem in err

    @pytest.mark.parametrize("words", [[], ["--cron", "0 3 * * *", "--every", "1d"]])
    def test_either_or(self, words: list[str], schedule: Cli, config: Path) -> None:
        with pytest.raises(SystemExit):
            schedule("create", config, *words)


def write_kubeconfig(path: Path, url: str) -> None:
    """A kubeconfig whose only cluster is the test server."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "clusters": [{"name": "tests", "cluster": {"server": url}}],
        "users": [{"name": "tests", "user": {"token": TOKEN}}],
    }
    path.write_text(yaml.safe_dump(content))


def pod(phase: str, **state: Any) -> dict[str, Any]:
    """A pod of prepare-dataset, as Argo makes it, whose main container is in a state."""
    container = {
        "name": "main",
        "ready": False,
        "restartCount": 0,
        "image": "i",
        "imageID": "",
        "state": state,
    }
    return {
        "metadata": {
            "name": "pod-1",
            "namespace": "kubeflow",
            "labels": {},
            "annotations": {
                "workflows.argoproj.io/node-name": "taylorglo-tiny-x7.prepare-dataset.executor"
            },
        },
        "status": {"phase": phase, "containerStatuses": [container]},
    }


def watch_enabled(server: KubeflowServer, counts: list[int]) -> None:
    """Count the enabled schedules after each change of one."""
    answer = server.answer

    def counting(request: Any) -> Any:
        result = answer(request)
        counts.append(sum(each["mode"] == "ENABLE" for each in server.recurring_runs.values()))
        return result

    server.answer = counting  # type: ignore[method-assign]


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's certificate for 127.0.0.1, signed by itself, in ca.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context
