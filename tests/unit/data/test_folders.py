"""Folders of images: which of them are splits, which are classes, and what is left out."""

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from taylorglo.data import dataset as data
from taylorglo.data import remarks
from taylorglo.data.dataset import Dataset, Split
from taylorglo.data.folders import read_image_folder, split_named
from taylorglo.errors import InputError
from taylorglo.settings import DataSettings


def write(folder: Path, *, classes: Sequence[str] = ("cat", "dog"), number: int = 6) -> None:
    """Write random images of 4x3, which no other call writes too, of each class."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            write_image(folder / name / f"{index}.png")


def write_image(path: Path) -> None:
    pixels = np.frombuffer(os.urandom(36), np.uint8).reshape(3, 4, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def load(root: Path, **changes: Any) -> Dataset:
    settings = DataSettings.model_validate({"name": "image-folder", "root": str(root), **changes})
    return data.load(settings, seed=0)


def expected(folder: Path) -> Split:
    """Return the images of class folders as torchvision's own reader gives them."""
    folders = ImageFolder(folder)
    images = torch.stack([pil_to_tensor(image) for image, _ in folders])
    return Split(images, torch.tensor(folders.targets))


def same(first: Split | None, second: Split) -> bool:
    assert first is not None
    return torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


def test_images_are_in_the_order_of_torchvision(tmp_path: Path) -> None:
    for name in ("b", "a", "10", "9", "B"):
        for place in ("", "x", "x y", "x-z/q", "y/b/c"):
            write(tmp_path / name, classes=(place,), number=3)
    assert same(read_image_folder(tmp_path).train, expected(tmp_path))


NAMES = [
    ("train", "test"),
    ("Train", "Test"),
    ("TRAIN", "TEST"),
    ("training", "testing"),
    ("trainset", "testset"),
    ("train_set", "test-set"),
    ("Training Data", "Test Data"),
    ("train_images", "test_images"),
    ("data_train", "data_test"),
    ("train2017", "test2017"),
    ("trn", "tst"),
]


@pytest.mark.parametrize(("train", "test"), NAMES)
def test_train_and_test_are_known_by_every_usual_name(
    tmp_path: Path, train: str, test: str
) -> None:
    write(tmp_path / train)
    write(tmp_path / test, number=3)
    source = read_image_folder(tmp_path)
    assert same(source.train, expected(tmp_path / train))
    assert same(source.test, expected(tmp_path / test))
    assert source.validation is None


VALIDATION = ["val", "Val", "VALID", "validation", "dev", "val_set", "ValidationData", "val2017"]


@pytest.mark.parametrize("name", VALIDATION)
def test_a_validation_folder_is_the_validation_split(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train", number=8)
    write(tmp_path / name, number=3)
    dataset = load(tmp_path, validation_fraction=0.9)
    assert same(dataset.validation, expected(tmp_path / name))
    assert len(dataset.train) == 12
    assert dataset.test is not None
    assert len(dataset.test) == 4
    assert dataset.provenance["validation_split"] == "of the source"
    assert dataset.provenance["test_split"] == "held out"


def test_all_three_splits_of_a_folder_are_used(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "val", "test"), start=3):
        write(tmp_path / name, number=number)
    dataset = load(tmp_path)
    assert same(dataset.train, expected(tmp_path / "train"))
    assert same(dataset.validation, expected(tmp_path / "val"))
    assert same(dataset.test, expected(tmp_path / "test"))


@pytest.mark.parametrize("name", ["cat", "train-station", "testudo", "validator", "pest", "1", "é"])
def test_names_of_classes_are_no_names_of_splits(name: str) -> None:
    assert split_named(name) is None


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("val", "test"), r"beside test, val should be a folder train;"),
        (("test",), r"beside test should be a folder train;"),
        (("Train", "training", "test"), r"Train, training are names of one split \(train\)"),
        (("train", "val", "dev"), r"dev, val are names of one split \(validation\)"),
        (("train", "eval"), r"/eval: should be named validation or test"),
        (("train", "test", "cat"), r"test, train should be folders of splits .*, but cat beside"),
        (("train", "bus", "boat"), r"train should be folders of splits .*, but boat, bus beside"),
        (("seg_train", "seg_test"), r"seg_test and seg_train should be named train, validation or"),
        (("trainA", "trainB", "testA", "testB"), r"testA and trainA should be named train, valid"),
    ],
)
def test_folders_that_leave_a_choice_are_refused(
    tmp_path: Path, folders: Sequence[str], message: str
) -> None:
    for folder in folders:
        write(tmp_path / folder)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_a_split_inside_of_a_class_or_of_a_split_is_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / "below" / name, classes=("train", "test"))
        write(tmp_path / "deep" / name / "2020", classes=("Training",))
    for root in ("below", "deep"):
        with pytest.raises(InputError, match="has the name of a split inside of a class"):
            load(tmp_path / root)
    write(tmp_path / "twice" / "train" / "train")
    write(tmp_path / "twice" / "train" / "test")
    with pytest.raises(InputError, match=r"twice/train: has splits inside of a split"):
        load(tmp_path / "twice")


