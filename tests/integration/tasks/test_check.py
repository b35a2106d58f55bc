"""The task that checks the settings of a sweep."""

from pathlib import Path

from small_sweeps import small_settings

from taylorglo.results import read_json
from taylorglo.settings import SweepSettings
from taylorglo.tasks import check


def test_the_checked_settings_are_written_and_the_version_of_the_data_is_returned(
    tmp_path: Path,
) -> None:
    sections = small_settings().model_dump()
    # Kubeflow passes the numbers of a section as doubles.
    sections["training"]["steps"] = 3.0
    version = check.run(sections, str(tmp_path / "settings"))
    assert version.startswith("scikit-learn ")
    assert read_json(tmp_path / "settings", SweepSettings) == small_settings()


def test_the_version_changes_with_the_files_of_the_data(tmp_path: Path) -> None:
    images = tmp_path / "images.safetensors"
    data = {"name": "safetensors", "root": str(images)}
    sections = {**small_settings().model_dump(), "data": data}
    versions = []
    for content in (b"one", b"three"):
        images.write_bytes(content)
        versions.append(check.run(sections, str(tmp_path / "settings")))
    assert versions[0] != versions[1]
