"""Label noise and class imbalance: how much, where, and what neither of them may touch."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from taylorglo.data import dataset as data
from taylorglo.data import remarks
from taylorglo.data.corruption import long_tail, long_tailed, with_noise
from taylorglo.data.dataset import Dataset
from taylorglo.data.splits import Split, digest_of
from taylorglo.errors import InputError
from taylorglo.settings import DataSettings, validated


def numbered(sizes: list[int]) -> Split:
    """Return a split with classes of given sizes, mixed; an image is the number of its label."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(9))]
    return Split(torch.arange(len(labels)), labels)


def counts(split: Split, num_classes: int) -> list[int]:
    numbers: list[int] = torch.bincount(split.labels, minlength=num_classes).tolist()
    return numbers


def digits(seed: int = 0, **changes: Any) -> Dataset:
    return data.load(DataSettings.model_validate(changes), seed)


def write_file(path: Path, sizes: list[int], **others: list[int]) -> Path:
    """Write random images with classes of given sizes, and those of other splits."""
    tensors: dict[str, torch.Tensor] = {}
    generator = np.random.default_rng(0)
    for prefix, numbers in {"": sizes, **others}.items():
        labels = torch.repeat_interleave(torch.arange(len(numbers)), torch.tensor(numbers))
        images = generator.integers(0, 256, (len(labels), 4, 4), np.uint8)
        tensors |= {f"{prefix}images": torch.from_numpy(images), f"{prefix}labels": labels}
    save_file(tensors, path)
    return path


def load(path: Path, **changes: Any) -> Dataset:
    values = {"name": "safetensors", "root": str(path), **changes}
    return data.load(DataSettings.model_validate(values), seed=0)


RATES = st.floats(0, 1, exclude_max=True)
SIZES = st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(any)
SEEDS = st.integers(0, 2**31 - 1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sizes=SIZES, rate=RATES, seed=SEEDS)
def test_symmetric_noise_replaces_exactly_its_part_of_the_labels(
    sizes: list[int], rate: float, seed: int
) -> None:
    split = numbered(sizes)
    before = split.labels.clone()
    noisy = with_noise(split, rate, "symmetric", len(sizes), seed)
    assert torch.equal(split.labels, before)
    assert torch.equal(noisy.images, split.images)
    assert int((noisy.labels != before).sum()) == round(rate * sum(sizes))
    assert set(noisy.labels.tolist()) <= set(range(len(sizes)))
    assert noisy.labels.dtype == torch.int64


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sizes=SIZES, rate=RATES, seed=SEEDS)
def test_pair_flip_noise_replaces_exactly_its_part_of_each_class_by_the_next(
    sizes: list[int], rate: float, seed: int
) -> None:
    split, classes = numbered(sizes), len(sizes)
    noisy = with_noise(split, rate, "pair-flip", classes, seed)
    assert torch.equal(noisy.images, split.images)
    changed = noisy.labels != split.labels
    assert torch.equal(noisy.labels[changed], (split.labels[changed] + 1) % classes)
    replaced = torch.bincount(split.labels[changed], minlength=classes).tolist()
    assert replaced == [round(rate * size) for size in sizes]


def test_symmetric_noise_is_uniform_over_the_other_classes_and_over_the_images() -> None:
    """Of 20 000 labels of each of 5 classes, 40% go to the other four: 2000 to each."""
    split = numbered([20_000] * 5)
    noisy = with_noise(split, 0.4, "symmetric", 5, seed=1)
    flows = torch.zeros(5, 5, dtype=torch.int64)
    flows.index_put_((split.labels, noisy.labels), torch.tensor(1), accumulate=True)
    expected = torch.full((5, 5), 2000.0).fill_diagonal_(12_000)
    # The standard deviation of each is below 70; these are five of it.
    assert (flows - expected).abs().max() < 350
    changed = (noisy.labels != split.labels).double()
    assert abs(changed[:50_000].mean() - changed[50_000:].mean()) < 0.015


@pytest.mark.parametrize("kind", ["symmetric", "pair-flip"])
def test_another_seed_replaces_other_labels(kind: str) -> None:
    split = numbered([50] * 4)
    first, again, other = (with_noise(split, 0.3, kind, 4, seed).labels for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first != split.labels, other != split.labels)