def test_a_class_may_have_the_name_of_a_split_below_the_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / split, classes=("bus", "train"))
    assert load(tmp_path).num_classes == 2


def test_a_folder_without_images_may_be_beside_the_splits(tmp_path: Path) -> None:
    write(tmp_path / "train")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.csv").write_text("0,1")
    assert len(load(tmp_path).train) == 7


@pytest.mark.parametrize("other", ["test", "val"])
def test_splits_have_the_same_classes(tmp_path: Path, other: str) -> None:
    write(tmp_path / "train", classes=("cat", "dog"))
    write(tmp_path / other, classes=("cat", "fox"))
    with pytest.raises(InputError, match="same class folders; only one of them has dog, fox"):
        load(tmp_path)


HIDDEN = [".ipynb_checkpoints", ".thumbnails", ".git", "@eaDir", "__MACOSX", "lost+found"]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_folders_and_files_are_not_read_at_any_depth(tmp_path: Path, hidden: str) -> None:
    write(tmp_path / "train")
    write(tmp_path / "test")
    clean = load(tmp_path)
    for place in (".", "train", "train/cat", "train/cat/2020", "test/dog"):
        write_image(tmp_path / place / hidden / "x.png")
        write_image(tmp_path / place / hidden / "train" / "x.png")
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        write_image(tmp_path / "train" / "cat" / name)
    found = load(tmp_path).provenance
    assert found.pop("left_out").startswith("hidden files and folders: 9, the first is ")
    assert found == clean.provenance


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    write(tmp_path)
    clean = load(tmp_path)
    for name in ("b.heic", "a.avif", "2020/labels.csv"):
        (tmp_path / "cat" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "cat" / name).write_bytes(b"unknown")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    dataset = load(tmp_path)
    assert dataset.fingerprint == clean.fingerprint
    assert dataset.provenance["left_out"] == (
        "files of class folders that are no images that can be read: 4, the first is cat/a.avif"
    )
    assert "left_out" not in clean.provenance


def test_images_outside_of_the_class_folders_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write_image(tmp_path / "train" / "stray.png")
    write_image(tmp_path / "train" / "stray.jfif")
    (tmp_path / "train" / "README.txt").write_text("cats and dogs")
    dataset = load(tmp_path)
    assert dataset.provenance["left_out"] == (
        "images in no class folder: 2, the first is train/stray.jfif"
    )
    write_image(tmp_path / "top.png")
    left_out = load(tmp_path).provenance["left_out"]
    assert left_out == "images in no class folder: 3, the first is top.png"


def test_images_with_other_suffixes_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    os.rename(tmp_path / "cat" / "0.png", tmp_path / "cat" / "0.jfif")
    os.rename(tmp_path / "dog" / "0.png", tmp_path / "dog" / "0.PNG")
    source = read_image_folder(tmp_path)
    assert len(source.train) == 12
    assert not source.remarks


@pytest.mark.parametrize("target", ["..", "../..", ".", "../../.."])
def test_a_link_to_a_folder_above_is_refused(tmp_path: Path, target: str) -> None:
    root = tmp_path / "root"
    write(root)
    (root / "cat" / "loop").symlink_to(target)
    with pytest.raises(InputError, match=r"/loop: is a link to a folder that it is in: remove"):
        load(root)


@pytest.mark.parametrize(
    ("link", "target", "others"),
    [
        ("test", "train", "train"),
        ("train/cat/more", "../dog", "train/cat/more"),
        ("train/fox", "dog", "train/dog"),
        ("val", "train", "train"),
    ],
)
def test_a_folder_under_two_names_is_refused(
    tmp_path: Path, link: str, target: str, others: str
) -> None:
    write(tmp_path / "train")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target)
    with pytest.raises(InputError, match=f"and {tmp_path}/{others} are one folder under two names"):
        load(tmp_path)


def test_a_class_of_the_test_split_is_no_link_to_that_of_the_training(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "test", classes=("dog",))
    (tmp_path / "test" / "cat").symlink_to("../train/cat")
    with pytest.raises(InputError, match=r"test/cat and .*train/cat are one folder under two"):
        load(tmp_path)


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "store")
    (tmp_path / "root").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "store" / name)
    assert same(read_image_folder(tmp_path / "root").train, expected(tmp_path / "store"))


def test_one_file_under_two_names_is_a_duplicate(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "test")
    (tmp_path / "test" / "cat" / "link.png").symlink_to("../../train/cat/0.png")
    os.link(tmp_path / "train" / "dog" / "0.png", tmp_path / "test" / "cat" / "hard.png")
    assert (
        load(tmp_path)
        .provenance["duplicates"]
        .endswith(
            "2 of 14 test images are duplicates of training or validation images; "
            "images with several labels: 1"
        )
    )


def test_the_folders_of_a_class_belong_to_it(tmp_path: Path) -> None:
    write(tmp_path / "cat", classes=("2020", "2021/may"))
    write(tmp_path / "dog", classes=(".",))
    source = read_image_folder(tmp_path)
    assert torch.bincount(source.train.labels).tolist() == [12, 6]


