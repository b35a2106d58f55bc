"""A small sweep whose tasks are containers of the image; run with ``make e2e-docker``.

The container engine is the one that Docker's client finds (DOCKER_HOST). If it does not have the
image, the image is built first.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, DockerException, ImageNotFound
from sweeps import SMALL_OF_OWN_TRAINING, Sweeps, final_table, study_of, wait_until

from taylorglo.components import IMAGE
from taylorglo.loss.functions import TaylorLoss

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 3600
SECONDS = 600  # for a sweep in containers
LONG_TRAININGS = ("training.steps=100000", "evaluation.steps=100000")

pytestmark = [pytest.mark.docker, pytest.mark.timeout(BUILD_SECONDS + 300)]


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    """The container engine, with the image in it."""
    try:
        client = docker.from_env(timeout=BUILD_SECONDS)
    except DockerException as error:
        pytest.skip(f"needs a container engine: {error}")
    with contextlib.closing(client):
        try:
            client.images.get(IMAGE)
        except ImageNotFound:
            built = subprocess.run(
                ["make", "images"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=BUILD_SECONDS,
            )
            assert built.returncode == 0, built.stderr[-3000:]
        yield client


def in_docker(work: Path, *overrides: str) -> Sweeps:
    """Return a sweep of two shards in containers."""
    return Sweeps(work, ("pipeline.shards=2", *overrides), words=("--runner", "docker"))


def running(engine: docker.DockerClient, work: Path) -> list[Any]:
    """Return the containers of the sweep in this folder."""
    label = f"taylorglo.run={work / 'digits'}"
    return engine.containers.list(all=True, filters={"label": label}, ignore_removed=True)


def first_container(
    engine: docker.DockerClient, sweep: Sweeps, process: subprocess.Popen[str]
) -> Any:
    """Wait for a container of the sweep that is at work, and return it."""

    def find() -> Any:
        assert process.stderr is not None
        assert process.poll() is None, process.stderr.read()
        containers = running(engine, sweep.work)
        return next((c for c in containers if c.status == "running"), None)

    return wait_until(find, 60, "a container")


def outcome(work: Path) -> tuple[Any, ...]:
    """Return the figures of every candidate, and the champion."""
    candidates = [(c.generation, c.trial, c.theta, c.fitness) for c in study_of(work)]
    champion = TaylorLoss.load(work / "store" / "digits" / "champion" / "loss.json").theta.tolist()
    return candidates, champion


def test_a_sweep_ends_as_it_does_in_processes(engine: docker.DockerClient, tmp_path: Path) -> None:
    sweep = in_docker(tmp_path / "containers")
    with sweep.started() as process:
        container = first_container(engine, sweep, process)
        described = container.attrs
        # The container may end in between.
        with contextlib.suppress(APIError):
            written = container.exec_run(["touch", "/opt/file"])
            assert written.exit_code != 0, "the root file system should be read-only"
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stderr) == (0, "")

    host = described["HostConfig"]
    assert described["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert {"no-new-privileges"} <= set(host["SecurityOpt"])
    strangers = [path for path in sweep.work.rglob("*") if path.lstat().st_uid != os.getuid()]
    assert strangers == []
    assert running(engine, sweep.work) == []

    processes = Sweeps(tmp_path / "processes", ("pipeline.shards=2",))
    finished = processes.run(seconds=SECONDS)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert outcome(sweep.work) == outcome(processes.work)
    assert final_table(stdout) == final_table(finished.stdout)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL], ids=lambda kind: kind.name)
def test_no_container_outlives_the_run(
    engine: docker.DockerClient, tmp_path: Path, kind: signal.Signals
) -> None:
    sweep = in_docker(tmp_path, *LONG_TRAININGS)
    with sweep.started() as process:
        first_container(engine, sweep, process)
        os.killpg(process.pid, kind)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == (130 if kind == signal.SIGINT else -kind)
    assert "Traceback" not in stderr
    wait_until(lambda: not running(engine, tmp_path), 10, "no container of a run that has ended")


def test_a_container_that_is_killed_fails_the_run(
    engine: docker.DockerClient, tmp_path: Path
) -> None:
    sweep = in_docker(tmp_path, *LONG_TRAININGS)
    with sweep.started() as process:
        assert process.stdout is not None
        assert any(line.startswith("data: digits") for line in process.stdout)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            for container in running(engine, tmp_path):
                with contextlib.suppress(APIError):
                    container.kill()
            time.sleep(0.2)
        stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 2, stdout
    (line,) = stderr.splitlines()
    assert line.startswith("taylorglo: error: a task failed: ")
    assert line.endswith(f"what it printed is in {tmp_path}/logs/digits.log")


def test_containers_that_do_nothing_are_not_taken_for_a_sweep(
    engine: docker.DockerClient, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        f'FROM {engine.images.get(IMAGE).id}\nENTRYPOINT ["true"]\n'
    )
    engine.images.build(path=str(tmp_path), tag="taylorglo-test:nothing", rm=True)
    try:
        process = in_docker(tmp_path / "work", "pipeline.image=taylorglo-test:nothing").run()
    finally:
        engine.images.remove("taylorglo-test:nothing")
    assert process.returncode == 2
    assert process.stderr.startswith("taylorglo: error: a task failed: ")


def test_a_training_of_ones_own_comes_in_an_image(
    engine: docker.DockerClient, tmp_path: Path
) -> None:
    examples, tag = ROOT / "docs" / "examples", "taylorglo-test:own-training"
    base = engine.images.get(IMAGE).id
    engine.images.build(path=str(examples), tag=tag, rm=True, buildargs={"TAYLORGLO": base})
    settings = (
        f"pipeline.image={tag}",
        *SMALL_OF_OWN_TRAINING,
        f"services.work_dir={tmp_path}",
    )
    command = [sys.executable, "-m", "taylorglo_pipelines.cli", "run", "--runner", "docker"]
    command += [str(examples / "own_training.yaml"), *(f"--set={setting}" for setting in settings)]
    # The module is in the image alone: the current folder does not have it.
    process = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert TaylorLoss.load(tmp_path / "store" / "own-training" / "champion" / "loss.json").classes


def test_a_server_on_localhost_and_its_credentials(
    engine: docker.DockerClient, s3: Any, tmp_path: Path
) -> None:
    small = (
        "pipeline.generations=1",
        "search.popsize=2",
        "baselines.learning_rates=0.3",
        "champion.finalists=1",
    )
    store = f"s3://{s3.bucket}/{tmp_path.name}"
    settings = (*small, f"services.store_uri={store}")
    sweep = Sweeps(tmp_path, settings, s3.env(), ("--runner", "docker"))
    process = sweep.run(seconds=SECONDS)
    assert (process.returncode, process.stderr) == (0, "")
    assert f"champion  {store}/digits/champion/loss.json" in process.stdout.splitlines()
    assert not (tmp_path / "store").exists()
    texts = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in (*texts, process.stdout) if s3.secret_key in text]


def test_bad_data_is_one_line(engine: docker.DockerClient, tmp_path: Path) -> None:
    process = in_docker(tmp_path, "data.name=mnist", "data.root=/nowhere").run()
    assert process.returncode == 2
    assert (
        process.stderr
        == "taylorglo: error: data.root: /nowhere should be a folder that holds mnist\n"
    )
    assert running(engine, tmp_path) == []


def test_an_image_that_is_not_there_is_one_line(
    engine: docker.DockerClient, tmp_path: Path
) -> None:
    process = in_docker(tmp_path, "pipeline.image=taylorglo:no-such").run()
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith(
        "taylorglo: error: image taylorglo:no-such: the container engine does not have it"
    )