@pytest.mark.parametrize("kind", ["symmetric", "pair-flip"])
def test_a_higher_rate_replaces_the_same_labels_and_more(kind: str) -> None:
    split = numbered([50] * 4)
    low, high = (with_noise(split, rate, kind, 4, seed=3).labels for rate in (0.1, 0.4))
    changed = low != split.labels
    assert torch.equal(low[changed], high[changed])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    imbalance=st.floats(1, 50),
    seed=SEEDS,
)
def test_a_long_tail_keeps_images_with_their_labels_in_their_order(
    sizes: list[int], imbalance: float, seed: int
) -> None:
    split, classes = numbered(sizes), len(sizes)
    kept = long_tailed(split, imbalance, classes, seed)
    assert (kept.images.diff() > 0).all()
    assert torch.equal(split.labels[kept.images], kept.labels)
    expected = [min(sizes) / imbalance ** (index / (classes - 1)) for index in range(classes)]
    assert np.abs(np.array(counts(kept, classes)) - expected).max() <= 0.5 + 1e-9
    fewer = long_tailed(split, 2 * imbalance, classes, seed)
    assert set(fewer.images.tolist()) <= set(kept.images.tolist())


def test_long_tailed_cifar_10_has_the_published_sizes() -> None:
    """Cui et al. cut the numbers down to whole ones; here they are rounded."""
    exact = [5000 * 0.01 ** (index / 9) for index in range(10)]
    published = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert [math.floor(number + 1e-9) for number in exact] == published
    assert long_tail(5000, 100, 10) == [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]


NOISY: list[dict[str, Any]] = [
    {"label_noise": 0.4},
    {"label_noise": 0.3, "label_noise_kind": "pair-flip"},
    {"imbalance": 5},
    {"label_noise": 0.2, "imbalance": 3, "train_fraction": 0.7},
]


@pytest.mark.parametrize("changes", NOISY)
def test_the_seed_decides_the_flaws_and_nothing_touches_the_test_split(
    changes: dict[str, Any],
) -> None:
    clean = digits(seed=5)
    first, again, other = digits(5, **changes), digits(5, **changes), digits(6, **changes)
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, other.fingerprint, clean.fingerprint}) == 3
    assert first.test is not None
    assert clean.test is not None
    assert torch.equal(first.test.images, clean.test.images)
    assert torch.equal(first.test.labels, clean.test.labels)
    assert first.provenance["test_fingerprint"] == clean.provenance["test_fingerprint"]
    # The fingerprint, and what is saved, are of the flawed tensors.
    tensors = {"train": first.train, "validation": first.validation}
    assert first.fingerprint == digest_of(**tensors)


def test_noise_changes_labels_alone_in_the_same_part_of_both_splits() -> None:
    clean, noisy = digits(), digits(label_noise=0.4)
    for name, number in (("train", 1077), ("validation", 270)):
        old, new = getattr(clean, name), getattr(noisy, name)
        assert torch.equal(old.images, new.images)
        assert int((old.labels != new.labels).sum()) == round(0.4 * number)
    assert (noisy.mean, noisy.std) == (clean.mean, clean.std)
    assert noisy.guessing == clean.guessing
    assert noisy.provenance["label_noise"] == (
        "40% symmetric: 431 of 1077 training and 108 of 270 validation labels were replaced, "
        "drawn with seed 0"
    )
    assert remarks.lines(noisy.provenance)[1:] == [noisy.provenance["label_noise"]]


def test_data_without_flaws_are_as_they_were_before_there_were_such_settings() -> None:
    plain = digits()
    explicit = digits(label_noise=0, label_noise_kind="pair-flip", imbalance=1)
    assert explicit.provenance == plain.provenance
    assert not {"label_noise", "imbalance"} & set(plain.provenance)
    # The fingerprint that these splits had when there were no such settings.
    assert plain.fingerprint == "e8f8942c7580ee217273216eafc5f343342c544e665219c4c8c3086a2034830e"


