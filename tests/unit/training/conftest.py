"""The networks of a user that the tests of the engine share."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the test's own copy of the module engine_networks."""
    shutil.copy(Path(__file__).with_name("engine_networks.py"), tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("engine_networks", None)
