"""Named tensors: features and images of floats, from .safetensors, .npz and .npy files."""

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taylorglo.data import dataset as data
from taylorglo.data import remarks
from taylorglo.data.dataset import Dataset
from taylorglo.errors import InputError
from taylorglo.settings import DataSettings

Array = NDArray[Any]
RNG = np.random.default_rng(0)
FEATURES = RNG.normal([5, -2, 0], [1, 10, 0.1], (60, 3))
LABELS = np.arange(60) % 2


def load(root: Path, name: str = "numpy", **changes: Any) -> Dataset:
    return data.load(DataSettings.model_validate({"name": name, "root": str(root), **changes}), 0)


def of_npz(folder: Path, **arrays: Array) -> Dataset:
    np.savez(folder / "x.npz", **arrays)
    return load(folder / "x.npz")


def test_features_stay_as_they_are_and_have_their_own_statistics(tmp_path: Path) -> None:
    dataset = of_npz(tmp_path, features=FEATURES, labels=LABELS)
    assert dataset.image_shape == (3,)
    assert dataset.features == 3
    assert dataset.train.images.dtype == torch.float32
    together = torch.cat([dataset.train.images, dataset.validation.images, dataset.test.images])
    assert sorted(together.tolist()) == sorted(FEATURES.astype(np.float32).tolist())
    train = dataset.train.images.double().numpy()
    np.testing.assert_allclose(dataset.mean, train.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, train.std(axis=0), rtol=1e-12)
    assert not dataset.pixels
    np.testing.assert_allclose(dataset.unit, train.std(axis=0), rtol=1e-6)
    assert dataset.provenance["epsilon_unit"] == "standard deviations"


def test_one_data_set_is_the_same_in_every_format(tmp_path: Path) -> None:
    expected = of_npz(tmp_path, features=FEATURES, labels=LABELS)
    save_file({"features": FEATURES, "labels": LABELS}, tmp_path / "x.safetensors")
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "features.npy", FEATURES.astype(">f8"))
    np.save(folder / "labels.npy", np.asfortranarray(LABELS.astype(np.int16)))
    (folder / ".hidden.npy").write_bytes(b"")
    for found in (load(tmp_path / "x.safetensors", "safetensors"), load(folder)):
        assert found.fingerprint == expected.fingerprint
        assert (found.mean, found.std) == (expected.mean, expected.std)


