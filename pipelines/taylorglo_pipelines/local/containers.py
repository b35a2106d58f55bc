"""The containers of a local run: what they get of this machine, and that none of them outlives it.

The engine is Docker's, or Podman's with the same interface (DOCKER_HOST names its socket).
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
from docker import DockerClient
from docker.errors import APIError, DockerException
from docker.types import DeviceRequest, Mount

from taylorglo.addresses import is_sqlite, sqlite_file
from taylorglo.errors import InputError, shortened
from taylorglo.variables import CPUS, STARTED, STORE_URI, STUDY_URL, TRACKING_URI, WATCHED
from taylorglo_pipelines.config import Config

if TYPE_CHECKING:
    from kfp.local import DockerRunner

# Each container of a run has a label of this name with the path of the run.
_LABEL = "taylorglo.run"
# Environment variables that the containers get: those with these names, and the credentials, whose
# names begin so.
_VARIABLES = (
    STUDY_URL,
    STORE_URI,
    TRACKING_URI,
    STARTED,
    WATCHED,
    CPUS,
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
)
_CREDENTIALS = (
    "AWS_",
    "PG",
    "MLFLOW_TRACKING_",
    "TAYLORGLO_S3_",
    "TAYLORGLO_STUDY_",
    "TAYLORGLO_TRACKING_",
)


@contextlib.contextmanager
def containers(config: Config, work: Path) -> Iterator[tuple["DockerRunner", Config]]:
    """Yield kfp's runner, and the configuration with the image by the name that the engine has.

    However the run ends, none of its containers is left.

    Args:
        config: the sweep.
        work: folder of the run, as an absolute path.

    Raises:
        InputError: no engine answers, or it does not have the image.
    """
    # Not at the top: the process that waits for the end of the run does without kfp.
    from kfp.local import DockerRunner

    from taylorglo.components import IMAGE

    run = str(work / config.name)
    with _engine() as engine:
        image = _image(engine, config.pipeline.image or IMAGE)
        rootless = "name=rootless" in (engine.info().get("SecurityOptions") or ())
        # An earlier run may not have been able to remove its containers. They are not those of
        # another run that is going on, because this process holds the lock of the sweep.
        remove(engine, run)
    arguments = run_arguments(config, work, os.environ, rootless=rootless)
    layout = config.pipeline.model_copy(update={"image": image})
    with _removed_at_the_end(run):
        yield (
            DockerRunner(**arguments, labels={_LABEL: run}),
            config.model_copy(update={"pipeline": layout}),
        )


def run_arguments(
    config: Config, work: Path, environment: Mapping[str, str], *, rootless: bool
) -> dict[str, Any]:
    """Return the arguments for Docker of every container, except for its image and command.

    Args:
        config: the sweep.
        work: folder of the run, as an absolute path.
        environment: variables of this process.
        rootless: whether the engine runs without root.
    """
    variables = {
        name: value
        for name, value in environment.items()
        if name in _VARIABLES or name.startswith(_CREDENTIALS)
    }
    # Files should belong to the user of this process. An engine without root maps that user to the
    # user 0 of a container.
    user = "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"
    arguments: dict[str, Any] = {
        "environment": variables,
        "mounts": [
            Mount(path, path, type="bind", read_only=read_only)
            for path, read_only in sorted(_paths(config, work, variables).items())
        ],
        # Paths in a configuration may be relative.
        "working_dir": os.getcwd(),
        "user": user,
        "read_only": True,
        "tmpfs": {"/tmp": "rw,exec,nosuid,nodev,mode=1777"},
        "cap_drop": ["ALL"],
        # SELinux would refuse the folders of a user without the second option.
        "security_opt": ["no-new-privileges", "label=disable"],
        # Servers may be on localhost.
        "network_mode": "host",
        "shm_size": "1g",
    }
    if config.pipeline.accelerator == "nvidia.com/gpu":
        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return arguments


def remove(engine: DockerClient, run: str) -> None:
    """Kill and remove the containers of a run.

    Args:
        engine: the container engine.
        run: path of the run, which their label has.
    """
    for container in engine.containers.list(
        all=True, filters={"label": f"{_LABEL}={run}"}, ignore_removed=True
    ):
        # The engine refuses if the container has just ended and is being removed.
        with contextlib.suppress(APIError):
            container.remove(force=True)


@contextlib.contextmanager
def _removed_at_the_end(run: str) -> Iterator[None]:
    """Remove the containers of a run when the block or this process ends, however it ends.

    Containers belong to the engine, and go on if this process is killed. So another process waits
    for the end of its input, which is the end of the block or of this process.
    """
    with subprocess.Popen(
        [sys.executable, "-m", __name__, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C does not reach another session.
        start_new_session=True,
    ):
        yield


def _paths(config: Config, work: Path, variables: Mapping[str, str]) -> dict[str, bool]:
    """Return the paths of this machine that tasks use, and whether tasks only read them."""
    paths = {str(work): False}
    for uri in (variables[name] for name in (STUDY_URL, STORE_URI, TRACKING_URI)):
        if is_sqlite(uri):
            paths[str(sqlite_file(uri).parent)] = False
        elif "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)
            paths[str(Path(uri).absolute())] = False
    root = config.data.root
    if root and "://" not in root and Path(root).exists():
        paths.setdefault(str(Path(root).absolute()), not config.data.download)
    # A variable may name a file with credentials, as PGPASSFILE and AWS_CA_BUNDLE do.
    for name, value in variables.items():
        if name.startswith(_CREDENTIALS) and value.startswith("/") and Path(value).is_file():
            paths.setdefault(value, True)
    return paths


@contextlib.contextmanager
def _engine() -> Iterator[DockerClient]:
    """Connect to the container engine.

    Raises:
        InputError: no engine answers.
    """
    try:
        engine = docker.from_env()
    except DockerException as error:
        host = os.environ.get("DOCKER_HOST", "its usual socket")
        raise InputError(
            f"--runner docker: no container engine answers on {host} ({_reason(error)}); "
            "start one, or let DOCKER_HOST name the socket of another"
        ) from None
    with contextlib.closing(engine):
        yield engine


def _image(engine: DockerClient, name: str) -> str:
    """Return the name that the engine has for an image, by which kfp looks the image up.

    Podman's names begin with a registry.

    Raises:
        InputError: the engine does not have the image.
    """
    try:
        image = engine.images.get(name)
    except APIError as error:
        reason = _reason(error)
        if error.status_code == 404:
            reason = "the container engine does not have it; make images builds it"
        raise InputError(f"image {name}: {reason}") from None
    names = [*image.tags, *image.attrs.get("RepoDigests", ())]
    return name if name in names or not names else str(names[0])


def _reason(error: Exception) -> str:
    """Return the innermost reason of an error of Docker's client, in one line."""
    text = str(getattr(error, "explanation", None) or error)
    return shortened(text.rpartition("(Caused by ")[2]) or type(error).__name__


if __name__ == "__main__":
    # Wait for the end of the input, which is the end of the run.
    sys.stdin.buffer.read()
    with _engine() as _connection:
        remove(_connection, sys.argv[1])
