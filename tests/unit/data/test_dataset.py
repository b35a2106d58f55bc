"""Data sets: their sources, their splits, and the file that keeps one."""

import gzip
import hashlib
import math
import os
import pickle
import re
import struct
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from clocks import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.io import savemat
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets

from taylorglo import retries
from taylorglo.data import dataset as data
from taylorglo.data.dataset import Dataset, Split
from taylorglo.errors import InputError, ServiceError
from taylorglo.settings import DataSettings

# Where Debian's package dataset-fashion-mnist keeps its files.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


Array = NDArray[Any]
# Images by the bytes of their pixels, with their labels.
Images = Counter[tuple[bytes, int]]


class Part(NamedTuple):
    """Images of one part of a source, and their labels."""

    images: Array
    labels: Array


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def counted(*splits: Split | None) -> Images:
    """Count how often each image occurs with each label."""
    return Counter(
        (image.numpy().tobytes(), int(label))
        for split in splits
        if split is not None
        for image, label in zip(split.images, split.labels, strict=True)
    )


def everything(dataset: Dataset) -> Images:
    return counted(dataset.train, dataset.validation, dataset.test)


def sizes(dataset: Dataset) -> dict[str, int]:
    test = dataset.test
    assert test is not None
    return {"train": len(dataset.train), "validation": len(dataset.validation), "test": len(test)}