@pytest.mark.parametrize(
    ("samples", "labels"),
    [("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "targets"), ("inputs", "target_y")],
)
def test_usual_names_of_arrays_are_known(tmp_path: Path, samples: str, labels: str) -> None:
    images = RNG.integers(0, 256, (60, 4, 5), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", **{samples: images, labels: LABELS})
    if labels == "target_y":
        with pytest.raises(InputError, match="should have the tensors images and labels"):
            load(tmp_path / "x.npz")
    else:
        assert load(tmp_path / "x.npz").image_shape == (1, 4, 5)


@pytest.mark.parametrize("form", ["{split}_{kind}", "{kind}_{split}"])
def test_usual_names_of_splits_are_known(tmp_path: Path, form: str) -> None:
    arrays = {}
    for split, number in (("train", 20), ("val", 8), ("test", 6)):
        arrays[form.format(split=split, kind="x")] = RNG.normal(size=(number, 3))
        arrays[form.format(split=split, kind="y")] = np.arange(number) % 2
    dataset = of_npz(tmp_path, **arrays)
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [20, 8, 6]
    assert torch.equal(
        dataset.validation.images,
        torch.from_numpy(arrays[form.format(split="val", kind="x")]).float(),
    )


def test_images_of_floats_within_0_and_1_are_pixels(tmp_path: Path) -> None:
    levels = RNG.integers(0, 256, (60, 3, 4, 5), dtype=np.uint8)
    floats = of_npz(tmp_path, images=(levels / 255).astype(np.float32), labels=LABELS)
    bytes_ = of_npz(tmp_path, images=levels, labels=LABELS)
    assert floats.pixels
    assert floats.unit is None
    assert "epsilon_unit" not in floats.provenance
    np.testing.assert_allclose(floats.mean, bytes_.mean, rtol=1e-6)
    np.testing.assert_allclose(floats.std, bytes_.std, rtol=1e-6)
    assert remarks.lines(floats.provenance)[0] == (
        "60 RGB images of 5x4, floats in [0, 1]; 2 classes: 0 30, 1 30"
    )


def test_other_images_of_floats_have_no_pixels(tmp_path: Path) -> None:
    images = RNG.normal(3, 2, (60, 2, 4, 5)).astype(np.float32)
    images[:, 1] *= 10
    dataset = of_npz(tmp_path, images=images, labels=LABELS)
    assert not dataset.pixels
    assert dataset.unit is not None
    assert dataset.unit.shape == (2, 1, 1)
    train = dataset.train.images.double().numpy()
    np.testing.assert_allclose(dataset.std, train.std(axis=(0, 2, 3)), rtol=1e-9)
    assert "images of 2 channels of 5x4, floats from" in remarks.lines(dataset.provenance)[0]


@pytest.mark.parametrize(
    ("arrays", "place"),
    [
        ({"features": FEATURES * [1, 1, 1e-43]}, r"features\[:, 2\]"),
        ({"images": RNG.normal(size=(60, 2, 4, 4)) * [[[1]], [[1e-43]]]}, r"images\[:, 1\]"),
    ],
)
def test_a_deviation_that_float32_does_not_hold_is_refused(
    tmp_path: Path, arrays: dict[str, Array], place: str
) -> None:
    with pytest.raises(
        InputError, match=f"{place} have the standard deviation .* at least 1.2e-38"
    ):
        of_npz(tmp_path, labels=LABELS, **arrays)


def with_splits(**values: float) -> dict[str, Array]:
    """Return images in [0, 1] in three splits, with another value in one place of some."""
    arrays: dict[str, Array] = {}
    for split, number in (("train", 40), ("validation", 8), ("test", 6)):
        images = RNG.random((number, 4, 5))
        images[0, 0, 0] = values.get(split, 0.5)
        arrays |= {f"{split}_images": images, f"{split}_labels": LABELS[:number]}
    return arrays


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_single_value_beyond_1_that_the_search_sees_makes_no_pixels(
    tmp_path: Path, split: str
) -> None:
    assert of_npz(tmp_path, **with_splits()).pixels
    assert not of_npz(tmp_path, **with_splits(**{split: 1.5})).pixels
    assert not of_npz(tmp_path, **with_splits(**{split: 1.5, "test": 2.5})).pixels


@pytest.mark.parametrize(("value", "shown"), [(1.5, "to 1.5"), (-0.5, "from -0.5 to")])
def test_a_test_split_that_would_change_what_the_search_sees_is_refused(
    tmp_path: Path, value: float, shown: str
) -> None:
    with pytest.raises(InputError, match=f"test images are .*{shown}.*: should be scaled in the"):
        of_npz(tmp_path, **with_splits(test=value))


def test_a_constant_feature_is_counted_and_has_the_deviation_1(tmp_path: Path) -> None:
    features = FEATURES.copy()
    features[:, 1] = 0.1
    dataset = of_npz(tmp_path, features=features, labels=LABELS)
    assert dataset.std[1] == 1
    said = "features that are constant in the training split: 1"
    assert said in remarks.lines(dataset.provenance)


def test_the_test_split_decides_nothing_that_the_search_sees(tmp_path: Path) -> None:
    arrays = with_splits(train=1.5)
    dataset = of_npz(tmp_path, **arrays)
    arrays["test_images"] = arrays["test_images"] / 2
    other = of_npz(tmp_path, **arrays)
    assert (other.fingerprint, other.std) == (dataset.fingerprint, dataset.std)
    assert torch.equal(other.unit, dataset.unit)


def with_value(value: float) -> Array:
    features = FEATURES.copy()
    features[3, 2] = value
    return features


REFUSED: list[tuple[dict[str, Array], str]] = [
    ({"features": with_value(np.nan)}, r"features\[3, 2\] is nan, as 1 of 180 numbers are not fin"),
    ({"features": with_value(-np.inf)}, r"features\[3, 2\] is -inf"),
    ({"features": with_value(1e39)}, r"features\[3, 2\] is inf, .* not finite in float32"),
    ({"images": np.full((60, 4, 4), np.nan)}, r"images\[0, 0, 0, 0\] is nan, as 960 of 960"),
    ({"images": FEATURES}, r"images should be of shape .* if they are features, name them so"),
    ({"features": FEATURES[:, :, None]}, r"features should be of shape \(N, F\), .*name them so"),
    ({"features": FEATURES[:, :0]}, r"features should be floats of shape \(N, F\), none of them 0"),
    ({"features": FEATURES[:50]}, r"50 samples have labels of shape \(60,\): should be \(50,\)"),
    ({"features": np.ones((60, 3))}, r"all 60 samples are the same: nothing can be learned"),
    ({"features": FEATURES.astype(complex)}, r"features: should be an array of numbers, and is of"),
    ({"features": np.array(["a"] * 60)}, r"features: should be an array of numbers"),
    ({"features": np.array([None] * 60)}, r"x.npz: should be a whole .npz file of numbers: it has"),
    ({"weights": np.ones(3)}, r"should have the tensors images and labels .*it has .*weights"),
    (
        {"features": FEATURES, "test_features": FEATURES[:, :2], "test_labels": LABELS},
        r"training and test features should be of one shape \(F\), and are \(3,\) and \(2,\)",
    ),
]


@pytest.mark.parametrize(("arrays", "message"), REFUSED)
def test_unfit_arrays_are_refused(tmp_path: Path, arrays: dict[str, Array], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        of_npz(tmp_path, labels=LABELS, **arrays)
    assert "\n" not in str(caught.value)
    assert "x.npz" in str(caught.value)


def test_splits_of_different_types_are_refused(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (60, 4, 4), dtype=np.uint8)
    with pytest.raises(InputError, match=r"one type, and are torch.uint8 and torch.float32"):
        of_npz(tmp_path, images=images, labels=LABELS, test_images=images / 255, test_labels=LABELS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY", b"text"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    (tmp_path / "features.npy").write_bytes(content)
    for root, name in ((tmp_path / "x.npz", "x.npz"), (tmp_path, "features.npy")):
        with pytest.raises(InputError, match=f"{name}: should be a whole .np[zy] file of numbers"):
            load(root)


def with_header(header: str, data: bytes = b"") -> bytes:
    """Return an .npy file with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def of_shape(shape: tuple[int, ...], data: bytes = b"", kind: str = "'<f8'") -> bytes:
    head = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}"
    return with_header(head, data)


def write_both(folder: Path, content: bytes, method: int = zipfile.ZIP_STORED) -> tuple[Path, Path]:
    """Write an array into an .npz file and as a file of a folder, and return what to read."""
    (folder / "features.npy").write_bytes(content)
    with zipfile.ZipFile(folder / "x.npz", "w", method) as archive:
        archive.writestr("features.npy", content)
    return folder, folder / "x.npz"


HEADERS = [
    (with_header("{'descr': '<f8', 'shape': ("), "TokenError"),
    (of_shape((1,), kind="()"), "IndexError"),
    (with_header("-" * 9000 + "1"), "the header is nested too deeply"),
    (of_shape((2, 3), bytes(40)), r"\(2, 3\) of float64 are 48 bytes, and the file has 40 at most"),
    (of_shape((-1, 3), bytes(48)), r"should be a whole array: \(-1, 3\) of float64"),
    (of_shape((2**50, 1)), r"are 9007199254740992 bytes, and the file has 0 at most"),
    (of_shape((2**62, 4)), r"are 147573952589676412928 bytes, and the file has 0 at most"),
]


@pytest.mark.parametrize(("content", "message"), HEADERS, ids=range(len(HEADERS)))
def test_headers_that_are_cut_odd_or_too_large_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    for root in write_both(tmp_path, content):
        with pytest.raises(InputError, match=message) as caught:
            load(root)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_an_archive_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    content = of_shape((2**50, 1))
    _, path = write_both(tmp_path, content, zipfile.ZIP_DEFLATED)
    # Both headers of the file in the archive claim 4 GB.
    real = struct.pack("<L", len(content))
    packed = path.read_bytes()
    assert packed.count(real) == 2
    path.write_bytes(packed.replace(real, struct.pack("<L", 2**32 - 2)))
    with pytest.raises(InputError, match=r"are 9007199254740992 bytes, and the file has \d{5} at"):
        load(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=FEATURES, labels=LABELS)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        places = [(info.header_offset + 6) for info in archive.infolist()]
    entry = content.find(b"PK\x01\x02")
    while entry >= 0:
        places.append(entry + 8)
        entry = content.find(b"PK\x01\x02", entry + 1)
    for place in places:
        content[place] |= 1  # the flag of encryption
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"x.npz: should be a whole .npz file .*is encrypted"):
        load(tmp_path / "x.npz")


def test_one_kind_of_file_under_the_name_of_the_other_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FEATURES)
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"x.npz: should be a whole .npz .*not a zip file"):
        load(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", features=FEATURES)
    (tmp_path / "y.npz").rename(tmp_path / "features.npy")
    with pytest.raises(InputError, match=r"features.npy: should be a whole .npy .*magic string"):
        load(tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_that_are_packed_tightly_are_read(tmp_path: Path, method: int) -> None:
    features = np.zeros((2000, 50))
    features[::2] = 1
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method, compresslevel=9) as archive:
        for name, array in (("features", features), ("labels", np.arange(2000) % 2)):
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{name}.npy", file.getvalue())
        ratio = max(info.file_size / info.compress_size for info in archive.infolist())
    assert ratio > 100
    dataset = load(tmp_path / "x.npz")
    assert math.isclose(dataset.mean[0], 0.5, abs_tol=0.01)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    objects = np.array([Harmful()] * 3, object)
    np.savez(tmp_path / "x.npz", features=objects, labels=LABELS)
    np.save(tmp_path / "features.npy", objects)
    for root in (tmp_path / "x.npz", tmp_path):
        with pytest.raises(InputError, match="has Python objects"):
            load(root)
    assert not (tmp_path / "touched").exists()


def test_a_file_of_another_kind_or_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(InputError, match=r"x.csv should be an .npz file, or a folder with images"):
        load(tmp_path / "x.csv")
    with pytest.raises(InputError, match=r"should have the tensors .*; it has none$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("samples", "labels"),
    [
        (FEATURES, "features"),
        (RNG.random((60, 2, 4, 4)), "images"),
        (RNG.normal(size=(60, 4, 4)), "images"),
    ],
)
def test_a_prepared_data_set_of_floats_is_read_as_it_was_saved(
    tmp_path: Path, samples: Array, labels: str
) -> None:
    dataset = of_npz(tmp_path, **{labels: samples}, labels=LABELS)
    data.save(dataset, tmp_path / "saved.safetensors")
    assert b"taylorglo data set 2" in (tmp_path / "saved.safetensors").read_bytes()
    found = data.read(tmp_path / "saved.safetensors")
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(found, split).images, getattr(dataset, split).images)
    assert (found.mean, found.std, found.pixels) == (dataset.mean, dataset.std, dataset.pixels)
    assert found.provenance == dataset.provenance


def test_floats_under_the_format_of_bytes_are_refused(tmp_path: Path) -> None:
    dataset = of_npz(tmp_path, images=RNG.random((60, 2, 4, 4)), labels=LABELS)
    path = tmp_path / "saved.safetensors"
    data.save(dataset, path)
    path.write_bytes(path.read_bytes().replace(b"taylorglo data set 2", b"taylorglo data set 1"))
    with pytest.raises(InputError, match="its images, labels and classes do not fit together"):
        data.read(path)


def test_noise_imbalance_and_fractions_work_for_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=RNG.normal(size=(400, 3)), labels=np.arange(400) % 4)
    plain = load(tmp_path / "x.npz")
    tail = load(tmp_path / "x.npz", imbalance=4)
    assert torch.equal(plain.test.images, tail.test.images)
    sizes = torch.bincount(torch.cat([tail.train.labels, tail.validation.labels]))
    assert sizes.tolist() == [75, 47, 30, 19]
    noisy = load(tmp_path / "x.npz", label_noise=0.3)
    assert torch.equal(noisy.train.images, plain.train.images)
    changed = int((noisy.train.labels != plain.train.labels).sum())
    assert changed == round(0.3 * len(plain.train))