@pytest.mark.parametrize(("place", "root"), [(".", "."), ("cat", ".."), (".", "../root")])
def test_the_root_may_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, root: str
) -> None:
    write(tmp_path / "root")
    write_image(tmp_path / "root" / "stray.png")
    monkeypatch.chdir(tmp_path / "root" / place)
    source = read_image_folder(Path(root))
    assert same(source.train, expected(tmp_path / "root"))
    assert source.remarks["left_out"] == "images in no class folder: 1, the first is stray.png"


def test_class_folders_without_images_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.txt").write_text("x")
    with pytest.raises(InputError, match="there is no image for the classes empty, text"):
        load(tmp_path)


@pytest.mark.parametrize("classes", [(), ("cat",)])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, classes: Sequence[str]) -> None:
    write(tmp_path / "train", classes=classes)
    (tmp_path / "train").mkdir(exist_ok=True)
    problem = f"{tmp_path}/train: should have a folder of images per class, for at least 2 classes"
    with pytest.raises(InputError, match=problem):
        load(tmp_path)


def test_levels_of_8_bits_in_files_of_16_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        pixels = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(pixels).save(path)
    problem = r"no level of its 16-bit images is above \d+, though white is 65535"
    with pytest.raises(InputError, match=problem):
        load(tmp_path)


def test_images_that_are_all_black_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        Image.new("RGB", (4, 3)).save(path)
    with pytest.raises(InputError, match="all 12 images are black: nothing can be learned"):
        load(tmp_path)


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png")
    for root in (tmp_path / "x.png", tmp_path / "absent"):
        with pytest.raises(InputError, match=f"data.root: {root} should be a folder that has a"):
            load(root)


def test_a_root_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.root: /.* cannot be read: File name too long$"):
        load(tmp_path / ("x" * 256))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run a block as a user who may not read everything, as root may."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("place", [".", "cat", "cat/0.png"])
def test_what_may_not_be_read_is_named(place: str) -> None:
    # The folders of tmp_path are those of the user who runs the tests alone.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "root"
        write(root)
        # Its libraries are imported before.
        load(root)
        path = root / place
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            with (
                unprivileged(),
                pytest.raises(
                    InputError, match=f"{path.resolve()}.*cannot be read: Permission denied"
                ),
            ):
                load(root)
        finally:
            path.chmod(mode)


def write_sizes(folder: Path) -> None:
    """Write images of several sizes and kinds of two classes, in two splits."""
    for split, number in (("train", 12), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                shape = (6 + index % 3, 8 - index % 2, 3)
                levels = np.frombuffer(os.urandom(math.prod(shape)), np.uint8).reshape(shape)
                Image.fromarray(levels).save(folder / split / name / f"{label}{index}.png")


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    write_sizes(tmp_path)
    message = r"01.png: is 7x7, but .*00.png is 8x6: all images should be of one size; set data.im"
    with pytest.raises(InputError, match=message):
        load(tmp_path)
    dataset = load(tmp_path, image_size=6)
    assert dataset.image_shape == (3, 6, 6)
    said = "images cut to a square and resized to 6x6, bilinear: "
    assert dataset.provenance["conversions"].startswith(said)
    assert load(tmp_path, image_size=6, interpolation="nearest").fingerprint != dataset.fingerprint


def test_the_line_of_what_was_read_has_kind_size_and_classes(tmp_path: Path) -> None:
    write_sizes(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("none")
    (tmp_path / ".cache").mkdir()
    lines = remarks.lines(load(tmp_path, image_size=6, color="gray").provenance)
    assert lines[0] == (
        "32 gray images of 6x6, 8 bits; 2 classes: cat 16, dog 16; left out: files of class "
        "folders that are no images that can be read: 1, the first is train/cat/notes.txt; hidden "
        "files and folders: 1, the first is .cache"
    )


def test_many_classes_are_told_by_the_range_of_their_sizes(tmp_path: Path) -> None:
    for index in range(13):
        write(tmp_path, classes=(f"class {index}",), number=6 + index % 2)
    dataset = load(tmp_path)
    assert remarks.lines(dataset.provenance)[0].endswith("; 13 classes of 6 to 7")
    assert dataset.classes == tuple(sorted(f"class {index}" for index in range(13)))


def test_gray_images_have_one_channel_if_all_of_them_are_gray(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(8):
            levels = np.frombuffer(os.urandom(12), np.uint8).reshape(3, 4)
            Image.fromarray(levels).save(tmp_path / name / f"{index}.png")
    colour = load(tmp_path)
    gray = load(tmp_path, color="auto")
    assert colour.image_shape == (3, 3, 4)
    assert gray.image_shape == (1, 3, 4)
    assert torch.equal(gray.train.images, colour.train.images[:, :1])
    write_image(tmp_path / "dog" / "coloured.png")
    assert load(tmp_path, color="auto").image_shape == (3, 3, 4)
