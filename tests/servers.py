"""Servers of MLflow and S3, which a test may stop and start; new databases; processes at once."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

START_SECONDS = 90
AT_ONCE_SECONDS = 240
_ROLES = ("s3", "master", "volume", "filer", "admin")


def free_ports(number: int) -> list[int]:
    """Return different ports of 127.0.0.1 on which no process listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [int(open_socket.getsockname()[1]) for open_socket in sockets]
    finally:
        for open_socket in sockets:
            open_socket.close()


def end_group(process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """End a process and its group: ask first, then kill."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


class MlflowServer:
    """A tracking server on a free port.

    Attributes:
        port: the port.
        uri: the tracking URI.
    """

    def __init__(
        self,
        backend: str,
        destination: str,
        log: Path,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Prepare a server.

        Args:
            backend: URL of its database.
            destination: folder or URI of its artifacts.
            log: the file for its output.
            env: variables besides those of the test.
            options: further options of the command.
        """
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._command = [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host=127.0.0.1", f"--port={self.port}", "--workers=1"),
            *(f"--backend-store-uri={backend}", f"--artifacts-destination={destination}"),
            *options,
        ]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._env = {**os.environ, **quiet, **(env or {})}

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process.poll() is None, self._log.read_text()
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def send(self, kind: signal.Signals) -> None:
        """Send a signal to the server and all its workers."""
        os.killpg(self._process.pid, kind)

    def stop(self) -> None:
        """End the server, with all its workers."""
        end_group(self._process)


@contextmanager
def mlflow_server(
    backend: str,
    destination: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[MlflowServer]:
    """Yield a running server, which is stopped at the end of the block."""
    server = MlflowServer(backend, destination, log, env, options)
    try:
        server.start()
        yield server
    finally:
        server.stop()


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


class SeaweedFS:
    """A real S3 server that checks signatures, on free ports.

    Attributes:
        address: where it is, and who may use it.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare a server whose files are in an existing folder."""
        self._folder = folder
        self._ports = free_ports(2 * len(_ROLES))
        keys = [secrets.token_hex(size) for size in (8, 16, 8, 16)]
        endpoint = f"http://127.0.0.1:{self._ports[0]}"
        self.address = S3Server(endpoint, keys[0], keys[1], "tests", (keys[2], keys[3]))

    @staticmethod
    def program() -> str | None:
        """Return the path of its program, or None if it is not installed."""
        scripts = sysconfig.get_path("scripts")
        return shutil.which("weed", path=f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}")

    def start(self) -> None:
        """Start the server, and wait until its bucket can be written."""
        identities = self._folder / "identities.json"
        identities.write_text(self.address.identities())
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(identities),
                env={**os.environ, **self.address.env()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_for_bucket()

    def send(self, kind: signal.Signals) -> None:
        """Send a signal to the server."""
        os.killpg(self._process.pid, kind)

    def stop(self) -> None:
        """End the server."""
        end_group(self._process, 10)

    @property
    def _log(self) -> Path:
        return self._folder / "out.log"

    def _command(self, identities: Path) -> list[str]:
        program, folder = self.program(), self._folder
        assert program is not None
        http, grpc = self._ports[: len(_ROLES)], self._ports[len(_ROLES) :]
        return [
            *(program, f"-logdir={folder}", "mini", f"-dir={folder}/data"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{role}.port={port}" for role, port in zip(_ROLES, http, strict=True)),
            *(f"-{role}.port.grpc={port}" for role, port in zip(_ROLES, grpc, strict=True)),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            f"-s3.config={identities}",
            *(f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock"),
            # As with AWS, a bucket that was not created does not exist. A test does not call home.
            *("-s3.autoCreateBucket=false", f"-bucket={self.address.bucket}"),
            "-master.telemetry=false",
            # Each bucket takes volumes of its own. Their number follows from the free space of the
            # disk unless it is said, and tests would fail on a disk that is rather full.
            "-volume.max=1000",
        ]

    def _wait_for_bucket(self) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.address.endpoint,
            aws_access_key_id=self.address.access_key,
            aws_secret_access_key=self.address.secret_key,
            region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5, proxies={}
            ),
        )
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            # A write, because the gateway answers before there is a volume to write to.
            with suppress(BotoCoreError, ClientError):
                client.put_object(Bucket=self.address.bucket, Key="ready", Body=b"ready")
                return
            time.sleep(0.1)
        output = self._log.read_text(errors="replace")[-3000:]
        raise AssertionError(f"weed mini did not start within {START_SECONDS} s:\n{output}")


# The imports are done once, because those of PyTorch or MLflow take seconds.
_AT_ONCE = """
import os, sys, traceback
imports, code, folder, *sys.argv[1:] = sys.argv[1:]
exec(imports)
processes = []
for number in range(2):
    (ready, say_ready), (go, say_go) = os.pipe(), os.pipe()
    if process := os.fork():
        os.close(say_ready)
        processes.append((process, ready, say_go))
        continue
    os.close(ready)
    # They are the parent's alone, so that its end lets nobody wait for ever.
    for descriptor in (say_go, *(other for _, _, other in processes)):
        os.close(descriptor)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}{number}", os.O_WRONLY | os.O_CREAT), descriptor)

    def wait():
        os.write(say_ready, b"ready")
        os.read(go, 1)

    status = 1
    try:
        exec(code)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
begun = [os.read(ready, 5) == b"ready" for _, ready, _ in processes]
for _, _, say_go in processes:
    os.write(say_go, b".")
ends = [os.waitpid(process, 0)[1] for process, _, _ in processes]
sys.exit(not all(begun) or any(ends))
"""


def at_once(
    code: str, *arguments: str, imports: str = "", path: Path | None = None
) -> list[tuple[str, str]]:
    """Run code in two processes that go on from their line ``wait()`` at the same moment.

    Args:
        code: Python, which may use ``sys``.
        arguments: of both processes.
        imports: what the code needs, which the two processes are forked after.
        path: a folder with modules for the code, besides the folder of this one.

    Returns:
        Output and errors of each process.
    """
    folders = [str(Path(__file__).parent), str(path or ""), os.environ.get("PYTHONPATH")]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [sys.executable, "-c", _AT_ONCE, imports, code, folder, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=AT_ONCE_SECONDS,
        )
        outputs = [
            (
                (Path(folder) / f"out{number}").read_text(),
                (Path(folder) / f"err{number}").read_text(),
            )
            for number in range(2)
        ]
    assert process.returncode == 0, outputs
    return outputs


def new_database(postgres: str) -> str:
    """Create an empty database beside that of the URL; return its URL."""
    import psycopg

    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.replace("/postgres?", f"/{name}?")


@cache
def mlflow_database() -> bytes:
    """Return the content of an SQLite file with MLflow's tables, which take seconds to make."""
    from taylorglo.addresses import sqlite_url
    from taylorglo.services.mlflow import Connection

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        Connection(sqlite_url(path))
        return path.read_bytes()
