"""The wheel has everything that an installed package reads."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"taylorglo": "components", "taylorglo_pipelines": "pipelines"}


def test_the_wheel_has_all_files_of_the_packages(tmp_path: Path) -> None:
    # A build leaves files beside the sources, so the sources are links in another folder.
    for name in ("pyproject.toml", "README.md", "LICENSE", *PACKAGES.values()):
        (tmp_path / name).symlink_to(ROOT / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('wheel')"
    command = [sys.executable, "-c", build]
    subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    built = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT / folder))
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "taylorglo/zoo/digits.json" in expected
    assert {name for name in built if ".dist-info/" not in name} == expected
