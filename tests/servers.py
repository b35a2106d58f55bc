"""MLflow's server, which a test may stop and start again; new databases; processes side by side."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

START_SECONDS = 90
AT_ONCE_SECONDS = 240


def free_ports(number: int) -> list[int]:
    """Return different ports of 127.0.0.1 on which no process listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [int(open_socket.getsockname()[1]) for open_socket in sockets]
    finally:
        for open_socket in sockets:
            open_socket.close()


class MlflowServer:
    """A tracking server on a free port.

    Attributes:
        port: the port.
        uri: the tracking URI.
    """

    def __init__(
        self, backend: str, destination: str, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Prepare a server.

        Args:
            backend: URL of its database.
            destination: folder or URI of its artifacts.
            log: the file for its output.
            env: variables besides those of the test.
        """
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._command = [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host=127.0.0.1", f"--port={self.port}", "--workers=1"),
            *(f"--backend-store-uri={backend}", f"--artifacts-destination={destination}"),
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

    def stop(self) -> None:
        """End the server, with all its workers."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, kind)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
                return


@contextmanager
def mlflow_server(
    backend: str, destination: str, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[MlflowServer]:
    """Yield a running server, which is stopped at the end of the block."""
    server = MlflowServer(backend, destination, log, env)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def at_once(code: str, *arguments: str, path: Path | None = None) -> list[tuple[str, str]]:
    """Run code in two processes that go on from their line ``wait()`` at the same moment.

    Args:
        code: Python, which may use ``sys``.
        arguments: of both processes.
        path: a folder with modules for the code, besides the folder of this one.

    Returns:
        Output and errors of each process.
    """
    wait = "def wait():\n    print('ready', flush=True)\n    sys.stdin.readline()\n"
    folders = [str(Path(__file__).parent), str(path or ""), os.environ.get("PYTHONPATH")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys\n{wait}{code}", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=AT_ONCE_SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def new_database(postgres: str) -> str:
    """Create an empty database beside that of the URL; return its URL."""
    import psycopg

    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.replace("/postgres?", f"/{name}?")