def test_a_long_tail_is_drawn_before_the_validation_split() -> None:
    clean, tail = digits(), digits(imbalance=8)
    smallest = min(
        a + b for a, b in zip(counts(clean.train, 10), counts(clean.validation, 10), strict=True)
    )
    together = torch.cat([tail.train.labels, tail.validation.labels])
    assert torch.bincount(together).tolist() == long_tail(smallest, 8, 10)
    # The validation split has its fraction of each class.
    shares = [
        held / (held + rest)
        for held, rest in zip(counts(tail.validation, 10), counts(tail.train, 10), strict=True)
    ]
    assert max(shares) < 0.3
    assert min(shares) > 0.1
    largest, least = ((counts(tail.train, 10)[c], counts(tail.validation, 10)[c]) for c in (0, 9))
    assert remarks.lines(tail.provenance)[1:] == [
        f"imbalance 8: {largest[0]} training and {largest[1]} validation images of class 0, "
        f"falling to {least[0]} training and {least[1]} validation of class 9, drawn with seed 0"
    ]


def test_a_validation_split_of_the_source_gets_the_flaws_too(tmp_path: Path) -> None:
    others = {"validation_": [20, 25, 20], "test_": [9, 9, 9]}
    path = write_file(tmp_path / "x.safetensors", [40, 40, 50], **others)
    clean, tail, noisy = load(path), load(path, imbalance=4), load(path, label_noise=0.25)
    assert counts(tail.train, 3) == [40, 20, 10]
    assert counts(tail.validation, 3) == [20, 10, 5]
    assert int((noisy.train.labels != clean.train.labels).sum()) == round(0.25 * 130)
    assert int((noisy.validation.labels != clean.validation.labels).sum()) == round(0.25 * 65)
    for dataset in (tail, noisy):
        assert dataset.test is not None
        assert clean.test is not None
        assert torch.equal(dataset.test.labels, clean.test.labels)
        assert torch.equal(dataset.test.images, clean.test.images)


def test_splits_of_one_size_get_flaws_of_their_own(tmp_path: Path) -> None:
    others = {"validation_": [40, 40, 40], "test_": [9, 9, 9]}
    path = write_file(tmp_path / "x.safetensors", [40, 40, 40], **others)
    clean, tail, noisy = load(path), load(path, imbalance=4), load(path, label_noise=0.25)
    pairs = ((clean.train, tail.train), (clean.validation, tail.validation))
    kept = [(old.images[:, None] == new.images).flatten(2).all(2).any(1) for old, new in pairs]
    assert [int(images.sum()) for images in kept] == [70, 70]
    assert not torch.equal(*kept)
    replaced = [
        new.labels != old.labels
        for old, new in ((clean.train, noisy.train), (clean.validation, noisy.validation))
    ]
    assert not torch.equal(*replaced)


def test_noise_comes_last_and_counts_the_images_that_are_left() -> None:
    changes: dict[str, Any] = {"imbalance": 4, "train_fraction": 0.5}
    tail, both = digits(**changes), digits(**changes, label_noise=0.3)
    assert torch.equal(tail.train.images, both.train.images)
    changed = int((tail.train.labels != both.train.labels).sum())
    assert changed == round(0.3 * len(tail.train))
    assert both.provenance["imbalance"] == tail.provenance["imbalance"]
    assert len(remarks.lines(both.provenance)[1:]) == 2