def random_part(number: int, shape: tuple[int, ...], classes: int = 10, seed: int = 0) -> Part:
    """Return random images, with labels that go through all classes."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (number, *shape), dtype=np.uint8)
    return Part(images, np.arange(number) % classes)


def same(first: Dataset, second: Dataset) -> bool:
    return all(
        torch.equal(getattr(getattr(first, split), part), getattr(getattr(second, split), part))
        for split in ("train", "validation", "test")
        for part in ("images", "labels")
    )


def test_the_splits_of_digits_have_all_images_together() -> None:
    dataset = data.load(DataSettings(), seed=0)
    bunch = load_digits()
    assert everything(dataset) == Counter(
        (np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert sizes(dataset) == {"train": 1077, "validation": 270, "test": 450}
    assert dataset.image_shape == (1, 8, 8)
    assert dataset.num_classes == 10
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.dtype == torch.int64
    assert {int(dataset.train.images.min()), int(dataset.train.images.max())} == {0, 255}


def test_the_seed_decides_the_splits_and_nothing_else_does() -> None:
    numpy_state = np.random.get_state()[1].copy()
    torch_state = torch.get_rng_state()
    first = data.load(DataSettings(), seed=5)
    again = data.load(DataSettings(), seed=5)
    other = data.load(DataSettings(), seed=6)
    assert same(first, again)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.provenance == again.provenance
    assert first.provenance["source_sha256"] == other.provenance["source_sha256"]
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())


def test_a_training_fraction_takes_from_the_training_images_alone() -> None:
    whole = data.load(DataSettings(train_fraction=1.0), 0)
    part = data.load(DataSettings(train_fraction=0.3), 0)
    assert len(part.train) == math.ceil(0.3 * len(whole.train))
    assert counted(part.train) <= counted(whole.train)
    assert torch.equal(part.validation.images, whole.validation.images)
    assert torch.equal(part.test.images, whole.test.images)


def test_mean_and_std_are_those_of_the_training_images() -> None:
    dataset = data.load(DataSettings(), 0)
    scaled = dataset.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, [scaled.mean()], rtol=1e-12)
    np.testing.assert_allclose(dataset.std, [scaled.std()], rtol=1e-12)


def test_the_fingerprint_is_of_train_and_validation() -> None:
    dataset = data.load(DataSettings(), 0)
    assert data.without_test(dataset).fingerprint == dataset.fingerprint
    assert len(dataset.fingerprint) == 64


def test_a_split_moves_to_a_device() -> None:
    split = data.load(DataSettings(), 0).train
    moved = split.to("meta")
    assert moved.images.device.type == "meta"
    assert moved.labels.device.type == "meta"
    assert len(moved) == len(split)


def test_the_checksum_is_compared() -> None:
    right = data.load(DataSettings(), 0).provenance["source_sha256"]
    assert data.load(DataSettings(sha256=right), 0).provenance["source_sha256"] == right
    with pytest.raises(InputError, match=f"expected {'0' * 64}, but digits has {right}"):
        data.load(DataSettings(sha256="0" * 64), 0)


def test_a_uri_must_have_been_fetched(tmp_path: Path) -> None:
    copy = tmp_path / "x.safetensors"
    write_safetensors(copy)
    settings = DataSettings(name="safetensors", root="s3://bucket/x.safetensors")
    with pytest.raises(InputError, match="should have been fetched"):
        data.load(settings, 0)
    assert data.load(settings, 0, copy).provenance["source"] == settings.root


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    class_sizes=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    test=st.floats(0.05, 0.9),
    validation=st.floats(0.05, 0.9),
    train=st.floats(0.1, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_splits_are_disjoint_and_balanced_or_refused(
    class_sizes: list[int], test: float, validation: float, train: float, seed: int
) -> None:
    number = sum(class_sizes)
    labels = torch.repeat_interleave(torch.arange(len(class_sizes)), torch.tensor(class_sizes))
    # The pixels of an image are the bytes of its number.
    images = torch.arange(number, dtype=torch.int32).view(torch.uint8).reshape(number, 1, 2, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_file({"images": images, "labels": labels}, path)
        fractions = {
            "test_fraction": test,
            "validation_fraction": validation,
            "train_fraction": train,
        }
        try:
            dataset = load("safetensors", path, seed, **fractions)
        except InputError as error:
            assert f"of {len(class_sizes)} classes" in str(error)  # noqa: PT017
            return
    splits = (dataset.test, dataset.validation, dataset.train)
    drawn = [split.images.flatten(1).contiguous().view(torch.int32).flatten() for split in splits]
    assert len(torch.cat(drawn).unique()) == sum(map(len, splits))
    for split, numbers in zip(splits, drawn, strict=True):
        assert torch.equal(labels[numbers.long()], split.labels)

    rest = torch.tensor(class_sizes)
    for split, fraction in zip(splits, (test, validation, train), strict=True):
        counts = torch.bincount(split.labels, minlength=len(class_sizes))
        assert counts.min() >= 1
        if fraction == 1:
            assert torch.equal(counts, rest)
        else:
            assert len(split) == math.ceil(fraction * int(rest.sum()))
            assert ((counts - len(split) * rest / rest.sum()).abs() < 1 + 1e-6).all()
        rest = rest - counts


def test_ample_classes_are_never_refused() -> None:
    fractions = DataSettings(test_fraction=0.1, validation_fraction=0.1, train_fraction=0.5)
    for seed in range(5):
        dataset = data.load(fractions, seed)
        assert set(dataset.train.labels.tolist()) == set(range(10))


def test_a_class_that_is_too_small_is_named_in_numbers(tmp_path: Path) -> None:
    images, labels = random_part(21, (1, 2, 2), classes=10)
    # There is one image of class 9.
    labels[:] = [*range(10), *range(9), 0, 1]
    write_safetensors(tmp_path / "x.safetensors", images=images, labels=labels)
    problem = "data.test_fraction: 0.25 of 21 images of 10 classes, the smallest of 1 (class 9), "
    with pytest.raises(InputError, match=re.escape(problem)):
        load("safetensors", tmp_path / "x.safetensors")


def load(name: str, root: Path, seed: int = 0, **changes: Any) -> Dataset:
    settings = DataSettings.model_validate({"name": name, "root": str(root), **changes})
    return data.load(settings, seed)


def idx_bytes(array: Array) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, packed: bool = False) -> dict[str, Part]:
    """Write the four files of MNIST with random images of 5x4."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": random_part(60, (5, 4), seed=0), "test": random_part(20, (5, 4), seed=1)}
    arrays = [array for part in parts.values() for array in part]
    for name, array in zip(IDX_FILES, arrays, strict=True):
        content = idx_bytes(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return parts


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
@pytest.mark.filterwarnings("error")
def test_idx_files_are_read_from_every_layout(tmp_path: Path, name: str, folder: str) -> None:
    parts = write_idx(tmp_path / "torchvision" / folder / "raw")
    write_idx(tmp_path / "plain")
    write_idx(tmp_path / "packed", packed=True)
    dataset = load(name, tmp_path / "torchvision")
    assert dataset.image_shape == (1, 5, 4)
    assert np.array_equal(dataset.test.images[:, 0].numpy(), parts["test"].images)
    assert np.array_equal(dataset.test.labels.numpy(), parts["test"].labels)
    images, labels = map(torch.from_numpy, parts["train"])
    assert counted(dataset.train, dataset.validation) == counted(Split(images, labels))
    for layout in ("plain", "packed"):
        other = load(name, tmp_path / layout)
        assert same(dataset, other)
        assert other.provenance["source_sha256"] == dataset.provenance["source_sha256"]
    # Reading changes nothing in the folder.
    files = {path.name for path in (tmp_path / "packed").iterdir()}
    assert files == {f"{file}.gz" for file in IDX_FILES}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("file", IDX_FILES)
def test_a_truncated_idx_file_is_refused(tmp_path: Path, file: str, packed: bool) -> None:
    write_idx(tmp_path, packed)
    path = tmp_path / (f"{file}.gz" if packed else file)
    whole = path.read_bytes()
    for length in sorted({*range(0, len(whole), 1 + len(whole) // 8), len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged") as caught:
            load("mnist", tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_garbage_is_refused(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path, packed)
    path = tmp_path / (f"{IDX_FILES[0]}.gz" if packed else IDX_FILES[0])
    for seed in range(20):
        path.write_bytes(np.random.default_rng(seed).bytes(400))
        with pytest.raises(InputError, match="damaged"):
            load("mnist", tmp_path)


@pytest.mark.parametrize("layout", ["plain", "packed", "torchvision"])
def test_idx_files_in_each_others_place_are_named(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "MNIST" / "raw" if layout == "torchvision" else tmp_path
    write_idx(folder, packed=layout == "packed")
    suffix = ".gz" if layout == "packed" else ""
    images, labels = (folder / f"{name}{suffix}" for name in IDX_FILES[:2])
    images.rename(tmp_path / "images")
    labels.rename(images)
    (tmp_path / "images").rename(labels)
    problem = (
        f"^{images}: damaged, or no idx file of images: should begin with the bytes 00 00 08 03, "
        "and begins with 00 00 08 01$"
    )
    with pytest.raises(InputError, match=problem):
        load("mnist", tmp_path)


def test_an_idx_file_of_another_size_than_its_header_says_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    path = tmp_path / IDX_FILES[2]
    path.write_bytes(path.read_bytes() + b"more")
    problem = rf"^{path}: damaged: images of shape \(20, 5, 4\) should take 416 bytes, .* are 420$"
    with pytest.raises(InputError, match=problem):
        load("mnist", tmp_path)


def test_labels_that_do_not_belong_to_the_images_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[1]).write_bytes(idx_bytes(np.arange(59) % 10))
    with pytest.raises(InputError, match=r"60 images have labels of shape \(59,\)"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, name: str, file: str) -> None:
    with pytest.raises(InputError, match=f"lacks {file}.*download: true"):
        load(name, tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="should be a folder that holds svhn"):
        load("svhn", tmp_path / "absent")


def test_a_missing_idx_file_beside_others_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[3]).unlink()
    problem = r"lacks t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"
    with pytest.raises(InputError, match=problem):
        load("mnist", tmp_path)


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_of_debian_is_the_real_one() -> None:
    # For the reading alone: what other tests left open may be collected at any time.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load("fashion-mnist", FASHION_MNIST, train_fraction=0.1)
    assert sizes(dataset) == {"train": 4800, "validation": 12000, "test": 10000}
    for split in (dataset.train, dataset.validation, dataset.test):
        assert set(torch.bincount(split.labels).tolist()) == {len(split) // 10}
    with gzip.open(FASHION_MNIST / f"{IDX_FILES[2]}.gz") as file:
        test_images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(10000, 1, 28, 28)
    assert np.array_equal(dataset.test.images.numpy(), test_images)
    assert dataset.classes[0] == "T-shirt/top"
    # The values in common use are 0.2860 and 0.3530.
    assert dataset.mean[0] == pytest.approx(0.286, abs=0.005)
    assert dataset.std[0] == pytest.approx(0.353, abs=0.005)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


class Cifar(NamedTuple):
    """A copy of CIFAR's files with random images."""

    name: str
    folder: Path
    parts: list[Part]


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar:
    """Write CIFAR's files with random images, and give torchvision their MD5 for this test."""
    name: str = request.param
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    classes = 10 if name == "cifar10" else 100
    label_key = "labels" if name == "cifar10" else "fine_labels"
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    parts = []
    for seed, (file, _) in enumerate(kind.train_list + kind.test_list):
        part = random_part(5 * classes, (3, 32, 32), classes, seed)
        content = {"data": part.images.reshape(-1, 3072), label_key: part.labels.tolist()}
        (folder / file).write_bytes(pickle.dumps(content))
        parts.append(part)
    meta = {kind.meta["key"]: [str(number) for number in range(classes)]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
    for files in ("train_list", "test_list"):
        checksums = [[file, md5(folder / file)] for file, _ in getattr(kind, files)]
        monkeypatch.setattr(kind, files, checksums)
    checksum = md5(folder / kind.meta["filename"])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": checksum})
    return Cifar(name, folder, parts)


@pytest.mark.filterwarnings("error")
def test_cifar_is_read_through_torchvision(cifar: Cifar) -> None:
    dataset = load(cifar.name, cifar.folder.parent)
    *train, test = cifar.parts
    assert dataset.classes == tuple(map(str, range(dataset.num_classes)))
    assert dataset.image_shape == (3, 32, 32)
    assert np.array_equal(dataset.test.images.numpy(), test.images)
    assert np.array_equal(dataset.test.labels.numpy(), test.labels)
    images = torch.from_numpy(np.concatenate([part.images for part in train]))
    labels = torch.from_numpy(np.concatenate([part.labels for part in train]))
    assert counted(dataset.train, dataset.validation) == counted(Split(images, labels))


class Touch:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_an_altered_cifar_file_is_refused_before_it_is_unpickled(cifar: Cifar) -> None:
    mark = cifar.folder / "unpickled"
    payload = pickle.dumps(Touch(mark))
    for path in sorted(cifar.folder.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(payload)
        with pytest.raises(InputError, match=f"^{path}: damaged or altered: its MD5 should be "):
            load(cifar.name, cifar.folder.parent)
        assert not mark.exists()
        path.write_bytes(whole)
    # Unpickling the bytes of this test creates the mark.
    pickle.loads(payload)  # noqa: S301
    assert mark.exists()


@pytest.mark.filterwarnings("error")
def test_svhn_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {}
    split_list = dict(datasets.SVHN.split_list)
    for seed, name in enumerate(("train", "test")):
        part = random_part(60, (3, 32, 32), seed=seed)
        url, file, _ = split_list[name]
        # In the file, the digit 0 is class 10, and the number of the image is the last axis.
        labels = np.where(part.labels == 0, 10, part.labels)[:, None]
        savemat(tmp_path / file, {"X": part.images.transpose(2, 3, 1, 0), "y": labels})
        split_list[name] = [url, file, md5(tmp_path / file)]
        parts[name] = part
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    dataset = load("svhn", tmp_path)
    assert np.array_equal(dataset.test.images.numpy(), parts["test"].images)
    assert np.array_equal(dataset.test.labels.numpy(), parts["test"].labels)
    source = Split(*map(torch.from_numpy, parts["train"]))
    assert counted(dataset.train, dataset.validation) == counted(source)

    path = tmp_path / split_list["test"][1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"^{path}: damaged or altered: its MD5 should be "):
        load("svhn", tmp_path)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve compressed idx files as the only mirror of MNIST; return their folder."""
    folder = tmp_path / "mirror"
    write_idx(folder, packed=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        resources = [(f"{name}.gz", md5(folder / f"{name}.gz")) for name in IDX_FILES]
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        yield folder
        server.shutdown()


def test_a_download_goes_to_the_root_and_is_read_from_there(tmp_path: Path, mirror: Path) -> None:
    root = tmp_path / "new" / "root"
    downloaded = load("mnist", root, download=True)
    assert same(downloaded, load("mnist", mirror))
    for file in mirror.iterdir():
        file.unlink()
    assert same(downloaded, load("mnist", root, download=True))


def test_a_download_is_tried_again_then_given_up(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)
    (mirror / f"{IDX_FILES[2]}.gz").unlink()
    problem = r"mnist: download to .* failed 3 times: RuntimeError: .*404"
    with pytest.raises(ServiceError, match=problem) as caught:
        load("mnist", tmp_path / "root", download=True)
    assert "\n" not in str(caught.value)
    assert len(clock.pauses) == 2


def write_images(
    root: Path,
    *,
    number: int = 8,
    classes: tuple[str, ...] = ("cat", "dog"),
    width: int = 4,
    seed: int = 0,
) -> None:
    """Write random images of a height of 3, a folder for each class."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(number):
            pixels = generator.integers(0, 256, (3, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


def images_of(root: Path) -> Images:
    return Counter(
        (np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(), label)
        for label, folder in enumerate(sorted(root.iterdir()))
        for path in folder.iterdir()
    )


def test_an_image_folder_without_a_test_split_is_split(tmp_path: Path) -> None:
    write_images(tmp_path)
    dataset = load("image-folder", tmp_path)
    assert dataset.image_shape == (3, 3, 4)
    assert sizes(dataset) == {"train": 9, "validation": 3, "test": 4}
    assert everything(dataset) == images_of(tmp_path)


def test_an_image_folder_keeps_its_test_split(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", number=3, seed=1)
    dataset = load("image-folder", tmp_path)
    assert counted(dataset.test) == images_of(tmp_path / "test")
    assert counted(dataset.train, dataset.validation) == images_of(tmp_path / "train")
    # Without a folder of test images, the test split is held out.
    write_images(tmp_path / "other" / "train")
    assert sizes(load("image-folder", tmp_path / "other"))["test"] == 4


def test_gray_and_opaque_images_become_rgb(tmp_path: Path) -> None:
    write_images(tmp_path)
    Image.new("L", (4, 3), 7).save(tmp_path / "cat" / "gray.png")
    Image.new("RGBA", (4, 3), (1, 2, 3, 255)).save(tmp_path / "dog" / "opaque.png")
    images = everything(load("image-folder", tmp_path))
    assert images[bytes([7] * 36), 0] == 1
    assert images[bytes([1] * 12 + [2] * 12 + [3] * 12), 1] == 1


def test_images_are_compared_as_they_are_upright(tmp_path: Path) -> None:
    write_images(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (3, 4)).save(tmp_path / "cat" / "upright.png", exif=exif)
    assert len(everything(load("image-folder", tmp_path))) == 17
    Image.new("RGB", (4, 3)).save(tmp_path / "cat" / "turned.png", exif=exif)
    with pytest.raises(InputError, match=r"cat/turned.png: is 3x4, but .*cat/0.png is 4x3"):
        load("image-folder", tmp_path)


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    Image.new("RGB", (5, 3)).save(tmp_path / "dog" / "3.png")
    problem = r"dog/3.png: is 5x3, but .*cat/0.png is 4x3: all images should be of one size"
    with pytest.raises(InputError, match=problem):
        load("image-folder", tmp_path)


def test_test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", width=5)
    problem = r"one shape \(C, H, W\), and are \(3, 3, 4\) and \(3, 3, 5\)"
    with pytest.raises(InputError, match=problem):
        load("image-folder", tmp_path)


def test_a_truncated_image_is_named_unless_it_has_all_its_pixels(tmp_path: Path) -> None:
    write_images(tmp_path)
    whole = load("image-folder", tmp_path)
    path = tmp_path / "cat" / "0.png"
    content = path.read_bytes()
    refused = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            assert same(load("image-folder", tmp_path), whole)
        except InputError as error:
            assert "cat/0.png: damaged or not an image" in str(error)  # noqa: PT017
            refused += 1
    assert refused > len(content) // 2


def test_folders_without_the_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="should have a folder of images per class"):
        load("image-folder", tmp_path)
    write_images(tmp_path, classes=("cat",))
    with pytest.raises(InputError, match="at least 2 classes"):
        load("image-folder", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no image for the classes empty"):
        load("image-folder", tmp_path)


def test_other_classes_in_the_test_folder_are_named(tmp_path: Path) -> None:
    write_images(tmp_path / "train", classes=("cat", "dog"))
    write_images(tmp_path / "test", classes=("cat", "fox"))
    with pytest.raises(InputError, match="only one of them has dog, fox"):
        load("image-folder", tmp_path)


def write_safetensors(path: Path, **changes: Array | Tensor | None) -> None:
    """Write 40 random images of 4 classes; a change replaces a tensor, or removes it if None."""
    part = random_part(40, (3, 4, 5), classes=4)
    arrays = {**part._asdict(), **changes}
    tensors = {name: torch.as_tensor(a) for name, a in arrays.items() if a is not None}
    save_file(tensors, path)


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path)
    dataset = load("safetensors", path)
    assert dataset.image_shape == (3, 4, 5)
    assert dataset.num_classes == 4
    assert len(dataset.test) == 10
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.provenance["source_sha256"] == sha256
    assert same(dataset, load("safetensors", path, sha256=sha256))
    with pytest.raises(InputError, match=f"but .*x.safetensors has {sha256}"):
        load("safetensors", path, sha256="1" * 64)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_gray_images_integer_labels_and_a_test_split_are_read(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    train = random_part(40, (4, 5), classes=4)
    test = random_part(6, (4, 5), classes=2)
    write_safetensors(
        tmp_path / "x.safetensors",
        images=train.images,
        labels=torch.as_tensor(train.labels).to(dtype),
        test_images=test.images,
        test_labels=torch.as_tensor(test.labels).to(dtype),
    )
    dataset = load("safetensors", tmp_path / "x.safetensors")
    assert np.array_equal(dataset.test.images[:, 0].numpy(), test.images)
    assert np.array_equal(dataset.test.labels.numpy(), test.labels)
    assert dataset.train.labels.dtype == torch.int64
    assert len(dataset.train) + len(dataset.validation) == 40


def test_a_constant_channel_is_safe(tmp_path: Path) -> None:
    images = random_part(40, (3, 4, 5)).images
    images[:, 1] = 51
    write_safetensors(tmp_path / "x.safetensors", images=images)
    dataset = load("safetensors", tmp_path / "x.safetensors")
    assert dataset.mean[1] == pytest.approx(0.2)
    assert dataset.std[1] == 1 / 255
    assert dataset.std[0] > 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": torch.zeros(40, 3, 4, 5, dtype=torch.int32)},
            r"images should be uint8 .* and are torch.int32 \(40, 3, 4, 5\)",
        ),
        (
            {"images": torch.zeros(40, 3, dtype=torch.uint8)},
            r"images should be of shape .* \(40, 3\); if they are features, name them so",
        ),
        ({"images": torch.zeros(0, 3, 4, 5, dtype=torch.uint8)}, r"none of them 0"),
        ({"images": torch.zeros(40, 3, 0, 5, dtype=torch.uint8)}, r"none of them 0"),
        ({"labels": torch.arange(39)}, r"40 images have labels of shape \(39,\)"),
        (
            {"labels": torch.zeros(40, 1, dtype=torch.int64)},
            r"labels of shape \(40, 1\): should be \(40,\); use labels.flatten\(\)",
        ),
        (
            {"labels": torch.eye(4, dtype=torch.int64).repeat(10, 1)},
            r"labels of shape \(40, 4\): should be \(40,\); use labels.argmax\(dim=1\)",
        ),
        (
            {"labels": torch.eye(4).repeat(10, 1)},
            r"should be integers, and are torch.float32; use labels.argmax\(dim=1\)",
        ),
        ({"labels": torch.zeros(40)}, r"labels should be integers, and are torch.float32$"),
        (
            {"labels": torch.zeros(40, dtype=torch.bool)},
            r"labels should be integers, and are torch.bool",
        ),
        ({"labels": torch.zeros(40, dtype=torch.int64)}, r"at least 2 classes.*have 1 values"),
        (
            {"labels": torch.arange(40) % 4 + 1},
            r"labels should be 0..n-1.*are in 1..4; subtract 1$",
        ),
        (
            {"labels": torch.arange(40) % 4 * 2},
            r"labels should be 0..n-1.*have 4 values.* are in 0..6",
        ),
        ({"labels": torch.arange(40) % 4 - 1}, r"are in -1..2"),
        ({"labels": None}, r"should have the tensors images and labels.*it has images$"),
        ({"weights": torch.zeros(40)}, r"it has images, labels, weights"),
        (
            {"test_images": torch.zeros(4, 3, 4, 5, dtype=torch.uint8)},
            r"it has images, labels, test_images",
        ),
        (
            {"val_images": torch.zeros(4, 3, 4, 5, dtype=torch.uint8)},
            r"validation_images and validation_labels.*it has images, labels, val_images",
        ),
        (
            {"images": torch.arange(4000, dtype=torch.uint8).reshape(40, 5, 5, 4)},
            r"reads like \(N, H, W, C\); use images.permute\(0, 3, 1, 2\)",
        ),
        (
            {"images": torch.arange(3000, dtype=torch.uint8).reshape(40, 5, 5, 3)},
            r"images should be of shape \(N, C, H, W\), and \(40, 5, 5, 3\) reads like",
        ),
        (
            {"images": torch.arange(31360, dtype=torch.uint8).reshape(40, 28, 28, 1)},
            r"and \(40, 28, 28, 1\) reads like \(N, H, W, C\)",
        ),
        (
            {"images": torch.zeros(40, 3, 4, 5, dtype=torch.uint8)},
            r"all 40 images are black: nothing can be learned",
        ),
        (
            {"images": torch.full((40, 4, 5), 255, dtype=torch.uint8)},
            r"all 40 images are the same: nothing can be learned",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    write_safetensors(tmp_path / "x.safetensors", **changes)
    with pytest.raises(InputError, match=message) as caught:
        load("safetensors", tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 32, 1), (4, 28, 4), (200, 3, 3), (30, 1, 1)])
def test_narrow_images_and_those_of_many_channels_are_read(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    write_safetensors(tmp_path / "x.safetensors", images=random_part(40, shape).images)
    assert load("safetensors", tmp_path / "x.safetensors").image_shape == shape


def test_a_validation_split_of_a_file_is_used(tmp_path: Path) -> None:
    validation = random_part(8, (3, 4, 5), classes=4, seed=1)
    write_safetensors(
        tmp_path / "x.safetensors",
        validation_images=validation.images,
        validation_labels=validation.labels,
    )
    dataset = load("safetensors", tmp_path / "x.safetensors", validation_fraction=0.5)
    assert np.array_equal(dataset.validation.images.numpy(), validation.images)
    assert np.array_equal(dataset.validation.labels.numpy(), validation.labels)
    assert sizes(dataset) == {"train": 30, "validation": 8, "test": 10}
    assert dataset.provenance["validation_split"] == "of the source"
    assert dataset.provenance["test_split"] == "held out"


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((3, 4, 4), [0, 1], r"one shape \(C, H, W\), and are \(3, 4, 5\) and \(3, 4, 4\)"),
        ((3, 4, 5), [0, 4], r"the test labels are in 0..4"),
        ((3, 4, 5), [0, 1, 2], r"2 test images have test labels of shape \(3,\)"),
    ],
)
def test_test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, shape: tuple[int, ...], labels: list[int], message: str
) -> None:
    write_safetensors(
        tmp_path / "x.safetensors",
        test_images=torch.zeros(2, *shape, dtype=torch.uint8),
        test_labels=torch.tensor(labels),
    )
    with pytest.raises(InputError, match=message):
        load("safetensors", tmp_path / "x.safetensors")


def test_files_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"should be a \.safetensors file"):
        load("safetensors", path)
    write_safetensors(path)
    whole = path.read_bytes()
    for content in (b"", b"not safetensors at all", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x.safetensors: should be a whole .safetensors file"):
            load("safetensors", path)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load(DataSettings(), 3)


def test_a_data_set_is_read_as_it_was_saved(tmp_path: Path, digits: Dataset) -> None:
    path = tmp_path / "new" / "digits.safetensors"
    data.save(digits, path)
    read = data.read(path)
    assert same(digits, read)
    for field in ("name", "num_classes", "mean", "std", "provenance", "image_shape", "fingerprint"):
        assert getattr(digits, field) == getattr(read, field)
    data.save(read, tmp_path / "second")
    assert path.read_bytes() == (tmp_path / "second").read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_is_as_readable_as_any_other(tmp_path: Path, digits: Dataset) -> None:
    data.save(digits, tmp_path / "x.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_search_gets_a_file_without_the_test_split(tmp_path: Path, digits: Dataset) -> None:
    data.save(data.without_test(digits), tmp_path / "search.safetensors")
    names = set(load_file(tmp_path / "search.safetensors"))
    assert names == {"train_images", "train_labels", "validation_images", "validation_labels"}
    splits = (digits.train, digits.validation)
    size = sum(split.images.nbytes + split.labels.nbytes for split in splits)
    assert (tmp_path / "search.safetensors").stat().st_size < size + 4096
    read = data.read(tmp_path / "search.safetensors")
    assert read.test is None
    assert read.fingerprint == digits.fingerprint


def test_a_failed_save_leaves_nothing_new_behind(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("before")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        data.save(digits, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


def test_truncated_and_altered_files_are_refused(tmp_path: Path, digits: Dataset) -> None:
    path = tmp_path / "x.safetensors"
    data.save(digits, path)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"x.safetensors: should be a whole .safetensors file"):
            data.read(path)
    position = whole.index(digits.train.images.numpy().tobytes())
    altered = bytearray(whole)
    altered[position] ^= 1
    path.write_bytes(altered)
    with pytest.raises(InputError, match="it was altered"):
        data.read(path)


def test_other_files_are_refused(tmp_path: Path, digits: Dataset) -> None:
    path = tmp_path / "x.safetensors"
    for missing in (path, tmp_path):
        with pytest.raises(InputError, match=f"{missing}: should be a whole"):
            data.read(missing)
    write_safetensors(path)
    problem = r"x.safetensors: should be a data set as prepared .*has the tensors images, labels"
    with pytest.raises(InputError, match=problem):
        data.read(path)
    tensors = {"images": torch.zeros(1)}
    for description in ("{", "[]", "{}", '{"format": "taylorglo data set 1"}'):
        save_file(tensors, path, {"dataset": description})
        with pytest.raises(InputError, match="has the tensors images"):
            data.read(path)
    save_file(tensors, path, {"dataset": '{"format": "taylorglo data set 9"}'})
    with pytest.raises(InputError, match="its format is 'taylorglo data set 9'"):
        data.read(path)
    data.save(replace(digits, provenance={}), path)
    with pytest.raises(InputError, match="should be a data set as prepared"):
        data.read(path)
