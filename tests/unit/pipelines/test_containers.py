"""The access of a task's container to this machine, and the error if there is no engine."""

import os
from pathlib import Path
from typing import Any

import pytest

from taylorglo_pipelines.cli import main
from taylorglo_pipelines.config import Config, ServiceSettings
from taylorglo_pipelines.local.containers import run_arguments

CONFIG = Path(__file__).parents[3] / "pipelines" / "configs" / "digits.yaml"


def arguments(
    work: Path, environment: dict[str, str] | None = None, **sections: Any
) -> dict[str, Any]:
    services = {
        "TAYLORGLO_STUDY_URL": "postgresql://localhost/optuna",
        "TAYLORGLO_STORE_URI": "s3://bucket/store",
        "TAYLORGLO_TRACKING_URI": "http://localhost:5000",
    }
    return run_arguments(
        Config(**sections), work, {**services, **(environment or {})}, rootless=False
    )


def places(given: dict[str, Any]) -> dict[str, bool]:
    """Return the mounted paths, which are the same inside, and whether each is read-only."""
    assert all(
        mount["Source"] == mount["Target"] and mount["Type"] == "bind" for mount in given["mounts"]
    )
    return {mount["Source"]: mount["ReadOnly"] for mount in given["mounts"]}


def test_the_environment_is_the_services_and_their_credentials_and_nothing_else(
    tmp_path: Path,
) -> None:
    passed = {
        "PGPASSWORD": "a",
        "PGUSER": "b",
        "AWS_SECRET_ACCESS_KEY": "c",
        "AWS_ENDPOINT_URL": "http://localhost:8333",
        "MLFLOW_TRACKING_PASSWORD": "d",
        "MLFLOW_RUN_ID": "e",
        "TAYLORGLO_S3_SECRET_ACCESS_KEY": "g",
        "TAYLORGLO_STUDY_PASSWORD": "h",
        "TAYLORGLO_TRACKING_PASSWORD": "i",
        "TAYLORGLO_STARTED": "1.5",
    }
    kept_out = {
        "HOME": "/home/me",
        "PATH": "/bin",
        "GITHUB_TOKEN": "f",
        "PYTHONPATH": "/src",
        "TAYLORGLO_LOCAL_RUN": "1",
    }
    services = {"TAYLORGLO_STUDY_URL", "TAYLORGLO_STORE_URI", "TAYLORGLO_TRACKING_URI"}
    assert set(arguments(tmp_path, {**passed, **kept_out})["environment"]) == {*passed, *services}


def test_a_container_can_do_no_more_than_it_needs(tmp_path: Path) -> None:
    given = arguments(tmp_path)
    assert given["user"] == f"{os.getuid()}:{os.getgid()}"
    assert given["read_only"]
    assert given["cap_drop"] == ["ALL"]
    assert "no-new-privileges" in given["security_opt"]
    assert set(given["tmpfs"]) == {"/tmp"}
    assert "device_requests" not in given


def test_an_engine_without_root_maps_its_own_user_to_the_caller(tmp_path: Path) -> None:
    services = ServiceSettings(work_dir=str(tmp_path)).variables()
    assert run_arguments(Config(), tmp_path, services, rootless=True)["user"] == "0:0"


def test_servers_need_no_place_but_the_work_folder(tmp_path: Path) -> None:
    assert places(arguments(tmp_path)) == {str(tmp_path): False}


def test_local_services_are_mounted_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments(
        tmp_path / "work",
        {
            "TAYLORGLO_STUDY_URL": f"sqlite:///{tmp_path}/studies/study.db",
            "TAYLORGLO_STORE_URI": "store",
            "TAYLORGLO_TRACKING_URI": "sqlite:///mlruns.db",
        },
    )
    assert places(given) == {
        str(tmp_path / "work"): False,
        str(tmp_path / "studies"): False,
        str(tmp_path / "store"): False,
        str(tmp_path): False,
    }
    assert (tmp_path / "store").is_dir()
    assert given["working_dir"] == str(tmp_path)


@pytest.mark.parametrize("download", [False, True])
def test_data_is_read_only_unless_it_is_to_be_downloaded(tmp_path: Path, download: bool) -> None:
    (tmp_path / "images").mkdir()
    data = {"name": "cifar10", "root": str(tmp_path / "images"), "download": download}
    assert places(arguments(tmp_path / "work", data=data))[str(tmp_path / "images")] is not download


@pytest.mark.parametrize("root", ["s3://bucket/images", "/nowhere/to/be/found"])
def test_data_that_is_not_on_this_machine_is_left_to_the_task(tmp_path: Path, root: str) -> None:
    assert places(arguments(tmp_path, data={"name": "image-folder", "root": root})) == {
        str(tmp_path): False
    }


def test_files_that_hold_credentials_are_mounted_read_only(tmp_path: Path) -> None:
    (secret := tmp_path / "pgpass").touch()
    given = arguments(
        tmp_path / "work", {"PGPASSFILE": str(secret), "AWS_CA_BUNDLE": "/nowhere/ca.pem"}
    )
    assert places(given) == {str(tmp_path / "work"): False, str(secret): True}


def test_tasks_that_need_a_gpu_get_all_of_them(tmp_path: Path) -> None:
    (request,) = arguments(tmp_path, pipeline={"accelerator": "nvidia.com/gpu"})["device_requests"]
    assert request["Capabilities"] == [["gpu"]]


def test_a_run_without_a_report_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """kfp takes a container as successful if it is gone before kfp asks for its exit status."""
    monkeypatch.setattr(
        "taylorglo_pipelines.local.runner.sweep_pipeline", lambda config: lambda: None
    )
    assert main(["run", str(CONFIG), "--set", f"services.work_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(
        "taylorglo: error: a task failed: there is no report; "
    )


@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:9", "nonsense"])
def test_without_an_engine_one_line_says_so(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    words = ["--set", f"services.work_dir={tmp_path}", "--runner", "docker"]
    assert main(["run", str(CONFIG), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"taylorglo: error: --runner docker: no container engine answers on {host} ("
    )
