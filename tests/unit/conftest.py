"""The data and the networks that several unit tests share.

PyTorch is imported by the fixtures: here its import would slow down every light test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import user_networks

    from taylorglo.data.dataset import Dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Scikit-learn's digits."""
    from taylorglo.data import dataset as datasets
    from taylorglo.settings import DataSettings

    return datasets.load(DataSettings(), 0)


@pytest.fixture(scope="session")
def search_digits(digits: Dataset) -> Dataset:
    """The digits without the test split, which is what a search gets."""
    from taylorglo.data import dataset as datasets

    return datasets.without_test(digits)


@pytest.fixture(scope="session")
def saved_digits(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of the saved digits."""
    from taylorglo.data import dataset as datasets

    path = tmp_path_factory.mktemp("data") / "digits.safetensors"
    datasets.save(digits, path)
    return path


@pytest.fixture
def record() -> Iterator[user_networks.Record]:
    """The record of the user's networks, which is empty before and after the test."""
    import user_networks

    user_networks.RECORD.clear()
    yield user_networks.RECORD
    user_networks.RECORD.clear()
