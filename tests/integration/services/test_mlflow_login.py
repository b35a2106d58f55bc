"""MLflow behind a login, as k8s/components/mlflow-login sets it up, on a real PostgreSQL."""

import io
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from click.testing import CliRunner
from mlflow.db import commands as database_commands
from servers import mlflow_server

from taylorglo.services.mlflow import LoginError
from taylorglo.services.tracking import Tracker

COMPONENT = Path(__file__).parents[3] / "k8s/components/mlflow-login"
ADMIN, TEAM, OTHER = "admin-password-1%", "team-password-1", "other-password-2"


@dataclass(frozen=True)
class Login:
    """A running server that asks for a login; ``env`` has the variables of its pod."""

    uri: str
    env: dict[str, str]
    folder: Path

    def script(self) -> Path:
        """Return the path of the script of the pod that creates a user, or changes a password."""
        script = self.folder / "user.py"
        text = (COMPONENT / "user.py").read_text()
        script.write_text(text.replace("http://127.0.0.1:5000", self.uri))
        return script

    def set_password(self, user: str, password: str, **changed: str) -> tuple[int, str, str]:
        """Run the script as a program; return its status, output and errors.

        It runs in this process, because its imports take seconds.
        """
        output, errors = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(output),
            redirect_stderr(errors),
        ):
            for name, value in {**self.env, **changed}.items():
                patch.setenv(name, value)
            # The script sets these.
            for name in ("USERNAME", "PASSWORD"):
                patch.setenv(f"MLFLOW_TRACKING_{name}", "")
            patch.setattr(sys, "argv", ["user.py", user])
            patch.setattr(sys, "stdin", io.StringIO(f"{password}\n"))
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(self.script()), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return ended.value.code, output.getvalue(), errors.getvalue()


def pod_variables() -> dict[str, str]:
    """Return the plain variables that the component gives to the server."""
    component = yaml.safe_load((COMPONENT / "kustomization.yaml").read_text())
    (patch,) = component["patches"]
    (container,) = yaml.safe_load(patch["patch"])["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["--app-name=basic-auth"]
    return {item["name"]: item["value"] for item in container["env"] if "value" in item}


@pytest.fixture(scope="module")
def login(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE ROLE mlflow LOGIN")
        connection.execute("CREATE DATABASE mlflow OWNER mlflow")
    folder = tmp_path_factory.mktemp("login")
    env = {
        **os.environ,
        **pod_variables(),
        "PGHOST": postgres.partition("host=")[2],
        "MLFLOW_AUTH_CONFIG_PATH": str(COMPONENT / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "any secret",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    backend = "postgresql+psycopg://mlflow@/mlflow"

    def upgrade() -> None:
        """Do what the init step of the pod does."""
        done: Any = CliRunner(env=env).invoke(database_commands, ["upgrade", backend])
        assert done.exit_code == 0, done.output

    # Once on an empty database, and again after the logins are there.
    upgrade()
    options = ["--app-name=basic-auth"]
    log = folder / "server.log"
    with mlflow_server(backend, str(folder / "artifacts"), log, env, options) as server:
        upgrade()
        yield Login(server.uri, env, folder)


def run_as(
    monkeypatch: pytest.MonkeyPatch, login: Login, user: str, password: str, sweep: str
) -> Tracker:
    """Log a run of a sweep as this user."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    tracker = Tracker.open(login.uri, sweep, run_name="first")
    tracker.log_settings({"study": sweep})
    tracker.finish()
    return tracker


def test_sweeps_log_in_and_nobody_else_gets_in(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert login.set_password("taylorglo", TEAM) == (0, "user taylorglo: created\n", "")
    run_as(monkeypatch, login, "taylorglo", TEAM, "digits")
    for user, password in (("taylorglo", "wrong"), ("nobody", TEAM), ("admin", "password1234")):
        with pytest.raises(LoginError, match="not authenticated") as caught:
            run_as(monkeypatch, login, user, password, "digits")
        assert password not in str(caught.value)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(LoginError, match="not authenticated"):
        Tracker.open(login.uri, "digits", run_name="first")


def test_another_user_may_read_but_not_write_what_is_not_theirs(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user, password in (("team-a", TEAM), ("team-b", OTHER)):
        assert login.set_password(user, password)[0] == 0
    tracker = run_as(monkeypatch, login, "team-a", TEAM, "team-a-digits")
    with pytest.raises(LoginError, match=r"(?i)permission"):
        run_as(monkeypatch, login, "team-b", OTHER, "team-a-digits")
    assert Tracker.attach(login.uri, tracker.run_id).experiment_id == tracker.experiment_id
    run_as(monkeypatch, login, "team-b", OTHER, "team-b-digits")


def test_a_password_is_changed(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    assert login.set_password("changing", TEAM)[0] == 0
    status, output, _ = login.set_password("changing", OTHER)
    assert (status, output) == (0, "user changing: has another password now\n")
    tracker = run_as(monkeypatch, login, "changing", OTHER, "changed")
    with pytest.raises(LoginError, match="not authenticated"):
        run_as(monkeypatch, login, "changing", TEAM, "changed")
    # Who is not let in is not told that there is no champion, or no such run.
    for ask in (
        lambda: tracker.standing_champion("changed-loss"),
        lambda: Tracker.attach(login.uri, tracker.run_id),
    ):
        with pytest.raises(LoginError, match="not authenticated"):
            ask()


def test_what_cannot_be_done_is_said_without_the_password(login: Login) -> None:
    for status, _, errors in (
        login.set_password("short", "tiny"),
        login.set_password("late", TEAM, MLFLOW_AUTH_ADMIN_PASSWORD="not the admin's"),
    ):
        assert status == 1
        assert errors.splitlines()[-1].startswith("user ")
        assert "Traceback" not in errors
        assert TEAM not in errors
