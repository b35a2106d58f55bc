"""The task that prepares the data, as the fixture ``prepared`` has run it."""

from pathlib import Path

from small_sweeps import Work

from taylorglo.data import dataset as datasets


def test_the_description_agrees_with_the_data(prepared: Work) -> None:
    description = prepared.description()
    full = datasets.read(Path(prepared.full_data))
    assert full.test is not None
    assert description.name == "digits"
    assert description.num_classes == full.num_classes == 10
    assert description.splits == {
        "train": len(full.train),
        "validation": len(full.validation),
        "test": len(full.test),
    }
    assert description.fingerprint == full.fingerprint
    assert description.memory.weights > 0
    assert description.memory.activations_per_image > 0


def test_the_data_for_the_search_lack_the_test_split(prepared: Work) -> None:
    search = datasets.read(Path(prepared.search_data))
    assert search.test is None
    assert search.fingerprint == prepared.description().fingerprint