def test_copies_of_an_image_contradict_each_other_only_in_the_source(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", [40, 40])
    single = load(path)
    images, labels = single.train.images, single.train.labels
    twice = {"images": torch.cat([images, images]), "labels": torch.cat([labels, labels])}
    save_file(twice, tmp_path / "twice.safetensors")
    clean, noisy = (load(tmp_path / "twice.safetensors", label_noise=rate) for rate in (0, 0.4))
    assert "several labels" not in clean.provenance["duplicates"]
    assert noisy.provenance["duplicates"] == clean.provenance["duplicates"]


def test_a_flawed_data_set_is_read_as_it_was_saved(tmp_path: Path) -> None:
    noisy = digits(label_noise=0.4, imbalance=3)
    data.save(noisy, tmp_path / "x.safetensors")
    read = data.read(tmp_path / "x.safetensors")
    assert torch.equal(read.train.labels, noisy.train.labels)
    assert torch.equal(read.validation.labels, noisy.validation.labels)
    assert read.provenance == noisy.provenance


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"label_noise": 1}, "label_noise: should be less than 1"),
        ({"label_noise": -0.1}, "label_noise: should be greater than or equal to 0"),
        ({"label_noise": True}, "label_noise: should not be true or false"),
        ({"label_noise_kind": "asymmetric"}, "label_noise_kind: should be 'symmetric' or"),
        ({"imbalance": 0.5}, "imbalance: should be greater than or equal to 1"),
        ({"imbalance": 1e7}, "imbalance: should be less than or equal to 1000000"),
        (
            {"label_noise": 0.5, "label_noise_kind": "pair-flip"},
            r"label_noise: pair-flip noise should be below 0.5, .* no majority \(got 0.5\)",
        ),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=rf"^data: {problem}") as caught:
        validated(DataSettings, values, "data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("classes", "limit"), [(2, "1/2"), (3, "2/3"), (5, "4/5")])
def test_noise_without_a_majority_of_right_labels_is_refused(
    tmp_path: Path, classes: int, limit: str
) -> None:
    path = write_file(tmp_path / "x.safetensors", [40] * classes)
    most = (classes - 1) / classes
    assert load(path, label_noise=most - 0.01).num_classes == classes
    problem = rf"^data.label_noise: symmetric noise for {classes} classes should be below {limit}, "
    with pytest.raises(InputError, match=problem):
        load(path, label_noise=most)


def test_pair_flip_noise_with_2_classes_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", [40, 40])
    problem = "^data.label_noise_kind: pair-flip noise needs at least 3 classes; .*set symmetric$"
    with pytest.raises(InputError, match=problem):
        load(path, label_noise=0.1, label_noise_kind="pair-flip")
    assert load(path, label_noise=0, label_noise_kind="pair-flip").num_classes == 2


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        ({"test_": [9, 9, 9]}, "1 of 60 images of class 2 for training and validation together"),
        (
            {"test_": [9, 9, 9], "validation_": [20, 20, 20]},
            "1 of 60 training and 0 of 20 validation images of class 2",
        ),
        ({}, "0 of 45 images of class 2 for training and validation together"),
    ],
)
@pytest.mark.parametrize("train_fraction", [1, 0.5])
def test_an_imbalance_that_empties_a_class_is_refused_with_the_largest_that_works(
    tmp_path: Path, others: dict[str, list[int]], kept: str, train_fraction: float
) -> None:
    path = write_file(tmp_path / "x.safetensors", [60, 60, 60], **others)
    with pytest.raises(InputError, match=f"^data.imbalance: 100 leaves {kept}, too") as caught:
        load(path, imbalance=100, train_fraction=train_fraction)
    largest = float(str(caught.value).rpartition(" is ")[2])
    dataset = load(path, imbalance=largest, train_fraction=train_fraction)
    for split in (dataset.train, dataset.validation):
        assert min(counts(split, 3)) >= 1
    with pytest.raises(InputError, match=r"^data.imbalance"):
        load(path, imbalance=largest + 0.01, train_fraction=train_fraction)


def test_a_validation_split_without_a_class_rules_out_an_imbalance(tmp_path: Path) -> None:
    others = {"validation_": [20, 20], "test_": [9, 9, 9]}
    path = write_file(tmp_path / "x.safetensors", [60, 60, 60], **others)
    assert counts(load(path).validation, 3) == [20, 20, 0]
    problem = (
        "^data.imbalance: 2 leaves 30 of 60 training and 0 of 0 validation images of class 2, "
        ".* is 1.00$"
    )
    with pytest.raises(InputError, match=problem):
        load(path, imbalance=2)


def test_a_fraction_that_does_not_work_without_an_imbalance_is_named_itself(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", [60, 60, 60], test_=[9, 9, 9])
    with pytest.raises(InputError, match=r"^data.validation_fraction: 0.001 of 180 images of 3"):
        load(path, imbalance=10, validation_fraction=0.001)
