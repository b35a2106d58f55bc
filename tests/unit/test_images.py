"""The sources of the images: locks that agree with the project, and Dockerfiles that use them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from taylorglo import __version__
from taylorglo.components import IMAGE

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted(ROOT.glob("images/*/*.lock"))
DOCKERFILES = sorted(ROOT.glob("images/*/Dockerfile"))
NODE = {
    **default_environment(),
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "python_version": "3.11",
    "python_full_version": "3.11.2",
}


def pinned(path: Path) -> dict[str, Requirement]:
    """Return the requirements of a lock or of the constraints, by name."""
    # A requirement goes on after a backslash.
    lines = path.read_text().replace("\\\n", " ").splitlines()
    requirements = [
        Requirement(line.partition("--hash")[0])
        for line in lines
        if line.strip() and line[0] not in "#-"
    ]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def instructions(path: Path) -> list[str]:
    """Return the instructions of a Dockerfile, each in one line."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    return [
        " ".join(line.split())
        for line in "\n".join(lines).replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def in_short(path: Path) -> str:
    """Return the path of a file below the folder of the images."""
    return str(path.relative_to(ROOT / "images"))


def test_every_image_has_a_dockerfile_and_its_locks() -> None:
    assert [in_short(path) for path in DOCKERFILES] == ["mlflow/Dockerfile", "taylorglo/Dockerfile"]
    assert {in_short(path) for path in LOCKS} >= {
        "mlflow/requirements.lock",
        "taylorglo/build.lock",
        "taylorglo/cuda.lock",
    }


@pytest.mark.parametrize("path", LOCKS, ids=in_short)
class TestLock:
    def test_versions_are_those_the_tests_have_passed_with(self, path: Path) -> None:
        constraints = pinned(ROOT / "constraints.txt")
        for name, requirement in pinned(path).items():
            if requirement.marker is None or Marker(str(requirement.marker)).evaluate(NODE):
                assert name in constraints, (
                    f"{name} is in the lock alone: run make lock, or add it to constraints.txt"
                )
                version = str(requirement.specifier).partition("+")[0]  # +cpu
                assert version == str(constraints[name].specifier), f"{name}: run make lock"

    def test_everything_has_a_hash(self, path: Path) -> None:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            if line.strip() and line[0] not in "#-":
                assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), line[:80]


@pytest.mark.parametrize(
    "lock", [path for path in LOCKS if path.name in ("cuda.lock", "cpu.lock")], ids=in_short
)
def test_the_components_lock_covers_the_dependencies_of_the_project(lock: Path) -> None:
    locked = pinned(lock)
    project = PROJECT["project"]
    pipeline = project["optional-dependencies"]["pipeline"]
    for requirement in map(Requirement, [*project["dependencies"], *pipeline]):
        (version,) = locked[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(version.version), f"{requirement}: run make lock"


def test_the_other_locks_cover_the_build_and_the_mlflow_server() -> None:
    (build,) = map(Requirement, PROJECT["build-system"]["requires"])
    (version,) = pinned(ROOT / "images/taylorglo/build.lock")["setuptools"].specifier
    assert build.specifier.contains(version.version)
    assert str(build) in (ROOT / "Makefile").read_text()
    assert set(pinned(ROOT / "images/mlflow/requirements.lock")) > {
        "mlflow",
        "boto3",
        "flask-wtf",
        "psycopg",
        "psycopg-binary",
    }


def test_the_components_name_the_image_that_make_images_builds() -> None:
    assert f"taylorglo:{__version__}" == IMAGE
    assert PROJECT["project"]["version"] == __version__


@pytest.mark.parametrize("path", DOCKERFILES, ids=in_short)
class TestDockerfile:
    def test_ends_as_a_user_with_a_number_that_is_not_root(self, path: Path) -> None:
        lines = instructions(path)
        starts = [index for index, line in enumerate(lines) if line.startswith("FROM ")]
        last_stage = lines[starts[-1] :]
        users = [line for line in last_stage if line.startswith("USER ")]
        assert re.fullmatch(r"USER [1-9]\d{3,}:[1-9]\d{3,}", users[-1])
        after = last_stage[last_stage.index(users[-1]) :]
        assert any(line.startswith("RUN ") for line in after), (
            "the smoke command should be run as that user"
        )

    def test_installs_nothing_without_a_hash(self, path: Path) -> None:
        text = "\n".join(instructions(path))
        commands = [
            part.strip()
            for part in re.split(r"&&|\n", text)
            if re.search(r"\bpip\b.*\b(install|wheel)\b", part)
        ]
        assert commands
        for command in commands:
            words = set(command.split())
            assert "--require-hashes" in words or {"--no-index", "--no-deps"} <= words, command
        assert not re.search(r"\b(curl|wget|apt-get|apt|git|conda)\b|^ADD ", text, re.MULTILINE)

    def test_every_stage_is_of_the_base_image_and_the_last_one_has_no_pip_command(
        self, path: Path
    ) -> None:
        lines = instructions(path)
        assert lines[0] == "ARG BASE_IMAGE=python:3.11-slim"
        stages = [line for line in lines if line.startswith("FROM ")]
        assert stages[-1] == "FROM ${BASE_IMAGE}"
        assert len(stages) > 1
        assert all(
            re.fullmatch(r"FROM (\$\{BASE_IMAGE\}|dependencies)( AS \w+)?", stage)
            for stage in stages
        )
        last_stage = lines[lines.index(stages[-1]) :]
        assert not [line for line in last_stage if re.search(r"\bpip\b", line)]

    def test_is_labelled(self, path: Path) -> None:
        (label,) = [line for line in instructions(path) if line.startswith("LABEL ")]
        for name in ("title", "description", "version", "revision", "licenses"):
            assert re.search(rf'org\.opencontainers\.image\.{name}="[^"]+"', label)
