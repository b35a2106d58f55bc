"""Sources, splits, and the file in which a data set travels."""

import gzip
import hashlib
import math
import os
import pickle
import struct
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision import datasets

from taylorglo.data import dataset as data
from taylorglo.errors import InputError, ServiceError
from taylorglo.settings import DataSettings

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _counted(split):
    """How often each (image, label) occurs."""
    return Counter(
        (image.numpy().tobytes(), int(label))
        for image, label in zip(split.images, split.labels, strict=True)
    )


def _arrays(number, shape, classes=10, seed=0):
    """Random images and labels that go through all the classes."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (number, *shape), dtype=np.uint8), np.arange(number) % classes


def _same(first, second):
    return all(
        torch.equal(getattr(a, part), getattr(b, part))
        for a, b in (
            (first.train, second.train),
            (first.validation, second.validation),
            (first.test, second.test),
        )
        for part in ("images", "labels")
    )


# --- digits, and what holds for every source


def test_digits_are_split_into_everything_there_is():
    dataset = data.load(DataSettings(), seed=0)
    bunch = load_digits()
    everything = Counter(
        (np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert (
        sum(map(_counted, (dataset.train, dataset.validation, dataset.test)), Counter())
        == everything
    )
    assert (len(dataset.test), len(dataset.validation), len(dataset.train)) == (
        450,
        270,
        1077,
    )  # of 1797
    assert dataset.image_shape == (1, 8, 8)
    assert dataset.num_classes == 10
    assert (dataset.train.images.dtype, dataset.train.labels.dtype) == (torch.uint8, torch.int64)
    assert {int(dataset.train.images.min()), int(dataset.train.images.max())} == {0, 255}


def test_the_seed_decides_the_splits_and_nothing_else_does():
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again, other = (data.load(DataSettings(), seed) for seed in (5, 5, 6))
    assert _same(first, again)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.provenance == again.provenance
    assert first.provenance["source_sha256"] == other.provenance["source_sha256"]
    assert np.array_equal(state[0], np.random.get_state()[1])
    assert torch.equal(state[1], torch.get_rng_state())


def test_a_training_fraction_takes_from_the_training_images_alone():
    whole, part = (data.load(DataSettings(train_fraction=fraction), 0) for fraction in (1.0, 0.3))
    assert len(part.train) == math.ceil(0.3 * len(whole.train))
    assert _counted(part.train) <= _counted(whole.train)
    assert torch.equal(part.validation.images, whole.validation.images)
    assert torch.equal(part.test.images, whole.test.images)


def test_mean_and_std_are_those_of_the_training_images():
    dataset = data.load(DataSettings(), 0)
    scaled = dataset.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, [scaled.mean()], rtol=1e-12)
    np.testing.assert_allclose(dataset.std, [scaled.std()], rtol=1e-12)


def test_the_fingerprint_is_of_train_and_validation():
    dataset = data.load(DataSettings(), 0)
    assert data.without_test(dataset).fingerprint == dataset.fingerprint
    assert len(dataset.fingerprint) == 64


def test_a_split_moves_to_a_device():
    split = data.load(DataSettings(), 0).train
    moved = split.to("meta")
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")
    assert len(moved) == len(split)


def test_the_checksum_is_compared():
    right = data.load(DataSettings(), 0).provenance["source_sha256"]
    assert data.load(DataSettings(sha256=right), 0).provenance["source_sha256"] == right
    with pytest.raises(InputError, match=f"expected {'0' * 64}, but digits has {right}"):
        data.load(DataSettings(sha256="0" * 64), 0)


def test_a_uri_must_have_been_fetched(tmp_path):
    _write_safetensors(tmp_path / "x.safetensors")
    given_uri = DataSettings(name="safetensors", root="s3://bucket/x.safetensors")
    with pytest.raises(InputError, match="should have been fetched"):
        data.load(given_uri, 0)
    assert (
        data.load(given_uri, 0, tmp_path / "x.safetensors").provenance["source"] == given_uri.root
    )


# --- stratification


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    test=st.floats(0.05, 0.9),
    validation=st.floats(0.05, 0.9),
    train=st.floats(0.1, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_splits_are_disjoint_and_balanced_or_refused(sizes, test, validation, train, seed):
    number = sum(sizes)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    index = torch.arange(number, dtype=torch.int32).view(torch.uint8).reshape(number, 1, 2, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_file({"images": index, "labels": labels}, path)
        wanted = DataSettings(
            name="safetensors",
            root=str(path),
            test_fraction=test,
            validation_fraction=validation,
            train_fraction=train,
        )
        try:
            dataset = data.load(wanted, seed)
        except InputError as error:
            assert f"of {len(sizes)} classes" in str(error)  # noqa: PT017
            return
    splits = (dataset.test, dataset.validation, dataset.train)
    drawn = [split.images.flatten(1).contiguous().view(torch.int32).flatten() for split in splits]
    assert len(torch.cat(drawn).unique()) == sum(map(len, splits))
    for split, indices in zip(splits, drawn, strict=True):
        assert torch.equal(labels[indices.long()], split.labels)

    left = torch.tensor(sizes)
    for split, fraction in (
        (dataset.test, test),
        (dataset.validation, validation),
        (dataset.train, train),
    ):
        counts = torch.bincount(split.labels, minlength=len(sizes))
        assert counts.min() >= 1
        if fraction == 1:
            assert torch.equal(counts, left)
        else:
            assert len(split) == math.ceil(fraction * int(left.sum()))
            assert ((counts - len(split) * left / left.sum()).abs() < 1 + 1e-6).all()
        left = left - counts


def test_ample_classes_are_never_refused():
    for seed in range(5):
        dataset = data.load(
            DataSettings(test_fraction=0.1, validation_fraction=0.1, train_fraction=0.5), seed
        )
        assert set(dataset.train.labels.tolist()) == set(range(10))


def test_a_class_that_is_too_small_is_named_in_numbers(tmp_path):
    images, labels = _arrays(21, (1, 2, 2), classes=10)
    labels[:] = [*range(10), *range(9), 0, 1]  # one image of class 9
    _write_safetensors(tmp_path / "x.safetensors", images=images, labels=labels)
    with pytest.raises(
        InputError,
        match=r"data.test_fraction: 0.25 of 21 images of 10 classes, the smallest of 1, ",
    ):
        _load("safetensors", tmp_path / "x.safetensors")


# --- torchvision's sources


def _load(name, root, seed=0, **options):
    return data.load(DataSettings(name=name, root=str(root), **options), seed)


def _idx(array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def _write_idx(folder, packed=False, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [*_arrays(60, (5, 4), seed=seed), *_arrays(20, (5, 4), seed=seed + 1)]
    for name, array in zip(IDX_FILES, arrays, strict=True):
        content = _idx(array)
        (folder / f"{name}.gz" if packed else folder / name).write_bytes(
            gzip.compress(content) if packed else content
        )
    return arrays


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
@pytest.mark.filterwarnings("error")
def test_idx_files_are_read_from_every_layout(tmp_path, name, folder):
    images, labels, test_images, test_labels = _write_idx(tmp_path / "torchvision" / folder / "raw")
    _write_idx(tmp_path / "plain")
    _write_idx(tmp_path / "packed", packed=True)
    loaded = [_load(name, tmp_path / layout) for layout in ("torchvision", "plain", "packed")]
    assert loaded[0].image_shape == (1, 5, 4)
    assert np.array_equal(loaded[0].test.images[:, 0].numpy(), test_images)
    assert np.array_equal(loaded[0].test.labels.numpy(), test_labels)
    source = data.Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels))
    assert _counted(loaded[0].train) + _counted(loaded[0].validation) == _counted(source)
    for other in loaded[1:]:
        assert _same(loaded[0], other)
        assert other.provenance["source_sha256"] == loaded[0].provenance["source_sha256"]
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == sorted(
        f"{file}.gz" for file in IDX_FILES
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("file", IDX_FILES)
def test_a_truncated_idx_file_is_refused(tmp_path, file, packed):
    _write_idx(tmp_path, packed)
    path = tmp_path / (f"{file}.gz" if packed else file)
    whole = path.read_bytes()
    for length in sorted({*range(0, len(whole), 1 + len(whole) // 8), len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged") as caught:
            _load("mnist", tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_garbage_is_refused(tmp_path, packed):
    _write_idx(tmp_path, packed)
    path = tmp_path / (f"{IDX_FILES[0]}.gz" if packed else IDX_FILES[0])
    for seed in range(20):
        path.write_bytes(np.random.default_rng(seed).bytes(400))
        with pytest.raises(InputError, match="damaged"):
            _load("mnist", tmp_path)


def test_labels_that_do_not_belong_to_the_images_are_refused(tmp_path):
    _write_idx(tmp_path)
    (tmp_path / IDX_FILES[1]).write_bytes(_idx(np.arange(59) % 10))
    with pytest.raises(InputError, match=r"60 images have labels of shape \(59,\)"):
        _load("mnist", tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"lacks MNIST/raw/train-images-idx3-ubyte.*download: true"
    ):
        _load("mnist", tmp_path)
    with pytest.raises(InputError, match=r"lacks cifar-10-batches-py/data_batch_1.*download: true"):
        _load("cifar10", tmp_path)
    with pytest.raises(InputError, match=r"lacks cifar-100-python/train.*download: true"):
        _load("cifar100", tmp_path)
    with pytest.raises(InputError, match=r"lacks train_32x32.mat.*download: true"):
        _load("svhn", tmp_path)
    with pytest.raises(InputError, match="should be a folder that holds svhn"):
        _load("svhn", tmp_path / "absent")
    _write_idx(tmp_path)
    (tmp_path / IDX_FILES[3]).unlink()
    with pytest.raises(
        InputError, match=r"lacks t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"
    ):
        _load("mnist", tmp_path)


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
@pytest.mark.filterwarnings("error")
def test_fashion_mnist_of_debian_is_the_real_one():
    dataset = _load("fashion-mnist", FASHION_MNIST, train_fraction=0.1)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (4800, 12000, 10000)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert set(torch.bincount(split.labels).tolist()) == {len(split) // 10}
    with gzip.open(FASHION_MNIST / f"{IDX_FILES[2]}.gz") as file:
        test_images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(10000, 1, 28, 28)
    assert np.array_equal(dataset.test.images.numpy(), test_images)
    assert dataset.mean[0] == pytest.approx(
        0.286, abs=0.005
    )  # the values in common use: 0.2860 and 0.3530
    assert dataset.std[0] == pytest.approx(0.353, abs=0.005)


def _md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    """CIFAR's layout with random images; torchvision is told the MD5 of these files for the length
    of the test."""
    cls, classes = (
        (datasets.CIFAR10, 10) if request.param == "cifar10" else (datasets.CIFAR100, 100)
    )
    label, folder = ("labels" if classes == 10 else "fine_labels"), tmp_path / cls.base_folder
    folder.mkdir()
    arrays = {}
    for seed, (name, _) in enumerate(cls.train_list + cls.test_list):
        images, labels = _arrays(5 * classes, (3, 32, 32), classes, seed)
        (folder / name).write_bytes(
            pickle.dumps({"data": images.reshape(-1, 3072), label: labels.tolist()})
        )
        arrays[name] = images, labels
    (folder / cls.meta["filename"]).write_bytes(
        pickle.dumps({cls.meta["key"]: [str(n) for n in range(classes)]})
    )
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(
            cls, files, [[name, _md5(folder / name)] for name, _ in getattr(cls, files)]
        )
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": _md5(folder / cls.meta["filename"])})
    return request.param, folder, arrays


@pytest.mark.filterwarnings("error")
def test_cifar_is_read_through_torchvision(cifar):
    name, folder, arrays = cifar
    dataset = _load(name, folder.parent)
    *train, test = arrays.values()
    assert dataset.image_shape == (3, 32, 32)
    assert np.array_equal(dataset.test.images.numpy(), test[0])
    assert np.array_equal(dataset.test.labels.numpy(), test[1])
    images, labels = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*train, strict=True))
    assert _counted(dataset.train) + _counted(dataset.validation) == _counted(
        data.Split(images, labels)
    )


class _Touch:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_altered_cifar_file_is_refused_before_it_is_unpickled(cifar):
    name, folder, _ = cifar
    mark = folder / "unpickled"
    payload = pickle.dumps(_Touch(mark))
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(payload)
        with pytest.raises(InputError, match=r"is damaged: .*corrupted"):
            _load(name, folder.parent)
        assert not mark.exists()
        path.write_bytes(whole)
    pickle.loads(payload)  # noqa: S301  (the test's own bytes: the mark would have been made)
    assert mark.exists()


@pytest.mark.filterwarnings("error")
def test_svhn_is_read_through_torchvision(tmp_path, monkeypatch):
    arrays = {}
    split_list = dict(datasets.SVHN.split_list)
    for seed, part in enumerate(("train", "test")):
        images, labels = _arrays(60, (3, 32, 32), seed=seed)
        url, name, _ = split_list[part]
        # The file has the digit 0 as class 10, and the images last.
        savemat(
            tmp_path / name,
            {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]},
        )
        split_list[part] = [url, name, _md5(tmp_path / name)]
        arrays[part] = images, labels
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    dataset = _load("svhn", tmp_path)
    assert np.array_equal(dataset.test.images.numpy(), arrays["test"][0])
    assert np.array_equal(dataset.test.labels.numpy(), arrays["test"][1])
    source = data.Split(*map(torch.from_numpy, arrays["train"]))
    assert _counted(dataset.train) + _counted(dataset.validation) == _counted(source)

    path = tmp_path / split_list["test"][1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"is damaged: .*corrupted"):
        _load("svhn", tmp_path)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server of gzip'd idx files, as the only mirror of MNIST."""
    folder = tmp_path / "mirror"
    _write_idx(folder, packed=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        resources = [(f"{name}.gz", _md5(folder / f"{name}.gz")) for name in IDX_FILES]
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        yield folder
        server.shutdown()


def test_a_download_goes_to_the_root_and_is_read_from_there(tmp_path, mirror):
    downloaded = _load("mnist", tmp_path / "new" / "root", download=True)
    assert _same(downloaded, _load("mnist", mirror))
    for file in mirror.iterdir():
        file.unlink()
    assert _same(downloaded, _load("mnist", tmp_path / "new" / "root", download=True))


def test_a_download_is_tried_again_then_given_up(tmp_path, mirror, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    (mirror / f"{IDX_FILES[2]}.gz").unlink()
    with pytest.raises(
        ServiceError, match=r"mnist: download to .* failed 3 times: RuntimeError: .*404"
    ) as caught:
        _load("mnist", tmp_path / "root", download=True)
    assert "\n" not in str(caught.value)
    assert len(pauses) == 2


# --- image folders


def _write_images(root, number=8, classes=("cat", "dog"), size=(4, 3), seed=0):
    generator = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(number):
            pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


def _pixels(root):
    return Counter(
        (np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(), label)
        for label, folder in enumerate(sorted(root.iterdir()))
        for path in folder.iterdir()
    )


def test_an_image_folder_without_a_test_split_is_split(tmp_path):
    _write_images(tmp_path)
    dataset = _load("image-folder", tmp_path)
    assert dataset.image_shape == (3, 3, 4)
    assert (len(dataset.test), len(dataset.validation), len(dataset.train)) == (4, 3, 9)
    assert sum(
        map(_counted, (dataset.train, dataset.validation, dataset.test)), Counter()
    ) == _pixels(tmp_path)


def test_an_image_folder_keeps_its_test_split(tmp_path):
    _write_images(tmp_path / "train")
    _write_images(tmp_path / "test", number=3, seed=1)
    dataset = _load("image-folder", tmp_path)
    assert _counted(dataset.test) == _pixels(tmp_path / "test")
    assert _counted(dataset.train) + _counted(dataset.validation) == _pixels(tmp_path / "train")
    with_train_only = tmp_path / "other"
    _write_images(with_train_only / "train")
    assert len(_load("image-folder", with_train_only).test) == 4


def test_gray_and_transparent_images_become_rgb(tmp_path):
    _write_images(tmp_path)
    Image.new("L", (4, 3), 7).save(tmp_path / "cat" / "gray.png")
    Image.new("RGBA", (4, 3), (1, 2, 3, 0)).save(tmp_path / "dog" / "clear.png")
    dataset = _load("image-folder", tmp_path)
    everything = sum(map(_counted, (dataset.train, dataset.validation, dataset.test)), Counter())
    assert everything[(bytes([7] * 36), 0)] == 1
    assert everything[(bytes([1] * 12 + [2] * 12 + [3] * 12), 1)] == 1


def test_an_image_of_another_size_is_named(tmp_path):
    _write_images(tmp_path)
    Image.new("RGB", (5, 3)).save(tmp_path / "dog" / "3.png")
    with pytest.raises(
        InputError,
        match=r"dog/3.png: is 5x3, but .*cat/0.png is 4x3: all images should be of one size",
    ):
        _load("image-folder", tmp_path)
    _write_images(tmp_path / "sized" / "train")
    _write_images(tmp_path / "sized" / "test", size=(5, 3))
    with pytest.raises(
        InputError, match=r"one shape \(C, H, W\), and are \(3, 3, 4\) and \(3, 3, 5\)"
    ):
        _load("image-folder", tmp_path / "sized")


def test_a_truncated_image_is_named_unless_its_pixels_are_all_there(tmp_path):
    _write_images(tmp_path)
    whole = _load("image-folder", tmp_path)
    path = tmp_path / "cat" / "0.png"
    content = path.read_bytes()
    refused = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            assert _same(_load("image-folder", tmp_path), whole)
        except InputError as error:
            assert "cat/0.png: damaged or not an image" in str(error)  # noqa: PT017
            refused += 1
    assert refused > len(content) // 2


def test_folders_without_the_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="should have a folder of images per class"):
        _load("image-folder", tmp_path)
    _write_images(tmp_path, classes=("cat",))
    with pytest.raises(InputError, match="at least 2 classes"):
        _load("image-folder", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no valid file for the classes empty"):
        _load("image-folder", tmp_path)
    _write_images(tmp_path / "both" / "train", classes=("cat", "dog"))
    _write_images(tmp_path / "both" / "test", classes=("cat", "fox"))
    with pytest.raises(InputError, match="only one of them has dog, fox"):
        _load("image-folder", tmp_path / "both")


# --- the user's own tensors


def _write_safetensors(path, **changes):
    images, labels = _arrays(40, (3, 4, 5), classes=4)
    tensors = {"images": images, "labels": labels} | changes
    save_file(
        {name: torch.as_tensor(value) for name, value in tensors.items() if value is not None}, path
    )


def test_a_safetensors_file_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    _write_safetensors(path)
    dataset = _load("safetensors", path)
    assert (dataset.image_shape, dataset.num_classes) == ((3, 4, 5), 4)
    assert len(dataset.test) == 10
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.provenance["source_sha256"] == sha256
    assert _same(dataset, _load("safetensors", path, sha256=sha256))
    with pytest.raises(InputError, match=f"but .*x.safetensors has {sha256}"):
        _load("safetensors", path, sha256="1" * 64)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_gray_images_integer_labels_and_a_test_split_are_read(tmp_path, dtype):
    images, labels = _arrays(40, (4, 5), classes=4)
    test_images, test_labels = _arrays(6, (4, 5), classes=2)
    _write_safetensors(
        tmp_path / "x.safetensors",
        images=images,
        labels=torch.as_tensor(labels).to(dtype),
        test_images=test_images,
        test_labels=torch.as_tensor(test_labels).to(dtype),
    )
    dataset = _load("safetensors", tmp_path / "x.safetensors")
    assert np.array_equal(dataset.test.images[:, 0].numpy(), test_images)
    assert np.array_equal(dataset.test.labels.numpy(), test_labels)
    assert dataset.train.labels.dtype == torch.int64
    assert len(dataset.train) + len(dataset.validation) == 40


def test_a_constant_channel_is_safe(tmp_path):
    images, _ = _arrays(40, (3, 4, 5))
    images[:, 1] = 51
    _write_safetensors(tmp_path / "x.safetensors", images=images)
    dataset = _load("safetensors", tmp_path / "x.safetensors")
    assert dataset.mean[1] == pytest.approx(0.2)
    assert dataset.std[1] == 1 / 255
    assert dataset.std[0] > 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": torch.zeros(40, 3, 4, 5)},
            r"images should be uint8 .* and are torch.float32 \(40, 3, 4, 5\)",
        ),
        (
            {"images": torch.zeros(40, 3, dtype=torch.uint8)},
            r"images should be uint8 of shape .* \(40, 3\)",
        ),
        ({"images": torch.zeros(0, 3, 4, 5, dtype=torch.uint8)}, r"none of them 0"),
        ({"images": torch.zeros(40, 3, 0, 5, dtype=torch.uint8)}, r"none of them 0"),
        ({"labels": torch.arange(39)}, r"40 images have labels of shape \(39,\)"),
        ({"labels": torch.zeros(40, 1, dtype=torch.int64)}, r"labels of shape \(40, 1\)"),
        ({"labels": torch.zeros(40)}, r"labels should be integers, and are torch.float32"),
        (
            {"labels": torch.zeros(40, dtype=torch.bool)},
            r"labels should be integers, and are torch.bool",
        ),
        ({"labels": torch.zeros(40, dtype=torch.int64)}, r"at least 2 classes.*have 1 values"),
        ({"labels": torch.arange(40) % 4 + 1}, r"labels should be 0..n-1.*are in 1..4"),
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
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, changes, message):
    _write_safetensors(tmp_path / "x.safetensors", **changes)
    with pytest.raises(InputError, match=message) as caught:
        _load("safetensors", tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((3, 4, 4), [0, 1], r"one shape \(C, H, W\), and are \(3, 4, 5\) and \(3, 4, 4\)"),
        ((3, 4, 5), [0, 4], r"the test labels are in 0..4"),
        ((3, 4, 5), [0, 1, 2], r"2 test images have test labels of shape \(3,\)"),
    ],
)
def test_test_tensors_that_do_not_fit_are_refused(tmp_path, shape, labels, message):
    tests = {
        "test_images": torch.zeros(2, *shape, dtype=torch.uint8),
        "test_labels": torch.tensor(labels),
    }
    _write_safetensors(tmp_path / "x.safetensors", **tests)
    with pytest.raises(InputError, match=message):
        _load("safetensors", tmp_path / "x.safetensors")


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"should be a \.safetensors file"):
        _load("safetensors", path)
    _write_safetensors(path)
    whole = path.read_bytes()
    for content in (b"", b"not safetensors at all", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x.safetensors: should be a whole .safetensors file"):
            _load("safetensors", path)


# --- the file of a data set


@pytest.fixture(scope="module")
def digits():
    return data.load(DataSettings(), 3)


def test_a_data_set_is_read_as_it_was_saved(tmp_path, digits):
    path = tmp_path / "new" / "digits.safetensors"
    data.save(digits, path)
    again = data.read(path)
    assert _same(digits, again)
    for field in ("name", "num_classes", "mean", "std", "provenance", "image_shape", "fingerprint"):
        assert getattr(digits, field) == getattr(again, field)
    data.save(again, tmp_path / "second")
    assert path.read_bytes() == (tmp_path / "second").read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_is_as_readable_as_any_other(tmp_path, digits):
    data.save(digits, tmp_path / "x.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_search_gets_a_file_without_the_test_split(tmp_path, digits):
    data.save(data.without_test(digits), tmp_path / "search.safetensors")
    names = set(load_file(tmp_path / "search.safetensors"))
    assert names == {"train_images", "train_labels", "validation_images", "validation_labels"}
    size = sum(
        split.images.nbytes + split.labels.nbytes for split in (digits.train, digits.validation)
    )
    assert (tmp_path / "search.safetensors").stat().st_size < size + 4096
    again = data.read(tmp_path / "search.safetensors")
    assert again.test is None
    assert again.fingerprint == digits.fingerprint


def test_a_failed_save_leaves_nothing_new_behind(tmp_path, digits, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_text("before")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        data.save(digits, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


def test_truncated_and_altered_files_are_refused(tmp_path, digits):
    path = tmp_path / "x.safetensors"
    data.save(digits, path)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"x.safetensors: should be a whole .safetensors file"):
            data.read(path)
    at = whole.index(digits.train.images.numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(InputError, match="it was altered"):
        data.read(path)


def test_other_files_are_refused(tmp_path, digits):
    path = tmp_path / "x.safetensors"
    for missing in (path, tmp_path):
        with pytest.raises(InputError, match=f"{missing}: should be a whole"):
            data.read(missing)
    _write_safetensors(path)
    with pytest.raises(
        InputError,
        match=r"x.safetensors: should be a data set as prepared .*has the tensors images, labels",
    ):
        data.read(path)
    tensors = {"images": torch.zeros(1)}
    for described in ("{", "[]", "{}", '{"format": "taylorglo data set 1"}'):
        save_file(tensors, path, {"dataset": described})
        with pytest.raises(InputError, match="has the tensors images"):
            data.read(path)
    save_file(tensors, path, {"dataset": '{"format": "taylorglo data set 9"}'})
    with pytest.raises(InputError, match="its format is 'taylorglo data set 9'"):
        data.read(path)
    data.save(replace(digits, provenance={}), path)
    with pytest.raises(InputError, match="should be a data set as prepared"):
        data.read(path)
