"""The data and services that the tests of the tasks share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_sweeps import Work

from taylorglo.tasks.context import Sweep


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """What the first three tasks leave: artifacts, study, store and MLflow."""
    work = Work(tmp_path_factory.mktemp("prepared"))
    with pytest.MonkeyPatch.context() as patch:
        work.name_services(patch)
        work.prepare()
        work.open()
    return work


@pytest.fixture
def work(prepared: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """A copy of the prepared folder for one test."""
    copy = Work(shutil.copytree(prepared.folder, tmp_path / "work"))
    copy.name_services(monkeypatch)
    threads = torch.get_num_threads()
    yield copy
    torch.set_num_threads(threads)


@pytest.fixture
def sweep(work: Work) -> Sweep:
    """The opened sweep."""
    return work.sweep()
