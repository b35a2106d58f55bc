"""The tasks of a local run in containers: what each is given of this machine, and that none outlives the run.

The engine is Docker's, or Podman's behind the same interface (DOCKER_HOST names its socket).
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taylorglo.components import IMAGE
from taylorglo.errors import InputError
from taylorglo.services.variables import CPUS, STARTED, STORE_URI, STUDY_URL, TRACKING_URI
from taylorglo_pipelines.config import Config

if TYPE_CHECKING:
    from docker import DockerClient
    from kfp.local import DockerRunner

_LABEL = "taylorglo.run"
_CREDENTIALS = ("AWS_", "PG", "MLFLOW_TRACKING_")
_PASSED_ON = (
    STUDY_URL,
    STORE_URI,
    TRACKING_URI,
    STARTED,
    CPUS,
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
)


@contextlib.contextmanager
def containers(config: Config, work: Path) -> Iterator[tuple["DockerRunner", Config]]:
    """kfp's runner, and the configuration with the image's full name; however the run ends, no container is left.

    Raises:
        InputError: no engine answers, or it does not have the image.
    """
    from kfp.local import DockerRunner

    run = str(work / config.name)
    with _engine() as engine:
        image = _image(engine, config.pipeline.image or IMAGE)
        rootless = "name=rootless" in (engine.info().get("SecurityOptions") or ())
        end(
            engine, run
        )  # of a run that could not end them itself; the lock of the run says that none else can be
    arguments = run_arguments(config, work, os.environ, rootless)
    # Containers are the engine's, and go on when this process is killed. A process beside it waits
    # for its end.
    with subprocess.Popen(
        [sys.executable, "-m", __name__, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # out of reach of Ctrl-C
    ):
        layout = config.pipeline.model_copy(update={"image": image})
        yield (
            DockerRunner(**arguments, labels={_LABEL: run}),
            config.model_copy(update={"pipeline": layout}),
        )


def run_arguments(
    config: Config, work: Path, environment: Mapping[str, str], rootless: bool
) -> dict[str, Any]:
    """What Docker is told about every container, but for its image and command."""
    from docker.types import DeviceRequest, Mount

    given = {k: v for k, v in environment.items() if k in _PASSED_ON or k.startswith(_CREDENTIALS)}
    arguments: dict[str, Any] = {
        "environment": given,
        "mounts": [
            Mount(path, path, type="bind", read_only=read_only)
            for path, read_only in sorted(_places(config, work, given).items())
        ],
        "working_dir": os.getcwd(),  # what relative paths are relative to
        # Files are to belong to whoever runs this, who is user 0 inside where the engine itself is
        # not root.
        "user": "0:0" if rootless else f"{os.getuid()}:{os.getgid()}",
        "read_only": True,
        "tmpfs": {"/tmp": "rw,exec,nosuid,nodev,mode=1777"},
        "cap_drop": ["ALL"],
        "security_opt": [
            "no-new-privileges",
            "label=disable",
        ],  # SELinux would refuse a user's own folders
        "network_mode": "host",  # servers on localhost
        "shm_size": "1g",
    }
    if config.pipeline.accelerator == "nvidia.com/gpu":
        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return arguments


def end(engine: "DockerClient", run: str) -> None:
    """Kill and remove the containers of a run."""
    from docker.errors import APIError

    for container in engine.containers.list(
        all=True, filters={"label": f"{_LABEL}={run}"}, ignore_removed=True
    ):
        with contextlib.suppress(APIError):  # it has just ended, and is being removed
            container.remove(force=True)


def _places(config: Config, work: Path, environment: Mapping[str, str]) -> dict[str, bool]:
    """The folders and files of this machine that tasks use, and whether they only read them."""
    places = {str(work): False}
    for uri in (environment[name] for name in (STUDY_URL, STORE_URI, TRACKING_URI)):
        if uri.startswith("sqlite:///"):
            places[str(Path(uri.removeprefix("sqlite:///")).absolute().parent)] = False
        elif "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)
            places[str(Path(uri).absolute())] = False
    root = config.data.root
    if root and "://" not in root and Path(root).exists():
        places.setdefault(str(Path(root).absolute()), not config.data.download)
    for name, value in environment.items():  # such as PGPASSFILE, AWS_CA_BUNDLE
        if name.startswith(_CREDENTIALS) and value.startswith("/") and Path(value).is_file():
            places.setdefault(value, True)
    return places


@contextlib.contextmanager
def _engine() -> Iterator["DockerClient"]:
    import docker
    from docker.errors import DockerException

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


def _image(engine: "DockerClient", name: str) -> str:
    """The image by the name that the engine itself has for it (Podman's begin with a registry), as kfp looks it up."""
    from docker.errors import APIError

    try:
        found = engine.images.get(name)
    except APIError as error:
        missing = error.status_code == 404
        reason = (
            "the container engine does not have it; make images builds it"
            if missing
            else _reason(error)
        )
        raise InputError(f"image {name}: {reason}") from None
    known = [*found.tags, *found.attrs.get("RepoDigests", ())]
    return name if name in known or not known else known[0]


def _reason(error: Exception) -> str:
    return (
        str(getattr(error, "explanation", None) or error).rpartition("(Caused by ")[2]
        or type(error).__name__
    )


if __name__ == "__main__":
    sys.stdin.buffer.read()  # to its end, which is the end of the run
    with _engine() as _found:
        end(_found, sys.argv[1])
